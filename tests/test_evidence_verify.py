"""Comparisons with the referee: counts worked out by hand, and the first layer that differs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from graph_samples import Sketch, random_images, random_int8_graph
from onnx_samples import card_for

from thaw.errors import ModelFileError, UsageError
from thaw.evidence.layers import first_difference
from thaw.evidence.rounding_proof import traced_rows
from thaw.evidence.run_litert import LiteRtRunner
from thaw.evidence.run_onnx import OnnxRunner
from thaw.evidence.verify import as_numbers, compare_float, compare_int8, verify_int8
from thaw.export.to_litert import export_litert
from thaw.export.to_onnx import export_onnx
from thaw.graph.calibrate import calibrate
from thaw.graph.graph import Graph
from thaw.graph.interpret import run, trace
from thaw.graph.ops import Add, AveragePool2d, Conv2d, Dense, MaxPool2d, Op, Requantize, Reshape, Scale, Softmax
from thaw.graph.quantize import quantize
from thaw.graph.rounding import admitted
from thaw.graph.tensors import IMAGE, LOGITS, PROBABILITIES, Quantization, Tensor


class RefereeRunner:
    """An artefact that computes what a graph says, and shows only some of what lies inside it."""

    def __init__(self, graph: Graph, hidden: tuple[str, ...] = ()) -> None:
        self.graph = graph
        self.hidden = hidden

    def run(self, images):
        return run(self.graph, images)[self.graph.outputs[-1]]

    def tensors(self, image):
        return {name: values for name, values in trace(self.graph, image).items() if name not in self.hidden}


def network(rng: np.random.Generator) -> Graph:
    """Requantize, convolution, pooling, convolution, flattening, dense, softmax; int8 of a 9x9 image."""

    def scale(value: float, zero: int = 0) -> Quantization:
        return Quantization(scale=float(np.float32(value)), zero_point=zero)

    def weights(*shape: int, unit: float = 0.01) -> dict:
        return {
            "weights": rng.integers(-127, 128, shape).astype(np.int8),
            "bias": rng.integers(-500, 500, shape[0]).astype(np.int32),
            "weight_scales": np.full(shape[0], unit, np.float32),
        }

    pixels = scale(1 / 255, -128)
    ops = [
        Requantize(name="scale", inputs=(IMAGE,), output="scale", quantization=pixels),
        Conv2d(name="conv1", inputs=("scale",), output="conv1", quantization=scale(0.02, -10), **weights(4, 3, 3, 1)),
        MaxPool2d(name="pool1", inputs=("conv1",), output="pool1", kernel=(2, 2), stride=(2, 2)),
        Conv2d(name="conv2", inputs=("pool1",), output="conv2", quantization=scale(0.1, 5), **weights(6, 2, 2, 4)),
        Reshape(name="flat", inputs=("conv2",), output="flat", shape=(24,)),
        Dense(name="dense", inputs=("flat",), output=LOGITS, quantization=scale(0.05, 3), **weights(5, 24, unit=0.001)),
        Softmax(name="softmax", inputs=(LOGITS,), output=PROBABILITIES),
    ]
    tensors = {IMAGE: Tensor(name=IMAGE, shape=(9, 9, 1), dtype="uint8", quantization=scale(1 / 255, 0))}
    for op in ops:
        tensors[op.output] = op.infer([tensors[name] for name in op.inputs])
    return Graph(tensors=tuple(tensors.values()), ops=tuple(ops), input=IMAGE, outputs=(PROBABILITIES,))


def corrupted_weights(op: Op) -> Op:
    """The operation with the other sign for its largest weight."""
    weights = op.weights.copy()
    place = np.unravel_index(np.abs(weights).argmax(), weights.shape)
    weights[place] = -weights[place]
    return replace(op, weights=weights)


def corrupted(graph: Graph, layer: str) -> Graph:
    """The same graph, but the largest weight of that layer has the other sign."""
    return replace(graph, ops=tuple(corrupted_weights(op) if op.name == layer else op for op in graph.ops))


def check(graph: Graph, artefact: RefereeRunner, images: np.ndarray):
    expected = run(graph, images)[graph.outputs[-1]]
    return verify_int8(graph, expected, artefact.run(images), artefact, images)


@pytest.fixture(scope="module")
def graph():
    return network(np.random.default_rng(2))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).integers(0, 256, (40, 9, 9, 1), dtype=np.uint8)


def test_an_equal_artefact_is_equal(graph, images):
    result = check(graph, RefereeRunner(graph), images)
    assert result.is_equal
    assert result.is_close
    assert (result.images, result.score_bytes, result.differing_bytes, result.differing_images) == (40, 200, 0, 0)
    assert (result.agreement, result.largest_difference, result.first_difference) == (1.0, 0, None)


@pytest.mark.parametrize("layer", ["conv1", "conv2", "dense"])
def test_the_layer_that_is_corrupted_is_named(graph, images, layer):
    broken = corrupted(graph, layer)
    result = check(graph, RefereeRunner(broken), images)
    assert not result.is_equal
    first = result.first_difference
    assert (first.layer, first.fused) == (layer, ())
    # By hand: the first image with another score, and the first place with another number in what the layer writes.
    scores, others = (run(each, images)[PROBABILITIES] for each in (graph, broken))
    assert first.image == next(row for row in range(40) if (scores[row] != others[row]).any())
    right, wrong = (trace(each, images[first.image : first.image + 1])[first.tensor][0] for each in (graph, broken))
    place = next(place for place in np.ndindex(right.shape) if right[place] != wrong[place])
    assert (first.index, first.expected, first.found) == (place, right[place], wrong[place])
    assert layer in str(first)
    assert json.loads(json.dumps(result.as_dict()))["first_difference"]["layer"] == layer


def test_layers_that_nobody_can_look_into_are_named_with_the_next_that_can_be_seen(graph, images):
    result = check(graph, RefereeRunner(corrupted(graph, "conv1"), hidden=("conv1", "scale")), images)
    assert result.first_difference.layer == "pool1"
    assert result.first_difference.fused == ("scale", "conv1")
    assert "pool1 (with scale, conv1)" in str(result.first_difference)
    nothing_inside = check(
        graph, RefereeRunner(corrupted(graph, "conv1"), hidden=tuple(op.output for op in graph.ops)), images
    )
    assert nothing_inside.first_difference is None
    assert nothing_inside.differing_bytes > 0


class RoundingRunner(RefereeRunner):
    """Its kernels take another number now and then where one is admitted, and each goes on from what it had."""

    def finish(self, op, low, high):
        coin = np.random.default_rng(len(op.name)).random(low.shape)
        return np.where(coin < 0.5, low, high)

    def tensors(self, image):
        values = {self.graph.input: image}
        for op in self.graph.ops:
            arrays = [values[name] for name in op.inputs]
            low, high = admitted(op, [self.graph.tensor(name) for name in op.inputs], arrays, arrays)
            values[op.output] = self.finish(op, low, high)
        return values

    def run(self, images):
        return np.concatenate([self.tensors(image[None])[self.graph.outputs[-1]] for image in images])


def verified_otherwise(graph, artefact, images, labels=None):
    expected = run(graph, images)[PROBABILITIES]
    return verify_int8(graph, expected, artefact.run(images), artefact, images, is_exact=False, labels=labels)


def test_rounding_is_shown_to_be_nothing_else(graph, images):
    result = verified_otherwise(graph, RoundingRunner(graph), images, np.zeros(40, int))
    assert not result.is_equal
    assert result.is_close
    proof = result.rounding
    assert proof.traced_images == result.differing_images > 0
    assert (proof.unrepeated_images, proof.outside_images) == (0, 0)
    assert result.largest_difference <= proof.largest_bound <= 255
    assert proof.median_bound <= proof.largest_bound
    expected, found = (each.run(images).astype(int) for each in (RefereeRunner(graph), RoundingRunner(graph)))
    others = np.flatnonzero(expected.argmax(axis=1) != found.argmax(axis=1))
    assert proof.relabelled_images == proof.traced_relabelled == len(others)
    margins = [expected[row].max() - expected[row][found[row].argmax()] for row in others]
    assert proof.largest_margin == (max(margins) if margins else None)
    right, mine = expected.argmax(axis=1) == 0, found.argmax(axis=1) == 0
    assert (proof.only_referee, proof.only_artefact) == ((right & ~mine).sum(), (mine & ~right).sum())
    told = json.loads(json.dumps(result.as_dict()))
    assert told["rounding"]["traced_images"] == proof.traced_images
    assert told["first_difference"] is None
    assert "within rounding" in result.statement


@pytest.mark.parametrize("layer", ["conv1", "conv2", "dense"])
def test_what_is_more_than_rounding_is_told_from_rounding(graph, images, layer):
    result = verified_otherwise(graph, RoundingRunner(corrupted(graph, layer)), images)
    assert not result.is_close
    assert result.first_difference.layer == layer
    assert layer in result.statement


class MisroundingRunner(RoundingRunner):
    """One layer rounds in a way that no correct kernel does."""

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
        # Of every eighth number, the neighbour that is not the nearest.
        places = np.arange(low.size).reshape(low.shape) % 8 == 0
        return np.where(places, np.clip(low.astype(int) - 1, -128, 127), low).astype(np.int8)


@pytest.mark.parametrize("way", ["off by two", "one too high", "sometimes one too low"])
@pytest.mark.parametrize("layer", ["conv1", "conv2", "dense"])
def test_a_kernel_that_does_not_round_to_the_nearest_is_found(graph, images, layer, way):
    result = verified_otherwise(graph, MisroundingRunner(graph, layer, way), images)
    assert not result.is_close
    assert result.first_difference.layer == layer


def with_twins(op: Op) -> Op:
    """The dense layer with two classes that are all but equal, so that roundings decide between them."""
    if op.name != "dense":
        return op
    weights, bias = op.weights.copy(), op.bias.copy()
    weights[1], bias[1] = weights[2], bias[2] - 250
    return replace(op, weights=weights, bias=bias)


def test_fewer_right_answers_than_by_chance_are_found(graph):
    """Where each changed label is a loss, rounding alone is no excuse; where each is a gain, there is nothing to it."""
    graph = rebuilt(graph, with_twins)
    artefact = RoundingRunner(graph)
    images = np.random.default_rng(8).integers(0, 256, (1500, 9, 9, 1), dtype=np.uint8)
    expected, found = (each.run(images).argmax(axis=1) for each in (RefereeRunner(graph), artefact))
    images = images[expected != found]
    pairs = len(images)
    assert pairs >= 10
    for labels, only, is_close in ((expected, (pairs, 0), False), (found, (0, pairs), True)):
        result = verified_otherwise(graph, artefact, images, labels[expected != found])
        proof = result.rounding
        assert (proof.only_referee, proof.only_artefact) == only
        # By hand: all of so many coins fall on one side, or any number does.
        assert proof.p_value == pytest.approx(1.0 if is_close else 0.5**pairs)
        assert result.first_difference is None
        assert result.is_close is is_close
        assert ("accuracy is lower than by chance" in result.statement) is not is_close


def test_scores_that_come_out_otherwise_when_layers_are_read_prove_nothing(graph, images):
    class Other(RoundingRunner):
        def run(self, images):
            return np.roll(super().run(images), 1, axis=1)

    result = verified_otherwise(graph, Other(graph), images)
    assert not result.is_close
    assert result.rounding.unrepeated_images > 0


def test_scores_out_of_reach_are_found_where_nobody_can_look_inside(graph, images):
    class Blind(RefereeRunner):
        def tensors(self, image):
            return {"scale": trace(self.graph, image)["scale"]}

        def run(self, images):
            return np.roll(super().run(images), 1, axis=1)

    result = verified_otherwise(graph, Blind(graph), images)
    assert not result.is_close
    assert result.rounding.outside_images > 0
    assert result.first_difference.tensor == PROBABILITIES
    assert "conv1" in result.first_difference.fused


def test_images_with_another_label_are_looked_into_first():
    expected = np.zeros((2000, 3), np.int8)
    expected[:, 0] = np.arange(2000) % 50 + 1
    found = expected.copy()
    found[::2, 1] = 5
    found[:8:2, 1] = 100
    rows = traced_rows(expected, found)
    relabelled = np.flatnonzero(expected.argmax(axis=1) != found.argmax(axis=1))
    assert len(rows) == len(np.unique(rows)) == 500
    margins = expected[relabelled].max(axis=1)
    assert set(rows[: len(relabelled)]) == set(relabelled)
    assert expected[rows[0]].max() == margins.max()
    assert (expected[rows] != found[rows]).any(axis=1).all()
    same = expected.copy()
    assert len(traced_rows(expected, same)) == 0


def rebuilt(graph: Graph, change) -> Graph:
    """The graph with other operations, whose tensors follow from them."""
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
def test_real_runtimes_round_and_do_nothing_else(runtime):
    differing = 0
    for number, graph in enumerate(
        [padded_network(), *(random_int8_graph(np.random.default_rng(s)) for s in range(8))]
    ):
        if graph.tensor(graph.outputs[-1]).dtype != "int8":
            continue
        pictures = random_images(np.random.default_rng(number), graph, 60)
        artefact = opened(runtime, graph)
        expected = run(graph, pictures)[graph.outputs[-1]]
        result = verify_int8(graph, expected, artefact.run(pictures), artefact, pictures, is_exact=False)
        assert result.is_close, result.statement
        differing += result.differing_images
    assert differing > 5


# The first layer's zero point is -128, so that a ReLU there changes nothing.
@pytest.mark.parametrize(
    ("layer", "wrong"),
    [("first", wrong) for wrong in WRONG if wrong != "a ReLU"] + [("second", wrong) for wrong in WRONG],
)
@pytest.mark.parametrize("runtime", ["onnxruntime", "XNNPACK"])
def test_a_model_with_a_wrong_layer_is_found_in_real_runtimes(runtime, layer, wrong):
    graph = padded_network()
    broken = rebuilt(graph, lambda op: WRONG[wrong](op) if op.name == layer else op)
    pictures = random_images(np.random.default_rng(7), graph, 60)
    artefact = opened(runtime, broken)
    expected = run(graph, pictures)[PROBABILITIES]
    result = verify_int8(graph, expected, artefact.run(pictures), artefact, pictures, is_exact=False)
    assert not result.is_close
    assert layer in (result.first_difference.layer, *result.first_difference.fused)


def test_every_layer_with_weights_of_a_random_network_is_found():
    rng = np.random.default_rng(11)
    found = 0
    for _ in range(12):
        graph = random_int8_graph(rng)
        pictures = random_images(rng, graph, 8)
        for op in graph.ops:
            if not hasattr(op, "weights"):
                continue
            broken = corrupted(graph, op.name)
            for number in range(len(pictures)):
                image = pictures[number : number + 1]
                first = first_difference(graph, RefereeRunner(broken).tensors(image), image, [number])
                inside = trace(graph, image)[op.output]
                if (trace(broken, image)[op.output] == inside).all():
                    assert first is None
                else:
                    found += 1
                    assert (first.layer, first.image) == (op.name, number)
    assert found > 50


def test_counts_of_int8_scores_worked_out_by_hand():
    expected = np.array([[10, -5, -128], [127, 0, 0], [3, 3, 4]], np.int8)
    found = np.array([[10, -5, -128], [-128, 0, 1], [3, 4, 4]], np.int8)
    result = compare_int8(expected, found)
    # The second image's label is now the last; of equal scores the first counts, so the third has another label too.
    assert (result.images, result.score_bytes, result.differing_bytes, result.differing_images) == (3, 9, 3, 2)
    assert result.largest_difference == 255
    assert result.agreement == pytest.approx(1 / 3)
    assert not result.is_equal
    assert not result.is_close


def test_counts_of_float_scores_worked_out_by_hand():
    expected = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], np.float32)
    near = expected + np.array([[0, 5e-5, 0], [0, 0, 0]], np.float32)
    result = compare_float(expected, near)
    assert (result.images, result.agreement) == (2, 1.0)
    assert result.largest_difference == pytest.approx(5e-5, rel=1e-2)
    assert result.is_close
    far = expected[:, ::-1].copy()
    result = compare_float(expected, far)
    assert result.agreement == 0.0
    assert result.largest_difference == pytest.approx(0.6)
    assert not result.is_close
    assert set(json.loads(json.dumps(result.as_dict()))) == {"images", "agreement", "largest_difference"}


def test_dequantised_scores_are_taken_back_to_their_numbers():
    quantization = Quantization(scale=1 / 256, zero_point=-128)
    numbers = np.arange(-128, 128).astype(np.int8)
    real = ((numbers.astype(np.float32) + 128) / 256).astype(np.float32)
    assert (as_numbers(real, quantization) == numbers).all()
    assert as_numbers(real, quantization).dtype == np.int8
    assert as_numbers(numbers, quantization) is numbers
    for wrong in (real + 0.001, real + 1.0, real * np.float32(np.nan)):
        with pytest.raises(ModelFileError, match="scale"):
            as_numbers(wrong, quantization)


@pytest.mark.parametrize(
    "found",
    [np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float32), np.zeros((3, 3), np.float64), np.zeros(3, np.float32)],
)
def test_scores_of_another_shape_or_type_are_refused(found):
    expected = np.zeros((3, 3), np.float32)
    with pytest.raises(ModelFileError, match=r"expected float32 \[3, 3\]"):
        compare_float(expected, found)
    with pytest.raises(ModelFileError, match=r"expected int8 \[3, 3\]"):
        compare_int8(expected.astype(np.int8), found)


def test_scores_that_are_not_finite_are_refused():
    expected = np.zeros((2, 3), np.float32)
    for value in (np.nan, np.inf):
        with pytest.raises(ModelFileError, match="not finite"):
            compare_float(expected, np.full((2, 3), value, np.float32))


def test_no_images_are_no_proof():
    with pytest.raises(UsageError, match="no images"):
        compare_int8(np.zeros((0, 3), np.int8), np.zeros((0, 3), np.int8))


def test_intermediate_results_of_another_size_are_refused(graph, images):
    class Wrong(RefereeRunner):
        def tensors(self, image):
            return {"conv1": np.zeros((1, 2, 2, 4), np.int8)}

    with pytest.raises(ModelFileError, match="conv1"):
        first_difference(graph, Wrong(graph).tensors(images[:1]), images[:1], [0])
