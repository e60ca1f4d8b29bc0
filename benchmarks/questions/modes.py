"""What a mode costs, over our plain batch normalization and over the original."""

from __future__ import annotations

from typing import Any

import numpy as np

import batchnorm
from benchmarks import ours
from benchmarks.cases import Case, Settings, middle_sizes
from benchmarks.frameworks import engine
from benchmarks.ours import GHOST, Given
from benchmarks.timing import Contest


def cases(settings: Settings) -> list[Case]:
    """The mode, on middle-sized tensors whose samples make ghost batches."""
    return [
        Case("forward + backward", size.of(dtype), dtype, layout, mode)
        for mode in settings.modes
        for dtype in settings.dtypes
        for size in middle_sizes(settings)
        if size.n % GHOST == 0 and (mode != "axes" or len(size.positions) > 1)
        for layout in size.layouts(settings.layouts)
    ]


def contest(case: Case, settings: Settings) -> Contest:
    """The mode over plain, and against tf_keras where it has the mode."""
    use = engine(settings.framework)
    plain = use.given(case)
    given, options = with_mode(use, case)
    original = use.original(case, given) if settings.framework == "tensorflow" else None
    return Contest(
        {"ours": use.forward_backward(ours.plain(given, **options), given)},
        peers={} if original is None else {"tf_keras": use.step_of_layer(original, given)},
        units={"ours, plain": use.forward_backward(ours.plain(plain), plain)},
    )


def with_mode(use: Any, case: Case) -> tuple[Given, dict[str, Any]]:
    """Tensors and options of a mode."""
    given = use.given(case, renorm=case.variant == "renorm")
    size = case.size
    generator = np.random.default_rng(2)
    if case.variant == "renorm":
        clipping = {"rmax": 3.0, "rmin": 1 / 3, "dmax": 5.0}
        return given, {"renorm": True, "renorm_clipping": clipping}
    if case.variant == "ghost":
        return given, {"virtual_batch_size": GHOST}
    if case.variant == "weights":  # one for each sample
        weights = use.tensor(generator.uniform(0.5, 1.5, size.n).astype(np.float32))
        return given._replace(extra={"batch_weights": weights}), {}
    if case.variant == "mask":  # one for each position, an eighth of them masked
        mask = use.tensor(generator.random((size.n, *size.positions)) > 1 / 8, "bool")
        return given._replace(extra={"mask": mask}), {}
    if case.variant == "adjustment":
        factor, shift = (
            use.tensor(generator.uniform(0.9, 1.1, _vector(case)).astype(np.float32))
            for _ in range(2)
        )
        return given, {"adjustment": lambda shape: (factor, shift)}
    if case.variant == "axes":
        axes = (1, 3)
        _, state = batchnorm.init(given.x, axis=axes)
        shape = tuple(state["moving_mean"].shape)
        gamma, beta = (use.parameter(vector) for vector in ours.vectors(shape))
        return given._replace(gamma=gamma, beta=beta, state=state), {"axis": axes}
    raise ValueError(f"with_mode: the mode must be one of cases.MODES; got {case.variant!r}.")


def _vector(case: Case) -> tuple[int, ...]:
    """The shape of one value for each channel, as it broadcasts to x."""
    ones = (1,) * len(case.size.positions)
    return (1, case.size.c, *ones) if case.layout == "first" else (1, *ones, case.size.c)
