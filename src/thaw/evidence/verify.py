"""Compares an exported network with the reference interpreter: scores, and the first layer that differs.

The reference scores are an argument, so that they are computed once for all exported networks.

Shapes: N images, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.errors import ModelFileError, UsageError
from thaw.evidence.layers import FirstDifference, Images, Runner, first_difference
from thaw.evidence.rounding_proof import SCORE_STEPS, RoundingProof, prove_rounding
from thaw.graph.graph import Graph
from thaw.graph.tensors import Array, Quantization

FLOAT_TOLERANCE = 1e-4
"""Largest allowed difference of a float32 probability between runtimes, which add in different orders."""
_OFF_SCALE = 1e-3
"""Largest allowed distance of a dequantized score from an integer, due to float32 rounding."""


@dataclass(frozen=True, kw_only=True)
class FloatComparison:
    """Comparison of float32 scores with the reference interpreter's.

    Attributes:
        images: N, number of compared images.
        agreement: fraction of images with the same label, 0 to 1.
        largest_difference: the largest absolute difference of a score.
    """

    images: int
    agreement: float
    largest_difference: float

    @property
    def is_close(self) -> bool:
        """Whether all scores are within `FLOAT_TOLERANCE`."""
        return self.largest_difference <= FLOAT_TOLERANCE

    @property
    def statement(self) -> str:
        """The result in words."""
        return (
            f"probabilities differ by at most {self.largest_difference:.1e} (limit {FLOAT_TOLERANCE:g}); "
            f"the same label for {self.agreement:.2%} of {self.images:,} images"
        )

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Int8Comparison:
    """Comparison of int8 scores with the reference interpreter's.

    Attributes:
        images: N, number of compared images.
        agreement: fraction of images with the same label, 0 to 1.
        largest_difference: the largest difference of a score, in units of the last place.
        score_bytes: N * K, number of compared bytes.
        differing_bytes: number of bytes that differ.
        differing_images: number of images with a byte that differs.
        first_difference: first layer that differs; None if nothing differs, or all differences are rounding.
        rounding: evidence that the difference is rounding; None if nothing differs or no difference is allowed.
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
        """Whether nothing differs beyond the rounding of each layer."""
        is_rounding = self.rounding is not None and self.rounding.is_within and self.first_difference is None
        return self.is_equal or is_rounding

    @property
    def statement(self) -> str:
        """The result in words."""
        if self.is_equal:
            return f"all bytes are equal ({self.score_bytes:,} bytes of {self.images:,} images)"
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
    """Compare the scores of an exported int8 network with the reference interpreter's, and find where they differ.

    Args:
        graph: the int8 graph.
        expected: the reference interpreter's scores, int8 [N, K].
        found: the runtime's scores, int8 [N, K], or dequantized float32.
        runner: the runner of the exported network, for intermediate results if scores differ.
        images: uint8 [N, H, W, C], the images of the scores.
        is_exact: whether every byte must be equal; otherwise differences must be rounding (`prove_rounding`).
        labels: true classes [N], to compare accuracy if the scores need not be equal; None for no comparison.

    Raises:
        ModelFileError: for scores of another shape or dtype.
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
    """The int8 numbers of dequantized float32 scores; other scores unchanged.

    Raises:
        ModelFileError: when the scores are not on the scale.
    """
    if scores.dtype != np.float32 or quantization is None:
        return scores
    numbers = scores.astype(np.float64) / quantization.scale + quantization.zero_point
    whole = np.rint(numbers)
    # NaN must also fail this check.
    if not (np.abs(numbers - whole) <= _OFF_SCALE).all() or not ((whole >= -128) & (whole <= 127)).all():
        raise ModelFileError("it returns scores that are not on the scale of the int8 graph", code="model-file-scores")
    return whole.astype(np.int8)


def compare_float(expected: Array, found: Array) -> FloatComparison:
    """Compare float32 scores with those of the reference interpreter, both [N, K].

    Raises:
        ModelFileError: for scores of another shape or dtype, or that are not finite.
    """
    _check(expected, found)
    if not np.isfinite(found).all():
        raise ModelFileError("it returns scores that are not finite", code="model-file-scores")
    return FloatComparison(
        images=len(expected),
        agreement=_agreement(expected, found),
        largest_difference=float(np.abs(expected.astype(np.float64) - found).max()),
    )


def compare_int8(expected: Array, found: Array) -> Int8Comparison:
    """Compare int8 scores with those of the reference interpreter, both [N, K].

    Raises:
        ModelFileError: for scores of another shape or dtype.
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
        raise UsageError("no images to compare: expected at least one")
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ModelFileError(
            f"it returns scores {found.dtype} {list(found.shape)}: expected {expected.dtype} {list(expected.shape)}",
            code="model-file-scores",
        )
