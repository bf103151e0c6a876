"""metrics.json: measurements after training, described in docs/metrics.md."""

from __future__ import annotations

from typing import Any

import numpy as np

from thaw.data.images import ImageSet
from thaw.data.prepare import PreparedData
from thaw.evidence.environment import environment
from thaw.evidence.latency import Latency, measure_latency
from thaw.graph.cost import Cost
from thaw.model.metrics_file import METRICS_SCHEMA
from thaw.model.model import Model
from thaw.model.origin import quality_of
from thaw.quoting import encodable
from thaw.run.cross_validation import FoldDone, fold_summary
from thaw.run.findings import run_findings
from thaw.run.quantization import QuantizationResult, compare_on_test
from thaw.run.request import TrainRequest
from thaw.training.compute import kernels_name, precision_name, threads
from thaw.training.trainer import MultiStageTrainer

_LATENCY_BATCH = 256


def measure(  # noqa: PLR0913, PLR0917 - everything that a run made
    request: TrainRequest,
    data: PreparedData,
    trainer: MultiStageTrainer,
    model: Model,
    cost: Cost,
    int8: QuantizationResult,
    folds: list[FoldDone],
    test: ImageSet,
    seconds: float,
) -> dict[str, Any]:
    """The content of metrics.json. Only this function measures the model and its int8 graph on the test images.

    Args:
        request: the resolved request.
        data: the data of the run.
        trainer: the trainer, after training.
        model: the trained model.
        cost: the cost of the network.
        int8: the int8 graph of the model.
        folds: results of the cross-validation.
        test: the test images.
        seconds: training time, over all processes.
    """
    context = trainer.context
    validation = quality_of(model.probabilities(data.validation.images), data.validation)
    latency = _latency(model, data)
    probabilities = model.probabilities(test.images)
    quality, int8_test = quality_of(probabilities, test), compare_on_test(int8, test, probabilities)
    findings = run_findings(request.recipe_name, request.recipe, trainer, model, quality, int8_test)
    return {
        "schema": METRICS_SCHEMA,
        "dataset": data.name,
        "data": _data_facts(request, data),
        "recipe": request.recipe_name,
        "overrides": list(request.overrides),
        "seed": request.seed,
        "input": data.input_spec.as_dict(),
        "parameters": cost.parameters,
        "macs": cost.macs,
        "cost": cost.as_dict(),
        "budget": None if request.budget is None else request.budget.as_dict(),
        "stages": [summary.as_dict() for summary in trainer.progress.summaries],
        "validation": {
            "accuracy": validation.accuracy,
            "accuracy_ci95": list(validation.accuracy_ci95),
            "balanced_accuracy": validation.balanced_accuracy,
            "count": validation.count,
        },
        "latency": latency.as_dict(),
        "folds": fold_summary(folds),
        "command": encodable(request.command),
        "device": str(context.device.type),
        "precision": precision_name(context.dtype),
        "kernels": kernels_name(compiled=context.compiled),
        "seconds": seconds,
        "environment": environment(str(context.device.type)),
        "files": {
            "model": "model.safetensors",
            "model_int8": "model-int8.safetensors",
            "training_images": "training-images.safetensors",
            "recipe": "recipe.toml",
            "history": "history.jsonl",
            "report": "report.html",
        },
        "findings": [finding.as_dict() for finding in findings],
        "test": quality.as_dict(),
        "int8": {**int8.as_dict(), "test": int8_test},
    }


def _data_facts(request: TrainRequest, data: PreparedData) -> dict[str, Any]:
    return {
        "source": encodable(request.given),
        "classes": list(data.train.classes),
        "train": len(data.train),
        "validation": len(data.validation),
        "test": len(data.test),
        "fingerprint": data.fingerprint,
        "splits": {split: dict(entry) for split, entry in data.splits.items()},
        "groups": None if data.grouping is None else dict(data.grouping),
        "problems": [problem.as_dict() for problem in data.problems],
        "skipped": list(data.left_out),
    }


def _latency(model: Model, data: PreparedData) -> Latency:
    batch = np.ascontiguousarray(data.train.images[:_LATENCY_BATCH])
    # On one thread, so that the figure is comparable between machines.
    with threads(1):
        return measure_latency(
            lambda: model.probabilities(batch[:1]), lambda: model.probabilities(batch), batch_size=len(batch)
        )
