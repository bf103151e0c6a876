"""Comparison with the reference interpreter: counts by hand, and the first layer that differs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from error_matching import raises
from graph_samples import random_images, random_int8_graph
from runner_samples import ReferenceRunner, corrupted, network

from thaw.evidence.layers import first_difference
from thaw.evidence.verify import as_numbers, compare_float, compare_int8, verify_int8
from thaw.graph.graph import Graph
from thaw.graph.interpret import run, trace
from thaw.graph.tensors import PROBABILITIES, Quantization


def check(graph: Graph, artifact: ReferenceRunner, images: np.ndarray):
    expected = run(graph, images)[graph.outputs[-1]]
    return verify_int8(graph, expected, artifact.run(images), artifact, images)


@pytest.fixture(scope="module")
def graph():
    return network(np.random.default_rng(2))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).integers(0, 256, (40, 9, 9, 1), dtype=np.uint8)


def test_equal_artifact_is_equal(graph, images):
    result = check(graph, ReferenceRunner(graph), images)
    assert result.is_equal
    assert result.is_close
    assert (result.images, result.score_bytes, result.differing_bytes, result.differing_images) == (40, 200, 0, 0)
    assert (result.agreement, result.largest_difference, result.first_difference) == (1.0, 0, None)


@pytest.mark.parametrize("layer", ["conv1", "conv2", "dense"])
def test_corrupted_layer_is_named(graph, images, layer):
    broken = corrupted(graph, layer)
    result = check(graph, ReferenceRunner(broken), images)
    assert not result.is_equal
    first = result.first_difference
    assert (first.layer, first.fused) == (layer, ())
    # By hand: the first image with another score, and the first index with another number in the layer's output.
    scores, others = (run(each, images)[PROBABILITIES] for each in (graph, broken))
    assert first.image == next(row for row in range(40) if (scores[row] != others[row]).any())
    right, wrong = (trace(each, images[first.image : first.image + 1])[first.tensor][0] for each in (graph, broken))
    place = next(place for place in np.ndindex(right.shape) if right[place] != wrong[place])
    assert (first.index, first.expected, first.found) == (place, right[place], wrong[place])
    assert layer in str(first)
    assert json.loads(json.dumps(result.as_dict()))["first_difference"]["layer"] == layer


def test_unavailable_layers_are_named_with_the_next_available_one(graph, images):
    result = check(graph, ReferenceRunner(corrupted(graph, "conv1"), hidden=("conv1", "scale")), images)
    assert result.first_difference.layer == "pool1"
    assert result.first_difference.fused == ("scale", "conv1")
    assert "pool1 (with scale, conv1)" in str(result.first_difference)
    nothing_inside = check(
        graph, ReferenceRunner(corrupted(graph, "conv1"), hidden=tuple(op.output for op in graph.ops)), images
    )
    assert nothing_inside.first_difference is None
    assert nothing_inside.differing_bytes > 0


def test_every_corrupted_layer_of_a_random_network_is_found():
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
                first = first_difference(graph, ReferenceRunner(broken).tensors(image), image, [number])
                inside = trace(graph, image)[op.output]
                if (trace(broken, image)[op.output] == inside).all():
                    assert first is None
                else:
                    found += 1
                    assert (first.layer, first.image) == (op.name, number)
    assert found > 50


def test_counts_of_int8_scores_by_hand():
    expected = np.array([[10, -5, -128], [127, 0, 0], [3, 3, 4]], np.int8)
    found = np.array([[10, -5, -128], [-128, 0, 1], [3, 4, 4]], np.int8)
    result = compare_int8(expected, found)
    # The second image's label is now the last class. Ties use the first class, so the third label differs too.
    assert (result.images, result.score_bytes, result.differing_bytes, result.differing_images) == (3, 9, 3, 2)
    assert result.largest_difference == 255
    assert result.agreement == pytest.approx(1 / 3)
    assert not result.is_equal
    assert not result.is_close


def test_counts_of_float_scores_by_hand():
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


def test_dequantized_scores_are_converted_back():
    quantization = Quantization(scale=1 / 256, zero_point=-128)
    numbers = np.arange(-128, 128).astype(np.int8)
    real = ((numbers.astype(np.float32) + 128) / 256).astype(np.float32)
    assert (as_numbers(real, quantization) == numbers).all()
    assert as_numbers(real, quantization).dtype == np.int8
    assert as_numbers(numbers, quantization) is numbers
    for wrong in (real + 0.001, real + 1.0, real * np.float32(np.nan)):
        with raises("model-file-scores"):
            as_numbers(wrong, quantization)


@pytest.mark.parametrize(
    "found",
    [np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float32), np.zeros((3, 3), np.float64), np.zeros(3, np.float32)],
)
def test_rejects_scores_of_another_shape_or_type(found):
    expected = np.zeros((3, 3), np.float32)
    with raises("model-file-scores", "float32 [3, 3]"):
        compare_float(expected, found)
    with raises("model-file-scores", "int8 [3, 3]"):
        compare_int8(expected.astype(np.int8), found)


def test_rejects_scores_that_are_not_finite():
    expected = np.zeros((2, 3), np.float32)
    for value in (np.nan, np.inf):
        with raises("model-file-scores"):
            compare_float(expected, np.full((2, 3), value, np.float32))


def test_rejects_zero_images():
    with raises("usage"):
        compare_int8(np.zeros((0, 3), np.int8), np.zeros((0, 3), np.int8))


def test_rejects_intermediate_results_of_another_size(graph, images):
    class Wrong(ReferenceRunner):
        def tensors(self, image):
            return {"conv1": np.zeros((1, 2, 2, 4), np.int8)}

    with raises("model-file", "conv1"):
        first_difference(graph, Wrong(graph).tensors(images[:1]), images[:1], [0])
