"""Which of a few networks does best in a short training on a run's own images.

Every candidate trains by the recipe's own optimizer, schedule and augmentation, on the same part of the training
images, and is judged on images that it did not train on: the validation part, and a fifth of the training part. The
test part is not touched. Nothing of it reaches the run but the choice.

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
    """What is compared, and how.

    Attributes:
        candidates: two or more.
        epochs: of each.
        figure: what they are judged by.
        data: its training part is what they train on, its validation part what they are judged on.
    """

    candidates: tuple[Candidate, ...]
    epochs: int
    figure: Score
    data: PreparedData = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a short training of a candidate gave.

    Attributes:
        candidate: what was trained.
        hits: bool [N], which of the images that it was judged on it recognized; none where its training failed.
        weights: float64 [N], what each of them counts; their sum is 1.
        number: from 1.
        count: of all trials.
        seconds: that it took.
    """

    candidate: Candidate
    hits: npt.NDArray[np.bool_] = field(repr=False)
    weights: npt.NDArray[np.float64] = field(repr=False)
    number: int
    count: int
    seconds: float

    @property
    def score(self) -> float:
        """Its accuracy, or balanced accuracy, on the images that it was judged on, 0 to 1."""
        return float(self.weights[self.hits].sum())


def may_compare(recipe: Recipe) -> bool:
    """Whether a recipe leaves its size open to a short training."""
    # The sub-stages of thawing train otherwise than a network that stands alone.
    return recipe.method != "two-stage" and recipe.sizing.is_open


def plan_trials(candidates: Sequence[Candidate], recipe: Recipe, data: PreparedData, seed: int) -> TrialPlan | None:
    """The comparison that the recipe's `sizing` allows; None where there is nothing to compare, or no time for it.

    Images trained on and multiply-accumulates together come to at most `sizing.trial_share` of those of the whole
    training of the costliest candidate. As many candidates as that leaves two epochs each for are compared, from the
    first, and at most `sizing.trials`.
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
    """Train and judge each candidate; the same seed gives the same choice on the same machine."""
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
    """Train a network and return which validation images it classifies correctly, bool [N]; none if training fails."""
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
    """Of those that do as well as the best one, within the noise, that with the fewest multiply-accumulates.

    Within the noise is a difference of at most one standard error, from the images that only one of the two recognizes:
    with equal weights, b that only one and c that only the other does, |b - c| <= sqrt(b + c), as in McNemar's test
    (Psychometrika 12, 1947).
    """
    best = max(trials, key=lambda trial: trial.score)

    def is_as_good(trial: Trial) -> bool:
        noise = float((trial.weights[best.hits != trial.hits] ** 2).sum()) ** 0.5
        return bool(best.score - trial.score <= noise + _ROUNDING)

    return min(filter(is_as_good, trials), key=lambda trial: trial.candidate.cost.macs)


def _weights(plan: TrialPlan) -> npt.NDArray[np.float64]:
    """What each image counts: the same, or in balanced accuracy each class the same."""
    images = plan.data.validation
    if plan.figure == "accuracy":
        return np.full(len(images), 1.0 / len(images))
    counts = class_counts(images.labels, len(images.classes))
    each: npt.NDArray[np.float64] = 1.0 / (np.count_nonzero(counts) * counts[images.labels])
    return each


def _judged(data: PreparedData, held: Rows, seed: int) -> ImageSet:
    """The validation part and what was held out of the training part."""
    validation = _rows(data.validation, _some(np.arange(len(data.validation)), _MOST_JUDGED, seed))
    more = _rows(data.train, _some(held, max(0, _MOST_JUDGED - len(validation)), seed))
    return ImageSet(
        images=np.concatenate([validation.images, more.images]),
        labels=np.concatenate([validation.labels, more.labels]),
        classes=data.train.classes,
    )


def _some(rows: Rows, most: int, seed: int) -> Rows:
    """At most so many of the rows, ascending."""
    return np.sort(numpy_generator(seed, "trials", "rows").permutation(rows)[:most])


def _rows(images: ImageSet, rows: Rows) -> ImageSet:
    return ImageSet(images=np.asarray(images.images[rows]), labels=images.labels[rows], classes=images.classes)


def _resized(data: PreparedData, shape: Shape) -> PreparedData:
    """The same images at another size; mean and deviation stay."""
    input_spec: InputSpec = replace(data.input_spec, height=shape[0], width=shape[1])
    train, validation = (
        replace(images, images=resize(images.images, input_spec)) for images in (data.train, data.validation)
    )
    return replace(data, train=train, validation=validation, input_spec=input_spec)
