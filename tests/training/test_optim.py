"""Optimizers, compared with NumPy's SVD, torch and calculations by hand; the running mean of the weights."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from error_matching import raises
from torch import nn
from training_samples import odd_submodel, snapshot

from thaw.models.families import PaperSpec, SeparableSpec
from thaw.training.optim import Muon, OptimizerSettings, WeightAverage, make_optimizer, orthogonalize

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def np_orthogonal(matrix: np.ndarray, iterations: int = 3) -> np.ndarray:
    """The polynomial on each singular value, by an SVD, which the iterations avoid."""
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    values = values / (np.sqrt((values**2).sum()) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        values = a * values + b * values**3 + c * values**5
    return left * values @ right


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6), (10, 90), (1, 9), (9, 1)])
def test_orthogonalize_agrees_with_an_svd(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    made = orthogonalize(matrix, COEFFICIENTS, 3)
    np.testing.assert_allclose(made.numpy(), np_orthogonal(matrix.numpy()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(10, 9), (20, 90), (16, 144)])
def test_step_has_singular_values_near_one(shape):
    # Momenta whose singular values span a factor of ten come out within a factor of about two.
    generator = np.random.default_rng(1)
    left, _ = np.linalg.qr(generator.normal(size=(shape[0], min(shape))))
    right, _ = np.linalg.qr(generator.normal(size=(shape[1], min(shape))))
    matrix = left * np.geomspace(1, 0.1, min(shape)) @ right.T
    made = orthogonalize(torch.from_numpy(matrix).float(), COEFFICIENTS, 3).numpy()
    values = np.linalg.svd(made, compute_uv=False)
    assert 0.6 < values.min() <= values.max() < 1.25
    # The directions are unchanged: the singular vectors of the matrix diagonalize the result.
    inner = left.T @ made @ right
    np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-5)


def a_muon(module: nn.Module, **values) -> torch.optim.Optimizer:
    return make_optimizer(module, OptimizerSettings(**{"optimizer": "muon", "momentum": 0.9, **values}), 0.05)


def set_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 0.1


@pytest.mark.parametrize("filters", [(2, 3), (40, 3)])
def test_muon_steps_by_hand(filters):
    # The second has more filters than inputs, for which a step is longer.
    channels_out, channels_in = filters
    conv = nn.Conv2d(channels_in, channels_out, 3, bias=False)
    optimizer = a_muon(conv, weight_decay=0.1)
    weight = conv.weight.detach().double().numpy().reshape(channels_out, -1)
    momentum = np.zeros_like(weight)
    for step in range(3):
        set_gradients(conv, step)
        gradient = conv.weight.grad.double().numpy().reshape(channels_out, -1)
        momentum = 0.9 * momentum + 0.1 * gradient
        ahead = 0.1 * gradient + 0.9 * momentum
        scale = math.sqrt(max(1.0, channels_out / (channels_in * 9)))
        weight = weight * (1 - 0.05 * 0.1) - 0.05 * scale * np_orthogonal(ahead)
        optimizer.step()
        np.testing.assert_allclose(conv.weight.detach().numpy().reshape(channels_out, -1), weight, atol=2e-5)


def test_muon_uses_adam_for_all_except_convolutions():
    # A depthwise kernel has one channel per filter; the others are a dense layer, biases and normalizations.
    torch.manual_seed(0)
    module = nn.ModuleDict(
        {"depthwise": nn.Conv2d(4, 4, 3, groups=4), "norm": nn.BatchNorm2d(4), "dense": nn.Linear(4, 3)}
    )
    reference = copy.deepcopy(module)
    mine = a_muon(module)
    adam = torch.optim.Adam(reference.parameters(), lr=0.05 * Muon.ADAM_SHARE, betas=(0.9, 0.99), eps=1e-8)
    for step in range(5):
        for part, optimizer in ((module, mine), (reference, adam)):
            set_gradients(part, step)
            optimizer.step()
    for (name, made), expected in zip(module.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6, msg=name)


def test_muon_follows_the_schedule():
    made = []
    for rate in (0.05, 0.1):
        conv = nn.Conv2d(1, 2, 3, bias=True)
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
        optimizer = a_muon(conv)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = rate
        set_gradients(conv, 3)
        optimizer.step()
        made.append(torch.cat([parameter.detach().flatten() for parameter in conv.parameters()]))
    torch.testing.assert_close(made[1], 2 * made[0])


def test_muon_skips_parameters_without_gradient():
    module = PaperSpec(filters=(3, 4)).build((16, 16, 1), 10)
    before = snapshot(module)
    optimizer = a_muon(module, weight_decay=0.5)
    module.conv2.conv.weight.grad = torch.ones_like(module.conv2.conv.weight)
    optimizer.step()
    changed = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"conv2.conv.weight"}


def test_muon_rejects_a_closure():
    with pytest.raises(TypeError, match="no closure"):
        a_muon(nn.Linear(2, 2)).step(lambda: 0.0)


# Which parameters decay


@pytest.mark.parametrize("name", ["nadam", "adamw", "sgd", "muon"])
def test_weights_decay_and_biases_do_not(name):
    module = SeparableSpec(widths=(4, 8), blocks=(1, 1)).build((16, 16, 1), 10)
    optimizer = make_optimizer(module, OptimizerSettings(optimizer=name, weight_decay=0.03), 0.2)
    decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert len(decays) == len(list(module.parameters()))
    for path, parameter in module.named_parameters():
        is_kernel = path.endswith(("conv.weight", "dense.weight"))
        assert decays[id(parameter)] == (0.03 if is_kernel else 0.0), path
    assert all(group["lr"] == 0.2 for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("fit", "kind", "expected"),
    [
        (OptimizerSettings(), torch.optim.NAdam, {}),
        (OptimizerSettings(optimizer="adamw"), torch.optim.AdamW, {}),
        (OptimizerSettings(optimizer="sgd", momentum=0.8), torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        (OptimizerSettings(optimizer="sgd", momentum=0.0), torch.optim.SGD, {"momentum": 0.0, "nesterov": False}),
        (OptimizerSettings(optimizer="muon", momentum=0.95), Muon, {"momentum": 0.95}),
    ],
)
def test_optimizers_by_name(fit, kind, expected):
    module = odd_submodel()
    optimizer = make_optimizer(module, fit, 0.1)
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert {key: group[key] for key in expected} == expected
        assert group["weight_decay"] == 0.0


def test_nadam_without_decay_is_one_group_in_the_order_of_the_module():
    module = odd_submodel()
    (group,) = make_optimizer(module, OptimizerSettings(), 0.1).param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in module.parameters()]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer", "lion"),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("ema", 1.0),
        ("ema", math.nan),
        ("label_smoothing", 1.0),
        ("label_smoothing", -0.5),
        ("weight_decay", -1.0),
        ("weight_decay", math.inf),
    ],
)
def test_optimizer_settings_reject_invalid_values(name, value):
    with raises("usage", f"OptimizerSettings.{name} "):
        OptimizerSettings(**{name: value})


# The running mean of the weights


def test_ema_decay_warms_up_as_by_hand():
    module = nn.Linear(1, 1, bias=False)
    values = [8.0, 2.0, -1.0, 5.0, 3.0]
    nn.init.constant_(module.weight, values[0])
    average = WeightAverage(module, 0.3)
    expected = values[0]
    # (1 + n) / (10 + n) for n = 0, 1, 2, 3: 0.1, 2/11, 3/12, 4/13, of which the last is above 0.3.
    for decay, value in zip((0.1, 2 / 11, 0.25, 0.3), values[1:], strict=True):
        nn.init.constant_(module.weight, value)
        average.update()
        expected = decay * expected + (1 - decay) * value
        assert float(average.tensors["weight"]) == pytest.approx(expected, rel=1e-6)
    assert average.steps == 4
    assert module.weight.tolist() == [[values[-1]]]


def test_average_is_in_the_module_only_while_applied():
    torch.manual_seed(1)
    module = odd_submodel()
    average = WeightAverage(module, 0.9)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(1)
    average.update()
    own = snapshot(module)
    with average.applied():
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, average.tensors[name] if name in average.tensors else own[name])
    assert all(torch.equal(own[name], tensor) for name, tensor in module.state_dict().items())

    def fail() -> None:
        with average.applied():
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        fail()
    assert all(torch.equal(own[name], tensor) for name, tensor in module.state_dict().items())


def test_statistics_are_averaged_and_counts_are_not():
    average = WeightAverage(odd_submodel(), 0.9)
    assert "stem.1.running_var" in average.tensors
    assert "stem.1.num_batches_tracked" not in average.tensors


def test_restored_average_continues_identically():
    torch.manual_seed(2)
    modules = [odd_submodel(), odd_submodel()]
    averages = [WeightAverage(module, 0.99) for module in modules]
    for _ in range(3):
        nn.init.normal_(modules[0].attic.dense.weight)
        averages[0].update()
    modules[1].load_state_dict(modules[0].state_dict())
    averages[1].restore({name: tensor.clone() for name, tensor in averages[0].tensors.items()}, averages[0].steps)
    for module, average in zip(modules, averages, strict=True):
        nn.init.constant_(module.attic.dense.weight, 0.5)
        average.update()
    assert averages[0].steps == averages[1].steps == 4
    assert all(torch.equal(tensor, averages[1].tensors[name]) for name, tensor in averages[0].tensors.items())


# What all have in common


def test_state_is_continued_by_another_optimizer_and_by_a_file():
    module, other = (PaperSpec(filters=(3, 4)).build((16, 16, 1), 10) for _ in range(2))
    other.load_state_dict(module.state_dict())
    first, second = a_muon(module, weight_decay=0.1), a_muon(other, weight_decay=0.1)
    set_gradients(module, 0)
    first.step()
    first.zero_grad()
    assert all(parameter.grad is None for parameter in module.parameters())
    other.load_state_dict(module.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.param_groups[0]["weight_decay"] == 0.1
    for each, optimizer in ((module, first), (other, second)):
        set_gradients(each, 1)
        optimizer.step()
    assert all(map(torch.equal, module.parameters(), other.parameters()))


def test_training_imports_neither_torchs_compiler_nor_all_of_scipys_statistics():
    # Each takes 2 to 3 s, as long as the training of a small network.
    program = (
        "import sys, torch, thaw.run.pipeline\n"
        "from thaw.training.optim import OptimizerSettings, make_optimizer\n"
        "module = torch.nn.Linear(2, 2)\n"
        "module(torch.ones(1, 2)).sum().backward()\n"
        "optimizer = make_optimizer(module, OptimizerSettings(optimizer='muon'), 0.1)\n"
        "optimizer.step(), optimizer.zero_grad(), optimizer.load_state_dict(optimizer.state_dict())\n"
        "print({'torch._dynamo', 'scipy.stats'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")
