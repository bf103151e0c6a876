"""The arms of an ablation: recipes that give networks of equal size after equally many image passes.

The study "parts" changes one part of the two-stage method per arm. The study "unify" compares ways to turn two
submodels into one network: concatenate them, average their weights, or distill both into one.

An image pass presents an image to the number of parameters of the unified network. Concatenated submodels have half of
them each, so an epoch of both counts as one pass. Averaged or distilled submodels are as large as the result, so an
epoch of both counts as two passes, and their first stage has half the epochs. A network of half the size trains for
two epochs per pass. Passes through frozen units, including teachers, are not counted.

Shapes: H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from thaw.errors import UsageError
from thaw.models.families import FamilySpec
from thaw.models.stages import Shape
from thaw.models.unify import HEAD
from thaw.recipe.budget import Budget
from thaw.recipe.recipe import Recipe
from thaw.recipe.sizing import largest_variant, network_cost
from thaw.training.stages import DualSettings, PlainSettings, UnfreezeSettings, UnfreezeStep

StudyName = Literal["parts", "unify"]
PLAIN = "plain"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm of a study.

    Attributes:
        name: a stable name, for folders and tables.
        description: what the arm changes.
        recipe: the recipe of its runs.
    """

    name: str
    description: str
    recipe: Recipe


def arms_of(study: StudyName, recipe: Recipe, shape: Shape, classes: int) -> tuple[Arm, ...]:
    """Return the arms of a study for images (H, W, C) of K classes; the first one is "plain".

    Raises:
        UsageError: for a recipe from which the arms cannot be made.
    """
    _check_recipe(recipe, study)
    recipe = _without_early_stop(recipe)
    return _parts_arms(recipe, shape, classes) if study == "parts" else _unify_arms(recipe, shape, classes)


def overrides_between(base: Recipe, recipe: Recipe) -> tuple[str, ...]:
    """Return the overrides, such as "dual.epochs=5", that turn `base` into `recipe`, a network of the same family."""
    old, new = base.as_dict(), recipe.as_dict()
    changed = {key: value for key, value in new.items() if value != old[key]}
    overrides = []
    for key, value in changed.items():
        if isinstance(value, Mapping):
            overrides += [f"{key}.{name}={_toml(item)}" for name, item in value.items() if item != old[key].get(name)]
        else:
            overrides.append(f"{key}={_toml(value)}")
    return tuple(overrides)


def _toml(value: Any) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    # JSON writes strings, numbers and booleans as TOML does.
    return json.dumps(value)


def _check_recipe(recipe: Recipe, study: StudyName) -> None:
    if recipe.method != "two-stage" or recipe.unify.join != "concatenate":
        raise UsageError(
            f"method {recipe.method}, unify.join {recipe.unify.join}: an ablation starts from a recipe with method "
            "two-stage and unify.join concatenate",
            code="usage-arms",
        )
    if recipe.sizing.is_open:
        raise UsageError(
            "sizing leaves the network or its input open: an ablation compares networks of one size\n"
            'set sizing.network=fixed and sizing.input="as is"',
            code="usage-arms",
        )
    if study == "unify" and recipe.dual.epochs < 2:
        raise UsageError(
            f"dual.epochs {recipe.dual.epochs}: expected at least 2, because submodels that are averaged or distilled "
            "train for half of them",
            code="usage-arms",
        )


def _parts_arms(recipe: Recipe, shape: Shape, classes: int) -> tuple[Arm, ...]:
    """Return the arms that change one part of the method."""
    dual, unfreeze = recipe.dual, recipe.unfreeze
    first = unfreeze.steps[0]
    head = UnfreezeStep(unit=HEAD, epochs=first.epochs, learning_rate=first.learning_rate)
    head_only = replace(
        recipe,
        dual=replace(dual, epochs=_passes(recipe) - head.epochs),
        unfreeze=replace(unfreeze, steps=(head,)),
    )
    at_once = UnfreezeStep(
        unit="all", epochs=_unfreeze_epochs(unfreeze), learning_rate=unfreeze.steps[-1].learning_rate
    )
    return (
        _plain_arm(recipe, shape, classes),
        Arm(name="head-only", description="only the head trains in stage 2", recipe=head_only),
        Arm(
            name="both-original",
            description="both submodels see the original images",
            recipe=replace(recipe, dual=replace(dual, views=("original", "original"))),
        ),
        Arm(
            name="both-augmented",
            description="both submodels see augmented images",
            recipe=replace(recipe, dual=replace(dual, views=("augmented", "augmented"))),
        ),
        Arm(
            name="unfrozen-at-once",
            description="stage 2 unfreezes everything at once",
            recipe=replace(recipe, unfreeze=replace(unfreeze, steps=(at_once,))),
        ),
        Arm(name="whole", description="the whole method", recipe=recipe),
    )


def _unify_arms(recipe: Recipe, shape: Shape, classes: int) -> tuple[Arm, ...]:
    """Return the arms that unify two submodels in different ways."""
    model, dual, unfreeze = equal_submodel(recipe, shape, classes), recipe.dual, recipe.unfreeze
    # An odd epoch of stage 1 goes to stage 2.
    half, odd = divmod(dual.epochs, 2)
    second = _unfreeze_epochs(unfreeze)
    averaged = replace(
        recipe,
        model=model,
        unify=replace(recipe.unify, join="average"),
        dual=replace(dual, epochs=half),
        unfreeze=without_head(unfreeze, model.units[-1], odd),
    )
    distilled = replace(
        recipe,
        model=model,
        unify=replace(recipe.unify, join="distil"),
        dual=replace(dual, epochs=half),
        plain=replace(as_plain(dual, second + odd), view=unfreeze.view),
    )
    half_distilled = replace(
        distilled,
        model=recipe.model,
        dual=dual,
        plain=replace(as_plain(dual, 2 * second), view=unfreeze.view),
    )
    half_plain = replace(recipe, method="plain", plain=as_plain(dual, 2 * _passes(recipe)))
    return (
        _plain_arm(recipe, shape, classes),
        Arm(name="concatenate", description="scores concatenated, a new head, unfrozen step by step", recipe=recipe),
        Arm(name="average", description="weights averaged, unfrozen step by step", recipe=averaged),
        Arm(name="distil", description="both distilled into a new submodel", recipe=distilled),
        Arm(name="plain-half", description="one plain network of half the size", recipe=half_plain),
        Arm(name="distil-half", description="both halves distilled into one", recipe=half_distilled),
    )


def _plain_arm(recipe: Recipe, shape: Shape, classes: int) -> Arm:
    plain = as_plain(recipe.dual, _passes(recipe))
    model = equal_submodel(recipe, shape, classes)
    return Arm(
        name=PLAIN,
        description="one plain network on the original images",
        recipe=replace(recipe, method="plain", model=model, plain=plain),
    )


def equal_submodel(recipe: Recipe, shape: Shape, classes: int) -> FamilySpec:
    """Return the largest submodel of the recipe's family with at most as many parameters as its unified network.

    Raises:
        UsageError: if every submodel of the family is larger.
    """
    parameters = network_cost(recipe.model, recipe.unify_spec, shape, classes).parameters
    found = largest_variant(recipe.model, Budget(params=parameters), shape, classes, None)
    if found is None:
        raise UsageError(
            f"every {recipe.model.family} network has more than {parameters:,} parameters", code="usage-arms"
        )
    return found


def as_plain(dual: DualSettings, epochs: int) -> PlainSettings:
    """Return settings that train one network for `epochs` as `dual` trains its first submodel."""
    return PlainSettings(
        epochs=epochs,
        batch_size=dual.batch_size,
        learning_rate=dual.learning_rate,
        schedule=dual.schedule,
        patience=epochs,
        view=dual.views[0],
        fit=dual.fit,
    )


def without_head(settings: UnfreezeSettings, last_unit: str, more: int) -> UnfreezeSettings:
    """Return stage 2 for a network without a head: the head's epochs, and `more`, go to the unit that follows it."""
    first, *later = settings.steps
    if first.unit == HEAD and later:
        after, *later = later
        first = replace(after, epochs=first.epochs + after.epochs)
    elif first.unit == HEAD:
        first = replace(first, unit=last_unit)
    return replace(settings, steps=(replace(first, epochs=first.epochs + more), *later))


def _without_early_stop(recipe: Recipe) -> Recipe:
    """Return the recipe with every epoch trained: arms that stop at different times have unequal passes."""
    passes = _passes(recipe)
    return replace(
        recipe,
        dual=replace(recipe.dual, patience=passes),
        unfreeze=replace(recipe.unfreeze, patience=passes),
    )


def _passes(recipe: Recipe) -> int:
    return recipe.dual.epochs + _unfreeze_epochs(recipe.unfreeze)


def _unfreeze_epochs(settings: UnfreezeSettings) -> int:
    return sum(step.epochs for step in settings.steps)
