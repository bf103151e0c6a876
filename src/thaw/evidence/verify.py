"""An artifact against the interpreter: do they give the same scores, and where they do not, which layer is the first.

What the reference interpreter gave is passed in, so that it computes a test set once for all artifacts.

Shapes: N images, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.errors import ModelFileError, UsageError
from thaw.evidence.layers import Array, FirstDifference, Images, Runner, first_difference
from thaw.evidence.rounding_proof import SCORE_STEPS, RoundingProof, prove_rounding
from thaw.graph.graph import Graph
from thaw.graph.tensors import Quantization

FLOAT_TOLERANCE = 1e-4
"""The most that a probability in float32 may differ between runtimes, which add up sums in orders of their own."""
_OFF_SCALE = 1e-3
"""How far dequantized scores may lie beside a whole number, by the rounding of float32."""


@dataclass(frozen=True, kw_only=True)
class FloatComparison:
    """Scores in float32 against the reference interpreter's.

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

    @property
    def statement(self) -> str:
        """What was found, in words."""
        return (
            f"probabilities differ by at most {self.largest_difference:.1e} (limit {FLOAT_TOLERANCE:g}); "
            f"the same label for {self.agreement:.2%} of {self.images:,} images"
        )

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Int8Comparison:
    """Scores in int8 against the reference interpreter's.

    Attributes:
        images: N, how many were compared.
        agreement: share of images with the same label, 0 to 1.
        largest_difference: the largest difference of a score, in units of the last place.
        score_bytes: N * K, how many bytes were compared.
        differing_bytes: how many of them differ.
        differing_images: how many images have a byte that differs.
        first_difference: where it begins; None where nothing differs, nobody could look inside, or all is rounding.
        rounding: what shows that the difference is rounding; None where nothing differs, and where nothing may.
    """

    images: int
    agreement: float
    largest_difference: int
    score_bytes: int
    differing_bytes: int
    differing_images: int
    first_difference: FirstDifference | None = None
    rounding: RoundingProof | None = None

    @property
    def is_equal(self) -> bool:
        """Whether every byte is equal."""
        return self.differing_bytes == 0

    @property
    def is_close(self) -> bool:
        """Whether nothing differs, or nothing but the rounding of each layer."""
        is_rounding = self.rounding is not None and self.rounding.is_within and self.first_difference is None
        return self.is_equal or is_rounding

    @property
    def statement(self) -> str:
        """What was found, in words."""
        if self.is_equal:
            return f"equal in every byte ({self.score_bytes:,} bytes of {self.images:,} images)"
        scores = (
            f"scores differ on {self.differing_images:,} of {self.images:,} images, by at most "
            f"{self.largest_difference} of {SCORE_STEPS} units"
        )
        layer = [] if self.first_difference is None else [f"differs {self.first_difference}"]
        if self.rounding is None:
            return "; ".join([scores, *layer])
        verdict = f"every layer of {self.rounding.traced_images:,} of them is within rounding"
        if not self.is_close:
            verdict = "more than rounding: " + ", ".join([*self.rounding.problems(), *layer])
        return "; ".join([scores, verdict, *self.rounding.findings(self.images)])

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        parts = {"first_difference": self.first_difference, "rounding": self.rounding}
        return {**asdict(self), **{name: None if part is None else part.as_dict() for name, part in parts.items()}}


def verify_int8(
    graph: Graph,
    expected: Array,
    found: Array,
    runner: Runner,
    images: Images,
    *,
    is_exact: bool = True,
    labels: npt.NDArray[np.integer[Any]] | None = None,
) -> Int8Comparison:
    """What an int8 artifact gave against what the reference interpreter gave, and the first layer that differs.

    Args:
        graph: the int8 graph that the artifact was made from.
        expected: the reference interpreter's scores, int8 [N, K].
        found: the artifact's scores, int8 [N, K], or float32 where they come dequantized.
        runner: the artifact, which is asked for its intermediate results where something differs.
        images: uint8 [N, H, W, C], from which the scores come.
        is_exact: whether the runtime is to give every byte; else what differs has to be rounding (`prove_rounding`).
        labels: true classes, [N], by which right answers are counted where it need not be exact; None for no count.

    Raises:
        ModelFileError: for scores of another shape or type. What the runner raises passes.
    """
    scores = as_numbers(found, graph.tensor(graph.outputs[-1]).quantization)
    result = compare_int8(expected, scores)
    if result.is_equal:
        return result
    if not is_exact:
        proof, first = prove_rounding(graph, expected, scores, runner, images, labels)
        return replace(result, rounding=proof, first_difference=first)
    row = int(np.flatnonzero((expected != scores).any(axis=1))[0])
    image = images[row : row + 1]
    return replace(result, first_difference=first_difference(graph, runner.tensors(image), image, [row]))


def as_numbers(scores: Array, quantization: Quantization | None) -> Array:
    """The int8 numbers of scores that a runtime gives dequantized, as float32; other scores as they are.

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
    """What a float32 artifact gave against what the reference interpreter gave, float32 [N, K] each.

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
    """What an int8 artifact gave against what the reference interpreter gave, int8 [N, K] each.

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


def _agreement(expected: Array, found: Array) -> float:
    return float((expected.argmax(axis=1) == found.argmax(axis=1)).mean())


def _check(expected: Array, found: Array) -> None:
    if not len(expected):
        raise UsageError("there are no images to compare on: expected at least one")
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ModelFileError(
            f"it gives scores {found.dtype} {list(found.shape)}: expected {expected.dtype} {list(expected.shape)}"
        )
