"""Findings: problems that an accuracy alone hides, such as a class that is never recognized.

Each check documents its rule. Statistical tests are one-sided at 5 % unless stated otherwise.

Shapes: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from thaw.data.balance import mean_recall
from thaw.evidence.significance import binomial_tail
from thaw.quoting import clipped, printable

LEVEL = 0.05
# Two submodels are tested, so the better one may be better by chance.
SUBMODEL_LEVEL = LEVEL / 2
# A loss counts as learning if it is below that of a constant prediction by this fraction.
LEAST_PROGRESS = 0.02
_NAMED = 5
_Z = float(special.ndtri(1 - LEVEL))

Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A problem with a result.

    Attributes:
        code: a stable identifier, listed in docs/metrics.md.
        severity: "warning", or "note" if it may be due to chance.
        message: one sentence.
        remedies: suggestions, in order.
    """

    code: str
    severity: Literal["warning", "note"]
    message: str
    remedies: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "try": list(self.remedies),
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Finding:
        """The inverse of `as_dict`."""
        return cls(
            code=entry["code"], severity=entry["severity"], message=entry["message"], remedies=tuple(entry["try"])
        )

    def __str__(self) -> str:
        """One line, safe for a terminal for any class names."""
        return f"{self.severity}: {printable(self.message)}"


def result_findings(
    confusion: npt.NDArray[np.int64], classes: Sequence[str], *, images: str = "image"
) -> tuple[Finding, ...]:
    """Findings from the predictions on labeled images.

    Args:
        confusion: int64 [K, K], true classes in rows, predicted ones in columns; at least one image.
        classes: K names.
        images: what one image is called in messages, such as "test image".
    """
    return (*_largest_class(confusion, classes, images), *_without_hit(confusion, classes, images))


def _largest_class(confusion: npt.NDArray[np.int64], classes: Sequence[str], images: str) -> list[Finding]:
    """Whether the accuracy is significantly above the share of the largest class, by the exact binomial test."""
    supports = confusion.sum(axis=1)
    count, hits, largest = int(supports.sum()), int(confusion.trace()), int(supports.argmax())
    share = float(supports[largest]) / count
    if (supports > 0).sum() < 2 or binomial_tail(hits, count, share) < LEVEL:
        return []
    accuracy = f"its accuracy of {hits / count:.2%}"
    always = f"always predicting {_name(classes[largest])}, the class of {share:.2%} of the {count:,} {images}s"
    # The fewest hits that pass the test. If they are more than halfway to all, the test is too weak.
    needed = next((k for k in range(hits, count + 1) if binomial_tail(k, count, share) < LEVEL), count + 1)
    if hits / count > share and needed / count > (1 + share) / 2:
        message = f"{count:,} {images}s are too few to distinguish {accuracy} from {always}"
        return [Finding(code="few-images", severity="note", message=message, remedies=("measure on more images",))]
    verdict = f"{accuracy} is not significantly better than {always}"
    if _distinguishes_classes(confusion):
        recall = mean_recall(confusion.diagonal(), supports)
        message = f"{verdict}; it does distinguish classes: its balanced accuracy is {recall:.2%}"
    else:
        message = f"the model did not learn: {verdict}"
    return [Finding(code="largest-class", severity="warning", message=message)]


def _distinguishes_classes(confusion: npt.NDArray[np.int64]) -> bool:
    """Whether the mean recall is significantly above that of predictions that do not depend on the image.

    Such predictions are class k with probability q_k, estimated by its share of all predictions. The recall of the n_k
    images of class k is then binomial. The average over the K classes that have images has the mean of q_k as its
    expectation and the variance sum(q_k (1 - q_k) / n_k) / K^2. It is approximated as normal.
    """
    present = confusion.sum(axis=1) > 0
    supports = confusion.sum(axis=1)[present]
    share = confusion.sum(axis=0)[present] / confusion.sum()
    recall = mean_recall(confusion.diagonal()[present], supports)
    deviation = math.sqrt(float((share * (1 - share) / supports).sum())) / len(supports)
    return recall - float(share.mean()) > _Z * deviation


def _without_hit(confusion: npt.NDArray[np.int64], classes: Sequence[str], images: str) -> list[Finding]:
    supports, hits = confusion.sum(axis=1), confusion.diagonal()
    rows = np.flatnonzero((supports > 0) & (hits == 0)).tolist()
    missed = [(classes[row], int(supports[row])) for row in rows]
    if not missed:
        return []
    message = (
        f"the model recognized no {images} of {len(missed):,} of {int((supports > 0).sum()):,} classes: "
        f"{_named([f'{_name(name)} ({count:,})' for name, count in missed])}"
    )
    wanted = f"more training images of {_named([_name(name) for name, _ in missed])}"
    return [Finding(code="class-without-hit", severity="warning", message=message, remedies=(wanted,))]


def int8_findings(per_class: Sequence[Mapping[str, Any]]) -> tuple[Finding, ...]:
    """Classes that the float network recognizes and the int8 network never does, from `int8.test.per_class`."""
    lost = [
        str(each["name"]) for each in per_class if each["support"] and each["float_recall"] > 0 and each["recall"] == 0
    ]
    if not lost:
        return ()
    what = "1 class" if len(lost) == 1 else f"{len(lost):,} classes"
    message = f"the int8 network lost {what}: it recognized no test image of {_named(lost)}"
    remedy = "quantization-aware training: --set quantize.qat_threshold=0"
    return (Finding(code="int8-class-lost", severity="warning", message=message, remedies=(remedy,)),)


def unified_findings(
    unified: Hits, submodels: Mapping[str, Hits], labels: npt.NDArray[np.integer[Any]], classes: int
) -> tuple[Finding, ...]:
    """Whether the unified network is worse than the better of its submodels.

    It is worse if the submodel is right on significantly more validation images (McNemar's exact test, one-sided,
    2.5 %), and its balanced accuracy is higher too.

    Args:
        unified: bool [N], whether the unified network classifies each image correctly.
        submodels: the same for each submodel by name; may be empty.
        labels: int [N], 0 to K-1.
        classes: K.
    """
    if not submodels:
        return ()
    # Sorted, so that a resumed run breaks ties in the same way.
    name, best = max(sorted(submodels.items()), key=lambda item: int(item[1].sum()))
    only_unified, only_best = int((unified & ~best).sum()), int((best & ~unified).sum())
    if only_best <= only_unified or _recall(best, labels, classes) <= _recall(unified, labels, classes):
        return ()
    p_value = binomial_tail(only_best, only_best + only_unified, 0.5)
    if p_value >= SUBMODEL_LEVEL:
        return ()
    message = (
        f"the unified network is worse than its own submodels: {unified.mean():.2%} of the {len(unified):,} validation "
        f"images against {best.mean():.2%} ({name}; McNemar's test, p = {p_value:.2g})"
    )
    remedy = "more epochs in the unfreezing stages (unfreeze.steps), or a single network (--recipe balanced)"
    return (Finding(code="worse-than-submodels", severity="warning", message=message, remedies=(remedy,)),)


def _recall(hits: Hits, labels: npt.NDArray[np.integer[Any]], classes: int) -> float:
    counts = np.bincount(labels, minlength=classes)
    return mean_recall(np.bincount(labels[hits], minlength=classes), counts)


def constant_loss(shares: npt.NDArray[np.float64], label_smoothing: float) -> float:
    """The smallest mean cross-entropy, in nats, of a prediction that is the same for all images.

    It is the entropy of the mean target, (1 - s) q_k + s / K for label smoothing s.

    Args:
        shares: float64 [K], the share q_k of each class in the loss: of the images, times their class's weight.
        label_smoothing: 0 to 1.
    """
    target = (1.0 - label_smoothing) * shares + label_smoothing / len(shares)
    target = target[target > 0]
    return float(-(target * np.log(target)).sum())


def stuck_findings(lowest: Mapping[str, tuple[float, float]]) -> tuple[Finding, ...]:
    """Findings on outputs whose training loss never fell 2 % below that of a constant prediction.

    Args:
        lowest: output -> the lowest mean training loss of an epoch and the `constant_loss`, in nats.
    """
    stuck = {name: pair for name, pair in lowest.items() if pair[1] > 0 and pair[0] > (1.0 - LEAST_PROGRESS) * pair[1]}
    if not stuck:
        return ()
    each = ", ".join(f"{name} {loss:.4f} (constant {constant:.4f})" for name, (loss, constant) in stuck.items())
    message = f"the training loss is stuck: it never fell noticeably below that of a constant prediction: {each}"
    remedy = "a larger or a smaller learning rate"
    return (Finding(code="loss-stuck", severity="warning", message=message, remedies=(remedy,)),)


def _name(text: str) -> str:
    return clipped(printable(text))


def _named(names: Sequence[str]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
