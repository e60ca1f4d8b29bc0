"""Every example trains on two replicas and learns the digits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import batchnorm

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def printed(*arguments: str | Path, **environment: str) -> str:
    """What a Python process printed; fails where that fails."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(batchnorm.__file__).parent.parent),
            "OMP_NUM_THREADS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def accuracy(output: str) -> float:
    found = re.search(r"^2 replicas, test accuracy (\d\.\d+)$", output, re.MULTILINE)
    assert found, output
    return float(found[1])


def test_torch_under_torchrun_keeps_a_whole_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    assert accuracy(printed(*TORCHRUN, EXAMPLES / "torch_digits.py", "--out", out)) > 0.9
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_jax_on_two_devices() -> None:
    flags = "--xla_force_host_platform_device_count=2"
    assert accuracy(printed(EXAMPLES / "jax_digits.py", XLA_FLAGS=flags)) > 0.9


def test_tensorflow_on_two_virtual_cpus() -> None:
    assert accuracy(printed(EXAMPLES / "tensorflow_digits.py")) > 0.9


def test_a_resnet_is_converted_trained_frozen_and_exported(tmp_path: Path) -> None:
    out = tmp_path / "digits.pt2"
    output = printed(EXAMPLES / "torch_resnet.py", "--out", out)
    found = re.findall(r"^test accuracy (\d\.\d+)", output, re.MULTILINE)
    assert float(found[-1]) > 0.9, output
    assert "statistics unchanged: True" in output
    # the program runs where batchnorm was never installed
    code = (
        f"import sys, torch; program = torch.export.load({str(out)!r}).module()\n"
        "print(program(torch.zeros(3, 1, 8, 8)).shape, 'batchnorm' in sys.modules)"
    )
    assert printed("-c", code).strip() == "torch.Size([3, 10]) False"


def test_flax_on_two_devices_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    flags = "--xla_force_host_platform_device_count=2"
    where = (EXAMPLES / "flax_digits.py", "--checkpoint", tmp_path)
    printed(*where, "--epochs", "1", XLA_FLAGS=flags)
    assert accuracy(printed(*where, "--epochs", "3", XLA_FLAGS=flags)) > 0.9
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["0", "1", "2"]
