"""Scales, zero points, folding, biases and common scales of an int8 graph, compared with examples by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from error_matching import raises
from graph_samples import EXTREMES, random_graph, random_images, random_int8_graph

from thaw.graph import interpret
from thaw.graph.calibrate import calibrate
from thaw.graph.graph import Graph
from thaw.graph.ops import Add, Concat, Conv2d, Dense, DepthwiseConv2d, MaxPool2d, Requantize, Reshape, Scale, Softmax
from thaw.graph.quantize import quantize
from thaw.graph.tensors import SOFTMAX_QUANTIZATION, Quantization, Tensor, quantization_of


def graph_of(shape, *ops, output=None):
    tensors = {"image": Tensor(name="image", shape=shape, dtype="uint8")}
    for op in ops:
        tensors[op.output] = op.infer([tensors[name] for name in op.inputs])
    return Graph(tensors=tuple(tensors.values()), ops=ops, input="image", outputs=(output or ops[-1].output,))


def scale_op(mean, std):
    """Input normalization by means and deviations in gray levels, 0 to 255."""
    mean, std = (tuple(value / 255 for value in values) for values in (mean, std))
    return Scale(name="scale", inputs=("image",), output="scale", mean=mean, std=std)


def conv(weights, bias, *, read="scale", name="conv", **settings):
    weights, bias = np.array(weights, np.float32), np.array(bias, np.float32)
    return Conv2d(name=name, inputs=(read,), output=name, weights=weights, bias=bias, **settings)


def dense(weights, *, read="flat", name="dense", bias=None, **settings):
    weights = np.array(weights, np.float32)
    bias = np.zeros(len(weights), np.float32) if bias is None else np.array(bias, np.float32)
    return Dense(name=name, inputs=(read,), output=name, weights=weights, bias=bias, **settings)


def dequantized(graph, name, numbers):
    quantization = graph.tensor(name).quantization
    return quantization.scale * (numbers.astype(np.float64) - quantization.zero_point)


@pytest.mark.parametrize(
    ("values", "scale", "zero_point"),
    [
        ((0.0, 25.5), 0.1, -128),
        # 255 steps of 0.01 from -1: 100 of them are below 0.
        ((-1.0, 1.55), 0.01, -28),
        ((-25.5, 0.0), 0.1, 127),
        # In float32 the scale is slightly above 2/255: slightly fewer than 127.5 steps are below 0.
        ((-1.0, 1.0), 2 / 255, -1),
        # Ranges are widened to include 0, which padding and ReLU need exactly.
        ((3.0, 5.1), 0.02, -128),
        ((-5.1, -3.0), 0.02, 127),
        ((0.0, 0.0), 1.0, -128),
        ((1e-40, 1e-39), 1.0, -128),
    ],
)
def test_scale_and_zero_point_of_a_range(values, scale, zero_point):
    assert quantization_of(values) == Quantization(scale=float(np.float32(scale)), zero_point=zero_point)


def test_scale_can_be_widened():
    assert quantization_of((0.0, 25.5), 0.5) == Quantization(scale=0.5, zero_point=-128)
    assert quantization_of((0.0, 255.0), 0.5) == Quantization(scale=1.0, zero_point=-128)


@pytest.mark.parametrize("values", [(0.0, np.inf), (-np.inf, 1.0), (np.nan, 1.0), (-1e308, 1e308)])
def test_rejects_a_range_that_is_not_finite(values):
    with raises("usage-graph-tensor"):
        quantization_of(values)


def test_weights_and_bias_by_hand():
    flat = Reshape(name="flat", inputs=("scale",), output="flat", shape=(2,))
    # Pixels divided by 2 gray levels: the pixel scale is 1/2, which the input map of the dense layer keeps.
    graph = graph_of((1, 2, 1), scale_op([0], [2]), flat, dense([[1.0, -0.5], [0.0, 254.0]], bias=[0.1, -3.0]))
    made = quantize(graph, {"dense": (-10.0, 245.0)})
    op = made.ops[-1]
    # The scaling is a separate step here (it is folded only into convolutions): a depthwise convolution of weight 1
    # gives "scale", whose range is 0 to 127.5, so its scale is 1/2.
    assert made.tensor("scale").quantization == Quantization(scale=0.5, zero_point=-128)
    # 127 is the largest weight of each row; -63.5 rounds to the even -64.
    np.testing.assert_array_equal(op.weights, [[127, -64], [0, 127]])
    np.testing.assert_array_equal(op.weight_scales, np.array([1 / 127, 2.0], np.float32))
    # 0.1 / (0.5 / 127) = 25.4; -3 / (0.5 * 2) = -3
    np.testing.assert_array_equal(op.bias, [25, -3])
    assert op.bias.dtype == np.int32
    assert op.quantization == Quantization(scale=1.0, zero_point=-118)


def test_depthwise_weights_are_quantized_per_channel():
    weights = np.array([[[1.0, 100.0]], [[-2.0, 50.0]]], np.float32)
    op = DepthwiseConv2d(name="d", inputs=("scale",), output="d", weights=weights, bias=np.zeros(2, np.float32))
    made = quantize(graph_of((2, 1, 2), scale_op([0, 0], [1, 1]), op), {"d": (-1.0, 1.0)}).ops[-1]
    # Pixels have scale 1 and no offset, so the weights are unchanged: rows 1, -2 and 100, 50 in 127ths of 2 and of 100.
    np.testing.assert_array_equal(made.weights, [[[64, 127]], [[-127, 64]]])
    np.testing.assert_allclose(made.weight_scales, [2 / 127, 100 / 127], rtol=1e-7)


def test_channels_of_zeros_have_any_scale():
    graph = graph_of((1, 1, 1), scale_op([0], [1]), conv(np.zeros((2, 1, 1, 1)), [0.0, 5.0]))
    op = quantize(graph, {"conv": (0.0, 5.1)}).ops[-1]
    np.testing.assert_array_equal(op.weights.ravel(), [0, 0])
    assert (op.weight_scales > 0).all()
    # The bias determines the second scale.
    assert dequantized_bias(op, 1.0)[1] == pytest.approx(5.0, rel=1e-6)


def dequantized_bias(op, read_scale):
    return op.bias.astype(np.float64) * op.weight_scales * read_scale


def test_large_bias_fits_int32():
    graph = graph_of((1, 1, 1), scale_op([0], [1]), conv(np.full((2, 1, 1, 1), 1e-6), [1e9, -1e9]))
    op = quantize(graph, {"conv": (-1e9, 1e9)}).ops[-1]
    assert (np.abs(op.bias.astype(np.int64)) <= 2**30).all()
    np.testing.assert_allclose(dequantized_bias(op, 1.0), [1e9, -1e9], rtol=1e-6)


def test_pixels_are_read_unscaled():
    made = quantize(graph_of((1, 1, 1), scale_op([33.3], [2]), conv(np.ones((1, 1, 1, 1)), [0])), {"conv": (-1, 1)})
    assert made.tensor("image").quantization == Quantization(scale=0.5, zero_point=33)
    first = made.ops[0]
    assert isinstance(first, Requantize)
    assert first.output == "scale"
    assert first.quantization == Quantization(scale=0.5, zero_point=33 - 128)
    levels = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)
    np.testing.assert_array_equal(interpret.trace(made, levels)["scale"].ravel(), np.arange(-128, 128))


def test_scaling_of_several_channels_is_folded_by_hand():
    # Means 10, 20, 30 and deviations 1, 2, 3 in gray levels. The one scale of the pixels is 1 / 2, their zero point 20,
    # so scaled pixels are z * (2, 1, 2/3) + (10/1, 0/2, -10/3) where z = (pixel - 20) / 2.
    graph = graph_of((1, 1, 3), scale_op([10, 20, 30], [1, 2, 3]), conv([[[[1, 2, 3]]]], [7]))
    made = quantize(graph, {"conv": (-127.0, 128.0)})
    assert made.tensor("image").quantization == Quantization(scale=0.5, zero_point=20)
    op = made.ops[-1]
    # 1 * 2 = 2 * 1 = 3 * 2/3 = 2, all equal to the largest weight; bias 7 + 1 * 10 + 2 * 0 - 3 * 10/3 = 7, divided by
    # 1/2 * 2/127.
    np.testing.assert_array_equal(op.weights, [[[[127, 127, 127]]]])
    np.testing.assert_allclose(op.weight_scales, [2 / 127], rtol=1e-6)
    np.testing.assert_array_equal(op.bias, [7 * 127])
    # (12 - 10) / 1 + 2 * (26 - 20) / 2 + 3 * (33 - 30) / 3 + 7 = 18
    pixels = np.array([12, 26, 33], np.uint8).reshape(1, 1, 1, 3)
    assert dequantized(made, "conv", interpret.run(made, pixels)["conv"]) == pytest.approx(18)


@pytest.mark.parametrize("depthwise", [False, True])
def test_folding_keeps_the_result_of_a_convolution(depthwise):
    rng = np.random.default_rng(3)
    scale = scale_op([120.0, 60.0, 200.0], [60.0, 30.0, 90.0])
    bias = rng.normal(size=3).astype(np.float32)
    if depthwise:
        weights = rng.normal(size=(3, 2, 3)).astype(np.float32)
        op = DepthwiseConv2d(name="conv", inputs=("scale",), output="conv", weights=weights, bias=bias, stride=(1, 2))
    else:
        op = conv(rng.normal(size=(3, 3, 2, 3)), bias, stride=(1, 2))
    graph = graph_of((6, 7, 3), scale, op)
    images = random_images(rng, graph, 20)
    real = interpret.run(graph, images)["conv"]
    made = quantize(graph, calibrate(graph, images)["minmax"])
    found = dequantized(made, "conv", interpret.run(made, images)["conv"])
    # Half a step of the output, and half a step of each weight times pixels of up to 255 steps.
    step = made.tensor("conv").quantization.scale
    terms = 6 if depthwise else 18
    by_weights = 0.5 * terms * made.ops[-1].weight_scales.max() * 255 * made.tensor("image").quantization.scale
    assert np.abs(found - real).max() <= 0.5 * step + by_weights
    assert np.abs(found - real).mean() <= step


def test_padding_is_the_mean_gray_level():
    # With one channel and an integer mean, the zero point is the mean, so a padded position is exactly a scaled 0.
    graph = graph_of((3, 3, 1), scale_op([77], [4]), conv(np.ones((1, 3, 3, 1)), [0.0], padding=(2, 1, 1, 2)))
    made = quantize(graph, {"conv": (-200.0, 310.0)})
    image = np.full((1, 3, 3, 1), 81, np.uint8)
    real = interpret.run(graph, image)["conv"]
    # Every pixel is (81 - 77) / 4 = 1: an output is the number of pixels in its window, 1 in the top left corner.
    assert real[0, 0, 0, 0] == pytest.approx(2)
    assert real[0, 2, 1, 0] == pytest.approx(9)
    # The scale of the output is 2, so even counts are exact.
    found = dequantized(made, "conv", interpret.run(made, image)["conv"])
    assert np.abs(found - real).max() <= 1.0 + 1e-6
    assert found[0, 0, 0, 0] == 2


def test_padding_of_colors_is_off_by_at_most_the_difference_of_means():
    # Means 70, 80, 90: padding is gray level 80 in each channel, 10 off in two of them, which cancel for equal weights.
    graph = graph_of((1, 1, 3), scale_op([70, 80, 90], [10] * 3), conv(np.eye(3)[:, None, None], [0] * 3))
    padded = replace(
        graph.ops[1], weights=np.eye(3, dtype=np.float32)[:, None, None].repeat(2, 1), padding=(1, 0, 0, 0)
    )
    graph = graph_of((1, 1, 3), graph.ops[0], padded)
    made = quantize(graph, {"conv": (-12.7, 12.8)})
    found = dequantized(made, "conv", interpret.run(made, np.full((1, 1, 1, 3), 80, np.uint8))["conv"])
    # Pixels give 1, 0, -1; the padding above them gives 1, 0, -1 instead of 0.
    np.testing.assert_allclose(found.ravel(), [2, 0, -2], atol=0.051)


def test_map_with_other_readers_is_scaled_separately():
    pool = MaxPool2d(name="pool", inputs=("scale",), output="pool", kernel=(2, 2), stride=(2, 2))
    graph = graph_of((4, 4, 3), scale_op([10, 20, 30], [1, 2, 3]), pool)
    made = quantize(graph, {})
    assert [op.kind for op in made.ops] == ["requantize", "depthwise_conv2d", "max_pool2d"]
    rng = np.random.default_rng(0)
    images = random_images(rng, graph, 10)
    real, found = interpret.run(graph, images)["pool"], interpret.run(made, images)["pool"]
    assert np.abs(dequantized(made, "pool", found) - real).max() <= 1.01 * made.tensor("pool").quantization.scale


def flat_graph(*ops):
    return graph_of(
        (2, 1, 1), scale_op([0], [1]), Reshape(name="flat", inputs=("scale",), output="flat", shape=(2,)), *ops
    )


ONE = dense([[1.0, 0.0]], name="one")
TWO = dense([[0.0, 3.0]], name="two")


def test_inputs_of_a_concatenation_have_one_scale():
    unify_spec = Concat(name="joined", inputs=("one", "two"), output="joined")
    made = quantize(flat_graph(ONE, TWO, unify_spec), {"one": (-100.0, 50.0), "two": (-1.0, 155.0)})
    expected = Quantization(scale=1.0, zero_point=-28)
    assert {made.tensor(name).quantization for name in ("one", "two", "joined")} == {expected}
    assert [op.kind for op in made.ops].count("requantize") == 1  # for the pixels


def test_input_with_other_readers_is_requantized():
    unify_spec = Concat(name="joined", inputs=("one", "two"), output="joined")
    softmax = Softmax(name="softmax", inputs=("one",), output="softmax")
    graph = flat_graph(ONE, TWO, unify_spec, softmax)
    made = quantize(graph, {"one": (-100.0, 50.0), "two": (0.0, 510.0)})
    moved = {op.name: op for op in made.ops if isinstance(op, Requantize) and op.name != "scale.pixels"}
    assert set(moved) == {"joined.input1", "joined.input2"}
    low, high = -100.0, 510.0
    assert made.tensor("joined").quantization == quantization_of((low, high))
    # The tensor that the softmax reads keeps its own scale.
    assert made.tensor("one").quantization == quantization_of((-100.0, 50.0))


def test_probabilities_are_concatenated_on_their_own_scale():
    first = Softmax(name="s1", inputs=("one",), output="s1")
    second = Softmax(name="s2", inputs=("two",), output="s2")
    unify_spec = Concat(name="joined", inputs=("s1", "s2"), output="joined")
    made = quantize(flat_graph(ONE, TWO, first, second, unify_spec), {"one": (0.0, 1.0), "two": (0.0, 9.0)})
    assert made.tensor("joined").quantization == SOFTMAX_QUANTIZATION
    assert made.tensor("one").quantization != made.tensor("two").quantization


def test_sum_has_its_own_scale():
    add = Add(name="sum", inputs=("one", "two"), output="sum", activation="relu")
    made = quantize(flat_graph(ONE, TWO, add), {"one": (0.0, 255.0), "two": (0.0, 765.0), "sum": (0.0, 1020.0)})
    assert made.ops[-1].quantization == Quantization(scale=4.0, zero_point=-128)
    # 100 + 3 * 40 = 220, which is 55 steps of 4.
    found = interpret.run(made, np.array([100, 40], np.uint8).reshape(1, 2, 1, 1))["sum"]
    np.testing.assert_array_equal(found, [[55 - 128]])


def test_rejects_graphs_that_cannot_be_quantized():
    graph = graph_of((1, 1, 1), scale_op([0], [1]), conv(np.ones((1, 1, 1, 1)), [0]))
    with raises("usage-graph-quantize", "'conv'"):
        quantize(graph, {})
    with raises("usage-graph-tensor"):
        quantize(graph, {"conv": (0.0, float("inf"))})
    made = quantize(graph, {"conv": (0.0, 1.0)})
    with raises("usage-graph-quantize", "int8"):
        quantize(made, {"conv": (0.0, 1.0)})
    twice = replace(graph.ops[0], name="again", output="again")
    with raises("usage-graph-quantize", 2):
        quantize(graph_of((1, 1, 1), graph.ops[0], twice, graph.ops[1]), {"conv": (0.0, 1.0)})


def test_random_graphs_keep_their_scores():
    """The error of the scores, relative to their range, over graphs of a few layers: a few steps of 1/255."""
    errors = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        graph = random_graph(rng)
        images = random_images(rng, graph, 12)
        made = quantize(graph, calibrate(graph, images)["minmax"])
        real = interpret.run(graph, images)["logits"]
        found = dequantized(made, "logits", interpret.run(made, images)["logits"])
        errors.append(np.abs(found - real).mean() / max(np.ptp(real), 1e-9))
    assert np.median(errors) < 2 / 255
    # The worst cases are nearly equal scores, and color images with different means and much padding.
    assert np.quantile(errors, 0.95) < 0.02


@pytest.mark.parametrize("extreme", EXTREMES)
def test_extreme_graphs_are_valid_and_run(extreme):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        graph = random_int8_graph(rng, extreme=extreme)
        images = random_images(rng, graph, 3)
        for name, values in interpret.run(graph, images).items():
            assert values.dtype == graph.tensor(name).dtype
        for op in graph.ops:
            if op.output_scale == "chosen" and not isinstance(op, Add):
                assert (np.abs(op.bias.astype(np.int64)) <= 2**30).all()
