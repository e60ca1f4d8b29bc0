"""The variables of a layer: how they are made, and how files hold them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import keras

from batchnorm._statistics import initial_value

COUNTERS = ("num_updates", "skipped_updates")


def parameter(layer: Any, name: str, shape: tuple[int, ...]) -> keras.Variable:
    """gamma or beta."""
    return layer.add_weight(
        shape=shape,
        name=name,
        dtype=_statistics_dtype(layer),
        initializer=getattr(layer, f"{name}_initializer"),
        regularizer=getattr(layer, f"{name}_regularizer"),
        constraint=getattr(layer, f"{name}_constraint"),
        autocast=False,
    )


def statistic(layer: Any, name: str, shape: tuple[int, ...]) -> keras.Variable:
    """What is remembered under this name in `batchnorm._statistics`."""
    mean, variance = layer.moving_mean_initializer, layer.moving_variance_initializer
    initializer: Any
    if name in ("moving_mean", "renorm_mean"):
        initializer = mean.clone()
    elif name == "moving_variance":
        initializer = variance.clone()
    elif name in ("moving_stddev", "renorm_stddev"):

        def initializer(shape: Any, dtype: Any = None) -> Any:
            return keras.ops.sqrt(variance.clone()(shape, dtype=dtype))

    else:
        initializer = keras.initializers.Constant(initial_value(name))
    return _of_each_replica(layer, name, shape, initializer, _statistics_dtype(layer), "mean")


def counter(layer: Any, name: str, shape: tuple[int, ...]) -> keras.Variable:
    """One of COUNTERS."""
    return _of_each_replica(layer, name, shape, "zeros", "int32", "only_first_replica")


def _of_each_replica(
    layer: Any, name: str, shape: tuple[int, ...], initializer: Any, dtype: str, aggregation: str
) -> keras.Variable:
    """A statistic or counter, which every replica of tf.distribute has for itself.

    Outside of the replicas a statistic is the mean over them, as in the originals; a counter is
    the first replica's. Nothing is exchanged when it is written.
    """
    # not add_weight, which has no `synchronization` (Keras 3.15)
    with keras.name_scope(layer.name, caller=layer):
        variable = keras.Variable(
            keras.initializers.get(initializer),
            shape=shape,
            dtype=dtype,
            trainable=False,
            autocast=False,
            aggregation=aggregation,
            synchronization="on_read",
            name=name,
        )
    layer._track_variable(variable)
    return variable


def _statistics_dtype(layer: Any) -> str:
    return "float64" if layer.variable_dtype == "float64" else "float32"


class Counters(keras.Operation):
    """A layer's counters in a file, in a place of their own behind the layer's.

    Keras' own layer counts what is in its place, and looks at no other. (It is an operation because
    files have places for attributes of a layer that are layers or operations.)
    """

    def __init__(self, layer: Any) -> None:
        super().__init__(name="counters")
        self._of = SimpleNamespace(layer=layer)  # hidden from who walks through attributes

    def save_own_variables(self, store: Any) -> None:
        if self._of.layer.built:
            for name in COUNTERS:
                store[name] = getattr(self._of.layer, name)

    def load_own_variables(self, store: Any) -> None:
        """Leaves the counters alone where the file has none: it is Keras' own, or an old one."""
        keys = list(store.keys())
        for name in COUNTERS:
            if name in keys:
                getattr(self._of.layer, name).assign(store[name])


def save(layer: Any, store: Any) -> None:
    """Weights by their number; nothing of a layer that was not built."""
    if layer.built:
        for index, variable in enumerate(layer.weights):
            store[str(index)] = variable


def load(layer: Any, store: Any) -> None:
    """Also loads what Keras' own layer saved, and old files of ours, with the counters in them.

    Raises:
        ValueError: the file holds another number of weights.
    """
    keys = list(store.keys())
    given = [key for key in keys if key not in COUNTERS]
    if len(given) != len(layer.weights):
        raise ValueError(
            f"{type(layer).__name__} {layer.name!r}: the file must hold "
            f"{[variable.name for variable in layer.weights]}; got {len(given)} variables. "
            "Build the layer with the options it was saved with."
        )
    for index, variable in enumerate(layer.weights):
        variable.assign(store[str(index)])
    Counters(layer).load_own_variables(store)
