"""The whole training of a recipe, as one resumable sequence of stages.

"two-stage" is the paper's method: train two submodels, unify them, and unfreeze the unified network step by step. To
unify is to concatenate the scores, to average the weights, or to distill both into a new submodel, which replaces the
unfreezing. "plain" trains a single network. "distil" first trains a larger network, which then teaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import StrictBool, StrictStr
from torch import Tensor, nn

from thaw.data.augment import AugmentSettings
from thaw.data.balance import class_counts
from thaw.data.batches import BatchSource, View
from thaw.data.images import ImageSet, InputSpec
from thaw.errors import ModelFileError, UsageError
from thaw.kernels import KernelLayer
from thaw.models.blocks import dropouts, use_kernels
from thaw.models.compiling import compile_kernels
from thaw.models.families import FamilySpec
from thaw.models.unify import DualModel, UnifiedModel, UnifySpec, average, build_dual, unify
from thaw.plain import Real, Whole, from_plain
from thaw.seeds import derive
from thaw.training.compute import ParallelBranches
from thaw.training.distil import DistillStage, DistilSettings
from thaw.training.engine import EpochRecord, StageRun, under
from thaw.training.loss import LossSettings, Score
from thaw.training.stages import (
    DualSettings,
    DualStage,
    PlainSettings,
    PlainStage,
    Stage,
    UnfreezeSettings,
    unfreeze_stages,
)

MethodName = Literal["two-stage", "plain", "distil"]
M = TypeVar("M", bound=nn.Module)

# Validation stores no gradients, so its batches can be larger than those of training.
VALIDATION_BATCH = 512

# With a momentum of 0.1, 100 batches leave 0.9^100 = 0.003 % of the old statistics.
_STATISTICS_BATCHES = 100


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """What trains and how; a part of a recipe."""

    method: MethodName = "two-stage"
    model: FamilySpec
    unify: UnifySpec
    augment: AugmentSettings
    dual: DualSettings
    unfreeze: UnfreezeSettings
    plain: PlainSettings = field(default_factory=PlainSettings)
    distil: DistilSettings = field(default_factory=DistilSettings)

    @property
    def stage_epochs(self) -> dict[str, int]:
        """The stages in order, with their planned epochs."""
        match self.method:
            case "two-stage" if self.unify.join == "distil":
                return {"dual": self.dual.epochs, "student": self.plain.epochs}
            case "two-stage":
                return {"dual": self.dual.epochs, **{step.unit: step.epochs for step in self.unfreeze.steps}}
            case "plain":
                return {"plain": self.plain.epochs}
            case "distil":
                return {"teacher": self.distil.teacher_epochs, "student": self.plain.epochs}

    @property
    def kernel_layers(self) -> frozenset[KernelLayer]:
        """The layers that have compiled kernels in the networks that train."""
        specs = [self.model, *([self.distil.model] if self.method == "distil" else [])]
        return frozenset(spec.kernel_layer for spec in specs)

    @property
    def unify_spec(self) -> UnifySpec | None:
        """How two submodels become the final network; None if the final network is a single submodel."""
        return self.unify if self.method == "two-stage" and self.unify.join == "concatenate" else None


@dataclass(frozen=True, kw_only=True)
class TrainingContext:
    """The data and the machine that a training uses.

    Attributes:
        train: training images.
        validation: images that select the best epoch.
        input_spec: the network's input.
        seed: random seed.
        device: where training computes.
        dtype: dtype of convolutions.
        parallel: runs independent branches at the same time.
        compiled: whether to use compiled kernels (`thaw.kernels`).
        loss: class weights, and the figure that selects the best epoch.
    """

    train: ImageSet
    validation: ImageSet
    input_spec: InputSpec
    seed: int
    device: torch.device
    dtype: torch.dtype
    parallel: ParallelBranches
    compiled: bool = False
    loss: LossSettings = field(default_factory=LossSettings)

    @property
    def classes(self) -> int:
        """K."""
        return len(self.train.classes)

    @property
    def score(self) -> Score:
        """The validation figure that selects the best epoch."""
        return self.loss.score(class_counts(self.train.labels, self.classes))

    @property
    def class_weights(self) -> npt.NDArray[np.float32] | None:
        """Loss weight per class, float32 [K]; None if all are 1."""
        return self.loss.weights(class_counts(self.train.labels, self.classes))

    def run(self, stage: Stage, augment: AugmentSettings) -> StageRun:
        """Return the training of `stage` on this data, with its class weights."""
        weights = self.class_weights
        stage.class_weights = None if weights is None else torch.from_numpy(weights).to(self.device)
        stage.compiled = self.compiled
        train = self._source(self.train, stage.batch_size, augment, stage.views)
        validation = self._source(self.validation, VALIDATION_BATCH, augment)
        return StageRun(
            stage, train, validation, seed=self.seed, parallel=self.parallel, dtype=self.dtype, score=self.score
        )

    def measure_statistics(self, module: nn.Module, batch_size: int) -> None:
        """Measure a module's normalization statistics on original training images, in batches of `batch_size`."""
        if next(module.buffers(), None) is None:
            return
        module.train()
        # Use float32, for which the kernels may not have been compiled.
        use_kernels(module, compiled=False)
        for _, dropout in dropouts(module):
            dropout.eval()
        batches = self._source(self.train, batch_size, AugmentSettings()).shuffled(derive(self.seed, "statistics"))
        with torch.no_grad():
            for batch in islice(batches, _STATISTICS_BATCHES):
                module(batch.views["original"])
        use_kernels(module, compiled=self.compiled)

    def _source(
        self, images: ImageSet, batch_size: int, augment: AugmentSettings, views: tuple[View, ...] = ("original",)
    ) -> BatchSource:
        return BatchSource(
            images=images,
            input_spec=self.input_spec,
            batch_size=batch_size,
            device=self.device,
            augment=augment,
            views=views,
            compiled=self.compiled,
        )

    def place(self, module: nn.Module) -> None:
        """Move a module to the device, in channels-last order, with compiled kernels or not."""
        use_kernels(module, compiled=self.compiled)
        if self.compiled:
            compile_kernels(module, self.dtype)
        # The type stubs of torch lack memory_format.
        module.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """The results of a finished stage; `docs/metrics.md` describes the fields."""

    name: StrictStr
    kind: StrictStr
    epochs: Whole
    epochs_planned: Whole
    best_epoch: Whole
    seconds: Real
    images_per_second: Real
    trains: tuple[StrictStr, ...]
    selected_by: Score
    validation_accuracy: Real
    validation_balanced_accuracy: Real
    validation: dict[StrictStr, Real]
    stopped_early: StrictBool

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {**asdict(self), "trains": list(self.trains)}


@dataclass
class TrainerProgress:
    """The epochs and stages trained so far.

    Attributes:
        records: epochs.
        summaries: finished stages.
        submodel_hits: which validation images each submodel classifies correctly, bool [N]; empty before the end of
            stage 1.
    """

    records: list[EpochRecord] = field(default_factory=list)
    summaries: list[StageSummary] = field(default_factory=list)
    submodel_hits: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)


class MultiStageTrainer:
    """Trains the stages of one recipe, one after the other.

    `epochs()` continues from where `restore` left off. After each record, `state()` contains everything that is needed
    to continue bit for bit.
    """

    def __init__(self, settings: TrainerSettings, context: TrainingContext) -> None:
        self.settings = settings
        self.context = context
        self.progress = TrainerProgress()
        self._names = tuple(settings.stage_epochs)
        self._index = 0
        self._run = self._begin(0)

    @cached_property
    def dual(self) -> DualModel:
        """The two submodels that stage 1 trains."""
        return seeded_dual(self.settings.model, self.context, alike=self.settings.unify.join == "average")

    @cached_property
    def teachers(self) -> list[nn.Module]:
        """The teachers of the network: both submodels of stage 1, or a larger network."""
        if self.settings.method == "two-stage":
            return list(self.dual.branches)
        return [seeded_submodel(self.settings.distil.model, self.context, "teacher")]

    @cached_property
    def network(self) -> UnifiedModel | nn.Sequential:
        """The resulting network, in evaluation mode after `epochs()` has ended.

        With the method "two-stage", the first access unifies the submodels in their current state; it must come after
        stage 1.
        """
        settings = self.settings
        if settings.method != "two-stage":
            return seeded_submodel(settings.model, self.context)
        match settings.unify.join:
            case "concatenate":
                return seeded_unify(self.dual, settings.unify, self.context)
            case "average":
                return measured_average(self.dual, self.context, settings.unfreeze.batch_size)
            case "distil":
                return seeded_submodel(settings.model, self.context, "student")

    def epochs(self) -> Iterator[EpochRecord]:
        """Train the remaining epochs and yield a record of each; a stage ends with the weights of its best epoch."""
        while True:
            for record in self._run.epochs():
                self.progress.records.append(record)
                yield record
            self._run.load_best()
            self.progress.summaries.append(summarize(self._run, self.progress.records))
            if self._run.stage.kind == DualStage.kind and self._run.best is not None:
                self.progress.submodel_hits = self._run.best.hits
            if self._index + 1 >= len(self._names):
                self.network.requires_grad_(False).eval()
                # Whatever trained it, what is measured and exported is torch's network.
                use_kernels(self.network, compiled=False)
                return
            self._index += 1
            self._run = self._begin(self._index)

    def stage_runs(self) -> Iterator[StageRun]:
        """Return a run of each stage before its first epoch, whatever has been trained."""
        return map(self._begin, range(len(self._names)))

    def _begin(self, index: int) -> StageRun:
        return self.context.run(self._stage(self._names[index]), self.settings.augment)

    def _stage(self, name: str) -> Stage:
        settings = self.settings
        match name:
            case "dual":
                return DualStage(self.dual, settings.dual)
            case "plain":
                return PlainStage(self.network, settings.plain)
            case "teacher":
                return PlainStage(self.teachers[0], settings.distil.teacher(settings.plain), name=name)
            case "student":
                return DistillStage(self.network, settings.plain, self.teachers, settings.distil, name=name)
            case _:
                stages = {stage.name: stage for stage in unfreeze_stages(self.network, settings.unfreeze)}
                return stages[name]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and JSON-ready numbers for `restore`."""
        tensors, numbers = self._run.state()
        tensors |= {f"submodels.{name}": torch.from_numpy(hits) for name, hits in self.progress.submodel_hits.items()}
        return tensors, {
            "run": numbers,
            "records": [record.as_dict() for record in self.progress.records],
            "summaries": [summary.as_dict() for summary in self.progress.summaries],
        }

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Continue from the result of `state`.

        Raises:
            ModelFileError: if the state does not fit these settings.
        """
        try:
            self._index = self._names.index(numbers["run"]["stage"])
            self._run = self._begin(self._index)
            self._run.restore(tensors, numbers["run"])
            hits = under(tensors, "submodels.")
            self.progress.submodel_hits = {name: tensor.numpy() for name, tensor in hits.items()}
            records, summaries = numbers["records"], numbers["summaries"]
            self.progress.records = [from_plain(EpochRecord, each, "record") for each in records]
            self.progress.summaries = [from_plain(StageSummary, each, "summary") for each in summaries]
            self._check_progress()
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError, UsageError) as error:
            # torch lists every tensor on its own line.
            reason = " ".join(str(error).split())[:200]
            raise ModelFileError(f"the checkpoint does not belong to this recipe and data: {reason}") from error

    def _check_progress(self) -> None:
        """Refuse records and summaries that do not fit the current stage and epoch."""
        own = sum(record.stage == self._run.stage.name for record in self.progress.records)
        done = tuple(summary.name for summary in self.progress.summaries)
        if own != self._run.epoch or done != self._names[: self._index]:
            raise ValueError(f"{own} records at epoch {self._run.epoch}, after stages {', '.join(done) or 'none'}")


def summarize(run: StageRun, records: list[EpochRecord]) -> StageSummary:
    """Return the summary of a finished stage; records of other stages are ignored."""
    stage, best = run.stage, run.best
    if best is None:
        raise RuntimeError("the stage has no finished epoch")
    own = [record for record in records if record.stage == stage.name]
    seconds = sum(record.seconds for record in own)
    return StageSummary(
        name=stage.name,
        kind=stage.kind,
        epochs=len(own),
        epochs_planned=stage.epochs,
        best_epoch=best.epoch,
        seconds=seconds,
        images_per_second=sum(record.images_per_second * record.seconds for record in own) / seconds,
        trains=stage.trains,
        selected_by=run.score,
        validation_accuracy=best.accuracy,
        validation_balanced_accuracy=best.balanced_accuracy,
        validation=own[best.epoch - 1].validation,
        stopped_early=len(own) < stage.epochs,
    )


def seeded_dual(model: FamilySpec, context: TrainingContext, *, alike: bool = False) -> DualModel:
    """Return two submodels with initial weights from the run's seed, the same in both if `alike`."""
    shape, classes = context.train.shape, context.classes
    dual = _seeded(context.seed, "weights", lambda: build_dual(model, shape, classes, alike=alike))
    context.place(dual)
    return dual


def seeded_unify(dual: DualModel, unify_spec: UnifySpec, context: TrainingContext) -> UnifiedModel:
    """Return the unified model of `dual`, with a head initialized from the run's seed."""
    unified = _seeded(context.seed, "head", lambda: unify(dual, unify_spec))
    context.place(unified)
    return unified


def measured_average(dual: DualModel, context: TrainingContext, batch_size: int) -> nn.Sequential:
    """Return the average of both submodels, with normalization statistics measured on training batches."""
    averaged = average(dual)
    context.place(averaged)
    context.measure_statistics(averaged, batch_size)
    return averaged


def seeded_submodel(model: FamilySpec, context: TrainingContext, stream: str = "weights") -> nn.Sequential:
    """Return a single submodel with initial weights from the run's seed."""
    module = _seeded(context.seed, stream, lambda: model.build(context.train.shape, context.classes))
    context.place(module)
    return module


def _seeded(seed: int, name: str, build: Callable[[], M]) -> M:
    """Return the result of `build` with torch's global generator seeded for a named stream, and restore it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, name))
        return build()
