"""What is checked before anything is computed: each message whole."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest

import batchnorm
from batchnorm._options import Options

NAN = float("nan")
CHOICES = {
    "renorm": "True, False",
    "unbiased_moving_variance": "True, False",
    "pooled_moving_variance": "True, False",
    "fused": "None, True, False",
    "statistics": "'auto', 'batch', 'moving'",
    "update_statistics": "'auto', True, False",
    "on_nonfinite": "'skip', 'propagate', 'raise'",
    "zero_debias": "False, True, 'mean', 'both'",
}
KEEPS = "the share of the old value that a step keeps"
REFUSED = [
    ({"axis": "3"}, TypeError, "axis must be an integer or a list of integers; got '3'."),
    ({"axis": 1.0}, TypeError, "axis must be an integer or a list of integers; got 1.0."),
    ({"axis": None}, TypeError, "axis must be an integer or a list of integers; got None."),
    ({"axis": True}, TypeError, "axis must be an integer or a list of integers; got True."),
    ({"axis": [1, "2"]}, TypeError, "axis must be an integer or a list of integers; got [1, '2']."),
    ({"axis": []}, ValueError, "axis must name at least one dimension; got []."),
    ({"momentum": 1.5}, ValueError, f"momentum must be in [0, 1]: {KEEPS}; got 1.5."),
    ({"momentum": -0.1}, ValueError, f"momentum must be in [0, 1]: {KEEPS}; got -0.1."),
    ({"momentum": NAN}, ValueError, f"momentum must be in [0, 1]: {KEEPS}; got nan."),
    ({"renorm_momentum": 2}, ValueError, f"renorm_momentum must be in [0, 1]: {KEEPS}; got 2."),
    ({"momentum": "0.9"}, TypeError, "momentum must be a number in [0, 1] or None; got '0.9'."),
    (
        {"renorm_momentum": True},
        TypeError,
        "renorm_momentum must be a number in [0, 1] or None; got True.",
    ),
    (
        {"momentum": None, "zero_debias": "both"},
        ValueError,
        "zero_debias must be False with momentum=None; got 'both'. A cumulative average holds no "
        "initial value.",
    ),
    (
        {"ghost_order": "rows"},
        ValueError,
        "ghost_order must be one of 'strided', 'chunks'; got 'rows'.",
    ),
    ({"epsilon": -1e-3}, ValueError, "epsilon must be a number >= 0; got -0.001."),
    ({"epsilon": NAN}, ValueError, "epsilon must be a number >= 0; got nan."),
    ({"epsilon": float("inf")}, ValueError, "epsilon must be a number >= 0; got inf."),
    ({"epsilon": "1"}, TypeError, "epsilon must be a number >= 0; got '1'."),
    ({"epsilon": True}, TypeError, "epsilon must be a number >= 0; got True."),
    (
        {"renorm_clipping": [1]},
        TypeError,
        "renorm_clipping must be a dictionary with the keys rmax, rmin, dmax; got [1].",
    ),
    (
        {"renorm_clipping": {"rmax": 1, "max": 2}},
        ValueError,
        "renorm_clipping must have no other keys than rmax, rmin, dmax; got ['max'].",
    ),
    (
        {"renorm_clipping": {"rmax": NAN}},
        ValueError,
        "renorm_clipping must hold no NaN; got {'rmax': nan}.",
    ),
    (
        {"renorm_clipping": {"rmin": 2, "rmax": 1}},
        ValueError,
        "renorm_clipping must have rmin <= rmax; got rmin=2, rmax=1.",
    ),
    (
        {"renorm_clipping": {"dmax": -1}},
        ValueError,
        "renorm_clipping must have dmax >= 0; got dmax=-1.",
    ),
    (
        {"virtual_batch_size": 0},
        ValueError,
        "virtual_batch_size must be a positive integer or None; got 0.",
    ),
    (
        {"virtual_batch_size": 2.5},
        TypeError,
        "virtual_batch_size must be a positive integer or None; got 2.5.",
    ),
    (
        {"virtual_batch_size": True},
        TypeError,
        "virtual_batch_size must be a positive integer or None; got True.",
    ),
    (
        {"adjustment": (1, 0)},
        TypeError,
        "adjustment must be a function of the input's shape that returns (scale, bias); "
        "got (1, 0).",
    ),
    *(
        ({name: "no"}, ValueError, f"{name} must be one of {choices}; got 'no'.")
        for name, choices in CHOICES.items()
    ),
    ({"renorm": 1}, ValueError, "renorm must be one of True, False; got 1."),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_a_wrong_option_is_refused_in_words(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        Options(owner="MyLayer 'a'", **options)
    assert str(caught.value) == f"MyLayer 'a': {message}"


def test_ghost_batches_cannot_keep_the_batch_axis() -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message follows
        Options(axis=[0, 2], virtual_batch_size=4).check_axes((0, 2))
    assert str(caught.value) == (
        "batch_norm: axis must not contain the batch dimension 0 with virtual_batch_size=4; "
        "got (0, 2). A ghost batch is a part of the batch."
    )


@pytest.mark.parametrize(
    "options",
    [
        {"axis": np.int64(1)},
        {"axis": (1, np.int32(2))},
        {"momentum": 0},
        {"momentum": 1},
        {"momentum": np.float32(0.5)},
        {"epsilon": 0},
        {"virtual_batch_size": np.int64(2)},
        {"renorm_clipping": {}},
        {"renorm_clipping": {"rmin": 1, "rmax": 1, "dmax": 0}},
        {"renorm_clipping": {"rmax": None}},
    ],
)
def test_the_borders_of_an_option_are_allowed(options: dict[str, Any]) -> None:
    Options(**options)


def test_true_means_that_the_mean_is_debiased() -> None:
    assert Options(zero_debias=True).zero_debias == "mean"


def test_the_function_and_the_options_have_the_same_defaults() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(Options)}
    parameters = inspect.signature(batchnorm.batch_norm).parameters.values()
    given = {"x", "parameters", "state", "training", "mask", "batch_weights", "residual"}
    for parameter in parameters:
        if parameter.name not in given:
            assert parameter.default == defaults[parameter.name], parameter.name
