"""Compilers: sizes left open, one trace for all steps, transformations of functions."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import batchnorm
import engines
from strategies import call_on, random_state
from test_batch_norm import assert_agree, assert_close, by_reference

RNG = np.random.default_rng(6)
X = RNG.normal(1.0, 2.0, (6, 4, 3)).astype("float32")
RENORM = {
    "renorm": True,
    "renorm_clipping": {"rmax": lambda step: 1.1 + 0.1 * step, "dmax": 0.5},
    "zero_debias": "mean",
}


TENSORFLOW, JAX, TORCH = (
    pytest.mark.parametrize("engine", [name], indirect=True)
    for name in ("tensorflow", "jax", "torch")
)


def tensors(engine: engines.Engine, arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: engine.tensor(value) for name, value in arrays.items()}


# TensorFlow: sizes that are unknown until run time.


@TENSORFLOW
@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"), [((None, None, None, 3), -1), ((None, 3, None, None), 1)]
)
def test_batch_and_spatial_sizes_may_be_unknown(
    engine: engines.Engine, shape: tuple[Any, ...], axis: int, xla: bool
) -> None:
    import tensorflow as tf

    options = {"axis": axis, "training": True, **RENORM}
    mask_shape = [size for i, size in enumerate(shape) if i != axis % 4]
    state = random_state(RNG, (3,), options)

    @tf.function(
        jit_compile=xla,
        input_signature=[tf.TensorSpec(shape), tf.TensorSpec(mask_shape, tf.bool)],
    )
    def step(x: Any, mask: Any) -> Any:
        held = tensors(engine, state)
        y, new = batchnorm.batch_norm(x, {}, held, mask=mask, **options)
        assert y.shape.as_list() == list(shape)
        return y, new

    for sizes in ((2, 4, 5), (3, 1, 2)):
        full = [*sizes, 3] if axis == -1 else [sizes[0], 3, *sizes[1:]]
        x = RNG.normal(size=full).astype("float32")
        mask = RNG.random(sizes) < 0.8
        call = call_on(RNG, x, (), {"mask": mask}, **options)
        call.state = state
        y, new = step(engine.tensor(x), engine.tensor(mask))
        expected = by_reference(call)
        assert_close(engine.numpy(y), expected["y"], 1e-4, "y")
        for name, value in expected["state"].items():
            assert_close(engine.numpy(new[name]), value, 1e-4, name)


@TENSORFLOW
@pytest.mark.parametrize(("known", "xla"), [(True, False), (False, False), (True, True)])
def test_a_tensor_training_groups_when_it_is_true(
    engine: engines.Engine, known: bool, xla: bool
) -> None:
    """D02: TensorFlow 2 silently normalizes over the whole batch here."""
    import tensorflow as tf

    options = {"virtual_batch_size": 2, **RENORM}
    state = random_state(RNG, (3,), options)
    spec = tf.TensorSpec((6 if known else None, None, 3))

    @tf.function(jit_compile=xla, input_signature=[spec, tf.TensorSpec((), tf.bool)])
    def step(x: Any, training: Any) -> Any:
        held = tensors(engine, state)
        return batchnorm.batch_norm(x, {}, held, training=training, **options)

    for samples, training in ((6, True), (6, False), (5, False), (1, False)):
        if known and samples != 6:
            continue
        call = call_on(RNG, X[:samples], (), training=training, **options)
        call.state = state
        y, new = step(engine.tensor(call.x), engine.tensor(np.array(training)))
        expected = by_reference(call)
        assert_close(engine.numpy(y), expected["y"], 1e-4, "y")
        for name, value in expected["state"].items():
            assert_close(engine.numpy(new[name]), value, 1e-4, name)


@TENSORFLOW
def test_a_batch_that_ghosts_do_not_divide_is_refused_at_run_time(engine: engines.Engine) -> None:
    import tensorflow as tf

    state = random_state(RNG, (3,), {})

    @tf.function(input_signature=[tf.TensorSpec((None, 3))])
    def step(x: Any) -> Any:
        held = tensors(engine, state)
        return batchnorm.batch_norm(x, {}, held, training=True, virtual_batch_size=2)

    step(tf.zeros((4, 3)))
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        step(tf.zeros((5, 3)))
    assert (
        "batch_norm: virtual_batch_size must divide the batch in training; got 2 for a batch of "
        "another size. Drop or pad the last batch."
    ) in str(caught.value)


@TENSORFLOW
def test_an_unknown_channel_size_is_refused(engine: engines.Engine) -> None:
    import tensorflow as tf

    state = tensors(engine, random_state(RNG, (3,), {}))

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((4, None))])
    def step(x: Any) -> Any:
        return batchnorm.batch_norm(x, {}, state, training=True)

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message follows
        step(tf.zeros((4, 3)))
    assert str(caught.value) == (
        "batch_norm: the input must have a known size on axis 1; got an unknown one. Set its "
        "static shape."
    )


@TENSORFLOW
def test_a_state_may_come_without_a_shape(engine: engines.Engine) -> None:
    import tensorflow as tf

    call = call_on(np.random.default_rng(2), X, training=True, renorm=True)
    state = tensors(engine, call.state)
    open_ = [
        {
            name: tf.TensorSpec([None] * len(value.shape), value.dtype)
            for name, value in given.items()
        }
        for given in (tensors(engine, call.parameters), state)
    ]

    @tf.function(autograph=False, input_signature=open_)
    def step(parameters: Any, state: Any) -> Any:
        return batchnorm.batch_norm(engine.tensor(X), parameters, state, **call.options)

    y, new = step(tensors(engine, call.parameters), state)
    expected = by_reference(call)
    assert_close(engine.numpy(y), expected["y"], 1e-4, "y")
    for name, value in expected["state"].items():
        assert_close(engine.numpy(new[name]), value, 1e-4, name)


# One trace serves all steps.


def test_nothing_is_traced_again_from_step_to_step(engine: engines.Engine) -> None:
    traces = []
    options = {"training": True, "virtual_batch_size": 2, **RENORM}

    def step(x: Any, parameters: Any, state: Any) -> Any:
        if engine.name != "torch":
            traces.append(1)
        y, state = batchnorm.batch_norm(x, parameters, state, **options)
        return y, state

    if engine.name == "torch":
        import torch
        from torch._dynamo.testing import CompileCounter

        counter = CompileCounter()
        torch._dynamo.reset()
        compiled = torch.compile(step, fullgraph=True, backend=counter)
    else:
        compiled = engine.compile(step, engine.modes[1])
    call = call_on(RNG, X, **options)
    parameters, state = tensors(engine, call.parameters), tensors(engine, call.state)
    for _ in range(4):
        _, state = compiled(engine.tensor(X), parameters, state)
    assert (counter.frame_count if engine.name == "torch" else len(traces)) == 1
    assert int(engine.numpy(state["num_updates"])) == call.state["num_updates"] + 4


# Transformations of functions.


@JAX
def test_vmap_is_a_loop(engine: engines.Engine) -> None:
    import jax

    options = {"training": True, "virtual_batch_size": 2, **RENORM}
    calls = [call_on(RNG, RNG.normal(size=X.shape).astype("float32"), **options) for _ in range(2)]

    def loss(x: Any, dy: Any, parameters: Any, state: Any) -> Any:
        y, new = batchnorm.batch_norm(x, parameters, state, **options)
        return (y * dy).sum(), (y, new)

    arguments = [(engine.tensor(c.x), engine.tensor(c.dy), c.parameters, c.state) for c in calls]
    stacked = jax.tree.map(lambda *parts: jax.numpy.stack(parts), *arguments)
    gradient = jax.value_and_grad(loss, has_aux=True)
    (_, (y, new)), dx = jax.jit(jax.vmap(gradient))(*stacked)
    for i, call in enumerate(calls):
        expected = by_reference(call)
        assert_close(np.asarray(y[i]), expected["y"], 1e-4, "y")
        assert_close(np.asarray(dx[i]), expected["dx"], 1e-4, "dx")
        for name, value in expected["state"].items():
            assert_close(np.asarray(new[name][i]), value, 1e-4, name)


@TORCH
def test_a_whole_training_step_compiles_as_one_graph(engine: engines.Engine) -> None:
    """torch.compile(fullgraph=True) of the loss, its state and its gradient."""
    import torch

    call = call_on(RNG, X, given={"mask": RNG.random((6, 4)) < 0.7}, training=True, **RENORM)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x: Any, dy: Any, parameters: Any, state: Any, mask: Any) -> Any:
        y, new = batchnorm.batch_norm(x, parameters, state, mask=mask, training=True, **RENORM)
        return (y * dy).sum(), y, new

    torch._dynamo.reset()
    x = engine.tensor(X).requires_grad_()
    parameters = {k: v.requires_grad_() for k, v in tensors(engine, call.parameters).items()}
    value, y, new = step(
        x, engine.tensor(call.dy), parameters, tensors(engine, call.state),
        engine.tensor(call.given["mask"]),
    )  # fmt: skip
    value.backward()
    got = {"y": engine.numpy(y), "dx": engine.numpy(x.grad)}
    got |= {name: engine.numpy(value.grad) for name, value in parameters.items()}
    got["state"] = {name: engine.numpy(value) for name, value in new.items()}
    assert_agree(got, by_reference(call))


@pytest.mark.parametrize("name", ["plain", "renorm"])
def test_a_checkpointed_block_gives_the_same_state_once(engine: engines.Engine, name: str) -> None:
    """pytorch/pytorch#96136: a module updates its statistics again when it is recomputed."""
    options = {"training": True, **(RENORM if name == "renorm" else {})}
    call = call_on(RNG, X, **options)
    upstream, state = engine.tensor(call.dy), tensors(engine, call.state)

    def block(x: Any) -> Any:
        y, new = batchnorm.batch_norm(x, tensors(engine, call.parameters), state, **options)
        return y, new

    checkpointed = engine.checkpoint(block)

    def loss(x: Any) -> Any:
        y, new = checkpointed(x)
        return engines.total(y * upstream), (y, new)

    (_, (y, new)), (dx,) = engine.gradients(loss, engine.tensor(X))
    expected = by_reference(call)
    assert_close(engine.numpy(y), expected["y"], 1e-4, "y")
    assert_close(engine.numpy(dx), expected["dx"], 1e-4, "dx")
    for key, value in expected["state"].items():
        assert_close(engine.numpy(new[key]), value, 1e-4, key)


FIRST_CALLS = {
    "function": "lambda x: batchnorm.batch_norm(x, {}, {}, statistics='batch', training=False)[0]",
    "module": "batchnorm.torch.BatchNorm1d(4)",
}


@TORCH
@pytest.mark.parametrize("called", FIRST_CALLS)
def test_the_first_call_of_a_process_may_be_compiled(engine: engines.Engine, called: str) -> None:
    """Then our side of torch is imported while torch traces."""
    script = f"""
import torch, batchnorm, batchnorm.torch
call = {FIRST_CALLS[called]}
x = torch.arange(32.0).reshape(8, 4)
y = torch.compile(call, fullgraph=True, backend="eager")(x)
torch.testing.assert_close(y.detach().mean(0), torch.zeros(4))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
