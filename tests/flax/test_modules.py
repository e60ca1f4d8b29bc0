"""Our modules beside flax's: the same trees, numbers and types; and right where flax's are not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference

RNG = np.random.default_rng(5)
PLAIN: list[dict[str, Any]] = [
    {},
    {"use_scale": False},
    {"use_bias": False, "momentum": 0.8, "epsilon": 1e-2},
    {"axis": 1},
    {"axis": 1, "use_fast_variance": False},
]


def pair(api: Any, x: Any, **options: Any) -> tuple[Any, Any]:
    """flax's module and ours with the same random variables."""
    axis = options.get("axis", -1)
    made = []
    for ours in (False, True):
        module = api(ours, np.shape(x)[axis], **options)
        module.init(jnp.asarray(x))
        made.append(module)
    start = {
        name: RNG.uniform(0.5, 2, value.shape).astype(value.dtype)
        for name, value in made[0].variables().items()
    }
    for module in made:
        module.load(start)
    return made[0], made[1]


def close(got: Any, wanted: Any, tolerance: float) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, "float64"), np.asarray(b, "float64"), rtol=tolerance, atol=tolerance
        ),
        got,
        wanted,
    )


@pytest.mark.parametrize("options", PLAIN, ids=str)
def test_trees_training_and_inference_equal_flaxs(api: Any, options: dict[str, Any]) -> None:
    x, dy = (RNG.normal(0, 2, (8, 5, 3)).astype("float32") for _ in range(2))
    theirs, mine = pair(api, x, **options)
    assert mine.tree() == theirs.tree()
    for _ in range(2):
        close(mine.step(x, dy), theirs.step(x, dy), 2e-5)
    close(mine.variables(), theirs.variables(), 2e-5)
    close(mine(x, training=False), theirs(x, training=False), 2e-5)


def test_far_from_zero_ours_is_right_to_2e_6(api: Any) -> None:
    x = RNG.normal(1e4, 1, (64, 3)).astype("float32")
    theirs, mine = pair(api, x)
    held = mine.variables()
    wanted = reference.batch_norm(
        x.astype("float64"),
        {"gamma": held["scale"], "beta": held["bias"]},
        {"moving_mean": held["mean"], "moving_variance": held["var"]},
        training=True,
        epsilon=1e-5,
    )
    assert np.abs(np.asarray(mine(x)) - wanted.y).max() <= 2e-6 * np.abs(held["scale"]).max() * 4
    close(mine.variables()["var"], wanted.state["moving_variance"], 2e-6)
    assert np.abs(np.asarray(theirs(x)) - wanted.y).max() > 0.1  # no digit of theirs is right


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("given", ["float32", "bfloat16"])
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_types_are_flaxs(api: Any, given: str, dtype: str | None, param_dtype: str) -> None:
    x = jnp.asarray(RNG.normal(0, 2, (16, 3)), given)
    theirs, mine = pair(
        api, x, dtype=dtype and jnp.dtype(dtype), param_dtype=jnp.dtype(param_dtype)
    )
    assert mine.tree() == theirs.tree()
    for training in (True, False):
        got, wanted = mine(x, training=training), theirs(x, training=training)
        assert got.dtype == wanted.dtype
        close(got, wanted, 1e-5 if got.dtype == given == "float32" else 5e-2)
    assert mine.variables()["var"].dtype == theirs.variables()["var"].dtype


@pytest.mark.parametrize(
    ("axis", "shape"), [(-1, (8, 5, 1)), (-1, (5, 1)), (-1, (1, 5, 1)), (1, (8, 1, 3)), (1, (1, 3))]
)
def test_a_mask_broadcasts_from_the_right_as_flaxs(
    api: Any, axis: int, shape: tuple[int, ...]
) -> None:
    x = RNG.normal(0, 2, (8, 5, 3)).astype("float32")
    mask = RNG.random(shape) < 0.6
    mask.flat[0] = True
    mask = jnp.asarray(mask)
    theirs, mine = pair(api, x, axis=axis)
    close(mine(x, mask=mask), theirs(x, mask=mask), 2e-5)
    close(mine.variables(), theirs.variables(), 2e-5)


def test_a_mask_that_does_not_fit_from_the_right_is_read_from_the_left(api: Any) -> None:
    x = RNG.normal(0, 2, (8, 5, 3)).astype("float32")
    mask = jnp.asarray(RNG.random((8, 5)) < 0.6)
    theirs, mine = pair(api, x)
    close(mine(x, mask=mask), theirs(x, mask=mask[:, :, None]), 2e-5)


def test_a_mask_by_channel_is_refused_in_words(api: Any) -> None:
    x = RNG.normal(0, 2, (8, 5, 3)).astype("float32")
    _, mine = pair(api, x)
    with pytest.raises(ValueError, match="mask") as caught:
        mine(x, mask=jnp.ones((5, 3), bool))
    assert str(caught.value) == (
        "BatchNorm: mask must be 1 on axis [2], broadcast from the right as flax does; got the "
        "shape (5, 3) for an input of shape (8, 5, 3). A position counts for all channels or for "
        "none."
    )


def test_named_axes_share_statistics_as_flaxs(api: Any) -> None:
    x = RNG.normal(0, 2, (2, 3, 4, 3)).astype("float32")

    def mapped(module: Any) -> Any:
        inner = jax.vmap(lambda x: module(x), axis_name="i")
        return jax.vmap(inner, axis_name="j")(x)

    theirs, mine = pair(api, x[0, 0], axis_name=("i", "j"))
    if api.name == "nnx":  # its variables cannot change inside of jax.vmap
        theirs.module.momentum = mine.module.momentum = 1.0
        theirs, mine = (nnx_outputs(one) for one in (theirs, mine))
    close(mapped(mine), mapped(theirs), 2e-5)


def nnx_outputs(one: Any) -> Any:
    from flax import nnx

    graph, state = nnx.split(one.module)
    return lambda x: nnx.merge(graph, state, copy=True)(x, use_running_average=False)


@pytest.mark.parametrize(
    ("groups", "mesh", "place"),
    [([[0, 1], [2, 3], [4, 5]], "3 and 2", "second"), ([[0, 2, 4], [1, 3, 5]], "3 and 2", "first")],
)
def test_groups_within_an_axis_are_refused_with_the_mesh_to_make(
    api: Any, groups: Any, mesh: str, place: str
) -> None:
    with pytest.raises(ValueError, match="axis_index_groups") as caught:
        api(True, 3, axis_name="i", axis_index_groups=groups).init(jnp.ones((4, 3)))
    assert str(caught.value) == (
        f"BatchNorm: axis_index_groups must be None or one group of all; got {groups}. Make the "
        f"mesh axis of 6 devices two axes, of {mesh}, and give the name of the {place} one as "
        "axis_name."
    )


def test_a_nan_leaves_the_statistics_alone(api: Any) -> None:
    x = np.ones((4, 3), "float32")
    x[1, 2] = np.nan
    _, mine = pair(api, x)
    before = mine.variables()
    mine(x)
    after = mine.variables()
    assert (after["mean"][:2] != before["mean"][:2]).all()
    for name in ("mean", "var"):
        assert after[name][2] == before[name][2]


MODES: list[dict[str, Any]] = [
    {"renorm": True, "renorm_clipping": {"rmax": 1.2, "dmax": 0.5}, "renorm_momentum": 0.9},
    {"virtual_batch_size": 2, "zero_debias": "both"},
    {"statistics": "moving", "update_statistics": True, "unbiased_moving_variance": True},
]


@pytest.mark.parametrize("options", MODES, ids=lambda options: "-".join(options))
def test_every_mode_is_that_of_the_function(api: Any, options: dict[str, Any]) -> None:
    x, dy = (RNG.normal(1, 2, (8, 5, 3)).astype("float32") for _ in range(2))
    mine = api(True, 3, momentum=0.9, **options)
    mine.init(jnp.asarray(x))
    names = {"mean": "moving_mean", "var": "moving_variance", "scale": "gamma", "bias": "beta"}
    for _ in range(2):
        held = {names.get(name, name): value for name, value in mine.variables().items()}
        parameters = {name: held.pop(name) for name in ("gamma", "beta")}
        if "renorm" in options:
            held["moving_stddev"] = np.sqrt(held["moving_variance"] + 1e-5)
        wanted = reference.batch_norm(
            x.astype("float64"),
            parameters,
            held,
            dy=dy,
            training=True,
            momentum=0.9,
            epsilon=1e-5,
            **options,
        )
        y, dx, slopes = mine.step(x, dy)
        close([y, dx], [wanted.y, wanted.dx], 2e-5)
        close(slopes, {"scale": wanted.gradients["gamma"], "bias": wanted.gradients["beta"]}, 5e-5)
        for name, value in mine.variables().items():
            if name not in ("scale", "bias"):
                close(value, wanted.state[names.get(name, name)], 2e-5)


def test_relu_runs_inside(api: Any) -> None:
    x = RNG.normal(1, 2, (8, 3)).astype("float32")
    mine, plain = api(True, 3, activation="relu"), api(True, 3)
    for one in (mine, plain):
        one.init(jnp.asarray(x))
    close(mine(x), jax.nn.relu(plain(x)), 1e-6)


def test_another_number_of_features_is_refused(api: Any) -> None:
    norm = api(True, 3, use_scale=False, use_bias=False)
    norm.init(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="features") as caught:
        norm(jnp.ones((2, 4)))
    assert str(caught.value) == (
        "BatchNorm: x must have 3 features on axis [1], as the module was made for; got 4 in an "
        "input of shape (2, 4)."
    )


def test_an_option_is_checked_when_the_module_is_made(api: Any) -> None:
    with pytest.raises(ValueError, match="statistics") as caught:
        api(True, 3, statistics="both").init(jnp.ones((2, 3)))
    assert str(caught.value) == (
        "BatchNorm: statistics must be one of 'auto', 'batch', 'moving'; got 'both'."
    )
