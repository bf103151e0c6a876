"""Cross-validation of a run: one model per fold, measured on images that it was not trained on.

Results are stored in the run's `folds` folder, so that a resumed run trains no fold twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thaw.data.cache import cache_root, take_rows
from thaw.data.group_splits import group_folds
from thaw.data.images import ImageSet
from thaw.data.prepare import PreparedData
from thaw.data.splits import Rows, k_folds
from thaw.errors import RunError
from thaw.evidence.quality import evaluate, mean_interval
from thaw.files import read_document, write_document
from thaw.model.probabilities import network_probabilities
from thaw.run.folder import RunFolder
from thaw.run.request import TrainRequest
from thaw.seeds import derive
from thaw.training.engine import EpochRecord
from thaw.training.trainer import MultiStageTrainer, TrainingContext

_TRAIN_FOLD_AGAIN = "remove it to train the fold again"


@dataclass(frozen=True)
class EpochDone:
    """An epoch is finished and saved; `fold` is 0 for the run's own model, else the number of the fold."""

    record: EpochRecord
    fold: int = 0


@dataclass(frozen=True)
class FoldDone:
    """A fold of the cross-validation is finished; accuracies on its held-out images, 0 to 1."""

    fold: int
    folds: int
    accuracy: float
    balanced_accuracy: float


def cross_validate(
    folder: RunFolder, request: TrainRequest, data: PreparedData, context: TrainingContext
) -> Generator[EpochDone | FoldDone, None, list[FoldDone]]:
    """Cross-validate on the training part: train a model per fold and measure it on the fold's held-out images.

    The validation part still selects the best epoch, so that held-out images select nothing.
    """
    if not request.folds:
        return []
    done: list[FoldDone] = []
    cut = k_folds if data.grouping is None else group_folds
    splits = cut(data.train.labels, request.folds, derive(request.seed, "folds"), data.train_groups)
    for number, (kept, held) in enumerate(splits, start=1):
        path = folder.fold(number)
        if not path.exists():
            fold_context = dataclasses.replace(
                context, train=_rows(data.train, kept), seed=derive(request.seed, "fold", number)
            )
            trainer = MultiStageTrainer(request.recipe.trainer_settings(), fold_context)
            for record in trainer.epochs():
                yield EpochDone(record, number)
            held_out = _rows(data.train, held)
            probabilities = network_probabilities([trainer.network], held_out.images, data.input_spec)
            quality = evaluate(probabilities, held_out.labels, held_out.classes)
            figures = {"accuracy": quality.accuracy, "balanced_accuracy": quality.balanced_accuracy}
            write_document(path, {"fold": number, **figures, "count": len(held_out)})
        found = read_document(path, remedy=_TRAIN_FOLD_AGAIN)
        accuracy, balanced = _share(found, "accuracy", path), _share(found, "balanced_accuracy", path)
        done.append(FoldDone(number, request.folds, accuracy, balanced))
        yield done[-1]
    return done


def _share(fold: Mapping[str, Any], name: str, path: Path) -> float:
    share = fold.get(name)
    if not isinstance(share, float) or not 0.0 <= share <= 1.0:
        raise RunError(f"{path}: invalid {name} (expected a number from 0 to 1)\n{_TRAIN_FOLD_AGAIN}")
    return share


def _rows(images: ImageSet, chosen: Rows) -> ImageSet:
    """The images at the indices `chosen`, as an image set."""
    return dataclasses.replace(
        images,
        images=take_rows(images.images, chosen, cache_root()),
        labels=images.labels[chosen],
        names=[images.name(row) for row in chosen.tolist()],
    )


def fold_summary(folds: list[FoldDone]) -> dict[str, Any] | None:
    """The `folds` part of metrics.json, described in `docs/metrics.md`."""
    if not folds:
        return None
    accuracies, balanced = [fold.accuracy for fold in folds], [fold.balanced_accuracy for fold in folds]
    mean, half = mean_interval(accuracies)
    return {
        "count": len(accuracies),
        "accuracies": accuracies,
        "balanced_accuracies": balanced,
        "balanced_mean": float(np.mean(balanced)),
        "mean": mean,
        "std": float(np.std(accuracies, ddof=1)),
        "ci95": [max(0.0, mean - half), min(1.0, mean + half)],
    }
