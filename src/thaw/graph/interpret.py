"""The reference interpreter: executes float32 and int8 graphs in NumPy, a batch at a time.

Exported artifacts must return the bytes that an int8 graph gives here. The arithmetic is that of the LiteRT (TFLite)
int8 specification (`thaw.graph.fixed_point`); no other runtime is used.

Shapes: N images, H rows, W columns, C channels, K classes; a batch of a tensor (H, W, C) is [N, H, W, C].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from thaw.errors import UsageError
from thaw.finite import check_finite
from thaw.graph.graph import Graph
from thaw.graph.tensors import Array, Interval

BATCH = 250


def run(graph: Graph, images: npt.NDArray[np.uint8], *, batch: int = BATCH) -> dict[str, Array]:
    """The graph's outputs by name, [N, ...] with the tensor's dtype.

    Args:
        graph: float32 or int8.
        images: uint8 [N, H, W, C] of the graph's input shape.
        batch: images at a time, at least 1. It affects memory, but not the result of an int8 graph.

    Raises:
        UsageError: for images of another dtype or shape.
        NotFiniteError: when a float graph computes NaN or infinity.
    """
    check_images(images, graph.tensor(graph.input).shape)
    made: dict[str, Array] = {}
    for name in graph.outputs:
        tensor = graph.tensor(name)
        made[name] = np.empty((len(images), *tensor.shape), tensor.dtype)
    for start in range(0, len(images), batch):
        # Overflow is detected in the result, which is checked below.
        with np.errstate(over="ignore", invalid="ignore"):
            values = trace(graph, images[start : start + batch], keep=graph.outputs)
        for name in graph.outputs:
            made[name][start : start + batch] = values[name]
    for answers in made.values():
        check_finite(answers, "the network")
    return made


def trace(graph: Graph, images: npt.NDArray[np.uint8], *, keep: Sequence[str] | None = None) -> dict[str, Array]:
    """Every tensor of the graph by name (or those in `keep`), [N, ...], for images uint8 [N, H, W, C] in one batch."""
    check_images(images, graph.tensor(graph.input).shape)
    last_read = {name: index for index, op in enumerate(graph.ops) for name in op.inputs}
    values: dict[str, Array] = {graph.input: np.asarray(images)}
    for index, op in enumerate(graph.ops):
        reads = [graph.tensor(name) for name in op.inputs]
        values[op.output] = op.execute(reads, [values[name] for name in op.inputs])
        if keep is not None:
            for name in op.inputs:
                if last_read[name] == index and name not in keep:
                    values.pop(name, None)
    return values


def score_interval(graph: Graph, images: npt.NDArray[np.uint8]) -> Interval:
    """The smallest and largest scores [N, K] that correctly rounding runtimes can give (`thaw.graph.rounding`).

    Args:
        graph: int8; its last output counts.
        images: uint8 [N, H, W, C], in one batch.
    """
    lows: dict[str, Array] = {graph.input: images}
    highs: dict[str, Array] = {graph.input: images}
    for op in graph.ops:
        reads = [graph.tensor(name) for name in op.inputs]
        lows[op.output], highs[op.output] = op.admitted(
            reads, [lows[name] for name in op.inputs], [highs[name] for name in op.inputs]
        )
    return lows[graph.outputs[-1]], highs[graph.outputs[-1]]


def check_images(images: Array, shape: Sequence[int]) -> None:
    """Check that `images` are uint8 [N, H, W, C] for a network that takes `shape`, (H, W, C).

    Raises:
        UsageError: when they are not.
    """
    found = np.asarray(images)
    if found.dtype != np.uint8 or found.ndim != 4 or found.shape[1:] != tuple(shape):
        expected = ", ".join(map(str, shape))
        raise UsageError(
            f"images are {found.dtype} {list(found.shape)}: expected uint8 [N, {expected}]", code="usage-images"
        )
