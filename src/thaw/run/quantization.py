"""From a trained model to the int8 graph that runs on devices: calibration, the choice of it, and training on.

Choices are made on validation images; calibration and training see training images only.

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
from thaw.graph.lower import lower
from thaw.graph.operation import Weighted
from thaw.graph.quantize import Range, quantize
from thaw.graph.tensors import SOFTMAX_QUANTIZATION
from thaw.graph.trainable import TrainableGraph
from thaw.model.model import Model
from thaw.recipe.quantize_settings import QuantizeSettings
from thaw.seeds import numpy_generator
from thaw.training.engine import EpochRecord
from thaw.training.loss import Score
from thaw.training.qat import QatSettings, QatStage
from thaw.training.trainer import StageSummary, TrainingContext, summarize

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How good a network is on the validation images: `accuracy` and the mean recall over classes, 0 to 1."""

    accuracy: float
    balanced_accuracy: float

    def by(self, score: Score) -> float:
        """The figure that chooses."""
        return self.accuracy if score == "accuracy" else self.balanced_accuracy


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An int8 graph that could be the one.

    Attributes:
        method: "minmax" or "mse" (how ranges were cut), or "qat" (ranges of the better one, then trained on).
        scores: on the validation images.
        squared_error: mean squared difference of its validation probabilities from those of the float network.
    """

    method: str
    graph: Graph
    scores: Scores
    squared_error: float

    def rank(self, score: Score) -> tuple[float, float]:
        """What the better of two has more of: the figure that chooses, and of equals nearness to the float network."""
        return self.scores.by(score), -self.squared_error


@dataclass(frozen=True, kw_only=True)
class QuantizationResult:
    """The int8 graph that was chosen, and how.

    Attributes:
        chosen: one of `candidates`.
        candidates: all that were tried, in order.
        float_scores: of the float network on the validation images.
        score: the figure that chose.
        validation_count: validation images.
        calibration_images: training images that the ranges were taken from.
        qat: the stage of training on; None where there was no need, or where not one epoch came out finite.
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
        """The `int8` part of metrics.json but for what the test images say."""
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


def float_graph(model: Model) -> Graph:
    """The float32 graph of a trained model, from raw pixels to "logits" and "probabilities"."""
    input_spec = model.input_spec
    return lower(
        model.module, shape=input_spec.shape, mean=input_spec.mean, std=input_spec.std, classes=len(model.classes)
    )


def int8_probabilities(graph: Graph, images: npt.NDArray[np.uint8]) -> Probabilities:
    """Class probabilities by the reference interpreter, float64 [N, K], of an int8 graph whose last output they are."""
    numbers = run(graph, images)[graph.outputs[-1]].astype(np.float64)
    return (numbers - SOFTMAX_QUANTIZATION.zero_point) * SOFTMAX_QUANTIZATION.scale


def quantize_model(
    model: Model, context: TrainingContext, settings: QuantizeSettings, augment: AugmentSettings
) -> Generator[EpochRecord, None, QuantizationResult]:
    """Calibrate, choose on validation images, and train on where too much is lost; yields the epochs of that.

    Equal arguments give equal bits. Training on that ends in a loss which is not finite costs nothing but itself: what
    it had reached until then counts, or else what calibration gave.
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
    if 100.0 * (float_scores.by(score) - best.scores.by(score)) > settings.qat_threshold:
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
    """`count` training images (all where there are fewer) that the run's seed chooses."""
    chosen = numpy_generator(seed, "calibration").choice(len(train), min(count, len(train)), replace=False)
    return np.ascontiguousarray(train.images[np.sort(chosen)])


def graph_header(model: Model, facts: Mapping[str, Any]) -> GraphHeader:
    """What the file of a model's graph says beside it; `facts` come after those of the model."""
    header = model.header
    recipe = header.get("recipe")
    words = [header.get("dataset"), recipe.get("name") if isinstance(recipe, dict) else None]
    known = {key: header[key] for key in ("dataset", "seed") if key in header}
    if "fingerprint" in header:
        # Enough to tell data apart, in files that go where memory is counted.
        known["fingerprint"] = str(header["fingerprint"])[:16]
    return GraphHeader(
        name="-".join(str(word) for word in words if word) or "model",
        classes=model.classes,
        input_spec=model.input_spec,
        facts={**known, **facts},
    )


def compare_on_test(quantization: QuantizationResult, test: ImageSet, expected: Probabilities) -> dict[str, Any]:
    """The `test` part of `int8` in metrics.json: the int8 graph against the float network, whose answers are given.

    Args:
        quantization: what was chosen before.
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


def _train_on(
    graph: Graph, ranges: Mapping[str, Range], context: TrainingContext, settings: QatSettings, augment: AugmentSettings
) -> Generator[EpochRecord, None, tuple[Graph, StageSummary] | None]:
    module = TrainableGraph(graph, ranges)
    module.to(context.device)
    stage_run = context.run(QatStage(module, settings), augment)
    records = []
    # Weights that have run away cannot be quantized, which is told as a UsageError.
    with contextlib.suppress(TrainingError, UsageError):
        for record in stage_run.epochs():
            records.append(record)
            yield record
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
