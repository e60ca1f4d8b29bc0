"""The user's data as batches of model inputs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from batchnorm.tools.arguments import arguments_of
from batchnorm.tools.norms import is_keras, is_linen, is_nnx, is_tensor_of_torch

# A function of the model and a batch that calls the model.
Caller = Callable[[Any, Any], Any]


class Batches:
    """Inputs, batch by batch, as often as they are asked for.

    An array (or a dictionary of them: a model with named inputs; or a tuple `(x, labels, ...)`, as
    `fit` takes them, where x may be a list of inputs) is cut into batches of `batch_size`. Anything
    else that can be iterated is taken as batches that were cut before: a list of arrays, a
    `tf.data.Dataset`, a `DataLoader`, a `PyDataset`. A batch is an array, a list or dictionary of
    arrays, or a tuple `(x, labels, ...)` of which only x is used; for PyTorch modules, and from a
    `DataLoader`, a list is such a tuple. Empty batches are passed over.

    A PyTorch module gets as many of a batch as its `forward` asks for: see `arguments_of`. With
    `call`, a batch is whatever the data holds, its arrays in the framework of the model, and
    `call(model, batch)` is to call the model with it.

    Attributes:
        total: how many batches there are; None where only reading tells.
        call: as given.

    Raises:
        TypeError, ValueError: an argument is not what it must be.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        batch_size: int,
        steps: int | None,
        owner: str,
        call: Caller | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("steps", steps)):
            if value is None and name == "steps":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{owner}: {name} must be a positive integer; got {value!r}.")
        if call is not None and not callable(call):
            raise TypeError(
                f"{owner}: call must be a function of the model and a batch; got {call!r}."
            )
        self._model, self._data, self._size, self._steps = model, data, batch_size, steps
        self._owner, self.call = owner, call
        self._whole = _is_whole(model, data)
        if not self._whole and not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
            raise TypeError(
                f"{owner}: data must be an array, a tuple (x, labels) or batches of them; got "
                f"{type(data).__name__}."
            )
        if self._whole:
            self._check(data if call is not None else _inputs(data))
            counts = [int(one.shape[0]) for one in _leaves(data) if _has_rows(one)]
            if len(set(counts)) > 1:
                raise ValueError(
                    f"{owner}: data in a tuple (x, labels) must have as many rows in each part; "
                    f"got {', '.join(map(str, counts))}. Pass batches in a list."
                )
        self.total = self._count()

    def __iter__(self) -> Iterator[Any]:
        done = 0
        for batch in self._cut() if self._whole else self._given():
            x = self._chosen(batch)
            if rows(x) > 0:
                done += 1
                yield _for_model(self._model, x)
            if done == self._steps:  # before another one is fetched
                return

    def _chosen(self, batch: Any) -> Any:
        """What the model is called with."""
        if self.call is not None:
            x = batch
        elif is_keras(self._model) or is_linen(self._model):
            x = _inputs(batch)
        else:
            x = arguments_of(self._model, batch, self._owner)
        self._check(x)
        return x

    def _check(self, x: Any) -> None:
        leaves = _leaves(x)
        if self.call is not None and any(map(_has_rows, leaves)):
            return  # the user's function knows what the rest is
        wrong = [type(leaf).__name__ for leaf in leaves if not _is_array(leaf)]
        wrong += ["a scalar" for leaf in leaves if _is_array(leaf) and not _has_rows(leaf)]
        if wrong or not leaves:
            raise TypeError(
                f"{self._owner}: data must be an array, a tuple (x, labels) or batches of them; "
                f"got {wrong[0] if wrong else 'no array'} in a batch."
            )

    def _count(self) -> int | None:
        if self._whole:
            known: int | None = -(-rows(self._data) // self._size)
        else:
            try:
                known = len(self._data)
            except TypeError:
                known = None
        if self._steps is None or known is None:
            return known if self._steps is None else self._steps
        return min(known, self._steps)

    def _cut(self) -> Iterator[Any]:
        for start in range(0, rows(self._data), self._size):
            yield _map(self._data, lambda leaf, at=start: _slice(leaf, at, self._size))

    def _given(self) -> Iterator[Any]:
        keras = sys.modules.get("keras")
        data = self._data
        if keras is not None and isinstance(data, keras.utils.PyDataset):
            batches = (data[index] for index in range(data.num_batches))
        else:
            batches = iter(data)
        # a DataLoader collates (x, labels) into a list; Keras' models take a list as inputs
        pairs = _is_loader(data)
        for batch in batches:
            yield tuple(batch) if pairs and isinstance(batch, list) else batch


def check_again(data: Any, owner: str, when: str = "") -> None:
    """Refuses data that is used up once it was read; `when` is the reason to read it again.

    Raises:
        TypeError: it is such data, or none.
    """
    if data is None:
        raise TypeError(f"{owner}: data must be a list of batches or an array; got None.")
    if hasattr(data, "__next__"):
        raise TypeError(
            f"{owner}: data must be readable more than once{when}; got {type(data).__name__}. "
            "Pass a list of batches or an array."
        )


def rows(x: Any) -> int:
    """Rows of a batch."""
    return int(next(leaf for leaf in _leaves(x) if _has_rows(leaf)).shape[0])


def _is_whole(model: Any, data: Any) -> bool:
    """Whether data is to be cut into batches, and not batches already."""
    first, *rest = data if isinstance(data, tuple) and data else (data,)
    if _is_array(first):
        return True
    if isinstance(first, Mapping):
        return all(_is_array(one) for one in first.values())
    if data is first or not isinstance(first, (list, tuple)) or not all(map(_is_array, first)):
        return False
    labelled = any(_is_array(one) for one in rest)  # else a tuple of batches (x, labels)
    return labelled or (is_keras(model) and isinstance(first, list))


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _has_rows(value: Any) -> bool:
    return _is_array(value) and len(value.shape) > 0


def _is_loader(data: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(data, torch.utils.data.DataLoader)


def _inputs(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple) else batch


def _leaves(x: Any) -> list[Any]:
    if isinstance(x, Mapping):
        return [leaf for one in x.values() for leaf in _leaves(one)]
    if isinstance(x, (list, tuple)):
        return [leaf for one in x for leaf in _leaves(one)]
    return [x]


def _map(x: Any, function: Any) -> Any:
    """The same structure with other leaves."""
    if isinstance(x, Mapping):
        return {key: _map(one, function) for key, one in x.items()}
    if isinstance(x, (list, tuple)):
        parts = [_map(one, function) for one in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return function(x)


def _slice(leaf: Any, start: int, size: int) -> Any:
    return leaf[start : start + size] if _has_rows(leaf) else leaf


def _for_model(model: Any, x: Any) -> Any:
    """The batch in the framework of the model, where its parameters are."""
    if is_keras(model):
        on_torch = sys.modules["keras"].backend.backend() == "torch"

        def host(leaf: Any) -> Any:
            if not _is_array(leaf) or (on_torch and is_tensor_of_torch(leaf)):
                return leaf
            return leaf.detach().cpu().numpy() if is_tensor_of_torch(leaf) else np.asarray(leaf)

        return _map(x, host)
    if is_nnx(model) or is_linen(model):
        import jax.numpy as jnp

        return _map(x, lambda leaf: jnp.asarray(leaf) if _is_array(leaf) else leaf)
    torch = sys.modules["torch"]
    like = next((one for one in model.parameters() if one.is_floating_point()), None)

    def move(leaf: Any) -> Any:
        if not _is_array(leaf):
            return leaf
        given = leaf if is_tensor_of_torch(leaf) else torch.as_tensor(np.asarray(leaf))
        if like is None:
            return given
        # NumPy computes in float64 unless told otherwise: a module would refuse that
        cast = not is_tensor_of_torch(leaf) and given.is_floating_point()
        return given.to(like.device, like.dtype if cast else given.dtype)

    return _map(x, move)
