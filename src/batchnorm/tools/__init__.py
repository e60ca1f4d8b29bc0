"""Tools for trained models: inspect, re-estimate, repair, freeze, explain, fold.

They take Keras 3 models on any backend, with Keras' own batch-normalization layers or ours, and
(inspect, re-estimate, repair, freeze, explain) plain PyTorch modules. `norms.py` is the one place
that knows the kinds of layers, `forward.py` the one that runs models. Nothing here imports a
framework before it is given one's model.
"""
