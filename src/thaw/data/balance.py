"""Class balance: counts, loss weights that compensate for imbalance, and the mean recall.

Shapes: N images, K classes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

ClassWeights = Literal["none", "sqrt", "balanced", "auto"]

# Classes are imbalanced if the largest has more than this many times the images of the smallest. Splitting alone leaves
# small classes with, say, 4 and 5 images.
UNEVEN = 1.5

Counts = npt.NDArray[np.int64]


def class_counts(labels: npt.NDArray[np.integer], classes: int) -> Counts:
    """Number of images of each class, int64 [K], for labels [N] in 0..K-1."""
    return np.bincount(labels, minlength=classes).astype(np.int64)


def imbalance(counts: Counts) -> float:
    """Images of the largest class over images of the smallest non-empty class; 1 without images."""
    present = counts[counts > 0]
    return float(present.max() / present.min()) if len(present) else 1.0


def is_uneven(counts: Counts) -> bool:
    """Whether classes are imbalanced: the largest has over 1.5 times the images of the smallest non-empty one."""
    return imbalance(counts) > UNEVEN


def class_weights(counts: Counts, kind: ClassWeights) -> npt.NDArray[np.float32] | None:
    """Loss weights by class, with a mean of 1 over the N images.

    With n_k images of class k, "balanced" is N / (K n_k) over the K classes that have images, as scikit-learn's
    `compute_class_weight("balanced")` (G. King and L. Zeng, "Logistic regression in rare events data", 2001); "sqrt" is
    proportional to 1 / sqrt(n_k). "auto" is "sqrt" if classes are imbalanced (`is_uneven`), else "none".

    Returns:
        float32 [K], 1 for a class without images; None if all weights are 1.
    """
    present = counts > 0
    if kind == "auto":
        kind = "sqrt" if is_uneven(counts) else "none"
    if kind == "none" or imbalance(counts) == 1.0:
        return None
    raw = np.where(present, 1.0 / np.maximum(counts, 1) ** (0.5 if kind == "sqrt" else 1.0), 0.0)
    scaled = raw * (counts.sum() / (raw * counts).sum())
    return np.where(present, scaled, 1.0).astype(np.float32)


def mean_recall(hits: Counts, counts: Counts) -> float:
    """Balanced accuracy, 0 to 1: the unweighted mean of the recalls of the classes that have images.

    As scikit-learn's `balanced_accuracy_score` (K. H. Brodersen et al., "The balanced accuracy and its posterior
    distribution", ICPR 2010).

    Args:
        hits: int64 [K], number of correctly classified images of each class.
        counts: int64 [K], number of images of each class; at least one is not 0.
    """
    present = counts > 0
    return float((hits[present] / counts[present]).mean())
