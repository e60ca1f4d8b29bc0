"""Synchronized modules over processes of `torch.distributed` with gloo, on the CPU."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import batchnorm
import batchnorm.torch as ours
import launcher
import replicated


@pytest.fixture(scope="module", params=(2, 4))
def ranks(request: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank found, of two processes and of four."""
    folder = tmp_path_factory.mktemp(f"modules{request.param}")
    return launcher.launch("torch_modules", request.param, folder)


@pytest.fixture(scope="module")
def worker() -> Any:
    sys.path.insert(0, str(Path(replicated.__file__).parent / "workers"))
    try:
        return importlib.import_module("torch_modules")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def alone(worker: Any) -> dict[str, Any]:
    """What one process makes of all the rows."""
    return worker.modes(0, 1)


def check(ranks: list[dict[str, Any]], fact: str, wanted: dict[str, Any]) -> None:
    close = {"rtol": 1e-5, "atol": 1e-5}
    y = torch.cat([one[fact]["y"] for one in ranks])
    torch.testing.assert_close(y, wanted["y"], **close)
    for one in ranks:
        rest = {name: value for name, value in one[fact].items() if name != "y"}
        torch.testing.assert_close(rest, {name: wanted[name] for name in rest}, **close)


@pytest.mark.parametrize("mode", ["plain", "cumulative", "renorm", "relu", "composite"])
def test_processes_under_ddp_equal_one_with_all_the_rows(ranks, alone, mode) -> None:
    check(ranks, mode, alone[mode])


@pytest.mark.parametrize("fact", ["pickled", "switched"])
def test_synchronization_survives_pickling_and_is_a_switch_of_converted_modules(
    ranks, alone, fact
) -> None:
    check(ranks, fact, alone["plain"])


def test_sharded_parameters_train_as_whole_ones(ranks, alone) -> None:
    if len(ranks) == 2:
        check(ranks, "sharded", alone["plain"])


def test_a_process_group_is_kept_by_its_name(worker, tmp_path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        group = torch.distributed.group.WORLD
        module = ours.SyncBatchNorm(3, process_group=group)
        other = torch.nn.SyncBatchNorm(3, process_group=group)
        ours.convert(other)
        assert module.synchronized == other.synchronized == group.group_name
        ours.revert(other)
        assert other.process_group is group
        plain = ours.BatchNorm1d(3)
        plain.synchronized = group
        assert plain.synchronized == group.group_name
    finally:
        torch.distributed.destroy_process_group()


def test_a_torch_model_is_switched_without_another_framework() -> None:
    code = (
        "import sys, torch, batchnorm, batchnorm.torch\n"
        "model = torch.nn.Sequential(batchnorm.torch.BatchNorm1d(3))\n"
        "assert batchnorm.set_synchronized(model, True) == ['0'], model\n"
        "assert model[0].synchronized is True\n"
        "print(sorted({'tensorflow', 'jax', 'keras'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_model_with_modules_of_torchs_own_is_not_synchronized() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="must hold a") as caught:
        batchnorm.set_synchronized(model, True)
    assert str(caught.value) == (
        "set_synchronized: model must hold a module of batchnorm.torch; got 'Sequential' with 1 of "
        "torch's own. Call batchnorm.torch.convert(model) first."
    )
    model.append(ours.BatchNorm1d(3))
    with pytest.raises(ValueError, match="must hold no") as refused:
        batchnorm.set_synchronized(model, True)
    assert str(refused.value) == (
        "set_synchronized: model must hold no batch-norm modules of torch's own; got ['0']. Call "
        "batchnorm.torch.convert(model) first."
    )
    assert model[1].synchronized is False
    assert batchnorm.set_synchronized(model, False) == ["1"]
