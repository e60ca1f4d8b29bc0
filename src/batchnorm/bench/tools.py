"""Question 7: what the tools cost, over a forward pass of the same data; and what folding saves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import keras
import numpy as np

import batchnorm
from batchnorm.bench.models import resnet
from batchnorm.bench.plan import Case, Settings, Size
from batchnorm.bench.row import Row, compare
from batchnorm.bench.timing import Times, alternate, clock
from batchnorm.keras import BatchNormalization

FULL, QUICK = Size(32, 3, (32, 32)), Size(4, 3, (8, 8))
BATCHES, QUICK_BATCHES = 8, 2
FORWARD, FOLDED = "forward pass", "folded"
MODULES = "modules"
FIRST = ", first call"  # of a process: it compiles
NORMALIZATIONS = {"ours": BatchNormalization, "keras": keras.layers.BatchNormalization}


def cases(settings: Settings) -> list[Case]:
    """A small ResNet with our layers, with Keras' own, and in torch's modules. In float32."""
    size = QUICK if settings.quick else FULL
    layout = keras.config.image_data_format()[9:]
    kinds = [(layout, variant) for variant in NORMALIZATIONS]
    if settings.framework == "torch":
        kinds.append(("first", MODULES))
    return [Case("tools", size, "float32", layout, variant) for layout, variant in kinds]


def measure(case: Case, settings: Settings) -> Iterator[Row]:
    """What inspection, re-estimation and the folded model take, over the forward pass.

    TensorFlow and JAX compile at a tool's first call of a model: that has rows of its own. Modules
    of torch are not folded.
    """
    shape = case.size.shape(case.layout)
    count = QUICK_BATCHES if settings.quick else BATCHES
    random = np.random.default_rng(1)
    data = [random.standard_normal(shape).astype(np.float32) for _ in range(count)]
    keras.utils.set_random_seed(1)
    plain = case.variant == MODULES
    model = _modules(case, settings) if plain else _layers(case, settings)
    forward = _module_passes if plain else _passes
    tools = {"inspect": batchnorm.inspect, "reestimate": batchnorm.reestimate}
    calls: dict[str, Callable[[], Any]] = {
        name: functools.partial(tool, model, data) for name, tool in tools.items()
    }
    first = {f"{name}{FIRST}": _once(call) for name, call in calls.items()}
    folded = () if plain else (FOLDED,)
    if folded:
        calls[FOLDED] = forward(batchnorm.fold(model), data)
    calls[FORWARD] = forward(model, data)
    clocks = {name: clock(call) for name, call in calls.items()}
    times = first | alternate(clocks, settings.repeats, settings.seconds / 4)
    for name in (*folded, *tools, *first):
        yield compare(settings, case, times, name, FORWARD, ours_over_peer=True, what=name)


def _once(call: Callable[[], Any]) -> Times:
    started = perf_counter()
    call()
    taken = 1e3 * (perf_counter() - started)
    return Times(taken, taken)


def _layers(case: Case, settings: Settings) -> Any:
    normalized = _normalized(NORMALIZATIONS[case.variant])
    return resnet(case.size.shape(case.layout)[1:], normalized, settings.quick)


def _modules(case: Case, settings: Settings) -> Any:
    from batchnorm.bench import torch_resnet  # only there is torch sure to be installed

    return torch_resnet.resnet(case.size.c, settings.quick).eval()


def _normalized(kind: Any) -> Callable[[Any, bool], Any]:
    def normalized(x: Any, relu: bool) -> Any:
        y = kind()(x)
        return keras.layers.ReLU()(y) if relu else y

    return normalized


def _passes(model: Any, data: list[np.ndarray]) -> Callable[[], None]:
    """A forward pass over the data as `predict` makes it."""

    def call() -> None:
        for batch in data:
            model.predict_on_batch(batch)

    return call


def _module_passes(model: Any, data: list[np.ndarray]) -> Callable[[], None]:
    """A forward pass over the data as an evaluation in torch makes it."""
    import torch

    def call() -> None:
        with torch.no_grad():
            for batch in data:
                model(torch.as_tensor(batch))

    return call
