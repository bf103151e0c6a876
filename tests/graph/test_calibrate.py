"""Calibration, compared with brute force: the observed range, and the range with the smallest rounding error."""

from __future__ import annotations

import numpy as np
import pytest
from error_matching import raises
from graph_samples import random_graph, random_images

from thaw.graph.calibrate import METHODS, calibrate
from thaw.graph.graph import Graph
from thaw.graph.interpret import trace
from thaw.graph.ops import Dense, Reshape, Scale
from thaw.graph.tensors import Tensor, quantization_of

STEPS = 32


def one_layer(weights, bias=None, activation="none", pixels=4):
    """A graph of one dense layer on (1, pixels, 1) images whose pixels are scaled to 0 to 255."""
    weights = np.array(weights, np.float32)
    bias = np.zeros(len(weights), np.float32) if bias is None else np.array(bias, np.float32)
    scale = Scale(name="scale", inputs=("image",), output="scale", mean=(0.0,), std=(1 / 255,))
    flat = Reshape(name="flat", inputs=("scale",), output="flat", shape=(pixels,))
    dense = Dense(name="dense", inputs=("flat",), output="y", weights=weights, bias=bias, activation=activation)
    tensors = [Tensor(name="image", shape=(1, pixels, 1), dtype="uint8")]
    for op in (scale, flat, dense):
        tensors.append(op.infer([tensors[-1]]))
    return Graph(tensors=tuple(tensors), ops=(scale, flat, dense), input="image", outputs=("y",))


def images_of(rows):
    return np.array(rows, np.uint8)[:, None, :, None]


def squared_error(values, span):
    """The error of values that are quantized to int8 on the scale of this range."""
    quantization = quantization_of(span)
    numbers = np.clip(np.rint(values / quantization.scale) + quantization.zero_point, -128, 127)
    return float(((quantization.scale * (numbers - quantization.zero_point) - values) ** 2).sum())


def test_minmax_is_the_observed_range():
    graph = one_layer([[1, 0, 0, 0], [0, -1, 0, 0]])
    images = images_of([[7, 3, 0, 0], [250, 90, 0, 0], [30, 111, 5, 5]])
    low, high = calibrate(graph, images)["minmax"]["y"]
    assert low == pytest.approx(-111)
    assert high == pytest.approx(250)


def test_minmax_spans_all_batches_of_random_graphs(monkeypatch):
    monkeypatch.setattr("thaw.graph.calibrate.BATCH", 3)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        graph = random_graph(rng)
        images = random_images(rng, graph, 10)
        made = calibrate(graph, images)
        assert set(made) == set(METHODS)
        values = trace(graph, images)
        for ranges in made.values():
            assert set(ranges) == {op.output for op in graph.ops if op.output_scale == "chosen"}
        for name, (low, high) in made["minmax"].items():
            np.testing.assert_allclose((low, high), (values[name].min(), values[name].max()), rtol=1e-5, atol=1e-6)
            cut_low, cut_high = made["mse"][name]
            assert low <= cut_low <= cut_high <= high


@pytest.mark.parametrize("spread", ["normal", "laplace", "one outlier", "relu", "uniform", "negative"])
def test_mse_range_is_nearly_optimal(spread):
    rng = np.random.default_rng(5)
    # An output is the weighted sum of two pixels: 256 gray levels times 1 and 1/256 give values of any distribution.
    wanted = {
        "normal": rng.normal(0, 1000, 4000),
        "laplace": rng.laplace(0, 500, 4000),
        "one outlier": np.append(rng.normal(0, 1000, 3999), 20_000),
        "relu": rng.laplace(-500, 900, 4000),
        "uniform": rng.uniform(-10_000, 10_000, 4000),
        "negative": -np.abs(rng.laplace(0, 500, 4000)),
    }[spread]
    whole = np.clip(np.rint(wanted) + 32_768, 0, 65_535).astype(np.int64)
    graph = one_layer([[256, 1]], bias=[-32_768], activation="relu" if spread == "relu" else "none", pixels=2)
    images = images_of(np.stack([whole >> 8, whole & 255], axis=1))
    values = trace(graph, images)["y"].astype(np.float64)
    ranges = calibrate(graph, images)
    low, high = ranges["minmax"]["y"]
    ends = np.arange(1, STEPS + 1) / STEPS
    best = min(squared_error(values, (low * cut_low, high * cut_high)) for cut_low in ends for cut_high in ends)
    made = squared_error(values, ranges["mse"]["y"])
    assert made <= 1.05 * best
    assert made <= 1.01 * squared_error(values, (low, high))
    if spread == "laplace":
        assert made < squared_error(values, (low, high))
    if spread == "uniform":
        np.testing.assert_allclose(ranges["mse"]["y"], (low, high), rtol=0.02)


def test_same_images_give_the_same_ranges():
    rng = np.random.default_rng(2)
    graph = random_graph(rng)
    images = random_images(rng, graph, 20)
    assert calibrate(graph, images) == calibrate(graph, images.copy())


@pytest.mark.parametrize("level", [0, 1, 200])
@pytest.mark.parametrize("bias", [0.0, 1e-30, -5.0, 1e20])
def test_constant_tensor(level, bias):
    graph = one_layer([[1, 0, 0, 0]], bias=[bias])
    ranges = calibrate(graph, images_of([[level] * 4] * 3))
    expected = np.float32(level + bias)
    for method in METHODS:
        np.testing.assert_allclose(ranges[method]["y"], (expected, expected), rtol=1e-6)


def test_rejects_zero_images():
    with raises("usage-graph-calibrate"):
        calibrate(one_layer([[1, 0, 0, 0]]), np.zeros((0, 1, 4, 1), np.uint8))


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("last", [1e38, -1e38])
def test_rejects_values_that_are_not_finite(monkeypatch, last):
    monkeypatch.setattr("thaw.graph.calibrate.BATCH", 1)
    # Infinity, and infinity minus infinity; the first and the last image are valid.
    graph = one_layer([[1e38, last, 0, 0]])
    with raises("usage-graph-calibrate", "'y'"):
        calibrate(graph, images_of([[0, 0, 0, 0], [255, 255, 0, 0], [0, 0, 0, 0]]))
