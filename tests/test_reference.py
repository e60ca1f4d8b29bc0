"""The reference model against finite differences and identities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from reference import batch_norm

RENORM = {"renorm": True, "renorm_momentum": 0.8}


def random(shape, seed, offset=0.0):
    return np.random.default_rng(seed).normal(offset, 1.5, shape)


def fresh(x, axis=-1, seed=7, **options):
    """Parameters and a state away from its initial value, with counters."""
    rng = np.random.default_rng(seed)
    shape = reference.Layout(np.shape(x), axis).vector_shape
    parameters = {"gamma": rng.uniform(0.5, 2, shape), "beta": rng.normal(size=shape)}
    state = {"moving_mean": rng.normal(size=shape), "moving_variance": rng.uniform(0.5, 2, shape)}
    if options.get("renorm"):
        state["moving_stddev"] = np.sqrt(state["moving_variance"])
        state["renorm_mean"] = rng.normal(size=shape)
        state["renorm_stddev"] = rng.uniform(0.5, 2, shape)
    if options.get("zero_debias"):
        state["biased_mean"] = state["local_step"] = np.zeros(shape)
        state["biased_stddev" if options.get("renorm") else "biased_variance"] = np.zeros(shape)
    state["num_updates"] = np.array(0)
    state["skipped_updates"] = np.zeros(shape, int)
    return parameters, state


def run(x, dy=None, start=None, training=True, **options):
    """`batch_norm` from `fresh`."""
    start = start or fresh(x, **options)
    dy = random(np.shape(x), 99) if dy is None else dy
    return batch_norm(x, *start, training=training, dy=dy, **options)


def assert_close(got, expected, tolerance=1e-10):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(got, expected, tolerance, tolerance)


def assert_same_state(got, expected, *, but=()):
    assert set(got) == set(expected)
    for name in set(got) - set(but):
        assert_close(got[name], expected[name])


# Derivatives.


@st.composite
def problems(draw):
    """x, the options of one call, and a seed; sizes are pairwise different."""
    shape, axis = draw(
        st.sampled_from([((6, 3), -1), ((6, 2, 3), 2), ((4, 3, 2), 1), ((4, 3, 1, 2), (3, 1))])
    )
    seed = draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    options = {
        "axis": axis,
        "epsilon": draw(st.sampled_from([1e-3, 0.1])),
        "virtual_batch_size": draw(st.sampled_from([None, 2])),
        "statistics": draw(st.sampled_from(["auto", "auto", "batch", "moving"])),
    }
    if draw(st.booleans()):
        clipping = {"rmax": 1.2, "rmin": 0.8, "dmax": 0.5}
        options.update(RENORM, renorm_clipping=draw(st.sampled_from([None, clipping])))
    if draw(st.booleans()):
        size = draw(st.sampled_from([(), shape[-1:], shape]))
        pair = rng.uniform(0.5, 2, size), rng.normal(size=size)
        options["adjustment"] = lambda shape: pair
    if draw(st.booleans()):
        options["mask"] = rng.random(shape[0]) < 0.6
    if draw(st.booleans()):
        options["batch_weights"] = rng.uniform(0.2, 3, shape[0])
    x = rng.normal(1, 2, shape)
    if draw(st.booleans()):
        x[~options.get("mask", np.ones(shape[0], bool))] = np.nan
    return x, options, seed


def differences(loss, at, step=1e-6):
    """The gradient of a loss by central differences, one coordinate after the other."""
    gradient = np.zeros(at.shape)
    for i in np.ndindex(at.shape):
        there, back = at.copy(), at.copy()
        there[i] += step
        back[i] -= step
        gradient[i] = (loss(there) - loss(back)) / (2 * step)
    return gradient


def frozen(x, state, options):
    """The options with r and d of renorm held where they are at x."""
    if not options.get("renorm"):
        return options
    return {**options, "corrections": reference.renorm_corrections(x, state, **options)}


def with_values(x, options):
    """Which positions are not in a ghost batch without any weight."""
    o = reference.Options(**options)
    if o.statistics == "moving":
        return True
    layout = reference.Layout(x.shape, o.axis)
    weights = layout.weights(o.mask, o.batch_weights)
    for group in layout.groups(o.virtual_batch_size):
        weights[group] = weights[group].sum()
    return layout.unrows(np.repeat(weights[:, None] != 0, layout.channels, 1))


@settings(max_examples=40, deadline=None)
@given(problems())
def test_the_derivatives_equal_finite_differences(problem):
    x, options, seed = problem
    parameters, state = fresh(x, seed=seed, **options)
    g = np.where(np.isfinite(x), random(x.shape, seed + 1), 0.0)  # NaN passes no gradient
    result = batch_norm(x, parameters, state, training=True, dy=g, **options)
    fixed = frozen(x, state, options)

    def loss(x, g=g, **changed):
        y = batch_norm(x, parameters | changed, state, training=True, **fixed).y
        return (y * g).sum()

    assert np.all(np.isfinite(result.dx))
    assert_close(result.dx, differences(loss, x), 1e-5)
    g = np.where(with_values(x, options), g, 0.0)  # a ghost batch without values trains nothing
    for name in parameters:
        slope = differences(lambda value, name=name: loss(x, g, **{name: value}), parameters[name])
        assert_close(result.gradients[name], slope, 1e-5)


def test_the_hessian_times_a_vector_is_the_second_derivative_of_the_loss():
    x, vector, options = random((6, 3), 1), random((6, 3), 2), RENORM
    parameters, state = fresh(x, **options)
    fixed = frozen(x, state, options)

    def loss(t):
        return (batch_norm(x + t * vector, parameters, state, training=True, **fixed).y ** 3).sum()

    product = reference.hessian_vector_product(
        x, vector, lambda y: 3 * y**2, parameters, state, training=True, **options
    )
    curvature = (loss(1e-4) - 2 * loss(0.0) + loss(-1e-4)) / 1e-8
    assert_close((vector * product).sum(), curvature, 1e-4)


# Identities.


@pytest.mark.parametrize("options", [{}, RENORM, {"unbiased_moving_variance": True}], ids=str)
def test_masked_rows_count_as_if_they_were_gone(options):
    x, dy = random((7, 4, 3), 3), random((7, 4, 3), 4)
    keep = np.array([1, 0, 1, 1, 0, 1, 1], bool)
    dy[~keep] = 0  # they are still normalized, so only their own gradient tells them apart
    masked, dropped = run(x, dy, mask=keep, **options), run(x[keep], dy[keep], **options)
    assert_close(masked.y[keep], dropped.y)
    assert_close(masked.dx[keep], dropped.dx)
    assert_same_state(masked.state, dropped.state)
    assert_same_state(masked.gradients, dropped.gradients)


@pytest.mark.parametrize("options", [{}, RENORM, {"unbiased_moving_variance": True}], ids=str)
def test_weight_two_counts_as_the_row_twice(options):
    x, dy = random((5, 3), 5), random((5, 3), 6)
    times = np.array([1, 2, 1, 2, 3])
    weighted = run(x, dy, batch_weights=times, **options)
    repeated = run(np.repeat(x, times, 0), np.repeat(dy / times[:, None], times, 0), **options)
    first = np.cumsum(times) - times
    assert_close(weighted.y, repeated.y[first])
    assert_close(weighted.dx, np.add.reduceat(repeated.dx, first))
    assert_same_state(weighted.state, repeated.state)
    assert_same_state(weighted.gradients, repeated.gradients)


def test_excluded_values_may_be_nan():
    x, mask = random((6, 4, 3), 8), np.arange(24).reshape(6, 4) % 3 > 0
    clean = run(np.where(mask[..., None], x, 0), np.ones(x.shape) * mask[..., None], mask=mask)
    dirty = run(np.where(mask[..., None], x, np.nan), np.ones(x.shape), mask=mask)
    assert_close(dirty.y[mask], clean.y[mask])
    assert_close(dirty.y[~mask], np.broadcast_to(fresh(x)[0]["beta"], dirty.y[~mask].shape))
    assert_close(dirty.dx[~mask], np.zeros(dirty.dx[~mask].shape))
    assert_same_state(dirty.gradients, clean.gradients)
    assert_same_state(dirty.state, clean.state)


@pytest.mark.parametrize("options", [{}, RENORM], ids=str)
def test_ghost_batches_are_separate_batches_and_an_average_of_their_moments(options):
    x, dy = random((6, 4, 3), 9), random((6, 4, 3), 10)
    last = {"momentum": 0.0, **options, "renorm_momentum": 0.0}
    ghost = run(x, dy, virtual_batch_size=2, **last)
    parts = [run(x[j::3], dy[j::3], **last) for j in range(3)]
    for j, part in enumerate(parts):
        assert_close(ghost.y[j::3], part.y)
        assert_close(ghost.dx[j::3], part.dx)
    variance = np.mean([x[j::3].var((0, 1)) for j in range(3)], 0)
    assert_close(ghost.state["moving_mean"], x.mean((0, 1)))
    assert_close(ghost.state["moving_variance"], variance)
    if options:
        assert_close(ghost.state["renorm_stddev"], np.sqrt(variance + 1e-3))


def test_pooled_ghost_batches_remember_the_whole_batch():
    x = random((6, 4, 3), 11)
    pooled = run(x, virtual_batch_size=2, pooled_moving_variance=True)
    assert_same_state(pooled.state, run(x).state)


def test_an_empty_ghost_batch_has_no_say_and_is_normalized_with_moving_statistics():
    x, options = random((6, 3), 12), {"virtual_batch_size": 3, **RENORM}
    ghost = run(x, mask=np.array([1, 0, 1, 0, 1, 0]), **options)
    assert_same_state(ghost.state, run(x[::2], **RENORM).state)
    assert_close(ghost.y[1::2], run(x[1::2], training=False, **RENORM).y)


def test_unclipped_renorm_normalizes_with_the_running_statistics():
    x = random((6, 4, 3), 13)
    parameters, state = fresh(x, **RENORM)
    expected = (x - state["renorm_mean"]) / state["renorm_stddev"]
    expected = expected * parameters["gamma"] + parameters["beta"]
    assert_close(run(x, virtual_batch_size=2, **RENORM).y, expected)


def test_an_assigned_moving_variance_survives_the_next_renorm_step():
    x, options = random((6, 3), 14), {"momentum": 1.0, **RENORM}
    parameters, state = fresh(x, **options)
    state["moving_variance"] = np.full(3, 9.0)
    result = run(x, start=(parameters, state), **options)
    assert_close(result.state["moving_variance"], 9.0)


def test_a_channel_with_nan_keeps_its_state_and_is_counted():
    x = random((6, 4), 15)
    before = fresh(x, zero_debias="both")[1]
    x[2, 1] = np.nan
    after = run(x, zero_debias="both").state
    assert_close(after["skipped_updates"], [0, 1, 0, 0])
    assert after["num_updates"] == 1
    for name in set(before) - {"num_updates", "skipped_updates"}:
        assert after[name][1] == before[name][1]
        assert np.all(after[name][[0, 2, 3]] != before[name][[0, 2, 3]])


def test_a_negative_variance_is_not_remembered():
    x = np.array([[0.0], [1.0], [5.0]])
    result = run(x, batch_weights=[1, 1, -1])
    assert_close(result.state["skipped_updates"], [1])
    assert_close(result.state["moving_mean"], fresh(x)[1]["moving_mean"])


def test_a_nonfinite_channel_is_written_on_request():
    x = np.array([[1.0, np.inf], [2.0, 3.0]])
    assert np.isnan(run(x, on_nonfinite="propagate").state["moving_variance"][1])


def test_a_nonfinite_channel_raises_on_request():
    with pytest.raises(FloatingPointError, match="channel 1"):
        run(np.array([[1.0, np.nan], [2.0, 3.0]]), on_nonfinite="raise")


@pytest.mark.parametrize("shape", [(0, 3), (4, 0, 3)])
def test_an_empty_batch_changes_nothing_but_the_counters(shape):
    x = np.zeros(shape)
    result = run(x, on_nonfinite="propagate")
    before = fresh(x)[1]
    assert_same_state(result.state, before, but=["num_updates", "skipped_updates"])
    assert_close(result.state["skipped_updates"], [1, 1, 1])
    assert_close(result.gradients["gamma"], [0, 0, 0])


def test_a_constant_channel_with_epsilon_zero_gives_the_offset():
    x = np.full((3, 2), 0.1)
    result = run(x, epsilon=0.0)
    assert_close(result.y, np.broadcast_to(fresh(x)[0]["beta"], x.shape))
    assert_close(result.dx, np.zeros(x.shape))


def test_a_debiased_first_step_remembers_the_batch():
    x = random((6, 3), 16)
    state = run(x, zero_debias="both").state
    assert_close(state["moving_mean"], x.mean(0))
    assert_close(state["moving_variance"], x.var(0))


def test_debiasing_with_momentum_one_leaves_the_averages_alone():
    x, before = random((6, 3), 16), fresh(np.zeros((6, 3)), zero_debias="both")[1]
    state = run(x, momentum=1.0, zero_debias="both").state
    assert_same_state(state, before, but=["local_step", "num_updates"])


def test_unbiased_renorm_keeps_the_reference_of_its_correction_biased():
    x, options = random((6, 3), 16), {"momentum": 0.0, "renorm": True, "renorm_momentum": 0.0}
    state = run(x, unbiased_moving_variance=True, **options).state
    assert_close(state["moving_variance"], x.var(0, ddof=1))
    assert_close(state["renorm_stddev"], np.sqrt(x.var(0) + 1e-3))


def test_ghost_batches_need_not_divide_the_batch_in_inference():
    x = random((5, 3), 16)
    assert_close(run(x, virtual_batch_size=2, training=False).y, run(x, training=False).y)


def test_a_bound_may_be_a_function_of_the_step():
    x, bound = random((6, 3), 17), {"rmax": lambda step: 1 + step, "dmax": lambda step: step}
    unlike_renorm = run(x, renorm_clipping={**bound, "rmin": 1.0}, **RENORM)
    assert_close(unlike_renorm.y, run(x).y)


def test_the_order_of_the_axes_is_irrelevant():
    x = random((4, 3, 2), 18)
    assert_close(run(x, axis=[2, 1]).y, run(x, axis=[1, -1]).y)


def test_update_statistics_is_independent_of_what_normalizes():
    x = random((6, 3), 19)
    result = run(x, training=False, update_statistics=True)
    assert_close(result.y, run(x, training=False).y)
    assert_same_state(result.state, run(x).state)
