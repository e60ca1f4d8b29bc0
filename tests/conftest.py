"""Fixtures for every test, and the promise that a requested framework really ran."""

from __future__ import annotations

import importlib
import os

import pytest

REQUESTED = [
    name
    for name in os.environ.get("BATCHNORM_TEST_BACKENDS", "tensorflow,jax,torch").split(",")
    if name
]
# Files about one framework import it at their top.
collect_ignore_glob = [
    f"backends/test_{name}*.py" for name in ("tensorflow", "jax", "torch") if name not in REQUESTED
]


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
