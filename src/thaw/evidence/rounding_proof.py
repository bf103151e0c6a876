"""Evidence that a runtime whose rounding differs from the specification computes an int8 network correctly.

Such a runtime returns other bytes, and in a deep network other labels, although it computes nothing incorrectly.
Three checks distinguish rounding from errors:

- Every layer is checked on images whose scores differ: each number must result from an admitted rounding of the
  layer's own input (`thaw.graph.rounding`). By induction over the layers, only rounding separates the scores of such an
  image from the reference interpreter's.
- The same roundings, propagated from the pixels to the scores, bound the difference of a score for each image,
  independent of the runtime. A label may change only if the bounds of the two classes overlap.
- Over all images, the runtime is not significantly less accurate than the reference interpreter (McNemar's exact test).

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.evidence.layers import FirstDifference, Images, Runner, admitted, first_difference
from thaw.evidence.quality import mcnemar
from thaw.graph.graph import Graph
from thaw.graph.interpret import score_interval
from thaw.graph.tensors import Array

LEAST_P_VALUE = 0.001
"""p-values below this mean a significantly lower accuracy. It is small, since every verification is a test."""
TRACED_IMAGES = 500
"""Maximum number of images whose layers are checked; an image takes tens of milliseconds."""
SCORE_STEPS = 255
"""The largest difference of two int8 scores."""
_BATCH = 25


@dataclass(frozen=True, kw_only=True)
class RoundingProof:
    """Results of the checks; scores are in units of the last place (steps of int8).

    Attributes:
        traced_images: images with differing scores whose layers were checked.
        relabeled_images: images, of all, whose label differs from the reference interpreter's.
        traced_relabeled: the number of these that were traced.
        unrepeated_images: traced images whose scores changed when layers were read, so that the check does not explain
            the original scores.
        outside_images: traced images with a score outside the bounds of admitted roundings.
        largest_bound: the largest effect of admitted roundings on a score of a traced image; 255 means no bound.
        median_bound: the median of this effect over traced images.
        largest_margin: the largest difference, over images with another label, between the reference interpreter's
            highest score and its score for that label; None if no label differs.
        only_reference: images that only the reference interpreter classified correctly; None without labels.
        only_runtime: images that only the runtime classified correctly; None without labels.
        p_value: of McNemar's exact one-sided test that the runtime is less accurate; None without labels.
    """

    traced_images: int
    relabeled_images: int
    traced_relabeled: int
    unrepeated_images: int
    outside_images: int
    largest_bound: int
    median_bound: float
    largest_margin: int | None
    only_reference: int | None = None
    only_runtime: int | None = None
    p_value: float | None = None

    @property
    def is_within(self) -> bool:
        """Whether these checks found nothing but rounding; `prove_rounding` returns the check of the layers."""
        is_no_worse = self.p_value is None or self.p_value >= LEAST_P_VALUE
        return not self.unrepeated_images and not self.outside_images and is_no_worse

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)

    @property
    def bound(self) -> str:
        """The largest total effect of admitted roundings, in words."""
        most = f"{self.largest_bound} units"
        return f"{most if self.largest_bound < SCORE_STEPS else 'any difference'} (median {self.median_bound:g})"

    def findings(self, images: int) -> list[str]:
        """The results in words; `images` is the number of compared images."""
        parts = [f"rounding in this graph can add up to {self.bound}"]
        parts.append(f"labels differ on {self.relabeled_images:,} of {images:,} images")
        if self.largest_margin is not None:
            parts[-1] += f", where the two scores are at most {self.largest_margin} units apart"
        if self.p_value is not None:
            parts.append(
                f"only this runtime is correct on {self.only_runtime:,} images, only the reference interpreter on "
                f"{self.only_reference:,} (McNemar p = {self.p_value:.2g}, at least {LEAST_P_VALUE:g} required)"
            )
        return parts

    def problems(self) -> list[str]:
        """Findings beyond rounding, in words."""
        parts = []
        if self.unrepeated_images:
            parts.append(f"{self.unrepeated_images:,} images have different scores when all layers are read")
        if self.outside_images:
            parts.append(f"{self.outside_images:,} images have scores outside the bounds of rounding")
        if self.p_value is not None and self.p_value < LEAST_P_VALUE:
            parts.append("accuracy is significantly lower")
        return parts


def prove_rounding(
    graph: Graph,
    expected: Array,
    found: Array,
    runner: Runner,
    images: Images,
    labels: npt.NDArray[np.integer[Any]] | None = None,
) -> tuple[RoundingProof, FirstDifference | None]:
    """Search for differences beyond rounding.

    Args:
        graph: the int8 graph.
        expected: the reference interpreter's scores, int8 [N, K].
        found: the runtime's scores, int8 [N, K].
        runner: the runner of the exported network.
        images: uint8 [N, H, W, C].
        labels: the true classes [N]; None if unknown.

    Returns:
        The results, and the first layer with a number outside the admitted roundings, if any.

    Raises:
        ModelFileError: when an intermediate result has another size.
    """
    rows = traced_rows(expected, found)
    first: FirstDifference | None = None
    unrepeated = outside = 0
    bounds: list[npt.NDArray[np.int64]] = []
    for chosen in _batches(rows):
        batch = np.ascontiguousarray(images[chosen])
        # If the scores are not among the intermediate results, those of `found` count.
        inside = {graph.outputs[-1]: found[chosen], **_tensors(runner, batch)}
        if first is None:
            first = first_difference(graph, inside, batch, chosen.tolist(), allowed=admitted)
        scores = np.asarray(inside[graph.outputs[-1]]).reshape(len(chosen), -1)
        unrepeated += int((scores != found[chosen]).any(axis=1).sum())
        low, high = score_interval(graph, batch)
        outside += int(((found[chosen] < low) | (found[chosen] > high)).any(axis=1).sum())
        reach = np.maximum(high.astype(np.int64) - expected[chosen], expected[chosen] - low.astype(np.int64))
        bounds.append(reach.max(axis=1))
    relabeled, margins = _margins(expected, found)
    every = np.concatenate(bounds) if bounds else np.zeros(1, np.int64)
    proof = RoundingProof(
        traced_images=len(rows),
        relabeled_images=len(relabeled),
        traced_relabeled=int(np.isin(relabeled, rows).sum()),
        unrepeated_images=unrepeated,
        outside_images=outside,
        largest_bound=int(every.max()),
        median_bound=float(np.median(every)),
        largest_margin=int(margins.max()) if len(margins) else None,
        **({} if labels is None else _paired(expected, found, np.asarray(labels))),
    )
    return proof, first


def traced_rows(expected: Array, found: Array) -> npt.NDArray[np.int64]:
    """The images to trace, at most `TRACED_IMAGES`, from reference and runtime scores, int8 [N, K].

    Images with another label come first, by decreasing margin; then images whose scores differ, evenly spread over
    their largest difference.
    """
    relabeled, margins = _margins(expected, found)
    first = relabeled[np.argsort(-margins, kind="stable")][:TRACED_IMAGES]
    difference = np.abs(expected.astype(np.int64) - found).max(axis=1)
    difference[relabeled] = 0
    others = np.flatnonzero(difference)
    others = others[np.argsort(-difference[others], kind="stable")]
    room = TRACED_IMAGES - len(first)
    if len(others) > room:
        others = others[np.arange(room) * len(others) // max(room, 1)]
    return np.concatenate([first, others])


def _margins(expected: Array, found: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Images with another label, and the margin of the reference's highest score over its score for that label."""
    rows = np.flatnonzero(expected.argmax(axis=1) != found.argmax(axis=1))
    scores = expected[rows].astype(np.int64)
    places = np.arange(len(rows))
    return rows, scores.max(axis=1, initial=-128) - scores[places, found[rows].argmax(axis=1)]


def _batches(rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]


def _tensors(runner: Runner, images: Images) -> Mapping[str, Array]:
    """The intermediate results of each image, [N, ...]."""
    each = [runner.tensors(images[index : index + 1]) for index in range(len(images))]
    return {name: np.concatenate([np.asarray(values[name]) for values in each]) for name in each[0]}


def _paired(expected: Array, found: Array, labels: npt.NDArray[Any]) -> dict[str, Any]:
    test = mcnemar(found.argmax(axis=1) == labels, expected.argmax(axis=1) == labels, alternative="less")
    return {"only_runtime": test.only_a, "only_reference": test.only_b, "p_value": test.p_value}
