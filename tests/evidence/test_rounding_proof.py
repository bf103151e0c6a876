"""Runtimes that round differently: rounding is accepted, and any other difference is detected."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from graph_samples import Sketch, random_images, random_int8_graph
from onnx_samples import card_for
from runner_samples import ReferenceRunner, corrupted, corrupted_weights, network

from thaw.evidence.rounding_proof import traced_rows
from thaw.evidence.run_litert import LiteRtRunner
from thaw.evidence.run_onnx import OnnxRunner
from thaw.evidence.verify import verify_int8
from thaw.export.to_litert import export_litert
from thaw.export.to_onnx import export_onnx
from thaw.graph.calibrate import calibrate
from thaw.graph.graph import Graph
from thaw.graph.interpret import run, trace
from thaw.graph.ops import Add, AveragePool2d, Conv2d, Operation, Reshape, Scale, Softmax
from thaw.graph.quantize import quantize
from thaw.graph.tensors import IMAGE, LOGITS, PROBABILITIES, Tensor


@pytest.fixture(scope="module")
def graph():
    return network(np.random.default_rng(2))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).integers(0, 256, (40, 9, 9, 1), dtype=np.uint8)


class RoundingRunner(ReferenceRunner):
    """A runner whose kernels sometimes return another admitted number, which the next layers then read."""

    def finish(self, op, low, high):
        coin = np.random.default_rng(len(op.name)).random(low.shape)
        return np.where(coin < 0.5, low, high)

    def tensors(self, image):
        values = {self.graph.input: image}
        for op in self.graph.ops:
            arrays = [values[name] for name in op.inputs]
            low, high = op.admitted([self.graph.tensor(name) for name in op.inputs], arrays, arrays)
            values[op.output] = self.finish(op, low, high)
        return values

    def run(self, images):
        return np.concatenate([self.tensors(image[None])[self.graph.outputs[-1]] for image in images])


def verified_otherwise(graph, artifact, images, labels=None):
    expected = run(graph, images)[PROBABILITIES]
    return verify_int8(graph, expected, artifact.run(images), artifact, images, is_exact=False, labels=labels)


def test_rounding_is_recognized(graph, images):
    result = verified_otherwise(graph, RoundingRunner(graph), images, np.zeros(40, int))
    assert not result.is_equal
    assert result.is_close
    proof = result.rounding
    assert proof.traced_images == result.differing_images > 0
    assert (proof.unrepeated_images, proof.outside_images) == (0, 0)
    assert result.largest_difference <= proof.largest_bound <= 255
    assert proof.median_bound <= proof.largest_bound
    expected, found = (each.run(images).astype(int) for each in (ReferenceRunner(graph), RoundingRunner(graph)))
    others = np.flatnonzero(expected.argmax(axis=1) != found.argmax(axis=1))
    assert proof.relabeled_images == proof.traced_relabeled == len(others)
    margins = [expected[row].max() - expected[row][found[row].argmax()] for row in others]
    assert proof.largest_margin == (max(margins) if margins else None)
    right, mine = expected.argmax(axis=1) == 0, found.argmax(axis=1) == 0
    assert (proof.only_reference, proof.only_runtime) == ((right & ~mine).sum(), (mine & ~right).sum())
    told = json.loads(json.dumps(result.as_dict()))
    assert told["rounding"]["traced_images"] == proof.traced_images
    assert told["first_difference"] is None
    assert "within rounding" in result.statement


@pytest.mark.parametrize("layer", ["conv1", "conv2", "dense"])
def test_differences_beyond_rounding_are_detected(graph, images, layer):
    result = verified_otherwise(graph, RoundingRunner(corrupted(graph, layer)), images)
    assert not result.is_close
    assert result.first_difference.layer == layer
    assert layer in result.statement


class MisroundingRunner(RoundingRunner):
    """A runner with one layer that rounds incorrectly."""

    def __init__(self, graph: Graph, layer: str, way: str) -> None:
        super().__init__(graph)
        self.layer, self.way = layer, way

    def finish(self, op, low, high):
        if op.name != self.layer:
            return low
        if self.way == "off by two":
            return np.clip(low.astype(int) + 2, -128, 127).astype(np.int8)
        if self.way == "one too high":
            return np.clip(high.astype(int) + 1, -128, 127).astype(np.int8)
        # For every eighth number, the wrong neighbor.
        places = np.arange(low.size).reshape(low.shape) % 8 == 0
        return np.where(places, np.clip(low.astype(int) - 1, -128, 127), low).astype(np.int8)


@pytest.mark.parametrize("way", ["off by two", "one too high", "sometimes one too low"])
@pytest.mark.parametrize("layer", ["conv1", "conv2", "dense"])
def test_incorrect_rounding_is_detected(graph, images, layer, way):
    result = verified_otherwise(graph, MisroundingRunner(graph, layer, way), images)
    assert not result.is_close
    assert result.first_difference.layer == layer


def with_twins(op: Operation) -> Operation:
    """The dense layer with two nearly equal classes, so that rounding decides between them."""
    if op.name != "dense":
        return op
    weights, bias = op.weights.copy(), op.bias.copy()
    weights[1], bias[1] = weights[2], bias[2] - 250
    return replace(op, weights=weights, bias=bias)


def test_significantly_lower_accuracy_is_detected(graph):
    """Rounding does not explain it if all changed labels are losses; gains are accepted."""
    graph = rebuilt(graph, with_twins)
    artifact = RoundingRunner(graph)
    images = np.random.default_rng(8).integers(0, 256, (1500, 9, 9, 1), dtype=np.uint8)
    expected, found = (each.run(images).argmax(axis=1) for each in (ReferenceRunner(graph), artifact))
    images = images[expected != found]
    pairs = len(images)
    assert pairs >= 10
    for labels, only, is_close in ((expected, (pairs, 0), False), (found, (0, pairs), True)):
        result = verified_otherwise(graph, artifact, images, labels[expected != found])
        proof = result.rounding
        assert (proof.only_reference, proof.only_runtime) == only
        # By hand: all of `pairs` coins fall on one side, or any number of them does.
        assert proof.p_value == pytest.approx(1.0 if is_close else 0.5**pairs)
        assert result.first_difference is None
        assert result.is_close is is_close
        assert ("accuracy is significantly lower" in result.statement) is not is_close


def test_scores_that_change_when_layers_are_read_prove_nothing(graph, images):
    class Other(RoundingRunner):
        def run(self, images):
            return np.roll(super().run(images), 1, axis=1)

    result = verified_otherwise(graph, Other(graph), images)
    assert not result.is_close
    assert result.rounding.unrepeated_images > 0


def test_scores_outside_the_bounds_are_detected_without_intermediate_results(graph, images):
    class Blind(ReferenceRunner):
        def tensors(self, image):
            return {"scale": trace(self.graph, image)["scale"]}

        def run(self, images):
            return np.roll(super().run(images), 1, axis=1)

    result = verified_otherwise(graph, Blind(graph), images)
    assert not result.is_close
    assert result.rounding.outside_images > 0
    assert result.first_difference.tensor == PROBABILITIES
    assert "conv1" in result.first_difference.fused


def test_relabeled_images_are_traced_first():
    expected = np.zeros((2000, 3), np.int8)
    expected[:, 0] = np.arange(2000) % 50 + 1
    found = expected.copy()
    found[::2, 1] = 5
    found[:8:2, 1] = 100
    rows = traced_rows(expected, found)
    relabeled = np.flatnonzero(expected.argmax(axis=1) != found.argmax(axis=1))
    assert len(rows) == len(np.unique(rows)) == 500
    margins = expected[relabeled].max(axis=1)
    assert set(rows[: len(relabeled)]) == set(relabeled)
    assert expected[rows[0]].max() == margins.max()
    assert (expected[rows] != found[rows]).any(axis=1).all()
    same = expected.copy()
    assert len(traced_rows(expected, same)) == 0


def rebuilt(graph: Graph, change) -> Graph:
    """The graph with other operations and the tensors that they infer."""
    tensors = {graph.input: graph.tensor(graph.input)}
    ops = tuple(map(change, graph.ops))
    for op in ops:
        tensors[op.output] = op.infer([tensors[name] for name in op.inputs])
    return replace(graph, ops=ops, tensors=tuple(tensors.values()))


def padded_network() -> Graph:
    """A small int8 network with padding, average pooling and a residual addition, calibrated on noise."""
    rng = np.random.default_rng(4)
    sketch = Sketch(rng)
    tensors = {IMAGE: Tensor(name=IMAGE, shape=(12, 12, 3), dtype="uint8")}
    sketch.tensors, sketch.ops = tensors, []
    sketch.now = sketch.add(Scale, inputs=(IMAGE,), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))

    def conv(name, channels, **settings):
        weights = sketch.normal(channels, 3, 3, sketch.shape[2], spread=(9 * sketch.shape[2]) ** -0.5)
        op = Conv2d(
            name=name,
            inputs=(sketch.now,),
            output=name,
            weights=weights,
            bias=sketch.normal(channels, spread=0.3),
            padding=(1, 1, 1, 1),
            **settings,
        )
        sketch.tensors[name] = op.infer([sketch.tensors[sketch.now]])
        sketch.ops.append(op)
        sketch.now = name

    conv("first", 8, activation="relu")
    sketch.add(AveragePool2d, kernel=(2, 2), stride=(2, 2))
    pooled = sketch.now
    conv("second", 8, activation="none")
    sketch.add(Add, inputs=(pooled, "second"), activation="relu")
    sketch.add(AveragePool2d, kernel=sketch.shape[:2], stride=(1, 1))
    sketch.add(Reshape, shape=(8,))
    sketch.dense(10, output=LOGITS)
    sketch.add(Softmax, output=PROBABILITIES)
    graph = Graph(tensors=tuple(sketch.tensors.values()), ops=tuple(sketch.ops), input=IMAGE, outputs=(PROBABILITIES,))
    return quantize(graph, calibrate(graph, rng.integers(0, 256, (60, 12, 12, 3), dtype=np.uint8))["minmax"])


def moved_zero(op):
    written = op.quantization
    return replace(op, quantization=replace(written, zero_point=written.zero_point + 1))


WRONG = {
    "a weight": corrupted_weights,
    "a zero point": moved_zero,
    "swapped channels": lambda op: replace(op, weights=np.ascontiguousarray(op.weights[[1, 0, *range(2, 8)]])),
    "padding": lambda op: replace(op, padding=(2, 0, 1, 1)),
    "a bias": lambda op: replace(op, bias=op.bias + np.int32(np.abs(op.bias).max() // 4)),
    "a multiplier": lambda op: replace(op, weight_scales=op.weight_scales * np.float32(1.02)),
    "a ReLU": lambda op: replace(op, activation="relu"),
}


def opened(runtime: str, graph: Graph):
    if runtime == "onnxruntime":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
        return OnnxRunner(export_onnx({"int8": graph}, card_for(graph))["model-int8.onnx"])
    pytest.importorskip("ai_edge_litert")
    return LiteRtRunner(export_litert({"int8": graph}, card_for(graph))["model-int8.tflite"])


@pytest.mark.parametrize("runtime", ["onnxruntime", "XNNPACK"])
def test_real_runtimes_only_round(runtime):
    differing = 0
    for number, graph in enumerate(
        [padded_network(), *(random_int8_graph(np.random.default_rng(s)) for s in range(8))]
    ):
        if graph.tensor(graph.outputs[-1]).dtype != "int8":
            continue
        pictures = random_images(np.random.default_rng(number), graph, 60)
        artifact = opened(runtime, graph)
        expected = run(graph, pictures)[graph.outputs[-1]]
        result = verify_int8(graph, expected, artifact.run(pictures), artifact, pictures, is_exact=False)
        assert result.is_close, result.statement
        differing += result.differing_images
    assert differing > 5


# The first layer's zero point is -128, so that a ReLU there changes nothing.
@pytest.mark.parametrize(
    ("layer", "wrong"),
    [("first", wrong) for wrong in WRONG if wrong != "a ReLU"] + [("second", wrong) for wrong in WRONG],
)
@pytest.mark.parametrize("runtime", ["onnxruntime", "XNNPACK"])
def test_wrong_layer_is_detected_in_real_runtimes(runtime, layer, wrong):
    graph = padded_network()
    broken = rebuilt(graph, lambda op: WRONG[wrong](op) if op.name == layer else op)
    pictures = random_images(np.random.default_rng(7), graph, 60)
    artifact = opened(runtime, broken)
    expected = run(graph, pictures)[PROBABILITIES]
    result = verify_int8(graph, expected, artifact.run(pictures), artifact, pictures, is_exact=False)
    assert not result.is_close
    assert layer in (result.first_difference.layer, *result.first_difference.fused)
