"""The modes whose second derivatives are tested, and what these are by."""

from __future__ import annotations

from typing import Any

import numpy as np

VARYING = np.random.default_rng(8).uniform(0.5, 1.5, (6, 1, 3))
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "renorm": {"renorm": True, "renorm_clipping": {"rmax": 1.2, "dmax": 0.5}},
    "ghost": {"virtual_batch_size": 2},
    "weights": {"batch_weights": np.array([1.0, 2.0, 0.0, 0.5, 1.0, 3.0])},
    "adjustment": {"adjustment": lambda shape: (VARYING, VARYING[:1])},
    "moving statistics": {"statistics": "moving"},
    "everything": {
        "renorm": True,
        "virtual_batch_size": 2,
        "batch_weights": np.array([1.0, 2.0, 0.0, 0.5, 1.0, 3.0]),
        "adjustment": lambda shape: (VARYING, VARYING[:1]),
    },
}
NAMES = ("x", "gamma", "beta")
