"""Optimizers with their steps in compiled C: what torch's do, and the same checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from compilers import needs_compiler
from torch import nn

from thaw.models.families import PaperSpec
from thaw.training.compiled_optim import CompiledNAdam, CompiledSGD
from thaw.training.optim import OptimizerSettings, make_optimizer

FITS = {
    "nadam": OptimizerSettings(),
    "nadam with decay": OptimizerSettings(weight_decay=0.01),
    "sgd": OptimizerSettings(optimizer="sgd", weight_decay=0.01),
    "sgd without momentum": OptimizerSettings(optimizer="sgd", momentum=0.0),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return PaperSpec(filters=(3, 5)).build((16, 16, 2), 10).to(memory_format=torch.channels_last)


def take_steps(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range, *, without: str = "") -> None:
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        for name, parameter in module.named_parameters():
            gradient = torch.randn(parameter.shape, generator=draw) * 0.1
            parameter.grad = None if name == without else gradient
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (1 + step)
        optimizer.step()


def assert_close(module: nn.Module, other: nn.Module) -> None:
    # torch's square root is not rounded correctly everywhere.
    for mine, its in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-7)


@needs_compiler
@pytest.mark.parametrize("name", FITS)
def test_steps_are_those_of_torch(name):
    modules = [network(), network()]
    optimizers = [
        make_optimizer(each, FITS[name], 0.01, compiled=compiled)
        for each, compiled in zip(modules, (True, False), strict=True)
    ]
    for module, optimizer in zip(modules, optimizers, strict=True):
        take_steps(module, optimizer, range(20))
    if name.startswith("sgd"):
        assert all(map(torch.equal, modules[0].parameters(), modules[1].parameters()))
    assert_close(*modules)
    mine, its = (optimizer.state_dict() for optimizer in optimizers)
    # torch has more settings, at their defaults.
    for own, group in zip(mine["param_groups"], its["param_groups"], strict=True):
        assert own == {key: group[key] for key in own}
    for index, slots in its["state"].items():
        for slot, value in slots.items():
            if value is not None:
                torch.testing.assert_close(mine["state"][index][slot], value, rtol=1e-4, atol=1e-7)


@needs_compiler
@pytest.mark.parametrize("name", FITS)
def test_a_checkpoint_continues_with_the_same_bits(name):
    modules = [network(), network()]
    optimizers = [make_optimizer(each, FITS[name], 0.01, compiled=True) for each in modules]
    take_steps(modules[0], optimizers[0], range(3))
    modules[1].load_state_dict(modules[0].state_dict())
    # A checkpoint file holds tensors in torch's default memory format.
    stored = copy.deepcopy(optimizers[0].state_dict())
    for slots in stored["state"].values():
        slots.update({slot: value.contiguous() for slot, value in slots.items()})
    optimizers[1].load_state_dict(stored)
    for module, optimizer in zip(modules, optimizers, strict=True):
        take_steps(module, optimizer, range(3, 6))
    assert all(map(torch.equal, modules[0].parameters(), modules[1].parameters()))


@needs_compiler
def test_a_checkpoint_of_torch_is_continued():
    modules = [network(), network()]
    optimizers = [make_optimizer(each, FITS["nadam"], 0.01) for each in modules]
    for module, optimizer in zip(modules, optimizers, strict=True):
        take_steps(module, optimizer, range(3))
    compiled = make_optimizer(modules[1], FITS["nadam"], 0.01, compiled=True)
    compiled.load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    take_steps(modules[0], optimizers[0], range(3, 6))
    take_steps(modules[1], compiled, range(3, 6))
    assert_close(*modules)


@needs_compiler
def test_what_has_no_gradient_stays():
    module = network()
    before = module.conv2.conv.weight.detach().clone()
    take_steps(module, make_optimizer(module, FITS["sgd"], 0.01, compiled=True), range(2), without="conv2.conv.weight")
    assert torch.equal(module.conv2.conv.weight, before)


@needs_compiler
def test_nadam_expects_all_gradients():
    # torch counts the steps of each parameter, the C those of a group.
    module = network()
    with pytest.raises(RuntimeError, match="1 of 6"):
        take_steps(
            module, make_optimizer(module, FITS["nadam"], 0.01, compiled=True), range(1), without="conv2.conv.bias"
        )


@needs_compiler
@pytest.mark.parametrize("name", ["nadam", "sgd"])
def test_step_between_forward_and_backward_is_an_error(name):
    # As with torch's optimizers: the gradients would be those of other weights.
    module = network()
    optimizer = make_optimizer(module, FITS[name], 0.01, compiled=True)
    take_steps(module, optimizer, range(1))
    loss = module(torch.randn(2, 2, 16, 16)).square().sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_compiler
@pytest.mark.parametrize("change", [nn.Module.double, lambda module: module.to(memory_format=torch.contiguous_format)])
def test_parameters_that_changed_their_type_or_layout_are_refused(change):
    module = network()
    optimizer = make_optimizer(module, FITS["sgd"], 0.01, compiled=True)
    take_steps(module, optimizer, range(1))
    for parameter in module.parameters():
        parameter.grad = None
    change(module)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(RuntimeError, match="make a new one"):
        optimizer.step()


def test_no_parameters_are_refused():
    with pytest.raises(ValueError, match="no parameters"):
        CompiledSGD([], lr=0.1, momentum=0.9)


def test_which_optimizers_are_compiled():
    kinds = {name: type(make_optimizer(network(), fit, 0.01, compiled=True)) for name, fit in FITS.items()}
    assert list(kinds.values()) == [CompiledNAdam, CompiledNAdam, CompiledSGD, CompiledSGD]
    doubles = make_optimizer(network().double(), OptimizerSettings(), 0.01, compiled=True)
    assert type(doubles) is torch.optim.NAdam
    for optimizer in (
        CompiledNAdam(network().parameters(), lr=0.1),
        CompiledSGD(network().parameters(), lr=0.1, momentum=0.9),
    ):
        with pytest.raises(TypeError, match="no closure"):
            optimizer.step(lambda: 0.0)
