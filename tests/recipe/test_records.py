"""The recipes of the records are within the parameters of their rows."""

from __future__ import annotations

import pytest

from thaw.graph.lower import layer_table
from thaw.models.blocks import learned_parameters
from thaw.recipe.recipe import load_recipe, recipe_names

ROWS = {
    "best-mnist-15k": (14_862, (28, 28, 1)),
    "best-mnist-8k": (8_000, (28, 28, 1)),
    "best-fashion-15k": (14_862, (28, 28, 1)),
    "best-cifar10-19k": (19_622, (32, 32, 3)),
    "best-cifar10-15k": (14_862, (32, 32, 3)),
}


def test_every_row_has_its_recipe():
    assert [name for name in recipe_names() if name.startswith("best-")] == sorted(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_records_are_within_their_parameters(name):
    limit, shape = ROWS[name]
    _, recipe = load_recipe(name)
    cost = layer_table(recipe.model, recipe.unify_spec, shape, 10)
    assert cost.parameters == learned_parameters(recipe.model.build(shape, 10))
    assert 0.9 * limit < cost.parameters <= limit


@pytest.mark.parametrize("name", ROWS)
def test_flips_are_used_only_for_symmetric_classes(name):
    """A mirrored digit is another character; a mirrored shoe or car is still one."""
    _, recipe = load_recipe(name)
    assert recipe.augment.flip == (not name.startswith("best-mnist"))
