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

def check(shape, axis, mesh, spec, mask=False, training=True, offset=3.0, kernels=True,
          compiled=True, vectors=None, **options):
    options["training"] = training
    x, dy, parameters, state, step = setup(shape, axis, offset, **options)
    given = {"mask": jnp.asarray(rng.random(shape[:1]) < 0.7)} if mask else {}
    sharding = NamedSharding(mesh, spec)
    arguments = jax.device_put(x, sharding), parameters, state, jax.device_put(dy, sharding), given
    if vectors is not None:
        put = lambda v: jax.device_put(v, NamedSharding(mesh, vectors if v.ndim else P()))
        arguments = (arguments[0], *jax.tree.map(put, (parameters, state)), *arguments[3:])
    if compiled:
        step = jax.jit(step).lower(*arguments).compile()
        text = step.as_text()
        # inference is the framework's own operations
        assert ("batchnorm_" in text) is (training and kernels)
        for word in ("all-gather", "all-to-all", "collective-permute"):
            assert word not in text, (word, shape, spec, options)
    (_, (y, new)), (dx, slopes) = step(*arguments)
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

axes = ("batch", "model")  # two mesh axes as one
together = setup((64, 6, 12), -1, training=True, synchronized=axes)[-1]
whole = jax.jit(step)(x, parameters, state, dy, {})
def replica(x, dy):
    (_, (y, new)), (dx, _) = together(x, parameters, state, dy, {})
    return y, dx, new
mapped = jax.shard_map(replica, mesh=grid, in_specs=P(axes), out_specs=(P(axes), P(axes), P()))
got = jax.jit(mapped)(x, dy)
want = whole[0][1][0], whole[1][0], whole[0][1][1]
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)

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


EXPLICIT = """
from jax.sharding import AxisType, auto_axes
explicit = jax.make_mesh((4, 2), ("batch", "model"), axis_types=(AxisType.Explicit,) * 2)

def there(*arguments, **options):
    with jax.set_mesh(explicit):
        check(*arguments, kernels=False, **options)
"""


def test_explicit_axes_of_a_mesh(python: Callable[..., str]) -> None:
    """What plain operations on x do there: each device its part of batch and channels."""
    python(
        COMMON
        + EXPLICIT
        + """
there((64, 6, 5, 12), -1, explicit, P("batch"), offset=1e4)
there((64, 12, 6, 5), 1, explicit, P("batch", "model"), vectors=P("model"))
there((64, 4, 5, 6), [1, 3], explicit, P("batch", "model"), vectors=P(None, "model"))
there((64, 12, 6), 1, explicit, P("batch", "model"), training=False, vectors=P("model"))
there((64, 6, 12), -1, explicit, P(("batch", "model")), mask=True, renorm=True)
there((64, 6, 12), -1, explicit, P("batch"), virtual_batch_size=8)
there((64, 12, 6), 1, explicit, P("batch", "model"), compiled=False)
""",
        **DEVICES,
    )


def test_hidden_axes_of_an_explicit_mesh_take_the_kernels(python: Callable[..., str]) -> None:
    python(
        COMMON
        + EXPLICIT
        + """
x, dy, parameters, state, step = setup((64, 6, 5, 12), -1, training=True)
want = jax.jit(step)(x, parameters, state, dy, {})
spec = P("batch")
hidden = auto_axes(step, out_sharding=((P(), (spec, P())), (spec, P())))
with jax.set_mesh(explicit):
    sharding = NamedSharding(explicit, spec)
    arguments = jax.device_put(x, sharding), parameters, state, jax.device_put(dy, sharding), {}
    compiled = jax.jit(hidden).lower(*arguments).compile()
    got = compiled(*arguments)
assert "batchnorm_" in compiled.as_text()
assert "all-gather" not in compiled.as_text()
assert got[1][0].sharding.is_equivalent_to(sharding, 4)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-5), got, want)
""",
        **DEVICES,
    )


def test_a_function_with_hidden_axes_reads_vectors_that_are_whole(
    python: Callable[..., str],
) -> None:
    """JAX hides the axes of arguments only: a vector that is sharded must be one."""
    python(
        COMMON
        + EXPLICIT
        + """
x, dy, parameters, state, step = setup((64, 6, 12), -1, training=True)
x, spec, vectors = jnp.asarray(x), P("batch", None, "model"), P("model")
held = parameters, state

def call(x):
    return batchnorm.batch_norm(x, *held, training=True)

want = call(x)
close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)
with jax.set_mesh(explicit):
    there = jax.device_put(x, NamedSharding(explicit, spec))
    hidden = auto_axes(call, out_sharding=(spec, P()))
    for function in (hidden, jax.jit(hidden)):
        jax.tree.map(close, function(there), want)
    sharded = {name: jax.device_put(one, NamedSharding(explicit, vectors))
               for name, one in parameters.items()}
    held = sharded, state
    for function in (hidden, jax.jit(lambda x: hidden(x))):
        try:
            function(there)
        except ValueError as error:
            assert str(error).endswith("give the function all that it reads as arguments, "
                                       "parameters and state too."), error
        else:
            raise AssertionError("nothing was refused")
    given = auto_axes(lambda x, p: batchnorm.batch_norm(x, p, state, training=True),
                      out_sharding=(spec, P()))
    jax.tree.map(close, given(there, sharded), want)
""",
        **DEVICES,
    )


def test_what_explicit_axes_cannot_do_is_refused_in_words(python: Callable[..., str]) -> None:
    python(
        COMMON
        + EXPLICIT
        + """
x, dy, parameters, state, step = setup((64, 6, 12), -1, training=True)
x = jax.device_put(x, NamedSharding(explicit, P("batch")))
why = "The kernels know no explicit axes of a mesh; jax.sharding.auto_axes hides them."
for options, words in (
    ({"fused": True}, "batch_norm: fused must be None or False here; got True. " + why),
    ({"virtual_batch_size": 2}, "batch_norm: JAX cannot reshape float32[64@batch,6,12] to "
     "(2, 32, 6, 12) over the explicit axes of a mesh. Call batch_norm in "
     "jax.sharding.auto_axes, and give the function all that it reads as arguments, "
     "parameters and state too."),
):
    def call(x):
        return batchnorm.batch_norm(x, parameters, state, training=True, **options)[0]
    for function in (call, jax.jit(call)):
        try:
            function(x)
        except ValueError as error:
            assert str(error) == words, error
        else:
            raise AssertionError("nothing was refused")
assert batchnorm.why_not(x) == why
assert batchnorm.why_not(jax.device_put(np.asarray(x), NamedSharding(flat, P("batch")))) is None
""",
        **DEVICES,
    )
