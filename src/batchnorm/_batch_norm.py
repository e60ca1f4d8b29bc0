"""Batch normalization in three steps, every mode: moments, correct, standardize.

    moments      x, weights            -> mean, variance, count     big
    correct      moments, state, mode  -> scale, offset, new state  vectors, tiny
    standardize  x, mean, variance, scale, offset -> y              big

`standardize` carries the total derivative, the path through mean and variance included, so that
whatever `correct` does may be anything that is constant in x.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from batchnorm import _axes
from batchnorm._arguments import check_mappings, check_residual, resolve_training
from batchnorm._chunks import filled_up
from batchnorm._open import by_training
from batchnorm._options import Options
from batchnorm._plan import plan, statistics_type
from batchnorm._rows import State
from batchnorm._run import run
from batchnorm._statistics import initial_value, state_names
from batchnorm._types import (
    Activation,
    GhostOrder,
    OnNonfinite,
    Statistics,
    T,
    UpdateStatistics,
    ZeroDebias,
)
from batchnorm.backends import backend_of, recorder_of
from batchnorm.backends.composite import activated

Tensor = Any


def batch_norm(
    x: T,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor] | None = None,
    *,
    training: bool | Tensor = False,
    mask: Tensor | None = None,
    batch_weights: Tensor | None = None,
    residual: T | None = None,
    axis: int | Sequence[int] = -1,
    momentum: float | Tensor | None = 0.99,
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
    statistics: Statistics = "auto",
    update_statistics: UpdateStatistics = "auto",
    on_nonfinite: OnNonfinite = "skip",
    zero_debias: ZeroDebias = False,
    ghost_order: GhostOrder = "strided",
    activation: Activation = None,
) -> tuple[T, State]:
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
        state: what `batchnorm.init` returned, or a previous call. See `batchnorm._statistics`. Not
            needed with `statistics="batch", update_statistics=False`, unless for renorm.
        training: a bool, 0 or 1, or a boolean scalar tensor.
        mask: False excludes a position from the statistics; it is still normalized. Excluded
            values may be NaN: their output is `offset`.
        batch_weights: weight 2 counts like the same value twice. Multiplied with `mask`.
        residual: of x's shape and type; y = activation(batch_norm(x) + residual).
        axis: the dimension or dimensions that keep their own statistics.
        momentum: the share of the old moving statistics that a step keeps, in [0, 1]. None: the
            average over all updates so far, by `num_updates` of the state.
        epsilon: added to the variance. With 0, a constant channel gives y = offset.
        renorm: batch renormalization: r and d pull the batch statistics to running ones.
        renorm_clipping: bounds `rmax`, `rmin`, `dmax`: numbers, tensors, or functions of the step
            (`num_updates`, as a float scalar), such as a Keras learning-rate schedule.
        renorm_momentum: `momentum` of renorm's own running statistics. None: it has none, and r and
            d pull to the moving statistics themselves.
        fused: None takes the fastest path that is right, True insists on a native kernel, False
            takes the composite path, whose derivatives of every order are exact.
        virtual_batch_size: normalize ghost batches of this size on their own, in training only.
            Group j of n holds the samples j, j + n, j + 2n, ..., and their average is remembered.
        ghost_order: "strided", or "chunks": consecutive samples, the last group smaller where they
            are not divisible, cut like `x.chunk(ceil(N / size))` of torch. They are remembered one
            after the other, as in a loop over chunks.
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
        activation: None or "relu", applied to y. It runs inside the kernels, which keep nothing for
            its gradient.

    Returns:
        y, of x's shape and type, and the new state with the keys of `state`.

    Edge cases: a channel without values (empty batch, all masked, weights of total 0) is
    normalized with its moving statistics (0 and 1 without a state) and keeps its state.

    Raises:
        TypeError, ValueError: an argument is not what it must be.
        FloatingPointError: `on_nonfinite="raise"` met a non-finite moment.

    References: Ioffe & Szegedy 2015, algorithms 1 and 2; Ioffe 2017, algorithm 1 (renorm);
    Hoffer, Hubara & Soudry 2017, algorithm 1 (ghost batches).
    """
    state = {} if state is None else state
    if type(parameters) is not dict or type(state) is not dict:
        check_mappings("batch_norm", parameters, state)
    try:
        ops = backend_of(x, parameters, state)
    except TypeError:
        arguments = locals()
        record = recorder_of(x)
        if record is None:
            raise
        recorded: tuple[Tensor, State] = record(batch_norm, arguments)
        return recorded
    traced = ops.traced(x)
    options = _options(
        traced,
        axis,
        momentum,
        epsilon,
        renorm,
        renorm_clipping,
        renorm_momentum,
        fused,
        virtual_batch_size,
        ghost_order,
        adjustment,
        synchronized,
        unbiased_moving_variance,
        pooled_moving_variance,
        statistics,
        update_statistics,
        on_nonfinite,
        zero_debias,
        activation,
    )
    given = (x, parameters, state, training, mask, batch_weights)
    return normalize(options, *given, residual=residual, ops=ops, traced=traced)


def _options(traced: bool, *given: Any) -> Options:
    """The options of a call, kept from one to the next where all of them are plain values."""
    if not traced:  # compilers stumble over a cache
        for one in given:
            if type(one) not in _PLAIN:
                break
        else:
            return _kept_options(*given)
    return Options(*given)


_PLAIN = {bool, int, float, str, tuple, type(None)}
_kept_options = functools.lru_cache(maxsize=256, typed=True)(Options)


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
    zero_debias: ZeroDebias = False,
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
    dtype = statistics_type(ops.dtype(x), options.owner)
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
    residual: Tensor | None = None,
    ops: Any = None,
    traced: bool | None = None,
) -> tuple[Tensor, State]:
    """`batch_norm` with options that were checked before, which is what layers call: plan, run.

    Args:
        update_from: the state that the new state starts from, where that is not what normalizes. A
            TensorFlow 1 graph reads it later, after the updates of earlier calls (D32).
        ops: the backend of x, and `traced`, whether x is: for callers who know it.
    """
    ops = ops or backend_of(x)
    ghost = options.virtual_batch_size
    if mask is batch_weights is residual is ghost is None and type(training) is bool:
        # as below: on small tensors each of its questions can be measured
        chosen = plan(ops, options, x, training, False, traced)
        return run(ops, chosen, x, parameters, state, None, None, update_from)
    training = resolve_training(ops, training, options.owner)
    weighted = mask is not None or batch_weights is not None
    if residual is not None:
        check_residual(ops, options.owner, x, residual)
        alone = isinstance(training, bool) and options.ghost_order != "chunks"
        if not (alone and plan(ops, options, x, training, weighted).adds):
            call = (x, parameters, state, training, mask, batch_weights, update_from)
            y, new = normalize(options.without_activation, *call, ops=ops)
            return activated(ops, y + residual, options.activation), new

    def way(training: bool, x: Tensor) -> tuple[Tensor, State]:
        filled = filled_up(ops, options, x, training, mask, batch_weights)
        if filled is None:
            chosen = plan(ops, options, x, training, weighted)
            others = (mask, batch_weights, update_from, residual)
            return run(ops, chosen, x, parameters, state, *others)
        chosen = plan(ops, filled.options, filled.x, training, True)
        given = (filled.x, parameters, state, filled.mask, filled.batch_weights, update_from)
        y, new = run(ops, chosen, *given)
        return y[: filled.samples], new

    if isinstance(training, bool):
        return way(training, x)
    return by_training(ops, options, x, training, way)
