"""PyTorch modules: the same tools on the same seam."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch

import batchnorm
from batchnorm.tools.inspection import _sample
from batchnorm.tools.norms import find

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(5, 2, (23, 3, 6)).astype(np.float32)


def module(kind=torch.nn.BatchNorm1d, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(kind(3, **options), torch.nn.ReLU(), torch.nn.Conv1d(3, 4, 3))


def bits(model) -> list[bytes]:
    return [value.numpy().tobytes() for value in model.state_dict().values()]


@pytest.mark.parametrize("sizes", [(), (1, 9), (0, 5), tuple([1] * 22)], ids=str)
def test_exact_is_the_unbiased_variance_over_all_data_for_any_split(sizes):
    model = module()
    batchnorm.reestimate(model, np.split(X, np.cumsum(sizes)))
    mean, variance = X.mean((0, 2), dtype=np.float64), X.var((0, 2), ddof=1, dtype=np.float64)
    np.testing.assert_allclose(model[0].running_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(model[0].running_var, variance, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (torch.nn.BatchNorm1d, (23, 3)),
        (torch.nn.BatchNorm2d, (5, 3, 4, 6)),
        (torch.nn.BatchNorm3d, (5, 3, 4, 2, 6)),
        (torch.nn.SyncBatchNorm, (5, 3, 4, 6)),
    ],
)
def test_every_kind_of_module_is_known(kind, shape):
    x = RANDOM.normal(5, 2, shape).astype(np.float32)
    model = torch.nn.Sequential(kind(3))
    batchnorm.reestimate(model, x)
    others = tuple(axis for axis in range(len(shape)) if axis != 1)
    np.testing.assert_allclose(model[0].running_mean, x.mean(others), rtol=1e-5)
    np.testing.assert_allclose(model[0].running_var, x.var(others, ddof=1), rtol=1e-5)


def test_a_loader_with_labels_is_data():
    pairs = torch.utils.data.TensorDataset(torch.as_tensor(X), torch.zeros(len(X)))
    model = module()
    loader = torch.utils.data.DataLoader(pairs, batch_size=5)
    batches = [tuple(batch) for batch in loader]
    batchnorm.reestimate(model, batches)
    np.testing.assert_allclose(model[0].running_mean, X.mean((0, 2)), rtol=1e-5)
    batchnorm.reestimate(model, loader)
    np.testing.assert_allclose(model[0].running_mean, X.mean((0, 2)), rtol=1e-5)


def test_modes_and_gradients_are_left_as_they_were():
    model = module()
    model[1].eval()
    batchnorm.reestimate(model, X)
    assert [one.training for one in model] == [True, False, True]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_interruption_leaves_the_module_bit_for_bit():
    model = module()
    model(torch.as_tensor(X))
    before = bits(model)

    def batches():
        yield X[:9]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batchnorm.reestimate(model, batches())
    assert bits(model) == before
    assert "forward" not in vars(model[0])
    assert all(one.training for one in model.modules())


class Counting(torch.nn.Module):
    """Adds the number of its calls, and interrupts at one of them."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.last = last

    def forward(self, x):
        self.calls += 1
        if self.calls == self.last:
            raise KeyboardInterrupt
        return x + self.calls


@pytest.mark.parametrize("tool", [batchnorm.inspect, batchnorm.reestimate])
def test_an_interruption_inside_a_pass_leaves_the_module_bit_for_bit(tool):
    model = torch.nn.Sequential(*module(), Counting(1))
    before = bits(model)
    with pytest.raises(KeyboardInterrupt):
        tool(model, X)
    assert bits(model) == before
    assert all(one.training for one in model.modules())


def test_every_pass_begins_with_the_same_buffers():
    model = torch.nn.Sequential(Counting(2), *module())
    before = bits(model)
    report = batchnorm.inspect(model, X)
    assert bits(model) == before
    np.testing.assert_allclose(report.profiles[0].mean, 1 + X.mean((0, 2)), rtol=1e-5)


def test_a_lazy_module_that_was_never_called_is_named():
    model = torch.nn.Sequential(torch.nn.LazyBatchNorm1d())
    with pytest.raises(ValueError, match="built") as raised:
        batchnorm.inspect(model, X)
    assert str(raised.value) == (
        "inspect: model must be built; got one whose layer '0' is not. Call it on a batch first."
    )


def test_explain_knows_a_module_without_beta():
    model = module()
    model[0].bias = None
    assert "Gamma is trained." in batchnorm.explain(model)
    model[0].weight.requires_grad_(False)
    assert "Gamma is not trained." in batchnorm.explain(model)


class Replacing(torch.nn.Module):
    """Counts its calls in a buffer that it replaces, and has one that nobody can write to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("ones", torch.ones(1, 1).expand(3, 2))

    def forward(self, x):
        self.calls = self.calls + 1
        return x + self.calls


@pytest.mark.parametrize("tool", [batchnorm.inspect, batchnorm.reestimate])
def test_a_replaced_buffer_is_put_back(tool):
    model = torch.nn.Sequential(*module(), Replacing())
    calls = model[-1].calls
    tool(model, X, batch_size=9)
    assert model[-1].calls is calls
    assert float(calls) == 0


def test_no_more_batches_are_fetched_than_asked_for():
    fetched = []

    def batches():
        while True:
            fetched.append(len(fetched))
            yield X

    batchnorm.reestimate(module(), batches(), steps=2)
    assert len(fetched) == 2


@pytest.mark.parametrize(
    ("data", "got"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], "float"),
        ("abc", "str"),
        ({}, "no array"),
        (np.float32(3), "a scalar"),
        ([np.float32(3)], "a scalar"),
    ],
)
def test_data_that_holds_no_batches_is_named(data, got):
    with pytest.raises(TypeError) as raised:
        batchnorm.inspect(module(), data)
    assert str(raised.value) == (
        "inspect: data must be an array, a tuple (x, labels) or batches of them; got "
        f"{got} in a batch."
    )


def test_a_sample_keeps_no_activation():
    norm = find(module(), "test")[0]
    sample = _sample(norm, torch.zeros(64, 3, 40))
    assert sample.untyped_storage().nbytes() == sample.nbytes


def test_frozen_statistics_survive_train():
    model = module()
    assert batchnorm.freeze(model, "statistics") == ["0"]
    model.train()
    before = bits(model)
    model(torch.as_tensor(X)).sum().backward()
    assert bits(model) == before
    assert model[0].weight.grad is not None


def test_frozen_modules_survive_copies_and_files():
    model = module()
    batchnorm.freeze(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        other.train()
        assert type(other[0]) is torch.nn.BatchNorm1d
        assert not other[0].training
        assert not other[0].weight.requires_grad
        np.testing.assert_array_equal(other[0].running_var, model[0].running_var)


def test_torchs_conversion_builds_modules_that_are_not_frozen_and_can_be():
    model = module()
    batchnorm.freeze(model)
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert model.train()[0].training
    assert batchnorm.freeze(model) == ["0"]
    assert isinstance(model[0], torch.nn.SyncBatchNorm)
    assert not model.train()[0].training


def test_unfreeze_gives_the_class_and_the_mode_back():
    model = module()
    batchnorm.freeze(model)
    batchnorm.unfreeze(model)
    assert type(model[0]) is torch.nn.BatchNorm1d
    assert model[0].training
    assert model[0].weight.requires_grad


def test_the_context_manager_leaves_modes_as_they_were():
    model = module()
    model[0].eval()
    with batchnorm.frozen(model, "parameters"):
        assert not model[0].weight.requires_grad
    assert not model[0].training
    assert model[0].weight.requires_grad


def test_explain_tells_the_three_modes_apart():
    model = module()
    end = (
        "Gamma and beta are trained. It runs on torch's own kernel. Not on our fused kernels: "
        "torch's own modules do not take them; those of batchnorm.torch do. It has counted 0 "
        "updates of its statistics."
    )
    assert batchnorm.explain(model[0]) == (
        "It is in train mode: it normalizes with the batch's own statistics and updates the moving "
        f"ones. {end}"
    )
    model.eval()
    assert batchnorm.explain(model) == (
        "0: It is in eval mode: it normalizes with the moving statistics and leaves them alone, "
        f"until train() is called on it or on a module that holds it. {end}"
    )
    batchnorm.freeze(model, "statistics")
    assert batchnorm.explain(model[0]) == (
        "In train and eval mode alike it normalizes with the moving statistics and leaves them "
        f"alone: it is frozen. {end}"
    )


def _replica(rank, results, port):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    for cut in (7, 0):
        for layer_by_layer in (False, True):
            model = module()
            data = X[:cut] if rank == 0 else X[cut:]
            batchnorm.reestimate(model, data, layer_by_layer=layer_by_layer)
            results[rank, cut, layer_by_layer] = (
                model[0].running_mean.numpy(),
                model[0].running_var.numpy(),
            )
    torch.distributed.destroy_process_group()


def test_processes_get_the_statistics_of_all_data_even_those_without_any():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        workers = [context.Process(target=_replica, args=(r, results, port)) for r in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
        assert len(results) == 8
        for mean, variance in results.values():
            np.testing.assert_allclose(mean, X.mean((0, 2)), rtol=1e-5)
            np.testing.assert_allclose(variance, X.var((0, 2), ddof=1), rtol=1e-5)
