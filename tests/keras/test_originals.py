"""Live against the originals: tf_keras 2.21 in the same process, on random options and values.

tf_keras computes with TensorFlow, whatever Keras' backend is: all three are held to it.
"""

from __future__ import annotations

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from batchnorm import keras as ours

pytestmark = pytest.mark.keras

TOLERANCES = {"float32": 5e-5, "float64": 1e-7}
STEPS = 3
EXAMPLES = 15 if keras.backend.backend() == "jax" else 30  # each is compiled there
# Batches and channels are pairwise different, and one size is 1.
SHAPES = [(6, 5), (6, 4, 3), (4, 1, 3), (6, 3, 2, 4), (4, 3, 2, 1, 5)]


@pytest.fixture(scope="session")
def originals():
    """The module with the original layers."""
    from tf_keras.src.layers.normalization import batch_normalization

    return batch_normalization


@st.composite
def axes(draw, rank):
    many = draw(st.booleans())
    if not many:
        return draw(st.integers(-rank, rank - 1))
    one = draw(st.lists(st.integers(0, rank - 1), min_size=1, max_size=min(rank, 3), unique=True))
    return [axis - rank if draw(st.booleans()) else axis for axis in one]


def _contains_batch(axis, rank):
    return 0 in {one % rank for one in (axis if isinstance(axis, list) else [axis])}


@st.composite
def cases(draw):
    """Options of both, the input's shape, and what else a call takes."""
    shape = draw(st.sampled_from(SHAPES))
    rank = len(shape)
    axis = draw(axes(rank))
    options = {
        "axis": axis,
        "momentum": draw(st.sampled_from([0.0, 0.5, 0.99, 1.0])),
        "epsilon": draw(st.sampled_from([1e-5, 1e-3, 0.3])),
        "center": draw(st.booleans()),
        "scale": draw(st.booleans()),
        "dtype": draw(st.sampled_from(["float32", "float64"])),
        "trainable": draw(st.sampled_from([True, True, True, False])),
    }
    mode = draw(st.sampled_from(["plain", "renorm", "ghost", "adjustment", "mask"]))
    if mode == "ghost" and not _contains_batch(axis, rank):
        options["virtual_batch_size"] = draw(st.sampled_from([1, 2, shape[0]]))
    if mode == "renorm" or (mode in ("adjustment", "mask") and draw(st.booleans())):
        options["renorm"] = True
        options["renorm_momentum"] = draw(st.sampled_from([0.0, 0.7, 1.0]))
        clipping = {"rmax": 1.2, "rmin": 0.8, "dmax": 0.3}
        kept = draw(st.sets(st.sampled_from(sorted(clipping))))
        options["renorm_clipping"] = {name: clipping[name] for name in kept}
    if mode == "mask":  # the original takes it for its non-fused path and the last axis only
        options["axis"] = -1
        options["fused"] = False
    return {
        "shape": shape,
        "options": options,
        "mode": mode,
        "seed": draw(st.integers(0, 2**32 - 1)),
        "trainings": draw(st.lists(st.booleans(), min_size=STEPS, max_size=STEPS)),
    }


def adjustment_of(case, rng):
    """Along every dimension; constant over the steps."""
    dtype, shape = case["options"]["dtype"], case["shape"]
    scale, bias = rng.uniform(0.5, 1.5, shape), rng.normal(size=shape)
    return lambda _: (scale.astype(dtype), bias.astype(dtype))


def start(case, original, layer, rng):
    """Gives both the same random parameters and moving statistics."""
    for variable in original.weights:
        name = variable.name.split(":")[0].split("/")[-1]
        positive = name.endswith(("variance", "stddev"))
        value = (
            rng.uniform(0.5, 2.0, variable.shape) if positive else rng.normal(size=variable.shape)
        )
        if name == "moving_variance" and case["options"].get("renorm"):
            # where it follows from moving_stddev: the original undoes another one (D18)
            value = np.square(original.moving_stddev.numpy())
        if name == "moving_stddev":
            value = np.sqrt(original.moving_variance.numpy())
        variable.assign(value)
        getattr(layer, name).assign(np.reshape(value, getattr(layer, name).shape))


def original_step(original, x, dy, training, mask):
    import tensorflow as tf

    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = original(x, training=training, **({} if mask is None else {"mask": mask}))
        loss = tf.reduce_sum(y * tf.constant(dy, y.dtype))
    named = {"dx": x, "gamma": original.gamma, "beta": original.beta}
    wanted = {name: one for name, one in named.items() if one is not None}
    result = {name: one.numpy() for name, one in tape.gradient(loss, wanted).items()}
    result["y"] = y.numpy()
    return result


def assert_close(case, what, got, want):
    tolerance = TOLERANCES[case["options"]["dtype"]]
    want = np.asarray(want, np.float64)
    got = np.reshape(got, want.shape)
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=what)


@pytest.mark.filterwarnings("ignore:.*Masking is not supported for fused:UserWarning")
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(case=cases())
def test_random_options_over_several_steps_equal_the_original(
    case, originals, wide, step, state_of
):
    rng = np.random.default_rng(case["seed"])
    options = dict(case["options"])
    if case["mode"] == "adjustment":
        options["adjustment"] = adjustment_of(case, rng)
    with wide(options["dtype"]):
        original = originals.BatchNormalizationBase(**options)
        original.build(case["shape"])
        layer = ours.BatchNormalizationBase(**options, unbiased_moving_variance=original.fused)
        layer.build(case["shape"])
        start(case, original, layer, rng)
        mask = None
        if case["mode"] == "mask":
            mask = rng.random(case["shape"][:-1]) < 0.6
            mask.flat[0] = True  # without any value the originals write NaN or 0 (D29)
        for training in case["trainings"]:
            x = rng.normal(1.0, 2.0, case["shape"]).astype(options["dtype"])
            dy = rng.normal(size=case["shape"]).astype(options["dtype"])
            want = original_step(original, x, dy, training, mask)
            call = {"training": training} | ({} if mask is None else {"mask": mask})
            got = step(layer, x, dy, **call)
            assert_close(case, "y", got["y"], want["y"])
            assert_close(case, "dx", got["dx"], want["dx"])
            for name in {"gamma", "beta"} & set(want) & set(got):  # not ours where frozen
                assert_close(case, name, got[name], want[name])
            state = state_of(layer)
            for variable in original.weights:
                name = variable.name.split(":")[0].split("/")[-1]
                if name not in ("gamma", "beta"):
                    assert_close(case, name, state[name], variable.numpy())


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 2, 4)])
def test_one_replica_of_the_synchronized_layer_equals_the_original(
    shape, originals, step, state_of
):
    rng = np.random.default_rng(3)
    original = originals.SyncBatchNormalization(momentum=0.7)
    layer = ours.SyncBatchNormalization(momentum=0.7)
    case = {"options": {"dtype": "float32"}}
    for _ in range(2):
        x = rng.normal(1.0, 2.0, shape).astype("float32")
        dy = rng.normal(size=shape).astype("float32")
        want, got = original_step(original, x, dy, True, None), step(layer, x, dy, training=True)
        for name in ("y", "dx", "gamma", "beta"):
            assert_close(case, name, got[name], want[name])
    for name in ("moving_mean", "moving_variance"):
        assert_close(case, name, state_of(layer)[name], getattr(original, name).numpy())


def test_the_arguments_have_the_names_positions_and_defaults_of_the_original(originals):
    import inspect

    theirs = inspect.signature(originals.BatchNormalizationBase.__init__).parameters
    mine = inspect.signature(ours.BatchNormalizationBase.__init__).parameters
    original = [(one.name, one.default) for one in theirs.values() if one.kind != one.VAR_KEYWORD]
    positional = [
        (one.name, one.default) for one in mine.values() if one.kind == one.POSITIONAL_OR_KEYWORD
    ]
    assert [*positional, ("synchronized", False)] == original  # new in 2.12: ours by keyword


def test_the_public_layer_takes_the_positions_of_the_original(originals):
    import inspect

    def positional(layer):
        parameters = inspect.signature(layer.__init__).parameters.values()
        return [one.name for one in parameters if one.kind == one.POSITIONAL_OR_KEYWORD]

    original = positional(originals.BatchNormalization)
    assert [*positional(ours.BatchNormalization), "synchronized"] == original
