"""What an accuracy alone hides: a model that learned nothing, or not everything.

Each check states its rule; where chance has a say, the test is one-sided at 5 % unless it says otherwise.

Shapes: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from thaw.data.balance import mean_recall
from thaw.quoting import clipped, printable

LEVEL = 0.05
# The better of two submodels is compared, so each of the two may be it by chance.
SUBMODEL_LEVEL = LEVEL / 2
# A loss that is not this much below that of a constant answer has not come down.
LEAST_PROGRESS = 0.02
_NAMED = 5
_Z = float(stats.norm.ppf(1 - LEVEL))

Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a reader of a result has to know.

    Attributes:
        code: a stable word; docs/metrics.md lists them.
        severity: "warning", or "note" where it may be chance alone.
        message: one sentence.
        remedies: what to try, in order.
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
        """One line, safe for a terminal whatever the classes are called."""
        return f"{self.severity}: {printable(self.message)}"


def result_findings(
    confusion: npt.NDArray[np.int64], classes: Sequence[str], *, images: str = "image"
) -> tuple[Finding, ...]:
    """What the answers on labeled images say.

    Args:
        confusion: int64 [K, K], true classes in rows, predicted ones in columns; at least one image.
        classes: K names.
        images: what to call one of the images, such as "test image".
    """
    return (*_largest_class(confusion, classes, images), *_without_hit(confusion, classes, images))


def _largest_class(confusion: npt.NDArray[np.int64], classes: Sequence[str], images: str) -> list[Finding]:
    """Whether the accuracy is above the largest class's share beyond chance, by the exact binomial test."""
    supports = confusion.sum(axis=1)
    count, hits, largest = int(supports.sum()), int(confusion.trace()), int(supports.argmax())
    share = float(supports[largest]) / count
    if (supports > 0).sum() < 2 or stats.binomtest(hits, count, share, alternative="greater").pvalue < LEVEL:
        return []
    accuracy = f"its accuracy of {hits / count:.2%}"
    always = f"always answering {_name(classes[largest])}, which {share:.2%} of the {count:,} {images}s show"
    # The fewest hits that the test would have accepted; if they are more than half of the way to all, it is too weak.
    needed = int(stats.binom.isf(LEVEL, count, share)) + 1
    if hits / count > share and needed / count > (1 + share) / 2:
        message = f"{count:,} {images}s are too few to tell {accuracy} from {always}"
        return [Finding(code="few-images", severity="note", message=message, remedies=("measure on more images",))]
    verdict = f"{accuracy} is no better, beyond chance, than {always}"
    if _tells_apart(confusion):
        recall = mean_recall(confusion.diagonal(), supports)
        message = f"{verdict}; it does tell classes apart: its balanced accuracy is {recall:.2%}"
    else:
        message = f"the model did not learn: {verdict}"
    return [Finding(code="largest-class", severity="warning", message=message)]


def _tells_apart(confusion: npt.NDArray[np.int64]) -> bool:
    """Whether the mean recall is above that of answers which do not depend on the image, beyond chance.

    Such answers give class k with a probability q_k, estimated by its share of all answers. The recall of the n_k
    images of class k is then binomial, and the mean over the classes present has the mean of q_k and the variance
    sum(q_k (1 - q_k) / n_k) / K^2; it is taken as normal.
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
        f"the model does not know {len(missed):,} of {int((supports > 0).sum()):,} classes: "
        f"it recognized no {images} of {_named([f'{_name(name)} ({count:,})' for name, count in missed])}"
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
    remedy = "train on in int8 arithmetic: --set quantize.qat_threshold=0"
    return (Finding(code="int8-class-lost", severity="warning", message=message, remedies=(remedy,)),)


def joined_findings(
    joined: Hits, submodels: Mapping[str, Hits], labels: npt.NDArray[np.integer[Any]], classes: int
) -> tuple[Finding, ...]:
    """Whether a joined network is worse than the better of the submodels that it was made of.

    It is where the submodel alone is right on more of the validation images than the joined network alone is, beyond
    chance (McNemar's exact test, one-sided, 2.5 %), and its balanced accuracy is higher too.

    Args:
        joined: bool [N], the images that the joined network recognizes.
        submodels: by name the same of each submodel; may be empty.
        labels: int [N], 0 to K-1.
        classes: K.
    """
    if not submodels:
        return ()
    # Sorted, so that of equal ones the same is named after a resume.
    name, best = max(sorted(submodels.items()), key=lambda item: int(item[1].sum()))
    only_joined, only_best = int((joined & ~best).sum()), int((best & ~joined).sum())
    if only_best <= only_joined or _recall(best, labels, classes) <= _recall(joined, labels, classes):
        return ()
    p_value = float(stats.binomtest(only_best, only_best + only_joined, alternative="greater").pvalue)
    if p_value >= SUBMODEL_LEVEL:
        return ()
    message = (
        f"the joined network is worse than its own submodels: {joined.mean():.2%} of the {len(joined):,} validation "
        f"images against {best.mean():.2%} ({name}; McNemar's test, p = {p_value:.2g})"
    )
    remedy = "more epochs of thawing (unfreeze.steps), or one network that stands alone (--recipe balanced)"
    return (Finding(code="worse-than-submodels", severity="warning", message=message, remedies=(remedy,)),)


def _recall(hits: Hits, labels: npt.NDArray[np.integer[Any]], classes: int) -> float:
    counts = np.bincount(labels, minlength=classes)
    return mean_recall(np.bincount(labels[hits], minlength=classes), counts)


def constant_loss(shares: npt.NDArray[np.float64], label_smoothing: float) -> float:
    """The least mean cross-entropy, in nats, of an answer that is the same for every image.

    That is the entropy of the mean target, (1 - s) q_k + s / K for label smoothing s.

    Args:
        shares: float64 [K], the share q_k of each class in the loss: of the images, times their class's weight.
        label_smoothing: 0 to 1.
    """
    target = (1.0 - label_smoothing) * shares + label_smoothing / len(shares)
    target = target[target > 0]
    return float(-(target * np.log(target)).sum())


def stuck_findings(lowest: Mapping[str, tuple[float, float]]) -> tuple[Finding, ...]:
    """Outputs whose training loss never came 2 % below that of a constant answer.

    Args:
        lowest: by output its lowest mean training loss of an epoch and its `constant_loss`, in nats.
    """
    stuck = {name: pair for name, pair in lowest.items() if pair[1] > 0 and pair[0] > (1.0 - LEAST_PROGRESS) * pair[1]}
    if not stuck:
        return ()
    each = ", ".join(f"{name} {loss:.4f} (constant {constant:.4f})" for name, (loss, constant) in stuck.items())
    message = f"the training loss is stuck: it never fell noticeably below that of a constant answer: {each}"
    remedy = "a larger or a smaller learning rate"
    return (Finding(code="loss-stuck", severity="warning", message=message, remedies=(remedy,)),)


def _name(text: str) -> str:
    return clipped(printable(text))


def _named(names: Sequence[str]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
