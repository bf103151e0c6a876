"""The training stages: which units train or stay frozen, on which views, with which loss, for how long.

A stage sees its model as branches of named units (`thaw.models.families`), whatever their family.

Shapes: B batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeVar, get_args

import torch
from torch import Tensor, nn

from thaw.data.batches import Batch, View
from thaw.data.mix import cross_entropy
from thaw.errors import UsageError
from thaw.models.unify import DualModel, UnifiedModel, unit_names, units
from thaw.quoting import listed, shown
from thaw.training.compute import ParallelBranches, autocast
from thaw.training.optim import OptimizerSettings, make_optimizer
from thaw.training.replicas import Part, Replicas, logits_by_parts, parts_of, without_gradients
from thaw.training.schedule import Schedule

T = TypeVar("T")


def check_positive(where: str, **values: float) -> None:
    """Refuse settings of the section `where` that are not finite numbers above 0.

    Raises:
        UsageError: naming the first.
    """
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise UsageError(f"{where}.{name} {shown(value)}: expected a finite number above 0")


def check_view(where: str, view: str) -> None:
    """Refuse a view that there is none of, in the section `where`.

    Raises:
        UsageError: naming the views.
    """
    if view not in get_args(View):
        raise UsageError(f'{where}.view {shown(view)}: expected "original" or "augmented"')


@dataclass(frozen=True, kw_only=True)
class DualSettings:
    """Stage 1: both submodels, NAdam, the sum of their two cross-entropies.

    Attributes:
        epochs: at most this many.
        batch_size: images a step.
        learning_rate: NAdam's.
        schedule: how the rate moves.
        patience: epochs without a better validation accuracy after which the stage ends.
        views: what the first and the second submodel see.
        fit: the optimizer and what goes with it; the paper's is NAdam.
    """

    epochs: int = 15
    batch_size: int = 128
    learning_rate: float = 0.001
    schedule: Schedule = field(default_factory=Schedule)
    patience: int = 5
    views: tuple[View, View] = ("original", "augmented")
    fit: OptimizerSettings = field(default_factory=OptimizerSettings)

    def __post_init__(self) -> None:
        check_positive(
            "dual",
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            patience=self.patience,
        )
        if len(self.views) != 2 or not set(self.views) <= set(get_args(View)):
            raise UsageError(f'dual.views {list(self.views)}: expected two of "original", "augmented"')


@dataclass(frozen=True, kw_only=True)
class PlainSettings:
    """One network that stands alone, trained as usual, without the two stages.

    Attributes:
        epochs: at most this many.
        batch_size: images a step.
        most_steps: optimizer steps that are enough: a run on so many images that `epochs` are more has fewer epochs
            (`settled`). 0 for no such limit.
        learning_rate: the optimizer's.
        schedule: how the rate moves.
        patience: epochs without a better validation accuracy after which it ends.
        view: what it is trained on.
        fit: the optimizer and what goes with it.
    """

    epochs: int = 30
    batch_size: int = 128
    most_steps: int = 0
    learning_rate: float = 0.03
    schedule: Schedule = field(default_factory=lambda: Schedule(kind="cosine", warmup=0.1))
    patience: int = 1000
    view: View = "augmented"
    fit: OptimizerSettings = field(
        default_factory=lambda: OptimizerSettings(optimizer="muon", momentum=0.95, ema=0.999)
    )

    def __post_init__(self) -> None:
        check_positive(
            "plain",
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            patience=self.patience,
        )
        check_view("plain", self.view)
        if self.most_steps < 0:
            raise UsageError(f"plain.most_steps {self.most_steps}: expected at least 0")

    def settled(self, images: int) -> PlainSettings:
        """The same for a number of training images: as many whole epochs, at least one, as `most_steps` allows."""
        if not self.most_steps:
            return self
        steps = -(-images // self.batch_size)
        return replace(self, epochs=max(1, min(self.epochs, self.most_steps // steps)), most_steps=0)


@dataclass(frozen=True, kw_only=True)
class UnfreezeStep:
    """One sub-stage of stage 2: `unit` names the unit that joins what trains already ("head", "dense", ... "all")."""

    unit: str
    epochs: int
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        check_positive(f"unfreeze.steps[{self.unit}]", epochs=self.epochs, learning_rate=self.learning_rate)


@dataclass(frozen=True, kw_only=True)
class UnfreezeSettings:
    """Stage 2: SGD with momentum over the sub-stages `steps`, in the order in which they are listed.

    Attributes:
        steps: the sub-stages, in thawing order: the head if there is one, then the units from the last to the first.
        batch_size: images a step.
        momentum: of SGD, 0 to below 1.
        schedule: how the rate moves in each sub-stage.
        patience: epochs without a better validation accuracy after which a sub-stage ends.
        view: what the joined network is trained on.
    """

    steps: tuple[UnfreezeStep, ...] = (
        UnfreezeStep(unit="head", epochs=5),
        UnfreezeStep(unit="dense", epochs=5),
        UnfreezeStep(unit="conv2", epochs=5),
        UnfreezeStep(unit="conv1", epochs=10),
    )
    batch_size: int = 128
    momentum: float = 0.9
    schedule: Schedule = field(default_factory=Schedule)
    patience: int = 5
    view: View = "original"

    def __post_init__(self) -> None:
        check_positive("unfreeze", batch_size=self.batch_size, patience=self.patience)
        if not 0.0 <= self.momentum < 1.0:
            raise UsageError(f"unfreeze.momentum {shown(self.momentum)}: expected a number from 0 to below 1")
        check_view("unfreeze", self.view)
        names = [step.unit for step in self.steps]
        if len(set(names)) != len(names):
            raise UsageError(f"unfreeze.steps thaw {listed(names)}: a unit can thaw only once")

    def check_units(self, units: Sequence[str]) -> None:
        """Refuse steps that do not follow `units`, the thawing order of the joined network.

        Raises:
            UsageError: naming the order that is expected. "all" thaws whatever is still frozen and can only come last.
        """
        names = [step.unit for step in self.steps]
        if names[-1:] == ["all"]:
            names = names[:-1]
        if names != list(units[: len(names)]):
            raise UsageError(
                f"unfreeze.steps thaw {listed(step.unit for step in self.steps)}: "
                f'expected the order {", ".join(units)}, which may end early or in "all"'
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
    def optimizer(self) -> torch.optim.Optimizer:
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

    def optimizer(self) -> torch.optim.Optimizer:
        """Return one optimizer over both submodels."""
        return make_optimizer(self.module, self.fit, self.learning_rate)

    def set_training(self) -> None:
        """Everything trains."""
        self.module.requires_grad_(True).train()

    def backward(self, batch: Batch, parallel: ParallelBranches, dtype: torch.dtype) -> dict[str, Tensor]:
        """Compute both cross-entropies. The submodels share no weights, so each has its own gradient."""

        def job(branch: nn.Module, view: View) -> Tensor:
            with autocast(dtype, batch.labels.device):
                logits = branch(batch.views[view])
            mix, smoothing = batch.mixes.get(view), self.fit.label_smoothing
            loss = cross_entropy(logits.float(), batch.labels, mix, smoothing, self.class_weights)
            loss.backward()
            return loss.detach()

        jobs = [_bind(job, branch, view) for branch, view in zip(self.module.branches, self.views, strict=True)]
        return dict(zip(self.outputs, parallel.run(jobs), strict=True))

    def logits(self, x: Tensor, parallel: ParallelBranches) -> dict[str, Tensor]:
        """Return the logits of both submodels for the same images."""
        self.module.eval()
        results = parallel.run([_bind(without_gradients, branch, x) for branch in self.module.branches])
        return dict(zip(self.outputs, results, strict=True))


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

    def optimizer(self) -> torch.optim.Optimizer:
        """Return SGD with momentum over the unfrozen units."""
        self.set_training()
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        return torch.optim.SGD(trained, lr=self.learning_rate, momentum=self.momentum)

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
        parallel.run([_bind(score.backward, leaf.grad) for score, leaf in pairs])
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

    def optimizer(self) -> torch.optim.Optimizer:
        """Return an optimizer over all parameters."""
        return make_optimizer(self.module, self.fit, self.learning_rate)

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
