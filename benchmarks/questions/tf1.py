"""A step of the TensorFlow 1 functions in a session, beside the originals.

The originals are tf_keras' legacy `tf.layers`, which runs TensorFlow's fused op where there are no
options, and tf_slim, for weights. Both run the updates and the gradients of everything.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from batchnorm import tf1
from benchmarks import ours
from benchmarks.cases import Case, Settings, middle_sizes
from benchmarks.ours import EPSILON, GHOST, MOMENTUM
from benchmarks.timing import Contest

v1 = tf.compat.v1
VARIANTS = ("plain", "renorm", "ghost", "weights")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "renorm": {"renorm": True, "renorm_clipping": {"rmax": 3.0, "rmin": 1 / 3, "dmax": 5.0}},
    "ghost": {"virtual_batch_size": GHOST},
}


def cases(settings: Settings) -> list[Case]:
    """Each variant on tensors of middle size, channels last."""
    return [
        Case("forward + backward", size, "float32", "last", variant)
        for variant in VARIANTS
        for size in middle_sizes(settings)
        if size.n % GHOST == 0
    ]


def contest(case: Case, settings: Settings) -> Contest:
    mine, original = _functions(case)
    peer = {"plain": "TF fused", "weights": "tf_slim"}.get(case.variant, "tf.layers")
    return Contest({"ours": _step(mine, case)}, peers={peer: _step(original, case)})


def _functions(case: Case) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Ours and the original, as functions of the input."""
    if case.variant == "weights":
        weights = np.random.default_rng(2).uniform(0.5, 1.5, case.size.n).astype(np.float32)
        options: dict[str, Any] = {
            "decay": MOMENTUM, "epsilon": EPSILON, "scale": True, "batch_weights": weights,
        }  # fmt: skip
        both = tf1.contrib.layers.batch_norm, _slim()
    else:
        from tf_keras.src.legacy_tf_layers import normalization

        options = {"momentum": MOMENTUM, "epsilon": EPSILON, "training": True}
        options |= OPTIONS[case.variant]
        both = tf1.layers.batch_normalization, normalization.batch_normalization
    mine, original = both
    return lambda x: mine(x, **options), lambda x: original(x, **options)


def _slim() -> Any:
    """`tf_slim.batch_norm`, with the names that TensorFlow has moved since put back."""
    from tensorflow.python.framework import ops

    ops.Tensor = tf.Tensor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tf_slim.layers import layers
    return layers.batch_norm


def _step(function: Callable[[Any], Any], case: Case) -> Callable[[], Any]:
    """A call that runs and returns the output and all gradients, and runs the updates."""
    x, dy = ours.arrays(case)
    with tf.Graph().as_default() as graph, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = [
            v1.get_local_variable(name, initializer=v1.placeholder(tf.float32, array.shape))
            for name, array in (("x", x), ("dy", dy))
        ]
        values = [tf.identity(one) for one in given]
        y = function(values[0])
        slopes = v1.gradients(y, [values[0], *v1.trainable_variables()], grad_ys=values[1])
        # fetched, not grouped: TensorFlow leaves out what is computed for nobody
        step = [y, *slopes, *v1.get_collection(v1.GraphKeys.UPDATE_OPS)]
        session = v1.Session(graph=graph)
        session.run(v1.global_variables_initializer())
        for variable, array in zip(given, (x, dy), strict=True):
            session.run(variable.initializer, {variable.initializer.inputs[1]: array})
        return session.make_callable(step)
