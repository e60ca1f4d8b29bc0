"""What cannot be is refused with a message that names it, whole (semantics.md, section 20)."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf

from batchnorm import tf1

v1 = tf.compat.v1
layers, contrib = tf1.layers.batch_normalization, tf1.contrib.layers.batch_norm
X = np.ones((6, 3, 2, 4), "float32")


def placeholder(*shape, dtype=tf.float32):
    return v1.placeholder(dtype, shape)


def refused(error, message, function, *args, **kwargs):
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    assert type(caught.value) is error
    assert str(caught.value) == message


LAYER = "BatchNormalization 'batch_normalization'"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"axis": "1"}, TypeError,
         "axis must be an integer or a list of integers; got '1'."),
        ({"axis": 4}, ValueError,
         "axis must be in [-4, 3]; got 4 for an input of rank 4."),
        ({"axis": [1, -3]}, ValueError,
         "axis must name each dimension once; got [1, -3] for an input of rank 4."),
        ({"axis": []}, ValueError,
         "axis must name at least one dimension; got []."),
        ({"momentum": None}, TypeError,
         "momentum must be a number in [0, 1]; got None."),
        ({"momentum": 2.0}, ValueError,
         "momentum must be in [0, 1]: the share of the old value that a step keeps; got 2.0."),
        ({"epsilon": -1.0}, ValueError,
         "epsilon must be a number >= 0; got -1.0."),
        ({"renorm": True, "renorm_clipping": {"max": 1.0}}, ValueError,
         "renorm_clipping must have no other keys than rmax, rmin, dmax; got ['max']."),
        ({"renorm": True, "renorm_clipping": {"rmin": 2.0, "rmax": 1.0}}, ValueError,
         "renorm_clipping must have rmin <= rmax; got rmin=2.0, rmax=1.0."),
        ({"renorm": True, "renorm_clipping": {"dmax": abs}}, TypeError,
         "renorm_clipping must hold numbers or tensors; got a function for dmax. Make a tensor of "
         "it, from the global step or a placeholder."),
        ({"virtual_batch_size": 0}, ValueError,
         "virtual_batch_size must be a positive integer or None; got 0."),
        ({"virtual_batch_size": 2, "axis": 0}, ValueError,
         "axis must not contain the batch dimension 0 with virtual_batch_size=2; got 0. A ghost "
         "batch is a part of the batch."),
        ({"virtual_batch_size": 4, "training": True}, ValueError,
         "virtual_batch_size must divide the batch in training; got 4 for a batch of 6. Drop or "
         "pad the last batch."),
        ({"adjustment": 1}, TypeError,
         "adjustment must be a function of the input's shape that returns (scale, bias); got 1."),
        ({"training": "yes"}, TypeError,
         "training must be a bool, 0, 1 or a boolean scalar tensor; got 'yes'."),
        ({"training": 2}, ValueError,
         "training must be a bool, 0, 1 or a boolean scalar tensor; got 2."),
        ({"fused": "yes"}, ValueError,
         "fused must be one of None, True, False; got 'yes'."),
    ],
    ids=str,
)  # fmt: skip
def test_an_argument_of_layers_that_cannot_be_is_named(graph, options, error, message):
    refused(error, f"{LAYER}: {message}", layers, placeholder(*X.shape), **options)


@pytest.mark.parametrize("kind", ["initializer", "regularizer", "constraint"])
def test_an_unknown_keras_name_is_refused(graph, kind):
    message = (
        f"BatchNormalization: {kind}s must be functions or names that Keras knows; got 'nothing'."
    )
    options = {f"gamma_{kind}": "nothing"}
    refused(ValueError, message, tf1.layers.BatchNormalization, **options)


def test_an_unknown_keyword_is_refused(graph):
    message = "BatchNormalization: the keyword arguments must be known ones; got ['units']."
    refused(TypeError, message, tf1.layers.BatchNormalization, units=3)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (None, "inputs must have a known rank; got an undefined rank. Set its static shape."),
        ((), "the input must have at least one dimension; got a scalar."),
        ((6, 3, None), "inputs must have a known size on axis 2; got the shape (6, 3, None), "
         "undefined there. Set its static shape."),
    ],
    ids=str,
)  # fmt: skip
def test_an_input_of_unusable_shape_is_refused(graph, shape, message):
    x = v1.placeholder(tf.float32, shape)
    refused(ValueError, f"{LAYER}: {message}", layers, x)
    refused(ValueError, f"batch_norm 'BatchNorm': {message}", contrib, x)


@pytest.mark.parametrize("function", [layers, contrib])
def test_an_integer_input_is_refused(graph, function):
    owner = LAYER if function is layers else "batch_norm 'BatchNorm'"
    message = f"{owner}: x must be float16, bfloat16, float32 or float64; got int32. Cast it first."
    refused(TypeError, message, function, placeholder(6, 4, dtype=tf.int32))


def test_a_layer_keeps_to_the_channels_and_the_rank_of_its_first_call(graph):
    layer = tf1.layers.BatchNormalization(name="bn")
    layer(placeholder(6, 4))
    for shape in ((6, 5), (6, 3, 4)):
        message = (
            "BatchNormalization 'bn': inputs must have the shape (None, 4), as in the first call; "
            f"got {shape}. Make another layer."
        )
        refused(ValueError, message, layer, placeholder(*shape))


def test_the_scope_of_a_layer_is_unknown_before_its_first_call(graph):
    layer = tf1.layers.BatchNormalization(name="bn")
    message = (
        "BatchNormalization 'bn': scope_name must be read after the first call; got none before it."
    )
    refused(ValueError, message, lambda: layer.scope_name)


def test_reuse_without_a_name_is_refused(graph):
    """D45: the original always took the layer called `batch_normalization`."""
    layers(placeholder(6, 4))
    message = (
        "batch_normalization: name must be given with reuse=True; got None. Name the layer whose "
        "variables are meant."
    )
    refused(ValueError, message, layers, placeholder(6, 4), reuse=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data_format": "NDHWC"}, ValueError,
         "batch_norm: data_format has to be either NCHW or NHWC; got 'NDHWC'."),
        ({"reuse": True}, ValueError,
         "batch_norm: scope must be given with reuse=True; got None. Name the scope whose "
         "variables are meant."),
        ({"decay": 2.0}, ValueError,
         "batch_norm 'BatchNorm': decay must be in [0, 1]: the share of the old value that a step "
         "keeps; got 2.0."),
        ({"decay": None}, TypeError,
         "batch_norm 'BatchNorm': decay must be a number in [0, 1]; got None."),
        ({"renorm": True, "renorm_decay": "1"}, TypeError,
         "batch_norm 'BatchNorm': renorm_decay must be a number in [0, 1] or None; got '1'."),
        ({"is_training": None}, ValueError,
         "batch_norm: is_training must be a bool, 0, 1 or a boolean scalar tensor; got None."),
        ({"is_training": None, "updates_collections": None}, ValueError,
         "batch_norm: is_training must be a bool, 0, 1 or a boolean scalar tensor; got None."),
        ({"is_training": "no", "updates_collections": None}, TypeError,
         "batch_norm 'BatchNorm': is_training must be a bool, 0, 1 or a boolean scalar tensor; "
         "got 'no'."),
        ({"param_initializers": 3}, TypeError,
         "batch_norm: param_initializers must be a dictionary by the names of the variables or "
         "None; got 3."),
        ({"updates_collections": 3}, TypeError,
         "batch_norm: updates_collections must be None, the name of a collection or a list of "
         "names; got 3."),
        ({"variables_collections": {"beta": [1]}}, TypeError,
         "batch_norm: variables_collections must be None, the name of a collection or a list of "
         "names; got [1]."),
        ({"activation_fn": "relu"}, TypeError,
         "batch_norm: activation_fn must be a function or None; got 'relu'."),
        ({"batch_weights": [1.0, 2.0]}, ValueError,
         "batch_norm 'BatchNorm': batch_weights must have the shape [batch]; got the shape (2,) "
         "for inputs of shape (6, 3, 2, 4). Give one weight per sample."),
        ({"batch_weights": np.ones((6, 1), "float32")}, ValueError,
         "batch_norm 'BatchNorm': batch_weights must have the shape [batch]; got the shape (6, 1) "
         "for inputs of shape (6, 3, 2, 4). Give one weight per sample."),
        ({"scope": "missing", "reuse": True}, ValueError,
         "Variable missing/beta does not exist, or was not created with tf.get_variable(). Did you "
         "mean to set reuse=tf.AUTO_REUSE in VarScope?"),
    ],
    ids=str,
)  # fmt: skip
def test_an_argument_of_contrib_that_cannot_be_is_named(graph, options, error, message):
    refused(error, message, contrib, placeholder(*X.shape), **options)


@pytest.mark.parametrize("special", [{}, {"updates_collections": None, "fused": False}], ids=str)
def test_channels_first_needs_two_dimensions(graph, special):
    """D37: the original raised IndexError on one of its paths."""
    message = "batch_norm 'BatchNorm': axis must be in [-1, 0]; got 1 for an input of rank 1."
    refused(ValueError, message, contrib, placeholder(4), data_format="NCHW", **special)


@pytest.mark.parametrize(("function", "name"), [(layers, "name"), (contrib, "scope")])
def test_a_scope_is_not_taken_twice_without_reuse(graph, function, name):
    x = placeholder(*X.shape)
    function(x, **{name: "bn"})
    first = "gamma" if function is layers else "beta"
    start = (
        f"Variable bn/{first} already exists, disallowed. Did you mean to set reuse=True or "
        "reuse=tf.AUTO_REUSE in VarScope?"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(start)}"):
        function(x, **{name: "bn"})


def test_weights_of_another_length_are_refused_at_run_time(graph):
    """D47: in the original one weight stood for every sample."""
    x, weights = placeholder(None, 4), placeholder(None)
    y = contrib(x, batch_weights=weights)
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run(y, {x: np.ones((3, 4)), weights: [1, 1, 1]})
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            session.run(y, {x: np.ones((3, 4)), weights: [1]})
    message = (
        "batch_norm 'BatchNorm': batch_weights must have the shape [batch]; got the shape (None,) "
        "for inputs of shape (None, 4). Give one weight per sample."
    )
    assert message in str(caught.value).replace("\\'", "'")


def test_ghost_batches_that_do_not_divide_are_refused_at_run_time(graph):
    x = placeholder(None, 4)
    y = layers(x, virtual_batch_size=4, training=True)
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run(y, {x: np.ones((8, 4))})
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            session.run(y, {x: np.ones((6, 4))})
    message = (
        f"{LAYER}: virtual_batch_size must divide the batch in training; got 4 for a batch of "
        "another size. Drop or pad the last batch."
    )
    assert message in str(caught.value).replace("\\'", "'")


@pytest.mark.parametrize("wrapped", [False, True], ids=["eager", "tf.function"])
@pytest.mark.parametrize("function", [layers, contrib])
def test_eager_execution_without_a_variable_store_is_refused(function, wrapped):
    """D39: the originals made new variables in each call."""
    owner = LAYER if function is layers else "batch_norm"
    message = (
        f"{owner}: the call must be in a TensorFlow 1 graph or in a variable store; got eager "
        "execution, where each call would make new variables. Build the model under "
        "tf.Graph().as_default(), decorate the method with track_tf1_style_variables, or use "
        "batchnorm.keras.BatchNormalization."
    )
    call = tf.function(function, autograph=False) if wrapped else function
    refused(ValueError, message, call, tf.constant(X))
