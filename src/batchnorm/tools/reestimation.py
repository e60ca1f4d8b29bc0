"""Moving statistics from data, for the weights as they are now: `reestimate`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batchnorm._moments import Moments
from batchnorm.backends import backend_of
from batchnorm.tools.data import Batches, Caller, check_again
from batchnorm.tools.forward import Call, in_one_order
from batchnorm.tools.keeping import program
from batchnorm.tools.norm import Norm
from batchnorm.tools.norms import find
from batchnorm.tools.pooling import METHODS, Pool, across_replicas, of_all_replicas, pool
from batchnorm.tools.progress import shown
from batchnorm.tools.result import Result, new_table

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class LayerChange:
    """What became of one layer.

    Attributes:
        values: how many values (or what weight) each channel was estimated from.
        mean_change: root mean square over channels of the mean's change, in standard deviations.
        log_variance_change: the largest |log(new variance / old)| of a channel, with epsilon.
        skipped: batches that a channel left out because they were not finite; the worst channel.
        kept: channels that saw no usable value and keep what they had.
    """

    name: str
    values: float
    mean_change: float
    log_variance_change: float
    skipped: int
    kept: int

    def __str__(self) -> str:
        return (
            f"{self.name}: the mean moved by {self.mean_change:.3g} standard deviations, the "
            f"logarithm of the variance by {self.log_variance_change:.3g} at most; from "
            f"{self.values:g} values per channel."
        )


@dataclass(frozen=True)
class Reestimation(Result):
    """What `reestimate` did: a row for each layer, in the order in which the model calls them."""

    method: str
    batches: int
    layers: tuple[LayerChange, ...]
    never_called: tuple[str, ...]

    def sentences(self) -> list[str]:
        return [
            *(str(row) for row in self.layers),
            *(f"{name}: never called; it keeps what it had." for name in self.never_called),
        ]

    def table(self) -> Table:
        result = new_table(f"Re-estimated ({self.method}) from {self.batches} batches")
        result.add_column("layer", no_wrap=True)
        for name in ("values", "mean moved, std", "log variance moved", "skipped", "kept"):
            result.add_column(name, justify="right")
        for row in self.layers:
            numbers = (
                f"{row.values:g}",
                f"{row.mean_change:.3g}",
                f"{row.log_variance_change:.3g}",
            )
            result.add_row(row.name, *numbers, str(row.skipped), str(row.kept))
        return result


def reestimate(
    model: Any,
    data: Any,
    steps: int | None = None,
    *,
    method: str = "exact",
    batch_size: int = 32,
    layer_by_layer: bool = False,
    pattern: str | None = None,
    call: Caller | None = None,
) -> Reestimation:
    """Replaces the moving statistics by those of the data; returns what moved.

    The model runs in inference. While it does, each layer normalizes with what it has pooled so
    far, the batch at hand included, so that later layers see what they will see in evaluation.

    Methods:
        exact: mean and variance of all values that reached the layer, merged over batches in
            float64. For a layer with no other one before it, any split into batches gives the same;
            for all layers it does with `layer_by_layer`.
        average: the mean over batches of their means and variances.
        ema: the same with weights that fall by the layer's momentum, the newest batch the heaviest.
    The variance is biased (divided by N) or not as the layer itself remembers it: Keras' layer
    biased, PyTorch's and `unbiased_moving_variance=True` unbiased.

    Args:
        model: a built Keras model on any backend, or a PyTorch module.
        data: arrays, or batches; see `batchnorm.tools.data.Batches`. Masks and `batch_weights`
            that reach a layer count as in its own call.
        steps: batches to read at most.
        batch_size: rows of a batch, where data is not in batches yet.
        layer_by_layer: settle the layers one after the other, each with the earlier ones final;
            reads the data once for each layer.
        pattern: only layers whose names match, as file names do.
        call: `call(model, batch)` calls the model, where it takes more than a batch is by itself.

    Edge cases: empty batches are passed over. Batches in which a channel is not finite are left
    out for that channel and reported. A channel that saw nothing keeps what it had. In several
    PyTorch processes (torch.distributed) all get the statistics of all data. Counters of updates
    stay as they are. If anything is raised, an interruption too, the model is as it was.

    Raises:
        TypeError, ValueError: an argument is not what it must be.

    References: Ioffe & Szegedy 2015, algorithm 2; Wu & Johnson 2021, "Rethinking 'Batch' in
    BatchNorm", section 3; Izmailov et al. 2018 (averaged weights), section 3.2.
    """
    if method not in METHODS:
        raise ValueError(
            f"reestimate: method must be one of {', '.join(map(repr, METHODS))}; got {method!r}."
        )
    norms = find(model, "reestimate", pattern)
    batches = Batches(model, data, batch_size, steps, "reestimate", call)
    if layer_by_layer:
        check_again(data, "reestimate", " with layer_by_layer=True")
    return _estimate(model, norms, batches, method, layer_by_layer, "reestimate")


def estimate(model: Any, norms: list[Norm], batches: Batches, owner: str) -> Reestimation:
    """`reestimate(method="exact")` of these layers alone, for a tool of that name."""
    return _estimate(model, norms, batches, "exact", False, owner)


def _estimate(
    model: Any,
    norms: list[Norm],
    batches: Batches,
    method: str,
    layer_by_layer: bool,
    owner: str,
) -> Reestimation:
    estimation = _Estimation(model, norms, method, batches.call)
    read = estimation.one_by_one(batches) if layer_by_layer else estimation.together(batches)
    if not any(of_all_replicas(read)):
        raise ValueError(f"{owner}: data must hold at least one row; got none.")
    return estimation.settle(read)


@contextlib.contextmanager
def reestimated(model: Any, data: Any, steps: int | None = None, **options: Any) -> Iterator[Any]:
    """`with reestimated(model, data):` the model has re-estimated statistics inside, its own after.

    Takes the arguments of `reestimate`; gives what that returned.

    Raises:
        TypeError, ValueError: an argument is not what it must be.
    """
    norms = find(model, "reestimate", options.get("pattern"))
    with kept(norms):
        yield reestimate(model, data, steps, **options)


@contextlib.contextmanager
def kept(norms: Sequence[Norm]) -> Iterator[None]:
    """Whatever happens inside, the layers remember afterwards what they did before."""
    states = [norm.memory() for norm in norms]
    try:
        yield
    finally:
        for norm, state in zip(norms, states, strict=True):
            norm.set_memory(state)


@contextlib.contextmanager
def kept_if_raised(norms: Sequence[Norm]) -> Iterator[None]:
    """If anything is raised inside, the layers remember what they did before."""
    states = [norm.memory() for norm in norms]
    try:
        yield
    except BaseException:
        for norm, state in zip(norms, states, strict=True):
            norm.set_memory(state)
        raise


class _Estimation:
    """The pools of all layers, and the passes that fill them."""

    def __init__(self, model: Any, norms: list[Norm], method: str, call: Caller | None) -> None:
        self._model, self._norms, self._method = model, norms, method
        visit = functools.partial(_visit, method)
        self._program = program(model, norms, f"reestimate {method}", [visit], call)
        self._pools = [self._empty_pool(norm) for norm in norms]

    def together(self, batches: Batches) -> int:
        """Every layer in one pass over the data; returns how many batches there were."""
        read = 0
        for batch in shown(batches, "re-estimating", batches.total):
            every = range(len(self._norms))
            self._read(batch, every, every)
            read += 1
        self._pools = across_replicas(self._pools)
        return read

    def one_by_one(self, batches: Batches) -> int:
        """Each layer in a pass of its own, once those before it are final."""
        read = self._look(batches)
        settled: list[int] = []
        order = self._order()
        while todo := [one for one in order if one not in settled]:
            index = todo[0]
            words = f"re-estimating {self._norms[index].name}"
            read = 0
            for batch in shown(batches, words, batches.total):
                self._read(batch, [index], [*settled, index])
                read += 1
            order = self._order()
            if next(one for one in order if one not in settled) == index:
                (self._pools[index],) = across_replicas([self._pools[index]])
                settled.append(index)
            else:  # some batch has shown another layer before it: that one first
                self._pools[index] = self._empty_pool(self._norms[index])
        return read

    def settle(self, read: int) -> Reestimation:
        """Gives the layers their new statistics; all of them, or none if anything is raised."""
        called = [i for i in self._order() if self._pools[i].calls]
        with kept_if_raised(self._norms):
            rows = tuple(self._settle(self._norms[i], self._pools[i]) for i in called)
        missed = [norm.name for i, norm in enumerate(self._norms) if i not in called]
        return Reestimation(self._method, read, rows, tuple(missed))

    def _settle(self, norm: Norm, pooled: Pool) -> LayerChange:
        old_mean, old_variance = norm.host_statistics()
        mean, variance = pooled.final()
        some = pooled.count > 0
        mean, variance = np.where(some, mean, old_mean), np.where(some, variance, old_variance)
        norm.set_host_statistics(mean, variance)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            moved = (mean - old_mean) / np.sqrt(variance + norm.epsilon)
            ratio = np.log((variance + norm.epsilon) / (old_variance + norm.epsilon))
            mean_change = float(np.sqrt(np.mean(moved**2))) if len(moved) else 0.0
        change = float(np.max(np.abs(ratio), initial=0.0))
        skipped = int(pooled.skipped.max(initial=0))
        return LayerChange(
            norm.name, pooled.values, mean_change, change, skipped, int((~some).sum())
        )

    def _look(self, batches: Batches) -> int:
        """Learns from one batch in which order the model calls its layers; 0 if there is none."""
        for batch in batches:
            self._program(batch, self._given([], []))
            return 1
        return 0

    def _order(self) -> list[int]:
        """The layers in the order in which the model calls them, the same in every process."""
        return functools.reduce(in_one_order, of_all_replicas(self._program.order), [])

    def _empty_pool(self, norm: Norm) -> Pool:
        return Pool(len(norm.host_statistics()[0]), self._method, norm.momentum, norm.unbiased)

    def _read(self, batch: Any, measured: Sequence[int], placed: Sequence[int]) -> None:
        (results,) = self._program(batch, self._given(measured, placed))
        for index in measured:
            for moments in results.get(str(index), []):
                self._pools[index].add(Moments(*moments))

    def _given(self, measured: Sequence[int], placed: Sequence[int]) -> dict[str, Any]:
        """For each layer: what it has pooled (nothing: it keeps its own), and whether it adds."""
        given = {}
        for index, one in enumerate(self._pools):
            moments = one.given()
            if index not in placed:
                moments = moments._replace(count=np.zeros_like(moments.count))
            given[str(index)] = (moments, np.float32(index in measured))
        return given


def _visit(method: str, call: Call) -> tuple[Any, Any]:
    moments = call.moments()
    before, adds = call.given
    return call.proceed(*running(call.norm, moments, before, adds, method)), tuple(moments)


def running(norm: Norm, new: Moments, before: Moments, adds: Any, method: str) -> tuple[Any, Any]:
    """Mean and variance of what was pooled and this batch; where that is nothing, the layer's."""
    ops = backend_of(new.mean)
    dtype = ops.dtype(new.mean)
    own_mean, own_variance = norm.device_statistics(dtype)
    old = Moments(*(ops.cast(part, dtype) for part in before))
    # for each channel: one may have left out batches that the others have
    count = ops.broadcast_to(new.count * ops.cast(adds, dtype), ops.shape(new.mean))
    pooled = pool(ops, old, new._replace(count=count), method, norm.momentum)
    mean, variance = pooled.mean + pooled.remainder, pooled.variance
    usable = (pooled.count > 0) & ops.isfinite(mean) & ops.isfinite(variance)
    return ops.where(usable, mean, own_mean), ops.where(usable, variance, own_variance)
