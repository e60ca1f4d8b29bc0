"""JAX over eight devices: each runs the kernels on its part, and only vectors travel."""

from __future__ import annotations

from collections.abc import Callable

COMMON = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import batchnorm
import reference

flat = Mesh(np.array(jax.devices()), ("batch",))
grid = Mesh(np.array(jax.devices()).reshape(4, 2), ("batch", "model"))
rng = np.random.default_rng(0)

def setup(shape, axis, offset=3.0, **options):
    x = rng.normal(offset, 2.0, shape).astype("float32")
    dy = rng.normal(size=shape).astype("float32")
    _, state = batchnorm.init(jnp.asarray(x), axis=axis, renorm=options.get("renorm", False))
    size = next(iter(state.values())).shape
    parameters = {k: jnp.asarray(rng.uniform(0.5, 2, size), "float32") for k in ("gamma", "beta")}
    def loss(x, parameters, state, dy, given):
        y, new = batchnorm.batch_norm(x, parameters, state, axis=axis, **options, **given)
        return (y * dy).sum(), (y, new)
    return x, dy, parameters, state, jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

def check(shape, axis, mesh, spec, mask=False, training=True, offset=3.0, **options):
    options["training"] = training
    x, dy, parameters, state, step = setup(shape, axis, offset, **options)
    given = {"mask": jnp.asarray(rng.random(shape[:1]) < 0.7)} if mask else {}
    sharding = NamedSharding(mesh, spec)
    arguments = jax.device_put(x, sharding), parameters, state, jax.device_put(dy, sharding), given
    compiled = jax.jit(step).lower(*arguments).compile()
    text = compiled.as_text()
    assert ("batchnorm_" in text) is training  # inference is the framework's own operations
    for word in ("all-gather", "all-to-all", "collective-permute"):
        assert word not in text, (word, shape, spec, options)
    (_, (y, new)), (dx, slopes) = compiled(*arguments)
    assert y.sharding.is_equivalent_to(sharding, len(shape)), y.sharding
    assert dx.sharding.is_equivalent_to(sharding, len(shape)), dx.sharding
    wide = {k: np.asarray(v, "float64") for k, v in parameters.items()}
    held = {k: np.asarray(v, "float64" if v.dtype == "float32" else None) for k, v in state.items()}
    expected = reference.batch_norm(x.astype("float64"), wide, held, dy=dy, axis=axis, **options,
                                    **{k: np.asarray(v) for k, v in given.items()})
    for got, want in [(y, expected.y), (dx, expected.dx),
                      *((slopes[k], expected.gradients[k]) for k in slopes),
                      *((new[k], expected.state[k]) for k in new)]:
        want = np.asarray(want)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(1, np.abs(want).max()))
"""
DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


def test_a_sharded_step_gathers_nothing(python: Callable[..., str]) -> None:
    python(
        COMMON
        + """
LAST, FIRST = (64, 6, 5, 12), (64, 12, 6, 5)
check(LAST, -1, flat, P("batch"))
check(FIRST, 1, flat, P("batch"))
check(LAST, -1, flat, P("batch"), offset=1e5)
check(LAST, -1, flat, P("batch"), mask=True)
check(FIRST, 1, flat, P("batch"), mask=True, renorm=True)
check(LAST, -1, flat, P("batch"), training=False)
check(FIRST, 1, grid, P("batch", "model"))  # the channels too
check(LAST, -1, grid, P(("model", "batch")))  # devices in another order
check(LAST, -1, grid, P("batch", None, None, "model"))
check((64, 12, 6, 4), 1, grid, P("batch", None, "model"))  # an image's rows
check((64, 4, 5, 6), [1, 3], grid, P("batch", "model"))
""",
        **DEVICES,
    )


def test_ghost_batches_may_lie_across_devices(python: Callable[..., str]) -> None:
    python(
        COMMON
        + """
for v in (4, 8, 16):
    check((64, 6, 5, 12), -1, flat, P("batch"), virtual_batch_size=v)
check((64, 12, 6, 5), 1, grid, P(("model", "batch")), virtual_batch_size=4, mask=True)
""",
        **DEVICES,
    )


def test_shard_map_and_the_rest(python: Callable[..., str]) -> None:
    """Inside shard_map each device has its own statistics; parameters get the sum of gradients."""
    python(
        COMMON
        + """
x, dy, parameters, state, step = setup((64, 6, 12), -1, training=True)
each = [step(a, parameters, state, b, {}) for a, b in zip(np.split(x, 8), np.split(dy, 8))]
dx = jnp.concatenate([one[1][0] for one in each])
slopes = jax.tree.map(lambda *parts: sum(parts), *[one[1][1] for one in each])
for check_vma in (True, False):
    def local(x, dy):
        _, (dx, slopes) = step(x, parameters, state, dy, {})
        if not check_vma:
            slopes = jax.lax.psum(slopes, "batch")
        return dx, slopes
    mapped = jax.shard_map(local, mesh=flat, in_specs=P("batch"), out_specs=(P("batch"), P()),
                           check_vma=check_vma)
    got = jax.jit(mapped)(x, dy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, (dx, slopes))

sharding = NamedSharding(flat, P("batch"))
whole = step(jnp.asarray(x), parameters, state, dy, {})
operands = jax.device_put(x, sharding), parameters, state, jax.device_put(dy, sharding), {}
close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-5)
jax.tree.map(close, step(*operands), whole)  # operation by operation
pair = lambda v: jax.device_put(jnp.stack([v, v]), NamedSharding(flat, P(None, "batch")))
mapped = jax.jit(jax.vmap(step, (0, None, None, 0, None)))
operands = pair(x), parameters, state, pair(dy), {}
assert "all-gather" not in mapped.lower(*operands).compile().as_text()
jax.tree.map(lambda a, b: close(a[1], b), mapped(*operands), whole)
""",
        **DEVICES,
    )


def test_explicit_axes_of_a_mesh(python: Callable[..., str]) -> None:
    """JAX's own words for it were about a reshape; derivatives of rank 2 failed in the kernels."""
    python(
        COMMON
        + """
from jax.sharding import AxisType, auto_axes
explicit = jax.make_mesh((4, 2), ("batch", "model"), axis_types=(AxisType.Explicit,) * 2)

def compare(shape, axis, spec, hidden, **options):
    x, dy, parameters, state, step = setup(shape, axis, training=True, **options)
    want = jax.jit(step)(x, parameters, state, dy, {})
    def run(x, dy):
        out = ((P(), (spec, P())), (spec, P()))
        there = auto_axes(step, out_sharding=out) if hidden else step
        return there(x, parameters, state, dy, {})
    with jax.set_mesh(explicit):
        sharding = NamedSharding(explicit, spec)
        arguments = jax.device_put(x, sharding), jax.device_put(dy, sharding)
        compiled = jax.jit(run).lower(*arguments).compile()
        text = compiled.as_text()
        got = compiled(*arguments)
    assert ("batchnorm_" in text) is hidden
    for word in ("all-gather", "all-to-all", "collective-permute"):
        assert word not in text, (word, shape, spec, options)
    assert got[1][0].sharding.is_equivalent_to(sharding, len(shape))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-5), got, want)

compare((64, 6, 5, 12), -1, P("batch"), True)
compare((64, 12, 6, 5), 1, P("batch"), True, virtual_batch_size=8)
compare((64, 6, 5, 12), -1, P(("batch", "model")), True, renorm=True)
compare((64, 12), -1, P("batch"), False)

x, dy, parameters, state, step = setup((64, 6, 12), -1, training=True)
x = jax.device_put(x, NamedSharding(explicit, P("batch")))
hint = "jax.sharding.auto_axes"
for fused, words in ((None, "JAX cannot reshape float32[64@batch,6,12] to (1, 1, 384, 12, 1)"),
                     (True, "fused must be None or False here; got True. The kernels know no")):
    for call in (batchnorm.batch_norm, jax.jit(batchnorm.batch_norm, static_argnames="fused")):
        try:
            call(x, parameters, state, fused=fused)
        except ValueError as error:
            assert words in str(error) and hint in str(error), error
        else:
            raise AssertionError("nothing was refused")
assert batchnorm.why_not(jax.device_put(np.asarray(x), NamedSharding(flat, P("batch")))) is None
""",
        **DEVICES,
    )
