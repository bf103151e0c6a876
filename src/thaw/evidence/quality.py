"""Quality of a classifier on held-out images: accuracy with interval, per class, calibration, paired tests.

Shapes: N images, K classes, S values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from thaw.data.balance import mean_recall
from thaw.errors import DataError, UsageError
from thaw.evidence.findings import Finding, result_findings
from thaw.evidence.significance import binomial_tail
from thaw.quoting import shown

if TYPE_CHECKING:
    from thaw.evidence.overlap import Overlap

Z_95 = 1.959963984540054  # the 97.5 % point of the standard normal distribution
CALIBRATION_BINS = 15
MAX_MISTAKES = 24
SMALLEST_PROBABILITY = 1e-12  # keeps the cross-entropy finite if the true class has probability 0


@dataclass(frozen=True, kw_only=True)
class ClassQuality:
    """Quality of one class; fractions are from 0 to 1.

    Attributes:
        name: name of the class.
        precision: fraction of the images predicted as this class that belong to it; None if there are none.
        recall: fraction of the images of this class that were predicted as it; None if there are none.
        f1: harmonic mean of precision and recall, 0 without a hit; None without images.
        support: number of images of the class.
    """

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """The images whose top probability is in (low, high]; confidence and accuracy are means, 0 if count is 0."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A misclassified image; `confidence` is the probability of the predicted class."""

    index: int
    name: str
    true: str
    predicted: str
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The result of `evaluate`.

    Attributes:
        accuracy: fraction of images whose most probable class (the first one of equals) is the true one, 0 to 1.
        accuracy_ci95: Wilson's 95 % interval of the accuracy.
        balanced_accuracy: mean recall of the classes that have images, 0 to 1 (`thaw.data.balance.mean_recall`).
        count: N.
        per_class: K entries in class order.
        confusion: int64 [K, K], true classes in rows, predicted ones in columns.
        expected_calibration_error: 0 to 1, over 15 equal bins of the top probability.
        calibration: these 15 bins.
        mistakes: the most confident wrong predictions, most confident first, at most 24.
        cross_entropy: mean of -ln(max(p, 1e-12)), p the probability of the true class, in nats.
        overlap: images that the model was trained on, and the accuracy on the others; None if unknown.
    """

    accuracy: float
    accuracy_ci95: tuple[float, float]
    balanced_accuracy: float
    count: int
    per_class: tuple[ClassQuality, ...]
    confusion: npt.NDArray[np.int64]
    expected_calibration_error: float
    calibration: tuple[CalibrationBin, ...]
    mistakes: tuple[Mistake, ...]
    cross_entropy: float
    overlap: Overlap | None = None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Problems that the accuracy alone hides, such as a class that is never recognized."""
        return result_findings(self.confusion, [entry.name for entry in self.per_class])

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form: the `test` part of metrics.json."""
        return {
            "accuracy": self.accuracy,
            "accuracy_ci95": list(self.accuracy_ci95),
            "balanced_accuracy": self.balanced_accuracy,
            "count": self.count,
            "per_class": [asdict(entry) for entry in self.per_class],
            "confusion": self.confusion.tolist(),
            "expected_calibration_error": self.expected_calibration_error,
            "calibration": [asdict(entry) for entry in self.calibration],
            "mistakes": [asdict(entry) for entry in self.mistakes],
            "cross_entropy": self.cross_entropy,
        }


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Two classifiers on the same images.

    Attributes:
        only_a: images that only the first classified correctly.
        only_b: images that only the second classified correctly.
        p_value: 0 to 1, two-sided by default; 1 if they never differ.
    """

    only_a: int
    only_b: int
    p_value: float

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)


def wilson_interval(successes: int, count: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a proportion. It stays within 0 and 1 and is also valid at 0 and `count` successes.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    Args:
        successes: 0 to `count`.
        count: number of trials, at least 1.
        z: standard normal quantile; the default gives 95 %.

    Returns:
        (low, high), 0 <= low <= successes / count <= high <= 1.

    Raises:
        UsageError: for a count below 1, or successes outside 0 to count.
    """
    if count < 1 or not 0 <= successes <= count:
        raise UsageError(
            f"interval for {successes} successes of {count}: expected a count of at least 1 and successes from 0 to it",
            code="usage-quality",
        )
    share = successes / count
    spread = 1 + z * z / count
    center = (share + z * z / (2 * count)) / spread
    half = z / spread * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # At the ends the formula gives exactly 0 and 1; rounding would be off by an ulp.
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == count else min(1.0, center + half)
    return (low, high)


def evaluate(
    probabilities: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.integer[Any]],
    classes: Sequence[str],
    names: Sequence[str] | None = None,
) -> Quality:
    """Compare predicted probabilities with the true labels.

    Args:
        probabilities: float [N, K], no value below 0, rows that sum to 1 (within 1 % plus the rounding of an
            8-bit softmax).
        labels: int [N], 0 to K-1.
        classes: K names.
        names: N names of the images for the list of mistakes; `[index]` if None.

    Raises:
        UsageError: for inconsistent shapes or dtypes, or a row that is not finite or not a distribution.
        DataError: when there are no images, or a label is outside 0 to K-1.
    """
    probabilities, labels = _checked(np.asarray(probabilities), np.asarray(labels), classes, names)
    count, classes_count = probabilities.shape
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities[np.arange(count), predicted]
    correct = predicted == labels
    cells = np.bincount(labels * classes_count + predicted, minlength=classes_count**2)
    confusion = cells.reshape(classes_count, classes_count).astype(np.int64)
    calibration = _calibration(confidence, correct)
    hits = int(correct.sum())
    true_probability = np.maximum(probabilities[np.arange(count), labels], SMALLEST_PROBABILITY)
    return Quality(
        accuracy=hits / count,
        accuracy_ci95=wilson_interval(hits, count),
        balanced_accuracy=mean_recall(confusion.diagonal(), confusion.sum(axis=1)),
        count=count,
        per_class=_per_class(confusion, classes),
        confusion=confusion,
        expected_calibration_error=sum(
            part.count / count * abs(part.accuracy - part.confidence) for part in calibration
        ),
        calibration=calibration,
        mistakes=_mistakes(confidence, predicted, labels, classes, names),
        cross_entropy=float(-np.log(np.minimum(true_probability, 1.0)).mean()),
    )


def mcnemar(
    correct_a: npt.NDArray[np.bool_],
    correct_b: npt.NDArray[np.bool_],
    *,
    alternative: Literal["two-sided", "less"] = "two-sided",
) -> McNemar:
    """McNemar's test, in its exact form, of whether two classifiers are equally accurate on the same images.

    Only images that exactly one of them classifies correctly count; they enter a binomial test with probability 1/2.

    Source: Q. McNemar, Psychometrika 12 (1947).

    Args:
        correct_a: bool [N], whether the first classified each image correctly.
        correct_b: bool [N], the same for the second.
        alternative: "two-sided", or "less" for a p-value that is small only if the first is less accurate.

    Raises:
        UsageError: unless both are bool, one-dimensional, and of the same length of at least 1.
    """
    first, second = np.asarray(correct_a), np.asarray(correct_b)
    boolean = first.dtype == np.bool_ and second.dtype == np.bool_
    if not boolean or first.ndim != 1 or first.shape != second.shape or not len(first):
        raise UsageError(
            f"McNemar's test of {first.dtype} {list(first.shape)} and {second.dtype} {list(second.shape)}: "
            "expected two bool arrays [N] about the same images, N at least 1",
            code="usage-quality",
        )
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    pairs = only_a + only_b
    less = binomial_tail(only_b, pairs, 0.5)
    p_value = less if alternative == "less" else min(1.0, 2.0 * min(less, binomial_tail(only_a, pairs, 0.5)))
    return McNemar(only_a=only_a, only_b=only_b, p_value=p_value)


def mean_interval(values: Sequence[float] | npt.NDArray[np.floating[Any]]) -> tuple[float, float]:
    """The mean of a few runs, and the half width of its 95 % Student-t interval.

    Args:
        values: float [S], S at least 2, since a single value has no spread.

    Returns:
        (mean, half width): the interval is mean ± half width, with half width t(0.975, S-1) · s / sqrt(S).

    Raises:
        UsageError: for fewer than two values, or a value that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all():
        raise UsageError(
            f"interval of a mean over {shown(array.tolist())}: expected at least two finite numbers",
            code="usage-quality",
        )
    degrees = len(array) - 1
    return float(array.mean()), float(special.stdtrit(degrees, 0.975) * array.std(ddof=1) / math.sqrt(len(array)))


def _checked(
    probabilities: npt.NDArray[Any], labels: npt.NDArray[Any], classes: Sequence[str], names: Sequence[str] | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    if probabilities.ndim != 2 or probabilities.dtype.kind != "f":
        raise UsageError(
            f"probabilities are {probabilities.dtype} {list(probabilities.shape)}: expected float [N, K]",
            code="usage-quality",
        )
    count, classes_count = probabilities.shape
    if classes_count != len(classes) or not len(classes):
        raise UsageError(
            f"probabilities for {classes_count} classes but {len(classes)} class names: expected one name per column",
            code="usage-quality",
        )
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise UsageError(
            f"labels are {labels.dtype} {list(labels.shape)}: expected integers [{count}], one per row",
            code="usage-quality",
        )
    if names is not None and len(names) != count:
        raise UsageError(
            f"{len(names)} names for {count} images: expected one per image, or none", code="usage-quality"
        )
    if not count:
        raise DataError("no images to evaluate: expected at least one labeled image", code="data-quality")
    if int(labels.min()) < 0 or int(labels.max()) >= classes_count:
        raise DataError(
            f"labels from {labels.min()} to {labels.max()}: "
            f"expected 0 to {classes_count - 1} for {classes_count} classes",
            code="data-quality",
        )
    _refuse_non_distributions(probabilities)
    return probabilities.astype(np.float64), labels.astype(np.int64)


def _refuse_non_distributions(probabilities: npt.NDArray[Any]) -> None:
    broken = ~np.isfinite(probabilities).all(axis=1)
    if broken.any():
        raise UsageError(
            f"{int(broken.sum())} of {len(broken)} rows of probabilities are not finite, first row "
            f"{int(broken.argmax())}: expected numbers from 0 to 1; the model computes NaN or infinity",
            code="usage-quality",
        )
    sums = probabilities.sum(axis=1, dtype=np.float64)
    # An 8-bit softmax rounds each of K values to a multiple of 1/256, by at most 1/512; bfloat16 loses under 1 %.
    off = (np.abs(sums - 1) > 0.01 + probabilities.shape[1] / 512) | (probabilities < 0).any(axis=1)
    if off.any():
        row = int(off.argmax())
        raise UsageError(
            f"row {row} of the probabilities sums to {sums[row]:.4g}, "
            f"minimum {probabilities[row].min():.4g}: expected values of at least 0 that sum to 1; "
            "apply softmax to scores first",
            code="usage-quality",
        )


def _per_class(confusion: npt.NDArray[np.int64], classes: Sequence[str]) -> tuple[ClassQuality, ...]:
    entries = []
    for index, name in enumerate(classes):
        hits = int(confusion[index, index])
        support, predicted = int(confusion[index].sum()), int(confusion[:, index].sum())
        entries.append(
            ClassQuality(
                name=name,
                precision=hits / predicted if predicted else None,
                recall=hits / support if support else None,
                f1=2 * hits / (support + predicted) if support else None,
                support=support,
            )
        )
    return tuple(entries)


def _calibration(confidence: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_]) -> tuple[CalibrationBin, ...]:
    """The bins of C. Guo et al., "On calibration of modern neural networks" (ICML 2017): bin m is ((m-1)/M, m/M]."""
    edges = np.arange(CALIBRATION_BINS + 1) / CALIBRATION_BINS
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, CALIBRATION_BINS - 1)
    entries = []
    for index in range(CALIBRATION_BINS):
        inside = bins == index
        count = int(inside.sum())
        entries.append(
            CalibrationBin(
                low=float(edges[index]),
                high=float(edges[index + 1]),
                count=count,
                confidence=float(confidence[inside].mean()) if count else 0.0,
                accuracy=float(correct[inside].mean()) if count else 0.0,
            )
        )
    return tuple(entries)


def _mistakes(
    confidence: npt.NDArray[np.float64],
    predicted: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    names: Sequence[str] | None,
) -> tuple[Mistake, ...]:
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:MAX_MISTAKES]
    return tuple(
        Mistake(
            index=int(index),
            name=f"[{index}]" if names is None else str(names[int(index)]),
            true=classes[int(labels[index])],
            predicted=classes[int(predicted[index])],
            confidence=float(confidence[index]),
        )
        for index in order
    )
