"""The settings reference has every setting that a recipe can have."""

from __future__ import annotations

import tomllib

import pytest

from thaw.models.families import FAMILIES
from thaw.recipe.recipe import Recipe, load_recipe, recipe_names
from thaw.recipe.reference import settings_reference


def keys_of(tree, prefix="") -> set[str]:
    found = set()
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if name == "distil.model":
            found.add(name)
        elif isinstance(value, dict):
            found |= keys_of(value, f"{name}.")
        else:
            found.add(name)
            if isinstance(value, list) and value and isinstance(value[0], dict):
                found |= set().union(*(keys_of(item, f"{name}[].") for item in value))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_no_setting_is_missing(family):
    made = Recipe(method="plain", model=FAMILIES[family]())
    known = [info for info in settings_reference() if info.family in {"", family}]
    assert {info.key for info in known} == keys_of(made.as_dict())
    assert len(known) == len({info.key for info in known})


@pytest.mark.parametrize("name", recipe_names())
def test_every_key_of_a_shipped_recipe_is_known(name):
    family = load_recipe(name)[1].model.family
    known = {info.key for info in settings_reference() if info.family in {"", family}}
    assert keys_of(load_recipe(name)[1].as_dict()) <= known


def test_defaults_are_those_of_the_section():
    found = {info.key: info.default for info in settings_reference() if info.family in {"", "paper"}}
    assert found["dual.schedule.kind"] == '"constant"'
    assert found["plain.schedule.kind"] == '"cosine"'
    tree = Recipe().as_dict()
    for key, default in found.items():
        if "[]" in key or key == "distil.model":
            continue
        value = tree
        for part in key.split("."):
            value = value[part]
        assert tomllib.loads(f"value = {default}")["value"] == value
