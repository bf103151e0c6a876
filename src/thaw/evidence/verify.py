"""An artefact against the referee: do they give the same scores, and where they do not, which layer is the first.

Nothing here knows a runtime: a runner is whatever takes images and gives scores. What the referee gave is passed in, so
that it computes a test set once for all artefacts.

Shapes: N images, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from thaw.errors import ModelFileError, UsageError
from thaw.graph.graph import Graph
from thaw.graph.interpret import execute
from thaw.graph.ops import Op
from thaw.graph.tensors import Quantization
from thaw.quoting import shown

Array: TypeAlias = npt.NDArray[Any]
Images: TypeAlias = npt.NDArray[np.uint8]

FLOAT_TOLERANCE = 1e-4
"""The most that a probability in float32 may differ between runtimes, which add up sums in orders of their own."""
LEAST_AGREEMENT = 0.99
"""The least share of equal labels where int8 kernels may round otherwise than the specification."""
_OFF_SCALE = 1e-3
"""How far dequantised scores may lie beside a whole number, by the rounding of float32."""


class Runner(Protocol):
    """An artefact in its runtime."""

    def run(self, images: Images) -> Array:
        """Scores [N, K], float32 or int8, for uint8 [N, H, W, C]."""

    def tensors(self, image: Images) -> Mapping[str, Array]:
        """What can be had of the intermediate results, [1, ...] by the graph's names, for uint8 [1, H, W, C]."""


@dataclass(frozen=True, kw_only=True)
class FirstDifference:
    """Where an artefact leaves the referee for the first time, in the graph's order.

    Attributes:
        layer: the operation after which the numbers differ.
        kind: the operation's, such as "conv2d".
        fused: operations before it whose results cannot be had, so that it may be any of them as well.
        tensor: what `layer` writes.
        image: which of the images, from 0.
        index: place in the tensor, (row, column, channel) or (channel,), of the first number that differs.
        expected: what the referee has there, from what the artefact had before.
        found: what the artefact has there.
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


@dataclass(frozen=True, kw_only=True)
class FloatComparison:
    """Scores in float32 against the referee's.

    Attributes:
        images: N, how many were compared.
        agreement: share of images with the same label, 0 to 1.
        largest_difference: the largest absolute difference of a score.
    """

    images: int
    agreement: float
    largest_difference: float

    @property
    def is_close(self) -> bool:
        """Whether no score is further off than `FLOAT_TOLERANCE`."""
        return self.largest_difference <= FLOAT_TOLERANCE

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Int8Comparison:
    """Scores in int8 against the referee's.

    Attributes:
        images: N, how many were compared.
        agreement: share of images with the same label, 0 to 1.
        largest_difference: the largest difference of a score, in units of the last place.
        score_bytes: N * K, how many bytes were compared.
        differing_bytes: how many of them differ.
        differing_images: how many images have a byte that differs.
        first_difference: where it begins; None where nothing differs or nobody could look inside.
    """

    images: int
    agreement: float
    largest_difference: int
    score_bytes: int
    differing_bytes: int
    differing_images: int
    first_difference: FirstDifference | None = None

    @property
    def is_equal(self) -> bool:
        """Whether every byte is equal."""
        return self.differing_bytes == 0

    @property
    def is_close(self) -> bool:
        """Whether the labels of all but a few images (`LEAST_AGREEMENT`) are equal."""
        return self.agreement >= LEAST_AGREEMENT

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        first = self.first_difference
        return {**asdict(self), "first_difference": None if first is None else first.as_dict()}


def verify_int8(
    graph: Graph, expected: Array, found: Array, runner: Runner, images: Images, *, is_exact: bool = True
) -> Int8Comparison:
    """What an int8 artefact gave against what the referee gave, and the first layer that differs.

    Args:
        graph: the int8 graph that the artefact was made from.
        expected: the referee's scores, int8 [N, K].
        found: the artefact's scores, int8 [N, K], or float32 where they come dequantised.
        runner: the artefact, which is asked for its intermediate results where something differs.
        images: uint8 [N, H, W, C], from which the scores come.
        is_exact: whether the runtime is to give every byte; else its kernels may round otherwise, by a unit a layer.

    Raises:
        ModelFileError: for scores of another shape or type. What the runner raises passes.
    """
    scores = as_numbers(found, graph.tensor(graph.outputs[-1]).quantization)
    result = compare_int8(expected, scores)
    if result.is_equal:
        return result
    row = int(np.flatnonzero((expected != scores).any(axis=1))[0])
    if not is_exact:
        # The image that is furthest off shows best what is more than rounding, which is looked for first.
        row = int(np.abs(expected.astype(np.int64) - scores).max(axis=1).argmax())
    for tolerance in (0,) if is_exact else (1, 0):
        first = first_difference(graph, runner, images[row : row + 1], image_number=row, tolerance=tolerance)
        if first is not None:
            return replace(result, first_difference=first)
    return result


def as_numbers(scores: Array, quantization: Quantization | None) -> Array:
    """The int8 numbers of scores that a runtime gives dequantised, as float32; other scores as they are.

    Raises:
        ModelFileError: when they do not lie on the scale.
    """
    if scores.dtype != np.float32 or quantization is None:
        return scores
    numbers = scores.astype(np.float64) / quantization.scale + quantization.zero_point
    whole = np.rint(numbers)
    # Not written as a comparison with "more", since what is no number must be refused too.
    if not (np.abs(numbers - whole) <= _OFF_SCALE).all() or not ((whole >= -128) & (whole <= 127)).all():
        raise ModelFileError("it gives scores that do not lie on the scale of the int8 graph")
    return whole.astype(np.int8)


def compare_float(expected: Array, found: Array) -> FloatComparison:
    """What a float32 artefact gave against what the referee gave, float32 [N, K] each.

    Raises:
        ModelFileError: for scores of another shape or type, or that are not finite.
    """
    _check(expected, found)
    if not np.isfinite(found).all():
        raise ModelFileError("it gives scores that are not finite numbers")
    return FloatComparison(
        images=len(expected),
        agreement=_agreement(expected, found),
        largest_difference=float(np.abs(expected.astype(np.float64) - found).max()),
    )


def compare_int8(expected: Array, found: Array) -> Int8Comparison:
    """What an int8 artefact gave against what the referee gave, int8 [N, K] each.

    Raises:
        ModelFileError: for scores of another shape or type.
    """
    _check(expected, found)
    differs = expected != found
    return Int8Comparison(
        images=len(expected),
        agreement=_agreement(expected, found),
        largest_difference=int(np.abs(expected.astype(np.int64) - found).max()),
        score_bytes=differs.size,
        differing_bytes=int(differs.sum()),
        differing_images=int(differs.any(axis=1).sum()),
    )


def first_difference(
    graph: Graph, runner: Runner, image: Images, *, image_number: int, tolerance: int = 0
) -> FirstDifference | None:
    """The first layer, in the graph's order, that does not compute what the referee computes from the same numbers.

    Each layer is given what the artefact had before it, so that what an earlier one did is not laid at its door.

    Args:
        graph: int8.
        runner: the artefact.
        image: uint8 [1, H, W, C].
        image_number: for the record.
        tolerance: units of the last place that are no difference.

    Returns:
        None when everything that can be seen is right.

    Raises:
        ModelFileError: when an intermediate result has another size.
    """
    found = runner.tensors(image)
    values: dict[str, Array] = {graph.input: image}
    for op in graph.ops:
        reads = [graph.tensor(name) for name in op.inputs]
        expected = execute(op, reads, [values[name] for name in op.inputs])
        values[op.output] = expected
        if op.output not in found:
            continue
        seen = np.asarray(found[op.output])
        if seen.size != expected.size:
            raise ModelFileError(f"{shown(op.output)} has {seen.size} numbers inside it: expected {expected.size}")
        seen = seen.reshape(expected.shape)
        off = np.abs(seen.astype(np.int64) - expected) > tolerance
        if off.any():
            index = tuple(int(places[0]) for places in np.nonzero(off[0]))
            return FirstDifference(
                layer=op.name,
                kind=op.kind,
                fused=tuple(reversed(list(_unseen_before(graph, op, found)))),
                tensor=op.output,
                image=image_number,
                index=index,
                expected=int(expected[0][index]),
                found=int(seen[0][index]),
            )
        values[op.output] = seen.astype(expected.dtype)
    return None


def _unseen_before(graph: Graph, op: Op, found: Mapping[str, Array]) -> Iterator[str]:
    """Operations between `op` and the results before it that could be compared, the nearest first."""
    writers = {writer.output: writer for writer in graph.ops}
    waiting = [name for name in op.inputs if name in writers and name not in found]
    while waiting:
        writer = writers[waiting.pop()]
        yield writer.name
        waiting += [name for name in writer.inputs if name in writers and name not in found]


def _agreement(expected: Array, found: Array) -> float:
    return float((expected.argmax(axis=1) == found.argmax(axis=1)).mean())


def _check(expected: Array, found: Array) -> None:
    if not len(expected):
        raise UsageError("there are no images to compare on: expected at least one")
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ModelFileError(
            f"it gives scores {found.dtype} {list(found.shape)}: expected {expected.dtype} {list(expected.shape)}"
        )
