"""A small int8 network, incorrect variants of it, and a runner that executes a graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from thaw.graph.graph import Graph
from thaw.graph.interpret import run, trace
from thaw.graph.ops import Conv2d, Dense, MaxPool2d, Operation, Requantize, Reshape, Softmax
from thaw.graph.tensors import IMAGE, LOGITS, PROBABILITIES, Quantization, Tensor


class ReferenceRunner:
    """A runner that executes a graph and returns only some of its intermediate results."""

    def __init__(self, graph: Graph, hidden: tuple[str, ...] = ()) -> None:
        self.graph = graph
        self.hidden = hidden

    def run(self, images):
        return run(self.graph, images)[self.graph.outputs[-1]]

    def tensors(self, image):
        return {name: values for name, values in trace(self.graph, image).items() if name not in self.hidden}


def network(rng: np.random.Generator) -> Graph:
    """Requantize, convolution, pooling, convolution, flatten, dense, softmax; int8, for a 9x9 image."""

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


def corrupted_weights(op: Operation) -> Operation:
    """The operation with its largest weight negated."""
    weights = op.weights.copy()
    place = np.unravel_index(np.abs(weights).argmax(), weights.shape)
    weights[place] = -weights[place]
    return replace(op, weights=weights)


def corrupted(graph: Graph, layer: str) -> Graph:
    """The same graph with the largest weight of one layer negated."""
    return replace(graph, ops=tuple(corrupted_weights(op) if op.name == layer else op for op in graph.ops))
