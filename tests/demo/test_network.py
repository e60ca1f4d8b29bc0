"""The network of the demo."""

import pytest

pytestmark = pytest.mark.keras


@pytest.fixture
def regime():
    from batchnorm.demo.plan import REGIMES

    return REGIMES[0]


@pytest.mark.parametrize("kind", ["none", "batch", "renorm", "ghost"])
def test_every_kind_gives_ten_logits(kind, regime):
    from batchnorm.demo.network import network

    assert network(kind, regime, (3, 4)).output_shape == (None, 10)


def test_convolutions_and_dense_layers_start_alike_whatever_the_kind(regime):
    import keras
    import numpy as np

    from batchnorm.demo.network import network

    starts = []
    for kind in ("none", "batch", "renorm", "ghost"):
        keras.utils.set_random_seed(5)
        model = network(kind, regime, (3, 4))
        starts.append(kernels(model))
    for start in starts[1:]:
        for kernel, first in zip(start, starts[0], strict=True):
            assert np.array_equal(kernel, first)


def kernels(model):
    import keras

    return [keras.ops.convert_to_numpy(w) for w in model.weights if w.name == "kernel"]


def test_an_unknown_kind_is_refused(regime):
    from batchnorm.demo.network import normalization

    with pytest.raises(ValueError, match="normalization") as caught:
        normalization("layer", regime)
    assert str(caught.value) == (
        "normalization: kind must be 'batch', 'renorm' or 'ghost'; got 'layer'. "
        "Leave the layer out for a network without normalization."
    )


def test_clipping_starts_as_plain_batch_normalization_and_opens_in_a_quarter_of_the_run():
    from batchnorm.demo.network import clipping

    bounds = clipping(steps=100)
    assert [float(bounds[name](0)) for name in ("rmin", "rmax", "dmax")] == [1, 1, 0]
    opened = [float(bounds[name](25)) for name in ("rmin", "rmax", "dmax")]
    assert opened == pytest.approx([1 / 3, 3, 5])
