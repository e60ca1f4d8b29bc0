"""What the tests of the tools share."""

from __future__ import annotations

import keras
import pytest


@pytest.fixture(autouse=True)
def _same_start():
    """Every test starts with the same seed and the default policy, and leaves them so."""
    keras.utils.set_random_seed(7)
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)
