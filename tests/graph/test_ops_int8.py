"""Int8 operations, and constraints on tensors and weights of int8 graphs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from thaw.errors import UsageError
from thaw.graph.ops import (
    Add,
    ArgMax,
    AveragePool2d,
    Concat,
    Conv2d,
    Dense,
    DepthwiseConv2d,
    MaxPool2d,
    Relu,
    Requantize,
    Reshape,
    Scale,
    Softmax,
)
from thaw.graph.tensors import SOFTMAX_QUANTIZATION, Quantization, Tensor

HALF = Quantization(scale=0.5, zero_point=-3)
OTHER = Quantization(scale=0.25, zero_point=7)


def real(*shape, name="x"):
    return Tensor(name=name, shape=shape, dtype="float32")


def whole(*shape, name="x", quantization=HALF):
    return Tensor(name=name, shape=shape, dtype="int8", quantization=quantization)


def named(kind, **settings):
    return kind(name="op", inputs=settings.pop("inputs", ("x",)), output="y", **settings)


DEPTHWISE = named(DepthwiseConv2d, weights=np.ones((3, 2, 4), np.float32), bias=np.zeros(4, np.float32))
CONV8 = named(
    Conv2d,
    weights=np.ones((2, 3, 3, 1), np.int8),
    bias=np.zeros(2, np.int32),
    weight_scales=np.array([0.5, 0.25], np.float32),
    quantization=OTHER,
)
DENSE8 = named(
    Dense,
    weights=np.ones((2, 5), np.int8),
    bias=np.zeros(2, np.int32),
    weight_scales=np.ones(2, np.float32),
    quantization=OTHER,
)
POOL = {"kernel": (3, 2), "stride": (2, 1)}


@pytest.mark.parametrize(
    ("op", "reads", "shape"),
    [
        (DEPTHWISE, [real(5, 4, 4)], (3, 3, 4)),
        (replace(DEPTHWISE, padding=(1, 2, 0, 1), stride=(2, 3)), [real(5, 4, 4)], (3, 2, 4)),
        (named(AveragePool2d, **POOL), [real(7, 4, 3)], (3, 3, 3)),
        (named(Add, inputs=("x", "z")), [real(3, 2, 1), real(3, 2, 1, name="z")], (3, 2, 1)),
        (named(Add, inputs=("x", "x"), activation="relu"), [real(6), real(6)], (6,)),
        (named(Relu), [real(3, 2, 1)], (3, 2, 1)),
        (named(Relu), [real(4)], (4,)),
    ],
)
def test_shapes_of_float_operations(op, reads, shape):
    assert op.infer(reads) == Tensor(name="y", shape=shape, dtype="float32")


@pytest.mark.parametrize(
    ("op", "reads", "shape", "quantization"),
    [
        (CONV8, [whole(5, 4, 1)], (3, 2, 2), OTHER),
        (DENSE8, [whole(5)], (2,), OTHER),
        (named(Add, inputs=("x", "z"), quantization=OTHER), [whole(6), whole(6, name="z")], (6,), OTHER),
        (named(MaxPool2d, **POOL), [whole(7, 4, 3)], (3, 3, 3), HALF),
        (named(AveragePool2d, **POOL), [whole(7, 4, 3)], (3, 3, 3), HALF),
        (named(Relu), [whole(4)], (4,), HALF),
        (named(Reshape, shape=(4,)), [whole(2, 1, 2)], (4,), HALF),
        (named(Concat, inputs=("x", "z")), [whole(4), whole(2, name="z")], (6,), HALF),
        (named(Softmax), [whole(4)], (4,), SOFTMAX_QUANTIZATION),
        (named(Requantize, quantization=OTHER), [whole(2, 3, 4)], (2, 3, 4), OTHER),
    ],
)
def test_outputs_of_int8_operations(op, reads, shape, quantization):
    assert op.infer(reads) == Tensor(name="y", shape=shape, dtype="int8", quantization=quantization)


def test_softmax_has_256_steps_from_0_to_1():
    assert Quantization(scale=1 / 256, zero_point=-128) == SOFTMAX_QUANTIZATION


@pytest.mark.parametrize("read", [real(4), whole(4)])
def test_argmax_writes_one_integer(read):
    assert named(ArgMax).infer([read]) == Tensor(name="y", shape=(1,), dtype="int32")


def test_requantize_needs_pixels_with_a_scale():
    op = named(Requantize, quantization=OTHER)
    pixels = Tensor(name="x", shape=(2, 2, 3), dtype="uint8", quantization=Quantization(scale=0.5, zero_point=255))
    assert op.infer([pixels]) == whole(2, 2, 3, name="y", quantization=OTHER)
    with pytest.raises(UsageError, match="it reads pixels without a scale"):
        op.infer([replace(pixels, quantization=None)])
    with pytest.raises(UsageError, match=r"it reads float32 \(4,\): expected uint8 or int8"):
        op.infer([real(4)])


@pytest.mark.parametrize(
    ("op", "reads", "message"),
    [
        (DEPTHWISE, [real(5, 4, 3)], "weights are for 4 channels, but its input has 3"),
        (named(AveragePool2d, **POOL), [real(2, 4, 3)], r"average_pool2d 'op': it would write \(0, 3, 3\)"),
        (named(Add, inputs=("x",)), [real(4)], "it reads 1 tensors: expected 2"),
        (
            named(Add, inputs=("x", "z")),
            [real(4), real(5, name="z")],
            r"float32 \(4,\) and float32 \(5,\): expected one dtype and shape",
        ),
        (named(Add, inputs=("x", "z")), [real(4), whole(4, name="z")], "expected one dtype and shape"),
        (named(Add, inputs=("x", "z")), [whole(4), whole(4, name="z")], "it reads int8 without a quantization"),
        (named(Add, inputs=("x", "z"), quantization=HALF), [real(4), real(4)], "it reads float32 with a quantization"),
        (
            CONV8,
            [real(5, 4, 1)],
            "expected a quantization for int8, and none for float32",
        ),
        (DEPTHWISE, [whole(5, 4, 4)], "it reads int8 without a quantization"),
        (named(ArgMax), [real(2, 2, 1)], r"expected float32 or int8 \(C,\)"),
        (named(Softmax), [Tensor(name="x", shape=(4,), dtype="int32")], "it reads int32"),
        (named(Scale, mean=(0.0,), std=(1.0,)), [whole(2, 2, 1)], r"expected uint8 \(H, W, C\)"),
        (
            named(Concat, inputs=("x", "z")),
            [whole(4), whole(4, quantization=OTHER)],
            "its inputs differ in dtype or scale: expected one for all",
        ),
        (named(Concat, inputs=("x", "z")), [whole(4), real(4)], "differ in dtype or scale"),
    ],
)
def test_rejects_incompatible_inputs(op, reads, message):
    with pytest.raises(UsageError, match=message):
        op.infer(reads)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.ones((2, 3, 3, 1), np.float32)}, "weights are float32: expected a int8 array"),
        (
            {"weights": np.full((2, 3, 3, 1), -128, np.int8)},
            "expected int8 weights from -127 to 127",
        ),
        ({"bias": np.zeros(2, np.float32)}, "bias are float32: expected a int32 array"),
        ({"weight_scales": None}, "weight_scales and quantization go together"),
        ({"weight_scales": np.ones(3, np.float32)}, "expected 2 numbers above 0, one per output"),
        ({"weight_scales": np.array([1, 0], np.float32)}, "expected 2 numbers above 0"),
        ({"weight_scales": np.array([1, np.nan], np.float32)}, "weight_scales contain values that are not finite"),
        ({"weight_scales": np.ones(2)}, "weight_scales are float64"),
        ({"quantization": None}, "weights are int8: expected a float32 array"),
    ],
)
def test_rejects_invalid_int8_weights(change, message):
    with pytest.raises(UsageError, match=message):
        replace(CONV8, **change)


def test_rejects_weight_scales_in_a_float_graph():
    with pytest.raises(UsageError, match="expected both or neither"):
        replace(DEPTHWISE, weight_scales=np.ones(4, np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": (0, 1)}, r"stride \(0, 1\): expected \(rows, columns\), each at least 1"),
        ({"padding": (3, 0, 0, 0)}, r"padding \(3, 0, 0, 0\): expected less than the kernel's 3x2"),
        ({"padding": (0, 0, 0, 2)}, "less than the kernel's 3x2"),
        ({"bias": np.zeros(3, np.float32)}, "3 biases for 4 outputs"),
        ({"weights": np.ones((1, 3, 2, 4), np.float32)}, "expected 3 axes"),
    ],
)
def test_rejects_invalid_depthwise_convolutions(change, message):
    with pytest.raises(UsageError, match=message):
        replace(DEPTHWISE, **change)


def test_add_checks_its_activation():
    with pytest.raises(UsageError, match="activation 'sigmoid': expected one of none, relu"):
        named(Add, inputs=("x", "z"), activation="sigmoid")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.0, "zero_point": 0}, "scale 0.0: expected a finite number above 0"),
        ({"scale": -1.0, "zero_point": 0}, "above 0"),
        ({"scale": float("inf"), "zero_point": 0}, "finite"),
        ({"scale": float("nan"), "zero_point": 0}, "finite"),
        ({"scale": 1, "zero_point": 0}, "scale 1: expected"),
        ({"scale": 0.1, "zero_point": 0}, "scale 0.1 is not a float32 number"),
        ({"scale": 0.5, "zero_point": 0.0}, "zero point 0.0: expected an integer"),
        ({"scale": 0.5, "zero_point": True}, "zero point True"),
    ],
)
def test_rejects_invalid_quantization(arguments, message):
    with pytest.raises(UsageError, match=message):
        Quantization(**arguments)


@pytest.mark.parametrize(
    ("dtype", "quantization", "message"),
    [
        ("int8", None, "tensor 'x' is int8 without a scale and a zero point"),
        ("float32", HALF, "tensor 'x' is float32: expected no scale"),
        ("int32", HALF, "expected no scale"),
        ("int8", Quantization(scale=1.0, zero_point=128), "zero point 128: expected -128 to 127, the range of int8"),
        ("int8", Quantization(scale=1.0, zero_point=-129), "expected -128 to 127"),
        ("uint8", Quantization(scale=1.0, zero_point=-1), "zero point -1: expected 0 to 255, the range of uint8"),
        ("uint8", Quantization(scale=1.0, zero_point=256), "expected 0 to 255"),
    ],
)
def test_rejects_tensors_with_incompatible_scale(dtype, quantization, message):
    with pytest.raises(UsageError, match=message):
        Tensor(name="x", shape=(4,), dtype=dtype, quantization=quantization)


@pytest.mark.parametrize("zero_point", [-128, 127])
def test_zero_points_may_be_at_both_ends(zero_point):
    assert whole(4, quantization=Quantization(scale=0.5, zero_point=zero_point)).quantization.zero_point == zero_point
