"""Compares a few networks by a short training on the images of a run.

Every candidate is trained with the recipe's optimizer, schedule and augmentation, on the same part of the training
images, and scored on other images: the validation part, and a fifth of the training part. The test part is not used.
Only the choice affects the run.

Shapes: N images, H rows, W columns, C channels.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from thaw.data.balance import class_counts
from thaw.data.images import ImageSet, InputSpec
from thaw.data.prepare import PreparedData
from thaw.data.resize import resize
from thaw.data.splits import Rows, cut_off
from thaw.errors import TrainingError
from thaw.model.probabilities import network_probabilities
from thaw.models.stages import Shape
from thaw.recipe.candidates import Candidate
from thaw.recipe.recipe import Recipe
from thaw.run.context import kernels_of, training_context
from thaw.seeds import derive, numpy_generator
from thaw.training.loss import Score
from thaw.training.trainer import MultiStageTrainer

_HELD_OUT = 0.2
_MOST_TRAINED = 5_000
_MOST_JUDGED = 2_000
_FEWEST_EPOCHS = 2
_MOST_EPOCHS = 10
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """A comparison of networks.

    Attributes:
        candidates: the networks, at least two.
        epochs: epochs per network.
        figure: the score, "accuracy" or "balanced accuracy".
        data: they train on its training part and are scored on its validation part.
    """

    candidates: tuple[Candidate, ...]
    epochs: int
    figure: Score
    data: PreparedData = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The result of a short training of a candidate.

    Attributes:
        candidate: the network.
        hits: bool [N], whether it classified each scored image correctly; all False if training failed.
        weights: float64 [N], the weight of each scored image; their sum is 1.
        number: number of the trial, from 1.
        count: number of all trials.
        seconds: duration of the trial.
    """

    candidate: Candidate
    hits: npt.NDArray[np.bool_] = field(repr=False)
    weights: npt.NDArray[np.float64] = field(repr=False)
    number: int
    count: int
    seconds: float

    @property
    def score(self) -> float:
        """Accuracy or balanced accuracy on the scored images, 0 to 1."""
        return float(self.weights[self.hits].sum())


def may_compare(recipe: Recipe) -> bool:
    """Whether a recipe lets a short training choose its size."""
    # The unfreezing steps train differently from a standalone network.
    return recipe.method != "two-stage" and recipe.sizing.is_open


def plan_trials(candidates: Sequence[Candidate], recipe: Recipe, data: PreparedData, seed: int) -> TrialPlan | None:
    """The comparison that the recipe's `sizing` allows; None if there is nothing to compare or no time for it.

    The cost (training images times multiply-accumulates) is at most the fraction `sizing.trial_share` of the whole
    training of the costliest candidate. The first candidates are compared: as many as can have two epochs each at this
    cost, and at most `sizing.trials`.
    """
    if not may_compare(recipe):
        return None
    figure = recipe.loss.score(class_counts(data.train.labels, len(data.train.classes)))
    kept, held = cut_off(data.train.labels, data.train_groups, _HELD_OUT, seed, "trials")
    kept = _some(kept, _MOST_TRAINED, seed)
    for count in range(min(recipe.sizing.trials, len(candidates)), 1, -1):
        chosen = tuple(candidates[:count])
        macs = [candidate.cost.macs for candidate in chosen]
        whole = recipe.plain.epochs * len(data.train) * max(macs)
        epochs = min(_MOST_EPOCHS, int(recipe.sizing.trial_share * whole / (len(kept) * sum(macs))))
        if epochs >= _FEWEST_EPOCHS:
            train, judged = _rows(data.train, kept), _judged(data, held, seed)
            compared = replace(data, train=train, validation=judged)
            return TrialPlan(candidates=chosen, epochs=epochs, figure=figure, data=compared)
    return None


def run_trials(plan: TrialPlan, recipe: Recipe, seed: int, device: str) -> Iterator[Trial]:
    """Train and score every candidate. The same seed gives the same choice on the same machine."""
    weights = _weights(plan)
    for number, candidate in enumerate(plan.candidates, start=1):
        started = time.perf_counter()
        data = _resized(plan.data, candidate.shape)
        plain = replace(recipe.plain, epochs=plan.epochs, most_steps=0)
        short = replace(recipe, method="plain", model=candidate.spec, plain=plain)
        yield Trial(
            candidate=candidate,
            hits=_hits(data, short, derive(seed, "trials"), device),
            weights=weights,
            number=number,
            count=len(plan.candidates),
            seconds=time.perf_counter() - started,
        )


def _hits(data: PreparedData, recipe: Recipe, seed: int, device: str) -> npt.NDArray[np.bool_]:
    """Train a network; return whether it classifies each validation image correctly, bool [N], or False on failure."""
    kernels = kernels_of(recipe, device)
    with training_context(data, recipe, seed, device, kernels=kernels) as context:
        trainer = MultiStageTrainer(recipe.trainer_settings(), context)
        try:
            deque(trainer.epochs(), maxlen=0)
            probabilities = network_probabilities([trainer.network], data.validation.images, data.input_spec)
        except TrainingError:
            return np.zeros(len(data.validation), dtype=bool)
    hits: npt.NDArray[np.bool_] = probabilities.argmax(axis=1) == data.validation.labels
    return hits


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The trial with the fewest multiply-accumulates among those within the noise of the best one.

    A difference is within the noise if it is at most one standard error, estimated from the images that only one of the
    two classifies correctly. For equal weights, with b images that only one and c images that only the other classifies
    correctly, this is |b - c| <= sqrt(b + c), as in McNemar's test (Psychometrika 12, 1947).
    """
    best = max(trials, key=lambda trial: trial.score)

    def is_as_good(trial: Trial) -> bool:
        noise = float((trial.weights[best.hits != trial.hits] ** 2).sum()) ** 0.5
        return bool(best.score - trial.score <= noise + _ROUNDING)

    return min(filter(is_as_good, trials), key=lambda trial: trial.candidate.cost.macs)


def _weights(plan: TrialPlan) -> npt.NDArray[np.float64]:
    """The weight of each image: equal per image, or for balanced accuracy equal per class."""
    images = plan.data.validation
    if plan.figure == "accuracy":
        return np.full(len(images), 1.0 / len(images))
    counts = class_counts(images.labels, len(images.classes))
    each: npt.NDArray[np.float64] = 1.0 / (np.count_nonzero(counts) * counts[images.labels])
    return each


def _judged(data: PreparedData, held: Rows, seed: int) -> ImageSet:
    """The validation part and the held-out images of the training part."""
    validation = _rows(data.validation, _some(np.arange(len(data.validation)), _MOST_JUDGED, seed))
    more = _rows(data.train, _some(held, max(0, _MOST_JUDGED - len(validation)), seed))
    return ImageSet(
        images=np.concatenate([validation.images, more.images]),
        labels=np.concatenate([validation.labels, more.labels]),
        classes=data.train.classes,
    )


def _some(rows: Rows, most: int, seed: int) -> Rows:
    """At most `most` of the rows, ascending."""
    return np.sort(numpy_generator(seed, "trials", "rows").permutation(rows)[:most])


def _rows(images: ImageSet, rows: Rows) -> ImageSet:
    return ImageSet(images=np.asarray(images.images[rows]), labels=images.labels[rows], classes=images.classes)


def _resized(data: PreparedData, shape: Shape) -> PreparedData:
    """The same images at another size, with the same mean and standard deviation."""
    input_spec: InputSpec = replace(data.input_spec, height=shape[0], width=shape[1])
    train, validation = (
        replace(images, images=resize(images.images, input_spec)) for images in (data.train, data.validation)
    )
    return replace(data, train=train, validation=validation, input_spec=input_spec)
