"""What programs do with modules: compiled, traced, copied, averaged, checkpointed, fused."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import batchnorm.torch as ours

MODES = {
    "plain": {},
    "cumulative": {"momentum": None},
    "renorm": {"renorm": True, "renorm_clipping": ours.preset("renorm")["renorm_clipping"]},
    "ghost": {"virtual_batch_size": 2},
    "zero debias": {"zero_debias": "both"},
    "relu": {"activation": "relu"},
    "composite": {"fused": False},
}
each_mode = pytest.mark.parametrize("mode", MODES)


def network(mode: str = "plain", **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    norm = ours.BatchNorm2d(4, **MODES[mode], **options)
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), norm, torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)
    )


def batch(seed: int = 1) -> torch.Tensor:
    return torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) + 1


def trained(model: Any, steps: int = 2, call: Any = None) -> dict[str, Any]:
    """Everything that training leaves: y, gradients and the state."""
    y = None
    for seed in range(steps):
        model.zero_grad()
        y = (call or model)(batch(seed))
        (y**2).sum().backward()
    gradients = {f"d {name}": one.grad for name, one in model.named_parameters()}
    return {"y": y, **gradients, **dict(model.named_buffers())}


@each_mode
def test_one_graph_of_torch_compile_trains_as_eager_does(mode) -> None:
    torch._dynamo.reset()
    model = network(mode)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(trained(model, call=compiled), trained(network(mode)), rtol=1e-4, atol=1e-5)


def test_one_graph_of_torch_compile_infers_as_eager_does() -> None:
    torch._dynamo.reset()
    model = network("relu").eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(batch()), model(batch()))


@each_mode
def test_copies_and_pickles_go_on_as_the_module_does(mode) -> None:
    model = network(mode)
    trained(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    others = copy.deepcopy(model), torch.load(file, weights_only=False)
    wanted = trained(model)
    for other in others:
        assert repr(other) == repr(model)
        assert_close(trained(other), wanted)


@pytest.mark.parametrize("reentrant", [True, False])
@each_mode
def test_a_checkpointed_step_updates_once_and_has_the_same_gradients(mode, reentrant) -> None:
    model = network(mode)

    def call(x: torch.Tensor) -> torch.Tensor:
        return checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)

    assert_close(trained(model, call=call), trained(network(mode)))


@each_mode
def test_a_traced_graph_has_the_module_as_a_leaf(mode) -> None:
    model = network(mode)
    graph = torch.fx.symbolic_trace(model)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == list("0123")
    assert_close(trained(graph), trained(network(mode)))


def test_a_traced_graph_passes_masks_and_residuals() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = ours.BatchNorm1d(3, activation="relu")

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.norm(x, mask, residual=x)

    block, x, mask = Block(), torch.randn(5, 3), torch.arange(5) < 3
    graph = torch.fx.symbolic_trace(block)
    assert_close(graph(x, mask), copy.deepcopy(block)(x, mask))
    assert int(block.norm.num_batches_tracked) == 1


@pytest.mark.parametrize("mode", ["plain", "renorm", "ghost", "composite"])
def test_a_functional_call_updates_the_buffers_that_it_is_given(mode) -> None:
    model, wanted = network(mode), network(mode)
    given = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    given = {name: value.detach().clone() for name, value in given.items()}
    y = functional_call(model, given, (batch(),))
    assert_close(y, wanted(batch()))
    state = {name: given[name] for name in dict(wanted.named_buffers())}
    assert_close(state, dict(wanted.named_buffers()))
    assert int(model[1].num_batches_tracked) == 0


def test_a_functional_call_with_a_state_dict_trains_under_a_transformation() -> None:
    """The counter of skipped updates is no part of a `state_dict`, and may not be changed there."""
    norm = ours.BatchNorm1d(3)
    held, x = dict(norm.state_dict()), torch.randn(6, 3, generator=torch.Generator().manual_seed(1))

    def loss(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        given = {name: one.clone() for name, one in held.items()}
        return functional_call(module, given, (x,)).pow(3).sum()

    plain = torch.nn.BatchNorm1d(3)
    for derivative in (torch.func.grad, torch.func.jacrev):
        found, wanted = (derivative(lambda x, m=m: loss(m, x))(x) for m in (norm, plain))
        assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("assign", [True, False])
def test_a_module_made_on_the_meta_device_loads_and_trains(assign: bool) -> None:
    with torch.device("meta"):
        module = ours.BatchNorm2d(3, renorm=True)
    if not assign:
        module.to_empty(device="cpu")
    module.load_state_dict(torch.nn.BatchNorm2d(3).state_dict(), assign=assign)
    module(torch.randn(4, 3, 2, 2))
    assert module.skipped_updates.tolist() == [0, 0, 0]
    assert module.num_batches_tracked == 1


def test_a_lazy_module_that_loaded_counts_from_zero() -> None:
    lazy = ours.LazyBatchNorm1d()
    lazy.load_state_dict(ours.BatchNorm1d(3).state_dict())
    lazy(torch.randn(4, 3))
    assert lazy.skipped_updates.tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", ["plain", "renorm", "ghost", "composite"])
def test_vmap_runs_an_ensemble(mode) -> None:
    models = [network(mode) for _ in range(2)]
    torch.nn.init.uniform_(models[1][0].weight)
    parameters, buffers = stack_module_state(models)
    parameters = {name: value.detach() for name, value in parameters.items()}

    def call(parameters: Any, buffers: Any, x: torch.Tensor) -> torch.Tensor:
        return functional_call(models[0], (parameters, buffers), (x,))

    x = torch.stack((batch(0), batch(1)))
    # vmap warns of a loop, where an operator has no batching rule of its own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        y = vmap(call)(parameters, buffers, x)
    wanted = [copy.deepcopy(model) for model in models]
    assert_close(y, torch.stack([model(one) for model, one in zip(wanted, x, strict=True)]))
    for i, model in enumerate(wanted):
        for name, value in model.named_buffers():
            assert_close(buffers[name][i], value)


def test_gradients_of_a_functional_call_are_those_of_backward() -> None:
    model, x = network(), batch()

    def loss(parameters: Any) -> torch.Tensor:
        buffers = {name: value.clone() for name, value in model.named_buffers()}
        return (functional_call(model, (parameters, buffers), (x,)) ** 2).sum()

    (model(x) ** 2).sum().backward()
    slopes = torch.func.grad(loss)(dict(model.named_parameters()))
    assert_close(slopes, {name: one.grad for name, one in model.named_parameters()})


def test_autocast_keeps_the_type_of_the_convolution_and_statistics_in_float32() -> None:
    model, wanted = network(), network().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = model[1](model[0](batch()))
    assert y.dtype is torch.bfloat16
    assert model[1].running_var.dtype is torch.float32
    exact = wanted[0](batch().bfloat16()).float()
    assert_close(model[1].running_mean, 0.1 * exact.mean((0, 2, 3)), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("mode", ["plain", "composite"])
def test_channels_last_memory_stays(mode) -> None:
    x = batch().to(memory_format=torch.channels_last)
    model, wanted = network(mode), network(mode)
    y = model[1](model[0].to(memory_format=torch.channels_last)(x))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, wanted[1](wanted[0](batch())), check_stride=False)


@pytest.mark.parametrize("mode", ["plain", "renorm", "ghost"])
def test_update_bn_makes_the_averages_of_the_data(mode) -> None:
    model = network(mode)
    trained(model)
    data = [batch(seed) for seed in range(3)]
    torch.optim.swa_utils.update_bn(data, model)
    values = [model[0](x) for x in data]
    mean = torch.stack([one.mean((0, 2, 3)) for one in values]).mean(0)
    assert_close(model[1].running_mean, mean)
    assert model[1].momentum == MODES[mode].get("momentum", 0.1)
    assert model.training
    if mode == "plain":
        variance = torch.stack([one.var((0, 2, 3)) for one in values]).mean(0)
        assert_close(model[1].running_var, variance)


@pytest.mark.parametrize("mode", ["plain", "renorm"])
def test_averaged_models_average_parameters_and_buffers(mode) -> None:
    model = network(mode)
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    states = []
    for seed in range(3):
        trained(model)
        with torch.no_grad():
            model[1].weight += seed
        averaged.update_parameters(model)
        states.append({k: v.clone().double() for k, v in model.state_dict().items()})
    for name, value in averaged.module.state_dict().items():
        if value.is_floating_point():
            mean = torch.stack([one[name] for one in states]).mean(0)
            assert_close(value.double(), mean, rtol=1e-5, atol=1e-6)


def test_convolutions_absorb_our_module_in_eval_mode() -> None:
    model = network()
    trained(model, 3)
    model.eval()
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval(model[0], model[1])
    assert_close(fused(batch()), model[1](model[0](batch())), rtol=1e-5, atol=1e-5)


def test_fuse_modules_takes_our_module_by_a_mapping_as_the_page_says() -> None:
    from torch.ao.quantization import fuse_modules

    model = network()
    trained(model, 3)
    model.eval()
    pair = (torch.nn.Conv2d, ours.BatchNorm2d)
    mapping = {pair: torch.ao.quantization.fuser_method_mappings.fuse_conv_bn}
    custom = {"additional_fuser_method_mapping": mapping}
    fused = fuse_modules(model, ["0", "1"], fuse_custom_config_dict=custom)
    assert type(fused[1]) is torch.nn.Identity
    assert_close(fused(batch()), model(batch()), rtol=1e-5, atol=1e-5)


def test_scripting_is_refused_with_what_to_do_and_leaves_the_model_as_it_is() -> None:
    model = network("renorm").eval()
    norm = model[1]
    with pytest.raises(TypeError) as caught:
        scripted(model)
    assert str(caught.value) == (
        "BatchNorm2d: torch.jit.script cannot compile this module. For inference, call eval() and "
        "use torch.jit.trace or torch.export, or script a copy that batchnorm.torch.revert gave "
        "torch's own modules."
    )
    assert model[1] is norm
    plain = copy.deepcopy(model)
    ours.revert(plain)
    assert_close(scripted(plain)(batch()), model(batch()))


def scripted(model: torch.nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's word on scripting
        return torch.jit.script(model)


def test_second_derivatives_pass() -> None:
    norm = ours.BatchNorm1d(3, dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: norm(x), x)


def test_hooks_see_the_module() -> None:
    norm, seen = ours.BatchNorm1d(3), []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    norm.register_full_backward_hook(lambda module, gradients, _: seen.append(len(gradients)))
    norm(torch.randn(4, 3, requires_grad=True)).sum().backward()
    assert seen == [(4, 3), 1]
