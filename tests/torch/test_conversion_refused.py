"""What conversion refuses, in words, and leaves as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import batchnorm.torch as ours


def test_a_wrong_option_changes_nothing() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="on_nonfinite") as caught:
        ours.convert(model, on_nonfinite="ignore")
    assert str(caught.value) == (
        "convert: on_nonfinite must be one of 'skip', 'propagate', 'raise'; got 'ignore'."
    )
    with pytest.raises(TypeError) as refused:
        ours.convert(model, epsilon=1e-3)
    assert str(refused.value).startswith("convert: options must be among eps, momentum, renorm, ")
    assert str(refused.value).endswith("; got epsilon.")
    assert type(model[0]) is torch.nn.BatchNorm2d


@pytest.mark.parametrize("function", [ours.convert, ours.revert])
def test_only_modules_are_converted(function: Any) -> None:
    name = function.__name__
    with pytest.raises(TypeError) as caught:
        function([torch.nn.BatchNorm2d(3)])
    assert str(caught.value) == f"{name}: model must be a PyTorch module; got list."


def test_a_model_without_batch_normalization_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold") as caught:
        ours.convert(torch.nn.Linear(2, 3))
    assert str(caught.value) == (
        "convert: model must hold batch normalization; got Linear without any."
    )
