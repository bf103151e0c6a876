"""The pipeline of a run, top to bottom: data -> network -> stages -> int8 -> evidence -> report.

Start reading here. `start_run` and `resume_run` are generators of events (`thaw.run.events`). The caller shows the
events and may stop between any two of them: by then, everything that a resume needs is on disk.

    resolve.py      settings that the request leaves open: budget, input, network, data
    context.py      the training context on this machine
    training/       the stages and the one training loop
    quantization.py the int8 graph
    measures.py     metrics.json, the only place that opens the test set
    report.py       the page
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from thaw.data.batches import sample_views
from thaw.data.ingest import Progress
from thaw.data.prepare import PreparedData
from thaw.data.seen import SeenImages
from thaw.errors import RunError
from thaw.events import result_of
from thaw.files import write_atomically, write_document
from thaw.graph.graph import Graph
from thaw.graph.graph_file import GraphHeader, write_graph
from thaw.graph.lower import layer_table
from thaw.model.model import Model
from thaw.model.training_images import write_seen
from thaw.run.checkpoints import check_data, plan_digest, restore, save
from thaw.run.context import kernels_of, training_context
from thaw.run.cross_validation import EpochDone, cross_validate
from thaw.run.events import Begun, Event, Finished, Int8Done, Started
from thaw.run.folder import RunFolder, create, locked, open_for_resume
from thaw.run.measures import measure
from thaw.run.quantization import int8_header, quantize_model
from thaw.run.report import ReportPictures, write_report
from thaw.run.request import TrainRequest
from thaw.run.resolve import settle_run
from thaw.seeds import derive
from thaw.training.compute import KernelsName, kernels_name, resolve_device, thread_count, threads
from thaw.training.pace import seconds_per_epoch
from thaw.training.trainer import MultiStageTrainer

_SAMPLES_SHOWN = 12


def start_run(
    request: TrainRequest, *, out: Path | None = None, overwrite: bool = False, progress: Progress | None = None
) -> Generator[Event, None, None]:
    """Check the request, create the run folder, and train.

    Args:
        request: the request.
        out: the run folder; runs/<source>-<recipe>-<n> by default.
        overwrite: replace the run in `out`.
        progress: called with the number of images decoded, and of all.

    Raises:
        ThawError: before training, for an invalid recipe, data or folder; later, for a loss that is not finite or a
            full disk. The files that were written remain, and the run can be resumed.
    """
    resolve_device(request.device)
    request, data = yield from settle_run(request, progress)
    request.recipe.model.build(data.input_spec.shape, len(data.train.classes))
    stored = request.as_dict() | {
        "fingerprint": data.fingerprint,
        "threads": thread_count(),
        "kernels": kernels_of(request.recipe, request.device),
    }
    folder = create(out, f"{data.name}-{request.recipe_name}", overwrite=overwrite)
    with locked(folder):
        folder.begin(stored)
        yield Begun(folder.path)
        yield from _run(folder, request, data, stored["kernels"])


def resume_run(
    path: Path, *, source: Any = None, data_root: Path | None = None, progress: Progress | None = None
) -> Generator[Event, None, None]:
    """Resume an interrupted run after its last finished epoch. A finished run is only measured again.

    Args:
        path: the run folder.
        source: the data, for a run that was trained on data in memory.
        data_root: folder that holds the named data sets; by default the folder used in training.
        progress: called with the number of images decoded, and of all.

    Raises:
        RunError: when it is not a run folder, or the data have changed.
    """
    folder, stored = open_for_resume(path)
    with locked(folder):
        request = TrainRequest.from_dict(stored, source)
        request, data = yield from settle_run(replace(request, data_root=data_root or request.data_root), progress)
        if data.fingerprint != stored.get("fingerprint"):
            raise RunError(
                f"the data of {path} have changed since the run started; start a new run with thaw train",
                code="run-data",
            )
        # The last bits of a sum depend on the number of threads and on the kernels.
        with threads(stored["threads"]):
            yield from _run(folder, request, data, stored.get("kernels") or kernels_name(compiled=False))


def _run(
    folder: RunFolder, request: TrainRequest, data: PreparedData, kernels: KernelsName
) -> Generator[Event, None, None]:
    started, recipe = time.perf_counter(), request.recipe
    with training_context(data, recipe, request.seed, request.device, kernels=kernels) as context:
        # Network and stages.
        trainer = MultiStageTrainer(recipe.trainer_settings(), context)
        plan = plan_digest(request, data)
        started -= restore(folder, trainer, plan)
        folder.write_history([record.as_dict() for record in trainer.progress.records])
        write_atomically(folder.recipe, recipe.as_toml())
        cost = layer_table(recipe.model, recipe.unify_spec, data.input_spec.shape, len(data.train.classes))
        yield Started(
            path=folder.path,
            data=data,
            cost=cost,
            epochs_done=len(trainer.progress.records),
            stages=recipe.stage_epochs(),
            folds=request.folds,
            epoch_seconds=seconds_per_epoch(trainer.settings, context),
        )
        for record in trainer.epochs():
            save(folder, trainer, plan, time.perf_counter() - started)
            yield EpochDone(record)
        model = _model(request, data, trainer)
        folds = yield from cross_validate(folder, request, data, context)
        check_data(folder, data)
        # The images come first, so that a reader that finds the model also finds them.
        write_seen(folder.training_images, SeenImages.of(data.train.images, data.validation.images), model)
        model.save(folder.model)
        seconds = time.perf_counter() - started
        # int8
        int8 = yield from quantize_model(model, context, recipe.quantize, recipe.augment)
        write_graph(folder.int8, int8.graph, int8_header(model, int8))
        yield Int8Done(int8)
    # Evidence
    test = data.test.open()
    metrics = measure(request, data, trainer, model, cost, int8, folds, test, seconds)
    # Report
    mistakes = [np.asarray(test.images[entry["index"]]) for entry in metrics["test"]["mistakes"]]
    samples = sample_views(data.train, recipe.augment, count=_SAMPLES_SHOWN, seed=derive(request.seed, "samples"))
    history = [record.as_dict() for record in trainer.progress.records]
    write_report(folder.path, metrics, history, ReportPictures(mistakes=mistakes, samples=samples))
    # metrics.json is written last: a run that has it is complete.
    yield Finished(folder.path, write_document(folder.metrics, metrics))


def _model(request: TrainRequest, data: PreparedData, trainer: MultiStageTrainer) -> Model:
    return Model(
        module=trainer.network,
        spec=request.recipe.model,
        unify=request.recipe.unify_spec,
        input_spec=data.input_spec,
        classes=data.train.classes,
        header={
            "dataset": data.name,
            "recipe": {"name": request.recipe_name, "settings": request.recipe.as_dict()},
            "seed": request.seed,
            "fingerprint": data.fingerprint,
        },
    )


def quantize_run(model: Model, data: PreparedData, request: TrainRequest) -> tuple[Graph, GraphHeader]:
    """Quantize a finished run again, with the same result, because the file of its int8 graph is missing."""
    # An int8 graph has no normalization.
    with training_context(data, request.recipe, request.seed, request.device, kernels="torch") as context:
        int8 = result_of(quantize_model(model, context, request.recipe.quantize, request.recipe.augment))
        return int8.graph, int8_header(model, int8)
