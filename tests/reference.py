"""Batch normalization in plain NumPy float64: what every backend and surface is compared with.

Written from the formulas, one group and one channel at a time, and independent of the package.
Nothing here is fast, and arguments are hardly checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

COUNTERS = ("num_updates", "skipped_updates")
PARAMETERS = (("gamma", 1.0), ("beta", 0.0))


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `batch_norm`; the package documents them."""

    axis: Any = -1
    momentum: float | None = 0.99
    epsilon: float = 1e-3
    renorm: bool = False
    renorm_clipping: dict[str, Any] | None = None
    renorm_momentum: float | None = 0.99
    virtual_batch_size: int | None = None
    ghost_order: str = "strided"
    adjustment: Callable[[tuple[int, ...]], tuple[Any, Any]] | None = None
    mask: Any = None
    batch_weights: Any = None
    unbiased_moving_variance: bool = False
    pooled_moving_variance: bool = False
    statistics: str = "auto"
    update_statistics: bool | str = "auto"
    on_nonfinite: str = "skip"
    zero_debias: bool | str = False


class Result(NamedTuple):
    """What `batch_norm` returns; `dx` and `gradients` are None without `dy`."""

    y: np.ndarray
    state: dict[str, np.ndarray]
    dx: np.ndarray | None
    gradients: dict[str, np.ndarray] | None


class Moments(NamedTuple):
    """Mean and biased variance per column, and the total weight, one number for all columns."""

    mean: np.ndarray
    variance: np.ndarray
    count: float


class Layout:
    """x as rows of positions and columns of channels, and back."""

    def __init__(self, shape, axis):
        given = axis if isinstance(axis, (list, tuple)) else [axis]
        self.shape = tuple(shape)
        self.axes = sorted(int(one) % len(self.shape) for one in given)
        self.free = [i for i in range(len(self.shape)) if i not in self.axes]
        self.channels = math.prod(self.shape[i] for i in self.axes)
        self.positions = math.prod(self.shape[i] for i in self.free)
        kept = [size if i in self.axes else 1 for i, size in enumerate(self.shape)]
        self.vector_shape = tuple(kept) if len(self.axes) > 1 else (self.channels,)

    def rows(self, x):
        """x, or what broadcasts against it, as `[positions, channels]`."""
        full = np.broadcast_to(np.asarray(x, np.float64), self.shape)
        return full.transpose(self.free + self.axes).reshape(self.positions, self.channels)

    def unrows(self, rows):
        """The inverse of `rows`."""
        order = self.free + self.axes
        return rows.reshape([self.shape[i] for i in order]).transpose(np.argsort(order))

    def weights(self, *factors):
        """The product of mask and batch weights, one weight for each position."""
        result = np.ones([self.shape[i] for i in self.free])
        for factor in factors:
            if factor is None:
                continue
            factor = np.asarray(factor, np.float64)
            if factor.ndim == len(self.shape):
                factor = factor.reshape([factor.shape[i] for i in self.free])
            result = result * factor.reshape(factor.shape + (1,) * (result.ndim - factor.ndim))
        return result.reshape(self.positions)

    def groups(self, virtual_batch_size, order="strided"):
        """The positions of each ghost batch; everything is one group without ghost batches."""
        if virtual_batch_size is None:
            return [np.arange(self.positions)]
        if 0 in self.axes:
            raise ValueError("ghost batches need a batch dimension that is not in axis")
        each = np.arange(self.positions).reshape(self.shape[0], -1 if self.positions else 0)
        groups = ghost_groups(len(each), virtual_batch_size, order)
        return [each[samples].ravel() for samples in groups]


def ghost_groups(batch_size: int, virtual_batch_size: int, order: str) -> list[np.ndarray]:
    """The samples of each ghost batch: group j of n has j, j + n, j + 2n, ...

    In chunks: ceil(N / v) groups of as many consecutive samples, the last of fewer.
    """
    if order == "chunks":
        n = max(math.ceil(batch_size / virtual_batch_size), 1)
        size = math.ceil(batch_size / n)
        return [np.arange(j * size, min((j + 1) * size, batch_size)) for j in range(n)]
    if batch_size % virtual_batch_size:
        raise ValueError(f"{virtual_batch_size} does not divide the batch of {batch_size}")
    n = max(batch_size // virtual_batch_size, 1)
    return [np.arange(j, batch_size, n) for j in range(n)]


def moments(x: np.ndarray, weights: np.ndarray | None = None) -> Moments:
    """Moments over the first dimension of x: the mean, then the mean squared distance from it.

    Weight 0 excludes a value, NaN included. Without any weight everything is 0. The first value is
    subtracted before and added after, so that a constant column has exactly the variance 0.
    """
    weights = np.ones(len(x)) if weights is None else weights
    count = float(weights.sum())
    if count == 0:
        return Moments(np.zeros(x.shape[1:]), np.zeros(x.shape[1:]), 0.0)
    x = x[weights != 0]
    w = weights[weights != 0].reshape([-1] + [1] * (x.ndim - 1))
    mean = x[0] + (w * (x - x[0])).sum(0) / count
    variance = (w * (x - mean) ** 2).sum(0) / count
    return Moments(mean, variance, count)


def inverse_stddev(variance, epsilon):
    """1 / sqrt(variance + epsilon), and 0 where that would divide by 0."""
    total = np.asarray(variance + epsilon)
    return np.where(total == 0, 0.0, 1 / np.sqrt(np.where(total == 0, 1.0, total)))


def renorm_reference(o, state):
    """The mean and deviation that renorm pulls to: its own, or the moving ones."""
    if o.renorm_momentum is None:
        return np.ravel(state["moving_mean"]), np.sqrt(
            np.ravel(state["moving_variance"]) + o.epsilon
        )
    return np.ravel(state["renorm_mean"]), np.ravel(state["renorm_stddev"])


def renorm_corrections(x, state, **options) -> list[tuple[np.ndarray, np.ndarray]]:
    """(r, d) of batch renormalization for each group, from the state before the update."""
    o = Options(**options)
    layout = Layout(np.shape(x), o.axis)
    values, weights = layout.rows(x), layout.weights(o.mask, o.batch_weights)
    center, reference = renorm_reference(o, state)
    reference = np.maximum(reference, math.sqrt(o.epsilon))
    bounds = {}
    for name, bound in (o.renorm_clipping or {}).items():
        if bound is not None:
            bound = bound(float(state["num_updates"])) if callable(bound) else bound
            bounds[name] = np.broadcast_to(np.ravel(bound), layout.channels)
    corrections = []
    for group in layout.groups(o.virtual_batch_size, o.ghost_order):
        mean, variance, _count = moments(values[group], weights[group])
        with np.errstate(divide="ignore", invalid="ignore"):
            r = np.sqrt(variance + o.epsilon) / reference
            d = (mean - center) / reference
        r = np.maximum(r, bounds.get("rmin", -np.inf))
        r = np.minimum(r, bounds.get("rmax", np.inf))
        d = np.maximum(d, -bounds.get("dmax", np.inf))
        d = np.minimum(d, bounds.get("dmax", np.inf))
        corrections.append((np.where(reference == 0, 1.0, r), np.where(reference == 0, 0.0, d)))
    return corrections


@np.errstate(all="ignore")
def batch_norm(x, parameters, state, *, training, dy=None, corrections=None, **options) -> Result:
    """The pure function of the package, with its derivatives for the loss sum(y * dy).

    `corrections` replaces what `renorm_corrections` would return: r and d are constants of every
    derivative, so a finite difference must hold them where they were.
    """
    o = Options(**options)
    batch = {"auto": bool(training), "batch": True, "moving": False}[o.statistics]
    update = bool(training) if o.update_statistics == "auto" else o.update_statistics
    layout = Layout(np.shape(x), o.axis)
    values, weights = layout.rows(x), layout.weights(o.mask, o.batch_weights)
    groups = layout.groups(o.virtual_batch_size if batch or update else None, o.ghost_order)
    measured = [moments(values[group], weights[group]) for group in groups]

    gamma, beta = (
        np.broadcast_to(np.ravel(parameters.get(name, default)), layout.channels)
        for name, default in PARAMETERS
    )
    if batch and o.renorm and corrections is None:
        corrections = renorm_corrections(x, state, **options)
    scale, bias = np.ones(values.shape), np.zeros(values.shape)
    if batch and o.adjustment is not None:
        scale, bias = (layout.rows(one) for one in o.adjustment(np.shape(x)))

    y, dx, corrected = (np.zeros(values.shape) for _ in range(3))
    upstream = np.array(layout.rows(0.0 if dy is None else dy))
    trains = np.ones((layout.positions, 1))
    for j, group in enumerate(groups):
        w = weights[group][:, None]
        absent = (w == 0) & ~np.isfinite(values[group])
        upstream[group] = np.where(absent, 0.0, upstream[group])  # no gradient to anything
        live = batch and measured[j].count != 0
        if live:
            mean, variance, count = measured[j]
            r, d = corrections[j] if o.renorm else (1.0, 0.0)
            s, b = scale[group], bias[group]
        else:
            mean, variance = np.ravel(state["moving_mean"]), np.ravel(state["moving_variance"])
            r, d, s, b = 1.0, 0.0, 1.0, 0.0
            trains[group] = not batch  # a batch without values trains no parameter
        k = inverse_stddev(variance, o.epsilon)
        normalized = np.where(absent, 0.0, values[group] - mean) * k
        corrected[group] = (normalized * r + d) * s + b
        y[group] = corrected[group] * gamma + beta
        q = upstream[group] * gamma * s * r
        gradient = k * q
        if live:
            gradient -= k * w / count * (q.sum(0) + normalized * (q * normalized).sum(0))
        dx[group] = np.where(absent, 0.0, gradient)

    new = {name: np.array(value) for name, value in state.items()}
    if update:
        kept = [moments(values, weights)] if o.pooled_moving_variance else measured
        # chunks are remembered one after the other, as if each were a batch
        for each in [[one] for one in kept] if o.ghost_order == "chunks" else [kept]:
            new = _updated(o, new, _remembered(each, o.unbiased_moving_variance))
    if dy is None:
        return Result(layout.unrows(y), new, None, None)
    sums = {"gamma": (trains * upstream * corrected).sum(0), "beta": (trains * upstream).sum(0)}
    gradients = {name: sums[name].reshape(np.shape(parameters[name])) for name in parameters}
    return Result(layout.unrows(y), new, layout.unrows(dx), gradients)


def _remembered(measured, unbiased) -> tuple[Any, Any, Any, float]:
    """Mean, variance, variance as it is kept, and count: the average of groups by their counts."""
    total = sum(one.count for one in measured)
    mean = variance = kept = 0.0
    for one in measured if total else []:
        share = one.count / total
        factor = one.count / (one.count - 1) if unbiased and one.count > 1 else 1.0
        mean = mean + share * one.mean
        variance = variance + share * one.variance
        kept = kept + share * one.variance * factor
    return mean, variance, kept, total


def _updated(o, state, remembered):
    """The next state: channel by channel, each with all its statistics or none of them."""
    means, variances, kept_variances, count = remembered
    new = {
        name: np.array(value, None if name in COUNTERS else np.float64, order="C")
        for name, value in state.items()
    }
    flat = {name: value.reshape(-1) for name, value in new.items()}
    for c in range(flat["moving_mean"].size):
        usable = count != 0
        if usable:
            seen = float(means[c]), float(variances[c]), float(kept_variances[c])
            finite = all(math.isfinite(one) for one in seen)
            if o.on_nonfinite == "raise" and not finite:
                raise FloatingPointError(f"channel {c}: mean and variances are {seen}")
            usable = o.on_nonfinite == "propagate" or (finite and seen[1] >= 0)
        if usable:
            old = {name: float(flat[name][c]) for name in flat if name not in COUNTERS}
            step = float(state.get("num_updates", 0))
            for name, value in _next_channel(o, step, old, *seen).items():
                flat[name][c] = value
        elif "skipped_updates" in flat:
            flat["skipped_updates"][c] += 1
    if "num_updates" in flat:
        flat["num_updates"] += 1
    return new


def _next_channel(o, step, old, mean, variance, kept):
    """The next statistics of one channel; `variance` is biased, `kept` unbiased if asked for."""
    m = step / (step + 1) if o.momentum is None else float(o.momentum)
    rm = o.renorm_momentum
    new = {}
    if o.zero_debias:
        new["local_step"] = old["local_step"] + 1

    def average(name, value, before, debias):
        if not debias:
            return m * before + (1 - m) * value
        new[f"biased_{name}"] = m * old[f"biased_{name}"] + (1 - m) * value
        seen = 1 - m ** new["local_step"]
        return new[f"biased_{name}"] / seen if seen else before

    new["moving_mean"] = average("mean", mean, old["moving_mean"], o.zero_debias)
    both = o.zero_debias == "both"
    if not o.renorm or rm is None:
        new["moving_variance"] = average("variance", kept, old["moving_variance"], both)
        return new
    before = old["moving_stddev"]
    agreeing = (before**2, max(before**2 - o.epsilon, 0.0))
    if not any(abs(old["moving_variance"] - one) <= 1e-5 * before**2 for one in agreeing):
        before = np.sqrt(old["moving_variance"] + o.epsilon)  # somebody assigned the variance
    stddev, kept_stddev = np.sqrt(variance + o.epsilon), np.sqrt(kept + o.epsilon)
    new["renorm_mean"] = rm * old["renorm_mean"] + (1 - rm) * mean
    new["renorm_stddev"] = rm * old["renorm_stddev"] + (1 - rm) * stddev
    new["moving_stddev"] = average("stddev", kept_stddev, before, both)
    new["moving_variance"] = np.maximum(new["moving_stddev"] ** 2 - o.epsilon, 0.0)
    return new


def hessian_vector_product(x, vector, cotangent, parameters, state, *, step=1e-5, **options):
    """The second derivative by x of a loss, times `vector`, by central differences of dx.

    `cotangent` is the loss's derivative by y: an array g for the loss sum(y * g), or a function
    of y, such as `lambda y: g + 3 * y**2` for sum(y * g + y**3). r and d of renorm stay constant.
    """
    if options.get("renorm"):
        fixed = {name: value for name, value in options.items() if name != "training"}
        options["corrections"] = renorm_corrections(x, state, **fixed)

    def slope(at):
        y = batch_norm(at, parameters, state, **options).y
        dy = cotangent(y) if callable(cotangent) else cotangent
        return batch_norm(at, parameters, state, dy=dy, **options).dx

    x, vector = np.asarray(x, np.float64), np.asarray(vector, np.float64)
    return (slope(x + step * vector) - slope(x - step * vector)) / (2 * step)
