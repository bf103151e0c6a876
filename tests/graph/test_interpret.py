"""The interpreter: float32 compared with torch in float64, int8 with loops over Python integers and by hand."""

from __future__ import annotations

from dataclasses import replace

import int8_oracle
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from error_matching import raises
from graph_samples import EXTREMES, random_graph, random_images, random_int8_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from thaw.graph import fixed_point, interpret
from thaw.graph.graph import Graph
from thaw.graph.lower import lower
from thaw.graph.ops import Add, ArgMax, AveragePool2d, Concat, Conv2d, Dense, MaxPool2d, Relu, Requantize, Softmax
from thaw.graph.tensors import Quantization, Tensor
from thaw.models.families import PaperSpec
from thaw.models.unify import UnifySpec, build_unified

INT32 = st.integers(-(2**31), 2**31 - 1)


def torch_values(graph, images):
    """Every tensor of a float graph by torch in float64, [N, ...] with maps [N, H, W, C]."""
    values = {graph.input: torch.from_numpy(images).double()}
    for op in graph.ops:
        read = [values[name] for name in op.inputs]
        maps = [value.movedim(-1, 1) for value in read]
        match op.kind:
            case "scale":
                made = (read[0] / 255 - torch.tensor(op.mean)) / torch.tensor(op.std)
            case "conv2d" | "depthwise_conv2d":
                top, bottom, left, right = op.padding
                weights = torch.from_numpy(np.array(op.weights)).double()
                weights = weights.permute(0, 3, 1, 2) if op.kind == "conv2d" else weights.permute(2, 0, 1)[:, None]
                groups = maps[0].shape[1] // weights.shape[1]
                bias = torch.from_numpy(np.array(op.bias)).double()
                padded = F.pad(maps[0], (left, right, top, bottom))
                made = F.conv2d(padded, weights, bias, op.stride, groups=groups).movedim(1, -1)
            case "dense":
                weights, bias = (torch.from_numpy(np.array(part)).double() for part in (op.weights, op.bias))
                made = F.linear(read[0], weights, bias)
            case "max_pool2d":
                made = F.max_pool2d(maps[0], op.kernel, op.stride).movedim(1, -1)
            case "average_pool2d":
                made = F.avg_pool2d(maps[0], op.kernel, op.stride).movedim(1, -1)
            case "add":
                made = read[0] + read[1]
            case "relu":
                made = F.relu(read[0])
            case "softmax":
                made = F.softmax(read[0], dim=1)
            case "argmax":
                made = read[0].argmax(1, keepdim=True)
            case "concat":
                made = torch.cat(read, dim=-1)
            case "reshape":
                made = read[0].reshape(len(images), *op.shape)
        if getattr(op, "activation", "none") == "relu":
            made = F.relu(made)
        values[op.output] = made
    return {name: value.numpy() for name, value in values.items()}


def test_random_float_graphs_equal_torch():
    kinds = set()
    for seed in range(150):
        rng = np.random.default_rng(seed)
        graph = random_graph(rng)
        images = random_images(rng, graph, 5)
        expected, found = torch_values(graph, images), interpret.trace(graph, images)
        for op in graph.ops:
            kinds.add(op.kind)
            assert found[op.output].dtype == graph.tensor(op.output).dtype
            assert found[op.output].shape == (5, *graph.tensor(op.output).shape)
            if op.kind == "argmax" and not np.array_equal(found[op.output], expected[op.output]):
                # Scores that are equal in float32.
                scores = expected[op.inputs[0]]
                picked = np.take_along_axis(scores, found[op.output], 1)
                np.testing.assert_allclose(picked, scores.max(1, keepdims=True), rtol=1e-4, atol=1e-4)
                continue
            size = max(1.0, np.abs(expected[op.output]).max())
            np.testing.assert_allclose(found[op.output] / size, expected[op.output] / size, atol=3e-6)
    assert len(kinds) == 12


@pytest.mark.parametrize("scores", ["softmax", "logits"])
def test_lowered_network_equals_its_module_on_real_images(scores):
    digits = load_digits()
    images = np.rint(digits.images[:300, ..., None] * (255 / 16)).astype(np.uint8)
    images = images.repeat(3, axis=1).repeat(3, axis=2)  # 24x24, large enough for two poolings
    torch.manual_seed(1)
    module = build_unified(PaperSpec(), UnifySpec(scores=scores), (24, 24, 1), 10).eval()
    with torch.inference_mode():
        # Kernels with magnitudes as after training: random ones of a new network attenuate too much.
        for parameter in module.parameters():
            parameter.mul_(3.0)
        graph = lower(module, shape=(24, 24, 1), mean=(0.3,), std=(0.35,), classes=10)
        logits = module((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.3) / 0.35)
    found = interpret.run(graph, images, batch=64)
    assert set(found) == {"logits", "probabilities"}
    assert np.ptp(logits.numpy()) > 1
    np.testing.assert_allclose(found["logits"], logits.numpy(), rtol=1e-5, atol=1e-5 * np.ptp(logits.numpy()))
    np.testing.assert_allclose(found["probabilities"], logits.softmax(1).numpy(), atol=1e-4)


def assert_equals_oracle(graph, images):
    found = interpret.trace(graph, images)
    for op in graph.ops:
        reads = [graph.tensor(name) for name in op.inputs]
        for index in range(len(images)):
            expected = int8_oracle.execute(op, reads, [found[name][index] for name in op.inputs])
            np.testing.assert_array_equal(found[op.output][index], expected, err_msg=f"{op.kind} {op.name}")


@pytest.mark.parametrize("extreme", [None, *EXTREMES])
def test_random_int8_graphs_equal_loops(extreme):
    for seed in range(30 if extreme is None else 6):
        rng = np.random.default_rng(1000 + seed)
        graph = random_int8_graph(rng, extreme=extreme)
        assert_equals_oracle(graph, random_images(rng, graph, 2))


def test_batch_equals_single_images():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        graph = random_int8_graph(rng)
        images = random_images(rng, graph, 7)
        whole = interpret.run(graph, images)
        for batch in (1, 3, 7):
            for name, values in interpret.run(graph, images, batch=batch).items():
                np.testing.assert_array_equal(values, whole[name])


# Primitives


@settings(max_examples=500, deadline=None)
@given(INT32, INT32, st.integers(0, 31))
def test_primitives_equal_gemmlowp(a, b, exponent):
    if not a == b == -(2**31):
        found = fixed_point.saturating_rounding_doubling_high_mul(np.array([a], np.int64), b)
        assert found[0] == int8_oracle.high_mul(a, b)
    found = fixed_point.rounding_divide_by_pot(np.array([a], np.int64), exponent)
    assert found[0] == int8_oracle.divide_by_pot(a, exponent)


@pytest.mark.parametrize("multiplier", [2**30, 2**30 + 1, 2**31 - 1, 1518500250])
@pytest.mark.parametrize("shift", [-31, -9, -1, 0, 1, 7])
def test_products_round_halves_like_gemmlowp(multiplier, shift):
    values = [sign * (step + odd) for step in (0, 1, 2, 256, 2**15, 2**22) for odd in (-1, 0, 1) for sign in (-1, 1)]
    found = fixed_point.multiply_by_quantized_multiplier(np.array(values, np.int64), multiplier, shift)
    np.testing.assert_array_equal(found, [int8_oracle.multiply(value, multiplier, shift) for value in values])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        # 2 a b / 2**32 = a / 2 for b = 2**30: halves round up.
        (3, 2**30, 2),
        (-3, 2**30, -1),
        (1, 2**30, 1),
        (-1, 2**30, 0),
        (7, 2**31 - 1, 7),
    ],
)
def test_high_mul_by_hand(a, b, expected):
    assert fixed_point.saturating_rounding_doubling_high_mul(np.array([a], np.int64), b)[0] == expected


@pytest.mark.parametrize(
    ("x", "exponent", "expected"),
    [(5, 1, 3), (-5, 1, -3), (6, 2, 2), (-6, 2, -2), (5, 2, 1), (-5, 2, -1), (9, 0, 9), (2**31 - 1, 31, 1)],
)
def test_divisions_by_hand_round_halves_away_from_0(x, exponent, expected):
    assert fixed_point.rounding_divide_by_pot(np.array([x], np.int64), exponent)[0] == expected


@settings(max_examples=300, deadline=None)
@given(st.floats(1e-12, 1e9))
def test_multipliers_equal_exact_fractions(real):
    assert fixed_point.quantize_multiplier(real) == int8_oracle.real_multiplier(int8_oracle.double(real))


@pytest.mark.parametrize(
    ("real", "expected"),
    [
        (1.0, (2**30, 1)),
        (0.5, (2**30, 0)),
        (0.75, (3 * 2**29, 0)),
        (3.0, (3 * 2**29, 2)),
        (1 - 2**-40, (2**30, 1)),
        (2.0**-40, (0, 0)),
        (2.0**40, (2**31 - 1, 30)),
    ],
)
def test_multipliers_by_hand(real, expected):
    assert fixed_point.quantize_multiplier(real) == expected


def test_exponential_equals_the_loop():
    steps = np.unique(np.concatenate([np.arange(0, -(2**31), -1_234_567), -(1 << np.arange(31))])).astype(np.int64)
    found = fixed_point.exp_on_negative_values(steps)
    np.testing.assert_array_equal(found, [int8_oracle.exponential(int(step)) for step in steps])
    np.testing.assert_allclose(found / 2**31, np.exp(steps / 2**26), rtol=1e-6, atol=1e-8)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(-128, 127), min_size=1, max_size=20), st.floats(1e-6, 60.0))
def test_softmax_equals_the_loop(scores, scale):
    scale = float(np.float32(scale))
    found = fixed_point.softmax(np.array([scores], np.int64), scale)[0]
    np.testing.assert_array_equal(found, int8_oracle.softmax(scores, scale))
    real = np.exp((np.array(scores) - max(scores)) * scale)
    assert np.abs((found + 128) / 256 - np.minimum(real / real.sum(), 255 / 256)).max() <= 1.02 / 256


# Operations, by hand


def whole(*shape, scale=1.0, zero_point=0, dtype="int8", name="x"):
    return Tensor(name=name, shape=shape, dtype=dtype, quantization=Quantization(scale=scale, zero_point=zero_point))


def written(kind, reads, arrays, **made):
    op = kind(name="op", inputs=tuple(read.name for read in reads), output="y", **made)
    arrays = [np.array(array, read.dtype)[None] for array, read in zip(arrays, reads, strict=True)]
    result = op.execute(reads, arrays)
    assert result.dtype == op.infer(reads).dtype
    return result[0].tolist()


def int8_parts(weights, bias, scales, *, scale=1.0, zero_point=0):
    return {
        "weights": np.array(weights, np.int8),
        "bias": np.array(bias, np.int32),
        "weight_scales": np.array(scales, np.float32),
        "quantization": Quantization(scale=scale, zero_point=zero_point),
    }


def test_dense_by_hand():
    # Inputs minus 2: 8 and -5. Sums: 8 - 10 + 5 = 3 and -8 - 15 + 20 = -3. Times 1/2: 1.5 -> 2 and -1.5 -> -1; plus 10.
    parts = int8_parts([[1, 2], [-1, 3]], [5, 20], [0.5, 0.5], scale=0.5, zero_point=10)
    assert written(Dense, [whole(2, scale=0.5, zero_point=2)], [[10, -3]], **parts) == [12, 9]


@pytest.mark.parametrize(("activation", "expected"), [("none", [-128, 127, 0]), ("relu", [-5, 127, 0])])
def test_dense_saturates_and_relu_clips_at_the_zero_point(activation, expected):
    parts = int8_parts([[-127], [127], [0]], [0, 0, 5], [1, 1, 1], zero_point=-5)
    assert written(Dense, [whole(1)], [[100]], **parts, activation=activation) == expected


def test_int32_sums_wrap_around():
    # 2**31 - 1 + 127 wraps to -2**31 + 126, which saturates at the minimum.
    parts = int8_parts([[1], [1]], [2**31 - 1, 0], [1, 1], scale=1.0)
    assert written(Dense, [whole(1)], [[127]], **parts) == [-128, 127]


def test_convolution_by_hand():
    # A 2x2 window of ones over 3, 4 (minus the zero point 1: 2, 3), padded above and to the left.
    parts = int8_parts(np.ones((1, 2, 2, 1)), [1], [1.0], scale=2.0)
    # Sums with the bias 3 and 6 -> 1.5 and 3; 1.5 -> 2.
    found = written(Conv2d, [whole(1, 2, 1, zero_point=1)], [[[[3], [4]]]], **parts, padding=(1, 0, 1, 0))
    assert found == [[[2], [3]]]


@pytest.mark.parametrize(
    ("values", "expected"),
    # -10 / 4 = -2.5 -> -3; 10 / 4 -> 3; 1 / 4 -> 0; 6 / 4 = 1.5 -> 2; -6 / 4 -> -2; ends stay.
    [
        ([-1, -2, -3, -4], -3),
        ([1, 2, 3, 4], 3),
        ([0, 0, 0, 1], 0),
        ([0, 3, 1, 2], 2),
        ([-6, 0, 0, 0], -2),
        ([-128] * 4, -128),
        ([127] * 4, 127),
    ],
)
def test_average_pooling_rounds_halves_away_from_0(values, expected):
    square = np.reshape(values, (2, 2, 1))
    assert written(AveragePool2d, [whole(2, 2, 1)], [square], kernel=(2, 2), stride=(1, 1)) == [[[expected]]]


def test_max_pooling_ignores_incomplete_windows():
    found = written(MaxPool2d, [whole(2, 3, 1)], [[[[1], [-5], [99]], [[-7], [4], [98]]]], kernel=(2, 2), stride=(2, 2))
    assert found == [[[4]]]


def test_add_by_hand():
    reads = [whole(3, scale=0.5, zero_point=1, name="a"), whole(3, scale=0.25, name="b")]
    quantization = Quantization(scale=0.5, zero_point=-1)
    # (5 - 1) / 2 + 6 / 4 = 3.5 -> 7 steps; -64 - 32 = -96 -> -192, saturated; 0 + 1/4 is half a step -> 1.
    found = written(Add, reads, [[5, -127, 1], [6, -128, 1]], quantization=quantization)
    assert found == [6, -128, 0]
    found = written(Add, reads, [[5, -127, 1], [6, -128, 1]], quantization=quantization, activation="relu")
    assert found == [6, -1, 0]


def test_small_operations_by_hand():
    assert written(Relu, [whole(3, zero_point=4)], [[3, 4, 5]]) == [4, 4, 5]
    assert written(ArgMax, [whole(4)], [[3, 9, 9, -1]]) == [1]
    reads = [whole(2, name="a"), whole(1, name="b")]
    assert written(Concat, reads, [[1, 2], [3]]) == [1, 2, 3]
    # Two equal scores share 256 steps; a single one is 1, represented as 255/256.
    assert written(Softmax, [whole(2)], [[7, 7]]) == [0, 0]
    assert written(Softmax, [whole(1)], [[7]]) == [127]
    assert written(Softmax, [whole(2)], [[100, -100]]) == [127, -128]


def test_requantize_by_hand():
    quantization = Quantization(scale=1.0, zero_point=-128)
    pixels = whole(1, 4, 1, scale=0.5, zero_point=0, dtype="uint8")
    # Halves round up: 1/2 -> 1, 3/2 -> 2.
    found = written(Requantize, [pixels], [[[[0], [1], [3], [255]]]], quantization=quantization)
    assert found == [[[-128], [-127], [-126], [0]]]


def test_sums_too_long_for_float32_are_exact():
    # 600 products of 255 * 127 are above 2**24.
    read = whole(600, scale=1.0, zero_point=-128)
    parts = int8_parts(np.full((2, 600), 127), [1, 0], [1, 1], scale=float(2.0**18))
    rng = np.random.default_rng(0)
    x = rng.integers(100, 128, 600).tolist()
    op_written = written(Dense, [read], [x], **parts)
    total = sum((value + 128) * 127 for value in x)
    assert op_written == [int8_oracle.multiply(total + 1, 2**30, -17), int8_oracle.multiply(total, 2**30, -17)]


# Errors and traces


def test_rejects_invalid_images():
    graph = random_graph(np.random.default_rng(0))
    shape = graph.tensor("image").shape
    for images in (
        np.zeros((2, *shape), np.float32),
        np.zeros(shape, np.uint8),
        np.zeros((2, shape[0] + 1, *shape[1:]), np.uint8),
    ):
        with raises("usage-images", "uint8 [N, "):
            interpret.run(graph, images)


def test_no_images_give_empty_outputs():
    graph = random_graph(np.random.default_rng(0))
    for name, values in interpret.run(graph, np.zeros((0, *graph.tensor("image").shape), np.uint8)).items():
        assert values.shape == (0, *graph.tensor(name).shape)


def test_trace_keeps_the_requested_tensors():
    rng = np.random.default_rng(4)
    graph = random_graph(rng)
    images = random_images(rng, graph, 2)
    everything = interpret.trace(graph, images)
    assert set(everything) == {tensor.name for tensor in graph.tensors}
    asked = graph.ops[1].output
    kept = interpret.trace(graph, images, keep=[asked])
    np.testing.assert_array_equal(kept[asked], everything[asked])
    assert len(kept) < len(everything)


def test_float_operation_has_no_multipliers():
    graph = random_graph(np.random.default_rng(0))
    dense = next(op for op in graph.ops if isinstance(op, Dense))
    with raises("usage-graph-operation"):
        dense.output_multipliers(graph.tensor(dense.inputs[0]))


def test_oracle_can_fail():
    rng = np.random.default_rng(7)
    graph = random_int8_graph(rng)
    last = max(index for index, op in enumerate(graph.ops) if isinstance(op, Dense))
    changed = replace(graph.ops[last], bias=graph.ops[last].bias + np.int32(4000))
    other = Graph(
        tensors=graph.tensors,
        ops=(*graph.ops[:last], changed, *graph.ops[last + 1 :]),
        input=graph.input,
        outputs=graph.outputs,
    )
    images = random_images(rng, graph, 2)
    values = interpret.trace(graph, images)
    op = other.ops[last]
    expected = int8_oracle.execute(op, [graph.tensor(op.inputs[0])], [values[op.inputs[0]][0]])
    assert not np.array_equal(values[op.output][0], expected)
