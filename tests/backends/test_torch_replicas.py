"""One batch over processes of PyTorch: `torch.distributed` with gloo."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import batchnorm
import launcher
import replicated

both_paths = pytest.mark.parametrize("fused", [False, None], ids=["composite", "fused"])
NAMES_SENT = ["all_gather_single", "all_reduce"]
each_mode = pytest.mark.parametrize("name", replicated.NAMES)


@pytest.fixture(scope="module", params=(2, 4))
def processes(request: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank found, of two processes and of four."""
    folder = tmp_path_factory.mktemp(f"torch{request.param}")
    return launcher.launch("torch_processes", request.param, folder)


@both_paths
@each_mode
def test_processes_equal_one_with_all_the_rows(
    processes: list[dict[str, Any]], name: str, fused: bool | None
) -> None:
    parts = [one["modes"][name, fused] for one in processes]
    replicated.check(replicated.case(name, len(processes)), parts)


@both_paths
@each_mode
def test_a_layer_sends_one_message_forward_and_one_backward_as_documented(
    processes: list[dict[str, Any]], name: str, fused: bool | None
) -> None:
    case = replicated.case(name, len(processes))
    width = replicated.width(case)
    wanted = [
        (function, f"torch.float{8 * width}", count * width)
        for function, count in zip(NAMES_SENT, replicated.messages_of(case), strict=False)
    ]
    assert all(one["modes"][name, fused]["sent"] == wanted for one in processes)


def test_shapes_are_no_longer_compared_once_they_have_been(processes: list[dict[str, Any]]) -> None:
    assert [name for name, _, _ in processes[0]["steady"]] == NAMES_SENT


def test_ghost_batches_may_number_otherwise_in_every_step(processes: list[dict[str, Any]]) -> None:
    for step, rows in enumerate((replicated.UNEQUAL, replicated.GHOST, replicated.UNEQUAL)):
        case = replicated.case("ghost", len(processes), rows)
        replicated.check(case, [one["ghost"][0][step] for one in processes])


def test_ghost_batches_send_one_message_more(processes: list[dict[str, Any]]) -> None:
    sent = processes[0]["ghost"][1]
    assert [name for name, _, _ in sent] == ["all_gather_single", *NAMES_SENT]
    assert sent[0][1:] == ("torch.int64", 32)


@both_paths
def test_second_derivatives_are_those_of_one_process(
    processes: list[dict[str, Any]], fused: bool | None
) -> None:
    case = replicated.case("channels last", len(processes))
    x = torch.tensor(case.x, dtype=torch.float64, requires_grad=True)
    parameters = {k: torch.tensor(v, dtype=torch.float64) for k, v in case.parameters.items()}
    _, state = batchnorm.init(x)
    y, _ = batchnorm.batch_norm(x, parameters, state, training=True, fused=False)
    loss = (y**2 * torch.tensor(case.dy)).sum()
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (wanted,) = torch.autograd.grad((slope**2).sum(), x)
    got = np.concatenate([one["second"][fused] for one in processes])
    np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-10, atol=1e-8)


def test_one_graph_of_torch_compile_does_the_same(processes: list[dict[str, Any]]) -> None:
    for one in processes:
        composite, composite_compiled, fused, fused_compiled = one["compiled"]
        for eager, compiled in ((composite, composite_compiled), (fused, fused_compiled)):
            for got, wanted in zip(compiled, eager, strict=True):
                np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


ERRORS = {
    "channels": (
        "ValueError: batch_norm: the input must have as many channels on all replicas; got 3 here "
        "and {} by rank. Check the model and the data of each.",
        (3, 4),
    ),
    "axes": (
        "ValueError: batch_norm: the input must have as many channels on all replicas; got (2, 3) "
        "here and {} by rank. Check the model and the data of each.",
        ((2, 3), (3, 2)),
    ),
    "types": (
        "ValueError: batch_norm: the input must have as many bytes in a statistic on all replicas; "
        "got 4 here and {} by rank. Give all of them inputs of one type.",
        (4, 8),
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_replicas_that_disagree_are_all_told_so(processes: list[dict[str, Any]], what: str) -> None:
    message, values = ERRORS[what]
    by_rank = [values[rank % 2] for rank in range(len(processes))]
    assert processes[0]["errors"][what] == message.format(by_rank)
    assert all(what in one["errors"] for one in processes)


def test_ghost_batches_on_some_replicas_only_are_refused(processes: list[dict[str, Any]]) -> None:
    ranks = list(range(1, len(processes), 2))
    for one in processes:
        assert one["errors"]["groups"] == (
            "ValueError: batch_norm: virtual_batch_size must be given on all replicas or on none; "
            f"got it on the ranks {ranks} only. Build the layer alike on all of them."
        )


def test_a_group_that_is_none_is_refused(processes: list[dict[str, Any]]) -> None:
    assert processes[0]["errors"]["name"] == (
        "RuntimeError: batch_norm: synchronized must name a process group that this process "
        "belongs to; got 'nobody'. Its name is the attribute group_name."
    )
    assert processes[0]["errors"]["object"] == (
        "TypeError: batch_norm: synchronized must be True, False, a torch process group or the "
        "name of one; got <object>."
    )


@pytest.mark.parametrize("how", ["object", "name"])
def test_subgroups_have_statistics_of_their_own(processes: list[dict[str, Any]], how: str) -> None:
    if len(processes) == 2:
        return  # one group of two is what the other tests have
    case = replicated.case("plain", 2)
    for pair in (processes[:2], processes[2:]):
        replicated.check(case, [one["subgroups"][how] for one in pair])


def test_without_a_process_group_one_process_is_all_there_is() -> None:
    x = torch.randn(6, 3)
    parameters, state = batchnorm.init(x)
    step = lambda sync: batchnorm.batch_norm(  # noqa: E731
        x, parameters, state, training=True, synchronized=sync
    )
    torch.testing.assert_close(step(True), step(False), rtol=0, atol=0)


def test_a_name_without_a_process_group_is_refused() -> None:
    x = torch.randn(6, 3)
    parameters, state = batchnorm.init(x)
    with pytest.raises(RuntimeError) as caught:
        batchnorm.batch_norm(x, parameters, state, training=True, synchronized="batch")
    assert str(caught.value) == (
        "batch_norm: synchronized must be True or False without torch.distributed; got 'batch'. "
        "Call torch.distributed.init_process_group first."
    )
