"""Methods of the layer that a subclass overrides: which count, and which are refused."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import tf1_originals
from batchnorm import tf1
from batchnorm.tf1 import _overrides

v1 = tf.compat.v1


Base = tf1.layers.BatchNormalization


RNG = np.random.default_rng(8)


X = RNG.normal(2.0, 3.0, (8, 3, 2, 4)).astype("float32")


def run(session, fetches, feed):
    session.run(v1.global_variables_initializer())
    return session.run(fetches, feed)


def test_an_override_of_call_may_change_the_default_of_training(session):
    class Training(Base):
        def call(self, inputs, training=True):
            return super().call(inputs, training=training)

    x = v1.placeholder(tf.float32, X.shape)
    layer = Training(name="bn")
    y, at_rest = layer(x), layer(x, training=False)
    assert len(v1.get_collection(v1.GraphKeys.UPDATE_OPS)) == 2
    got, moving = run(session, [y, at_rest], {x: X})
    np.testing.assert_allclose(got.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(moving, X / np.sqrt(1.001), rtol=1e-5)


def test_an_override_of_the_training_value_counts(session):
    class Always(Base):
        def _get_training_value(self, training=None):
            return True

    layer = Always()
    layer(v1.placeholder(tf.float32, X.shape), training=False)
    assert len(layer.updates) == 2


def test_an_override_of_build_adds_variables_and_may_replace_those_there_are(session):
    class Doubled(Base):
        def build(self, input_shape):
            super().build(input_shape)
            self.extra = self.add_weight("extra", (2,), initializer=v1.ones_initializer())
            self.gamma = 2.0 * self.gamma

        def call(self, inputs, training=False):
            return super().call(inputs, training=training) + tf.reduce_sum(self.extra)

    x = v1.placeholder(tf.float32, X.shape)
    layer = Doubled()
    y = layer(x, training=True)
    layer(x)
    names = ["gamma", "beta", "extra", "moving_mean", "moving_variance"]
    assert [one.op.name for one in layer.variables] == [f"doubled/{name}" for name in names]
    got = run(session, y, {x: X})
    np.testing.assert_allclose(got.mean((0, 1, 2)), 2, atol=1e-5)
    np.testing.assert_allclose(got.std((0, 1, 2)), 2, rtol=1e-3)


def test_a_build_written_anew_is_taken_as_it_is(session):
    class Bare(Base):
        def build(self, input_shape):
            shape, dtype = (int(input_shape[-1]),), self._param_dtype
            self.gamma, self.beta = None, None
            self.moving_mean = self.add_variable("mean", shape, dtype, trainable=False)
            self.moving_variance = self.add_variable("variance", shape, dtype, trainable=False)

    x = v1.placeholder(tf.float32, X.shape)
    layer = Bare(momentum=0.0)
    layer(x, training=True)
    assert [one.op.name for one in layer.variables] == ["bare/mean", "bare/variance"]
    run(session, layer.updates, {x: X})
    np.testing.assert_allclose(session.run(layer.moving_mean), X.mean((0, 1, 2)), rtol=1e-5)


def test_an_override_of_add_weight_makes_every_variable(session):
    class Renamed(Base):
        def add_weight(self, name, shape, **kwargs):
            return super().add_weight(name=f"my_{name}", shape=shape, **kwargs)

    layer = Renamed(name="bn")
    layer(v1.placeholder(tf.float32, X.shape))
    names = ["my_gamma", "my_beta", "my_moving_mean", "my_moving_variance"]
    assert [one.op.name for one in layer.variables] == [f"bn/{name}" for name in names]


def test_an_override_of_add_update_gets_the_updates(session):
    class Elsewhere(Base):
        def add_update(self, updates, inputs=None):
            v1.add_to_collection("mine", updates)

    Elsewhere()(v1.placeholder(tf.float32, X.shape), training=True)
    assert v1.get_collection(v1.GraphKeys.UPDATE_OPS) == []
    assert [len(one) for one in v1.get_collection("mine")] == [2]


@pytest.mark.parametrize("allowed", [True, False])
def test_an_override_can_forbid_the_fused_kernel(session, allowed):
    class Choosing(Base):
        def _fused_can_be_used(self):
            return allowed

    x = v1.placeholder(tf.float32, X.shape)
    layer = Choosing(momentum=0.0)
    layer(x, training=True)
    kinds = {one.type for one in session.graph.get_operations()}
    assert bool({kind for kind in kinds if kind.startswith("Batchnorm")}) is allowed
    assert layer.fused is allowed
    run(session, layer.updates, {x: X})
    want = X.var((0, 1, 2), ddof=int(allowed))
    np.testing.assert_allclose(session.run(layer.moving_variance), want, rtol=1e-5)


@pytest.mark.parametrize("method", sorted(_overrides.REFUSED))
def test_an_override_that_nothing_would_call_is_refused_when_the_class_is_made(method):
    with pytest.raises(TypeError) as caught:
        type("Mine", (Base,), {method: lambda self: None})
    assert str(caught.value) == (
        f"Mine: {method} must not be overridden; got an override, which nothing here calls. "
        f"{_overrides.REFUSED[method]}"
    )


def test_every_method_of_the_original_is_honored_or_refused():
    original = tf1_originals.layers().BatchNormalization
    kinds = [kind for kind in original.__mro__ if kind.__name__ in ("BatchNormalizationBase",
             "BatchNormalization") or "legacy_tf_layers" in kind.__module__]  # fmt: skip
    assert len(kinds) == 4
    methods = {name for kind in kinds for name, one in vars(kind).items() if callable(one)}
    unknown = {name for name in methods if not hasattr(Base, name)} - set(_overrides.REFUSED)
    assert unknown == {"__deepcopy__"}
