"""What the tools cost, over a forward pass of the same data; and what folding saves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from time import perf_counter
from typing import Any

import keras
import numpy as np

import batchnorm
from batchnorm.keras import BatchNormalization
from benchmarks.cases import Case, Settings, Size
from benchmarks.questions.models import resnet, then_relu
from benchmarks.timing import Call, Contest, Times

FULL, QUICK = Size(32, 3, (32, 32)), Size(4, 3, (8, 8))
BATCHES, QUICK_BATCHES = 8, 2
MODULES = "modules"
NORMALIZATIONS = {"ours": BatchNormalization, "keras": keras.layers.BatchNormalization}


def cases(settings: Settings) -> list[Case]:
    """A small ResNet with our layers, with Keras' own, and in torch's modules. In float32."""
    size = QUICK if settings.quick else FULL
    layout = keras.config.image_data_format()[9:]
    kinds = [(layout, variant) for variant in NORMALIZATIONS]
    if settings.framework == "torch":
        kinds.append(("first", MODULES))
    return [Case("", size, "float32", layout, variant) for layout, variant in kinds]


def contest(case: Case, settings: Settings) -> Contest:
    """Inspection, re-estimation and the folded model, over the forward pass.

    TensorFlow and JAX compile at a tool's first call of a model: that has rows of its own. Modules
    of torch are not folded.
    """
    shape = case.size.shape(case.layout)
    random = np.random.default_rng(1)
    count = QUICK_BATCHES if settings.quick else BATCHES
    data = [random.standard_normal(shape).astype(np.float32) for _ in range(count)]
    keras.utils.set_random_seed(1)
    plain = case.variant == MODULES
    model = _modules(case, settings) if plain else _layers(case, settings)
    passes = _module_passes if plain else _passes
    folded = {} if plain else {"folded": passes(batchnorm.fold(model), data)}
    tools: dict[str, Call] = {
        "inspect": functools.partial(batchnorm.inspect, model, data),
        "reestimate": functools.partial(batchnorm.reestimate, model, data),
    }
    return Contest(
        {**folded, **tools},
        units={"forward pass": passes(model, data)},
        before={f"{name}, first call": _once(call) for name, call in tools.items()},
        longer=0.25,  # each contender reads eight batches
    )


def _once(call: Callable[[], Any]) -> Times:
    started = perf_counter()
    call()
    taken = 1e3 * (perf_counter() - started)
    return Times(taken, taken)


def _layers(case: Case, settings: Settings) -> Any:
    normalized = then_relu(NORMALIZATIONS[case.variant])
    return resnet(case.size.shape(case.layout)[1:], normalized, settings.quick)


def _modules(case: Case, settings: Settings) -> Any:
    from benchmarks import torch_resnet  # only there is torch sure to be installed

    return torch_resnet.resnet(case.size.c, settings.quick).eval()


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
