"""The recipes of the records: each stays within the parameters of its row."""

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
def test_a_record_stays_within_its_parameters(name):
    limit, shape = ROWS[name]
    _, recipe = load_recipe(name)
    cost = layer_table(recipe.model, recipe.unify_spec, shape, 10)
    assert cost.parameters == learned_parameters(recipe.model.build(shape, 10))
    assert 0.9 * limit < cost.parameters <= limit


@pytest.mark.parametrize("name", ROWS)
def test_what_is_flipped_may_be_flipped(name):
    """A mirrored digit is another sign; a mirrored shoe or car is not."""
    _, recipe = load_recipe(name)
    assert recipe.augment.flip == (not name.startswith("best-mnist"))
