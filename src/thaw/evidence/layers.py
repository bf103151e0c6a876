"""The first layer of an exported network whose output is wrong for its input.

It does not depend on the runtime: a runner takes images and returns scores.

Shapes: N images, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from thaw.errors import ModelFileError
from thaw.graph.graph import Graph
from thaw.graph.ops import Operation
from thaw.graph.tensors import Array, Interval, Tensor
from thaw.quoting import shown

Images: TypeAlias = npt.NDArray[np.uint8]
Allowed: TypeAlias = Callable[[Operation, Sequence[Tensor], Sequence[Array], Sequence[Array]], Interval]
"""The range of an operation's output, given its input tensors and their smallest and largest numbers."""


class Runner(Protocol):
    """An exported network in a runtime."""

    def run(self, images: Images) -> Array:
        """Scores [N, K], float32 or int8, for uint8 [N, H, W, C]."""

    def tensors(self, image: Images) -> Mapping[str, Array]:
        """The available intermediate results by tensor name in the graph, [1, ...], for uint8 [1, H, W, C]."""


@dataclass(frozen=True, kw_only=True)
class FirstDifference:
    """The first difference from the reference interpreter, in the graph's order.

    Attributes:
        layer: the operation whose output differs.
        kind: kind of the operation, such as "conv2d".
        fused: operations before it whose results are not available, any of which may be the cause.
        tensor: the output of `layer`.
        image: index of the image, from 0.
        index: index of the first number that differs, (row, column, channel) or (channel,).
        expected: the correct number for the layer's input; the nearest one if several are allowed.
        found: the runtime's number.
    """

    layer: str
    kind: str
    fused: tuple[str, ...]
    tensor: str
    image: int
    index: tuple[int, ...]
    expected: int
    found: int

    def __str__(self) -> str:
        with_ = f" (with {', '.join(self.fused)})" if self.fused else ""
        place = ", ".join(map(str, self.index))
        return (
            f"first in {self.layer}{with_}, image {self.image}, at [{place}]: "
            f"expected {self.expected}, found {self.found}"
        )

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {**asdict(self), "fused": list(self.fused), "index": list(self.index)}


def exact(op: Operation, reads: Sequence[Tensor], lows: Sequence[Array], _highs: Sequence[Array]) -> Interval:
    """The output of an operation by the specification: one number per position."""
    made = op.execute(reads, lows)
    return made, made


def admitted(op: Operation, reads: Sequence[Tensor], lows: Sequence[Array], highs: Sequence[Array]) -> Interval:
    """The output of an operation in any runtime that rounds correctly."""
    return op.admitted(reads, lows, highs)


def first_difference(
    graph: Graph, found: Mapping[str, Array], images: Images, numbers: Sequence[int], *, allowed: Allowed = exact
) -> FirstDifference | None:
    """The first layer, in the graph's order, whose output is not allowed for its input.

    Each layer is checked on the input that the runtime computed, so that earlier errors do not count. An unavailable
    input may have any allowed value.

    Args:
        graph: int8.
        found: intermediate results of the runtime, [N, ...] by the graph's names.
        images: uint8 [N, H, W, C].
        numbers: indices of the N images, for `FirstDifference.image`.
        allowed: `exact` or `admitted`.

    Returns:
        None if all available results are correct.

    Raises:
        ModelFileError: when an intermediate result has another size.
    """
    lows: dict[str, Array] = {graph.input: images}
    highs: dict[str, Array] = {graph.input: images}
    for op in graph.ops:
        reads = [graph.tensor(name) for name in op.inputs]
        low, high = allowed(op, reads, [lows[name] for name in op.inputs], [highs[name] for name in op.inputs])
        lows[op.output], highs[op.output] = low, high
        if op.output not in found:
            continue
        seen = np.asarray(found[op.output])
        if seen.size != low.size:
            raise ModelFileError(f"{shown(op.output)} has {seen.size} numbers: expected {low.size}")
        seen = seen.reshape(low.shape).astype(np.int64)
        off = (seen < low) | (seen > high)
        if off.any():
            row, *index = (int(places[0]) for places in np.nonzero(off))
            value = int(seen[row][tuple(index)])
            return FirstDifference(
                layer=op.name,
                kind=op.kind,
                fused=tuple(reversed(list(_unseen_before(graph, op, found)))),
                tensor=op.output,
                image=numbers[row],
                index=tuple(index),
                expected=int(np.clip(value, low[row][tuple(index)], high[row][tuple(index)])),
                found=value,
            )
        lows[op.output] = highs[op.output] = seen.astype(low.dtype)
    return None


def _unseen_before(graph: Graph, op: Operation, found: Mapping[str, Array]) -> Iterator[str]:
    """Operations between `op` and the last comparable results, nearest first."""
    writers = {writer.output: writer for writer in graph.ops}
    waiting = [name for name in op.inputs if name in writers and name not in found]
    while waiting:
        writer = writers[waiting.pop()]
        yield writer.name
        waiting += [name for name in writer.inputs if name in writers and name not in found]
