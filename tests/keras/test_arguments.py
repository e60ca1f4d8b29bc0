"""Constructor, build and call arguments: defaults, and every error message as a whole."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import keras
import numpy as np
import pytest

from batchnorm import keras as ours
from batchnorm.keras import base, keywords

pytestmark = pytest.mark.keras


def raises(error, message):
    """`pytest.raises` for a whole message (Keras may wrap what comes out of a call)."""
    return pytest.raises(error, match=f"(?s)^{re.escape(message)}$")


def defaults(layer):
    parameters = inspect.signature(layer.__init__).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def test_type_checkers_know_every_keyword_of_each_layer():
    def known(layer, rest):
        named = set(inspect.signature(layer.__init__).parameters) - {"self", "args", "kwargs"}
        return named | set(rest.__annotations__)

    every = known(ours.BatchNormalizationBase, keywords.LayerKeywords)
    assert known(ours.BatchNormalization, keywords.Keywords) == every
    assert known(ours.SyncBatchNormalization, keywords.SyncKeywords) == every - {"synchronized"}


def test_new_arguments_are_keyword_only():
    parameters = inspect.signature(ours.BatchNormalizationBase.__init__).parameters.values()
    assert [one.name for one in parameters if one.kind == one.KEYWORD_ONLY] == [
        "synchronized",
        "unbiased_moving_variance",
        "pooled_moving_variance",
        "statistics",
        "update_statistics",
        "on_nonfinite",
        "zero_debias",
        "train_parameters",
        "activation",
        "ghost_order",
    ]


def test_every_default_of_keras_is_kept():
    theirs = defaults(keras.layers.BatchNormalization)
    mine = defaults(ours.BatchNormalizationBase)
    assert {name: mine[name] for name in theirs} == theirs


def test_the_public_layer_has_the_defaults_of_the_base():
    base = defaults(ours.BatchNormalizationBase)
    public = defaults(ours.BatchNormalization)
    assert {name: base[name] for name in public} == public


def test_the_call_arguments_are_training_mask_weights_and_a_residual():
    parameters = inspect.signature(ours.BatchNormalizationBase.call).parameters
    assert list(parameters) == ["self", "inputs", "training", "mask", "batch_weights", "residual"]


def test_our_layers_are_keras_batch_normalization():
    for layer in (
        ours.BatchNormalizationBase,
        ours.BatchNormalization,
        ours.SyncBatchNormalization,
    ):
        assert isinstance(layer(), keras.layers.BatchNormalization)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"axis": "last"}, TypeError,
         "axis must be an integer or a list of integers; got 'last'."),
        ({"axis": 1.0}, TypeError, "axis must be an integer or a list of integers; got 1.0."),
        ({"axis": True}, TypeError, "axis must be an integer or a list of integers; got True."),
        ({"axis": [1, "a"]}, TypeError,
         "axis must be an integer or a list of integers; got [1, 'a']."),
        ({"axis": []}, ValueError, "axis must name at least one dimension; got []."),
        ({"momentum": 1.5}, ValueError,
         "momentum must be in [0, 1]: the share of the old value that a step keeps; got 1.5."),
        ({"momentum": -0.1}, ValueError,
         "momentum must be in [0, 1]: the share of the old value that a step keeps; got -0.1."),
        ({"momentum": "x"}, TypeError, "momentum must be a number in [0, 1] or None; got 'x'."),
        ({"renorm_momentum": 2}, ValueError,
         "renorm_momentum must be in [0, 1]: the share of the old value that a step keeps; got 2."),
        ({"renorm_momentum": "x"}, TypeError,
         "renorm_momentum must be a number in [0, 1] or None; got 'x'."),
        ({"epsilon": -1e-3}, ValueError, "epsilon must be a number >= 0; got -0.001."),
        ({"epsilon": float("nan")}, ValueError, "epsilon must be a number >= 0; got nan."),
        ({"epsilon": None}, TypeError, "epsilon must be a number >= 0; got None."),
        ({"renorm": 1}, ValueError, "renorm must be one of True, False; got 1."),
        ({"renorm_clipping": 3}, TypeError,
         "renorm_clipping must be a dictionary with the keys rmax, rmin, dmax; got 3."),
        ({"renorm_clipping": {"max": 3.0}}, ValueError,
         "renorm_clipping must have no other keys than rmax, rmin, dmax; got ['max']."),
        ({"renorm_clipping": {"rmin": 2.0, "rmax": 1.0}}, ValueError,
         "renorm_clipping must have rmin <= rmax; got rmin=2.0, rmax=1.0."),
        ({"renorm_clipping": {"dmax": -1.0}}, ValueError,
         "renorm_clipping must have dmax >= 0; got dmax=-1.0."),
        ({"renorm_clipping": {"dmax": float("nan")}}, ValueError,
         "renorm_clipping must hold no NaN; got {'dmax': nan}."),
        ({"fused": 1}, ValueError, "fused must be one of None, True, False; got 1."),
        ({"virtual_batch_size": 0}, ValueError,
         "virtual_batch_size must be a positive integer or None; got 0."),
        ({"virtual_batch_size": 2.5}, TypeError,
         "virtual_batch_size must be a positive integer or None; got 2.5."),
        ({"virtual_batch_size": True}, TypeError,
         "virtual_batch_size must be a positive integer or None; got True."),
        ({"adjustment": 3}, TypeError,
         "adjustment must be a function of the input's shape that returns (scale, bias); got 3."),
        ({"unbiased_moving_variance": "yes"}, ValueError,
         "unbiased_moving_variance must be one of True, False; got 'yes'."),
        ({"pooled_moving_variance": None}, ValueError,
         "pooled_moving_variance must be one of True, False; got None."),
        ({"statistics": "running"}, ValueError,
         "statistics must be one of 'auto', 'batch', 'moving'; got 'running'."),
        ({"update_statistics": "never"}, ValueError,
         "update_statistics must be one of 'auto', True, False; got 'never'."),
        ({"on_nonfinite": "ignore"}, ValueError,
         "on_nonfinite must be one of 'skip', 'propagate', 'raise'; got 'ignore'."),
        ({"zero_debias": "variance"}, ValueError,
         "zero_debias must be one of False, True, 'mean', 'both'; got 'variance'."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)  # fmt: skip
def test_a_wrong_option_is_refused_by_the_constructor(options, error, message):
    with raises(error, f"BatchNormalization 'bn': {message}"):
        ours.BatchNormalization(name="bn", **options)


def test_an_unknown_keyword_is_refused():
    message = "BatchNormalization: the keyword arguments must be known ones; got ['momentun']."
    with raises(TypeError, message):
        ours.BatchNormalization(momentun=0.9)


def test_the_synchronized_layer_refuses_synchronized():
    message = (
        "SyncBatchNormalization: synchronized must not be given, it is True; use "
        "BatchNormalization to choose."
    )
    with raises(TypeError, message):
        ours.SyncBatchNormalization(synchronized=False)


@pytest.mark.parametrize(
    ("argument", "kind"),
    [("gamma_initializer", "initializer"), ("activation", "activation function")],
)
def test_a_name_that_keras_does_not_know_is_refused(argument, kind):
    with pytest.raises(ValueError, match=f"Could not interpret {kind} identifier"):
        ours.BatchNormalization(**{argument: "nonsense"})


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"axis": 2}, (None, 3), "axis must be in [-2, 1]; got 2 for an input of rank 2."),
        ({"axis": -3}, (None, 3), "axis must be in [-2, 1]; got -3 for an input of rank 2."),
        ({"axis": [1, -1]}, (None, 3),
         "axis must name each dimension once; got [1, -1] for an input of rank 2."),
        ({}, (4, None), "the input must have a known size on axis 1; got the shape (4, None)."),
        ({}, (), "the input must have at least one dimension; got a scalar."),
        ({"axis": [0, 1], "virtual_batch_size": 2}, (4, 3),
         "axis must not contain the batch dimension 0 with virtual_batch_size=2; got (0, 1). A "
         "ghost batch is a part of the batch."),
    ],
    ids=["above", "below", "twice", "unknown", "scalar", "ghost"],
)  # fmt: skip
def test_a_shape_that_does_not_fit_is_refused_by_build(options, shape, message):
    layer = ours.BatchNormalization(name="bn", **options)
    with raises(ValueError, f"BatchNormalization 'bn': {message}"):
        layer.build(shape)


def call_error(error, function):
    """The first line of what a call raised; Keras adds the arguments below it."""
    with pytest.raises(error) as caught:
        function()
    text = str(caught.value)
    if text.startswith("Exception encountered when calling"):
        text = text.split("\n\n")[1].removeprefix("\x1b[1m").removesuffix("\x1b[0m")
    return text


@pytest.mark.parametrize(
    ("options", "call", "error", "message"),
    [
        ({}, {"training": 2}, ValueError,
         "training must be a bool, 0, 1 or a boolean scalar tensor; got 2."),
        ({}, {"training": "no"}, TypeError,
         "training must be a bool, 0, 1 or a boolean scalar tensor; got 'no'."),
        ({}, {"training": 1.0}, TypeError,
         "training must be a bool, 0, 1 or a boolean scalar tensor; got 1.0."),
        ({"virtual_batch_size": 4}, {"training": True}, ValueError,
         "virtual_batch_size must divide the batch in training; got 4 for a batch of 6. Drop or "
         "pad the last batch."),
        ({}, {"training": True, "mask": np.ones((6, 3), bool)}, ValueError,
         "mask must broadcast, from the left, to the shape (6, 2); got (6, 3) for an input of "
         "shape (6, 2, 5) and axis [2]."),
        ({}, {"training": True, "batch_weights": np.ones(5, "float32")}, ValueError,
         "batch_weights must broadcast, from the left, to the shape (6, 2); got (5,) for an input "
         "of shape (6, 2, 5) and axis [2]."),
        ({"adjustment": lambda shape: (np.ones(3, "float32"), np.zeros(5, "float32"))},
         {"training": True}, ValueError,
         "adjustment must return values that broadcast to the input's shape (6, 2, 5); got one of "
         "shape (3,)."),
        ({"adjustment": lambda shape: 7}, {"training": True}, ValueError,
         "adjustment must return (scale, bias); got 7."),
    ],
    ids=["integer", "string", "float", "ghost", "mask", "weights", "adjustment", "pair"],
)  # fmt: skip
def test_a_wrong_call_argument_is_refused(options, call, error, message):
    layer = ours.BatchNormalization(name="bn", **options)
    x = np.ones((6, 2, 5), "float32")
    got = call_error(error, lambda: layer(x, **call))
    assert got == f"BatchNormalization 'bn': {message}"


def test_an_attribute_that_was_set_wrong_is_refused_by_the_next_call():
    layer = ours.BatchNormalization(name="bn")
    layer.momentum = 7
    got = call_error(ValueError, lambda: layer(np.ones((6, 5), "float32")))
    assert got == (
        "BatchNormalization 'bn': momentum must be in [0, 1]: the share of the old value that a "
        "step keeps; got 7."
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((6, 4), "expected axis 1 of input shape to have value 5"),
        ((6, 2, 5), "expected ndim=2, found ndim=3"),
    ],
    ids=["channels", "rank"],
)
def test_an_input_of_another_shape_is_refused_by_a_built_layer(shape, message):
    layer = ours.BatchNormalization(name="bn")
    layer.build((None, 5))
    with pytest.raises(ValueError, match=message):
        layer(np.ones(shape, "float32"))


def test_insisting_on_a_kernel_that_is_not_here_says_why(monkeypatch):
    monkeypatch.setattr(base, "why_not", lambda framework: f"There is none for {framework}.")
    reason = f"There is none for {keras.backend.backend()}."
    message = f"BatchNormalization 'bn': fused must be None or False here; got True. {reason}"
    with raises(ValueError, message):
        ours.BatchNormalization(name="bn", fused=True)


@pytest.mark.parametrize("axis", [np.int64(-1), [np.int32(1)], (1,)])
def test_axis_may_be_any_integer_type_or_sequence(axis):
    layer = ours.BatchNormalization(axis=axis)
    layer.build((None, 5))
    assert tuple(layer.gamma.shape) == (5,)


def test_statistics_are_none_before_build_as_in_keras():
    layer = ours.BatchNormalization()
    assert (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance) == (None,) * 4


def test_the_folder_of_these_tests_does_not_hide_keras():
    assert Path(__file__).parent not in Path(keras.__file__).parents


def test_center_and_scale_turn_beta_and_gamma_off():
    layer = ours.BatchNormalization(center=False, scale=False)
    layer.build((None, 5))
    assert [one.name for one in layer.weights] == ["moving_mean", "moving_variance"]
