"""A whole run, from a source to a report: what `thaw train` does, top to bottom.

The run is a generator of events. Whoever drives it shows them; between two events everything that a resume needs is on
disk.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.data.batches import sample_views
from thaw.data.cache import cache_root
from thaw.data.images import ImageSet
from thaw.data.prepare import PreparedData
from thaw.data.seen import SeenImages
from thaw.errors import ModelFileError, RunError
from thaw.evidence.environment import environment
from thaw.evidence.latency import measure_latency
from thaw.evidence.quality import Quality, evaluate
from thaw.files import write_atomically, write_document
from thaw.graph.cost import Cost
from thaw.graph.graph import Graph
from thaw.graph.graph_file import GraphHeader, write_graph
from thaw.graph.lower import layer_table
from thaw.model.model import Model
from thaw.model.training_images import write_seen
from thaw.quoting import encodable
from thaw.run.context import normalization_of, training_context
from thaw.run.cross_validation import EpochDone, FoldDone, cross_validate, fold_summary
from thaw.run.findings import run_findings
from thaw.run.folder import RunFolder, create, locked, open_for_resume
from thaw.run.metrics_file import METRICS_SCHEMA
from thaw.run.quantization import QuantizationResult, compare_on_test, graph_header, quantize_model
from thaw.run.report import ReportPictures, write_report
from thaw.run.request import TrainRequest
from thaw.run.resolve import settle_run
from thaw.run.trials import Trial, TrialPlan
from thaw.seeds import derive
from thaw.training.checkpoint import read_tensors, write_tensors
from thaw.training.compute import (
    LANES,
    ParallelBranches,
    normalization_name,
    precision_name,
    resolve_device,
    thread_count,
    threads,
)
from thaw.training.engine import EpochRecord
from thaw.training.pace import seconds_per_epoch
from thaw.training.trainer import MultiStageTrainer, TrainingContext

CHECKPOINT_VERSION = 1
MODEL_DIGEST = "model"
"""The fact in the header of an int8 graph that says which float model it was made of: the model's digest."""
SAMPLES_SHOWN = 12
LATENCY_BATCH = 256

DecodeProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Begun:
    """The run folder is there: from now on the run can be resumed, though nothing is trained yet."""

    folder: RunFolder


@dataclass(frozen=True)
class Started:
    """The data are ready, and training begins or goes on after `epochs_done` epochs; `stages` holds planned epochs.

    `epoch_seconds` is about how long an epoch of each stage takes on this machine.
    """

    folder: RunFolder
    data: PreparedData
    cost: Cost
    epochs_done: int
    stages: dict[str, int]
    folds: int
    epoch_seconds: dict[str, float]


@dataclass(frozen=True)
class QatEpochDone:
    """An epoch of quantization-aware training is over; a resume begins with the first again."""

    record: EpochRecord


@dataclass(frozen=True)
class Int8Done:
    """The int8 graph is chosen, and saved."""

    quantization: QuantizationResult


@dataclass(frozen=True)
class Finished:
    """The run is over."""

    folder: RunFolder
    metrics: dict[str, Any]


Event = TrialPlan | Trial | Begun | Started | EpochDone | FoldDone | QatEpochDone | Int8Done | Finished


def start_run(
    request: TrainRequest, *, out: Path | None = None, overwrite: bool = False, progress: DecodeProgress | None = None
) -> Generator[Event, None, None]:
    """Check everything that can be checked, make the run folder, and train.

    Raises:
        ThawError: before training for a recipe, data or folder that is not right; later for a loss that is not finite
            or a full disk. What was written until then stays, and can be resumed.
    """
    resolve_device(request.device)
    request, data = yield from settle_run(request, progress)
    request.recipe.model.build(data.input_spec.shape, len(data.train.classes))
    kept = request.as_dict() | {
        "fingerprint": data.fingerprint,
        "threads": thread_count(),
        "normalization": normalization_of(request.recipe, request.device),
    }
    folder = create(out, f"{data.name}-{request.recipe_name}", overwrite=overwrite)
    with locked(folder):
        folder.begin(kept)
        yield Begun(folder)
        yield from _run(folder, request, data, kept["normalization"])


def resume_run(
    path: Path, *, source: Any = None, data_root: Path | None = None, progress: DecodeProgress | None = None
) -> Generator[Event, None, None]:
    """Go on with a run that was stopped, from its last finished epoch; a finished run is only measured anew.

    Args:
        path: the run folder.
        source: needed only where the run was trained from arrays.
        data_root: where the named data sets are now; by default where they were.
        progress: told how many images are decoded.

    Raises:
        RunError: when it is no run folder, or the data are not those that it began with.
    """
    folder, kept = open_for_resume(path)
    with locked(folder):
        request = TrainRequest.from_dict(kept, source)
        if data_root is not None:
            request = dataclasses.replace(request, data_root=data_root)
        request, data = yield from settle_run(request, progress)
        if data.fingerprint != kept.get("fingerprint"):
            raise RunError(f"the data of {path} have changed since the run began; start a new run with thaw train")
        # The order in which an operation adds up depends on its number of threads, and with it the last bits; so they
        # do on what computes normalization.
        with threads(kept["threads"]):
            yield from _run(folder, request, data, kept.get("normalization") or normalization_name(fused=False))


def _run(
    folder: RunFolder, request: TrainRequest, data: PreparedData, normalization: str
) -> Generator[Event, None, None]:
    started = time.perf_counter()
    with ParallelBranches(LANES, resolve_device(request.device)) as lanes:
        context = training_context(
            data, request.recipe, request.seed, request.device, lanes, normalization=normalization
        )
        trainer = MultiStageTrainer(request.recipe.trainer_settings(), context)
        plan = _plan(request, data)
        earlier_seconds = _restore(folder, trainer, plan)
        folder.write_history([record.as_dict() for record in trainer.progress.records])
        write_atomically(folder.recipe, request.recipe.as_toml())
        cost = layer_table(
            request.recipe.model, trainer.settings.unify_spec, data.input_spec.shape, len(data.train.classes)
        )
        pace = seconds_per_epoch(trainer.settings, context)
        stages = request.recipe.stage_epochs()
        yield Started(folder, data, cost, len(trainer.progress.records), stages, request.folds, pace)
        for record in trainer.epochs():
            _save(folder, trainer, plan, earlier_seconds + time.perf_counter() - started)
            yield EpochDone(record)
        model = Model(
            module=trainer.network,
            spec=request.recipe.model,
            unify=trainer.settings.unify_spec,
            input_spec=data.input_spec,
            classes=data.train.classes,
            header=_model_header(request, data),
        )
        folds = yield from cross_validate(folder, request, data, context)
        _check_data(folder, data)
        # Before the model, so that whoever finds that knows its images.
        write_seen(folder.training_images, SeenImages.of(data.train.images, data.validation.images), model)
        model.save(folder.model)
        seconds = earlier_seconds + time.perf_counter() - started
        int8 = yield from _quantize(request, context, model)
        write_graph(folder.int8, int8.graph, _int8_header(model, int8))
        yield Int8Done(int8)
    metrics = _measure(request, data, trainer, model, cost, folds, seconds)
    test = data.test.open()
    probabilities = model.probabilities(test.images)
    quality, in_int8 = quality_of(probabilities, test), compare_on_test(int8, test, probabilities)
    findings = run_findings(request.recipe_name, request.recipe, trainer, model, quality, in_int8)
    metrics["findings"] = [finding.as_dict() for finding in findings]
    metrics["test"] = quality.as_dict()
    metrics["int8"] = {**int8.as_dict(), "test": in_int8}
    mistakes = [np.asarray(test.images[entry["index"]]) for entry in metrics["test"]["mistakes"]]
    samples = sample_views(
        data.train, request.recipe.augment, count=SAMPLES_SHOWN, seed=derive(request.seed, "samples")
    )
    history = [record.as_dict() for record in trainer.progress.records]
    write_report(folder.path, metrics, history, ReportPictures(mistakes=mistakes, samples=samples))
    # Last, so that a run with metrics.json is a whole one.
    yield Finished(folder, write_document(folder.metrics, metrics))


def _check_data(folder: RunFolder, data: PreparedData) -> None:
    """Refuse a result of images that were changed under the training; its checkpoint goes, since it is of them too."""
    if not data.is_whole():
        folder.checkpoint.unlink(missing_ok=True)
        raise RunError(
            f"the prepared images in {cache_root()} were damaged while this run trained\n"
            "its checkpoint was removed: a resume prepares them again and trains from the start"
        )


def _plan(request: TrainRequest, data: PreparedData) -> str:
    """A digest of what decides the weights, which a checkpoint must share with the run that goes on from it."""
    recipe = request.recipe.as_dict()
    # Quantization begins when training is over, and what was open is settled before it.
    del recipe["quantize"], recipe["sizing"]
    facts = [recipe, request.seed, data.fingerprint, data.input_spec.as_dict()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _restore(folder: RunFolder, trainer: MultiStageTrainer, plan: str) -> float:
    """Load the last checkpoint, if there is one; returns the seconds that were spent until then."""
    if not folder.checkpoint.exists():
        return 0.0
    mend = f"remove {folder.checkpoint} to train this run again from its start"
    try:
        tensors, header = read_tensors(folder.checkpoint, version=CHECKPOINT_VERSION)
        found, seconds = header["plan"], float(header["seconds"])
        if found == plan:
            trainer.restore(tensors, header["method"])
    except (ModelFileError, LookupError, TypeError, ValueError) as error:
        what = str(error) if isinstance(error, ModelFileError) else f"{folder.checkpoint} lacks something: {error}"
        raise RunError(f"{what}\n{mend}") from error
    if found != plan:
        raise RunError(f"the checkpoint was trained with another recipe, seed or data than run.json says\n{mend}")
    return max(0.0, seconds)


def _save(folder: RunFolder, trainer: MultiStageTrainer, plan: str, seconds: float) -> None:
    """The checkpoint first: the history is made from it again on a resume, but not the other way round."""
    tensors, numbers = trainer.state()
    header = {"version": CHECKPOINT_VERSION, "plan": plan, "method": numbers, "seconds": seconds}
    write_tensors(folder.checkpoint, tensors, header)
    folder.write_history(numbers["records"])


def _model_header(request: TrainRequest, data: PreparedData) -> dict[str, Any]:
    return {
        "dataset": data.name,
        "recipe": {"name": request.recipe_name, "settings": request.recipe.as_dict()},
        "seed": request.seed,
        "fingerprint": data.fingerprint,
    }


def _quantize(
    request: TrainRequest, context: TrainingContext, model: Model
) -> Generator[Event, None, QuantizationResult]:
    epochs = quantize_model(model, context, request.recipe.quantize, request.recipe.augment)
    while True:
        try:
            yield QatEpochDone(next(epochs))
        except StopIteration as end:
            found: QuantizationResult = end.value
            return found


def _int8_header(model: Model, quantization: QuantizationResult) -> GraphHeader:
    facts = {"method": quantization.chosen.method, "validation accuracy": quantization.chosen.scores.accuracy}
    return graph_header(model, {**facts, MODEL_DIGEST: model.digest})


def quantize_run(model: Model, data: PreparedData, request: TrainRequest) -> tuple[Graph, GraphHeader]:
    """The int8 graph of a finished run that has none, made as `thaw train` would have made it from the run's data."""
    with ParallelBranches(LANES, resolve_device(request.device)) as lanes:
        # Of an int8 graph, no step normalizes.
        context = training_context(data, request.recipe, request.seed, request.device, lanes, normalization="torch")
        events = _quantize(request, context, model)
        while True:
            try:
                next(events)
            except StopIteration as end:
                return end.value.graph, _int8_header(model, end.value)


def measure_quality(model: Model, images: ImageSet) -> Quality:
    """How good `model` is on labeled images of its input's size."""
    return quality_of(model.probabilities(images.images), images)


def quality_of(probabilities: npt.NDArray[np.float64], images: ImageSet) -> Quality:
    """How good probabilities, float64 [N, K], are for N labeled images."""
    names = [images.name(index) for index in range(len(images))]
    return evaluate(probabilities, images.labels, images.classes, names)


def _measure(
    request: TrainRequest,
    data: PreparedData,
    trainer: MultiStageTrainer,
    model: Model,
    cost: Cost,
    folds: list[FoldDone],
    seconds: float,
) -> dict[str, Any]:
    """metrics.json but for its `test` part; `docs/metrics.md` describes it."""
    validation = measure_quality(model, data.validation)
    batch = np.ascontiguousarray(data.train.images[:LATENCY_BATCH])
    # One thread, so that the figure can be compared between machines.
    with threads(1):
        latency = measure_latency(
            lambda: model.probabilities(batch[:1]), lambda: model.probabilities(batch), batch_size=len(batch)
        )
    device = str(trainer.context.device.type)
    return {
        "schema": METRICS_SCHEMA,
        "dataset": data.name,
        "data": {
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
        },
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
        "device": device,
        "precision": precision_name(trainer.context.dtype),
        "normalization": normalization_name(fused=trainer.context.fused),
        "seconds": seconds,
        "environment": environment(device),
        "files": {
            "model": "model.safetensors",
            "model_int8": "model-int8.safetensors",
            "training_images": "training-images.safetensors",
            "recipe": "recipe.toml",
            "history": "history.jsonl",
            "report": "report.html",
        },
    }
