"""A trained model -> its int8 graph for devices: calibration, selection, quantization-aware training.

Selection uses validation images; calibration and training use training images only.

Shapes: N images, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.data.augment import AugmentSettings
from thaw.data.balance import class_counts, mean_recall
from thaw.data.images import ImageSet
from thaw.errors import TrainingError, UsageError
from thaw.evidence.quality import evaluate
from thaw.graph.calibrate import METHODS, calibrate
from thaw.graph.graph import Graph
from thaw.graph.graph_file import GraphHeader
from thaw.graph.interpret import run
from thaw.graph.ops import Weighted
from thaw.graph.quantize import quantize
from thaw.graph.tensors import SOFTMAX_QUANTIZATION, Range
from thaw.graph.trainable import TrainableGraph
from thaw.model.graphs import MODEL_DIGEST, float_graph, graph_header
from thaw.model.model import Model
from thaw.recipe.quantize_settings import QuantizeSettings
from thaw.seeds import numpy_generator
from thaw.training.engine import EpochRecord
from thaw.training.loss import Score
from thaw.training.qat import QatSettings, QatStage
from thaw.training.trainer import StageSummary, TrainingContext, summarize

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class QatEpochDone:
    """An epoch of quantization-aware training is finished. A resume starts that training again."""

    record: EpochRecord


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Accuracy and balanced accuracy (mean recall over classes) on the validation images, 0 to 1."""

    accuracy: float
    balanced_accuracy: float

    def by(self, score: Score) -> float:
        """The score that is used for selection."""
        return self.accuracy if score == "accuracy" else self.balanced_accuracy


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An int8 graph that may be selected.

    Attributes:
        method: "minmax" or "mse" (calibration of the ranges), or "qat" (the better ranges, then fine-tuning).
        graph: the int8 graph.
        scores: scores on the validation images.
        squared_error: mean squared difference of its validation probabilities from those of the float network.
    """

    method: str
    graph: Graph
    scores: Scores
    squared_error: float

    def rank(self, score: Score) -> tuple[float, float]:
        """Sort key, larger is better: the selection score, then closeness to the float network."""
        return self.scores.by(score), -self.squared_error


@dataclass(frozen=True, kw_only=True)
class QuantizationResult:
    """The selected int8 graph, and all candidates.

    Attributes:
        chosen: one of `candidates`.
        candidates: all candidates, in order.
        float_scores: scores of the float network on the validation images.
        score: the score that was used for selection.
        validation_count: number of validation images.
        calibration_images: number of training images that the ranges were calibrated on.
        qat: summary of quantization-aware training; None if it was not needed, or if no epoch stayed finite.
    """

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    float_scores: Scores
    score: Score
    validation_count: int
    calibration_images: int
    qat: StageSummary | None

    @property
    def graph(self) -> Graph:
        """The int8 graph; its last output is the scores."""
        return self.chosen.graph

    def as_dict(self) -> dict[str, Any]:
        """The `int8` part of metrics.json, without results on test images."""
        weighted = [op for op in self.graph.ops if isinstance(op, Weighted)]
        return {
            "method": self.chosen.method,
            "candidates": [
                {
                    "method": each.method,
                    "validation_accuracy": each.scores.accuracy,
                    "validation_balanced_accuracy": each.scores.balanced_accuracy,
                    "squared_error": each.squared_error,
                }
                for each in self.candidates
            ],
            "selected_by": self.score,
            "calibration_images": self.calibration_images,
            "qat": None if self.qat is None else self.qat.as_dict(),
            "weight_bytes": sum(op.weights.nbytes + op.bias.nbytes for op in weighted),
            "validation": {
                "float_accuracy": self.float_scores.accuracy,
                "accuracy": self.chosen.scores.accuracy,
                "float_balanced_accuracy": self.float_scores.balanced_accuracy,
                "balanced_accuracy": self.chosen.scores.balanced_accuracy,
                "count": self.validation_count,
            },
        }


def int8_probabilities(graph: Graph, images: npt.NDArray[np.uint8]) -> Probabilities:
    """Class probabilities, the last output of an int8 graph, by the reference interpreter, float64 [N, K]."""
    numbers = run(graph, images)[graph.outputs[-1]].astype(np.float64)
    return (numbers - SOFTMAX_QUANTIZATION.zero_point) * SOFTMAX_QUANTIZATION.scale


def quantize_model(
    model: Model, context: TrainingContext, settings: QuantizeSettings, augment: AugmentSettings
) -> Generator[QatEpochDone, None, QuantizationResult]:
    """Calibrate, select on validation images, and fine-tune if accuracy was lost; yields the epochs of fine-tuning.

    Equal arguments give equal bits. If the loss of fine-tuning becomes infinite or NaN, its best epoch until then is
    used, or the calibrated graph if there is none.
    """
    graph = float_graph(model)
    images = calibration_images(context.train, settings.calibration_images, context.seed)
    ranges = calibrate(graph, images)
    truth, expected, score = context.validation, model.probabilities(context.validation.images), context.score
    measured = {method: _measured(method, quantize(graph, ranges[method]), truth, expected) for method in METHODS}
    method = max(METHODS, key=lambda each: measured[each].rank(score))
    candidates, best = list(measured.values()), measured[method]
    float_scores = _scores(expected, truth)
    summary: StageSummary | None = None
    if _is_worse(best.scores, float_scores, score, settings.qat_threshold):
        trained = yield from _train_on(graph, ranges[method], context, settings.qat, augment)
        if trained is not None:
            summary = trained[1]
            candidates.append(_measured("qat", trained[0], truth, expected))
            best = max(candidates, key=lambda each: each.rank(score))
    return QuantizationResult(
        chosen=best,
        candidates=tuple(candidates),
        float_scores=float_scores,
        score=score,
        validation_count=len(truth),
        calibration_images=len(images),
        qat=summary,
    )


def calibration_images(train: ImageSet, count: int, seed: int) -> npt.NDArray[np.uint8]:
    """`count` training images (all if there are fewer), uint8 [N, H, W, C], selected by the run's seed."""
    chosen = numpy_generator(seed, "calibration").choice(len(train), min(count, len(train)), replace=False)
    return np.ascontiguousarray(train.images[np.sort(chosen)])


def compare_on_test(quantization: QuantizationResult, test: ImageSet, expected: Probabilities) -> dict[str, Any]:
    """The `test` part of `int8` in metrics.json: the int8 graph compared with the float network.

    Args:
        quantization: the result of `quantize_model`.
        test: N labeled images.
        expected: float64 [N, K], the float network's probabilities.
    """
    found = int8_probabilities(quantization.graph, test.images)
    in_int8, in_float = (evaluate(each, test.labels, test.classes) for each in (found, expected))
    return {
        "float_accuracy": in_float.accuracy,
        "accuracy": in_int8.accuracy,
        "accuracy_ci95": list(in_int8.accuracy_ci95),
        "float_balanced_accuracy": in_float.balanced_accuracy,
        "balanced_accuracy": in_int8.balanced_accuracy,
        "count": in_int8.count,
        "agreement": float((found.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        "per_class": [
            {"name": mine.name, "float_recall": other.recall, "recall": mine.recall, "support": mine.support}
            for mine, other in zip(in_int8.per_class, in_float.per_class, strict=True)
        ],
    }


def int8_header(model: Model, quantization: QuantizationResult) -> GraphHeader:
    """The metadata of the int8 graph file of a model."""
    facts = {"method": quantization.chosen.method, "validation accuracy": quantization.chosen.scores.accuracy}
    return graph_header(model, {**facts, MODEL_DIGEST: model.digest})


def _is_worse(int8: Scores, expected: Scores, score: Score, points: float) -> bool:
    """Whether the int8 network is more than `points` percentage points below the float network."""
    return 100.0 * (expected.by(score) - int8.by(score)) > points


def _train_on(
    graph: Graph, ranges: Mapping[str, Range], context: TrainingContext, settings: QatSettings, augment: AugmentSettings
) -> Generator[QatEpochDone, None, tuple[Graph, StageSummary] | None]:
    module = TrainableGraph(graph, ranges)
    module.to(context.device)
    stage_run = context.run(QatStage(module, settings), augment)
    records = []
    # Quantization of diverged weights raises a UsageError.
    with contextlib.suppress(TrainingError, UsageError):
        for record in stage_run.epochs():
            records.append(record)
            yield QatEpochDone(record)
    if not records:
        return None
    stage_run.load_best()
    return module.int8_graph(), summarize(stage_run, records)


def _measured(method: str, graph: Graph, truth: ImageSet, expected: Probabilities) -> Candidate:
    found = int8_probabilities(graph, truth.images)
    squared_error = float(((found - expected) ** 2).mean())
    return Candidate(method=method, graph=graph, scores=_scores(found, truth), squared_error=squared_error)


def _scores(probabilities: Probabilities, truth: ImageSet) -> Scores:
    hits, classes = probabilities.argmax(axis=1) == truth.labels, len(truth.classes)
    recall = mean_recall(class_counts(truth.labels[hits], classes), class_counts(truth.labels, classes))
    return Scores(accuracy=float(hits.mean()), balanced_accuracy=recall)
