"""An artifact layer by layer: which is the first that does not give what it may give on the numbers that it had.

Nothing here knows a runtime: a runner is whatever takes images and gives scores.

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
from thaw.graph.interpret import execute
from thaw.graph.ops import Op
from thaw.graph.rounding import Interval
from thaw.graph.tensors import Tensor
from thaw.quoting import shown

Array: TypeAlias = npt.NDArray[Any]
Images: TypeAlias = npt.NDArray[np.uint8]
Allowed: TypeAlias = Callable[[Op, Sequence[Tensor], Sequence[Array], Sequence[Array]], Interval]
"""What an operation may write, by the tensors that it reads, their least numbers, and their largest."""


class Runner(Protocol):
    """An artifact in its runtime."""

    def run(self, images: Images) -> Array:
        """Scores [N, K], float32 or int8, for uint8 [N, H, W, C]."""

    def tensors(self, image: Images) -> Mapping[str, Array]:
        """What can be had of the intermediate results, [1, ...] by the graph's names, for uint8 [1, H, W, C]."""


@dataclass(frozen=True, kw_only=True)
class FirstDifference:
    """Where an artifact leaves the reference interpreter for the first time, in the graph's order.

    Attributes:
        layer: the operation after which the numbers differ.
        kind: the operation's, such as "conv2d".
        fused: operations before it whose results cannot be had, so that it may be any of them as well.
        tensor: what `layer` writes.
        image: which of the images, from 0.
        index: place in the tensor, (row, column, channel) or (channel,), of the first number that differs.
        expected: what it may have there, from what the artifact had before; of several numbers, the nearest.
        found: what the artifact has there.
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


def exact(op: Op, reads: Sequence[Tensor], lows: Sequence[Array], _highs: Sequence[Array]) -> Interval:
    """What the specification allows an operation on known inputs: one number at each place."""
    made = execute(op, reads, lows)
    return made, made


def first_difference(
    graph: Graph, found: Mapping[str, Array], images: Images, numbers: Sequence[int], *, allowed: Allowed = exact
) -> FirstDifference | None:
    """The first layer, in the graph's order, that does not give what it may give on the numbers that it had.

    Each layer is given what the artifact had before it, so that what an earlier one did is not laid at its door. What
    cannot be seen is all that is allowed.

    Args:
        graph: int8.
        found: what the artifact had inside it, [N, ...] by the graph's names.
        images: uint8 [N, H, W, C].
        numbers: of the N images, for the record.
        allowed: `exact`, or `thaw.graph.rounding.admitted`.

    Returns:
        None when everything that can be seen is right.

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
            raise ModelFileError(f"{shown(op.output)} has {seen.size} numbers inside it: expected {low.size}")
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


def _unseen_before(graph: Graph, op: Op, found: Mapping[str, Array]) -> Iterator[str]:
    """Operations between `op` and the results before it that could be compared, the nearest first."""
    writers = {writer.output: writer for writer in graph.ops}
    waiting = [name for name in op.inputs if name in writers and name not in found]
    while waiting:
        writer = writers[waiting.pop()]
        yield writer.name
        waiting += [name for name in writer.inputs if name in writers and name not in found]
