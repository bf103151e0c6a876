"""The arms of two studies, each of which gives a network with as many parameters after as many image passes.

"parts" is the ablation: the method with one of its ideas taken away. "unify" compares the ways to make one network of
two submodels: to concatenate them, to average their weights, to distil both into one.

An image pass is one image presented to as many parameters as the whole network has. The submodels that are concatenated
hold half of them each, so an epoch of theirs counts as one pass. Those that are averaged or distilled are as large as
what comes out, so an epoch of theirs counts as two, and their first stage has half of the epochs. A network of half the
size has two epochs a pass. A pass through frozen units, teachers included, costs less than one that trains them; that
is not counted.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from thaw.data.batches import View
from thaw.errors import UsageError
from thaw.models.blocks import learned_parameters
from thaw.models.families import FamilySpec, PaperSpec
from thaw.models.unify import HEAD, DualModel, Join, build_unified
from thaw.training.distil import DistillStage
from thaw.training.engine import EpochRecord, StageRun
from thaw.training.stages import (
    DualSettings,
    DualStage,
    PlainSettings,
    PlainStage,
    Stage,
    UnfreezeSettings,
    UnfreezeStep,
    unfreeze_stages,
)
from thaw.training.trainer import (
    TrainerSettings,
    TrainingContext,
    measured_average,
    seeded_dual,
    seeded_submodel,
    seeded_unify,
)

StudyName = Literal["parts", "unify"]
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
        question: what it leaves out, or what it does.
        dual: whether there are two submodels; without, one plain network of the same size.
        views: what the submodels see in stage 1.
        stage_two: "gradual" thawing, everything thawed "at once", or "none": the mean of both submodels' probabilities.
        join: how the two become one.
        half: whether what comes out, one submodel, has half of the parameters.
    """

    name: str
    question: str
    dual: bool = True
    views: tuple[View, View] = ("original", "augmented")
    stage_two: str = "gradual"
    join: Join = "concatenate"
    half: bool = False

    @property
    def gives_one_submodel(self) -> bool:
        """Whether what comes out is one submodel that stands alone."""
        return not self.dual or self.join != "concatenate"

    @property
    def epochs_a_pass(self) -> int:
        """Epochs of what comes out that count as one pass."""
        return 2 if self.half else 1


ARMS: tuple[Arm, ...] = (
    Arm(name=PLAIN, question="one plain network on the original images", dual=False, stage_two="none"),
    Arm(name="dual-only", question="no stage 2: the mean of the two submodels", stage_two="none"),
    Arm(name="both-original", question="both submodels see the original images", views=("original", "original")),
    Arm(name="both-augmented", question="both submodels see augmented images", views=("augmented", "augmented")),
    Arm(name="thawed-at-once", question="stage 2 with everything thawed at once", stage_two="at once"),
    Arm(name="whole", question="the whole method"),
)
UNIFY_ARMS: tuple[Arm, ...] = (
    ARMS[0],
    Arm(name="concatenate", question="scores concatenated, a new head, thawed"),
    Arm(name="average", question="weights averaged, thawed", join="average"),
    Arm(name="distil", question="both distilled into a fresh submodel", join="distil"),
    Arm(name="plain-half", question="one plain network of half the size", dual=False, stage_two="none", half=True),
    Arm(name="distil-half", question="both halves distilled into one", join="distil", half=True),
)
STUDIES: dict[StudyName, tuple[Arm, ...]] = {"parts": ARMS, "unify": UNIFY_ARMS}


class ArmTraining:
    """Trains arms on one setting; arms whose first stage is the same share it, since it would give the same weights."""

    def __init__(self, settings: TrainerSettings, context: TrainingContext) -> None:
        self.settings = without_early_stop(settings)
        self.context = context
        self._first_stages: dict[tuple[DualSettings, FamilySpec, bool], DualModel] = {}

    def train(self, arm: Arm) -> Iterator[EpochRecord]:
        """Train `arm`; `modules` is what came out, once the iterator has ended."""
        self.modules: Modules = []
        dual = replace(self.settings.dual, views=arm.views)
        passes = dual.epochs + _thawing_epochs(self.settings.unfreeze)
        if not arm.dual:
            network = seeded_submodel(self._alone(arm), self.context)
            yield from self._stage(PlainStage(network, as_plain(dual, passes * arm.epochs_a_pass)))
            self.modules = [network]
        elif arm.stage_two == "none":
            made = seeded_dual(fitting_spec(self.settings, self.context, 2), self.context)
            yield from self._stage(DualStage(made, replace(dual, epochs=passes)))
            self.modules = list(made.branches)
        elif arm.join == "concatenate":
            made = yield from self._first_stage(dual, self.settings.model)
            unified = seeded_unify(made, self.settings.unify, self.context)
            steps = self.settings.unfreeze if arm.stage_two == "gradual" else at_once(self.settings.unfreeze)
            yield from self._thaw(unified, steps)
        else:
            yield from self._one_of_two(arm, dual)

    def _one_of_two(self, arm: Arm, dual: DualSettings) -> Iterator[EpochRecord]:
        """The arms that make one submodel of two that are as large as it; an odd pass is left for the second stage."""
        epochs, left = divmod(dual.epochs * arm.epochs_a_pass, 2)
        dual, spec = replace(dual, epochs=epochs), self._alone(arm)
        if arm.join == "average":
            made = yield from self._first_stage(dual, spec, alike=True)
            averaged = measured_average(made, self.context, self.settings.unfreeze.batch_size)
            yield from self._thaw(averaged, without_head(self.settings.unfreeze, spec.units[-1], left))
            return
        made = yield from self._first_stage(dual, spec)
        student = seeded_submodel(spec, self.context, "student")
        epochs = _thawing_epochs(self.settings.unfreeze) * arm.epochs_a_pass + left
        settings = replace(as_plain(dual, epochs), view=self.settings.unfreeze.view)
        yield from self._stage(
            DistillStage(student, settings, list(made.branches), self.settings.distil, name="student")
        )
        self.modules = [student]

    def _first_stage(
        self, dual: DualSettings, spec: FamilySpec, *, alike: bool = False
    ) -> Generator[EpochRecord, None, DualModel]:
        """Two submodels trained as `dual` says, or those that an earlier arm has trained so."""
        key = (dual, spec, alike)
        if key not in self._first_stages:
            made = seeded_dual(spec, self.context, alike=alike)
            yield from self._stage(DualStage(made, dual))
            self._first_stages[key] = made
        return self._first_stages[key]

    def _thaw(self, network: nn.Module, settings: UnfreezeSettings) -> Iterator[EpochRecord]:
        for stage in unfreeze_stages(network, settings):
            yield from self._stage(stage)
        self.modules = [network]

    def _stage(self, stage: Stage) -> Iterator[EpochRecord]:
        run: StageRun = self.context.run(stage, self.settings.augment)
        yield from run.epochs()
        run.load_best()

    def _alone(self, arm: Arm) -> FamilySpec:
        """The submodel that comes out alone: as large as the unified model, or half of it."""
        return self.settings.model if arm.half else fitting_spec(self.settings, self.context, 1)

    def skeleton(self, arm: Arm) -> Modules:
        """Modules of the arm's shapes, to load trained tensors into."""
        shape, classes = self.context.train.shape, self.context.classes
        modules: Modules
        if arm.gives_one_submodel:
            modules = [self._alone(arm).build(shape, classes)]
        elif arm.stage_two == "none":
            modules = [fitting_spec(self.settings, self.context, 2).build(shape, classes) for _ in range(2)]
        else:
            modules = [build_unified(self.settings.model, self.settings.unify, shape, classes)]
        for module in modules:
            self.context.place(module)
        return modules


def as_plain(dual: DualSettings, epochs: int) -> PlainSettings:
    """One network trained as the first submodel of `dual` is, for `epochs`, none of which patience leaves out."""
    return PlainSettings(
        epochs=epochs,
        batch_size=dual.batch_size,
        learning_rate=dual.learning_rate,
        schedule=dual.schedule,
        patience=epochs,
        view=dual.views[0],
        fit=dual.fit,
    )


def without_early_stop(settings: TrainerSettings) -> TrainerSettings:
    """Every planned epoch is trained: arms that stopped at different times would not have had equal image passes."""
    passes = settings.dual.epochs + _thawing_epochs(settings.unfreeze)
    return replace(
        settings,
        dual=replace(settings.dual, patience=passes),
        unfreeze=replace(settings.unfreeze, patience=passes),
    )


def at_once(settings: UnfreezeSettings) -> UnfreezeSettings:
    """Stage 2 without gradual thawing: one step over everything, for as many epochs as all steps together."""
    rate = settings.steps[-1].learning_rate
    step = UnfreezeStep(unit="all", epochs=_thawing_epochs(settings), learning_rate=rate)
    return replace(settings, steps=(step,))


def without_head(settings: UnfreezeSettings, last_unit: str, more: int) -> UnfreezeSettings:
    """Stage 2 of a network without a head: the head's epochs, and so many `more`, go to what thaws next."""
    first, *later = settings.steps
    if first.unit == HEAD and later:
        after, *later = later
        first = replace(after, epochs=first.epochs + after.epochs)
    elif first.unit == HEAD:
        first = replace(first, unit=last_unit)
    return replace(settings, steps=(replace(first, epochs=first.epochs + more), *later))


def _thawing_epochs(settings: UnfreezeSettings) -> int:
    return sum(step.epochs for step in settings.steps)


def fitting_spec(settings: TrainerSettings, context: TrainingContext, networks: int) -> FamilySpec:
    """Submodels of which `networks` have as many parameters as the unified model, or as few less as widths allow.

    The first filters are those that keep the submodel's proportion as far as it fits, or up to `_NEARBY` more or less;
    the second take what is then left.
    """
    shape, classes = context.train.shape, context.classes
    if not isinstance(settings.model, PaperSpec):
        return _largest_member(settings, context, networks)
    paper = settings.model

    def size(first: int, second: int) -> int:
        spec = replace(paper, filters=(first, second))
        return networks * count_parameters([spec.build(shape, classes)])

    with torch.device("meta"):
        budget = count_parameters([build_unified(settings.model, settings.unify, shape, classes)])
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


def _largest_member(settings: TrainerSettings, context: TrainingContext, networks: int) -> FamilySpec:
    """The largest member of the family of which `networks` have no more parameters than the unified model."""
    shape, classes = context.train.shape, context.classes
    found: FamilySpec | None = None
    with torch.device("meta"):
        budget = count_parameters([build_unified(settings.model, settings.unify, shape, classes)])
        for spec in settings.model.variants():
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
