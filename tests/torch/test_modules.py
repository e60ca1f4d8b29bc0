"""Our modules beside `torch.nn`'s: the same numbers, states, arguments and errors."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import batchnorm.torch as ours

SHAPES = {1: [(5, 3), (4, 3, 6)], 2: [(3, 4, 5, 2)], 3: [(2, 3, 4, 2, 5)]}
RANKS = [(rank, shape) for rank, shapes in SHAPES.items() for shape in shapes]
KINDS = [
    {},
    {"momentum": None},
    {"eps": 1e-3, "momentum": 0.3},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
]
each_rank = pytest.mark.parametrize(("rank", "shape"), RANKS, ids=str)


def pair(rank: int, channels: int, **options: Any) -> tuple[Any, Any]:
    """torch's module and ours, with the same random parameters."""
    torch.manual_seed(rank)
    theirs = getattr(torch.nn, f"BatchNorm{rank}d")(channels, **options)
    for parameter in theirs.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 2)
    mine = getattr(ours, f"BatchNorm{rank}d")(channels, **options)
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def step(module: Any, x: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    """y, dx, and the gradients of the parameters."""
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    return [y, *torch.autograd.grad(y, [leaf, *module.parameters()], dy)]


@pytest.mark.parametrize("options", KINDS, ids=str)
@each_rank
def test_five_steps_and_inference_equal_torchs(rank, shape, options) -> None:
    theirs, mine = pair(rank, shape[1], **options)
    for _ in range(5):
        x, dy = torch.randn(shape) * 2 + 3, torch.randn(shape)
        (y, *gradients), (wanted, *others) = step(mine, x, dy), step(theirs, x, dy)
        assert_close(y, wanted, rtol=2e-5, atol=2e-5)
        assert_close(gradients, others, rtol=2e-4, atol=2e-4)
        assert_close(mine.state_dict(), theirs.state_dict(), rtol=2e-5, atol=2e-5)
    x, dy = torch.randn(shape), torch.randn(shape)
    assert_close(step(mine.eval(), x, dy), step(theirs.eval(), x, dy), rtol=2e-4, atol=2e-4)
    theirs.load_state_dict(mine.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_types_equal_torchs(dtype) -> None:
    theirs, mine = (one.to(dtype) for one in pair(2, 3))
    x, dy = torch.randn(4, 3, 5, 6).to(dtype), torch.randn(4, 3, 5, 6).to(dtype)
    (y, *gradients), (wanted, *others) = step(mine, x, dy), step(theirs, x, dy)
    rounding = 16 * torch.finfo(dtype).eps  # torch rounds between its steps
    assert_close(y, wanted, rtol=rounding, atol=rounding)
    assert_close(gradients, others, rtol=rounding, atol=rounding)
    assert_close(mine.state_dict(), theirs.state_dict(), rtol=rounding, atol=rounding)


def test_16_bit_inputs_with_float32_parameters_have_float32_statistics() -> None:
    _, mine = pair(2, 3)
    assert mine(torch.randn(4, 3, 5, 6, dtype=torch.bfloat16)).dtype is torch.bfloat16
    assert mine.running_var.dtype is torch.float32


def samples() -> list[Any]:
    """torch's own samples of its modules, for training and for inference."""
    from torch.testing._internal.common_modules import module_db

    found = []
    for info in module_db:
        name = info.module_cls.__name__
        if name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"):
            for training in (True, False):
                inputs = info.module_inputs_func(info, "cpu", torch.float64, True, training)
                found += [(info.module_cls, getattr(ours, name), one, training) for one in inputs]
    return found


def test_the_samples_of_torchs_own_module_tests_pass() -> None:
    found = samples()
    assert len(found) > 40
    for theirs, mine, sample, training in found:
        arguments = sample.constructor_input
        modules = [
            kind(*arguments.args, **arguments.kwargs).double().train(training)
            for kind in (theirs, mine)
        ]
        results = []
        for module in modules:
            x = sample.forward_input.args[0].detach().clone().requires_grad_()
            y = module(x)
            (y**3).sum().backward()
            gradients = [one.grad for one in module.parameters()]
            results.append((y, x.grad, gradients, dict(module.state_dict())))
        assert_close(results[1], results[0])


@pytest.mark.parametrize("rank", SHAPES)
def test_arguments_of_torch_come_first_and_modes_by_keyword(rank) -> None:
    name = f"BatchNorm{rank}d"
    theirs = inspect.signature(getattr(torch.nn, name)).parameters
    mine = inspect.signature(getattr(ours, name)).parameters
    assert list(mine.values())[: len(theirs)] == list(theirs.values())
    rest = itertools.islice(mine.values(), len(theirs), None)
    assert {one.kind for one in rest} == {inspect.Parameter.KEYWORD_ONLY}
    module = getattr(ours, name)(3, 1e-3, 0.2, False, True, "cpu", torch.float64)
    assert (module.eps, module.momentum, module.weight) == (1e-3, 0.2, None)
    assert module.running_mean.dtype is torch.float64


@pytest.mark.parametrize("rank", SHAPES)
def test_modules_are_instances_of_torchs(rank) -> None:
    for lazy in ("", "Lazy"):
        name = f"{lazy}BatchNorm{rank}d"
        assert issubclass(getattr(ours, name), getattr(torch.nn, name))


@pytest.mark.parametrize("rank", SHAPES)
def test_a_wrong_rank_is_refused_in_torchs_words(rank) -> None:
    theirs, mine = pair(rank, 3)
    x = torch.ones(6, 3, 1, 1) if rank != 2 else torch.ones(6, 3)
    with pytest.raises(ValueError, match="expected") as wanted:
        theirs(x)
    with pytest.raises(ValueError, match="expected") as caught:
        mine(x)
    assert str(caught.value) == str(wanted.value)


@each_rank
def test_one_value_per_channel_is_refused_in_torchs_words_in_training_only(rank, shape) -> None:
    theirs, mine = pair(rank, 3)
    x = torch.ones(1, 3, *[1] * (len(shape) - 2))
    with pytest.raises(ValueError, match="Expected") as wanted:
        theirs(x)
    with pytest.raises(ValueError, match="Expected") as caught:
        mine(x)
    assert str(caught.value) == str(wanted.value)
    assert int(mine.num_batches_tracked) == 0
    assert_close(mine.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("rank", SHAPES)
def test_a_lazy_module_takes_its_channels_from_the_first_input(rank) -> None:
    shape = SHAPES[rank][0]
    lazy = getattr(ours, f"LazyBatchNorm{rank}d")(
        momentum=0.2, renorm=True, zero_debias="both", dtype=torch.float64
    )
    eager = getattr(ours, f"BatchNorm{rank}d")(
        shape[1], momentum=0.2, renorm=True, zero_debias="both", dtype=torch.float64
    )
    x = torch.randn(shape, dtype=torch.float64)
    assert_close(lazy(x, mask=torch.ones(shape[0], dtype=bool)), eager(x))
    assert type(lazy) is type(eager)
    assert_close(lazy.state_dict(), eager.state_dict())
    assert int(lazy.skipped_updates.sum()) == 0


def test_a_lazy_module_loads_a_state_before_its_first_input() -> None:
    _, mine = pair(2, 3)
    mine(torch.randn(4, 3, 5, 6))
    lazy = ours.LazyBatchNorm2d()
    lazy.load_state_dict(mine.state_dict())
    x = torch.randn(4, 3, 5, 6)
    assert_close(lazy.eval()(x), mine.eval()(x))


def test_the_representation_shows_what_is_not_the_default() -> None:
    plain, changed = ours.BatchNorm2d(3), ours.BatchNorm2d(3, renorm=True, activation="relu")
    assert repr(plain) == repr(torch.nn.BatchNorm2d(3))
    assert repr(changed) == f"{repr(plain)[:-1]}, renorm=True, activation='relu')"


def test_synchronized_batch_norm_is_torchs_with_any_rank_and_on_the_cpu() -> None:
    mine, theirs = ours.SyncBatchNorm(3), torch.nn.BatchNorm1d(3)
    assert mine.synchronized is True
    x = torch.randn(5, 3)
    assert_close(mine(x), theirs(x))
    assert_close(mine.state_dict(), theirs.state_dict())
    assert mine(torch.randn(5, 3, 2, 2, 2)).shape == (5, 3, 2, 2, 2)
    with pytest.raises(ValueError, match="expected") as caught:
        mine(torch.randn(3))
    assert str(caught.value) == "expected at least 2D input (got 1D input)"
    parameters = list(inspect.signature(ours.SyncBatchNorm).parameters)
    assert parameters[:6] == list(inspect.signature(torch.nn.SyncBatchNorm).parameters)[:6]


def test_reset_makes_a_module_new() -> None:
    options = {"renorm": True, "zero_debias": "both"}
    mine = ours.BatchNorm1d(3, **options)
    mine(torch.tensor([[1.0, 2, torch.nan], [4, 6, 5]]))
    assert mine.skipped_updates.tolist() == [0, 0, 1]
    mine.reset_running_stats()
    assert_close(dict(mine.named_buffers()), dict(ours.BatchNorm1d(3, **options).named_buffers()))


ERRORS = [
    ({"eps": -1.0}, "BatchNorm1d: eps must be a number >= 0; got -1.0."),
    (
        {"momentum": 1.5},
        "BatchNorm1d: momentum must be a number in [0, 1] or None: the share of the new value in "
        "the moving statistics; got 1.5.",
    ),
    (
        {"renorm_momentum": "slow"},
        "BatchNorm1d: renorm_momentum must be a number in [0, 1] or None: the share of the new "
        "value in the moving statistics; got 'slow'.",
    ),
    (
        {"momentum": None, "zero_debias": "both"},
        "BatchNorm1d: zero_debias must be False with momentum=None; got 'both'. A cumulative "
        "average holds no initial value.",
    ),
    (
        {"track_running_stats": False, "statistics": "moving"},
        "BatchNorm1d: track_running_stats must be True with statistics='moving'; got False. There "
        "are no moving statistics.",
    ),
    (
        {"activation": "gelu"},
        "BatchNorm1d: activation must be one of None, 'relu'; got 'gelu'.",
    ),
]


@pytest.mark.parametrize(("options", "message"), ERRORS, ids=str)
def test_what_an_option_must_be_is_said_at_once(options, message) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        ours.BatchNorm1d(3, **options)
    assert str(caught.value) == message


def test_an_attribute_that_cannot_be_is_refused_and_the_module_stays_as_it_was() -> None:
    module = ours.BatchNorm1d(3)
    with pytest.raises(ValueError, match="momentum must be"):
        module.momentum = 2.0
    assert module.momentum == 0.1
    assert module(torch.randn(4, 3)).shape == (4, 3)


def test_a_new_value_of_an_attribute_holds_from_the_next_call_on() -> None:
    theirs, mine = pair(1, 3)
    x = torch.randn(5, 3)
    for module in (theirs, mine):
        module.momentum, module.eps = 0.5, 0.1
    assert_close(mine(x), theirs(x))
    assert_close(mine.state_dict(), theirs.state_dict())


def test_a_mode_that_is_switched_on_brings_its_buffers_and_takes_them_along() -> None:
    module = ours.BatchNorm1d(3)
    keys = list(module.state_dict())
    module(torch.randn(8, 3) * 2 + 1)
    module.renorm = True
    assert_close(module.renorm_mean, module.running_mean)
    assert_close(module.renorm_stddev, torch.sqrt(module.running_var + module.eps))
    module.renorm = False
    assert list(module.state_dict()) == keys


@pytest.mark.parametrize("rows", [4, 8, 10, 14])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_chunks_equal_a_loop_of_torchs_module(rows, momentum) -> None:
    theirs, mine = pair(1, 3, momentum=momentum)
    mine.virtual_batch_size, mine.ghost_order = 4, "chunks"

    def loop(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([theirs(chunk) for chunk in x.chunk(-(-len(x) // 4))])

    x = [torch.randn(rows, 3).mul(2).requires_grad_() for _ in range(2)]
    for one in x:
        y, wanted = mine(one), loop(one)
        assert_close(y, wanted)
        slopes = [torch.autograd.grad((y**3).sum(), one)[0] for y in (y, wanted)]
        assert_close(slopes[0], slopes[1], rtol=2e-4, atol=2e-4)
        assert_close(mine.state_dict(), theirs.state_dict())


def test_a_state_of_torchs_module_loads_into_a_mode() -> None:
    theirs, _ = pair(1, 3)
    for _ in range(3):
        theirs(torch.randn(8, 3) * 2 + 1)
    module = ours.BatchNorm1d(3, renorm=True, zero_debias="both")
    module.load_state_dict(theirs.state_dict())
    stddev = torch.sqrt(theirs.running_var + theirs.eps)
    assert_close(module.renorm_mean, theirs.running_mean)
    assert_close(module.renorm_stddev, stddev)
    assert_close(module.local_step, torch.full((3,), 3.0))
    assert_close(module.biased_stddev, stddev * (1 - 0.9**3))


def test_no_running_statistics_are_torchs_when_they_are_not_tracked_any_more() -> None:
    theirs, mine = pair(1, 3)
    x = torch.randn(5, 3)
    for module in (theirs, mine):
        module.track_running_stats = False
    assert_close(mine(x), theirs(x))
    assert_close(mine.state_dict(), theirs.state_dict())
    assert_close(mine.eval()(x), theirs.eval()(x))


def test_an_update_is_noticed_by_what_autograd_kept_of_the_buffers() -> None:
    module = ours.BatchNorm1d(3)
    before = module.running_mean
    kept = torch.ones(3, requires_grad=True) * module.running_mean
    module(torch.randn(4, 3))
    assert module.running_mean is before
    assert before.abs().min() > 0
    assert module.num_batches_tracked == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()


def test_buffers_that_want_a_gradient_are_refused_as_torch_does() -> None:
    module = ours.BatchNorm1d(3)
    module.running_mean.requires_grad_()
    with pytest.raises(RuntimeError, match="in-place operation"):
        module(torch.randn(4, 3))


def test_a_module_trains_in_inference_mode_where_it_was_made_so() -> None:
    with torch.inference_mode():
        module = ours.BatchNorm1d(3)
        module(torch.randn(4, 3))
        assert module.num_batches_tracked == 1
        assert module.running_mean.abs().min() > 0
    with torch.no_grad(), pytest.raises(RuntimeError, match="inference tensor"):
        module(torch.randn(4, 3))  # torch's own is refused so too
