"""Everything about a batch normalization that does not change from call to call, checked once."""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CLIPPING_KEYS = ("rmax", "rmin", "dmax")


@dataclass(frozen=True)
class Options:
    """The static side of `batchnorm.batch_norm`, which documents each of them.

    `owner` names who speaks in error messages: the function, or a layer's class and name.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range, or two of them exclude each other.
    """

    axis: int | Sequence[int] = -1
    momentum: Any = 0.99
    epsilon: float = 1e-3
    renorm: bool = False
    renorm_clipping: Mapping[str, Any] | None = None
    renorm_momentum: Any = 0.99
    fused: bool | None = None
    virtual_batch_size: int | None = None
    ghost_order: str = "strided"
    adjustment: Callable[[Any], tuple[Any, Any]] | None = None
    synchronized: Any = False
    unbiased_moving_variance: bool = False
    pooled_moving_variance: bool = False
    statistics: str = "auto"
    update_statistics: bool | str = "auto"
    on_nonfinite: str = "skip"
    zero_debias: bool | str = False
    activation: str | None = None
    owner: str = field(default="batch_norm", compare=False)
    # the last plans, by what decided them: see `batchnorm._plan`
    plans: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False, init=False)

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # the dataclass is frozen for everybody else
        set_(self, "axis", self._checked_axis())
        for name in ("momentum", "renorm_momentum"):
            set_(self, name, unit_interval(self.owner, name, getattr(self, name)))
        set_(self, "epsilon", self._checked_epsilon())
        self._check_clipping()
        for name in ("renorm", "unbiased_moving_variance", "pooled_moving_variance"):
            self._check_choice(name, getattr(self, name), (True, False))
        self._check_choice("fused", self.fused, (None, True, False))
        self._check_choice("statistics", self.statistics, ("auto", "batch", "moving"))
        self._check_choice("update_statistics", self.update_statistics, ("auto", True, False))
        self._check_choice("on_nonfinite", self.on_nonfinite, ("skip", "propagate", "raise"))
        self._check_choice("activation", self.activation, (None, "relu"))
        self._check_choice("ghost_order", self.ghost_order, ("strided", "chunks"))
        self._check_choice("zero_debias", self.zero_debias, (False, True, "mean", "both"))
        set_(self, "zero_debias", "mean" if self.zero_debias is True else self.zero_debias)
        if self.momentum is None and self.zero_debias:
            raise ValueError(
                f"{self.owner}: zero_debias must be False with momentum=None; got "
                f"{self.zero_debias!r}. A cumulative average holds no initial value."
            )
        self._check_synchronized()
        set_(self, "virtual_batch_size", self._checked_virtual_batch_size())
        if self.adjustment is not None and not callable(self.adjustment):
            raise TypeError(
                f"{self.owner}: adjustment must be a function of the input's shape that returns "
                f"(scale, bias); got {self.adjustment!r}."
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Options:
        return self  # nothing in it changes but the plans, which copies may share

    def _checked_axis(self) -> int | tuple[int, ...]:
        axis: Any = self.axis
        if type(axis) is int:
            return axis
        many = isinstance(axis, Sequence) and not isinstance(axis, str)
        given = list(axis) if many else [axis]
        axes = []
        for one in given:
            try:
                if isinstance(one, bool):
                    raise TypeError
                axes.append(operator.index(one))
            except TypeError:
                raise TypeError(
                    f"{self.owner}: axis must be an integer or a list of integers; got {axis!r}."
                ) from None
        if not axes:
            raise ValueError(f"{self.owner}: axis must name at least one dimension; got {axis!r}.")
        return tuple(axes) if many else axes[0]

    # Numbers of NumPy and others become Python's: those do not widen a float32 tensor.

    def _checked_epsilon(self) -> float:
        epsilon: Any = self.epsilon
        if isinstance(epsilon, bool) or not isinstance(epsilon, (float, numbers.Real)):
            raise TypeError(f"{self.owner}: epsilon must be a number >= 0; got {epsilon!r}.")
        if not 0 <= float(epsilon) < math.inf:
            raise ValueError(f"{self.owner}: epsilon must be a number >= 0; got {epsilon}.")
        return float(epsilon)

    def _check_choice(self, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
        for one in allowed:  # most are singletons
            if value is one:
                return
        # by type too: 1 == True, but it is not what the user was asked for
        if not any(type(value) is type(one) and value == one for one in allowed):
            choices = ", ".join(repr(one) for one in allowed)
            raise ValueError(f"{self.owner}: {name} must be one of {choices}; got {value!r}.")

    def _check_synchronized(self) -> None:
        # whether a group or an axis of that name exists is for the backend to say, at the call
        value: Any = self.synchronized
        number = isinstance(value, numbers.Number) and not isinstance(value, bool)
        if value is None or number:
            raise TypeError(
                f"{self.owner}: synchronized must be True, False, a process group, or the name of "
                f"one or of a mapped axis; got {value!r}."
            )

    def _check_clipping(self) -> None:
        clipping = self.renorm_clipping
        if clipping is None:
            return
        if not isinstance(clipping, Mapping):
            raise TypeError(
                f"{self.owner}: renorm_clipping must be a dictionary with the keys rmax, rmin, "
                f"dmax; got {clipping!r}."
            )
        if unknown := sorted(set(clipping) - set(CLIPPING_KEYS), key=str):
            raise ValueError(
                f"{self.owner}: renorm_clipping must have no other keys than rmax, rmin, dmax; "
                f"got {unknown}."
            )
        if strings := {k: v for k, v in clipping.items() if isinstance(v, (str, bool))}:
            raise TypeError(
                f"{self.owner}: renorm_clipping must hold numbers, tensors or functions of the "
                f"step; got {strings}."
            )
        static = {k: v for k, v in clipping.items() if isinstance(v, numbers.Real)}
        if any(math.isnan(value) for value in static.values()):
            raise ValueError(f"{self.owner}: renorm_clipping must hold no NaN; got {clipping!r}.")
        if "rmin" in static and "rmax" in static and static["rmin"] > static["rmax"]:
            raise ValueError(
                f"{self.owner}: renorm_clipping must have rmin <= rmax; got rmin={static['rmin']}, "
                f"rmax={static['rmax']}."
            )
        if static.get("dmax", 0) < 0:
            raise ValueError(
                f"{self.owner}: renorm_clipping must have dmax >= 0; got dmax={static['dmax']}."
            )

    def _checked_virtual_batch_size(self) -> int | None:
        size = self.virtual_batch_size
        if size is None:
            return None
        try:
            if isinstance(size, bool):
                raise TypeError
            size = operator.index(size)
        except TypeError:
            raise TypeError(
                f"{self.owner}: virtual_batch_size must be a positive integer or None; "
                f"got {size!r}."
            ) from None
        if size < 1:
            raise ValueError(
                f"{self.owner}: virtual_batch_size must be a positive integer or None; got {size}."
            )
        return size

    @property
    def without_activation(self) -> Options:
        """The same without the activation, which comes behind a residual."""
        if self.activation is None:
            return self
        given = {name: getattr(self, name) for name in _GIVEN}
        return Options(**given | {"activation": None})

    @property
    def momenta_are_numbers(self) -> bool:
        """Whether no tensor decides how much of the old state is kept."""
        real = (float, numbers.Real)  # float first: asking an abstract class takes longer
        own = self.renorm_momentum is None or isinstance(self.renorm_momentum, real)
        return own and isinstance(self.momentum, real)

    @property
    def renorm_remembers(self) -> bool:
        """Whether renorm keeps running statistics of its own, beside the moving ones."""
        return self.renorm and self.renorm_momentum is not None

    def check_axes(self, axes: tuple[int, ...]) -> None:
        """Refuses what only the input's rank can tell, once `axes` are resolved."""
        if self.virtual_batch_size is not None and 0 in axes:
            raise ValueError(
                f"{self.owner}: axis must not contain the batch dimension 0 with "
                f"virtual_batch_size={self.virtual_batch_size}; got {self.axis!r}. A ghost batch "
                "is a part of the batch."
            )


def unit_interval(owner: str, name: str, value: Any) -> Any:
    """A share of the old value, as Python's number where it is one; tensors and None as they are.

    Raises:
        TypeError, ValueError: it is no number in [0, 1], in the name that the user knows it by.
    """
    if isinstance(value, (str, bool)):
        raise TypeError(f"{owner}: {name} must be a number in [0, 1] or None; got {value!r}.")
    if value is None or not isinstance(value, (float, numbers.Real)):
        return value
    if not 0 <= float(value) <= 1:
        raise ValueError(
            f"{owner}: {name} must be in [0, 1]: the share of the old value that a step keeps; "
            f"got {value}."
        )
    return float(value)


_GIVEN = [one.name for one in dataclasses.fields(Options) if one.init]
