"""What is remembered: moving averages, zero-debiasing, the renorm state, and what guards them.

State is a dictionary. Every vector has the shape of the parameters (one axis: `(C,)`).

    moving_mean, moving_variance               always
    moving_stddev, renorm_mean, renorm_stddev  with renorm, unless renorm_momentum is None
    biased_mean, local_step                    with zero_debias
    biased_variance (renorm: biased_stddev)    with zero_debias="both"
    num_updates, skipped_updates               optional bookkeeping, int32: updates so far, and how
                                               many of them each channel refused
"""

from __future__ import annotations

import math
from typing import Any

from batchnorm._moments import Moments, average, constant, merge, unbiased
from batchnorm._options import Options
from batchnorm._rows import Rows, State, as_given, aside

Tensor = Any


def state_names(options: Options) -> tuple[str, ...]:
    """The names of the statistics that these options remember, in the order of Keras' weights."""
    names = ["moving_mean", "moving_variance"]
    if options.renorm_remembers:
        names += ["moving_stddev", "renorm_mean", "renorm_stddev"]
    if options.zero_debias:
        names += ["biased_mean", "local_step"]
    if options.zero_debias == "both":
        names.append("biased_stddev" if options.renorm_remembers else "biased_variance")
    return tuple(names)


def initial_value(name: str) -> float:
    """What a statistic is before the first batch: 1 for variances and deviations, else 0."""
    return 1.0 if name in ("moving_variance", "moving_stddev", "renorm_stddev") else 0.0


def next_state(ops: Any, plan: Any, old: Rows, measured: Moments) -> State:
    """What `remember` says, in the shapes and types of the state.

    Args:
        plan: a `batchnorm._plan.Plan`.
    """
    options, state, grouped = plan.options, old.state, old.view.groups is not None
    measured = constant(ops, measured)
    plain = not (options.renorm_remembers or options.zero_debias or in_turn(options, grouped))
    plain = plain and options.on_nonfinite != "raise" and options.momenta_are_numbers
    # over replicas all must get the same bits, whatever instructions a library chose to average by
    if plain and (plan.kernels or plan.replicas is None):
        new = plan.steps.remember(
            state,
            _one_row(ops, options, measured, plan.equal)[1] if grouped else measured,
            options.momentum,
            options.unbiased_moving_variance and not grouped,
            options.on_nonfinite == "propagate",
            plan.filled,
        )
        if new is not None:
            return {**state, **new}

    def one_step_on(ops: Any, old: Rows, measured: Moments) -> State:
        new = remember(ops, options, old, measured, grouped, plan.filled, plan.equal)
        return as_given(ops, new, old.state)

    if options.momenta_are_numbers:
        return {**state, **aside(ops, old, measured, one_step_on)}
    return {**state, **one_step_on(ops, old, measured)}


def in_turn(options: Options, grouped: bool) -> bool:
    """Whether ghost batches are remembered one after the other, not as one."""
    return grouped and options.ghost_order == "chunks" and not options.pooled_moving_variance


def remember(
    ops: Any,
    options: Options,
    state: Rows,
    moments: Moments,
    grouped: bool,
    filled: bool,
    equal: bool = False,
) -> State:
    """What a batch changes in the state.

    A channel whose moments are not finite, whose variance is negative, or that saw no values
    keeps its state bit for bit, and `skipped_updates` counts it: one bad batch must not spoil a
    model for ever (keras-team/keras#9646, pytorch/pytorch#1206).

    Ghost batches are remembered as their average; chunks one after the other, each as a batch.

    Shapes: moments `[G, C]`, with `grouped` one row per ghost batch; state and result `[R, C]`.

    Args:
        filled: whether every group is known to have values.
        equal: whether all are known to have the same number.

    Raises:
        FloatingPointError: `on_nonfinite="raise"` and a moment is not finite.
    """
    turned = in_turn(options, grouped)
    if grouped and not turned:
        biased, moments = _one_row(ops, options, moments, equal)
    else:
        biased, moments = moments, _to_keep(ops, options, moments)
    mean = moments.mean if moments.remainder is None else moments.mean + moments.remainder
    finite = ops.isfinite(mean) & ops.isfinite(moments.variance)
    usable: Any = finite & (moments.variance >= 0)
    seen: Any = True
    if not filled:
        seen = ~ops.equal(moments.count, 0)
        usable = usable & seen
    if options.on_nonfinite == "raise":
        mean = ops.check(
            ops.all(finite if filled else finite | ~seen),
            FloatingPointError,
            f"{options.owner}: the batch must have a finite mean and variance; got NaN or infinity "
            "in at least one channel. Clean the input, or use on_nonfinite='skip' to leave such "
            "channels out of the moving statistics.",
            mean,
        )
    elif options.on_nonfinite == "propagate":
        usable = seen
    turns = Turns(ops, state, mean, usable) if turned else None
    new = _averages(ops, options, state, turns, mean, (biased.variance, moments.variance))
    if usable is not True:
        some = usable if turns is None else turns.count > 0
        new = {name: ops.where(some, one, state[name]) for name, one in new.items()}
    if "num_updates" in state:
        number = ops.shape(mean)[0] if turned else 1
        if ops.is_tensor(number):  # of groups, where only the run knows the batch
            number = ops.cast(number, ops.dtype(state["num_updates"]))
        new["num_updates"] = state["num_updates"] + number
    if "skipped_updates" in state and usable is not True:
        old = state["skipped_updates"]
        if turned:
            new["skipped_updates"] = old + ops.sum(ops.cast(~usable, ops.dtype(old)), 0)
        else:
            new["skipped_updates"] = ops.where(usable, old, old + 1)
    return new


class Turns:
    """Updates by the rows `[G, C]` one after the other, all computed at once.

    With m_j the share that update j keeps, value = old * m_1 ... m_G + sum over j of
    (1 - m_j) * row_j * m_(j+1) ... m_G, without the rows that are not usable.

    Attributes:
        count: how many rows are usable, `[1, C]`.
    """

    def __init__(self, ops: Any, state: Rows, like: Tensor, usable: Any) -> None:
        self.ops, self.state = ops, state
        self.usable = ops.isfinite(ops.zeros_like(like)) if usable is True else usable
        self.ones = ops.ones_like(like)
        self.count = ops.sum(ops.where(self.usable, self.ones, ops.zeros_like(like)), 0)

    def moved(self, old: Tensor, rows: Tensor, momentum: Any) -> Tensor:
        ops, ones, zeros = self.ops, self.ones, self.ops.zeros_like(self.ones)
        kept = ones * momentum
        products = ops.products(ops.where(self.usable, kept, ones))
        behind = ops.concatenate((products[1:], ones[:1]), 0)
        shares = ops.where(self.usable, (1 - kept) * behind * rows, zeros)
        return products[:1] * old + ops.sum(shares, 0)


def _to_keep(ops: Any, options: Options, moments: Moments) -> Moments:
    """The moments with the variance that is remembered."""
    return unbiased(ops, moments) if options.unbiased_moving_variance else moments


def _one_row(ops: Any, options: Options, moments: Moments, equal: bool) -> tuple[Moments, Moments]:
    """One row of moments from all ghost batches: with the biased variance, and the one to keep."""
    if options.pooled_moving_variance:
        biased = merge(ops, moments, equal)
        return biased, _to_keep(ops, options, biased)
    biased = average(ops, moments, equal)
    if not options.unbiased_moving_variance:
        return biased, biased
    return biased, average(ops, unbiased(ops, moments), equal)


def _averages(
    ops: Any,
    options: Options,
    state: Rows,
    turns: Turns | None,
    mean: Tensor,
    variances: tuple[Tensor, Tensor],
) -> State:
    """The moving averages, one step on; `variances` are the biased one and the one to keep."""
    biased_variance, variance = variances
    momentum, renorm_momentum = (
        ops.cast(one, ops.dtype(mean)) if ops.is_tensor(one) else one
        for one in (options.momentum, options.renorm_momentum)
    )
    if momentum is None:  # the average of everything since the start
        updates = ops.cast(state["num_updates"], ops.dtype(mean))
        updates = updates if turns is None else updates + ops.indices(mean)
        momentum = updates / (updates + 1)
    moved = _moved if turns is None else turns.moved
    new: State = {}
    if options.zero_debias:
        new["local_step"] = state["local_step"] + (1 if turns is None else turns.count)

    def track(name: str, value: Tensor, old: Tensor, debias: bool) -> None:
        if not debias:
            new[f"moving_{name}"] = moved(old, value, momentum)
            return
        biased = moved(state[f"biased_{name}"], value, momentum)
        new[f"biased_{name}"] = biased
        new[f"moving_{name}"] = _debiased(ops, biased, new["local_step"], momentum, old)

    track("mean", mean, state["moving_mean"], bool(options.zero_debias))
    if not options.renorm_remembers:
        track("variance", variance, state["moving_variance"], options.zero_debias == "both")
        return new
    deviation = ops.sqrt(biased_variance + options.epsilon)
    for name, value in (("renorm_mean", mean), ("renorm_stddev", deviation)):
        new[name] = moved(state[name], value, renorm_momentum)
    same = variance is biased_variance
    stddev = deviation if same else ops.sqrt(variance + options.epsilon)
    old = _agreeing_stddev(ops, state, options.epsilon)
    track("stddev", stddev, old, options.zero_debias == "both")
    square = new["moving_stddev"] * new["moving_stddev"]
    new["moving_variance"] = ops.maximum(square - options.epsilon, 0.0)
    return new


def _moved(old: Tensor, value: Tensor, momentum: Any) -> Tensor:
    # old + (1 - m) * (value - old) would be off by a rounding where m is 0 or 1
    return momentum * old + (1 - momentum) * value


def _debiased(ops: Any, biased: Tensor, step: Tensor, momentum: Any, old: Tensor) -> Tensor:
    """An average that started at 0, divided by the weight of what it has seen: 1 - m^step.

    Reference: Kingma & Ba 2015, "Adam", section 3. With momentum 1 nothing is ever seen.
    """
    # 1 - m^step as it stands loses the digits that a momentum near 1 shares with 1
    if ops.is_tensor(momentum):
        logarithm = ops.log(momentum)
    else:
        logarithm = math.log(momentum) if momentum > 0 else -math.inf
    seen = -ops.expm1(step * logarithm)
    some = seen > 0
    return ops.where(some, biased / ops.fill(seen, ~some, 1), old)


def _agreeing_stddev(ops: Any, state: Rows, epsilon: float) -> Tensor:
    """`moving_stddev`, unless someone assigned `moving_variance` since: then what follows from it.

    The originals recompute the variance from the deviation and so undo the assignment (D18). They
    agree after a step (variance = max(stddev^2 - epsilon, 0)) and at the start (stddev^2).
    """
    stddev, variance = state["moving_stddev"], state["moving_variance"]
    square = stddev * stddev
    slack = 1e-5 * square
    after_step = abs(variance - ops.maximum(square - epsilon, 0.0)) <= slack
    at_start = abs(variance - square) <= slack
    return ops.where(after_step | at_start, stddev, ops.sqrt(variance + epsilon))
