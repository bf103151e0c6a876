"""Notes on automatic choices of a run, listed among the problems of its data."""

from __future__ import annotations

from collections.abc import Sequence

from thaw.data.balance import class_counts, imbalance, is_uneven
from thaw.data.images import InputSpec
from thaw.data.prepare import PreparedData
from thaw.data.problems import Problem
from thaw.recipe.budget import Budget
from thaw.recipe.candidates import Candidate, Choices
from thaw.recipe.recipe import Recipe
from thaw.recipe.sizing import limits_reached
from thaw.run.trials import Trial, TrialPlan
from thaw.training.stages import PlainSettings


def input_note(input_spec: InputSpec, reason: str) -> Problem:
    """The note on an input that was chosen."""
    return Problem("input", "note", f"chosen input {input_spec}: {reason}")


def input_reason(sides: Sequence[int], bound: str, chosen: Candidate, *, compared: bool) -> str:
    """Why a candidate's input was chosen.

    Args:
        sides: the sides to choose from, smallest first.
        bound: why no larger side was available.
        chosen: the candidate.
        compared: whether a short training chose it.
    """
    why = "with the network, by a short training" if compared else "the largest that does not shrink the network"
    is_largest = chosen.shape[0] == sides[-1]
    return f"from sides of {', '.join(map(str, sides))} pixels, {why}" + (f"; {bound}" if is_largest else "")


def network_notes(
    recipe: Recipe, budget: Budget | None, choices: Choices, chosen: Candidate, classes: int, trials: int = 0
) -> list[Problem]:
    """The network chosen after `trials` trials, and the binding limits; empty if the recipe names its network."""
    if recipe.sizing.network == "fixed" or budget is None:
        return []
    reached = limits_reached(chosen.spec, budget, chosen.shape, classes, recipe.unify_spec)
    bound = f"; any wider exceeds {' or '.join(reached)}" if reached else ""
    what = f"the best of {trials} in a short training on these images" if trials else "the largest"
    message = f"chosen network {chosen.network}: {what} within {budget} ({chosen.cost.parameters:,} parameters){bound}"
    notes = [Problem("network", "note", message)]
    if choices.warning:
        notes.append(Problem("width", "warning", choices.warning))
    if budget.params is None and budget.flash is None and budget.macs is None:
        unbound = "nothing limits parameters, flash or MACs: name the board's flash too, as in flash=512KB"
        notes.append(Problem("budget", "note", unbound))
    return notes


def trial_notes(plan: TrialPlan, trials: Sequence[Trial]) -> list[Problem]:
    """The compared networks and their scores."""
    trained, judged = len(plan.data.train), len(plan.data.validation)
    scores = "; ".join(f"{trial.candidate}: {trial.score:.1%}" for trial in trials)
    figure = plan.figure.replace("_", " ")
    message = (
        f"compared by {figure}, {plan.epochs} epochs on {trained:,} images each, scored on {judged:,} others: "
        f"{scores}; "
        "among those within the noise of the best, the one with the fewest multiply-accumulates was chosen"
    )
    return [Problem("trials", "note", message)]


def epochs_note(plain: PlainSettings, epochs: int, images: int) -> Problem:
    """The note on fewer epochs than in the recipe, for many training images."""
    message = (
        f"{epochs} epochs instead of {plain.epochs}: on {images:,} training images these are the {plain.most_steps:,} "
        f"steps of plain.most_steps (--set plain.epochs={plain.epochs} for all)"
    )
    return Problem("epochs", "note", message)


def flip_note() -> Problem:
    """The note on images of digits or letters, which are not mirrored."""
    return Problem("flip", "note", "images are not mirrored: a mirrored digit or letter is another character")


def balance_notes(recipe: Recipe, data: PreparedData) -> list[Problem]:
    """How class imbalance is handled; empty if the classes are balanced."""
    counts = class_counts(data.train.labels, len(data.train.classes))
    if not is_uneven(counts):
        return []
    figure = recipe.loss.score(counts).replace("_", " ")
    weights = recipe.loss.weights(counts)
    weighted = "no class weights in the loss"
    if weights is not None:
        present = weights[counts > 0]
        weighted = f"the loss is weighted by class, {present.min():.2f} to {present.max():.2f}"
    message = (
        f"class imbalance: the largest class has {imbalance(counts):.1f} times the training images of the smallest; "
        f"the best epoch is selected by {figure}, {weighted} (loss.class_weights, loss.select)"
    )
    return [Problem("imbalance", "note", message)]
