"""Other processes, for what environment variables and forks decide."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import batchnorm

# An editable installation would be found before PYTHONPATH.
ONLY_THE_PATH = (
    "import sys; sys.meta_path = "
    "[f for f in sys.meta_path if 'editable' not in type(f).__module__.lower()]\n"
)
PACKAGE = Path(batchnorm.__file__).parent
TESTS = Path(__file__).parent.parent


@pytest.fixture
def python() -> Callable[..., str]:
    """Runs code in a Python of its own and returns what it printed; fails where that fails."""

    def run(
        code: str, *, package: Path = PACKAGE, timeout: int = 300, **environment: str | None
    ) -> str:
        changed = {
            "PYTHONPATH": f"{package.parent}{os.pathsep}{TESTS}",
            "BATCHNORM_KERNELS": None,
            "OMP_NUM_THREADS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            **environment,
        }
        kept = {name: value for name, value in os.environ.items() if name not in changed}
        done = subprocess.run(
            [sys.executable, "-c", ONLY_THE_PATH + code],
            env=kept | {name: value for name, value in changed.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
