"""One batch over devices of JAX: shard_map, pmap and vmap."""

from __future__ import annotations

import dataclasses
import re
import socket
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchnorm
import launcher
import replicated

both_paths = pytest.mark.parametrize("fused", [False, None], ids=["composite", "fused"])
each_mode = pytest.mark.parametrize("name", replicated.NAMES)


@pytest.fixture(scope="module", params=(1, 2, 4))
def devices(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    """How many devices, and what they found."""
    folder = tmp_path_factory.mktemp(f"jax{request.param}")
    (found,) = launcher.launch("jax_replicas", request.param, folder, processes=1)
    return request.param, found


@both_paths
@each_mode
def test_devices_in_shard_map_equal_one_with_all_the_rows(
    devices: tuple[int, dict[str, Any]], name: str, fused: bool | None
) -> None:
    count, found = devices
    replicated.check(replicated.case(name, count), found["modes"][name, fused][0])


@both_paths
@each_mode
def test_a_layer_sends_one_message_forward_and_one_backward_as_documented(
    devices: tuple[int, dict[str, Any]], name: str, fused: bool | None
) -> None:
    count, found = devices
    if count == 1:
        return  # see below
    case = replicated.case(name, count)
    kind = f"f{8 * replicated.width(case)}"
    names = zip(("all_gather", "psum"), (count, 1), strict=True)  # gathering gives all rows
    wanted = [
        (function, kind, rows * size)
        for (function, rows), size in zip(names, replicated.messages_of(case), strict=False)
    ]
    assert found["modes"][name, fused][1] == wanted


def over_one_device(synchronized: Any) -> Any:
    """A step and its gradient in shard_map over one device, which checks that state is whole."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",))
    parts, whole = jax.sharding.PartitionSpec("batch"), jax.sharding.PartitionSpec()

    def function(x: Any) -> Any:
        parameters, state = batchnorm.init(x)

        def loss(x: Any) -> Any:
            y, new = batchnorm.batch_norm(
                x, parameters, state, training=True, synchronized=synchronized
            )
            return (y**3).sum(), new

        return jax.grad(loss, has_aux=True)(x)

    if not synchronized:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=parts, out_specs=(parts, whole))


def test_one_device_takes_the_kernels_of_the_plain_function_and_sends_no_sums() -> None:
    x = jnp.ones((8, 3))
    found = [str(jax.make_jaxpr(over_one_device(how))(x)) for how in ("batch", False)]
    synchronized, plain = (re.findall(r"target_name=(\w+)", text) for text in found)
    assert synchronized == plain
    assert "psum" not in found[0]


def test_one_device_gives_the_bits_of_the_plain_function() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(1e4, 1, (9, 3)), "float32")
    synchronized, plain = (jax.jit(over_one_device(how))(x) for how in ("batch", False))
    jax.tree.map(np.testing.assert_array_equal, synchronized, plain)


@pytest.mark.parametrize("how", ["unchecked", "pmap", "vmap"])
@both_paths
@pytest.mark.parametrize("name", ["mean 1e4", "renorm and mask"])
def test_other_maps_do_the_same(
    devices: tuple[int, dict[str, Any]], name: str, fused: bool | None, how: str
) -> None:
    count, found = devices
    replicated.check(replicated.case(name, count), found["maps"][name, fused, how])


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of two processes of `jax.distributed` found."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        port = one.getsockname()[1]
    return launcher.launch("jax_processes", 2, tmp_path_factory.mktemp("jax"), port)


@both_paths
@pytest.mark.parametrize("name", ["mean 1e4", "renorm and mask"])
def test_processes_equal_one_with_all_the_rows(
    processes: list[dict[Any, Any]], name: str, fused: bool | None
) -> None:
    replicated.check(replicated.case(name, 2), [one[name, fused] for one in processes])


@pytest.mark.parametrize("synchronized", [True, False])
def test_under_jit_a_sharded_batch_is_one_batch_whatever_synchronized_says(
    devices: tuple[int, dict[str, Any]], synchronized: bool
) -> None:
    count, found = devices
    one = replicated.case("mean 1e4", count, replicated.EQUAL)
    replicated.check(one, [found["jit"][synchronized]])


def test_under_jit_ghost_batches_make_statistics_of_the_size_of_a_device(
    devices: tuple[int, dict[str, Any]],
) -> None:
    """As many groups as devices; each takes every so many-th row, not those of one device."""
    count, found = devices
    one = replicated.case("mean 1e4", count, replicated.EQUAL)
    options = {**one.options, "virtual_batch_size": 8 // count}
    together = dataclasses.replace(one, rows=(8,), options=options)
    replicated.check(together, [found["jit"]["ghost"]])


@both_paths
def test_second_derivatives_are_those_of_one_device(fused: bool | None) -> None:
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(3, 1, (2, 4, 3))) for _ in range(2))
    parameters, state = batchnorm.init(x[0])

    def penalty(x: Any, dy: Any, fused: bool | None, synchronized: Any) -> Any:
        options = {"training": True, "fused": fused, "synchronized": synchronized}

        def loss(x: Any) -> Any:
            y, _ = batchnorm.batch_norm(x, parameters, state, **options)
            return (y**2 * dy).sum()

        return jax.grad(lambda x: (jax.grad(loss)(x) ** 2).sum())(x)

    each = jax.vmap(lambda x, dy: penalty(x, dy, fused, "batch"), axis_name="batch")
    got = each(x, dy).reshape(8, 3)
    wanted = penalty(x.reshape(8, 3), dy.reshape(8, 3), False, False)
    np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-4 * float(abs(wanted).max()))


def step(x: Any, synchronized: Any) -> Any:
    parameters, state = batchnorm.init(x)
    return batchnorm.batch_norm(x, parameters, state, training=True, synchronized=synchronized)[0]


def refused(error: type[Exception], function: Any, x: Any) -> str:
    with pytest.raises(error) as caught:
        function(x)
    return str(caught.value)


def test_true_inside_a_named_axis_asks_for_its_name() -> None:
    mapped = jax.vmap(lambda x: step(x, True), axis_name="batch")
    assert refused(RuntimeError, mapped, jnp.ones((2, 4, 3))) == (
        "batch_norm: synchronized must name an axis inside shard_map, pmap or a named vmap; got "
        "True inside the axes ['batch']. Write synchronized='batch'."
    )


def test_a_name_of_no_axis_is_refused() -> None:
    assert refused(RuntimeError, lambda x: step(x, "batch"), jnp.ones((4, 3))) == (
        "batch_norm: synchronized (flax's axis_name) must name an axis of the shard_map, pmap or "
        "vmap around it; got 'batch' inside the axes []. Under jax.jit with a sharded batch "
        "statistics are global as it is: write synchronized=True, or axis_name=None."
    )


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (
            ("a", 3),
            TypeError,
            "True, False, the name of a mapped axis or a tuple of such; got ('a', 3).",
        ),
        (("a", "a"), ValueError, "at least one axis, and each once; got ('a', 'a')."),
        ((), ValueError, "at least one axis, and each once; got ()."),
    ],
)
def test_something_else_is_refused(names: Any, error: type[Exception], words: str) -> None:
    verb = "be" if error is TypeError else "name"
    found = refused(error, lambda x: step(x, names), jnp.ones((4, 3)))
    assert found == f"batch_norm: synchronized must {verb} {words}"


@both_paths
def test_two_axes_are_one_batch(fused: bool | None) -> None:
    rng = np.random.default_rng(1)
    x, dy = (jnp.asarray(rng.normal(3, 1, (2, 3, 4, 5)), "float32") for _ in range(2))
    parameters, state = batchnorm.init(x[0, 0])

    def slopes(x: Any, dy: Any, fused: bool | None, synchronized: Any) -> Any:
        def loss(x: Any) -> Any:
            options = {"training": True, "fused": fused, "synchronized": synchronized}
            y, new = batchnorm.batch_norm(x, parameters, state, **options)
            return (y * dy).sum(), (y, new)

        return jax.grad(loss, has_aux=True)(x)

    inner = jax.vmap(lambda x, dy: slopes(x, dy, fused, ("i", "j")), axis_name="j")
    dx, (y, new) = jax.jit(jax.vmap(inner, axis_name="i"))(x, dy)
    rows = (24, 5)
    wanted = jax.jit(lambda x, dy: slopes(x, dy, False, False))(x.reshape(rows), dy.reshape(rows))
    found = dx.reshape(rows), (y.reshape(rows), jax.tree.map(lambda one: one[0, 0], new))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)
