"""Costs, compared with calculations by hand."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from error_matching import raises

from thaw.graph.cost import STACK_BYTES, count_cost, peak_activation_bytes
from thaw.graph.graph import Graph
from thaw.graph.lower import layer_table, lower
from thaw.graph.ops import Concat, Conv2d, Dense, MaxPool2d, Reshape, Scale, Softmax
from thaw.graph.tensors import Tensor
from thaw.models.families import PaperSpec
from thaw.models.unify import UnifySpec, build_dual, build_unified

# Name, shape, parameters: 3 * 3 * 1 * 10 + 10 = 100, 3 * 3 * 10 * 20 + 20 = 1820, 5 * 5 * 20 * 10 + 10 = 5010,
# 20 * 32 + 32 = 672, 32 * 10 + 10 = 330.
GRAY_28 = [
    ("scale", (28, 28, 1), 0),
    ("branch1.conv1", (26, 26, 10), 100),
    ("branch1.conv1.pool", (13, 13, 10), 0),
    ("branch1.conv2", (11, 11, 20), 1820),
    ("branch1.conv2.pool", (5, 5, 20), 0),
    ("branch1.dense", (1, 1, 10), 5010),
    ("branch1.dense.flatten", (10,), 0),
    ("branch1.softmax", (10,), 0),
    ("branch2.conv1", (26, 26, 10), 100),
    ("branch2.conv1.pool", (13, 13, 10), 0),
    ("branch2.conv2", (11, 11, 20), 1820),
    ("branch2.conv2.pool", (5, 5, 20), 0),
    ("branch2.dense", (1, 1, 10), 5010),
    ("branch2.dense.flatten", (10,), 0),
    ("branch2.softmax", (10,), 0),
    ("concat", (20,), 0),
    ("head.hidden", (32,), 672),
    ("head.output", (10,), 330),
    ("softmax", (10,), 0),
]

# 3 * 3 * 3 * 10 + 10 = 280, 3 * 3 * 10 * 20 + 20 = 1820, 6 * 6 * 20 * 10 + 10 = 7210.
COLOR_32 = [
    ("scale", (32, 32, 3), 0),
    ("branch1.conv1", (30, 30, 10), 280),
    ("branch1.conv1.pool", (15, 15, 10), 0),
    ("branch1.conv2", (13, 13, 20), 1820),
    ("branch1.conv2.pool", (6, 6, 20), 0),
    ("branch1.dense", (1, 1, 10), 7210),
    ("branch1.dense.flatten", (10,), 0),
    ("branch1.softmax", (10,), 0),
    ("branch2.conv1", (30, 30, 10), 280),
    ("branch2.conv1.pool", (15, 15, 10), 0),
    ("branch2.conv2", (13, 13, 20), 1820),
    ("branch2.conv2.pool", (6, 6, 20), 0),
    ("branch2.dense", (1, 1, 10), 7210),
    ("branch2.dense.flatten", (10,), 0),
    ("branch2.softmax", (10,), 0),
    ("concat", (20,), 0),
    ("head.hidden", (32,), 672),
    ("head.output", (10,), 330),
    ("softmax", (10,), 0),
]


def table(shape):
    return layer_table(PaperSpec(), UnifySpec(), shape, 10)


@pytest.mark.parametrize(("shape", "expected"), [((28, 28, 1), GRAY_28), ((32, 32, 3), COLOR_32)])
def test_layer_table(shape, expected):
    assert [(layer.name, layer.output, layer.parameters) for layer in table(shape).layers] == expected


def test_totals_of_the_28x28x1_network():
    cost = table((28, 28, 1))
    assert cost.parameters == 2 * (100 + 1820 + 5010) + 672 + 330 == 14_862
    branch_macs = 26 * 26 * 9 * 1 * 10 + 11 * 11 * 9 * 10 * 20 + 5 * 5 * 20 * 10  # 60,840 + 217,800 + 5,000
    assert cost.macs == 2 * branch_macs + 20 * 32 + 32 * 10 == 568_240
    # At the first pooling: the scaled image, which the second branch needs, and the outputs of convolution and pooling.
    peak_values = 28 * 28 + 26 * 26 * 10 + 13 * 13 * 10
    assert cost.peak_activation_bytes_float32 == 4 * peak_values == 36_936
    assert cost.peak_activation_bytes_int8 == peak_values == 9_234
    assert cost.weight_bytes_float32 == 4 * 14_862
    biases = 2 * (10 + 20 + 10) + 32 + 10
    assert cost.weight_bytes_int8 == (14_862 - biases) + 4 * biases == 15_228


def test_totals_of_the_32x32x3_network():
    cost = table((32, 32, 3))
    assert cost.parameters == 2 * (280 + 1820 + 7210) + 672 + 330 == 19_622
    branch_macs = 30 * 30 * 9 * 3 * 10 + 13 * 13 * 9 * 10 * 20 + 6 * 6 * 20 * 10  # 243,000 + 304,200 + 7,200
    assert cost.macs == 2 * branch_macs + 20 * 32 + 32 * 10 == 1_109_760
    peak_values = 32 * 32 * 3 + 30 * 30 * 10 + 15 * 15 * 10
    assert cost.peak_activation_bytes_float32 == 4 * peak_values == 57_288
    assert cost.peak_activation_bytes_int8 == peak_values == 14_322


def test_layers_sum_to_totals_and_name_their_bytes():
    cost = table((28, 28, 1))
    assert sum(layer.parameters for layer in cost.layers) == cost.parameters
    assert sum(layer.macs for layer in cost.layers) == cost.macs
    layers = {layer.name: layer for layer in cost.layers}
    assert (layers["branch1.conv1"].macs, layers["branch1.conv1"].activation_bytes) == (60_840, 4 * 6_760)
    assert (layers["branch2.dense"].macs, layers["branch2.dense"].activation_bytes) == (5_000, 40)
    assert layers["branch1.dense.flatten"].activation_bytes == 0  # it shares its input's memory
    assert [name for name, layer in layers.items() if layer.macs] == [
        name for name, layer in layers.items() if layer.kind in ("conv2d", "dense")
    ]


def test_parameters_are_those_of_the_module():
    for module in (
        build_unified(PaperSpec(filters=(3, 7)), UnifySpec(hidden=9), (17, 12, 3), 5),
        build_dual(PaperSpec(filters=(3, 7)), (17, 12, 3), 5).branches[0],
    ):
        graph = lower(module, shape=(17, 12, 3), mean=(0.0,) * 3, std=(1.0,) * 3, classes=5)
        assert count_cost(graph).parameters == sum(parameter.numel() for parameter in module.parameters())


def two_branches():
    """A (4, 4, 1) image through two small branches with global pooling; all sizes can be calculated by hand."""
    ops = (
        Scale(name="scale", inputs=("image",), output="s", mean=(0.0,), std=(1.0,)),
        Conv2d(name="conv_a", inputs=("s",), output="a1", weights=ones(2, 3, 3, 1), bias=ones(2), activation="relu"),
        MaxPool2d(name="pool_a", inputs=("a1",), output="a2", kernel=(2, 2), stride=(2, 2)),
        Reshape(name="flat_a", inputs=("a2",), output="a3", shape=(2,)),
        Conv2d(name="conv_b", inputs=("s",), output="b1", weights=ones(3, 1, 1, 1), bias=ones(3)),
        MaxPool2d(name="pool_b", inputs=("b1",), output="b2", kernel=(4, 4), stride=(4, 4)),
        Reshape(name="flat_b", inputs=("b2",), output="b3", shape=(3,)),
        Concat(name="concat", inputs=("a3", "b3"), output="c"),
        Dense(name="dense", inputs=("c",), output="logits", weights=ones(2, 5), bias=ones(2)),
        Softmax(name="softmax", inputs=("logits",), output="probabilities"),
    )
    return graph_of(ops, (4, 4, 1), ("logits", "probabilities"))


def ones(*shape):
    return np.ones(shape, np.float32)


def graph_of(ops, image_shape, outputs):
    tensors = {"image": Tensor(name="image", shape=image_shape, dtype="uint8")}
    for op in ops:
        tensors[op.output] = op.infer([tensors[name] for name in op.inputs])
    return Graph(tensors=tuple(tensors.values()), ops=tuple(ops), input="image", outputs=outputs)


def test_peak_memory_by_hand():
    # Live values; the raw image is in brackets, since it always counts one byte per value:
    #   scale   (16) + s 16
    #   conv_a  s 16 + a1 8
    #   pool_a  s 16 + a1 8 + a2 2            s is read again by conv_b
    #   conv_b  s 16 + b1 48 + a2 2   = 66    a2 lives on as a3, in the same memory
    #   pool_b  b1 48 + b2 3 + a2 2
    #   concat  a2 2 + b2 3 + c 5
    #   dense   c 5 + logits 2
    #   softmax logits 2 + probabilities 2
    graph = two_branches()
    assert peak_activation_bytes(graph, 4) == 4 * 66
    assert peak_activation_bytes(graph, 1) == 66


def test_peak_memory_including_the_image():
    # A gray image of 6x6 is reduced at once: while it is scaled, 36 raw bytes and 36 values are live.
    ops = (
        Scale(name="scale", inputs=("image",), output="s", mean=(0.0,), std=(1.0,)),
        MaxPool2d(name="pool", inputs=("s",), output="p", kernel=(3, 3), stride=(3, 3)),
    )
    graph = graph_of(ops, (6, 6, 1), ("p",))
    assert peak_activation_bytes(graph, 4) == 36 + 4 * 36
    assert peak_activation_bytes(graph, 1) == 36 + 36


def test_output_lives_to_the_end():
    # s is an output, so it is live with b 4 and c 4 at the last operation: 16 + 4 + 4 values.
    ops = (
        Scale(name="scale", inputs=("image",), output="s", mean=(0.0,), std=(1.0,)),
        MaxPool2d(name="pool", inputs=("s",), output="a", kernel=(2, 2), stride=(2, 2)),
        Conv2d(name="conv", inputs=("a",), output="b", weights=ones(3, 1, 1, 1), bias=ones(3)),
        Conv2d(name="last", inputs=("b",), output="c", weights=ones(5, 1, 1, 3), bias=ones(5)),
    )
    assert peak_activation_bytes(graph_of(ops, (4, 4, 1), ("s", "c")), 4) == 4 * (16 + 12 + 20)
    assert peak_activation_bytes(graph_of(ops, (4, 4, 1), ("c",)), 4) == 4 * (12 + 20)


def test_cost_of_a_small_graph_as_json():
    cost = count_cost(two_branches())
    data = json.loads(json.dumps(cost.as_dict()))
    assert list(data) == [
        "layers", "parameters", "macs", "peak_activation_bytes_float32", "peak_activation_bytes_int8",
        "weight_bytes_float32", "weight_bytes_int8", "arena_bytes", "ram_bytes", "flash_bytes", "image_bytes",
        "score_bytes",
    ]  # fmt: skip
    assert data["layers"][1] == {
        "name": "conv_a",
        "kind": "conv2d",
        "output": [2, 2, 2],
        "parameters": 20,  # 2 * 9 + 2
        "macs": 72,  # 2 * 2 positions * 9 * 2
        "activation_bytes": 32,
    }
    assert (data["image_bytes"], data["score_bytes"]) == (16, 2)
    assert data["ram_bytes"] == data["arena_bytes"] + STACK_BYTES + 16 + 2
    assert data["parameters"] == 20 + (3 + 3) + (10 + 2)
    assert data["macs"] == 72 + 4 * 4 * 3 + 10
    assert data["weight_bytes_int8"] == (18 + 3 + 10) + 4 * (2 + 3 + 2)
    assert data["weight_bytes_float32"] == 4 * 38


def test_products_with_padding_count():
    conv = Conv2d(name="conv", inputs=("s",), output="y", weights=ones(2, 3, 3, 1), bias=ones(2), padding=(1, 1, 1, 1))
    scale = Scale(name="scale", inputs=("image",), output="s", mean=(0.0,), std=(1.0,))
    assert count_cost(graph_of((scale, conv), (4, 4, 1), ("y",))).macs == 4 * 4 * 9 * 2


def test_layer_table_draws_no_random_numbers_and_allocates_no_weights():
    state = torch.get_rng_state()
    began = time.perf_counter()
    cost = layer_table(PaperSpec(filters=(4096, 4096)), UnifySpec(hidden=65536), (1024, 1024, 3), 1000)
    assert cost.parameters > 5e11  # two terabytes, if they were allocated
    assert time.perf_counter() - began < 5
    assert torch.equal(torch.get_rng_state(), state)


def test_layer_table_rejects_invalid_shapes():
    with raises("usage", "10x10"):
        table((9, 28, 1))
    with raises("usage", 2):
        layer_table(PaperSpec(), UnifySpec(), (28, 28, 1), 1)


@pytest.mark.parametrize("module", ["calibrate", "cost", "graph_file", "interpret", "plan", "quantize"])
def test_only_lowering_and_training_import_torch(module):
    code = f"import sys, thaw.graph.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
