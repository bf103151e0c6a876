"""Every family of networks through lowering, quantization, every artifact and training in int8.

The oracles are the torch modules, the parameters that they have, LiteRT's reference kernels and the compiled C.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from compilers import FEW_INTRINSICS
from error_matching import raises
from export_samples import card_of
from family_samples import CLASSES, SHAPES, SPECS, as_batch, family_graph, family_module, randomize
from graph_samples import random_images

from thaw.evidence.emulate import emulate, missing_tools
from thaw.evidence.run_c import HostCRunner
from thaw.export.to_c import export_c
from thaw.graph.calibrate import calibrate
from thaw.graph.cost import count_cost
from thaw.graph.interpret import run, trace
from thaw.graph.lower import layer_table, lower
from thaw.graph.ops import AveragePool2d, MaxPool2d, Weighted
from thaw.graph.plan import constant_bytes, plan_memory
from thaw.graph.trainable import TrainableGraph
from thaw.models.blocks import Halve, learned_parameters
from thaw.models.families import LoopedSpec, ResidualSpec, SeparableSpec
from thaw.models.unify import UnifySpec, build_unified

LOOPED = tuple(name for name in SPECS if name.startswith("looped"))
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler: apt-get install gcc")
needs_emulator = pytest.mark.skipif(bool(missing_tools()), reason=f"needs {' '.join(missing_tools())}")
networks = pytest.mark.parametrize(("name", "shape"), [(name, shape) for name in SPECS for shape in SHAPES])


def scores_only(graph):
    return replace(graph, outputs=graph.outputs[-1:])


def sharing(graph):
    return [op for op in graph.ops if isinstance(op, Weighted) and op.shares]


# Float


@pytest.mark.parametrize("fused", [False, True], ids=["alone", "unified"])
@networks
def test_float_graph_equals_the_module(name, shape, fused):
    graph = family_graph(name, shape, fused=fused, precision="float")
    images = random_images(np.random.default_rng(1), graph, 9)
    with torch.no_grad():
        expected = family_module(name, shape, fused=fused)(as_batch(images)).numpy()
    found = run(graph, images)["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_passes_share_the_weights_of_the_first_pass():
    shares = {op.name: op.shares for op in sharing(family_graph("looped", (16, 16, 1), precision="float"))}
    assert shares == {
        "stage1.loop.pass2": "stage1.loop.pass1",
        "stage2.loop.pass2": "stage2.loop.pass1",
        "stage2.loop.pass3": "stage2.loop.pass1",
    }
    fused = family_graph("looped, one convolution", (16, 16, 1), fused=True, precision="float")
    assert {op.shares for op in sharing(fused)} == {"branch1.loop.loop.pass1", "branch2.loop.loop.pass1"}


# Costs


@pytest.mark.parametrize("shape", [(16, 16, 1), (32, 32, 3)])
@pytest.mark.parametrize(
    "spec",
    [
        *SPECS.values(),
        ResidualSpec(),
        ResidualSpec(widths=(16, 16, 28, 28), blocks=(0, 1, 3, 2)),
        LoopedSpec(),
        LoopedSpec(stem=8, widths=(8, 8, 12), passes=(3, 2, 9), mixed=9),
        LoopedSpec(stem=32, widths=(32, 32), passes=(6, 6), shared=True, mixed=12),
        LoopedSpec(stem=7, widths=(7,), passes=(2,), mixed=0),
        SeparableSpec(),
        SeparableSpec(widths=(3, 1, 1), blocks=(1, 3, 2)),
    ],
    ids=str,
)
def test_parameters_are_those_of_training(spec, shape):
    for unify_spec in (None, UnifySpec(hidden=3)):
        module = spec.build(shape, 7) if unify_spec is None else build_unified(spec, unify_spec, shape, 7)
        cost = layer_table(spec, unify_spec, shape, 7)
        assert cost.parameters == learned_parameters(module)
        assert sum(layer.parameters for layer in cost.layers) == cost.parameters
        assert cost.weight_bytes_float32 == 4 * cost.parameters
        trained = lower(randomize(module).eval(), shape=shape, mean=(0.0,) * shape[2], std=(1.0,) * shape[2], classes=7)
        assert count_cost(trained) == cost


def test_parameters_of_a_loop_by_hand():
    layers = {layer.name: layer.parameters for layer in layer_table(SPECS["looped"], None, (16, 16, 1), 5).layers}
    # Weights and, for each pass, a scale and an offset for each of 4 channels.
    assert layers["stage1.loop.pass1"] == 4 * 4 * 9 + 2 * 4
    assert layers["stage1.loop.pass2"] == 2 * 4
    assert layers["stem"] == 4 * 9 + 4
    assert layers["stage2.loop.mix3"] == 2 * 6
    cost = layer_table(SPECS["looped"], None, (16, 16, 1), 5)
    weights = 4 * 9 + 4 * 4 * 9 + 4 * 6 + 6 * 6 * 9 + 2 * 6 + 6 * 5
    others = 4 + 2 * 2 * 4 + 6 + 3 * 2 * 6 + 2 * 6 + 5
    assert (cost.parameters, cost.weight_bytes_int8) == (weights + others, weights + 4 * others)


def test_network_too_large_to_allocate_is_counted():
    cost = layer_table(ResidualSpec(widths=(4096,) * 8, blocks=(8,) * 8), None, (128, 128, 3), 10)
    assert cost.parameters > 1e10
    looped = layer_table(LoopedSpec(stem=4096, widths=(4096,) * 3, passes=(9, 9, 9)), None, (128, 128, 3), 10)
    assert 4096 * 4096 * 9 * 3 < looped.parameters < 4096 * 4096 * 9 * 3.01


# Int8


@pytest.mark.parametrize("name", LOOPED)
def test_shared_int8_numbers_are_identical_and_represent_each_pass(name):
    floats, int8 = (family_graph(name, (16, 16, 1), precision=precision) for precision in ("float", "int8"))
    assert [op.shares for op in sharing(int8)] == [op.shares for op in sharing(floats)]
    by_name = {op.name: op for op in int8.ops}
    real = {op.name: op.weights for op in floats.ops if isinstance(op, Weighted)}
    for op in sharing(int8):
        np.testing.assert_array_equal(op.weights, by_name[op.shares].weights)
        step = op.weight_scales[:, None, None, None].astype(np.float64)
        assert np.abs(op.weights * step - real[op.name]).max() <= 0.5001 * step.max()
        assert (np.abs(op.weights * step - real[op.name]) <= 0.5001 * step).all()


@networks
def test_int8_agrees_with_float(name, shape):
    floats, int8 = (family_graph(name, shape, precision=precision) for precision in ("float", "int8"))
    images = random_images(np.random.default_rng(3), floats, 40)[3:]
    quantization = int8.tensor("logits").quantization
    expected = run(floats, images)["logits"]
    found = (run(int8, images)["logits"].astype(np.float64) - quantization.zero_point) * quantization.scale
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98


@needs_compiler
@pytest.mark.parametrize(
    ("name", "shape", "fused", "flags"),
    [
        *((name, shape, False, ("-O0", "-DTHAW_PORTABLE")) for name in SPECS for shape in SHAPES),
        *((name, SHAPES[0], True, ("-O1", "-march=native", *FEW_INTRINSICS)) for name in SPECS),
    ],
)
def test_c_equals_the_reference_interpreter(name, shape, fused, flags):
    graph = scores_only(family_graph(name, shape, fused=fused))
    images = random_images(np.random.default_rng(4), graph, 12)
    with HostCRunner(export_c({"int8": graph}, card_of(graph)), graph, flags=flags) as runner:
        np.testing.assert_array_equal(runner.run(images), run(graph, images)[graph.outputs[0]])
        reference = trace(graph, images[3:4])
        for tensor, values in runner.tensors(images[3:4]).items():
            np.testing.assert_array_equal(values, reference[tensor], err_msg=tensor)


@networks
def test_litert_reference_kernels_equal_the_reference_interpreter(name, shape):
    pytest.importorskip("ai_edge_litert")
    from thaw.evidence.litert_process import LiteRtModel
    from thaw.export.to_litert import write_litert

    graph = family_graph(name, shape)
    images = random_images(np.random.default_rng(5), graph, 12)
    runner = LiteRtModel(write_litert(graph, card_of(graph)), reference=True)
    np.testing.assert_array_equal(runner.run(images), run(graph, images)[graph.outputs[-1]])
    reference = trace(graph, images[3:4])
    for tensor, values in runner.tensors(images[3:4]).items():
        if tensor in reference and tensor != graph.input:
            np.testing.assert_array_equal(values.reshape(reference[tensor].shape), reference[tensor], err_msg=tensor)


@networks
def test_onnx_runs_both_precisions(name, shape):
    pytest.importorskip("onnxruntime")
    from thaw.evidence.run_onnx import OnnxRunner
    from thaw.export.to_onnx import export_onnx

    graphs = {precision: family_graph(name, shape, precision=precision) for precision in ("float", "int8")}
    files = export_onnx(graphs, card_of(graphs["int8"]))
    images = random_images(np.random.default_rng(6), graphs["float"], 12)
    expected = run(graphs["float"], images)["probabilities"]
    np.testing.assert_allclose(OnnxRunner(files["model-float.onnx"]).run(images), expected, rtol=1e-3, atol=1e-5)
    int8 = (run(graphs["int8"], images)["probabilities"].astype(np.float64) + 128) / 256
    assert np.abs(OnnxRunner(files["model-int8.onnx"]).run(images) - int8).mean() < 0.02


@needs_emulator
@pytest.mark.parametrize("name", ["looped", "residual"])
def test_emulated_core_equals_the_reference_interpreter(name):
    graph = scores_only(family_graph(name, (16, 16, 1)))
    images = random_images(np.random.default_rng(7), graph, 4)
    found = emulate(export_c({"int8": graph}, card_of(graph)), images, "cortex-m4")
    np.testing.assert_array_equal(found.scores, run(graph, images)["probabilities"])
    assert found.static_bytes == plan_memory(graph).arena_bytes
    assert found.flash_bytes <= count_cost(graph).flash_bytes


# Savings by sharing


@pytest.mark.parametrize("name", LOOPED)
def test_c_stores_shared_weights_once(name):
    graph = scores_only(family_graph(name, (16, 16, 1)))
    text = export_c({"int8": graph}, card_of(graph))["model.c"].decode()
    sizes = {"int8_t": 1, "int32_t": 4}
    arrays = re.findall(r"static const (int8_t|int32_t) model_(weights|bias|multiplier|shift)_\d+\[(\d+)\]", text)
    assert sum(sizes[kind] * int(count) for kind, _, count in arrays) == constant_bytes(graph)
    weighted = sum(isinstance(op, Weighted) for op in graph.ops)
    assert sum(what == "weights" for _, what, _ in arrays) == weighted - len(sharing(graph))
    alone = replace(graph, ops=tuple(replace(op, shares="") if isinstance(op, Weighted) else op for op in graph.ops))
    saved = constant_bytes(alone) - constant_bytes(graph)
    # The numbers of channels and of taps per row are even.
    assert saved == sum(op.weights.size + op.weights.size % 2 for op in sharing(graph)) or name == "looped, wide"
    assert saved > 0


def test_first_step_owns_the_weights_after_reordering():
    graph = scores_only(family_graph("looped", (16, 16, 1)))
    plan = plan_memory(graph)
    swapped = replace(plan, steps=plan.steps[::-1], scratch_offsets=plan.scratch_offsets[::-1])
    from thaw.export.c_layers import emit_step

    text = "".join(emit_step(graph, swapped, index).constants for index in range(len(swapped.steps)))
    defined = [int(number) for number in re.findall(r"int8_t thaw_weights_(\d+)\[", text)]
    for match in re.finditer(r"    thaw_weights_(\d+), thaw_bias_(\d+)", text):
        assert int(match[1]) in defined
        assert int(match[1]) <= int(match[2])


@pytest.mark.parametrize("name", LOOPED)
def test_litert_stores_shared_weights_once(name):
    pytest.importorskip("ai_edge_litert")
    from thaw.export.to_litert import write_litert

    graph = family_graph(name, (16, 16, 1))
    content = write_litert(graph, card_of(graph))
    for op in sharing(graph):
        assert content.count(op.weights.tobytes()) == 1


# Quantization-aware training


@pytest.mark.parametrize("name", ["looped", "looped, one convolution", "residual", "separable"])
def test_int8_training_equals_the_reference_interpreter_and_keeps_weights_shared(name):
    floats = family_graph(name, (12, 12, 3), precision="float")
    images = random_images(np.random.default_rng(8), floats, 24)
    module = TrainableGraph(floats, calibrate(floats, images)["minmax"])
    x, labels = as_batch(images), torch.arange(24) % CLASSES
    optimizer = torch.optim.NAdam(module.parameters(), lr=0.01)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x), labels)
        loss.backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    int8 = module.int8_graph()
    assert [op.shares for op in sharing(int8)] == [op.shares for op in sharing(floats)]
    with torch.no_grad():
        found = module.numbers(int8, torch.from_numpy(images).permute(0, 3, 1, 2).float())
    for tensor, expected in trace(int8, images).items():
        values = found[tensor].permute(0, 2, 3, 1) if found[tensor].ndim == 4 else found[tensor]
        np.testing.assert_array_equal(values.numpy(), expected, err_msg=tensor)


def test_shared_weights_have_the_gradients_of_the_float_network():
    """Compared with torch's gradients through the loop: one weight tensor, and scales as factors."""
    floats = family_graph("looped", (12, 12, 3), precision="float")
    images = random_images(np.random.default_rng(9), floats, 64)
    # Ranges without clipping.
    ranges = {name: (2 * low, 2 * high) for name, (low, high) in calibrate(floats, images)["minmax"].items()}
    module = TrainableGraph(floats, ranges)
    model = family_module("looped", (12, 12, 3))
    direction = torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(0))
    (module(as_batch(images)) * direction).sum().backward()
    loop = model.get_submodule("stage2.loop")
    model.zero_grad()
    (model(as_batch(images)) * direction).sum().backward()
    # The weights of the first pass are those of the convolution times the factors of the first normalization.
    factors = [norm.affine()[0].detach() for norm in loop.norms]
    expected = loop.conv.weight.grad.permute(0, 2, 3, 1) / factors[0].view(-1, 1, 1, 1)
    found = module.weights[module.places["stage2.loop.pass1"]].grad
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.98
    assert found.norm() / expected.norm() == pytest.approx(1.0, abs=0.1)
    model.zero_grad()
    assert len(module.weights[module.places["stage2.loop.pass2"]]) == 6


def test_stages_pool_as_in_their_spec():
    x = torch.tensor([[[[1.0, 2.0, 9.0], [3.0, 6.0, 9.0]]]])
    assert Halve("max")(x).tolist() == [[[[6.0]]]]
    assert Halve("average")(x).tolist() == [[[[3.0]]]]
    for family in ("residual", "looped, one convolution", "separable"):
        spec, shape = SPECS[family], (16, 16, 1)
        for pooling, kind in (("max", MaxPool2d), ("average", AveragePool2d)):
            module = replace(spec, pooling=pooling).build(shape, CLASSES)
            graph = lower(module, shape=shape, mean=(0.5,), std=(0.25,), classes=CLASSES)
            halvings = [type(op) for op in graph.ops if getattr(op, "stride", None) == (2, 2)]
            assert halvings == [kind] * (len(spec.widths) - 1), (family, pooling)
        with raises("usage", "pooling = 'mean'"):
            replace(spec, pooling="mean")
