"""Normalization, addition and ReLU in compiled C agree with torch up to rounding."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from command_line import assert_same_run, metrics
from compilers import needs_compiler
from error_matching import raises
from kernel_samples import ROUNDING, channels_last
from safetensors.torch import load

from thaw.host_c import find_compiler
from thaw.kernels import normalization as kernel
from thaw.kernels.library import SOURCES, _compiled
from thaw.kernels.normalization import can_fuse, compiled
from thaw.models.blocks import Norm, Separable, use_kernels
from thaw.models.families import LoopedSpec, ResidualSpec, SeparableSpec
from thaw.recipe.recipe import load_recipe
from thaw.run.cross_validation import EpochDone
from thaw.run.pipeline import resume_run, start_run
from thaw.run.request import TrainRequest
from thaw.training.compute import ComputeSettings, autocast, kernels_name, resolve_arithmetic

CPU = torch.device("cpu")
AFTER = ("nothing", "relu", "add relu", "relu add")


def in_torch(x, weight, bias, after, shortcut):
    """The expected result in operations of torch, float64 [B, C, H, W]."""
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=1e-5)
    match after:
        case "nothing":
            return y
        case "relu":
            return F.relu(y)
        case "add relu":
            return F.relu(shortcut + y)
        case "relu add":
            return shortcut + F.relu(y)


@needs_compiler
@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(3, 1, 5, 7), (4, 16, 8, 8), (5, 20, 6, 6), (2, 33, 3, 3), (2, 511, 2, 2), (2, 4096, 2, 2), (64, 12, 16, 16)],
    ids=str,
)
def test_values_and_gradients_agree_with_torch(shape, dtype, after):
    x = channels_last(*shape, dtype=dtype, mean=0.7)
    shortcut = channels_last(*shape, dtype=dtype, seed=1) if "add" in after else None
    dy = channels_last(*shape, dtype=dtype, seed=2)
    norm = Norm(shape[1])
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1.2, 1.5, shape[1]))
        norm.bias.copy_(torch.linspace(0.4, -0.3, shape[1]))
    norm.compiled = True
    assert can_fuse(x, shortcut)
    leaves = [each for each in (x, shortcut) if each is not None]
    for leaf in leaves:
        leaf.requires_grad_()
    y = norm(x, after, shortcut)
    found = torch.autograd.grad(y, [*leaves, norm.weight, norm.bias], dy)

    exact = [leaf.detach().double().requires_grad_() for leaf in (*leaves, norm.weight, norm.bias)]
    weight, bias = exact[-2:]
    expected = in_torch(exact[0], weight, bias, after, exact[1] if shortcut is not None else None)
    if dtype == torch.bfloat16:
        # Values that are 0 up to rounding are ignored, since rounding decides whether ReLU passes them.
        gate = in_torch(exact[0], weight, bias, "nothing", None)
        gate = gate + exact[1] if after == "add relu" else gate
        dy = torch.where(gate.abs() < 2e-2, 0.0, dy.double()).to(dtype)
        found = torch.autograd.grad(norm(x, after, shortcut), [*leaves, norm.weight, norm.bias], dy)
    wanted = torch.autograd.grad(expected, exact, dy.double())
    for mine, its in zip((y, *found), (expected, *wanted), strict=True):
        scale = its.abs().max().clamp(min=1.0)
        assert mine.shape == its.shape
        assert ((mine.double() - its).abs() / scale).max() <= 4 * ROUNDING[dtype]


@needs_compiler
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_running_statistics_agree_with_torch(dtype):
    norms = [Norm(6), Norm(6)]
    norms[1].compiled = True
    for seed in range(3):
        x = channels_last(4, 6, 5, 5, dtype=dtype, seed=seed, mean=2.0)
        for norm in norms:
            norm(x)
    assert torch.allclose(norms[0].running_mean, norms[1].running_mean, rtol=1e-5)
    assert torch.allclose(norms[0].running_var, norms[1].running_var, rtol=1e-4)


@needs_compiler
def test_small_variance_with_a_large_mean_is_accurate():
    x = channels_last(8, 4, 16, 16, dtype=torch.float32) + 100.0
    norm = Norm(4)
    norm.compiled = True
    assert torch.allclose(norm(x).var((0, 2, 3)), torch.ones(4), atol=0.02)


@needs_compiler
@pytest.mark.parametrize("place", [(0, slice(None), 0, 0), (slice(None), slice(None), 0, 0)], ids=["one", "a corner"])
def test_outliers_in_the_first_rows_do_not_spoil_statistics(place):
    x = channels_last(64, 16, 32, 32, dtype=torch.float32)
    x[place] = 100.0
    norm = Norm(16)
    norm.compiled = True
    y = norm(x)
    expected = in_torch(x.double(), norm.weight.double(), norm.bias.double(), "nothing", None)
    assert (y - expected).abs().max() < 1e-5 * expected.abs().max()


@needs_compiler
def test_gradients_in_any_layout():
    x = channels_last(4, 6, 5, 3, dtype=torch.float32).requires_grad_()
    shortcut = channels_last(4, 6, 5, 3, dtype=torch.float32, seed=1).requires_grad_()
    dy = channels_last(4, 6, 5, 3, dtype=torch.float32, seed=2)
    norm = Norm(6)
    norm.compiled = True
    wanted = torch.autograd.grad(norm(x, "add relu", shortcut), [x, shortcut], dy)
    assert all(
        map(torch.equal, torch.autograd.grad(norm(x, "add relu", shortcut), [x, shortcut], dy.contiguous()), wanted)
    )
    # The gradient of a mean is one number that is broadcast.
    mean = torch.autograd.grad(norm(x, "add relu", shortcut).mean((2, 3)).sum(), [x, shortcut])
    ones = torch.full_like(dy, 1 / 15)
    wanted = torch.autograd.grad(norm(x, "add relu", shortcut), [x, shortcut], ones)
    assert all(torch.allclose(mine, its, atol=1e-6) for mine, its in zip(mean, wanted, strict=True))


def test_shortcut_is_required_if_and_only_if_one_is_added():
    x = channels_last(2, 4, 3, 3, dtype=torch.float32)
    for after, shortcut in (("add relu", None), ("relu add", None), ("relu", x), ("nothing", x)):
        with pytest.raises(AssertionError, match="a shortcut is given if and only if"):
            Norm(4)(x, after, shortcut)


@needs_compiler
def test_constant_input_and_nan():
    norm = Norm(2)
    norm.compiled = True
    constant = torch.full((2, 2, 4, 4), 3.0).to(memory_format=torch.channels_last)
    assert norm(constant).abs().max() < 1e-3
    for dtype in ROUNDING:
        broken = channels_last(2, 2, 4, 4, dtype=dtype)
        broken[0, 0, 0, 0] = float("nan")
        for after in ("nothing", "relu"):
            # A loss that is not finite must be visible.
            assert norm(broken, after)[:, 0].isnan().all()


def computed(kernels, device=CPU, precision="float32", *, threads=1):
    settings = ComputeSettings(kernels=kernels, precision=precision)
    return resolve_arithmetic(settings, device, {"normalization"}, threads=threads)


FAMILIES = {
    "residual": ResidualSpec(widths=(4, 6), blocks=(1, 1)),
    "looped": LoopedSpec(stem=4, widths=(4, 6), passes=(1, 2), pooling="average"),
    "separable": SeparableSpec(widths=(4, 6), blocks=(1, 2)),
}


@needs_compiler
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_network_trains_equally_with_and_without_fusion(family, dtype, monkeypatch):
    torch.manual_seed(0)
    modules = [FAMILIES[family].build((16, 16, 3), 5).to(memory_format=torch.channels_last)]
    modules.append(copy.deepcopy(modules[0]))
    use_kernels(modules[1], compiled=True)
    calls = []
    monkeypatch.setattr("thaw.models.blocks.normalize", lambda *args: calls.append(args) or kernel.normalize(*args))
    x = channels_last(8, 3, 16, 16, dtype=torch.float32)
    results = []
    for module in modules:
        with autocast(dtype, CPU):
            loss = F.cross_entropy(module(x).float(), torch.arange(8) % 5)
        results.append((loss, torch.cat([each.flatten() for each in torch.autograd.grad(loss, module.parameters())])))
    (loss, gradient), (fused_loss, fused_gradient) = results
    assert abs(loss - fused_loss) < 20 * ROUNDING[dtype]
    assert F.cosine_similarity(gradient, fused_gradient, dim=0) > (0.99999 if dtype == torch.float32 else 0.98)
    blocks = sum(isinstance(part, Separable) for part in modules[1].modules())
    assert len(calls) == sum(isinstance(part, Norm) for part in modules[1].modules()) - 2 * blocks
    fused_statistics = dict(modules[1].named_buffers())
    for name, buffer in modules[0].named_buffers():
        assert torch.allclose(buffer, fused_statistics[name], rtol=20 * ROUNDING[dtype], atol=ROUNDING[dtype]), name


@needs_compiler
def test_evaluation_uses_torch():
    norm = Norm(4).eval()
    x = channels_last(2, 4, 3, 3, dtype=torch.float32)
    before = norm(x, "relu")
    norm.compiled = True
    assert torch.equal(norm(x, "relu"), before)


def test_unsupported_input_uses_torch():
    x = channels_last(2, 4, 3, 3, dtype=torch.float32)
    assert can_fuse(x, None)
    assert can_fuse(x, x)
    assert not can_fuse(x.contiguous(), None)
    assert not can_fuse(x.double(), None)
    assert not can_fuse(x, x.bfloat16())
    assert not can_fuse(x, x[:1])
    assert not can_fuse(x[:0], None)
    assert not can_fuse(x[:1, :, :1, :1], None)
    assert not can_fuse(x.to("meta"), None)


@needs_compiler
def test_unsupported_layout_gives_the_same_result():
    norm = Norm(4)
    norm.compiled = True
    x = channels_last(3, 4, 6, 5, dtype=torch.float32)
    assert torch.allclose(norm(x, "relu"), norm(x.contiguous(), "relu"), atol=1e-5)


def test_settings():
    with raises("usage", "ComputeSettings.kernels = 'fast'", "auto, compiled, torch"):
        ComputeSettings(kernels="fast")
    assert not computed("torch", CPU, "float32", threads=1).compiled
    assert not computed("auto", torch.device("cuda"), "float32", threads=1).compiled
    # The C has one thread, torch's operations have several.
    assert not computed("auto", CPU, "float32", threads=8).compiled
    with raises("usage", "cuda"):
        computed("compiled", torch.device("cuda"), "float32", threads=1)
    with raises("usage", "auto, compiled, torch"):
        computed("C", CPU, "float32", threads=1)


@pytest.fixture
def nothing_compiled():
    compiled.cache_clear()
    _compiled.cache_clear()
    yield
    compiled.cache_clear()
    _compiled.cache_clear()


@pytest.mark.usefixtures("nothing_compiled")
def test_missing_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert not computed("auto", CPU, "bfloat16", threads=1).compiled
    with raises("missing-dependency", "compute.kernels=torch"):
        computed("compiled", CPU, "bfloat16", threads=1)


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("script", ["echo 'error: no such target' >&2; exit 1", "touch normalization.so"])
def test_broken_compiler(monkeypatch, tmp_path, script):
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert not computed("auto", CPU, "bfloat16", threads=1).compiled
    with raises("missing-dependency", "normalization.c cannot be compiled"):
        computed("compiled", CPU, "bfloat16", threads=1)


@needs_compiler
@pytest.mark.usefixtures("nothing_compiled")
def test_unknown_processor_flags_are_retried(monkeypatch, tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *native*) exit 1;; esac\nexec {find_compiler()} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert computed("compiled", CPU, "float32", threads=9).compiled


def test_constants_agree_with_the_c_source():
    source = (SOURCES / "normalization.c").read_text("utf-8")
    assert "enum { NOTHING, RELU, ADD_RELU, RELU_ADD };" in source
    assert [after.upper().replace(" ", "_") for after in kernel.NUMBERS] == [
        "NOTHING",
        "RELU",
        "ADD_RELU",
        "RELU_ADD",
    ]
    assert list(kernel.NUMBERS.values()) == [0, 1, 2, 3]


RECIPE = """
method = "plain"
[model]
family = "residual"
widths = [4, 6]
blocks = [1, 1]
[plain]
epochs = 2
[quantize]
qat_threshold = 100
"""


@needs_compiler
def test_run_records_its_implementation_and_repeats_its_bits(call, tmp_path):
    (tmp_path / "small.toml").write_text(RECIPE)
    weights, said = {}, {}
    for name, kernels in (("first", "auto"), ("second", "compiled"), ("third", "torch")):
        words = ["--recipe", "small.toml", "--set", f"compute.kernels={kernels}", "--out", name]
        code, _, err = call("train", "digits", *words)
        assert code == 0, err
        weights[name] = (tmp_path / name / "model.safetensors").read_bytes()
        said[name] = metrics(tmp_path / name)
    assert [said[name]["kernels"] for name in weights] == ["compiled", "compiled", "torch"]
    tensors = {name: load(content) for name, content in weights.items()}
    assert all(torch.equal(tensor, tensors["second"][name]) for name, tensor in tensors["first"].items())
    assert any(not torch.equal(tensor, tensors["third"][name]) for name, tensor in tensors["first"].items())
    assert abs(said["first"]["validation"]["accuracy"] - said["third"]["validation"]["accuracy"]) < 0.1


@needs_compiler
@pytest.mark.parametrize("kept", ["compiled", "torch"])
def test_resumed_run_uses_the_same_implementation(tmp_path, monkeypatch, kept):
    (tmp_path / "small.toml").write_text(RECIPE)
    name, recipe = load_recipe(str(tmp_path / "small.toml"), [f"compute.kernels={kept}"])
    request = TrainRequest(source="digits", recipe_name=name, recipe=recipe)
    list(start_run(request, out=tmp_path / "whole"))
    begun = start_run(request, out=tmp_path / "begun")
    next(event for event in begun if isinstance(event, EpochDone))
    begun.close()
    # The choice of the current machine does not matter.
    other = kept != "compiled"
    monkeypatch.setattr("thaw.run.pipeline.kernels_of", lambda *_: kernels_name(compiled=other))
    list(resume_run(tmp_path / "begun"))
    assert metrics(tmp_path / "begun")["kernels"] == kept
    assert_same_run(tmp_path / "begun", tmp_path / "whole")
