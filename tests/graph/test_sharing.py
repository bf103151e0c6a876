"""Operations that share weights: checks of a graph, quantization, and storage in files."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from error_matching import raises
from export_samples import card_of
from graph_samples import random_images

from thaw.data.images import InputSpec
from thaw.errors import UsageError
from thaw.evidence.run_c import HostCRunner
from thaw.export.to_c import export_c
from thaw.graph.calibrate import calibrate
from thaw.graph.graph import Graph
from thaw.graph.graph_file import HEADER, GraphHeader, read_graph, write_graph
from thaw.graph.interpret import run
from thaw.graph.ops import Add, AveragePool2d, Conv2d, Dense, DepthwiseConv2d, Reshape, Scale, Weighted
from thaw.graph.quantize import quantize
from thaw.graph.sharing import channel_factors
from thaw.graph.tensors import IMAGE, LOGITS, Tensor
from thaw.graph.trainable import TrainableGraph
from thaw.host_c import find_compiler

CHANNELS = 3


def numbers(seed, *shape, spread=0.4):
    return np.random.default_rng(seed).normal(0, spread, shape).astype(np.float32)


def conv(name, read, weights, bias=None, shares=""):
    bias = numbers(len(name), CHANNELS) if bias is None else np.array(bias, np.float32)
    return Conv2d(
        name=name, inputs=(read,), output=name, weights=weights, bias=bias, padding=(1, 1, 1, 1), shares=shares
    )


def graph_of(*ops):
    tensors = {IMAGE: Tensor(name=IMAGE, shape=(6, 6, CHANNELS), dtype="uint8")}
    for op in ops:
        tensors[op.output] = op.infer([tensors[name] for name in op.inputs])
    return Graph(tensors=tuple(tensors.values()), ops=ops, input=IMAGE, outputs=(ops[-1].output,))


SHARED = numbers(1, CHANNELS, 3, 3, CHANNELS)
FACTORS = np.array([0.5, 2.0, 1.25], np.float32)
SCALED = SHARED * FACTORS[:, None, None, None]


def three_passes(*, biases=(None, None, None), factors=(FACTORS, 1 / FACTORS)):
    """A stem, and one convolution three times: the second and third share the weights of the first."""
    scale = Scale(name="scale", inputs=(IMAGE,), output="scale", mean=(0.4,) * CHANNELS, std=(0.3, 0.25, 0.2))
    ops = [
        scale,
        conv("stem", "scale", numbers(2, CHANNELS, 3, 3, CHANNELS, spread=0.2)),
        conv("pass1", "stem", SHARED, biases[0]),
    ]
    for index, (factor, bias) in enumerate(zip(factors, biases[1:], strict=True), start=2):
        weights = (SHARED * factor[:, None, None, None]).astype(np.float32)
        ops.append(conv(f"pass{index}", f"pass{index - 1}", weights, bias, shares="pass1"))
    ops += [
        AveragePool2d(name="pool", inputs=("pass3",), output="pool", kernel=(6, 6), stride=(1, 1)),
        Reshape(name="flat", inputs=("pool",), output="flat", shape=(CHANNELS,)),
        Dense(name="dense", inputs=("flat",), output=LOGITS, weights=numbers(3, 2, CHANNELS), bias=numbers(4, 2)),
    ]
    return graph_of(*ops)


def int8_of(graph):
    images = random_images(np.random.default_rng(0), graph, 20)
    return quantize(graph, calibrate(graph, images)["minmax"])


def by_name(graph):
    return {op.name: op for op in graph.ops}


# Checks of a graph


@pytest.mark.parametrize(
    ("changed", "is_shared"),
    [
        ({"shares": "pass9"}, False),
        ({"shares": "pass3"}, False),
        ({"shares": "pass2"}, False),
        ({"shares": "scale"}, False),
        ({"weights": numbers(9, CHANNELS, 3, 3, CHANNELS)}, False),
        ({"weights": -SHARED}, False),
        ({"weights": SHARED * np.array([1, 2, 3], np.float32)}, False),
        ({"weights": SHARED * np.array([1, 0, 1], np.float32)[:, None, None, None]}, True),
        ({"weights": SHARED * np.float32(1 + 1e-5)}, True),
    ],
)
def test_rejects_weights_that_are_not_shared(changed, is_shared):
    graph = three_passes()
    ops = tuple(replace(op, **changed) if op.name == "pass2" else op for op in graph.ops)
    if is_shared:
        replace(graph, ops=ops)
        return
    with raises("usage-graph-shares", "conv2d 'pass2'", f"'{changed.get('shares', 'pass1')}'"):
        replace(graph, ops=ops)


def test_rejects_another_kind_shape_or_chain():
    graph = three_passes()
    chained = tuple(replace(op, shares="pass2") if op.name == "pass3" else op for op in graph.ops)
    with raises("usage-graph-shares", "'pass3'", "'pass2'", "'pass1'"):
        replace(graph, ops=chained)
    depthwise = DepthwiseConv2d(
        name="pass2", inputs=("pass1",), output="pass2", weights=numbers(1, 3, 3, CHANNELS),
        bias=numbers(2, CHANNELS), padding=(1, 1, 1, 1), shares="pass1",
    )  # fmt: skip
    with raises("usage-graph-shares", "conv2d", "(3, 3, 3, 3)", "depthwise_conv2d"):
        replace(graph, ops=tuple(depthwise if op.name == "pass2" else op for op in graph.ops))


def test_rejects_different_int8_numbers():
    int8 = int8_of(three_passes())
    op = by_name(int8)["pass2"]
    weights = op.weights.copy()
    weights[0, 0, 0, 0] ^= 1
    with raises("usage-graph-shares", "'pass2'", "'pass1'"):
        replace(int8, ops=tuple(replace(each, weights=weights) if each is op else each for each in int8.ops))


def test_factors_are_found_without_allocating_memory():
    graph = by_name(three_passes())
    np.testing.assert_allclose(channel_factors(graph["pass2"], graph["pass1"]), FACTORS, rtol=1e-6)
    shape = (4096, 3, 3, 4096)
    nothing = np.broadcast_to(np.zeros((), np.float32), shape)
    bias = np.broadcast_to(np.zeros((), np.float32), (4096,))
    large = Conv2d(name="a", inputs=("x",), output="y", weights=nothing, bias=bias)
    assert channel_factors(large, large).shape == (4096,)


# Int8


def test_numbers_are_those_of_the_base_and_factors_are_in_the_scales():
    ops = by_name(int8_of(three_passes()))
    for name, factors in (("pass2", FACTORS), ("pass3", 1 / FACTORS)):
        assert ops[name].shares == "pass1"
        np.testing.assert_array_equal(ops[name].weights, ops["pass1"].weights)
        np.testing.assert_allclose(ops[name].weight_scales, ops["pass1"].weight_scales * factors, rtol=1e-6)


@pytest.mark.parametrize(
    ("biases", "expected"),
    [
        # A bias of 1e9 exceeds 2**28 on the scale of these weights, so this operation has its own int8 weights.
        ((None, [1e9, 0, 0], None), {"pass2": "", "pass3": "pass1"}),
        ((None, None, [0, -1e9, 0]), {"pass2": "pass1", "pass3": ""}),
        # The weights of the first are then coarse, and the others share those of the second.
        (([1e9, 0, 0], None, None), {"pass2": "", "pass3": "pass2"}),
        (([1e9, 0, 0], [1e9, 0, 0], None), {"pass2": "", "pass3": ""}),
    ],
)
def test_weights_made_coarse_by_a_bias_are_not_shared(biases, expected):
    graph = three_passes(biases=biases)
    ranges = dict.fromkeys(("stem", "pass1", "pass2", "pass3", LOGITS), (-9.0, 9.0))
    int8 = quantize(graph, ranges)
    ops = by_name(int8)
    assert {name: ops[name].shares for name in expected} == expected
    for op in int8.ops:
        if isinstance(op, Weighted):
            assert np.abs(op.bias.astype(np.int64)).max() <= 2**28 + 1
    # The others have the same int8 weights as without sharing.
    alone = quantize(
        replace(graph, ops=tuple(replace(op, shares="") if isinstance(op, Weighted) else op for op in graph.ops)),
        ranges,
    )
    for name in ("pass1", "pass2", "pass3"):
        difference = ops[name].weights.astype(int) - by_name(alone)[name].weights
        assert np.abs(difference).max() <= 1


def test_channels_of_zeros_are_shared():
    factors = np.array([1.0, 2.0, 3.0], np.float32)
    graph = three_passes(factors=(factors, factors))
    empty = SHARED.copy()
    empty[1] = 0
    changed = {"pass1": empty, "pass2": empty * factors[:, None, None, None], "pass3": empty}
    ops = tuple(replace(op, weights=changed[op.name]) if op.name in changed else op for op in graph.ops)
    int8 = by_name(int8_of(replace(graph, ops=ops)))
    assert [int8[name].shares for name in ("pass2", "pass3")] == ["pass1", "pass1"]
    # A channel of zeros in the second cannot have the int8 weights of the first.
    gone = np.array([1.0, 0.0, 1.0], np.float32)[:, None, None, None]
    ops = tuple(replace(op, weights=SHARED * gone) if op.name == "pass2" else op for op in graph.ops)
    int8 = by_name(int8_of(replace(graph, ops=ops)))
    assert [int8[name].shares for name in ("pass2", "pass3")] == ["", "pass1"]
    assert not int8["pass2"].weights[1].any()


def pixels_and_map(std):
    """Two convolutions that share weights: one reads pixels, the other a map."""
    scale = Scale(name="scale", inputs=(IMAGE,), output="scale", mean=(0.4,) * CHANNELS, std=std)
    first = conv("pass1", "scale", SHARED)
    return graph_of(scale, first, conv("pass2", "pass1", SCALED, shares="pass1"))


def test_weights_with_folded_pixel_scaling_are_not_shared():
    """A scaling that is equal for all channels is a factor."""
    for std, shares in [((0.3, 0.2, 0.1), ""), ((0.3, 0.3, 0.3), "pass1")]:
        graph = pixels_and_map(std)
        int8 = quantize(graph, {"pass1": (-9.0, 9.0), "pass2": (-9.0, 9.0)})
        assert by_name(int8)["pass2"].shares == shares
        images = random_images(np.random.default_rng(1), graph, 8)
        written = int8.tensor("pass2").quantization
        real = (run(int8, images)["pass2"].astype(float) - written.zero_point) * written.scale
        inner = np.clip(run(graph, images)["pass2"], -9, 9)
        assert np.corrcoef(real.ravel(), inner.ravel())[0, 1] > 0.99


def test_depthwise_and_dense_layers_are_shared():
    scale = Scale(name="scale", inputs=(IMAGE,), output="scale", mean=(0.4,) * CHANNELS, std=(0.3,) * CHANNELS)
    kernel, matrix = numbers(5, 3, 3, CHANNELS), numbers(6, CHANNELS, CHANNELS)
    settings = {"padding": (1, 1, 1, 1), "bias": numbers(7, CHANNELS)}
    ops = [
        scale,
        conv("stem", "scale", SHARED),
        DepthwiseConv2d(name="d1", inputs=("stem",), output="d1", weights=kernel, **settings),
        DepthwiseConv2d(name="d2", inputs=("d1",), output="d2", weights=kernel * FACTORS, shares="d1", **settings),
        Add(name="add", inputs=("d1", "d2"), output="add"),
        AveragePool2d(name="pool", inputs=("add",), output="pool", kernel=(6, 6), stride=(1, 1)),
        Reshape(name="flat", inputs=("pool",), output="flat", shape=(CHANNELS,)),
        Dense(name="f1", inputs=("flat",), output="f1", weights=matrix, bias=numbers(8, CHANNELS)),
        Dense(
            name="f2", inputs=("f1",), output=LOGITS, weights=matrix * FACTORS[:, None], bias=numbers(9, CHANNELS),
            shares="f1",
        ),
    ]  # fmt: skip
    int8 = int8_of(graph_of(*ops))
    assert [op.shares for op in int8.ops if isinstance(op, Weighted)] == ["", "", "d1", "", "f1"]
    images = random_images(np.random.default_rng(3), int8, 10)
    try:
        find_compiler()
    except UsageError:
        pytest.skip("needs a C compiler: apt-get install gcc libc6-dev")
    with HostCRunner(export_c({"int8": int8}, card_of(int8)), int8, flags=("-O1",)) as runner:
        np.testing.assert_array_equal(runner.run(images), run(int8, images)[LOGITS])


def test_factor_is_trained_and_stays_above_zero():
    graph = three_passes()
    images = random_images(np.random.default_rng(4), graph, 20)
    module = TrainableGraph(graph, calibrate(graph, images)["minmax"])
    with pytest.raises(IndexError):
        module.weights[len(module.places)]
    factors = module.weights[module.places["pass2"]]
    np.testing.assert_allclose(factors.detach().exp().numpy(), FACTORS, rtol=1e-6)
    factors.data.sub_(3.0)
    np.testing.assert_allclose(by_name(module.float_graph())["pass2"].weights, SCALED * np.exp(-3.0), rtol=1e-5)
    module.weights[module.places["pass1"]].data.mul_(-2.0)
    found, expected = by_name(module.float_graph())["pass3"].weights, -2 * SHARED / FACTORS[:, None, None, None]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# Files


def header_of(graph):
    input_spec = InputSpec(height=6, width=6, channels=CHANNELS)
    return GraphHeader(name="a model", classes=("a", "b"), input_spec=input_spec)


def header_and_names(content):
    size = struct.unpack("<Q", content[:8])[0]
    outer = json.loads(content[8 : 8 + size])
    return json.loads(outer.pop("__metadata__")[HEADER]), set(outer)


@pytest.mark.parametrize("is_int8", [False, True], ids=["float", "int8"])
def test_file_stores_sharing_and_int8_weights_once(tmp_path, is_int8):
    graph = int8_of(three_passes()) if is_int8 else three_passes()
    write_graph(tmp_path / "model", graph, header_of(graph))
    found, _ = read_graph(tmp_path / "model")
    assert [getattr(op, "shares", "") for op in found.ops] == [getattr(op, "shares", "") for op in graph.ops]
    for op, read in zip(graph.ops, found.ops, strict=True):
        if isinstance(op, Weighted):
            np.testing.assert_array_equal(op.weights, read.weights)
    header, names = header_and_names((tmp_path / "model").read_bytes())
    described = header["graph"]["ops"]
    places = {op["name"]: place for place, op in enumerate(described)}
    # The description of an operation without sharing has no key for it.
    assert [op["name"] for op in described if "shares" in op] == ["pass2", "pass3"]
    assert (f"{places['pass2']}.weights" in names) != is_int8
    assert f"{places['pass1']}.weights" in names


def test_rejects_file_with_false_sharing(tmp_path):
    from graph_files import parts_of, sealed

    path = tmp_path / "model"
    graph = int8_of(three_passes())
    write_graph(path, graph, header_of(graph))
    header, arrays = parts_of(path.read_bytes())
    for shares, facts in [
        ("pool", ("shares", "'pool'")),
        ("pass3", ("shares", "'pass3'")),
        ("dense", ("shares", "'dense'")),
        ("", ("shares", "''")),
        (3, ("shares", "3")),
        ("stem", None),
    ]:
        changed = json.loads(json.dumps(header))
        next(op for op in changed["graph"]["ops"] if op["name"] == "pass2")["shares"] = shares
        path.write_bytes(sealed(changed, arrays))
        if facts is None:
            # Another operation's weights: a graph all the same, though not the one that was written.
            assert by_name(read_graph(path)[0])["pass2"].shares == "stem"
            continue
        with raises("model-file-graph", *facts):
            read_graph(path)
    place = next(place for place, op in enumerate(header["graph"]["ops"]) if op["name"] == "pass2")
    path.write_bytes(sealed(header, arrays | {f"{place}.weights": by_name(graph)["pass2"].weights}))
    with raises("model-file-graph", "shares"):
        read_graph(path)
