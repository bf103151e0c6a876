"""A whole run, from a source to a report: what `thaw train` does, top to bottom.

The run is a generator of events. Whoever drives it shows them; between two events everything that a resume needs is on
disk.
"""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thaw.data.batches import sample_views
from thaw.data.cache import cache_root, take_rows
from thaw.data.images import ImageSet
from thaw.data.prepare import PreparedData, prepare
from thaw.data.splits import Rows, k_folds
from thaw.errors import ModelFileError, RunError
from thaw.evidence.environment import environment
from thaw.evidence.latency import measure_latency
from thaw.evidence.quality import Quality, evaluate, mean_interval
from thaw.files import write_atomically
from thaw.graph.cost import Cost
from thaw.graph.lower import layer_table
from thaw.seeds import derive
from thaw.training.checkpoint import read_tensors, write_tensors
from thaw.training.compute import (
    Lanes,
    keep_freed_memory,
    one_thread,
    precision_name,
    resolve_device,
    resolve_precision,
    thread_count,
    use_threads,
)
from thaw.training.engine import EpochRecord
from thaw.training.method import Method, MethodSettings, Setting
from thaw.training.model import Model, network_probabilities
from thaw.workflow.recipe import Recipe
from thaw.workflow.report import ReportPictures, write_report
from thaw.workflow.request import TrainRequest
from thaw.workflow.run_folder import RunFolder, create, locked, open_for_resume, read_json

CHECKPOINT_VERSION = 1
METRICS_SCHEMA = 1
SAMPLES_SHOWN = 12
LATENCY_BATCH = 256

DecodeProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Started:
    """The data are ready, and training begins or goes on after `epochs_done` epochs; `stages` holds planned epochs."""

    folder: RunFolder
    data: PreparedData
    cost: Cost
    epochs_done: int
    stages: dict[str, int]
    folds: int


@dataclass(frozen=True)
class EpochDone:
    """An epoch is over and saved; `fold` is 0 in the run itself, else the fold's number."""

    record: EpochRecord
    fold: int = 0


@dataclass(frozen=True)
class FoldDone:
    """A fold of the cross-validation is over."""

    fold: int
    folds: int
    accuracy: float


@dataclass(frozen=True)
class Finished:
    """The run is over."""

    folder: RunFolder
    metrics: dict[str, Any]


Event = Started | EpochDone | FoldDone | Finished


def start_run(
    request: TrainRequest, *, out: Path | None = None, overwrite: bool = False, progress: DecodeProgress | None = None
) -> Iterator[Event]:
    """Check everything that can be checked, make the run folder, and train.

    Raises:
        ThawError: before training for a recipe, data or folder that is not right; later for a loss that is not finite
            or a full disk. What was written until then stays, and can be resumed.
    """
    resolve_device(request.device)
    data = _prepare(request, progress)
    request.recipe.model.build(data.contract.shape, len(data.train.classes))
    kept = request.as_dict() | {"fingerprint": data.fingerprint, "threads": thread_count()}
    folder = create(out, f"{data.name}-{request.recipe_name}", kept, overwrite=overwrite)
    with locked(folder):
        yield from _run(folder, request, data)


def resume_run(path: Path, *, source: Any = None, progress: DecodeProgress | None = None) -> Iterator[Event]:
    """Go on with a run that was stopped, from its last finished epoch; a finished run is only measured anew.

    Raises:
        RunError: when it is no run folder, or the data are not those that it began with.
    """
    folder, kept = open_for_resume(path)
    with locked(folder):
        request = TrainRequest.from_dict(kept, source)
        data = _prepare(request, progress)
        if data.fingerprint != kept.get("fingerprint"):
            raise RunError(f"the data of {path} have changed since the run began; start a new run with thaw train")
        # The order in which an operation adds up depends on its number of threads, and with it the last bits.
        use_threads(int(kept.get("threads", thread_count())))
        yield from _run(folder, request, data)


def _prepare(request: TrainRequest, progress: DecodeProgress | None) -> PreparedData:
    return prepare(
        request.source,
        request.recipe.data,
        seed=request.seed,
        data_root=request.data_root,
        skip_broken=request.skip_broken,
        folds=request.folds,
        progress=progress,
    )


def method_settings(recipe: Recipe) -> MethodSettings:
    """The part of a recipe that the method needs."""
    return MethodSettings(
        model=recipe.model, fusion=recipe.fusion, augment=recipe.augment, dual=recipe.dual, unfreeze=recipe.unfreeze
    )


def _run(folder: RunFolder, request: TrainRequest, data: PreparedData) -> Iterator[Event]:
    started = time.perf_counter()
    keep_freed_memory()
    device = resolve_device(request.device)
    with Lanes(2, device) as lanes:
        setting = Setting(
            train=data.train,
            validation=data.validation,
            contract=data.contract,
            seed=request.seed,
            device=device,
            dtype=resolve_precision(request.recipe.compute.precision, device),
            lanes=lanes,
        )
        method = Method(method_settings(request.recipe), setting)
        earlier_seconds = _restore(folder, method)
        folder.write_history([record.as_dict() for record in method.progress.records])
        write_atomically(folder.recipe, request.recipe.as_toml())
        cost = layer_table(request.recipe.model, request.recipe.fusion, data.contract.shape, len(data.train.classes))
        yield Started(folder, data, cost, len(method.progress.records), request.recipe.stage_epochs(), request.folds)
        for record in method.epochs():
            _save(folder, method, earlier_seconds + time.perf_counter() - started)
            yield EpochDone(record)
        model = Model(
            module=method.unified,
            spec=request.recipe.model,
            fusion=request.recipe.fusion,
            contract=data.contract,
            classes=data.train.classes,
            header=_model_header(request, data),
        )
        accuracies = yield from _folds(folder, request, data, setting)
    model.save(folder.model)
    seconds = earlier_seconds + time.perf_counter() - started
    metrics = _measure(request, data, method, model, cost, accuracies, seconds)
    test = data.test.open()
    metrics["test"] = _quality(model, test).as_dict()
    mistakes = [np.asarray(test.images[entry["index"]]) for entry in metrics["test"]["mistakes"]]
    samples = sample_views(
        data.train, request.recipe.augment, count=SAMPLES_SHOWN, seed=derive(request.seed, "samples")
    )
    history = [record.as_dict() for record in method.progress.records]
    write_report(folder.path, metrics, history, ReportPictures(mistakes=mistakes, samples=samples))
    # Last, so that a run with metrics.json is a whole one.
    folder.write_json(folder.metrics, metrics)
    yield Finished(folder, metrics)


def _restore(folder: RunFolder, method: Method) -> float:
    """Load the last checkpoint, if there is one; returns the seconds that were spent until then."""
    if not folder.checkpoint.exists():
        return 0.0
    try:
        tensors, header = read_tensors(folder.checkpoint, version=CHECKPOINT_VERSION)
        method.restore(tensors, header["method"])
        return float(header["seconds"])
    except (ModelFileError, KeyError, TypeError, ValueError) as error:
        what = str(error) if isinstance(error, ModelFileError) else f"{folder.checkpoint} lacks something: {error}"
        raise RunError(f"{what}\nremove {folder.checkpoint} to train this run again from its start") from error


def _save(folder: RunFolder, method: Method, seconds: float) -> None:
    """The checkpoint first: the history is made from it again on a resume, but not the other way round."""
    tensors, numbers = method.state()
    write_tensors(folder.checkpoint, tensors, {"version": CHECKPOINT_VERSION, "method": numbers, "seconds": seconds})
    folder.write_history(numbers["records"])


def _model_header(request: TrainRequest, data: PreparedData) -> dict[str, Any]:
    return {
        "dataset": data.name,
        "recipe": {"name": request.recipe_name, "settings": request.recipe.as_dict()},
        "seed": request.seed,
        "fingerprint": data.fingerprint,
    }


def _quality(model: Model, images: ImageSet) -> Quality:
    names = [images.name(index) for index in range(len(images))]
    return evaluate(model.probabilities(images.images), images.labels, images.classes, names)


def _folds(
    folder: RunFolder, request: TrainRequest, data: PreparedData, setting: Setting
) -> Generator[Event, None, list[float]]:
    """Cross-validation over the training part: the accuracy on each fold's images, which its training never saw.

    The validation part stays what decides on the best epoch, so that the images held out decide nothing.
    """
    if not request.folds:
        return []
    accuracies: list[float] = []
    splits = k_folds(data.train.labels, request.folds, derive(request.seed, "folds"), data.train_groups)
    for number, (kept, held) in enumerate(splits, start=1):
        path = folder.fold(number)
        if not path.exists():
            fold_setting = dataclasses.replace(
                setting, train=_rows(data.train, kept), seed=derive(request.seed, "fold", number)
            )
            method = Method(method_settings(request.recipe), fold_setting)
            for record in method.epochs():
                yield EpochDone(record, number)
            held_out = _rows(data.train, held)
            probabilities = network_probabilities([method.unified], held_out.images, data.contract)
            share = float((probabilities.argmax(axis=1) == held_out.labels).mean())
            folder.write_json(path, {"fold": number, "accuracy": share, "count": len(held_out)})
        accuracy = read_json(path).get("accuracy")
        if not isinstance(accuracy, float):
            raise RunError(f"{path} holds no accuracy\nremove it to train the fold again")
        accuracies.append(accuracy)
        yield FoldDone(number, request.folds, accuracies[-1])
    return accuracies


def _rows(images: ImageSet, chosen: Rows) -> ImageSet:
    """The images at the indices `chosen`, as a set of their own."""
    return dataclasses.replace(
        images,
        images=take_rows(images.images, chosen, cache_root()),
        labels=images.labels[chosen],
        names=[images.name(row) for row in chosen.tolist()],
    )


def _splits(data: PreparedData) -> dict[str, dict[str, Any]]:
    """For each split where it comes from, as docs/metrics.md describes it."""
    return {
        split: {
            "origin": "cut" if "fraction" in entry else "source",
            "fraction": entry.get("fraction"),
            "seed": entry.get("seed"),
        }
        for split, entry in data.splits.items()
    }


def _measure(
    request: TrainRequest,
    data: PreparedData,
    method: Method,
    model: Model,
    cost: Cost,
    accuracies: list[float],
    seconds: float,
) -> dict[str, Any]:
    """metrics.json but for its `test` part; `docs/metrics.md` describes it."""
    validation = _quality(model, data.validation)
    batch = np.ascontiguousarray(data.train.images[:LATENCY_BATCH])
    with one_thread():
        latency = measure_latency(
            lambda: model.probabilities(batch[:1]), lambda: model.probabilities(batch), batch_size=len(batch)
        )
    device = str(method.setting.device.type)
    source = request.source if isinstance(request.source, str | Path) else "arrays"
    return {
        "schema": METRICS_SCHEMA,
        "dataset": data.name,
        "data": {
            "source": str(source),
            "classes": list(data.train.classes),
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(data.test),
            "fingerprint": data.fingerprint,
            "splits": _splits(data),
            "problems": [problem.as_dict() for problem in data.problems],
            "skipped": list(data.left_out),
        },
        "recipe": request.recipe_name,
        "seed": request.seed,
        "input": data.contract.as_dict(),
        "parameters": cost.parameters,
        "macs": cost.macs,
        "cost": cost.as_dict(),
        "stages": [summary.as_dict() for summary in method.progress.summaries],
        "validation": {
            "accuracy": validation.accuracy,
            "accuracy_ci95": list(validation.accuracy_ci95),
            "count": validation.count,
        },
        "latency": latency.as_dict(),
        "folds": _fold_summary(accuracies),
        "command": request.command or f"thaw train {shlex.quote(str(source))}",
        "device": device,
        "precision": precision_name(method.setting.dtype),
        "seconds": seconds,
        "environment": environment(device),
        "files": {
            "model": "model.safetensors",
            "recipe": "recipe.toml",
            "history": "history.jsonl",
            "report": "report.html",
        },
    }


def _fold_summary(accuracies: list[float]) -> dict[str, Any] | None:
    if not accuracies:
        return None
    mean, half = mean_interval(accuracies)
    return {
        "count": len(accuracies),
        "accuracies": accuracies,
        "mean": mean,
        "std": float(np.std(accuracies, ddof=1)),
        "ci95": [max(0.0, mean - half), min(1.0, mean + half)],
    }
