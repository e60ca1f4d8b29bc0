"""Vectors aside: on PyTorch's CPU, NumPy remembers and corrects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import batchnorm
import reference
from strategies import call_on

torch = pytest.importorskip("torch")
OPTIONS: dict[str, dict[str, Any]] = {
    "renorm": {"renorm": True, "renorm_clipping": {"rmin": 0.5, "rmax": 2, "dmax": 1.5}},
    "renorm by the step": {"renorm": True, "renorm_clipping": {"dmax": lambda step: 1 + step}},
    "renorm of the moving averages": {"renorm": True, "renorm_momentum": None},
    "debiased": {"zero_debias": "both", "momentum": 0.999},
    "all of it": {"renorm": True, "zero_debias": "both", "unbiased_moving_variance": True},
    "chunks": {"virtual_batch_size": 4, "ghost_order": "chunks", "renorm": True},
    "propagating": {"renorm": True, "on_nonfinite": "propagate"},
}


def tensors(arrays: dict[str, np.ndarray], dtype: str) -> dict[str, Any]:
    """Counters stay integers."""
    return {
        name: torch.tensor(one if one.dtype.kind == "i" else one.astype(dtype))
        for name, one in arrays.items()
    }


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_remembers_and_corrects(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: str
) -> None:
    from batchnorm.backends import torch as backend

    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (10, 5)).astype(dtype)
    x[3, 1], x[:, 2] = np.nan, 7
    call = call_on(rng, x, **OPTIONS[name])
    taken = []
    original = backend.on_host

    def watched(vectors: Any) -> Any:
        arrays = original(vectors)
        taken.append(arrays is not None)
        return arrays

    monkeypatch.setattr(backend, "on_host", watched)
    state = tensors(call.state, dtype)
    y, new = batchnorm.batch_norm(
        torch.tensor(x), tensors(call.parameters, dtype), state, training=True, **OPTIONS[name]
    )
    assert taken
    assert all(taken)
    wide = {one: value.numpy().astype("float64") for one, value in state.items()}
    wanted = reference.batch_norm(x, call.parameters, wide, training=True, **OPTIONS[name])
    near = 2e-6 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(y, wanted.y, rtol=near, atol=10 * near)
    assert set(new) == set(wanted.state)
    for one, value in wanted.state.items():
        assert (new[one].dtype, new[one].shape) == (state[one].dtype, state[one].shape)
        np.testing.assert_allclose(new[one], value, rtol=near, atol=near, err_msg=one)
        if new[one] is not state[one]:  # what was given stays as it was
            new[one].zero_()
        np.testing.assert_array_equal(state[one], call.state[one])


def test_numpy_raises_the_same_error() -> None:
    x = torch.full((4, 3), torch.inf)
    parameters, state = batchnorm.init(x, renorm=True)
    with pytest.raises(FloatingPointError, match="the batch must have a finite mean"):
        batchnorm.batch_norm(x, parameters, state, training=True, renorm=True, on_nonfinite="raise")


def test_who_watches_sees_the_framework_s_operations() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    from batchnorm.backends import torch as backend

    vectors = [torch.ones(3)]
    assert backend.on_host(vectors) is not None
    assert backend.on_host([torch.ones(3, dtype=torch.bfloat16)]) is None
    assert backend.on_host([torch.ones(3, device="meta")]) is None
    with TorchDispatchMode():
        assert backend.on_host(vectors) is None
    seen = []
    torch.func.vmap(lambda x: seen.append(backend.on_host([x])) or x)(torch.ones(2, 3))
    assert seen == [None]
