"""Batch normalization in three steps, every mode: moments, correct, standardize.

    moments      x, weights            -> mean, variance, count     big
    correct      moments, state, mode  -> scale, offset, new state  vectors, tiny
    standardize  x, mean, variance, scale, offset -> y              big

`standardize` carries the total derivative, the path through mean and variance included, so that
whatever `correct` does may be anything that is constant in x.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from batchnorm import _axes
from batchnorm._arguments import (
    check_vectors,
    resolve_training,
    type_of_statistics,
    view_of,
)
from batchnorm._correction import Affine, adjustment, compose, renorm_correction
from batchnorm._moments import Moments, attached, constant, first_groups, merge_replicas
from batchnorm._options import Options
from batchnorm._rows import Rows, State, row_of
from batchnorm._statistics import initial_value, next_state, state_names
from batchnorm._weights import combined_weights
from batchnorm.backends import backend_of

Tensor = Any


def batch_norm(
    x: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    *,
    training: bool | Tensor = False,
    mask: Tensor | None = None,
    batch_weights: Tensor | None = None,
    axis: int | Sequence[int] = -1,
    momentum: float | Tensor = 0.99,
    epsilon: float = 1e-3,
    renorm: bool = False,
    renorm_clipping: Mapping[str, Any] | None = None,
    renorm_momentum: float | Tensor | None = 0.99,
    fused: bool | None = None,
    virtual_batch_size: int | None = None,
    adjustment: Callable[[Any], tuple[Tensor, Tensor]] | None = None,
    synchronized: Any = False,
    unbiased_moving_variance: bool = False,
    pooled_moving_variance: bool = False,
    statistics: str = "auto",
    update_statistics: bool | str = "auto",
    on_nonfinite: str = "skip",
    zero_debias: bool | str = False,
) -> tuple[Tensor, State]:
    """Normalizes x and returns it with the next state; nothing is changed in place.

    Formula, per channel (and per ghost batch):
        y = (x - mean) / sqrt(variance + epsilon) * scale + offset
    with scale = gamma and offset = beta; renorm and `adjustment` change scale and offset only.

    Shapes:
        x: any rank >= 1. C is the product of its sizes on `axis`.
        gamma, beta, statistics: `(C,)` for one axis; for several, rank(x) with 1 elsewhere.
        mask, batch_weights: broadcast from the left to the dimensions that are not in `axis`
            (`[batch]`, `[batch, time]`, ...), or rank(x) with 1 on `axis`.

    Types: x is a TensorFlow, JAX or PyTorch tensor of float16, bfloat16, float32 or float64, and y
    has its type. Moments, parameters and statistics are float32, or float64 for a float64 x.

    Args:
        parameters: `gamma` and `beta`; either may be missing.
        state: what `batchnorm.init` returned, or a previous call. See `batchnorm._statistics`.
        training: a bool, 0 or 1, or a boolean scalar tensor.
        mask: False excludes a position from the statistics; it is still normalized. Excluded
            values may be NaN: their output is `offset`.
        batch_weights: weight 2 counts like the same value twice. Multiplied with `mask`.
        axis: the dimension or dimensions that keep their own statistics.
        momentum: the share of the old moving statistics that a step keeps, in [0, 1].
        epsilon: added to the variance. With 0, a constant channel gives y = offset.
        renorm: batch renormalization: r and d pull the batch statistics to running ones.
        renorm_clipping: bounds `rmax`, `rmin`, `dmax`: numbers, tensors, or functions of the step
            (`num_updates`, as a float scalar), such as a Keras learning-rate schedule.
        renorm_momentum: `momentum` of renorm's own running statistics. None: it has none, and r and
            d pull to the moving statistics themselves.
        fused: None takes the fastest path that is right, True insists on a native kernel, False
            takes the composite path, whose derivatives of every order are exact.
        virtual_batch_size: normalize ghost batches of this size on their own, in training only.
            Group j of n holds the samples j, j + n, j + 2n, ...
        adjustment: a function of x's shape that returns (scale, bias), applied after renorm and
            before gamma and beta, with batch statistics only. Any shape that broadcasts to x.
        synchronized: take statistics over all replicas, in training: True, a torch process group
            or its name, or the name of an axis of JAX's shard_map, pmap or vmap. Each replica
            returns its own part of y and the same state; the derivative with respect to x is that
            of the sum of all replicas' losses, those of gamma and beta are the replica's share.
            Ghost batches: group j of all replicas is one group. See docs/distributed.md.
        unbiased_moving_variance: remember variance * N / (N - 1), as torch does.
        pooled_moving_variance: with ghost batches, remember the variance of the whole batch
            instead of the average over the groups.
        statistics: what normalizes: "batch", "moving", or "auto" (the batch in training).
        update_statistics: whether this call changes the state: True, False, or "auto" (in
            training).
        on_nonfinite: what a channel with NaN or infinite moments does to its state: "skip" leaves
            it alone, "propagate" writes it, "raise" raises.
        zero_debias: "mean" (or True) removes the initial value from the moving mean, "both" from
            the variance too.

    Returns:
        y, of x's shape and type, and the new state with the keys of `state`.

    Edge cases: a channel without values (empty batch, all masked, weights of total 0) is
    normalized with its moving statistics and keeps its state.

    Raises:
        TypeError, ValueError: an argument is not what it must be.
        FloatingPointError: `on_nonfinite="raise"` met a non-finite moment.

    References: Ioffe & Szegedy 2015, algorithms 1 and 2; Ioffe 2017, algorithm 1 (renorm);
    Hoffer, Hubara & Soudry 2017, algorithm 1 (ghost batches).
    """
    options = Options(
        axis=axis,
        momentum=momentum,
        epsilon=epsilon,
        renorm=renorm,
        renorm_clipping=renorm_clipping,
        renorm_momentum=renorm_momentum,
        fused=fused,
        virtual_batch_size=virtual_batch_size,
        adjustment=adjustment,
        synchronized=synchronized,
        unbiased_moving_variance=unbiased_moving_variance,
        pooled_moving_variance=pooled_moving_variance,
        statistics=statistics,
        update_statistics=update_statistics,
        on_nonfinite=on_nonfinite,
        zero_debias=zero_debias,
    )
    return normalize(options, x, parameters, state, training, mask, batch_weights)


# Tells TensorFlow's AutoGraph to call this as it stands: nothing in it branches on a tensor.
batch_norm.autograph_info__ = {}  # type: ignore[attr-defined]


def init(
    x: Tensor,
    *,
    axis: int | Sequence[int] = -1,
    center: bool = True,
    scale: bool = True,
    renorm: bool = False,
    renorm_momentum: float | Tensor | None = 0.99,
    zero_debias: bool | str = False,
) -> tuple[dict[str, Tensor], State]:
    """Parameters and state to start `batch_norm` with, for inputs like x.

    Returns:
        `{"gamma": ones, "beta": zeros}` (without the one that `scale` or `center` turns off), and
        the state: means 0, variances 1, counters 0. Float32, or float64 for a float64 x.

    Raises:
        TypeError, ValueError: x or an argument is not what it must be.
    """
    options = Options(
        axis=axis,
        renorm=renorm,
        renorm_momentum=renorm_momentum,
        zero_debias=zero_debias,
        owner="init",
    )
    ops = backend_of(x)
    shape = _axes.shape_of(ops, x, options.owner, "x")
    vector = _axes.parameter_shape(shape, _axes.resolve(options.axis, len(shape), options.owner))
    dtype = type_of_statistics(ops, x, options.owner)
    parameters = {}
    if scale:
        parameters["gamma"] = ops.full(vector, 1.0, dtype, x)
    if center:
        parameters["beta"] = ops.full(vector, 0.0, dtype, x)
    state = {name: ops.full(vector, initial_value(name), dtype, x) for name in state_names(options)}
    state["num_updates"] = ops.full((), 0, "int32", x)
    state["skipped_updates"] = ops.full(vector, 0, "int32", x)
    return parameters, state


def normalize(
    options: Options,
    x: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    training: bool | Tensor = False,
    mask: Tensor | None = None,
    batch_weights: Tensor | None = None,
    update_from: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, State]:
    """`batch_norm` with options that were checked before: what layers call.

    Args:
        update_from: the state that the new state starts from, where that is not what normalizes. A
            TensorFlow 1 graph reads it later, after the updates of earlier calls (D32).
    """
    ops = backend_of(x)
    dtype = type_of_statistics(ops, x, options.owner)
    training = resolve_training(ops, training, options.owner)
    batch = {"auto": training, "batch": True, "moving": False}[options.statistics]
    update = training if options.update_statistics == "auto" else options.update_statistics
    fused = _takes_kernels(ops, options, x)
    replicas: Any = None  # one, whatever was asked for
    alone: Any = None  # one that has a name
    if options.synchronized and (batch is not False or update is not False):
        replicas = ops.replicas(options.synchronized, options.owner)
        if replicas is not None and replicas.number == 1:
            replicas, alone = None, replicas

    view = view_of(ops, options, x, batch, update)
    check_vectors(ops, options, view, parameters, state)
    gamma, beta = (
        None if given is None else row_of(ops, view.row_shape, given, dtype)
        for given in (parameters.get("gamma"), parameters.get("beta"))
    )
    old = Rows(ops, view, state, dtype)
    weights = combined_weights(ops, options.owner, view, x, dtype, mask, batch_weights)
    values, sizes = view.apply(ops, x), view.canonical
    if not fused:  # once, so that the parts of a 16-bit derivative add up in float32
        values = ops.cast(values, dtype)
    full = weights is None and _positive(ops, view.values_per_group)  # every group has values
    live: bool | Tensor | None = None  # which groups the batch normalizes; None: to be computed
    if batch is False or (batch is True and full):
        live = batch
    merged = None  # the moments of all replicas' groups, of which a replica may have the first few
    # nothing between the two big steps needs moments
    at_once = live is True and not options.renorm and replicas is None
    if not at_once and (batch is not False or update is not False):
        measured = used = ops.moments(values, sizes, weights, fused)
        if replicas is not None:
            if view.groups is not None:
                replicas = ops.aligned(replicas, used.mean)
            merged = merge_replicas(ops, used, replicas)
            measured = first_groups(merged, view.groups)
            used = measured if fused else attached(ops, measured, used, replicas)
    trains: bool | Tensor = True
    if live is None:
        live = ~ops.equal(measured.count, 0) & batch
        trains = live if batch is True else live | ~batch

    correction: Affine = (None, None)
    if options.renorm and live is not False:
        correction = renorm_correction(ops, options, old, constant(ops, measured), live)
    adjusted = adjustment(ops, options, view, x, dtype, live, batch, apart=replicas is not None)
    affine, activation = correction, None
    if not adjusted.varies:
        outer = (_training(ops, gamma, trains), _training(ops, beta, trains))
        affine = compose(compose(correction, adjusted.pair), outer)
        activation = options.activation
    if at_once:
        y, measured = ops.forward(
            values, sizes, *affine, options.epsilon, weights, activation, fused
        )
    else:
        used = _used(ops, live, None if live is False else used, old)
        y = ops.standardize(
            values,
            sizes,
            used,
            *affine,
            options.epsilon,
            weights,
            live,
            activation,
            fused,
            replicas,
        )
    if alone is not None and update is not False:
        # the same numbers, now known to be the same on all replicas, as a state must be
        merged = merge_replicas(ops, measured, alone)
    y = view.undo(ops, y)
    if adjusted.varies:  # along reduced dimensions too, where no vector can hold it
        trains = trains if trains is True else view.spread_groups(ops, trains)
        spread = [_training(ops, view.spread(ops, v), trains) for v in (gamma, beta)]
        y = ops.affine(y, *compose(adjusted.pair, (spread[0], spread[1])), options.activation)
        if weights is not None:
            finite = ops.reshape(ops.isfinite(values), sizes)
            excluded = ops.reshape(ops.equal(weights, 0) & ~finite, ops.shape(values))
            excluded = view.undo(ops, excluded)
            y = ops.where(excluded, ops.stop_gradient(y), y)
    if not fused:
        y = ops.cast(y, ops.dtype(x))
    if update is False:
        return y, dict(state)
    if update_from is not None:
        old = Rows(ops, view, update_from, dtype)
    filled = full and (view.groups is None or _positive(ops, view.groups))
    return y, next_state(ops, options, old, merged or measured, update, filled, fused)


def _takes_kernels(ops: Any, options: Options, x: Tensor) -> bool:
    reason = "fused is False." if options.fused is False else ops.why_not(x)
    if options.fused and reason:
        raise ValueError(f"{options.owner}: fused must be None or False here; got True. {reason}")
    return reason is None


def _positive(ops: Any, size: Any) -> bool:
    """Whether a size is known to be."""
    return not ops.is_tensor(size) and size > 0


def _used(ops: Any, live: bool | Tensor, measured: Moments | None, state: Rows) -> Moments:
    """What normalizes: the batch's moments where `live`, else the moving statistics."""
    if live is True:
        assert measured is not None
        return measured
    if measured is None:
        return Moments(state["moving_mean"], None, state["moving_variance"], None)
    # Moving means have no remainder: one that is below the rounding of (x - mean) / stddev is left
    # out, so that statistics that have converged give one output whatever `training` is.
    remainder: Tensor = measured.remainder
    rounding = 2.0 ** (-52 if ops.dtype(remainder) == "float64" else -23)
    tiny = remainder * remainder <= rounding**2 * measured.variance
    remainder = remainder - ops.stop_gradient(ops.where(tiny, remainder, ops.zeros_like(remainder)))
    return Moments(
        ops.where(live, measured.mean, state["moving_mean"]),
        ops.where(live, remainder, ops.zeros_like(remainder)),
        ops.where(live, measured.variance, state["moving_variance"]),
        measured.count,
    )


def _training(ops: Any, parameter: Tensor | None, trains: bool | Tensor) -> Tensor | None:
    """gamma or beta, constant for the groups without values: these must not train anything."""
    if parameter is None or trains is True:
        return parameter
    return ops.where(trains, parameter, ops.stop_gradient(parameter))
