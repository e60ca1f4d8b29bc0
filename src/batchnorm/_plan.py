"""What is decided before a number is seen: options, shape, type and static flags make a `Plan`.

`plan` reads them once; a call that meets the same again looks its plan up and runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from batchnorm import _axes
from batchnorm._options import Options
from batchnorm._statistics import state_names
from batchnorm._weights import printable
from batchnorm.backends.composite import statistics_dtype

Tensor = Any
KEPT = 64  # plans of one `Options`: shapes of a network's layers that share it


class Decision(NamedTuple):
    """What normalizes (the batch, else the moving statistics), and whether the state changes."""

    batch: bool
    update: bool


def decide(statistics: str, update_statistics: bool | str, training: bool) -> Decision:
    """The one rule of what normalizes and what is remembered."""
    batch = training if statistics == "auto" else statistics == "batch"
    update = training if update_statistics == "auto" else update_statistics is True
    return Decision(batch, update)


@dataclass(frozen=True, eq=False)
class Plan:
    """How a call is computed. There is no tensor in it.

    Attributes:
        options: what the user asked for, checked.
        batch: the batch normalizes, else the moving statistics.
        update: the state changes.
        weighted: values have weights, or are masked.
        way: "affine" (inference: one map), "at once" (moments and standardization in one kernel),
            or "apart" (moments, correct, standardize).
        steps: who does the big steps: the backend's kernels on x's device, or array operations.
        kernels: whether these are native kernels.
        reason: why not the kernels, in a sentence; None where they do.
        traced: this becomes a program that may run elsewhere, so inference is the framework's own
            operations, whatever `kernels` says.
        dtype: of moments, parameters and statistics.
        shape: x's; None in it is a size that only the run will know.
        axes: those that keep their own statistics.
        view: how x is laid out for the statistics; None where a size is open.
        whole: how x is laid out where the moving statistics normalize: as one group.
        filled: every group is known to have values.
        replicas: over whom statistics are taken; None for this call alone.
        vectors: the shape of gamma, beta and statistics.
        needed: the names of statistics that the state must hold.
        plain: nothing is asked for but a batch normalization, and the backend has a way to do it
            in one go.
        ready: what a backend has prepared for calls of this plan.
    """

    options: Options
    batch: bool
    update: bool
    weighted: bool
    way: str
    steps: Any
    kernels: bool
    reason: str | None
    traced: bool
    dtype: str
    shape: tuple[int | None, ...]
    axes: tuple[int, ...]
    view: _axes.View | None
    whole: _axes.View | None
    filled: bool
    replicas: Any
    vectors: tuple[Any, ...]
    needed: tuple[str, ...]
    plain: bool
    ready: dict[str, Any] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether every group is known to have the same number of values, not 0."""
        return self.filled and self.replicas is None

    @property
    def several(self) -> bool:
        """Whether statistics are merged over more than one replica."""
        return self.replicas is not None and self.replicas.number > 1

    @property
    def adds(self) -> bool:
        """Whether the kernels that run add a residual in their own pass."""
        return (
            self.kernels
            and self.steps.adds
            and (self.batch or not self.traced)
            and not self.several
            and self.options.adjustment is None
        )

    def __repr__(self) -> str:
        shown = ("way", "batch", "update", "kernels", "reason", "shape", "axes", "dtype")
        given = [f"{name}={getattr(self, name)!r}" for name in shown]
        changed = [
            f"{one.name}={getattr(self.options, one.name)!r}"
            for one in fields(self.options)
            if one.compare and getattr(self.options, one.name) != one.default
        ]
        return f"Plan({', '.join(given)}, options=({', '.join(changed)}))"


def plan(
    ops: Any,
    options: Options,
    x: Tensor,
    training: bool,
    weighted: bool,
    traced: bool | None = None,
) -> Plan:
    """The plan of a call: the one that was made for the same before, where sizes are known.

    Args:
        traced: whether x is traced, for callers who know it.

    Raises:
        TypeError: x has a type that is not normalized.
        ValueError: an axis is not one of x's, a size on it is unknown, ghost batches do not divide
            the batch, or `fused=True` cannot be met.
    """
    shape = _axes.shape_of(ops, x, options.owner, "x")
    batch, update = decide(options.statistics, options.update_statistics, training)
    kernels = "fused is False." if options.fused is False else ops.kernels_for(x)
    replicas = None
    if options.synchronized is not False and (batch or update):
        replicas = ops.find_replicas(options.synchronized, options.owner)
    if traced is None:
        traced = ops.traced(x)
    known = (ops.dtype(x), batch, update, weighted, kernels, traced, replicas)
    if traced:  # once: nothing to gain, and compilers stumble over what is kept
        return _made(ops, options, shape, *known)
    kept = options.plans
    found: Plan | None = kept.get((ops, shape, known))
    if found is None:
        if len(kept) >= KEPT:
            kept.clear()
        found = kept[ops, shape, known] = _made(ops, options, shape, *known)
    return found


def _made(
    ops: Any,
    options: Options,
    shape: tuple[Any, ...],
    dtype: str,
    batch: bool,
    update: bool,
    weighted: bool,
    kernels: Any,
    traced: bool,
    replicas: Any,
) -> Plan:
    reason = kernels if isinstance(kernels, str) else None
    steps = ops.COMPOSITE if reason else kernels
    if options.fused and reason:
        raise ValueError(f"{options.owner}: fused must be None or False here; got True. {reason}")
    axes = _checked_axes(ops, options, shape)
    view = whole = None
    if not any(map(ops.is_tensor, shape)):
        view = view_of(ops, options, shape, axes, grouped=batch or update)
        whole = view if view.groups is None else _axes.view(shape, axes)
    at_once = not weighted and not options.renorm and (replicas is None or replicas.number == 1)
    plain = (
        steps.whole is not None
        and not (traced or weighted or options.renorm or options.zero_debias or options.adjustment)
        and reason is None
        and replicas is None
        and view is not None
        and view.groups is None
        and view.permutation is None
        and (batch or not update)
        and options.on_nonfinite != "raise"
        and options.momenta_are_numbers
    )
    sized = view is not None and view.values_per_group > 0 and view.groups != 0
    return Plan(
        options=options,
        batch=batch,
        update=update,
        weighted=weighted,
        way="affine" if not batch else "at once" if at_once else "apart",
        steps=steps,
        kernels=reason is None,
        reason=reason,
        traced=traced,
        dtype=statistics_type(dtype, options.owner),
        shape=printable(ops, shape),
        axes=axes,
        view=view,
        whole=whole,
        filled=sized and not weighted,
        replicas=replicas,
        vectors=_axes.parameter_shape(shape, axes),
        needed=_needed(options, batch, update),
        plain=plain,
    )


def _needed(options: Options, batch: bool, update: bool) -> tuple[str, ...]:
    if batch and not update and not options.renorm:
        return ()
    return (*state_names(options), *(("num_updates",) if options.momentum is None else ()))


def statistics_type(dtype: str, owner: str) -> str:
    """The type of moments and statistics for an input's.

    Raises:
        TypeError: it is none that is normalized.
    """
    if dtype not in ("float16", "bfloat16", "float32", "float64"):
        raise TypeError(
            f"{owner}: x must be float16, bfloat16, float32 or float64; got {dtype}. Cast it first."
        )
    return statistics_dtype(dtype)


def _checked_axes(ops: Any, options: Options, shape: tuple[Any, ...]) -> tuple[int, ...]:
    axes = _axes.resolve(options.axis, len(shape), options.owner)
    options.check_axes(axes)
    for axis in axes:
        if ops.is_tensor(shape[axis]):
            raise ValueError(
                f"{options.owner}: the input must have a known size on axis {axis}; got an "
                "unknown one. Set its static shape."
            )
    return axes


def view_of(
    ops: Any, options: Options, shape: tuple[Any, ...], axes: tuple[int, ...], grouped: bool
) -> _axes.View:
    """How x is laid out: in ghost batches where statistics are taken, else as one group.

    Raises:
        ValueError: ghost batches do not divide the batch; at run time, where its size is open.
    """
    size = options.virtual_batch_size
    if size is None or not grouped:
        return _axes.view(shape, axes)
    samples = shape[0]
    if options.ghost_order == "chunks":
        return _axes.view(shape, axes, *chunks(ops, samples, size), consecutive=True)
    message = indivisible(ops, options, shape)
    if ops.is_tensor(samples):
        samples = ops.check(ops.equal(samples % size, 0), ValueError, message, samples)
    elif samples % size:
        raise ValueError(message)
    return _axes.view(shape, axes, size, samples // size)


def chunks(ops: Any, samples: Any, size: int) -> tuple[Any, Any]:
    """Samples in each chunk but the last, and how many chunks; as even as torch.chunk's."""
    groups = (samples + size - 1) // size
    groups = ops.maximum(groups, 1) if ops.is_tensor(samples) else max(groups, 1)
    return (samples + groups - 1) // groups, groups


def indivisible(ops: Any, options: Options, shape: tuple[Any, ...]) -> str:
    """What is said of a batch that ghost batches do not divide."""
    samples = "another size" if ops.is_tensor(shape[0]) else shape[0]
    return (
        f"{options.owner}: virtual_batch_size must divide the batch in training; got "
        f"{options.virtual_batch_size} for a batch of {samples}. Drop or pad the last batch."
    )
