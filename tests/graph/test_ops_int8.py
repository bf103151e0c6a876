"""Int8 operations, and constraints on tensors and weights of int8 graphs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from error_matching import raises

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
    with raises("usage-graph-operation", "pixels"):
        op.infer([replace(pixels, quantization=None)])
    with raises("usage-graph-operation", "float32 (4,)", "uint8 or int8"):
        op.infer([real(4)])


@pytest.mark.parametrize(
    ("op", "reads", "facts"),
    [
        (DEPTHWISE, [real(5, 4, 3)], ("weights", "4", "3")),
        (named(AveragePool2d, **POOL), [real(2, 4, 3)], ("average_pool2d", "'op'", "(0, 3, 3)")),
        (named(Add, inputs=("x",)), [real(4)], ("1", "2")),
        (
            named(Add, inputs=("x", "z")),
            [real(4), real(5, name="z")],
            ("float32", "(4,)", "(5,)", "dtype", "shape"),
        ),
        (named(Add, inputs=("x", "z")), [real(4), whole(4, name="z")], ("dtype", "shape")),
        (named(Add, inputs=("x", "z")), [whole(4), whole(4, name="z")], ("int8", "quantization")),
        (named(Add, inputs=("x", "z"), quantization=HALF), [real(4), real(4)], ("float32", "quantization")),
        (
            CONV8,
            [real(5, 4, 1)],
            ("quantization", "int8", "float32"),
        ),
        (DEPTHWISE, [whole(5, 4, 4)], ("int8", "quantization")),
        (named(ArgMax), [real(2, 2, 1)], ("float32", "int8")),
        (named(Softmax), [Tensor(name="x", shape=(4,), dtype="int32")], ("int32",)),
        (named(Scale, mean=(0.0,), std=(1.0,)), [whole(2, 2, 1)], ("uint8",)),
        (
            named(Concat, inputs=("x", "z")),
            [whole(4), whole(4, quantization=OTHER)],
            ("inputs", "dtype", "scale"),
        ),
        (named(Concat, inputs=("x", "z")), [whole(4), real(4)], ("dtype", "scale")),
    ],
)
def test_rejects_incompatible_inputs(op, reads, facts):
    with raises("usage-graph-operation", *facts):
        op.infer(reads)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"weights": np.ones((2, 3, 3, 1), np.float32)}, ("weights", "float32", "int8")),
        (
            {"weights": np.full((2, 3, 3, 1), -128, np.int8)},
            ("int8", "weights", "-127"),
        ),
        ({"bias": np.zeros(2, np.float32)}, ("bias", "float32", "int32")),
        ({"weight_scales": None}, ("weight_scales", "quantization")),
        ({"weight_scales": np.ones(3, np.float32)}, ("2", "0")),
        ({"weight_scales": np.array([1, 0], np.float32)}, ("2", "0")),
        ({"weight_scales": np.array([1, np.nan], np.float32)}, ("weight_scales",)),
        ({"weight_scales": np.ones(2)}, ("weight_scales", "float64")),
        ({"quantization": None}, ("weights", "int8", "float32")),
    ],
)
def test_rejects_invalid_int8_weights(change, facts):
    with raises("usage-graph-operation", *facts):
        replace(CONV8, **change)


def test_rejects_weight_scales_in_a_float_graph():
    with raises("usage-graph-operation", "weight_scales", "quantization"):
        replace(DEPTHWISE, weight_scales=np.ones(4, np.float32))


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"stride": (0, 1)}, ("stride", "(0, 1)")),
        ({"padding": (3, 0, 0, 0)}, ("padding", "(3, 0, 0, 0)", "kernel")),
        ({"padding": (0, 0, 0, 2)}, ("kernel",)),
        ({"bias": np.zeros(3, np.float32)}, ("3", "biases", "4", "outputs")),
        ({"weights": np.ones((1, 3, 2, 4), np.float32)}, ("3",)),
    ],
)
def test_rejects_invalid_depthwise_convolutions(change, facts):
    with raises("usage-graph-operation", *facts):
        replace(DEPTHWISE, **change)


def test_add_checks_its_activation():
    with raises("usage-graph-operation", "'sigmoid'", "none, relu"):
        named(Add, inputs=("x", "z"), activation="sigmoid")


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"scale": 0.0, "zero_point": 0}, ("scale", "0.0")),
        ({"scale": -1.0, "zero_point": 0}, ("0",)),
        ({"scale": float("inf"), "zero_point": 0}, ()),
        ({"scale": float("nan"), "zero_point": 0}, ()),
        ({"scale": 1, "zero_point": 0}, ("scale", "1")),
        ({"scale": 0.1, "zero_point": 0}, ("scale", "0.1", "float32")),
        ({"scale": 0.5, "zero_point": 0.0}, ("0.0",)),
        ({"scale": 0.5, "zero_point": True}, ()),
    ],
)
def test_rejects_invalid_quantization(arguments, facts):
    with raises("usage-graph-tensor", *facts):
        Quantization(**arguments)


@pytest.mark.parametrize(
    ("dtype", "quantization", "facts"),
    [
        ("int8", None, ("'x'", "int8", "scale")),
        ("float32", HALF, ("'x'", "float32", "scale")),
        ("int32", HALF, ("scale",)),
        ("int8", Quantization(scale=1.0, zero_point=128), ("128", "-128", "127", "int8")),
        ("int8", Quantization(scale=1.0, zero_point=-129), ("-128", "127")),
        ("uint8", Quantization(scale=1.0, zero_point=-1), ("-1", "0", "255", "uint8")),
        ("uint8", Quantization(scale=1.0, zero_point=256), ("0", "255")),
    ],
)
def test_rejects_tensors_with_incompatible_scale(dtype, quantization, facts):
    with raises("usage-graph-tensor", *facts):
        Tensor(name="x", shape=(4,), dtype=dtype, quantization=quantization)


@pytest.mark.parametrize("zero_point", [-128, 127])
def test_zero_points_may_be_at_both_ends(zero_point):
    assert whole(4, quantization=Quantization(scale=0.5, zero_point=zero_point)).quantization.zero_point == zero_point
