"""Recipes: TOML <-> frozen dataclasses, strictly. Every default stands in the dataclass beside what it configures."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import tomli_w

from thaw.data.augment import AugmentSettings
from thaw.data.settings import DataSettings
from thaw.data.sources import NAMES
from thaw.errors import RecipeError, UsageError
from thaw.models.families import FamilySpec, PaperSpec
from thaw.models.unify import UnifySpec
from thaw.plain import build
from thaw.quoting import PATH_LENGTH, encodable, given, shown
from thaw.recipe.quantize_settings import QuantizeSettings
from thaw.recipe.sizing import SizingSettings
from thaw.training.compute import ComputeSettings
from thaw.training.distil import DistilSettings
from thaw.training.loss import LossSettings
from thaw.training.stages import DualSettings, PlainSettings, UnfreezeSettings
from thaw.training.trainer import MethodName, TrainerSettings


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides what a run trains and how; with the data, the seed and the machine it decides the weights.

    `method` says which sections count: "two-stage" trains by `dual`, `unify` and `unfreeze`, "plain" one network that
    stands alone by `plain`, and "distil" that network by `plain` and `distil`. Two stages that end in a distillation
    (`unify.join`) train the student by `plain` and `distil` too, and unfreeze nothing.

    What `sizing` leaves open of the size is settled when data and budget are known; a resolved recipe leaves nothing
    open.
    """

    description: str = ""
    method: MethodName = "two-stage"
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    model: FamilySpec = field(default_factory=PaperSpec)
    sizing: SizingSettings = field(default_factory=SizingSettings)
    unify: UnifySpec = field(default_factory=UnifySpec)
    dual: DualSettings = field(default_factory=DualSettings)
    unfreeze: UnfreezeSettings = field(default_factory=UnfreezeSettings)
    plain: PlainSettings = field(default_factory=PlainSettings)
    distil: DistilSettings = field(default_factory=DistilSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    quantize: QuantizeSettings = field(default_factory=QuantizeSettings)

    def __post_init__(self) -> None:
        if self.method not in get_args(MethodName):
            raise UsageError(f"method {shown(self.method)}: expected one of {', '.join(get_args(MethodName))}")
        if self.method != "two-stage" or self.unify.join == "distil":
            return
        order = self.unify.unfreezing_order(self.model.units)
        if not self.unfreeze.steps:
            raise UsageError(f"unfreeze.steps is empty: at least the {order[0]} has to be trained")
        self.unfreeze.check_units(order)

    def as_dict(self) -> dict[str, Any]:
        """A JSON- and TOML-ready form that `recipe_from_dict` takes back."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        plain["model"] = {"family": self.model.family, **plain["model"]}
        plain["distil"]["model"] = {"family": self.distil.model.family, **plain["distil"]["model"]}
        return plain

    @property
    def unify_spec(self) -> UnifySpec | None:
        """How the network that comes out is joined of two submodels; None where it stands alone."""
        return self.trainer_settings().unify_spec

    def stage_epochs(self) -> dict[str, int]:
        """The planned epochs of each stage, in order."""
        return self.trainer_settings().stage_epochs

    def trainer_settings(self) -> TrainerSettings:
        """The part that the method needs."""
        return TrainerSettings(
            method=self.method,
            model=self.model,
            unify=self.unify,
            augment=self.augment,
            dual=self.dual,
            unfreeze=self.unfreeze,
            plain=self.plain,
            distil=self.distil,
        )

    def as_toml(self) -> str:
        """The resolved recipe, every setting written out."""
        return tomli_w.dumps(self.as_dict())


def default_recipe(source: object, *, has_budget: bool = False) -> str:
    """The recipe that a source is trained with when none is named.

    It is "balanced", which fits its network to the budget and its input to the images. Only the benchmark sets with a
    name, where there is no budget, have what they are known by: "digits" the recipe of that name, the others "paper".
    """
    name = str(source) if isinstance(source, str | Path) else ""
    if has_budget or name not in NAMES:
        return "balanced"
    return "digits" if name == "digits" else "paper"


def grouped(recipe: Recipe, group_by: str) -> Recipe:
    """The recipe with what `--group-by` says, where it says anything."""
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, group_by=group_by)) if group_by else recipe


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def recipe_names() -> tuple[str, ...]:
    """The recipes that ship with the package, sorted."""
    folder = resources.files("thaw.recipe") / "recipes"
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def load_recipe(name_or_file: str, overrides: Sequence[str] = ()) -> tuple[str, Recipe]:
    """A recipe by its shipped name or from a TOML file, with `section.key=value` overrides: (its name, the recipe).

    Raises:
        RecipeError: listing every fault at once: unknown keys, wrong types, values out of range, contradictions.
    """
    name, text = _recipe_text(name_or_file)
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"recipe {given(name_or_file)} is not TOML: {given(error)}") from None
    faults: list[str] = []
    for override in overrides:
        _apply(tree, encodable(override), faults)
    recipe = recipe_from_dict(tree, faults)
    return name, recipe


def _recipe_text(name_or_file: str) -> tuple[str, str]:
    if name_or_file in recipe_names():
        return name_or_file, (resources.files("thaw.recipe") / "recipes" / f"{name_or_file}.toml").read_text("utf-8")
    try:
        path = Path(name_or_file).expanduser()
        is_file = path.suffix == ".toml" or path.is_file()
    # A path may be too long, hold a zero byte, or name a user that is unknown.
    except (OSError, ValueError, RuntimeError):
        path, is_file = Path(), False
    if not is_file:
        close = difflib.get_close_matches(name_or_file, recipe_names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        known = ", ".join(recipe_names())
        raise RecipeError(
            f"there is no recipe {shown(name_or_file)}{hint}\nexpected one of {known}, or the path of a .toml file"
        )
    try:
        return path.stem, path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"cannot read the recipe {given(path, PATH_LENGTH)}: {getattr(error, 'strerror', None) or error}"
        ) from None


def _apply(tree: dict[str, Any], override: str, faults: list[str]) -> None:
    """Set one `section.key=value` in `tree`; the value is read as TOML, or else taken as a string."""
    path, separator, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not separator or not all(keys):
        faults.append(f"--set {given(override)}: expected section.key=value, such as dual.epochs=5")
        return
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    node = tree
    for key in keys[:-1]:
        below = node.setdefault(key, {})
        if not isinstance(below, dict):
            faults.append(f"--set {given(override)}: {given(key)} is a value, not a section")
            return
        node = below
    node[keys[-1]] = value


def recipe_from_dict(tree: Mapping[str, Any], faults: Sequence[str] = ()) -> Recipe:
    """A recipe from a tree of plain values (the inverse of `Recipe.as_dict`).

    Raises:
        RecipeError: listing every fault at once, after `faults` that the caller has found already.
    """
    found = list(faults)
    recipe = build(Recipe, tree, "", found)
    if found or not isinstance(recipe, Recipe):
        count = f"{len(found)} faults in the recipe:\n" if len(found) > 1 else "the recipe is not valid: "
        raise RecipeError(count + "\n".join(f"  {fault}" if len(found) > 1 else fault for fault in found))
    return recipe
