"""A Graph accepts only consistent parts, and errors name the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from thaw.errors import UsageError
from thaw.graph.graph import Graph
from thaw.graph.ops import OPERATIONS, Concat, Conv2d, Dense, MaxPool2d, Reshape, Scale, Softmax
from thaw.graph.tensors import Tensor


def ones(*shape):
    return np.ones(shape, np.float32)


IMAGE = Tensor(name="image", shape=(5, 4, 1), dtype="uint8")
SCALE = Scale(name="scale", inputs=("image",), output="scaled", mean=(0.5,), std=(0.25,))
CONV = Conv2d(name="conv", inputs=("scaled",), output="map", weights=ones(2, 3, 3, 1), bias=ones(2), activation="relu")
FLAT = Reshape(name="flat", inputs=("map",), output="features", shape=(12,))
DENSE = Dense(name="dense", inputs=("features",), output="logits", weights=ones(3, 12), bias=ones(3))
TENSORS = (
    IMAGE,
    Tensor(name="scaled", shape=(5, 4, 1), dtype="float32"),
    Tensor(name="map", shape=(3, 2, 2), dtype="float32"),
    Tensor(name="features", shape=(12,), dtype="float32"),
    Tensor(name="logits", shape=(3,), dtype="float32"),
)
GRAPH = Graph(tensors=TENSORS, ops=(SCALE, CONV, FLAT, DENSE), input="image", outputs=("logits",))


def vector(size, name="x"):
    return Tensor(name=name, shape=(size,), dtype="float32")


def feature_map(*shape, name="x"):
    return Tensor(name=name, shape=shape, dtype="float32")


def test_tensor_is_found_by_name():
    assert GRAPH.tensor("map") == TENSORS[2]
    assert GRAPH.tensor("map").elements == 12
    with pytest.raises(UsageError, match=r"no tensor 'mop': expected one of 'image', 'scaled'"):
        GRAPH.tensor("mop")


def test_kinds_are_unique():
    assert len(OPERATIONS) == 13
    assert all(operation.kind == kind for kind, operation in OPERATIONS.items())


def test_weights_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        GRAPH.ops[1].weights[0] = 0


@pytest.mark.parametrize(
    ("op", "reads", "shape"),
    [
        (CONV, [feature_map(5, 4, 1)], (3, 2, 2)),
        (replace(CONV, padding=(1, 0, 2, 2)), [feature_map(5, 4, 1)], (4, 6, 2)),
        (replace(CONV, weights=ones(2, 5, 1, 3)), [feature_map(5, 4, 3)], (1, 4, 2)),
        (
            MaxPool2d(name="p", inputs=("x",), output="y", kernel=(2, 2), stride=(2, 2)),
            [feature_map(5, 4, 3)],
            (2, 2, 3),
        ),
        (
            MaxPool2d(name="p", inputs=("x",), output="y", kernel=(3, 1), stride=(1, 3)),
            [feature_map(5, 4, 3)],
            (3, 2, 3),
        ),
        (Softmax(name="s", inputs=("x",), output="y"), [vector(7)], (7,)),
        (Concat(name="c", inputs=("x", "z"), output="y"), [vector(7), vector(2, "z")], (9,)),
        (Concat(name="c", inputs=("x", "z"), output="y"), [feature_map(3, 2, 1), feature_map(3, 2, 4)], (3, 2, 5)),
        (Reshape(name="r", inputs=("x",), output="y", shape=(3, 2, 2)), [vector(12)], (3, 2, 2)),
    ],
)
def test_shapes_are_inferred(op, reads, shape):
    assert op.infer(reads) == Tensor(name=op.output, shape=shape, dtype="float32")


@pytest.mark.parametrize(
    ("op", "reads", "message"),
    [
        (SCALE, [feature_map(5, 4, 1)], r"scale 'scale': it reads float32 \(5, 4, 1\): expected uint8 \(H, W, C\)"),
        (SCALE, [Tensor(name="x", shape=(5, 4, 3), dtype="uint8")], r"1 means and deviations for 3 channels"),
        (CONV, [IMAGE], r"conv2d 'conv': it reads uint8 \(5, 4, 1\): expected float32 or int8 \(H, W, C\)"),
        (CONV, [vector(4)], r"it reads float32 \(4,\): expected float32 or int8 \(H, W, C\)"),
        (CONV, [feature_map(5, 4, 3)], r"weights are for 1 channels, but its input has 3"),
        (CONV, [feature_map(5, 2, 1)], r"it would write \(3, 0, 2\): its input is too small for its kernel"),
        (CONV, [feature_map(5, 4, 1)] * 2, r"it reads 2 tensors: expected 1"),
        (DENSE, [vector(11)], r"dense 'dense': its weights are for 12 values, but its input has 11"),
        (DENSE, [feature_map(3, 2, 2)], r"it reads float32 \(3, 2, 2\): expected float32 or int8 \(C,\)"),
        (FLAT, [vector(11)], r"\(11,\) cannot become \(12,\): 11 and 12 values"),
        (
            MaxPool2d(name="p", inputs=("x",), output="y", kernel=(2, 2), stride=(2, 2)),
            [feature_map(1, 4, 3)],
            r"max_pool2d 'p': it would write \(0, 2, 3\)",
        ),
        (Softmax(name="s", inputs=("x",), output="y"), [feature_map(1, 1, 3)], r"expected float32 or int8 \(C,\)"),
        (
            Concat(name="c", inputs=("x", "z"), output="y"),
            [vector(7), feature_map(1, 1, 3)],
            r"differ in their last axis",
        ),
    ],
)
def test_rejects_incompatible_inputs(op, reads, message):
    with pytest.raises(UsageError, match=message):
        op.infer(reads)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.ones((2, 3, 3, 1))}, r"conv2d 'conv': weights are float64: expected a float32 array"),
        ({"weights": [1.0]}, r"weights are list: expected a float32 array"),
        ({"weights": ones(2, 3, 3)}, r"weights have shape \(2, 3, 3\): expected 4 axes"),
        ({"weights": ones(2, 0, 3, 1)}, r"expected 4 axes, each at least 1"),
        ({"weights": np.full((2, 3, 3, 1), np.nan, np.float32)}, r"weights contain values that are not finite"),
        ({"bias": np.array([1, np.inf], np.float32)}, r"bias contain values that are not finite"),
        ({"bias": ones(3)}, r"3 biases for 2 outputs"),
        ({"padding": (1, 1)}, r"padding \(1, 1\): expected \(top, bottom, left, right\)"),
        ({"padding": (0, 0, 0, -1)}, r"each at least 0"),
        ({"activation": "gelu"}, r"activation 'gelu': expected one of none, relu"),
        ({"inputs": "scaled"}, r"inputs are 'scaled': expected a tuple"),
        ({"name": ""}, "conv2d has name ''"),
    ],
)
def test_rejects_invalid_convolutions(change, message):
    with pytest.raises(UsageError, match=message):
        replace(CONV, **change)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Scale, {"mean": (0.0, 0.0), "std": (1.0,)}, r"expected one per channel \(2\)"),
        (Scale, {"mean": (float("nan"),), "std": (1.0,)}, r"mean\[0\] = nan: expected a number from -1e\+09"),
        (Scale, {"mean": (0.0,), "std": (0.0,)}, r"std\[0\] = 0.0: expected a number from 1e-09"),
        (
            MaxPool2d,
            {"kernel": (2, 0), "stride": (2, 2)},
            r"kernel \(2, 0\): expected \(rows, columns\), each at least 1",
        ),
        (MaxPool2d, {"kernel": (2, 2), "stride": 2}, r"stride 2: expected"),
        (Reshape, {"shape": (2.0,)}, r"shape \(2.0,\): expected"),
        (Dense, {"weights": ones(3, 1, 1, 2), "bias": ones(3)}, "expected 2 axes"),
    ],
)
def test_rejects_invalid_settings(kind, arguments, message):
    with pytest.raises(UsageError, match=message):
        kind(name="x", inputs=("a",), output="b", **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "tensor name ''"),
        ({"shape": (5, 4)}, r"shape \(5, 4\): expected \(H, W, C\) or \(C,\)"),
        ({"shape": (5, 0, 1)}, "each at least 1"),
        ({"shape": (True,)}, "each at least 1"),
        ({"dtype": "float64"}, "'float64': expected one of uint8, int8, int32, float32"),
    ],
)
def test_rejects_invalid_tensors(change, message):
    with pytest.raises(UsageError, match=message):
        replace(IMAGE, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors": (*TENSORS, TENSORS[1])}, "tensors: the name 'scaled' is used twice"),
        ({"tensors": (*TENSORS, vector(3, "spare"))}, "no operation writes tensor 'spare'"),
        ({"tensors": TENSORS[:-1]}, "no tensor 'logits'"),
        ({"tensors": (*TENSORS[:-1], vector(4, "logits"))}, r"dense 'dense' writes float32 \(3,\), but .* \(4,\)"),
        ({"ops": (SCALE, CONV, FLAT, replace(DENSE, name="conv"))}, "operations: the name 'conv' is used twice"),
        ({"ops": (CONV, SCALE, FLAT, DENSE)}, "conv2d 'conv' reads 'scaled', before it is written"),
        ({"ops": (SCALE, replace(CONV, inputs=("nothing",)), FLAT, DENSE)}, "reads 'nothing', which is not a tensor"),
        ({"ops": (SCALE, replace(SCALE, name="again"), CONV, FLAT, DENSE)}, "writes 'scaled' a second time"),
        (
            {"ops": (SCALE, replace(SCALE, name="loop", output="image"), CONV, FLAT, DENSE)},
            "writes 'image' a second time",
        ),
        ({"ops": (SCALE, "conv")}, "expected Tensors in `tensors` and Operations"),
        ({"input": "logits"}, r"input 'logits' is float32 \(3,\): expected uint8 \(H, W, C\)"),
        ({"input": "pixels"}, "no tensor 'pixels'"),
        ({"outputs": ()}, "it has no outputs"),
        ({"outputs": ("scores",)}, "no operation writes output 'scores'"),
        ({"outputs": ("image",)}, "no operation writes output 'image'"),
        ({"outputs": ("logits", "logits")}, "outputs: the name 'logits' is used twice"),
    ],
)
def test_rejects_inconsistent_graphs(change, message):
    with pytest.raises(UsageError, match=message):
        replace(GRAPH, **change)
