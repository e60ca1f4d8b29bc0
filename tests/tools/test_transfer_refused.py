"""What cannot go from one layer to another is an error in words, before anything is changed."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import batchnorm
import batchnorm.flax
import batchnorm.torch
from transfers_of import Linen, Nnx, X, linen_model, numbers_of, torch_model

OURS = batchnorm.torch.BatchNorm1d
KIND = "Its kind has no such option: use one of batchnorm's, or set the source's back."


def plain(size: int = 5, **options: Any) -> torch.nn.Module:
    return torch.nn.BatchNorm1d(size, **options)


def flax(kind: Any = nnx.BatchNorm, **options: Any) -> nnx.Module:
    return kind(5, rngs=nnx.Rngs(0), **options)


def several(size: int, axis: Any) -> nnx.Module:
    return nnx.BatchNorm(size, axis=axis, rngs=nnx.Rngs(0))


def square(step: Any) -> Any:
    return 1 + step**2


REFUSED = {
    "channels": (
        lambda: (plain(5), plain(6)),
        "BatchNorm1d 'BatchNorm1d' must have 5 channels, as BatchNorm1d 'BatchNorm1d' has; got 6. "
        "Build it so.",
    ),
    "axes": (
        lambda: (several(5, (1, 2)), several(5, -1)),
        "BatchNorm 'BatchNorm' must have ? x 5 channels, as BatchNorm 'BatchNorm' has; got 5. "
        "Build it so.",
    ),
    "gamma": (
        lambda: (flax(use_scale=False), flax()),
        "BatchNorm 'BatchNorm' must have no gamma (scale), as BatchNorm 'BatchNorm' has; got one. "
        "Build it so.",
    ),
    "beta": (
        lambda: (flax(), flax(use_bias=False)),
        "BatchNorm 'BatchNorm' must have a beta (center), as BatchNorm 'BatchNorm' has; got none. "
        "Build it so.",
    ),
    "renorm": (
        lambda: (OURS(5, renorm=True), plain()),
        "BatchNorm1d 'BatchNorm1d' must have renorm=True, as BatchNorm1d 'BatchNorm1d' has; got "
        "False. Build it so.",
    ),
    "a plain layer into one with renorm": (
        lambda: (plain(), OURS(5, renorm=True)),
        "BatchNorm1d 'BatchNorm1d' must have renorm=False, as BatchNorm1d 'BatchNorm1d' has; got "
        "True. Build it so.",
    ),
    "renorm without a state": (
        lambda: (
            OURS(5, renorm=True, renorm_momentum=None),
            flax(batchnorm.flax.BatchNorm, renorm=True),
        ),
        "BatchNorm 'BatchNorm' must have renorm_momentum=None, as BatchNorm1d 'BatchNorm1d' has; "
        "got 0.99. Build it so.",
    ),
    "zero_debias": (
        lambda: (OURS(5, zero_debias="both"), OURS(5, zero_debias="mean")),
        "BatchNorm1d 'BatchNorm1d' must have zero_debias='both', as BatchNorm1d 'BatchNorm1d' has; "
        "got 'mean'. Build it so.",
    ),
    "ghost batches": (
        lambda: (OURS(5, virtual_batch_size=4), plain()),
        "BatchNorm1d 'BatchNorm1d' must have virtual_batch_size=4, as BatchNorm1d 'BatchNorm1d' "
        f"has; got None. {KIND}",
    ),
    "activation": (
        lambda: (OURS(5, activation="relu"), plain()),
        "BatchNorm1d 'BatchNorm1d' must have activation='relu', as BatchNorm1d 'BatchNorm1d' has; "
        f"got None. {KIND}",
    ),
    "momentum": (
        lambda: (plain(momentum=None), flax()),
        "BatchNorm 'BatchNorm' must have momentum=None, as BatchNorm1d 'BatchNorm1d' has; got "
        f"0.99. {KIND}",
    ),
    "frozen": (
        lambda: (OURS(5, statistics="moving", update_statistics=False), flax()),
        "BatchNorm 'BatchNorm' must have statistics='moving', as BatchNorm1d 'BatchNorm1d' has; "
        f"got 'auto'. {KIND}",
    ),
    "a function": (
        lambda: (
            OURS(5, renorm=True, renorm_clipping={"rmax": square}),
            flax(batchnorm.flax.BatchNorm, renorm=True, unbiased_moving_variance=True),
        ),
        f"BatchNorm 'BatchNorm' must have renorm_clipping={{'rmax': {square!r}}}, as BatchNorm1d "
        "'BatchNorm1d' has; got None. Functions and tensors do not go from PyTorch to flax.",
    ),
    "variance": (
        lambda: (flax(momentum=0.9), plain()),
        "values must be the number of values that a channel has in a batch, since BatchNorm "
        "'BatchNorm' remembers the variance divided by N, the values of a channel in a batch, and "
        "BatchNorm1d 'BatchNorm1d' by N - 1; got None. Pass values=, or data, which shows them; or "
        "values=math.inf to keep the numbers as they are.",
    ),
    "linen": (
        lambda: (torch_model(), linen_model(momentum=0.9, epsilon=1e-3)),
        "BatchNorm 'one' must have epsilon=1e-05, as BatchNorm1d '0' has; got 0.001. A linen "
        "module cannot be changed: write it in its constructor.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_target_cannot_have_is_named(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match="transfer") as caught:
        batchnorm.transfer(*make())
    assert str(caught.value) == f"transfer: {message}"


def test_nothing_is_changed_where_the_last_layer_is_refused():
    target = torch_model(momentum=0.5)
    target[3].eps = 1e-2
    before = numbers_of(target)
    source = torch_model(OURS)
    source[3].virtual_batch_size = 4
    with pytest.raises(ValueError, match="virtual_batch_size=4"):
        batchnorm.transfer(source, target)
    assert (target[0].momentum, target[3].eps) == (0.5, 1e-2)
    for name, value in numbers_of(target).items():
        np.testing.assert_array_equal(value, before[name])


def test_without_names_or_numbers_that_fit_a_mapping_is_asked_for():
    for mapping, message in (
        (
            None,
            "transfer: mapping must say which layer goes where, for their numbers differ; got "
            "None. The source has 2: '0', '3'; the target 1: 'BatchNorm1d'.",
        ),
        (
            {"1": "BatchNorm1d"},
            "transfer: mapping must name layers of the source; got '1'. It has '0', '3'.",
        ),
        (
            {"3": "bn"},
            "transfer: mapping must name layers of the target; got 'bn'. It has 'BatchNorm1d'.",
        ),
        (
            {"0": "BatchNorm1d", "3": "BatchNorm1d"},
            "transfer: mapping must give each layer of the target one of the source; got several "
            "for 'BatchNorm1d'.",
        ),
        (
            {},
            "transfer: mapping must give each layer of the target one of the source; got an empty "
            "one.",
        ),
    ):
        with pytest.raises(ValueError, match="mapping") as caught:
            batchnorm.transfer(torch_model(), plain(), mapping=mapping)
        assert str(caught.value) == message


def test_arguments_are_checked():
    for values in (1, 0.5, True, "many", math.nan):
        with pytest.raises(ValueError, match="values") as caught:
            batchnorm.transfer(plain(), plain(), values=values)
        assert str(caught.value) == (
            f"transfer: values must be a number above 1 or None; got {values!r}."
        )
    with pytest.raises(TypeError, match="path") as caught:
        batchnorm.transfer(plain(), "model.ckpt")
    assert str(caught.value) == (
        "transfer: target must be a model; got a path. A checkpoint is only read: load the model "
        "first."
    )
    with pytest.raises(ValueError, match="at least one row"):
        batchnorm.transfer(plain(), plain(), np.zeros((0, 5), np.float32))


def test_linen_comes_with_variables_and_a_call():
    module, variables, x = linen_model()
    with pytest.raises(TypeError, match="variables") as raised:
        batchnorm.transfer(module, Nnx())
    assert str(raised.value) == (
        "transfer: source must be (module, variables) for a linen module, which holds nothing by "
        "itself; got Linen."
    )
    with pytest.raises(ValueError, match="what it is called with") as caught:
        batchnorm.transfer((module, variables), Nnx())
    assert str(caught.value) == (
        "transfer: a linen module that holds others must come with what it is called with, "
        "(module, variables, x, ...); got Linen without: only a call tells its layers."
    )
    with pytest.raises(ValueError, match="further arguments"):
        batchnorm.transfer((module, variables, x), Nnx(), X, call=lambda model, batch: model(batch))
    dense = Linen(functools.partial(_Nothing))
    with pytest.raises(ValueError, match="must hold batch normalization"):
        batchnorm.transfer((dense, dense.init(jax.random.key(0), X), X), Nnx())


class _Nothing:
    """In the place of a normalization."""

    def __init__(self, **options: Any) -> None:
        pass

    def __call__(self, x: Any) -> Any:
        return x
