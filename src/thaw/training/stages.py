"""The training stages: which units train or stay frozen, on which views, with which loss, for how long.

A stage sees its model as branches of named units (`thaw.models.families`), whatever their family.

Shapes: B batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from typing import Annotated, ClassVar, TypeVar

import torch
from pydantic import Field, StrictStr, field_validator
from torch import Tensor, nn

from thaw.data.batches import Batch, View
from thaw.data.mix import cross_entropy
from thaw.errors import UsageError
from thaw.kernels.optimizers import can_step
from thaw.models.unify import DualModel, UnifiedModel, unit_names, units
from thaw.plain import BelowOne, Count, Real, Whole, checked_dataclass
from thaw.quoting import listed
from thaw.training.compiled_optim import CompiledSGD
from thaw.training.compute import ParallelBranches, autocast
from thaw.training.optim import OptimizerSettings, make_optimizer
from thaw.training.optimizer import AnyOptimizer
from thaw.training.replicas import Part, Replicas, logits_by_parts, parts_of, split, without_gradients
from thaw.training.schedule import Schedule

T = TypeVar("T")

# Fewer images in a part would leave vectors of the compiled kernels empty.
_LEAST_PART = 16

Rate = Annotated[Real, Field(gt=0)]


@checked_dataclass(frozen=True, kw_only=True)
class DualSettings:
    """Stage 1 of the paper: both submodels train together, on the sum of their cross-entropies."""

    epochs: Count = 15
    """Maximum number of epochs."""
    batch_size: Count = 128
    """Images per step."""
    learning_rate: Rate = 0.001
    """Learning rate of the optimizer."""
    schedule: Schedule = field(default_factory=Schedule)
    """How the learning rate changes."""
    patience: Count = 5
    """Epochs without improvement on the validation images after which the stage stops."""
    views: tuple[View, View] = ("original", "augmented")
    """Views of the images that the first and the second submodel are trained on."""
    fit: OptimizerSettings = field(default_factory=OptimizerSettings)
    """The optimizer; the paper uses NAdam."""


@checked_dataclass(frozen=True, kw_only=True)
class PlainSettings:
    """Training of one network, without the paper's two stages."""

    epochs: Count = 30
    """Maximum number of epochs."""
    batch_size: Count = 128
    """Images per step."""
    most_steps: Annotated[Whole, Field(ge=0)] = 0
    """Maximum number of optimizer steps: large data sets train for fewer epochs, in whole epochs and at least one. 0
    for no limit."""
    learning_rate: Rate = 0.03
    """Learning rate of the optimizer."""
    schedule: Schedule = field(default_factory=lambda: Schedule(kind="cosine", warmup=0.1))
    """How the learning rate changes."""
    patience: Count = 1000
    """Epochs without improvement on the validation images after which training stops."""
    view: View = "augmented"
    """View of the images to train on: "original" or "augmented"."""
    fit: OptimizerSettings = field(
        default_factory=lambda: OptimizerSettings(optimizer="muon", momentum=0.95, ema=0.999)
    )
    """The optimizer."""

    def settled(self, images: int) -> PlainSettings:
        """The same for a number of training images: as many whole epochs, at least one, as `most_steps` allows."""
        if not self.most_steps:
            return self
        steps = -(-images // self.batch_size)
        return replace(self, epochs=max(1, min(self.epochs, self.most_steps // steps)), most_steps=0)


@checked_dataclass(frozen=True, kw_only=True)
class UnfreezeStep:
    """One step of stage 2: a unit joins those that train already."""

    unit: StrictStr
    """The unit to unfreeze: "head", a unit of the network, or "all" for every unit that is still frozen."""
    epochs: Count
    """Maximum number of epochs."""
    learning_rate: Rate = 0.01
    """Learning rate of SGD."""


@checked_dataclass(frozen=True, kw_only=True)
class UnfreezeSettings:
    """Stage 2 of the paper: the unified network is unfrozen unit by unit and trained by SGD with momentum."""

    steps: tuple[UnfreezeStep, ...] = (
        UnfreezeStep(unit="head", epochs=5),
        UnfreezeStep(unit="dense", epochs=5),
        UnfreezeStep(unit="conv2", epochs=5),
        UnfreezeStep(unit="conv1", epochs=10),
    )
    """The steps, in the order of unfreezing: the head if there is one, then the units from the last to the first."""
    batch_size: Count = 128
    """Images per step."""
    momentum: BelowOne = 0.9
    """Momentum of SGD."""
    schedule: Schedule = field(default_factory=Schedule)
    """How the learning rate changes in each step."""
    patience: Count = 5
    """Epochs without improvement on the validation images after which a step ends."""
    view: View = "original"
    """View of the images to train on: "original" or "augmented"."""

    @field_validator("steps")
    @classmethod
    def _check_steps(cls, steps: tuple[UnfreezeStep, ...]) -> tuple[UnfreezeStep, ...]:
        names = [step.unit for step in steps]
        if len(set(names)) != len(names):
            raise ValueError("expected each unit to be unfrozen once")
        return steps

    def check_units(self, units: Sequence[str]) -> None:
        """Refuse steps that do not follow `units`, the order in which the unified network can be unfrozen.

        Raises:
            UsageError: naming the expected order. "all" can only come last.
        """
        names = [step.unit for step in self.steps]
        ordered = names[:-1] if names[-1:] == ["all"] else names
        if ordered != list(units[: len(ordered)]):
            raise UsageError(
                f"steps = {listed(names)}: expected the order {', '.join(units)}, which may end early or with all"
            )


class Stage(ABC):
    """One part of the training, with one optimizer.

    Attributes:
        name: name of the stage, unique in a run: "dual", "plain", or the unit that it unfreezes.
        module: the module that trains and that a checkpoint of this stage contains.
        views: the views of a batch that `backward` needs.
        trains: names of the units that train, for records.
        ema: decay per step of the moving average of the weights, which is validated and saved; 0 for none.
        frozen: a module that the stage uses without training it, also part of its checkpoints; or None.
        class_weights: loss weight per class, float32 [K]; None if all are 1.
        compiled: whether the optimizer may take its steps in compiled C.
    """

    kind: ClassVar[str]

    name: str
    module: nn.Module
    epochs: int
    batch_size: int
    learning_rate: float
    schedule: Schedule
    patience: int
    views: tuple[View, ...]
    trains: tuple[str, ...]
    ema: float = 0.0
    frozen: nn.Module | None = None
    class_weights: Tensor | None = None
    compiled: bool = False

    def _follow(self, settings: DualSettings | PlainSettings) -> None:
        """Copy the settings that stages with new weights have in common."""
        self.fit = settings.fit
        self.ema = settings.fit.ema
        self.epochs = settings.epochs
        self.batch_size = settings.batch_size
        self.learning_rate = settings.learning_rate
        self.schedule = settings.schedule
        self.patience = settings.patience

    @abstractmethod
    def optimizer(self) -> AnyOptimizer:
        """Return a new optimizer over the parameters that train."""

    @abstractmethod
    def set_training(self) -> None:
        """Put trained units into training mode and frozen ones, buffers and dropout included, into evaluation mode."""

    @abstractmethod
    def backward(self, batch: Batch, parallel: ParallelBranches, dtype: torch.dtype) -> dict[str, Tensor]:
        """Add the gradients of one batch; return the losses (float32 scalars) by output. Their sum is minimized."""

    @abstractmethod
    def logits(self, x: Tensor, parallel: ParallelBranches) -> dict[str, Tensor]:
        """Return float32 logits [B, K] by output for images [B, C, H, W], in evaluation mode without gradients."""


class DualStage(Stage):
    """Stage 1: two submodels, each on its own view of the same images, with one optimizer for both."""

    kind = "dual"

    def __init__(self, module: DualModel, settings: DualSettings) -> None:
        self.name = "dual"
        self.module: DualModel = module
        self._follow(settings)
        self.views = settings.views
        first, second = settings.views
        # Outputs are named after their views; two equal views are numbered.
        self.outputs = (first, second) if first != second else (f"{first} 1", f"{second} 2")
        self.trains = tuple(name for name, _ in module.branches[0].named_children())
        self._replicas = [Replicas(branch) for branch in module.branches]

    def optimizer(self) -> AnyOptimizer:
        """Return one optimizer over both submodels."""
        return make_optimizer(self.module, self.fit, self.learning_rate, compiled=self.compiled)

    def set_training(self) -> None:
        """Everything trains."""
        self.module.requires_grad_(True).train()

    def backward(self, batch: Batch, parallel: ParallelBranches, dtype: torch.dtype) -> dict[str, Tensor]:
        """Compute both cross-entropies. The submodels share no weights, so each has its own gradient.

        With four cores or more, each submodel is computed in several parts of the batch.
        """
        parts = min(parallel.count // len(self.views), len(batch) // _LEAST_PART)
        if parts > 1:
            return self._backward_by_parts(batch, parallel, dtype, parts)

        def job(branch: nn.Module, view: View) -> Tensor:
            with autocast(dtype, batch.labels.device):
                logits = branch(batch.views[view])
            mix, smoothing = batch.mixes.get(view), self.fit.label_smoothing
            loss = cross_entropy(logits.float(), batch.labels, mix, smoothing, self.class_weights)
            loss.backward()
            return loss.detach()

        jobs = [_bind(job, branch, view) for branch, view in zip(self.module.branches, self.views, strict=True)]
        return dict(zip(self.outputs, parallel.run(jobs), strict=True))

    def _backward_by_parts(
        self, batch: Batch, parallel: ParallelBranches, dtype: torch.dtype, parts: int
    ) -> dict[str, Tensor]:
        def loss(branch: nn.Module, part: Part) -> Tensor:
            with autocast(dtype, batch.labels.device):
                logits = branch(part.x)
            return part.targets.cross_entropy(logits.float(), self.fit.label_smoothing, self.class_weights)

        by_branch = [
            replicas.jobs(loss, split(batch, view, parts))
            for replicas, view in zip(self._replicas, self.views, strict=True)
        ]
        done = iter(parallel.run([job for jobs in by_branch for job in jobs]))
        losses = [
            replicas.join([next(done) for _ in jobs]) for replicas, jobs in zip(self._replicas, by_branch, strict=True)
        ]
        return dict(zip(self.outputs, losses, strict=True))

    def logits(self, x: Tensor, parallel: ParallelBranches) -> dict[str, Tensor]:
        """Return the logits of both submodels for the same images."""
        self.module.eval()
        parts = x.chunk(max(1, parallel.count // len(self.views)))
        jobs = [_bind(without_gradients, branch, part) for branch in self.module.branches for part in parts]
        done = parallel.run(jobs)
        each = [torch.cat(done[first : first + len(parts)]) for first in range(0, len(done), len(parts))]
        return dict(zip(self.outputs, each, strict=True))


class UnfreezeStage(Stage):
    """A sub-stage of stage 2: trains the unfrozen units `trains` of the unified network; all other units stay frozen.

    The branches of a unified model are computed in parallel. A single submodel is computed in two halves of a batch, as
    in `PlainStage`.
    """

    kind = "unfreeze"

    def __init__(
        self, module: nn.Module, settings: UnfreezeSettings, step: UnfreezeStep, trains: Sequence[str]
    ) -> None:
        self.name = step.unit
        self.module = module
        self.epochs = step.epochs
        self.batch_size = settings.batch_size
        self.learning_rate = step.learning_rate
        self.momentum = settings.momentum
        self.schedule = settings.schedule
        self.patience = settings.patience
        self.views = (settings.view,)
        self.trains = tuple(trains)
        self._replicas = Replicas(module)

    def optimizer(self) -> AnyOptimizer:
        """Return SGD with momentum over the unfrozen units."""
        self.set_training()
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        sgd = CompiledSGD if self.compiled and can_step(trained) else torch.optim.SGD
        return sgd(trained, lr=self.learning_rate, momentum=self.momentum)

    def set_training(self) -> None:
        """Train unfrozen units; frozen ones get no gradient and run in evaluation mode, with dropout and statistics."""
        self._set_modes(self.module)
        for name, unit in units(self.module):
            unit.requires_grad_(name in self.trains)

    def _set_modes(self, module: nn.Module) -> None:
        """Put the units of the network, or of a replica, into training or evaluation mode."""
        module.eval()
        for name, unit in units(module):
            unit.train(name in self.trains)

    def backward(self, batch: Batch, parallel: ParallelBranches, dtype: torch.dtype) -> dict[str, Tensor]:
        """The cross-entropy of the one output."""
        if isinstance(self.module, UnifiedModel):
            return {"unified": self._backward_by_branches(self.module, batch, parallel, dtype)}

        def loss(module: nn.Module, part: Part) -> Tensor:
            # A replica has the mode of the whole network, and not yet those of its units.
            self._set_modes(module)
            with autocast(dtype, part.x.device):
                logits = module(part.x)
            return part.targets.cross_entropy(logits.float(), weights=self.class_weights)

        return {"unified": self._replicas.backward(loss, parts_of(batch, self.views[0]), parallel)}

    def _backward_by_branches(
        self, module: UnifiedModel, batch: Batch, parallel: ParallelBranches, dtype: torch.dtype
    ) -> Tensor:
        """Run the branches forward in parallel, then the head in both directions, then the branches backward."""
        x = batch.views[self.views[0]]

        def forward(index: int) -> Tensor:
            with autocast(dtype, x.device):
                return module.branch_scores(index, x)

        scores = parallel.run([_bind(forward, index) for index in range(len(module.branches))])
        leaves = [score.detach().requires_grad_(score.requires_grad) for score in scores]
        mix = batch.mixes.get(self.views[0])
        loss = cross_entropy(module.decide(leaves), batch.labels, mix, weights=self.class_weights)
        loss.backward()
        pairs = [(score, leaf) for score, leaf in zip(scores, leaves, strict=True) if score.requires_grad]
        parallel.run([_bind(_backward, score, leaf.grad) for score, leaf in pairs])
        return loss.detach()

    def logits(self, x: Tensor, parallel: ParallelBranches) -> dict[str, Tensor]:
        """The one output."""
        module = self.module.eval()
        if not isinstance(module, UnifiedModel):
            return {"unified": logits_by_parts(module, x, parallel)}

        def forward(index: int) -> Tensor:
            with torch.no_grad():
                return module.branch_scores(index, x)

        scores = parallel.run([_bind(forward, index) for index in range(len(module.branches))])
        with torch.no_grad():
            return {"unified": module.decide(scores)}


class PlainStage(Stage):
    """Trains one network on one view.

    On a CPU, each batch is computed as two halves in parallel, each normalized by its own statistics: operations this
    small keep only one core busy. A single core computes two halves as well, so that its sums are the same.
    """

    kind = "plain"

    def __init__(self, module: nn.Module, settings: PlainSettings, *, name: str = "plain") -> None:
        self.name = name
        self.module = module
        self._follow(settings)
        self.views = (settings.view,)
        self.trains = tuple(unit for unit, _ in module.named_children())
        self._replicas = Replicas(module)

    def optimizer(self) -> AnyOptimizer:
        """Return an optimizer over all parameters."""
        return make_optimizer(self.module, self.fit, self.learning_rate, compiled=self.compiled)

    def set_training(self) -> None:
        """Everything trains."""
        self.module.requires_grad_(True).train()

    def backward(self, batch: Batch, parallel: ParallelBranches, dtype: torch.dtype) -> dict[str, Tensor]:
        """The loss of the one output."""

        def loss(module: nn.Module, part: Part) -> Tensor:
            with autocast(dtype, part.x.device):
                logits = module(part.x)
            return self.loss(logits.float(), part, dtype)

        return {self.name: self._replicas.backward(loss, parts_of(batch, self.views[0]), parallel)}

    def loss(self, logits: Tensor, part: Part, dtype: torch.dtype) -> Tensor:  # noqa: ARG002 - subclasses use it
        """Return the mean loss over a part of a batch; logits float32 [B, K]."""
        return part.targets.cross_entropy(logits, self.fit.label_smoothing, self.class_weights)

    def logits(self, x: Tensor, parallel: ParallelBranches) -> dict[str, Tensor]:
        """The one output."""
        return {self.name: logits_by_parts(self.module.eval(), x, parallel)}


def unfreeze_stages(module: nn.Module, settings: UnfreezeSettings) -> list[UnfreezeStage]:
    """Return the sub-stages of stage 2 in order; each trains the unit of its step and all units before it.

    Raises:
        UsageError: if the steps do not follow the network's unfreezing order.
    """
    order = unit_names(module)
    settings.check_units(order)
    stages = []
    trains: tuple[str, ...] = ()
    for step in settings.steps:
        trains = order if step.unit == "all" else (*trains, step.unit)
        stages.append(UnfreezeStage(module, settings, step, trains))
    return stages


def _bind(function: Callable[..., T], *args: object) -> Callable[[], T]:
    return lambda: function(*args)


def _backward(result: Tensor, gradient: Tensor) -> None:
    """Compute the gradients for the gradient of `result`.

    `result.backward(gradient)` would be the same, but its first call imports a solver for symbolic shapes, for 1 s.
    """
    (result * gradient).sum().backward()
