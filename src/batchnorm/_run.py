"""What a plan says, done: two ways, training and inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from batchnorm._arguments import PARAMETERS, check_vectors
from batchnorm._axes import View
from batchnorm._correction import Affine, correct
from batchnorm._moments import Moments, first_groups, merge_replicas
from batchnorm._open import open_view, open_whole
from batchnorm._plan import Plan
from batchnorm._rows import Rows, State, row_of
from batchnorm._statistics import next_state
from batchnorm._weights import combined_weights
from batchnorm.backends.composite import Case

Tensor = Any


def run(
    ops: Any,
    plan: Plan,
    x: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mask: Tensor | None = None,
    batch_weights: Tensor | None = None,
    update_from: Mapping[str, Tensor] | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, State]:
    """What a plan says, of one call's tensors; with a residual only where it `adds` it."""
    if plan.plain and update_from is None and residual is None:
        done: tuple[Tensor, State] | None = plan.steps.whole(plan, x, parameters, state)
        if done is not None:
            return done
    check_vectors(ops, plan, parameters, state)
    given = (parameters, state, mask, batch_weights)
    if plan.batch:
        operands = laid_out(ops, plan, plan.view or open_view(ops, plan, x), x, *given)
        y, measured = train(ops, plan, x, operands, residual)
    else:
        operands = laid_out(ops, plan, plan.whole or open_whole(ops, plan, x), x, *given)
        y = infer(ops, plan, x, operands, residual)
    if not plan.update:
        return y, dict(state)
    if not plan.batch:
        operands = laid_out(ops, plan, plan.view or open_view(ops, plan, x), x, *given)
        measured = measure(ops, plan, x, operands)
    old = operands.old if update_from is None else operands.old.of(update_from)
    return y, next_state(ops, plan, old, measured)


class Operands(NamedTuple):
    """What a call was given beside x, laid out as a view says."""

    view: View
    parameters: Affine
    old: Rows
    weights: Tensor | None


def laid_out(
    ops: Any,
    plan: Plan,
    view: View,
    x: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mask: Tensor | None,
    batch_weights: Tensor | None,
) -> Operands:
    gamma, beta = (
        row_of(ops, view.row_shape, parameters.get(name), plan.dtype) for name in PARAMETERS
    )
    owner, dtype = plan.options.owner, plan.dtype
    weights = combined_weights(ops, owner, view, x, dtype, mask, batch_weights)
    return Operands(view, (gamma, beta), Rows(ops, view, state, dtype), weights)


def infer(
    ops: Any, plan: Plan, x: Tensor, given: Operands, residual: Tensor | None = None
) -> Tensor:
    """y with the moving statistics: an affine map on x's own shape."""
    how = (plan.options.epsilon, plan.options.activation)
    case = Case(given.view, given.weights, *how, residual)
    # a program that leaves this process must not need this package's operators there
    steps = ops.COMPOSITE if plan.traced else plan.steps
    used = Moments(given.old["moving_mean"], None, given.old["moving_variance"], None)
    return steps.infer(x, case, used, *given.parameters)


def measure(ops: Any, plan: Plan, x: Tensor, given: Operands) -> Moments:
    """The moments of the batch, over all replicas, where something else normalizes."""
    own, _ = plan.steps.moments(x, Case(given.view, given.weights, plan.options.epsilon, None))
    if plan.replicas is None:
        return own
    return merge_replicas(ops, own, _aligned(ops, plan, given.view, own))


def train(
    ops: Any, plan: Plan, x: Tensor, given: Operands, residual: Tensor | None = None
) -> tuple[Tensor, Moments]:
    """y with the batch's own statistics, and these: moments, correct, standardize."""
    view, parameters, old, weights = given
    steps = plan.steps
    case = Case(view, weights, plan.options.epsilon, None, residual)
    if plan.way == "at once":
        by = correct(ops, plan, view, x, old, parameters)
        case = case._replace(activation=by.activation)
        y, measured = steps.forward(x, case, by.scale, by.offset)
        if plan.replicas is not None:  # one: the same numbers, now known to be on all replicas
            measured = merge_replicas(ops, measured, plan.replicas)
    else:
        own, centered = steps.moments(x, case)
        measured = used = own
        replicas = None
        if plan.replicas is not None:
            aligned = _aligned(ops, plan, view, own)
            measured = merge_replicas(ops, own, aligned)
            if plan.several:
                replicas = aligned
                used = first_groups(measured, view.groups)
        live = None
        if plan.weighted:
            empty = ops.equal(used.count, 0)
            live = ~empty
            used = _moving_where(ops, empty, used, old)
        by = correct(ops, plan, view, x, old, parameters, used, live)
        case = case._replace(activation=by.activation)
        if used is not own:
            centered = None
        y = steps.standardize(x, case, used, by.scale, by.offset, live, replicas, centered)
    if by.after is not None:
        y = _leaving_out(ops, given, x, by.after(y))
    return y, measured


def _aligned(ops: Any, plan: Plan, view: View, own: Moments) -> Any:
    """The replicas; with ghost batches, they tell each other first how many these are."""
    return plan.replicas if view.groups is None else ops.aligned(plan.replicas, own.mean)


def _moving_where(ops: Any, empty: Tensor, measured: Moments, old: Rows) -> Moments:
    """What normalizes: the batch's moments, and the moving statistics in groups without values.

    The remainder of these groups is 0, as it should be with moving statistics.
    """
    mean, variance = (
        old[name] if name in old else initial(measured.mean)
        for name, initial in (("moving_mean", ops.zeros_like), ("moving_variance", ops.ones_like))
    )
    return measured._replace(
        mean=ops.where(empty, mean, measured.mean),
        variance=ops.where(empty, variance, measured.variance),
    )


def _leaving_out(ops: Any, given: Operands, x: Tensor, y: Tensor) -> Tensor:
    """y, constant where a value is excluded and not finite: what follows must not train there."""
    if given.weights is None:
        return y
    values = given.view.apart(ops, x)
    excluded = ops.left_out(values, given.weights)
    return y if excluded is None else ops.stop_where(ops.reshape(excluded, ops.shape(x)), y)
