"""Convolution, pooling and ReLU in compiled C: the results of torch, up to rounding."""

from __future__ import annotations

import copy
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from command_line import assert_same_run, metrics
from compilers import needs_compiler
from error_matching import raises
from hypothesis import given, settings
from hypothesis import strategies as st

from thaw.host_c import find_compiler
from thaw.kernels import conv_relu_pool as kernel
from thaw.kernels.library import SOURCES
from thaw.models.blocks import ConvReluPool, use_kernels
from thaw.models.families import PaperSpec
from thaw.recipe.recipe import load_recipe
from thaw.run.cross_validation import EpochDone
from thaw.run.pipeline import resume_run, start_run
from thaw.run.request import TrainRequest
from thaw.training.compute import ComputeSettings, autocast, kernels_name, resolve_arithmetic

CPU = torch.device("cpu")
# Rounding of a sum of products in float32, relative to the largest result.
ROUNDING = 2e-6
LAYOUTS = [torch.channels_last, torch.contiguous_format]

sides = st.integers(4, 14)
widths = st.one_of(st.integers(1, 12), st.sampled_from([16, 17, 33]))


def leaves(shape, filters, seed, layouts=(torch.channels_last, torch.channels_last)):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=draw).contiguous(memory_format=layouts[0])
    weight = torch.randn((filters, shape[1], 3, 3), generator=draw).contiguous(memory_format=layouts[1])
    bias = torch.randn(filters, generator=draw)
    return [each.requires_grad_() for each in (x, weight, bias)]


def in_torch(x, weight, bias):
    return F.relu(F.max_pool2d(F.conv2d(x, weight, bias), 2))


def assert_close(found, expected):
    for mine, its in zip(found, expected, strict=True):
        assert mine.shape == its.shape
        assert (mine.double() - its).abs().max() <= ROUNDING * its.abs().max().clamp(min=1.0)


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 19), widths, sides, sides),
    filters=widths,
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_are_those_of_torch(shape, filters, layouts, seed):
    own = leaves(shape, filters, seed, layouts[:2])
    exact = [each.detach().double().requires_grad_() for each in own]
    y, expected = kernel.conv_relu_pool(*own), in_torch(*exact)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=layouts[2])
    wanted = torch.autograd.grad(expected, exact, dy.double())
    assert_close((y, *torch.autograd.grad(y, own, dy)), (expected, *wanted))


@needs_compiler
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2), (0, 2)])
def test_only_the_gradients_that_are_wanted_are_computed(wanted):
    own = leaves((5, 3, 9, 8), 4, 0)
    whole = torch.autograd.grad(kernel.conv_relu_pool(*own).square().sum(), own)
    for index, leaf in enumerate(own):
        leaf.requires_grad_(index in wanted)
    some = torch.autograd.grad(kernel.conv_relu_pool(*own).square().sum(), [own[index] for index in wanted])
    assert all(map(torch.equal, some, [whole[index] for index in wanted]))


@needs_compiler
def test_the_first_of_equal_positions_gets_the_gradient():
    x = torch.ones(2, 1, 6, 6, requires_grad=True)
    weight, bias = torch.ones(3, 1, 3, 3), torch.tensor([0.0, 1.0, -20.0])
    exact = x.detach().double().requires_grad_()
    found = torch.autograd.grad(kernel.conv_relu_pool(x, weight, bias).sum(), x)
    assert_close(found, torch.autograd.grad(in_torch(exact, weight.double(), bias.double()).sum(), exact))


@needs_compiler
def test_what_is_not_finite_is_seen():
    for place in range(4):
        x = torch.zeros(1, 1, 4, 4)
        x[0, 0, place // 2 * 3, place % 2 * 3] = float("nan")
        weight = torch.ones(2, 1, 3, 3)
        weight[1] = -1.0
        assert kernel.conv_relu_pool(x, weight, torch.zeros(2)).isnan().all()


@needs_compiler
def test_the_order_of_sums_depends_on_the_shape_only():
    own = leaves((19, 3, 9, 8), 4, 0)
    results = [torch.autograd.grad(kernel.conv_relu_pool(*own).square().sum(), own) for _ in range(3)]
    assert all(all(map(torch.equal, result, results[0])) for result in results)


@needs_compiler
@pytest.mark.parametrize(("lanes", "flag"), [(4, ""), (8, "avx2"), (16, "avx512f")])
def test_every_width_of_vectors_under_the_sanitizers(lanes, flag, tmp_path):
    cpu = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").is_file() else ""
    if flag not in cpu:
        pytest.skip("this processor does not have these vectors")
    names = ("vectors.h", "conv_relu_pool.h", "conv_relu_pool.c", "conv_relu_pool_backward.c")
    for name in names:
        (tmp_path / name).write_bytes((SOURCES / name).read_bytes())
    shutil.copy(Path(__file__).parent / "conv_relu_pool_check.c", tmp_path / "check.c")
    command = [find_compiler(), "-std=c11", f"-DTHAW_LANES={lanes}", *([f"-m{flag}"] if flag else [])]
    sources = ("check.c", *names[2:])
    strict = ["-O1", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    subprocess.run([*command, *strict, "-c", *sources], cwd=tmp_path, check=True)
    # Without optimization, since gcc takes minutes to optimize code with both sanitizers.
    sanitizers = ["-O0", "-w", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([*command, *sanitizers, *sources, "-o", "check", "-lm"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_the_c_does_not_support_is_left_to_torch():
    x, weight, _ = (each.detach() for each in leaves((2, 3, 4, 4), 2, 0))
    assert kernel.can_compute(x, weight)
    assert not kernel.can_compute(x.double(), weight)
    assert not kernel.can_compute(x, weight.double())
    assert not kernel.can_compute(x[:, :, :3], weight)
    assert not kernel.can_compute(x[0], weight)
    assert not kernel.can_compute(x.to("meta"), weight)
    with autocast(torch.bfloat16, CPU):
        assert not kernel.can_compute(x, weight)


@needs_compiler
def test_a_network_trains_the_same_with_and_without(monkeypatch):
    torch.manual_seed(0)
    modules = [PaperSpec(dropout=0.0).build((28, 28, 1), 10).to(memory_format=torch.channels_last)]
    modules.append(copy.deepcopy(modules[0]))
    use_kernels(modules[1], compiled=True)
    calls = []
    whole = kernel.conv_relu_pool
    monkeypatch.setattr(kernel, "conv_relu_pool", lambda *given: calls.append(given) or whole(*given))
    x = torch.randn(21, 1, 28, 28)
    results = []
    for module in modules:
        loss = F.cross_entropy(module(x), torch.arange(21) % 10)
        results.append([loss, *torch.autograd.grad(loss, module.parameters())])
    assert len(calls) == sum(isinstance(part, ConvReluPool) for part in modules[1].modules()) == 2
    for mine, its in zip(*results, strict=True):
        assert torch.allclose(mine, its, rtol=1e-4, atol=1e-6)


def arithmetic(layers=("convolution",), **values):
    return resolve_arithmetic(ComputeSettings(**values), CPU, layers, threads=1)


@needs_compiler
def test_precision_of_compiled_convolutions(monkeypatch):
    monkeypatch.setattr("thaw.training.compute._cpu_features", lambda: {"avx512_bf16"})
    compiled = arithmetic()
    assert (compiled.compiled, compiled.dtype) == (True, torch.float32)
    for values in ({"kernels": "torch"}, {"precision": "bfloat16"}):
        torchs = arithmetic(**values)
        assert (torchs.compiled, torchs.dtype) == (False, torch.bfloat16)
    with raises("usage", "bfloat16", "float32"):
        arithmetic(precision="bfloat16", kernels="compiled")
    # Convolutions of other families are faster in bfloat16, and then all are computed in it.
    both = arithmetic(("convolution", "normalization"))
    assert (both.compiled, both.dtype) == (True, torch.bfloat16)


@needs_compiler
def test_the_papers_network_needs_no_other_kernels(monkeypatch):
    monkeypatch.setattr("thaw.kernels.normalization.compiled", lambda _: pytest.fail("compiled for nothing"))
    assert arithmetic().compiled


OVERRIDES = ["dual.epochs=2", 'unfreeze.steps=[{unit="head", epochs=1}, {unit="dense", epochs=1}]']
OVERRIDES += ["quantize.qat_threshold=100"]


@needs_compiler
@pytest.mark.parametrize("kept", ["compiled", "torch"])
def test_a_resumed_run_computes_as_it_began(tmp_path, monkeypatch, kept):
    name, recipe = load_recipe("paper", [*OVERRIDES, f"compute.kernels={kept}"])
    request = TrainRequest(source="digits", recipe_name=name, recipe=recipe)
    list(start_run(request, out=tmp_path / "whole"))
    begun = start_run(request, out=tmp_path / "begun")
    next(event for event in begun if isinstance(event, EpochDone))
    begun.close()
    # What a machine would choose now does not matter.
    other = kernels_name(compiled=kept != "compiled")
    monkeypatch.setattr("thaw.run.pipeline.kernels_of", lambda *_: other)
    list(resume_run(tmp_path / "begun"))
    assert (metrics(tmp_path / "begun")["kernels"], metrics(tmp_path / "begun")["precision"]) == (kept, "float32")
    assert_same_run(tmp_path / "begun", tmp_path / "whole")
