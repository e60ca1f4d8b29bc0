"""The GPU kernels under whatever looks on in PyTorch: compilers, transformations, replicas."""

from __future__ import annotations

from typing import Any

import interpreted

interpreted.skip_without_triton()

import numpy as np
import pytest
import torch

import batchnorm

pytestmark = pytest.mark.usefixtures("gpu")

X = torch.from_numpy(np.random.default_rng(0).normal(1.0, 2.0, (6, 3, 4)).astype("float32"))
UPSTREAM = torch.from_numpy(np.random.default_rng(1).normal(size=(6, 3, 4)).astype("float32"))


def loss(x: Any, fused: bool | None = True, **options: Any) -> Any:
    parameters, state = batchnorm.init(x, axis=1)
    how = {"axis": 1, "training": True, "fused": fused, **options}
    return (batchnorm.batch_norm(x, parameters, state, **how)[0] * UPSTREAM.to(x.dtype)).sum()


def gradient(function: Any, x: torch.Tensor = X) -> torch.Tensor:
    x = x.clone().requires_grad_()
    function(x).backward()
    assert x.grad is not None
    return x.grad


def expected(**options: Any) -> torch.Tensor:
    """The derivative by the composite path."""
    return gradient(lambda x: loss(x, False, **options))


@pytest.mark.parametrize("activation", [None, "relu"])
def test_compile_takes_the_whole_graph(launched: list[str], activation: str | None) -> None:
    torch._dynamo.reset()
    options = {"activation": activation}
    compiled = torch.compile(lambda x: loss(x, **options), fullgraph=True, backend="aot_eager")
    got = gradient(compiled)
    assert {"moments", "standardize", "backward_sums", "backward_input"} <= set(launched)
    torch.testing.assert_close(got, expected(**options), atol=1e-5, rtol=1e-5)


def test_a_device_is_asked_while_a_graph_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call on a device may be a compiled one: the comparison is not part of its graph."""
    device, asked = interpreted.module("backends.torch.device"), []
    monkeypatch.setattr(device, "_answers", {})
    monkeypatch.setattr(device, "lacking", lambda number: None)
    monkeypatch.setattr(device, "capturing", lambda: False)
    monkeypatch.setattr(device, "compare", lambda *which: asked.append(which))
    torch._dynamo.reset()

    class OnGpu:
        device, dtype = torch.device("cuda", 0), torch.float32

    there = OnGpu()

    def function(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if device.why_not(there) is None else x

    compiled = torch.compile(function, fullgraph=True, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(X), X + 1)
    assert asked == [(torch.device("cuda", 0), torch.float32)]


def test_func_transformations(launched: list[str]) -> None:
    wanted = expected()
    torch.testing.assert_close(torch.func.grad(loss)(X), wanted, atol=1e-5, rtol=1e-5)
    pair = torch.stack([2 * X, X])
    slopes = torch.func.vmap(torch.func.grad(loss))(pair)
    torch.testing.assert_close(slopes[1], wanted, atol=1e-5, rtol=1e-5)
    assert "backward_input" in launched


def test_second_derivatives() -> None:
    def curve(fused: bool) -> torch.Tensor:
        slope = torch.func.grad(lambda x: loss(x, fused))
        return torch.func.grad(lambda x: (slope(x) ** 2).sum())(X.double())

    torch.testing.assert_close(curve(True), curve(False), atol=1e-9, rtol=1e-9)


# torch's own rules for derivatives (2.13) are scripts
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_forward_mode_takes_the_composite_path(launched: list[str]) -> None:
    torch.func.jvp(lambda x: loss(x, None), (X.double(),), (X.double() ** 2,))
    assert launched == []


def test_autocast_keeps_what_it_is_given(launched: list[str]) -> None:
    parameters, state = batchnorm.init(X, axis=1)
    with torch.autocast("cpu", torch.bfloat16):
        x = X.bfloat16().requires_grad_()
        y, new = batchnorm.batch_norm(x, parameters, state, axis=1, training=True, fused=True)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype) == (torch.bfloat16, torch.bfloat16)
    assert new["moving_mean"].dtype is torch.float32
    assert launched[:2] == ["moments", "standardize"]


def test_exports_for_inference_hold_nothing_of_ours() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return batchnorm.batch_norm(x, *batchnorm.init(x, axis=1), axis=1)[0]

    program = torch.export.export(Module(), (X,))
    assert "batchnorm." not in str(program.graph)


@pytest.mark.parametrize("order", ["contiguous", "channels_last", "strided"])
def test_memory_in_any_order(small: None, order: str) -> None:
    x, dy = (torch.randn(4, 5, 3, 7, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    wanted = torch.autograd.grad(torch_norm(made := x.clone().requires_grad_()), made, dy)[0]
    if order == "channels_last":
        x, dy = (one.to(memory_format=torch.channels_last) for one in (x, dy))
    elif order == "strided":
        x = torch.stack((x, x), -1)[..., 0]
    x = x.detach().requires_grad_()
    y = torch_norm(x, True)
    (dx,) = torch.autograd.grad(y, x, dy)
    torch.testing.assert_close(dx, wanted, atol=1e-5, rtol=1e-5)
    if order == "channels_last":
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert dx.is_contiguous(memory_format=torch.channels_last)


def torch_norm(x: torch.Tensor, fused: bool = False) -> torch.Tensor:
    parameters, state = batchnorm.init(x, axis=1)
    return batchnorm.batch_norm(x, parameters, state, axis=1, training=True, fused=fused)[0]


def test_the_operators_keep_their_contracts() -> None:
    vector, gamma = torch.rand(1, 3), torch.rand(3)
    dense, dy = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    sizes, weights = (2, 1, 1, 3, 20), torch.rand(2, 1, 1, 1, 20)
    given = (vector, None, vector, torch.full((1, 1), 40.0), gamma, vector, None, 1e-3, 0, False)
    for x in (dense, dense.to(memory_format=torch.channels_last)):
        for name, operands in (
            ("moments", (x, sizes, weights)),
            ("forward", (x, sizes, weights, gamma, vector, 1e-3, 1)),
            ("backward", (x, sizes, dy, weights, *given)),
            ("backward_add", (x, sizes, dy, dy, weights, *given)),
        ):
            operator = getattr(torch.ops.batchnorm, name).default
            checks = ("test_schema", "test_faketensor")
            torch.library.opcheck(operator, operands, test_utils=checks)


def test_replicas_meet_at_the_sums(
    launched: list[str], small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, of which the other has the same batch."""
    backend = interpreted.module("backends.torch")
    derivatives = interpreted.module("backends.torch.derivatives")

    class Twins:
        number, groups = 2, None

        def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    monkeypatch.setattr(backend, "find_replicas", lambda synchronized, owner: Twins())
    monkeypatch.setattr(backend, "all_gather", lambda x, replicas: torch.stack((x, x)))
    monkeypatch.setattr(derivatives, "all_reduce", lambda x, replicas: 2 * x)
    got = gradient(lambda x: loss(x, synchronized=True))
    assert launched == [
        "moments", "merge", "standardize", "remember", "backward_sums", "merge_sums",
        "backward_input",
    ]  # fmt: skip
    torch.testing.assert_close(got, expected(), atol=1e-5, rtol=1e-5)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "sizes": (
        {"sizes": (2, 1, 1, 3, 19)},
        "batchnorm kernels: sizes must be those of x, 120 elements; got (2, 1, 1, 3, 19).",
    ),
    "weights": (
        {"weights": torch.ones(2, 1, 1, 1, 4)},
        "batchnorm kernels: weights must have the sizes (2, 1, 1, 20) of A, G, B and D, or 1 "
        "instead; got (2, 1, 1, 4).",
    ),
    "scale": (
        {"scale": torch.ones(1, 4)},
        "batchnorm kernels: a per-channel vector must be a contiguous torch.float32 of 3 elements; "
        "got torch.float32 of shape (1, 4).",
    ),
    "device": (
        {"scale": torch.ones(1, 3, device="meta")},
        "batchnorm kernels: a per-channel vector must be on cpu, as x is; got one on meta.",
    ),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_what_does_not_fit_is_refused(gpu: Any, what: str) -> None:
    changed, message = WRONG[what]
    given = {"x": torch.ones(2, 3, 4, 5), "sizes": (2, 1, 1, 3, 20), "weights": None, "scale": None}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message follows
        gpu.kernels["forward"](*{**given, **changed}.values(), None, 1e-3, 0)
    assert str(caught.value) == message
