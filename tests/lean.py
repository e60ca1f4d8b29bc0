"""The modes whose operations on the composite path are counted, and their options."""

from __future__ import annotations

from typing import Any

import numpy as np

SAMPLES = 8
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "relu": {"activation": "relu"},
    "renorm": {"renorm": True},
    "weights": {"batch_weights": np.linspace(0.5, 2, SAMPLES).astype("float32")},
    "ghost": {"virtual_batch_size": 4},
}
