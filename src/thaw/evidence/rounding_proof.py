"""What is proved of an int8 artifact in a runtime that rounds otherwise than the specification.

Such a runtime gives other bytes, and in a deep network other labels, without computing anything wrongly. Three things
tell the two apart:

- Of images whose scores differ, every layer is looked at: each of its numbers has to be one that an admitted rounding
  gives on the numbers which the layer had (`thaw.graph.rounding`). By induction over the layers, nothing but rounding
  lies between such an image's scores and the reference interpreter's.
- The same roundings, carried from the pixels to the scores, bound what a score may differ by, per graph and image and
  without regard to the runtime. A label may change only where the bounds of the two classes overlap.
- Over all images, the artifact is right no less often than the reference interpreter, but by chance (McNemar's exact
test).

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.evidence.layers import Array, FirstDifference, Images, Runner, first_difference
from thaw.evidence.quality import mcnemar
from thaw.graph.graph import Graph
from thaw.graph.rounding import admitted, score_interval

LEAST_P_VALUE = 0.001
"""Below this probability, fewer right answers are no chance. One in a thousand, since each verification is a test."""
TRACED_IMAGES = 500
"""Images of which every layer is looked at; an image takes tens of milliseconds."""
SCORE_STEPS = 255
"""The most that two int8 scores can differ by."""
_BATCH = 25


@dataclass(frozen=True, kw_only=True)
class RoundingProof:
    """Counts of images, and what was found on them; scores are in units of the last place (steps of int8).

    Attributes:
        traced_images: images of which every layer was looked at, of those whose scores differ.
        relabeled_images: images with another label than the reference interpreter's, of all.
        traced_relabeled: how many of these were traced.
        unrepeated_images: traced images that got other scores when layers were looked at, so that nothing is known of
            how the runtime came to its own.
        outside_images: traced images with a score that admitted roundings cannot give.
        largest_bound: the most that admitted roundings can change a score of a traced image by; 255 is no bound.
        median_bound: the median over traced images of the same.
        largest_margin: of images with another label, the most by which the reference interpreter's first score is
        ahead of its score
            for that label; None where no label differs.
        only_reference: images that only the reference interpreter labeled rightly; None without labels.
        only_runtime: images that only the artifact labeled rightly; None without labels.
        p_value: probability of so few right answers of the artifact, or fewer, among the images that only one of the
            two labeled rightly, were both equally good (one-sided exact McNemar test); None without labels.
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
        """Whether nothing but rounding was found; the layers themselves are told by `prove_rounding`."""
        is_no_worse = self.p_value is None or self.p_value >= LEAST_P_VALUE
        return not self.unrepeated_images and not self.outside_images and is_no_worse

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)

    @property
    def bound(self) -> str:
        """What admitted roundings can add up to, in words."""
        most = f"{self.largest_bound} units"
        return f"{most if self.largest_bound < SCORE_STEPS else 'any difference'} (median {self.median_bound:g})"

    def findings(self, images: int) -> list[str]:
        """What was found, in words, `images` being how many were compared."""
        told = [f"rounding in this graph can add up to {self.bound}"]
        told.append(f"labels differ on {self.relabeled_images:,} of {images:,} images")
        if self.largest_margin is not None:
            told[-1] += f", where the two scores are at most {self.largest_margin} units apart"
        if self.p_value is not None:
            told.append(
                f"only this runtime is right on {self.only_runtime:,} images, only the reference interpreter on "
                f"{self.only_reference:,} (McNemar p = {self.p_value:.2g}, at least {LEAST_P_VALUE:g} required)"
            )
        return told

    def problems(self) -> list[str]:
        """What is more than rounding, in words."""
        told = []
        if self.unrepeated_images:
            told.append(f"{self.unrepeated_images:,} images get other scores when all layers are read")
        if self.outside_images:
            told.append(f"{self.outside_images:,} images have scores that rounding cannot give")
        if self.p_value is not None and self.p_value < LEAST_P_VALUE:
            told.append("accuracy is lower than by chance")
        return told


def prove_rounding(
    graph: Graph,
    expected: Array,
    found: Array,
    runner: Runner,
    images: Images,
    labels: npt.NDArray[np.integer[Any]] | None = None,
) -> tuple[RoundingProof, FirstDifference | None]:
    """Look for what is more than rounding.

    Args:
        graph: the int8 graph that the artifact was made from.
        expected: the reference interpreter's scores, int8 [N, K].
        found: the artifact's scores, int8 [N, K].
        runner: the artifact.
        images: uint8 [N, H, W, C].
        labels: the true classes, [N]; None where they are not known.

    Returns:
        What was found, and the first layer with a number that no admitted rounding gives, if there is one.

    Raises:
        ModelFileError: when an intermediate result has another size.
    """
    rows = traced_rows(expected, found)
    first: FirstDifference | None = None
    unrepeated = outside = 0
    bounds: list[npt.NDArray[np.int64]] = []
    for chosen in _batches(rows):
        batch = np.ascontiguousarray(images[chosen])
        # Scores that cannot be seen inside are those that came out.
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
    """The images to look into, at most `TRACED_IMAGES`, by the scores of the interpreter and the artifact, int8 [N, K].

    Those with another label come first, those with the largest margin before others; then those whose scores differ,
    evenly spread over their largest difference.
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
    """Images with another label, and the margin of the reference's first score over its score for that label."""
    rows = np.flatnonzero(expected.argmax(axis=1) != found.argmax(axis=1))
    scores = expected[rows].astype(np.int64)
    places = np.arange(len(rows))
    return rows, scores.max(axis=1, initial=-128) - scores[places, found[rows].argmax(axis=1)]


def _batches(rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]


def _tensors(runner: Runner, images: Images) -> Mapping[str, Array]:
    """What lies inside of the artifact for each image, one after another: [N, ...]."""
    each = [runner.tensors(images[index : index + 1]) for index in range(len(images))]
    return {name: np.concatenate([np.asarray(values[name]) for values in each]) for name in each[0]}


def _paired(expected: Array, found: Array, labels: npt.NDArray[Any]) -> dict[str, Any]:
    test = mcnemar(found.argmax(axis=1) == labels, expected.argmax(axis=1) == labels, alternative="less")
    return {"only_runtime": test.only_a, "only_reference": test.only_b, "p_value": test.p_value}
