"""Random small graphs over all operations and odd shapes, float and int8, for tests that compare runtimes.

Shapes: N images, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from thaw.graph.calibrate import METHODS, calibrate
from thaw.graph.graph import Graph
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
    Reshape,
    Scale,
    Softmax,
    Weighted,
)
from thaw.graph.quantize import quantize
from thaw.graph.tensors import IMAGE, LOGITS, PROBABILITIES, Tensor

EXTREMES = (
    "zero points at -128",
    "zero points at 127",
    "saturation",
    "wide ranges",
    "narrow ranges",
    "all weights zero",
    "one channel zero",
    "largest weights alike",
    "weights of very different size",
    "large biases",
)


def random_graph(rng: np.random.Generator) -> Graph:
    """A float32 graph of 3 to about 20 operations, from uint8 (H, W, C) with sides from 1 to 12 and C = 1 or 3.

    The outputs are those of a lowered network, "logits" and "probabilities", in some graphs with fewer or more outputs
    (logits only, or the index of the largest score).
    """
    sketch = Sketch(rng)
    for _ in range(int(rng.integers(0, 6))):
        sketch.extend()
    return sketch.finish()


def random_int8_graph(rng: np.random.Generator, *, extreme: str | None = None) -> Graph:
    """The int8 graph of a `random_graph`, calibrated on random images.

    Args:
        rng: where all choices come from.
        extreme: one of `EXTREMES`, which weights or ranges are changed to.
    """
    return quantize(*random_ranges(rng, extreme))


def random_ranges(rng: np.random.Generator, extreme: str | None = None) -> tuple[Graph, dict[str, tuple[float, float]]]:
    """The input of `random_int8_graph`: a float32 graph, and the ranges of its tensors."""
    graph = random_graph(rng)
    if extreme in _CHANGED_WEIGHTS:
        graph = _with_weights(graph, rng, _CHANGED_WEIGHTS[extreme])
    ranges = calibrate(graph, random_images(rng, graph, 8))[METHODS[int(rng.integers(len(METHODS)))]]
    if extreme in _CHANGED_RANGES:
        change = _CHANGED_RANGES[extreme]
        ranges = {name: change(low, high) for name, (low, high) in ranges.items()}
    return graph, ranges


def random_images(rng: np.random.Generator, graph: Graph, count: int) -> np.ndarray:
    """uint8 [N, H, W, C] for the graph: noise, but the first all 0, the second all 255, the third only those two."""
    images = rng.integers(0, 256, (count, *graph.tensor(graph.input).shape), dtype=np.uint8)
    images[:1] = 0
    images[1:2] = 255
    images[2:3] = np.where(images[2:3] < 128, 0, 255)
    return images


class Sketch:
    """A float graph that grows by one random operation at a time."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        side = (1, 2, 3, 4, 5, 7, 8, 9, 12)
        shape = (self.pick(side), self.pick(side), self.pick((1, 3)))
        self.tensors = {IMAGE: Tensor(name=IMAGE, shape=shape, dtype="uint8")}
        self.ops = []
        mean, std = rng.uniform(0, 1, shape[2]), rng.uniform(0.1, 0.6, shape[2])
        self.now = self.add(Scale, inputs=(IMAGE,), mean=tuple(map(float, mean)), std=tuple(map(float, std)))

    def pick(self, choices):
        return choices[int(self.rng.integers(len(choices)))]

    @property
    def shape(self):
        return self.tensors[self.now].shape

    def add(self, kind, *, inputs=None, output=None, **settings) -> str:
        name = f"{kind.kind}{len(self.ops)}"
        op = kind(name=name, inputs=inputs or (self.now,), output=output or name, **settings)
        self.tensors[op.output] = op.infer([self.tensors[read] for read in op.inputs])
        self.ops.append(op)
        self.now = op.output
        return op.output

    def normal(self, *shape, spread: float = 1.0):
        """Float32 with a different magnitude per channel (first axis)."""
        sizes = 2.0 ** self.rng.uniform(-2, 2, (shape[0], *[1] * (len(shape) - 1)))
        return (self.rng.normal(0, spread, shape) * sizes).astype(np.float32)

    def activation(self) -> str:
        return self.pick(("none", "relu"))

    def window(self, most: int = 4) -> tuple[int, int]:
        rows, columns, _ = self.shape
        return int(self.rng.integers(1, min(rows, most) + 1)), int(self.rng.integers(1, min(columns, most) + 1))

    def stride(self) -> tuple[int, int]:
        return self.pick(((1, 1), (1, 1), (2, 2), (2, 1), (1, 3)))

    def geometry(self) -> tuple[tuple[int, int], dict]:
        """A kernel, padding and stride, with at least one window."""
        kernel = self.pick((self.window(), (1, 1), (3, 3)))
        stride = self.stride()
        sides = []
        for size, length, step in zip(self.shape[:2], kernel, stride, strict=True):
            total = max((-(-size // step) - 1) * step + length - size, 0)
            same = (total // 2, total - total // 2)
            odd = (int(self.rng.integers(length)), int(self.rng.integers(length)))
            choices = [pair for pair in ((0, 0), same, odd) if size + sum(pair) >= length and max(pair) < length]
            sides.append(choices)
        if not all(sides):
            return (1, 1), {"stride": stride}
        padding = (*self.pick(sides[0]), *self.pick(sides[1]))
        return kernel, {"padding": padding, "stride": stride}

    def conv(self, *, channels: int | None = None) -> str:
        (rows, columns), settings = self.geometry()
        filters = channels or self.pick((1, 2, 3, 4, 5, 8))
        read = self.shape[2]
        weights = self.normal(filters, rows, columns, read, spread=(rows * columns * read) ** -0.5)
        return self.add(
            Conv2d, weights=weights, bias=self.normal(filters, spread=0.3), activation=self.activation(), **settings
        )

    def depthwise(self) -> str:
        (rows, columns), settings = self.geometry()
        weights = np.moveaxis(self.normal(self.shape[2], rows, columns, spread=(rows * columns) ** -0.5), 0, 2)
        bias = self.normal(self.shape[2], spread=0.3)
        return self.add(DepthwiseConv2d, weights=weights, bias=bias, activation=self.activation(), **settings)

    def pool(self) -> str:
        return self.add(self.pick((MaxPool2d, AveragePool2d)), kernel=self.window(), stride=self.stride())

    def relu(self) -> str:
        return self.add(Relu)

    def reshape(self) -> str:
        rows, columns, channels = self.shape
        return self.add(Reshape, shape=(columns, rows, channels))

    def pointwise(self, channels: int) -> str:
        weights = self.normal(channels, 1, 1, self.shape[2], spread=self.shape[2] ** -0.5)
        bias = self.normal(channels, spread=0.3)
        return self.add(Conv2d, weights=weights, bias=bias, activation=self.activation())

    def residual(self) -> str:
        """A branch that is added to its input or to a second branch, or a tensor that is added to itself."""
        start, channels = self.now, self.shape[2]
        way = int(self.rng.integers(3))
        first = start if way == 0 else self.pointwise(channels)
        self.now = start
        second = start if way == 1 else self.pointwise(channels)
        return self.add(Add, inputs=(first, second), activation=self.activation())

    def branches(self) -> str:
        """One to three branches from one tensor with different scales, concatenated along the channels."""
        start, ends = self.now, []
        for _ in range(int(self.rng.integers(1, 4))):
            self.now = start
            way = int(self.rng.integers(4))
            if way == 0:
                self.relu()
            elif way == 1:
                self.add(MaxPool2d, kernel=(1, 1), stride=(1, 1))
            elif way == 2:
                self.pointwise(self.pick((1, 2, 5)))
            ends.append(self.now)
        return self.add(Concat, inputs=tuple(ends))

    def extend(self) -> None:
        steps = (self.conv, self.conv, self.depthwise, self.pool, self.relu, self.reshape, self.residual, self.branches)
        self.pick(steps)()

    def flatten(self) -> None:
        if self.rng.random() < 0.3:
            self.add(AveragePool2d, kernel=self.shape[:2], stride=(1, 1))
        self.add(Reshape, shape=(int(np.prod(self.shape)),))

    def dense(self, size: int, *, output: str | None = None, activation: str = "none") -> str:
        read = self.shape[0]
        weights = self.normal(size, read, spread=read**-0.5)
        bias = self.normal(size, spread=0.3)
        return self.add(Dense, output=output, weights=weights, bias=bias, activation=activation)

    def finish(self) -> Graph:
        """Scores: dense, a concatenation of two probability vectors, or a sum of two vectors."""
        self.flatten()
        start, classes = self.now, self.pick((1, 2, 3, 7, 10))
        way = int(self.rng.integers(4))
        if way == 1:
            self.dense(self.pick((1, 4, 6)), activation="relu")
        elif way == 2:
            ends = []
            for _ in range(2):
                self.now = start
                self.dense(self.pick((2, 3)))
                ends.append(self.add(Softmax) if self.rng.random() < 0.7 else self.now)
            self.add(Concat, inputs=tuple(ends))
        elif way == 3:
            first = self.dense(5)
            self.now = start
            self.add(Add, inputs=(first, self.dense(5, activation="relu")), activation=self.activation())
            self.relu()
        self.dense(classes, output=LOGITS)
        outputs = [LOGITS]
        end = self.rng.random()
        if end < 0.8:
            outputs.append(self.add(Softmax, output=PROBABILITIES))
        if end < 0.15 or end > 0.9:
            self.now = LOGITS
            outputs.append(self.add(ArgMax))
        return Graph(tensors=tuple(self.tensors.values()), ops=tuple(self.ops), input=IMAGE, outputs=tuple(outputs))


def _with_weights(
    graph: Graph, rng: np.random.Generator, change: Callable[[np.random.Generator, Weighted], Weighted]
) -> Graph:
    return replace(graph, ops=tuple(change(rng, op) if isinstance(op, Weighted) else op for op in graph.ops))


def _all_zero(_rng, op):
    return replace(op, weights=np.zeros_like(op.weights))


def _one_channel_zero(rng, op):
    weights, bias = np.moveaxis(op.weights, op.channel_axis, 0).copy(), op.bias.copy()
    channel = int(rng.integers(op.channels))
    weights[channel], bias[channel] = 0, 0
    return replace(op, weights=np.moveaxis(weights, 0, op.channel_axis), bias=bias)


def _alike(rng, op):
    # All weights are then +-127.
    return replace(op, weights=np.full_like(op.weights, rng.choice([-0.5, 0.5])))


def _very_different(rng, op):
    sizes = (10.0 ** rng.uniform(-12, 3, op.channels)).astype(np.float32)
    weights = np.moveaxis(np.moveaxis(op.weights, op.channel_axis, -1) * sizes, -1, op.channel_axis)
    return replace(op, weights=np.ascontiguousarray(weights), bias=op.bias * sizes)


def _large_biases(rng, op):
    return replace(op, bias=(op.bias * 10.0 ** rng.uniform(0, 8, op.channels)).astype(np.float32))


_CHANGED_WEIGHTS = {
    "all weights zero": _all_zero,
    "one channel zero": _one_channel_zero,
    "largest weights alike": _alike,
    "weights of very different size": _very_different,
    "large biases": _large_biases,
}

_CHANGED_RANGES = {
    "zero points at -128": lambda low, high: (0.0, max(high, -low, 1e-3)),
    "zero points at 127": lambda low, high: (min(low, -high, -1e-3), 0.0),
    "saturation": lambda low, high: (low / 8, high / 8),
    "wide ranges": lambda low, high: (low * 1e6 - 1, high * 1e7 + 1),
    "narrow ranges": lambda low, high: (low * 1e-7, high * 1e-7),
}
