"""Models leave Keras as inference: SavedModel from TensorFlow and JAX, torch.export from torch."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest

from batchnorm import keras as ours

pytestmark = pytest.mark.keras
array = keras.ops.convert_to_numpy

RNG = np.random.default_rng(15)
X = RNG.normal(2.0, 3.0, (6, 4, 3)).astype("float32")


@pytest.fixture
def model():
    model = keras.Sequential(
        [
            keras.layers.Input((4, 3)),
            ours.BatchNormalization(renorm=True, name="renorm"),
            ours.BatchNormalization(virtual_batch_size=2, axis=[1, 2], name="ghost"),
        ]
    )
    model.compile("sgd", "mse")
    model.fit(X, X, verbose=0)
    return model


def exported(model, path):
    """The exported model as a function of arrays."""
    if keras.backend.backend() == "torch":
        import torch

        program = torch.export.export(model.eval(), (torch.as_tensor(X),)).module()
        return lambda x: array(program(torch.as_tensor(x)))
    with warnings.catch_warnings():
        # Keras 3.15 calls jax2tf with an argument that JAX 0.10 deprecates
        warnings.filterwarnings(
            "ignore", "The `native_serialization` parameter", DeprecationWarning
        )
        return _saved_model(model, path)


def _saved_model(model, path):
    import tensorflow as tf

    model.export(path, verbose=False)
    loaded = tf.saved_model.load(path)
    return lambda x: loaded.serve(x).numpy()


def test_an_exported_model_normalizes_with_the_moving_statistics(model, tmp_path):
    got = exported(model, str(tmp_path / "exported"))(X)
    np.testing.assert_allclose(got, array(model(X, training=False)), rtol=1e-5, atol=1e-5)


def test_an_exported_model_changes_no_statistics(model, tmp_path):
    before = [np.array(array(one)) for one in model.variables]
    exported(model, str(tmp_path / "exported"))(X)
    after = [array(one) for one in model.variables]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.function is TensorFlow's")
@pytest.mark.parametrize("options", [{}, {"renorm": True}, {"virtual_batch_size": 2}], ids=str)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_tf_function_with_unknown_sizes_trains(options, jit_compile):
    import tensorflow as tf

    layer = ours.BatchNormalization(momentum=0.0, **options)
    layer.build((None, None, 3))
    signature = [tf.TensorSpec((None, None, 3), tf.float32)]

    @tf.function(input_signature=signature, jit_compile=jit_compile)
    def call(x):
        return layer(x, training=True)

    other = ours.BatchNormalization(momentum=0.0, **options)
    for x in (X, X[:4, :2]):
        np.testing.assert_allclose(call(x), array(other(x, training=True)), atol=1e-5)
        np.testing.assert_allclose(
            array(layer.moving_variance), array(other.moving_variance), rtol=1e-4
        )


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.function is TensorFlow's")
def test_ghost_batches_that_do_not_divide_an_unknown_batch_are_refused():
    import tensorflow as tf

    layer = ours.BatchNormalization(virtual_batch_size=4, name="bn")
    layer.build((None, 3))
    call = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec((None, 3), tf.float32)]
    )
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        call(X[:, 0])
    assert (
        "BatchNormalization 'bn': virtual_batch_size must divide the batch in training; got 4 for "
        "a batch of another size. Drop or pad the last batch."
        in str(caught.value).replace("\\'", "'")
    )


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="jit of stateless_call is JAX's")
def test_a_jitted_stateless_call_equals_the_eager_one():
    import jax

    layer = ours.BatchNormalization(renorm=True, momentum=0.5)
    layer.build(X.shape)
    trainable = [one.value for one in layer.trainable_variables]
    held = [one.value for one in layer.non_trainable_variables]
    call = jax.jit(lambda t, n, x: layer.stateless_call(t, n, x, training=True))
    y, new = call(trainable, held, X)
    want = layer(X, training=True)
    np.testing.assert_allclose(y, array(want), atol=1e-5)
    for variable, value in zip(layer.non_trainable_variables, new, strict=True):
        np.testing.assert_allclose(value, array(variable), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch.compile is torch's")
@pytest.mark.filterwarnings(  # torch 2.13: importing its own compiler warns
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)
def test_a_compiled_torch_layer_equals_the_eager_one():
    import torch

    layer, other = (ours.BatchNormalization(momentum=0.5, name=name) for name in ("one", "other"))
    for one in (layer, other):
        one.build(X.shape)
    torch._dynamo.reset()
    y = torch.compile(layer)(torch.as_tensor(X), training=True)
    np.testing.assert_allclose(array(y), array(other(X, training=True)), atol=1e-5)
    np.testing.assert_allclose(array(layer.moving_mean), array(other.moving_mean), rtol=1e-5)
