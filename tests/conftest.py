"""Fixtures for every test, and the promise that a requested framework really ran."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import batchnorm

# An editable installation would be found before PYTHONPATH.
ONLY_THE_PATH = (
    "import sys; sys.meta_path = "
    "[f for f in sys.meta_path if 'editable' not in type(f).__module__.lower()]\n"
)
PACKAGE = Path(batchnorm.__file__).parent
TESTS = Path(__file__).parent
FRAMEWORKS = ("tensorflow", "jax", "torch")
REQUESTED = [
    name
    for name in os.environ.get("BATCHNORM_TEST_BACKENDS", ",".join(FRAMEWORKS)).split(",")
    if name
]


def installed(name: str) -> bool:
    """Whether there is such a package, and not only our folder of that name."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # tests import this file too, when AbsentFinder is at work
        return False
    return spec is not None and spec.origin is not None


# Not requested and not there: `make test-python` on a Python that a framework has no wheels for.
ABSENT = [name for name in FRAMEWORKS if name not in REQUESTED and not installed(name)]


class AbsentFinder:
    """Finds none of ABSENT, where `tests/torch` would be taken for torch."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if ABSENT:
    sys.meta_path.insert(0, AbsentFinder)  # type: ignore[arg-type]

# Files about one framework import it at their top.
collect_ignore_glob = [f"backends/test_{name}*.py" for name in FRAMEWORKS if name not in REQUESTED]


def skipped_where_absent() -> Iterator[None]:
    """Skips a test that needs a framework of ABSENT; one that was requested fails the run."""
    try:
        return (yield)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in ABSENT:
            raise
        pytest.skip(f"BATCHNORM_TEST_BACKENDS does not request {name}, which is not installed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    return (yield from skipped_where_absent())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    return (yield from skipped_where_absent())


def pytest_configure(config: pytest.Config) -> None:
    for name in REQUESTED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise pytest.UsageError(
                f"BATCHNORM_TEST_BACKENDS requests {name}, which cannot be imported: {error}"
            ) from error


@pytest.fixture(params=REQUESTED, scope="session")
def engine(request: pytest.FixtureRequest):
    """A framework under the names the tests use; see `tests/engines.py`."""
    import engines

    if request.param not in REQUESTED:  # a test of one framework only
        pytest.skip(f"BATCHNORM_TEST_BACKENDS does not request {request.param}")
    return engines.ENGINES[request.param]


@pytest.fixture(autouse=True)
def _same_start(request: pytest.FixtureRequest):
    """Every test of Keras starts with the same seed and the default policy, and leaves them so."""
    if request.node.get_closest_marker("keras") is None:
        yield
        return
    import keras

    # Not keras.utils.clear_session: its garbage collection takes seconds with three frameworks.
    keras.utils.set_random_seed(7)
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


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
