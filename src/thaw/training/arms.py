"""The arms of the ablation: the method with one of its ideas taken away, each with as many parameters and image passes.

An image pass is one image through all parameters of the arm's network, forward and backward, so an epoch of the dual
model, whose submodels hold half of the parameters each, counts as an epoch of a network of the same size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from thaw.data.batches import View
from thaw.models.families import FamilySpec
from thaw.models.fusion import DualModel, build_unified
from thaw.training.engine import EpochRecord, StageRun
from thaw.training.method import MethodSettings, Setting, seeded_dual, seeded_plain, seeded_unify
from thaw.training.stages import DualStage, Stage, UnfreezeSettings, UnfreezeStep, unfreeze_stages

PLAIN = "plain"

Modules = list[nn.Module]
"""What an arm's training gives: one network, or two whose probabilities are averaged."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm.

    Attributes:
        name: stable, for files and tables.
        question: what it leaves out.
        dual: whether there are two submodels; without, one plain network of the same size.
        views: what the submodels see in stage 1.
        stage_two: "gradual" thawing, everything thawed "at once", or "none": the mean of both submodels' probabilities.
    """

    name: str
    question: str
    dual: bool = True
    views: tuple[View, View] = ("original", "augmented")
    stage_two: str = "gradual"


ARMS: tuple[Arm, ...] = (
    Arm(name=PLAIN, question="one plain network on the original images", dual=False, stage_two="none"),
    Arm(name="dual-only", question="no stage 2: the mean of the two submodels", stage_two="none"),
    Arm(name="both-original", question="both submodels see the original images", views=("original", "original")),
    Arm(name="both-augmented", question="both submodels see augmented images", views=("augmented", "augmented")),
    Arm(name="thawed-at-once", question="stage 2 with everything thawed at once", stage_two="at once"),
    Arm(name="whole", question="the whole method"),
)


class ArmTraining:
    """Trains arms on one setting; arms whose first stage is the same share it, since it would give the same weights."""

    def __init__(self, settings: MethodSettings, setting: Setting) -> None:
        self.settings = without_early_stop(settings)
        self.setting = setting
        self._first_stages: dict[tuple[View, View], DualModel] = {}

    def train(self, arm: Arm) -> Iterator[EpochRecord]:
        """Train `arm`; `modules` is what came out, once the iterator has ended."""
        self.modules: Modules = []
        passes = self.settings.dual.epochs + sum(step.epochs for step in self.settings.unfreeze.steps)
        if not arm.dual:
            longer = replace(self.settings.dual, epochs=passes, views=arm.views)
            stage = seeded_plain(plain_spec(self.settings, self.setting), longer, self.setting)
            yield from self._stage(stage)
            self.modules = [stage.module]
        elif arm.stage_two == "none":
            dual = seeded_dual(self.settings.model, self.setting)
            yield from self._stage(DualStage(dual, replace(self.settings.dual, epochs=passes, views=arm.views)))
            self.modules = list(dual.branches)
        else:
            yield from self._two_stages(arm)

    def _two_stages(self, arm: Arm) -> Iterator[EpochRecord]:
        if arm.views not in self._first_stages:
            dual = seeded_dual(self.settings.model, self.setting)
            yield from self._stage(DualStage(dual, replace(self.settings.dual, views=arm.views)))
            self._first_stages[arm.views] = dual
        unified = seeded_unify(self._first_stages[arm.views], self.settings.fusion, self.setting)
        steps = self.settings.unfreeze if arm.stage_two == "gradual" else at_once(self.settings.unfreeze)
        for stage in unfreeze_stages(unified, steps):
            yield from self._stage(stage)
        self.modules = [unified]

    def _stage(self, stage: Stage) -> Iterator[EpochRecord]:
        run: StageRun = self.setting.run(stage, self.settings.augment)
        yield from run.epochs()
        run.load_best()

    def skeleton(self, arm: Arm) -> Modules:
        """Modules of the arm's shapes, to load trained tensors into."""
        shape, classes = self.setting.train.shape, self.setting.classes
        modules: Modules
        if not arm.dual:
            modules = [plain_spec(self.settings, self.setting).build(shape, classes)]
        elif arm.stage_two == "none":
            modules = [self.settings.model.build(shape, classes) for _ in range(2)]
        else:
            modules = [build_unified(self.settings.model, self.settings.fusion, shape, classes)]
        for module in modules:
            self.setting.place(module)
        return modules


def without_early_stop(settings: MethodSettings) -> MethodSettings:
    """Every planned epoch is trained: arms that stopped at different times would not have had equal image passes."""
    passes = settings.dual.epochs + sum(step.epochs for step in settings.unfreeze.steps)
    return replace(
        settings,
        dual=replace(settings.dual, patience=passes),
        unfreeze=replace(settings.unfreeze, patience=passes),
    )


def at_once(settings: UnfreezeSettings) -> UnfreezeSettings:
    """Stage 2 without gradual thawing: one step over everything, for as many epochs as all steps together."""
    epochs = sum(step.epochs for step in settings.steps)
    rate = settings.steps[-1].learning_rate
    return replace(settings, steps=(UnfreezeStep(thaws="all", epochs=epochs, learning_rate=rate),))


def plain_spec(settings: MethodSettings, setting: Setting) -> FamilySpec:
    """One submodel with as many parameters as the unified model, or as few less as its widths allow.

    The filters keep the submodel's proportion as far as they fit, and the last layer then takes what is left.
    """
    shape, classes = setting.train.shape, setting.classes
    with torch.device("meta"):
        budget = count_parameters([build_unified(settings.model, settings.fusion, shape, classes)])

        def fits(filters: Sequence[int]) -> bool:
            spec = replace(settings.model, filters=tuple(filters))
            return count_parameters([spec.build(shape, classes)]) <= budget

        ratio = settings.model.filters[1] / settings.model.filters[0]
        first = settings.model.filters[0]
        while fits((first + 1, round(ratio * (first + 1)))):
            first += 1
        second = round(ratio * first)
        while fits((first, second + 1)):
            second += 1
    return replace(settings.model, filters=(first, second))


def count_parameters(modules: Sequence[nn.Module]) -> int:
    """Learned numbers in all modules together."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def arm_tensors(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The tensors of an arm's modules under names that `load_arm` takes back."""
    return {f"{i}.{name}": tensor for i, module in enumerate(modules) for name, tensor in module.state_dict().items()}


def load_arm(modules: Sequence[nn.Module], tensors: dict[str, Tensor]) -> None:
    """Put the tensors of `arm_tensors` into modules of the same shapes."""
    for index, module in enumerate(modules):
        prefix = f"{index}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        module.load_state_dict(own)
