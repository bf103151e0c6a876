"""The arms of the ablation: the method with one of its ideas taken away, with as many parameters and image passes.

An image pass is one image presented to all parameters of the arm's network. The submodels of the dual model hold half
of the parameters each, so an epoch of the dual model counts as an epoch of a network of the same size. A pass through
frozen units costs less than one that trains them; that is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from thaw.data.batches import View
from thaw.errors import UsageError
from thaw.models.blocks import learned_parameters
from thaw.models.families import FamilySpec, PaperSpec
from thaw.models.fusion import DualModel, build_unified
from thaw.training.engine import EpochRecord, StageRun
from thaw.training.method import MethodSettings, Setting, seeded_dual, seeded_plain, seeded_unify
from thaw.training.stages import (
    DualSettings,
    DualStage,
    PlainSettings,
    Stage,
    UnfreezeSettings,
    UnfreezeStep,
    unfreeze_stages,
)

PLAIN = "plain"

# How far from the submodel's proportion the first filters may be, to come closer to the number of parameters.
_NEARBY = 2

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
            stage = seeded_plain(
                fitting_spec(self.settings, self.setting, 1),
                as_plain(replace(self.settings.dual, epochs=passes, views=arm.views)),
                self.setting,
            )
            yield from self._stage(stage)
            self.modules = [stage.module]
        elif arm.stage_two == "none":
            dual = seeded_dual(fitting_spec(self.settings, self.setting, 2), self.setting)
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
            modules = [fitting_spec(self.settings, self.setting, 1).build(shape, classes)]
        elif arm.stage_two == "none":
            modules = [fitting_spec(self.settings, self.setting, 2).build(shape, classes) for _ in range(2)]
        else:
            modules = [build_unified(self.settings.model, self.settings.fusion, shape, classes)]
        for module in modules:
            self.setting.place(module)
        return modules


def as_plain(dual: DualSettings) -> PlainSettings:
    """One network trained as the first submodel of `dual` is."""
    return PlainSettings(
        epochs=dual.epochs,
        batch_size=dual.batch_size,
        learning_rate=dual.learning_rate,
        schedule=dual.schedule,
        patience=dual.patience,
        view=dual.views[0],
        fit=dual.fit,
    )


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


def fitting_spec(settings: MethodSettings, setting: Setting, networks: int) -> FamilySpec:
    """Submodels of which `networks` have as many parameters as the unified model, or as few less as widths allow.

    The first filters are those that keep the submodel's proportion as far as it fits, or up to `_NEARBY` more or less;
    the second take what is then left.
    """
    shape, classes = setting.train.shape, setting.classes
    if not isinstance(settings.model, PaperSpec):
        return _largest_member(settings, setting, networks)
    paper = settings.model

    def size(first: int, second: int) -> int:
        spec = replace(paper, filters=(first, second))
        return networks * count_parameters([spec.build(shape, classes)])

    with torch.device("meta"):
        budget = count_parameters([build_unified(settings.model, settings.fusion, shape, classes)])
        ratio = paper.filters[1] / paper.filters[0]
        middle = paper.filters[0]
        while size(middle + 1, max(1, round(ratio * (middle + 1)))) <= budget:
            middle += 1
        candidates = []
        for first in range(max(1, middle - _NEARBY), middle + _NEARBY + 1):
            second = 1
            while size(first, second + 1) <= budget:
                second += 1
            candidates.append((first, second))
        fitting = [filters for filters in candidates if size(*filters) <= budget]
        best = max(fitting, key=lambda filters: size(*filters))
    return replace(paper, filters=best)


def _largest_member(settings: MethodSettings, setting: Setting, networks: int) -> FamilySpec:
    """The largest member of the family of which `networks` have no more parameters than the unified model."""
    shape, classes = setting.train.shape, setting.classes
    found: FamilySpec | None = None
    with torch.device("meta"):
        budget = count_parameters([build_unified(settings.model, settings.fusion, shape, classes)])
        for spec in settings.model.members():
            if networks * count_parameters([spec.build(shape, classes)]) > budget:
                break
            found = spec
    if found is None:
        raise UsageError(f"no {settings.model.family} network is small enough for {networks} of {budget:,} parameters")
    return found


def count_parameters(modules: Sequence[nn.Module]) -> int:
    """Learned numbers in all modules together."""
    return sum(map(learned_parameters, modules))


def arm_tensors(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The tensors of an arm's modules under names that `load_arm` takes back."""
    return {f"{i}.{name}": tensor for i, module in enumerate(modules) for name, tensor in module.state_dict().items()}


def load_arm(modules: Sequence[nn.Module], tensors: dict[str, Tensor]) -> None:
    """Put the tensors of `arm_tensors` into modules of the same shapes."""
    for index, module in enumerate(modules):
        prefix = f"{index}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        module.load_state_dict(own)
