"""Calls of every mode, type and layout that go through the GPU kernels, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from fused_calls import rounded, step, truth
from strategies import call_on

ROUNDING = {"float64": 1e-11, "float32": 5e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
RENORM = {"renorm": True, "renorm_clipping": {"rmax": 1.5, "rmin": 0.5, "dmax": 0.5}}
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "renorm": RENORM,
    "ghost": {"virtual_batch_size": 3},
    "chunks": {"virtual_batch_size": 3, "ghost_order": "chunks"},
    "mask": {},
    "weights": {},
    "adjustment": {"adjustment": lambda shape: (np.float32(1.25), np.float32(-0.5))},
    "frozen": {"statistics": "moving"},
    "inference": {"training": False},
    "together": {**RENORM, "virtual_batch_size": 3, "unbiased_moving_variance": True},
}
LAYOUTS = {"last": ((6, 19, 5), -1), "first": ((6, 5, 19), 1), "several": ((6, 3, 7, 2), [1, 3])}


def given(mode: str, shape: tuple[int, ...], axis: Any, rng: np.random.Generator) -> dict[str, Any]:
    axes = [one % len(shape) for one in (axis if isinstance(axis, list) else [axis])]
    free = [size for i, size in enumerate(shape) if i not in axes]
    if mode in ("mask", "together"):
        return {"mask": rng.random(free) < 0.6}
    if mode == "weights":
        return {"batch_weights": rng.uniform(0.2, 3, free[0]).astype("float32")}
    return {}


def check(engine: Any, mode: str, layout: str, dtype: str, activation: str | None = None) -> None:
    shape, axis = LAYOUTS[layout]
    rng = np.random.default_rng(3)
    x = rounded(rng.normal(size=shape) * 1.5 + 2, dtype)
    more = given(mode, shape, axis, rng)
    options = {"training": True, "axis": axis, "momentum": 0.5, "epsilon": 1e-2, **MODES[mode]}
    if "mask" in more and mode == "mask":  # what is masked may be anything
        left_out = ~more["mask"].reshape(
            [1 if i == axis % len(shape) else s for i, s in enumerate(shape)]
            if isinstance(axis, int)
            else [s if i in (0, 2) else 1 for i, s in enumerate(shape)]
        )
        x = np.where(left_out, np.nan, x)
    call = call_on(rng, x, given=more, **options)
    call.dy = rounded(call.dy.astype("float64"), dtype)
    expected = truth(call, activation)
    got = step(engine, call, dtype, fused=True, activation=activation)
    for name, value in expected.items():
        narrow = name in ("y", "dx") or dtype == "float64"
        bar = ROUNDING[dtype] if narrow else 1e-5
        scale = max(1.0, np.abs(value)[np.isfinite(value)].max(initial=0.0))
        np.testing.assert_allclose(got[name], value, rtol=0, atol=bar * scale, err_msg=name)


# Every mode in float32 and bfloat16 by turns of the layout, and the other types by turns of all.
CASES = [
    (mode, layout, dtype)
    for i, mode in enumerate(MODES)
    for j, layout in enumerate(LAYOUTS)
    for dtype in (("float32", "bfloat16", "float64", "float16")[(i + j) % 4],)
]


def check_sizes(engine: Any, shape: Any, axis: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 2.0, shape).astype("float32")
    call = call_on(rng, x, training=True, axis=axis, momentum=0.5)
    expected = truth(call, None)
    got = step(engine, call, "float32", fused=True)
    for name, value in expected.items():
        scale = max(1.0, np.abs(value).max(initial=0.0))
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5 * scale, err_msg=name)
