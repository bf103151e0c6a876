"""Comparisons with the referee: counts worked out by hand, and the first layer that differs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from graph_samples import random_images, random_int8_graph

from thaw.errors import ModelFileError, UsageError
from thaw.evidence.verify import as_numbers, compare_float, compare_int8, first_difference, verify_int8
from thaw.graph.graph import Graph
from thaw.graph.interpret import execute, run, trace
from thaw.graph.ops import Conv2d, Dense, MaxPool2d, Op, Requantize, Reshape, Softmax
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


def corrupted(graph: Graph, layer: str) -> Graph:
    """The same graph, but the largest weight of that layer has the other sign."""

    def change(op: Op) -> Op:
        weights = op.weights.copy()
        place = np.unravel_index(np.abs(weights).argmax(), weights.shape)
        weights[place] = -weights[place]
        return replace(op, weights=weights)

    return replace(graph, ops=tuple(change(op) if op.name == layer else op for op in graph.ops))


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
    """Its kernels are off by a unit here and there, as optimised ones are, and each goes on from what it had."""

    def tensors(self, image):
        values = {self.graph.input: image}
        rng = np.random.default_rng(5)
        for op in self.graph.ops:
            made = execute(op, [self.graph.tensor(name) for name in op.inputs], [values[name] for name in op.inputs])
            off = rng.integers(-1, 2, made.shape) * (rng.random(made.shape) < 0.2) if hasattr(op, "weights") else 0
            values[op.output] = np.clip(made.astype(int) + off, -128, 127).astype(np.int8)
        return values

    def run(self, images):
        return np.concatenate([self.tensors(image[None])[self.graph.outputs[-1]] for image in images])


@pytest.mark.parametrize("layer", ["conv1", "conv2", "dense"])
def test_what_is_more_than_rounding_is_told_from_rounding(graph, images, layer):
    expected = run(graph, images)[PROBABILITIES]
    artefact = RoundingRunner(corrupted(graph, layer))
    result = verify_int8(graph, expected, artefact.run(images), artefact, images, is_exact=False)
    assert result.first_difference.layer == layer
    assert abs(result.first_difference.expected - result.first_difference.found) > 1
    # With nothing but rounding, the first rounding is told.
    artefact = RoundingRunner(graph)
    result = verify_int8(graph, expected, artefact.run(images), artefact, images, is_exact=False)
    assert result.first_difference.layer == "conv1"
    assert abs(result.first_difference.expected - result.first_difference.found) == 1


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
                first = first_difference(graph, RefereeRunner(broken), image, image_number=number)
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
        first_difference(graph, Wrong(graph), images[:1], image_number=0)
