"""Trainable graphs are byte-identical to the reference interpreter, with the gradients of the float graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graph_samples import EXTREMES, random_graph, random_images, random_ranges
from torch import nn

from thaw.data.batches import normalize, to_unit
from thaw.data.images import InputSpec
from thaw.graph import fixed_point
from thaw.graph.calibrate import calibrate
from thaw.graph.fake_quantize import multiply_by_quantized_multiplier
from thaw.graph.graph import Graph
from thaw.graph.interpret import run, trace
from thaw.graph.ops import Conv2d, Dense, Reshape, Scale
from thaw.graph.tensors import Tensor
from thaw.graph.trainable import TrainableGraph


def as_batch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


def as_graph(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).detach().numpy()


@pytest.mark.parametrize("seed", range(40))
def test_numbers_equal_the_reference_interpreter(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(rng)
    ranges = calibrate(graph, random_images(rng, graph, 8))[("minmax", "mse")[seed % 2]]
    module = TrainableGraph(graph, ranges)
    int8, images = module.int8_graph(), random_images(rng, graph, 16)
    found = module.numbers(int8, as_batch(images))
    for name, expected in trace(int8, images).items():
        np.testing.assert_array_equal(as_graph(found[name]), expected, err_msg=name)


@pytest.mark.parametrize("extreme", EXTREMES)
def test_numbers_equal_the_reference_interpreter_at_extreme_values(extreme):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        graph, ranges = random_ranges(rng, extreme)
        module = TrainableGraph(graph, ranges)
        int8, images = module.int8_graph(), random_images(rng, graph, 16)
        with torch.no_grad():
            found = module.numbers(int8, as_batch(images))
        for name, expected in trace(int8, images).items():
            np.testing.assert_array_equal(as_graph(found[name]), expected, err_msg=f"{seed} {name}")


def test_logits_of_normalized_images_equal_the_reference_interpreter():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        graph = random_graph(rng)
        module = TrainableGraph(graph, calibrate(graph, random_images(rng, graph, 8))["mse"])
        images = random_images(rng, graph, 32)
        height, width, channels = graph.tensor(graph.input).shape
        scale = graph.ops[0]
        input_spec = InputSpec(height=height, width=width, channels=channels, mean=scale.mean, std=scale.std)
        logits = module(normalize(to_unit(torch.from_numpy(images)), input_spec))
        int8 = module.int8_graph()
        quantization = int8.tensor("logits").quantization
        expected = (run(int8, images)["logits"].astype(np.float64) - quantization.zero_point) * quantization.scale
        np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-6)
        np.testing.assert_array_equal(
            torch.round(logits / quantization.scale).detach().numpy() + quantization.zero_point,
            run(int8, images)["logits"],
        )


def test_multiplication_equals_the_reference_interpreter_for_every_shift_and_sign():
    rng = np.random.default_rng(3)
    ends = np.array([-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 1])
    for shift in range(-31, 31):
        # Values shifted to the left must stay within int32, as the multipliers guarantee.
        most = 2 ** (31 - max(shift, 0)) - 1
        values = np.clip(np.concatenate([ends, rng.integers(-most, most, 500)]), -most, most)
        halves = np.arange(-33, 34) * 2 ** max(-shift - 1, 0)
        values = np.clip(np.concatenate([values, halves]), -most, most).astype(np.int64)
        for multiplier in (0, 2**30, 2**31 - 1, int(rng.integers(2**30, 2**31))):
            found = multiply_by_quantized_multiplier(torch.tensor(values), multiplier, shift)
            expected = fixed_point.multiply_by_quantized_multiplier(values, multiplier, shift)
            np.testing.assert_array_equal(found.numpy(), expected, err_msg=f"{multiplier} {shift}")


def two_layers() -> tuple[Graph, dict]:
    """A convolution and a dense layer with ranges that do not clip."""
    rng = np.random.default_rng(1)
    image = Tensor(name="image", shape=(5, 5, 1), dtype="uint8")
    ops = (
        Scale(name="scale", inputs=("image",), output="scale", mean=(0.4,), std=(0.3,)),
        Conv2d(
            name="conv",
            inputs=("scale",),
            output="conv",
            weights=rng.normal(0, 0.3, (4, 5, 5, 1)).astype(np.float32),
            bias=rng.normal(0, 0.3, 4).astype(np.float32),
        ),
        Reshape(name="flatten", inputs=("conv",), output="flatten", shape=(4,)),
        Dense(
            name="dense",
            inputs=("flatten",),
            output="logits",
            weights=rng.normal(0, 0.5, (3, 4)).astype(np.float32),
            bias=rng.normal(0, 0.5, 3).astype(np.float32),
        ),
    )
    tensors = {"image": image}
    for op in ops:
        tensors[op.output] = op.infer([tensors[name] for name in op.inputs])
    graph = Graph(tensors=tuple(tensors.values()), ops=ops, input="image", outputs=("logits",))
    return graph, {"conv": (-20.0, 20.0), "logits": (-40.0, 40.0)}


def test_gradients_are_those_of_the_float_network_up_to_rounding():
    graph, ranges = two_layers()
    module = TrainableGraph(graph, ranges)
    images = random_images(np.random.default_rng(2), graph, 64)
    x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0 - 0.4) / 0.3
    weights = [torch.tensor(graph.ops[index].weights, requires_grad=True) for index in (1, 3)]
    biases = [torch.tensor(graph.ops[index].bias, requires_grad=True) for index in (1, 3)]
    hidden = torch.einsum("bchw,ohwc->bo", x, weights[0]) + biases[0]
    direction = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    ((hidden @ weights[1].T + biases[1]) * direction).sum().backward()
    (module(x) * direction).sum().backward()
    expected = [*weights, *biases]
    found = [*module.weights, *module.biases]
    for parameter, other in zip(found, expected, strict=True):
        cosine = torch.cosine_similarity(parameter.grad.flatten(), other.grad.flatten(), dim=0)
        assert cosine > 0.998
        assert parameter.grad.norm() / other.grad.norm() == pytest.approx(1.0, abs=0.02)


def test_clipped_values_get_no_gradient():
    graph, ranges = two_layers()
    module = TrainableGraph(graph, {**ranges, "conv": (0.0, 1e-6)})
    images = np.full((4, 5, 5, 1), 255, np.uint8)
    x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0 - 0.4) / 0.3
    module(x).sum().backward()
    assert float(module.weights[0].grad.abs().max()) == 0.0
    assert float(module.biases[1].grad.abs().max()) > 0.0


@pytest.mark.parametrize("seed", range(12))
def test_training_reaches_every_operation(seed):
    """Every parameter gets a finite gradient, and both graphs agree after a step."""
    rng = np.random.default_rng(seed)
    graph = random_graph(rng)
    module = TrainableGraph(graph, calibrate(graph, random_images(rng, graph, 8))["minmax"])
    images = random_images(rng, graph, 16)
    height, width, channels = graph.tensor(graph.input).shape
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255.0)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (graph.ops[0].mean, graph.ops[0].std))
    logits = module((x - mean) / std)
    labels = torch.from_numpy(rng.integers(0, logits.shape[1], 16))
    nn.functional.cross_entropy(logits, labels).backward()
    for parameter in module.parameters():
        assert torch.isfinite(parameter.grad).all()
    torch.optim.SGD(module.parameters(), lr=0.05).step()
    int8 = module.int8_graph()
    with torch.no_grad():
        found = module.numbers(int8, as_batch(images))
    for name, expected in trace(int8, images).items():
        np.testing.assert_array_equal(as_graph(found[name]), expected, err_msg=name)
    assert int8.tensor(int8.input).shape == (height, width, channels)
