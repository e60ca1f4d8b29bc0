"""Which layer makes evaluation differ from training, and why: `inspect`."""

from __future__ import annotations

from typing import Any

import numpy as np

from batchnorm._moments import Moments
from batchnorm.backends import backend_of
from batchnorm.tools.data import Batches, Caller, rows
from batchnorm.tools.diagnosis import diagnose
from batchnorm.tools.forward import Call
from batchnorm.tools.keeping import program
from batchnorm.tools.norm import Array, Norm
from batchnorm.tools.norms import copied, find
from batchnorm.tools.pooling import Pool
from batchnorm.tools.profile import Profile
from batchnorm.tools.progress import shown
from batchnorm.tools.report import Report
from batchnorm.tools.rows import row_of

SAMPLES, POSITIONS = 8, 16  # of a batch, that drift and histograms are taken from
DENSE_SAMPLES = 64  # where a sample has one position only
KEPT = 16  # batches whose samples are kept for histograms


def inspect(
    model: Any,
    data: Any,
    steps: int | None = None,
    *,
    batch_size: int = 32,
    call: Caller | None = None,
) -> Report:
    """Runs data through the model as in training and as in evaluation; says what is wrong where.

    The model is not changed. "As in training" means that each batch-normalization layer normalizes
    with what it would in training; every other layer (dropout) is in inference both times. Each
    layer is judged by the inputs that it has in training, so that a layer behind a sick one is not
    blamed for it. Give the data in batches of the size that the model was trained with.

    Returns:
        A report: `diagnoses`, the gravest first and in the order of the model, `rows` with the
        numbers of each layer, `to_dict()`, `to_json()`, `table()`, and `save(path)`, which writes
        an HTML page with plots.

    Args:
        model: a built Keras model on any backend, or a PyTorch module.
        data: arrays, or batches; see `batchnorm.tools.data.Batches`.
        steps: batches to read at most.
        batch_size: rows of a batch, where data is not in batches yet.
        call: `call(model, batch)` calls the model, where it takes more than a batch is by itself.

    Raises:
        TypeError, ValueError: an argument is not what it must be.
    """
    norms = find(model, "inspect")
    batches = Batches(model, data, batch_size, steps, "inspect", call)
    inspection = _Inspection(model, norms, call)
    for batch in shown(batches, "inspecting", batches.total):
        inspection.read(batch)
    if not inspection.batches:
        raise ValueError("inspect: data must hold at least one row; got none.")
    return inspection.report()


class _Inspection:
    def __init__(self, model: Any, norms: list[Norm], call: Caller | None) -> None:
        self._norms = norms
        visits = [_as_in_training, _as_in_evaluation]
        self._program = program(model, norms, "inspect", visits, call)
        self._seen = [_Seen(norm) for norm in norms]
        self.batches = 0

    def read(self, batch: Any) -> None:
        """Both passes over a batch."""
        training, evaluation = self._program(batch, {})
        for index, calls in training.items():
            for (moments, x, y), (other,) in zip(calls, evaluation.get(index, []), strict=False):
                self._seen[int(index)].add(Moments(*moments), x, y, other, rows(batch), len(calls))
        self.batches += 1

    def report(self) -> Report:
        called = [index for index in self._program.order if self._seen[index].called]
        profiles = [self._seen[index].profile() for index in called]
        lines = [row_of(profile) for profile in profiles]
        missed = [norm for i, norm in enumerate(self._norms) if i not in called]
        return Report(
            rows=tuple(lines),
            diagnoses=tuple(diagnose(profiles, missed)),
            batches=self.batches,
            profiles=tuple(profiles),
        )


def _as_in_training(call: Call) -> tuple[Any, Any]:
    norm, moments = call.norm, call.moments()
    if not norm.decides(True)[0]:
        y = call.proceed()
    elif norm.own_training():
        y = call.proceed(training=True)
    else:
        ops = backend_of(moments.mean)
        filled = moments.count > 0
        mean, variance = norm.device_statistics(ops.dtype(moments.mean))
        y = call.proceed(
            ops.where(filled, moments.mean + moments.remainder, mean),
            ops.where(filled, moments.variance, variance),
        )
    return y, (tuple(moments), _sample(norm, call.x), _sample(norm, y))


def _as_in_evaluation(call: Call) -> tuple[Any, Any]:
    y = call.proceed()
    return y, (_sample(call.norm, y),)


class _Seen:
    """What one layer showed, batch by batch."""

    def __init__(self, norm: Norm) -> None:
        self._norm = norm
        channels = len(norm.host_statistics()[0])
        self._pool = Pool(channels, "exact", None, False)
        self._within, self._weight = np.zeros(channels), np.zeros(channels)
        self._difference = self._spread = 0.0
        self._samples: list[Array] = []
        self._rows: list[int] = []
        self._values: list[float] = []
        self._calls = 1

    def add(self, moments: Moments, x: Any, y: Any, other: Any, rows_: int, calls: int) -> None:
        self._pool.add(moments)
        count, variance = float(moments.count[0, 0]), np.asarray(moments.variance[0], np.float64)
        finite = np.isfinite(variance)
        self._within[finite] += count * variance[finite]
        self._weight[finite] += count
        x, y, other = (self._channels_last(part) for part in (x, y, other))
        # a channel's own mean is no spread: offsets of beta would hide the difference
        with np.errstate(invalid="ignore"):
            self._spread += float(np.sum((y - y.mean(0, keepdims=True)) ** 2)) if len(y) else 0.0
            self._difference += float(np.sum((y - other) ** 2))
        if len(self._samples) < KEPT:
            self._samples.append(x)
        self._rows.append(rows_)
        groups = self._norm.group_size()
        self._values.append(count if groups is None else count * min(1.0, groups / max(rows_, 1)))
        self._calls = max(self._calls, calls)

    @property
    def called(self) -> bool:
        return bool(self._rows)

    def _channels_last(self, sample: Any) -> Array:
        sample = np.asarray(sample, np.float64)
        axes = self._norm.axes(sample.ndim)
        others = [axis for axis in range(sample.ndim) if axis not in axes]
        last = np.transpose(sample, [*others, *axes])
        channels = int(np.prod([sample.shape[axis] for axis in axes]))
        return last.reshape(-1, channels)

    def profile(self) -> Profile:
        moving_mean, moving_variance = self._norm.host_statistics()
        nothing = np.where(self._pool.count > 0, 0.0, np.nan)
        weight = np.where(self._weight > 0, self._weight, 1)
        if self._difference == 0:
            drift = 0.0
        else:
            drift = float(np.sqrt(self._difference / self._spread)) if self._spread else np.inf
        return Profile(
            norm=self._norm,
            mean=self._pool.mean + nothing,
            variance=self._pool.variance + nothing,
            within=self._within / weight + nothing,
            moving_mean=moving_mean,
            moving_variance=moving_variance,
            poisoned=self._norm.unsound(),
            not_finite=self._pool.skipped,
            values=self._values,
            rows=self._rows,
            calls=self._calls,
            drift=drift,
            sample=np.concatenate(self._samples),
        )


def _sample(norm: Norm, x: Any) -> Any:
    """A few values of each channel: of the first samples, at positions spread over the rest."""
    shape = backend_of(x).shape(x)
    axes = norm.axes(len(shape))
    free = [axis for axis in range(1, len(shape)) if axis not in axes]
    each = max(1, round(POSITIONS ** (1 / max(len(free), 1))))
    cut = [slice(None)] * len(shape)
    if 0 not in axes:
        cut[0] = slice(0, SAMPLES if free else DENSE_SAMPLES)
    for axis in free:
        size = shape[axis]
        cut[axis] = slice(0, None, max(1, size // each)) if isinstance(size, int) else slice(0, 1)
    # a slice in torch is a view, which would keep all of x until the pass is over: the layers
    # behind could not have its memory, and fresh memory costs more than what they compute
    return copied(x[tuple(cut)])
