"""Classes derived from the layer, as public TensorFlow 1 code has them: their overrides count."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf

import tf1_originals
from batchnorm import tf1

v1 = tf.compat.v1
Base = tf1.layers.BatchNormalization
RNG = np.random.default_rng(8)
X = RNG.normal(2.0, 3.0, (8, 3, 2, 4)).astype("float32")
G = RNG.normal(size=X.shape).astype("float32")


def run(session, fetches, feed):
    session.run(v1.global_variables_initializer())
    return session.run(fetches, feed)


def averaged(base, peers):
    """The cross-replica layer of TPU code; `peers` are the replicas' inputs, for the collective."""

    class TpuBatchNormalization(base):
        def __init__(self, fused=False, **kwargs):
            super().__init__(fused=fused, **kwargs)

        def _moments(self, inputs, reduction_axes, keep_dims, mask=None):
            shards = [
                super(TpuBatchNormalization, self)._moments(
                    one, reduction_axes, keep_dims=keep_dims
                )
                for one in peers or [inputs]
            ]
            mean = tf.reduce_mean([mean for mean, _ in shards], 0)
            spread = [variance + tf.square(own - mean) for own, variance in shards]
            return mean, tf.reduce_mean(spread, 0)

    return TpuBatchNormalization


def summed(base, peers):
    """The other kind: sums and sums of squares over all replicas, positional, with a mask."""

    class TpuBatchNormalization(base):
        def __init__(self, **kwargs):
            super().__init__(fused=False, **kwargs)

        def _calculate_mean_and_var(self, x, axes, keep_dims, mask=None):
            every = peers or [x]
            means = [tf.reduce_mean(one, axes, keepdims=True) for one in every]
            squares = [tf.reduce_mean(tf.square(one), axes, keepdims=True) for one in every]
            mean = tf.add_n(means) / len(every)
            variance = tf.add_n(squares) / len(every) - tf.square(mean)
            if not keep_dims:
                mean, variance = tf.squeeze(mean, axes), tf.squeeze(variance, axes)
            return mean, variance

    return TpuBatchNormalization


each_kind = pytest.mark.parametrize("derive", [averaged, summed])


@each_kind
def test_two_replicas_by_a_gathered_mean_equal_one_batch(session, derive):
    halves = [v1.placeholder(tf.float32, (4, 3, 2, 4)) for _ in range(2)]
    layer, alone = derive(Base, halves)(momentum=0.5), Base(momentum=0.5, fused=False)
    towers = [layer(half, training=True) for half in halves]
    whole = tf.concat(halves, 0)
    results = [
        [y, tf.gradients(tf.reduce_sum(y * G), [*halves, one.gamma, one.beta])]
        for one, y in ((layer, tf.concat(towers, 0)), (alone, alone(whole, training=True)))
    ]
    feed = dict(zip(halves, np.split(X, 2), strict=True))
    got, want = run(session, results, feed)
    for mine, other in zip(tf.nest.flatten(got), tf.nest.flatten(want), strict=True):
        np.testing.assert_allclose(mine, other, rtol=3e-5, atol=3e-5)
    session.run([layer.updates[:2], alone.updates], feed)  # those of the first tower
    for mine, other in zip(*session.run([layer.variables, alone.variables]), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


OPTIONS = [
    {},
    {"axis": 1},
    {"axis": [1, 3]},
    {"renorm": True, "renorm_clipping": {"rmax": 1.1}, "renorm_momentum": 0.5},
    {"virtual_batch_size": 4},
    {"virtual_batch_size": 2, "axis": [1, 3], "scale": False},
    {"adjustment": lambda shape: (tf.fill((8, 1, 1, 1), 1.5), tf.fill((8, 1, 1, 1), 0.1))},
    {"trainable": False, "center": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["-".join(one) or "plain" for one in OPTIONS])
@pytest.mark.parametrize(("derive", "training"), [(averaged, True), (summed, "placeholder")])
def test_a_subclass_trains_as_its_twin_of_the_original(derive, options, training):
    if training == "placeholder" and "virtual_batch_size" in options:
        training = True  # with a tensor the original forms no groups (D02)
    seen = []
    for base in (Base, tf1_originals.layers().BatchNormalization):
        with tf.Graph().as_default(), v1.Session() as session, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = v1.placeholder(tf.float32, X.shape)
            fed = v1.placeholder(tf.bool, ()) if training == "placeholder" else training
            layer = derive(base, None)(momentum=0.5, **options)
            y = layer(x, training=fed)
            slopes = tf.gradients(tf.reduce_sum(y * G), [x, *layer.trainable_variables])
            session.run(v1.global_variables_initializer())
            steps = []
            for step, phase in enumerate((True, True, False)):
                feed = {x: (step + 1) * X} | ({fed: phase} if fed is not training else {})
                steps += session.run([y, slopes, layer.updates], feed)[:2]
                steps += session.run(layer.variables)
            names = [one.name for one in (*layer.variables, y)]
            seen.append((tf.nest.flatten(steps), names, len(v1.get_collection("update_ops"))))
    (ours, *described), (theirs, *wanted) = seen
    assert described == wanted
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-4, atol=2e-4)


def test_second_derivatives_go_through_the_override(session):
    x = v1.placeholder(tf.float64, (6, 3))
    layer = averaged(Base, None)(epsilon=0.1, scale=False, center=False)
    (slope,) = tf.gradients(tf.reduce_sum(layer(x, training=True) ** 3), x)
    (curvature,) = tf.gradients(tf.reduce_sum(slope**2), x)
    value, other = RNG.normal(size=(2, 6, 3))
    got = run(session, curvature, {x: value})
    ahead, behind = (
        np.sum(session.run(slope, {x: value + step * other}) ** 2) for step in (1e-6, -1e-6)
    )
    np.testing.assert_allclose(np.sum(got * other), (ahead - behind) / 2e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_an_override_sees_float32_where_the_inputs_have_16_bits(session, dtype):
    seen = []

    class Watching(Base):
        def _calculate_mean_and_var(self, inputs, reduction_axes, keep_dims):
            seen.append(inputs.dtype)
            return super()._calculate_mean_and_var(inputs, reduction_axes, keep_dims)

    y = Watching()(v1.placeholder(dtype, (6, 4)), training=True)
    assert (seen, y.dtype) == ([tf.float32], dtype)


@pytest.mark.parametrize("axis", [-1, 1])
def test_masked_statistics_by_an_override_are_those_of_what_is_left(session, axis):
    """A mask that `call` keeps for `_calculate_mean_and_var`, as before layers had one."""

    class Masked(Base):
        def call(self, inputs, mask, training=False):
            self._kept = mask
            return super().call(inputs, training=training)

        def _calculate_mean_and_var(self, inputs, reduction_axes, keep_dims):
            return super()._calculate_mean_and_var(inputs, reduction_axes, keep_dims, self._kept)

    free = [i for i in range(4) if i != axis % 4]
    mask = RNG.random([X.shape[i] for i in free]) < 0.5
    spoiled = np.where(np.expand_dims(mask, axis), X, np.nan)
    x = v1.placeholder(tf.float32, X.shape)
    layer = Masked(momentum=0.0, axis=axis)
    layer(x, tf.constant(mask), training=True)
    run(session, layer.updates, {x: spoiled})
    left = np.moveaxis(X, axis, -1)[mask]
    np.testing.assert_allclose(session.run(layer.moving_mean), left.mean(0), rtol=1e-5)
    np.testing.assert_allclose(session.run(layer.moving_variance), left.var(0), rtol=1e-4)


def test_the_mask_of_a_call_reaches_an_override_that_takes_one(session):
    class Counting(Base):
        def _moments(self, inputs, reduction_axes, **rest):
            seen.append(rest)
            return super()._moments(inputs, reduction_axes, **rest)

    seen = []
    x, mask = v1.placeholder(tf.float32, X.shape), RNG.random(X.shape[:3]) < 0.5
    layer = Counting(momentum=0.0)
    layer(x, training=True, mask=mask)
    run(session, layer.updates, {x: X})
    assert [sorted(one) for one in seen] == [["keep_dims", "mask"]]
    np.testing.assert_allclose(session.run(layer.moving_variance), X[mask].var(0), rtol=1e-4)


def test_a_method_of_one_layer_object_counts_too(session):
    layer = Base(momentum=0.0)
    layer._moments = lambda inputs, reduction_axes, keep_dims: (tf.fill((4,), 7.0), tf.ones((4,)))
    x = v1.placeholder(tf.float32, X.shape)
    y = layer(x, training=True)
    got, _ = run(session, [y, layer.updates], {x: X})
    np.testing.assert_allclose(got, (X - 7) / np.sqrt(1.001), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(session.run(layer.moving_mean), np.full(4, 7.0))


def test_checkpoints_of_a_subclass_have_its_name_and_load(tmp_path):
    """`tpu_batch_normalization` and so on, written by the original's class."""
    path, states = str(tmp_path / "model"), []
    for base in (tf1_originals.layers().BatchNormalization, Base):
        kind = averaged(base, None)
        with tf.Graph().as_default(), v1.Session() as session, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = v1.placeholder(tf.float32, X.shape)
            with v1.variable_scope("net"):
                y = kind()(kind()(x, training=True), training=True)
            if base is Base:
                tf1.restore(session, path)
            else:
                session.run(v1.global_variables_initializer())
                session.run([y, v1.get_collection(v1.GraphKeys.UPDATE_OPS)], {x: X})
                v1.train.Saver().save(session, path)
            names = [one.op.name for one in v1.global_variables()]
            states.append(dict(zip(names, session.run(v1.global_variables()), strict=True)))
    written, read = states
    assert list(read) == list(written)
    assert "net/tpu_batch_normalization_1/moving_mean" in read
    for name, value in written.items():
        np.testing.assert_array_equal(read[name], value)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (1.0, "_moments must return (mean, variance); got 1.0."),
        ((np.ones(3), np.ones(4)), "_moments must return 4 means and variances; got the shape (3,) "
         "for an input of shape (8, 3, 2, 4) and the reduced axes [0, 1, 2]."),
    ],
    ids=["one value", "another length"],
)  # fmt: skip
def test_moments_that_cannot_be_are_refused(session, returned, message):
    class Wrong(Base):
        def _moments(self, inputs, reduction_axes, keep_dims):
            return returned

    with pytest.raises(ValueError, match="must") as caught:
        Wrong()(v1.placeholder(tf.float32, X.shape), training=True)
    assert str(caught.value) == f"Wrong 'wrong': {message}"


def test_a_mask_that_an_override_cannot_take_is_refused(session):
    class Old(Base):
        def _calculate_mean_and_var(self, inputs, reduction_axes, keep_dims):
            return super()._calculate_mean_and_var(inputs, reduction_axes, keep_dims)

    with pytest.raises(ValueError, match="mask") as caught:
        Old()(v1.placeholder(tf.float32, (6, 4)), training=True, mask=np.ones(6))
    assert str(caught.value) == (
        "Old 'old': mask must be None where _calculate_mean_and_var has no argument mask; got one. "
        "Give the override that argument."
    )
