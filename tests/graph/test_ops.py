"""A Graph accepts only consistent parts, and errors name the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from error_matching import raises

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
    with raises("usage-graph", "'mop'", "'image', 'scaled'"):
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
    ("op", "reads", "facts"),
    [
        (SCALE, [feature_map(5, 4, 1)], ("scale", "'scale'", "float32", "(5, 4, 1)", "uint8")),
        (SCALE, [Tensor(name="x", shape=(5, 4, 3), dtype="uint8")], ("1", "3")),
        (CONV, [IMAGE], ("conv2d", "'conv'", "uint8", "(5, 4, 1)", "float32")),
        (CONV, [vector(4)], ("float32", "(4,)", "int8")),
        (CONV, [feature_map(5, 4, 3)], ("weights", "1", "3")),
        (CONV, [feature_map(5, 2, 1)], ("(3, 0, 2)", "kernel")),
        (CONV, [feature_map(5, 4, 1)] * 2, ("2", "1")),
        (DENSE, [vector(11)], ("dense", "'dense'", "weights", "12", "11")),
        (DENSE, [feature_map(3, 2, 2)], ("float32", "(3, 2, 2)", "int8")),
        (FLAT, [vector(11)], ("(11,)", "(12,)")),
        (
            MaxPool2d(name="p", inputs=("x",), output="y", kernel=(2, 2), stride=(2, 2)),
            [feature_map(1, 4, 3)],
            ("max_pool2d", "'p'", "(0, 2, 3)"),
        ),
        (Softmax(name="s", inputs=("x",), output="y"), [feature_map(1, 1, 3)], ("float32", "int8")),
        (
            Concat(name="c", inputs=("x", "z"), output="y"),
            [vector(7), feature_map(1, 1, 3)],
            (),
        ),
    ],
)
def test_rejects_incompatible_inputs(op, reads, facts):
    with raises("usage-graph-operation", *facts):
        op.infer(reads)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"weights": np.ones((2, 3, 3, 1))}, ("conv2d", "'conv'", "weights", "float64", "float32")),
        ({"weights": [1.0]}, ("weights", "float32")),
        ({"weights": ones(2, 3, 3)}, ("weights", "shape", "(2, 3, 3)", "4")),
        ({"weights": ones(2, 0, 3, 1)}, ("4", "1")),
        ({"weights": np.full((2, 3, 3, 1), np.nan, np.float32)}, ("weights",)),
        ({"bias": np.array([1, np.inf], np.float32)}, ("bias",)),
        ({"bias": ones(3)}, ("3", "biases", "2", "outputs")),
        ({"padding": (1, 1)}, ("padding", "(1, 1)")),
        ({"padding": (0, 0, 0, -1)}, ("0",)),
        ({"activation": "gelu"}, ("activation", "'gelu'")),
        ({"inputs": "scaled"}, ("inputs", "'scaled'")),
        ({"name": ""}, ("conv2d", "''")),
    ],
)
def test_rejects_invalid_convolutions(change, facts):
    with raises("usage-graph", *facts):
        replace(CONV, **change)


@pytest.mark.parametrize(
    ("kind", "arguments", "facts"),
    [
        (Scale, {"mean": (0.0, 0.0), "std": (1.0,)}, ("(2)",)),
        (Scale, {"mean": (float("nan"),), "std": (1.0,)}, ("mean", "[0]", "-1e+09")),
        (Scale, {"mean": (0.0,), "std": (0.0,)}, ("std", "[0]", "0.0", "1e-09")),
        (
            MaxPool2d,
            {"kernel": (2, 0), "stride": (2, 2)},
            ("kernel", "(2, 0)", "1"),
        ),
        (MaxPool2d, {"kernel": (2, 2), "stride": 2}, ("stride", "2")),
        (Reshape, {"shape": (2.0,)}, ("shape", "(2.0,)")),
        (Dense, {"weights": ones(3, 1, 1, 2), "bias": ones(3)}, ("2",)),
    ],
)
def test_rejects_invalid_settings(kind, arguments, facts):
    with raises(UsageError, *facts):
        kind(name="x", inputs=("a",), output="b", **arguments)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"name": ""}, ("''",)),
        ({"shape": (5, 4)}, ("shape", "(5, 4)")),
        ({"shape": (5, 0, 1)}, ("1",)),
        ({"shape": (True,)}, ("1",)),
        ({"dtype": "float64"}, ("'float64'", "uint8", "int32", "float32")),
    ],
)
def test_rejects_invalid_tensors(change, facts):
    with raises("usage-graph-tensor", *facts):
        replace(IMAGE, **change)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"tensors": (*TENSORS, TENSORS[1])}, ("'scaled'",)),
        ({"tensors": (*TENSORS, vector(3, "spare"))}, ("'spare'",)),
        ({"tensors": TENSORS[:-1]}, ("'logits'",)),
        ({"tensors": (*TENSORS[:-1], vector(4, "logits"))}, ("dense", "'dense'", "float32", "(3,)", "(4,)")),
        ({"ops": (SCALE, CONV, FLAT, replace(DENSE, name="conv"))}, ("'conv'",)),
        ({"ops": (CONV, SCALE, FLAT, DENSE)}, ("conv2d", "'conv'", "'scaled'")),
        ({"ops": (SCALE, replace(CONV, inputs=("nothing",)), FLAT, DENSE)}, ("'nothing'",)),
        ({"ops": (SCALE, replace(SCALE, name="again"), CONV, FLAT, DENSE)}, ("'scaled'",)),
        (
            {"ops": (SCALE, replace(SCALE, name="loop", output="image"), CONV, FLAT, DENSE)},
            ("'image'",),
        ),
        ({"ops": (SCALE, "conv")}, ()),
        ({"input": "logits"}, ("'logits'", "float32", "(3,)", "uint8")),
        ({"input": "pixels"}, ("'pixels'",)),
        ({"outputs": ()}, ("outputs",)),
        ({"outputs": ("scores",)}, ("'scores'",)),
        ({"outputs": ("image",)}, ("'image'",)),
        ({"outputs": ("logits", "logits")}, ("outputs", "'logits'")),
    ],
)
def test_rejects_inconsistent_graphs(change, facts):
    with raises("usage-graph", *facts):
        replace(GRAPH, **change)
