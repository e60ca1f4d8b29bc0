"""The batch-normalization layers of a model: `find`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from batchnorm.tools.norm import Norm


def is_keras(model: Any) -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, keras.layers.Layer)


def is_torch(model: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def is_nnx(model: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(model, nnx.Module)


def is_linen(model: Any) -> bool:
    """Whether it is a module of linen; with its variables behind it, a tuple is a model."""
    linen = sys.modules.get("flax.linen")
    return linen is not None and isinstance(model, linen.Module)


def check_model(model: Any, owner: str) -> None:
    """Refuses what is no model, or none that can be looked into.

    Raises:
        TypeError: it is one of these.
    """
    if is_keras(model) or is_nnx(model):
        return
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    if not is_torch(model):
        raise TypeError(
            f"{owner}: model must be a Keras model, a PyTorch module or an nnx module; got "
            f"{kind}. Import its framework and build the model first."
        )
    script = sys.modules["torch"].jit.ScriptModule
    for name, module in model.named_modules():
        if isinstance(module, script):
            what = f"{name!r} in it, " if name else ""
            raise TypeError(
                f"{owner}: model must be a module of Python's; got {what}{module.original_name} "
                "that was scripted or traced. Pass the module that it was made from."
            )


def find(model: Any, owner: str, pattern: str | None = None) -> list[Norm]:
    """Every batch-normalization layer of a model, as its attributes hold them.

    Args:
        pattern: only layers whose names match it, as file names do ("block1_*").

    Raises:
        TypeError: the model is neither a Keras layer nor a module of PyTorch or nnx.
        ValueError: it is not built, has no such layer, or none that matches.
    """
    check_model(model, owner)
    if is_keras(model):
        found = _keras_norms(model, owner)
    else:
        found = _nnx_norms(model) if is_nnx(model) else _torch_norms(model, owner)
    if not found:
        raise ValueError(
            f"{owner}: model must have at least one batch-normalization layer with moving "
            f"statistics; got {type(model).__name__} without one."
        )
    matching = [norm for norm in found if pattern is None or fnmatchcase(norm.name, pattern)]
    if not matching:
        raise ValueError(
            f"{owner}: pattern must match a batch-normalization layer; got {pattern!r}. The first "
            f"of {len(found)} is {found[0].name!r}."
        )
    return matching


def _keras_norms(model: Any, owner: str) -> list[Norm]:
    keras = sys.modules["keras"]
    layers = [
        layer
        for layer in dict.fromkeys(model._flatten_layers(include_self=True, recursive=True))
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if layers and not all(layer.built for layer in layers):
        raise _unbuilt(owner, next(layer.name for layer in layers if not layer.built))
    from batchnorm.tools.norm_keras import norm_of

    names = _names(layers, lambda layer: layer.name, lambda layer: getattr(layer, "path", None))
    return [norm_of(layer, name) for layer, name in zip(layers, names, strict=True)]


def _torch_norms(model: Any, owner: str) -> list[Norm]:
    from batchnorm.tools.norm_torch import is_built, modules
    from batchnorm.tools.norm_torch_own import norm_of

    found = modules(model)
    for name, module in found.items():
        if not is_built(module):
            raise _unbuilt(owner, name)
    return [norm_of(module, name, model.training) for name, module in found.items()]


def _nnx_norms(model: Any) -> list[Norm]:
    from batchnorm.tools import norm_nnx

    return [norm_nnx.norm_of(one, name) for name, one in norm_nnx.modules(model).items()]


def _unbuilt(owner: str, name: str) -> ValueError:
    return ValueError(
        f"{owner}: model must be built; got one whose layer {name!r} is not. Call it on a batch "
        "first."
    )


def _names(
    layers: Sequence[Any], short: Callable[[Any], str], long: Callable[[Any], str | None]
) -> list[str]:
    """The layers' names: with the path where the name alone is taken, numbered where that is."""
    common = Counter(map(short, layers))
    names = [(common[short(one)] > 1 and long(one)) or short(one) for one in layers]
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return result


def is_tensor_of_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def copied(value: Any) -> Any:
    """The value in memory of its own; arrays that are no views of others as they are."""
    return value.clone() if is_tensor_of_torch(value) else value
