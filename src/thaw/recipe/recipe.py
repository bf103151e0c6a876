"""Recipes: TOML <-> frozen dataclasses, strictly. Defaults, ranges and descriptions are next to the fields."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import Field, StrictStr, ValidationInfo, field_validator

from thaw.data.augment import AugmentSettings
from thaw.data.settings import DataSettings
from thaw.data.sources import NAMES
from thaw.errors import RecipeError, UsageError
from thaw.models.families import FamilySpec, PaperSpec
from thaw.models.unify import UnifySpec
from thaw.plain import as_plain, build, checked_dataclass
from thaw.quoting import PATH_LENGTH, encodable, given, shown
from thaw.recipe.quantize_settings import QuantizeSettings
from thaw.recipe.sizing import SizingSettings
from thaw.training.compute import ComputeSettings
from thaw.training.distil import DistilSettings
from thaw.training.loss import LossSettings
from thaw.training.stages import DualSettings, PlainSettings, UnfreezeSettings
from thaw.training.trainer import MethodName, TrainerSettings


@checked_dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a training. Recipe, data, seed and machine together determine the weights.

    Settings that `sizing` leaves open are determined when data and budget are known. A resolved recipe has none.
    """

    description: StrictStr = ""
    """One line about the recipe."""
    method: MethodName = "two-stage"
    """"two-stage" trains the paper's system by the sections `dual`, `unify` and `unfreeze`; "plain" trains one network
    by the section `plain`; "distil" trains it by `plain` and `distil`. Two stages with `unify.join` = "distil" train
    the student by `plain` and `distil` too, and unfreeze nothing."""
    data: DataSettings = field(default_factory=DataSettings)
    """How images are read, resized, normalized and split."""
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    """The random changes of training images."""
    model: FamilySpec = field(default_factory=PaperSpec)
    """The network, or each of the two submodels."""
    sizing: SizingSettings = field(default_factory=SizingSettings)
    """Sizes that are chosen to fit the budget."""
    unify: UnifySpec = field(default_factory=UnifySpec)
    """How two submodels become one network."""
    dual: DualSettings = field(default_factory=DualSettings)
    """Stage 1 of the paper."""
    unfreeze: Annotated[UnfreezeSettings, Field(validate_default=True)] = field(default_factory=UnfreezeSettings)
    """Stage 2 of the paper."""
    plain: PlainSettings = field(default_factory=PlainSettings)
    """Training of one network."""
    distil: DistilSettings = field(default_factory=DistilSettings)
    """The teacher, and how the student learns from it."""
    loss: LossSettings = field(default_factory=LossSettings)
    """How class imbalance is compensated."""
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    """The arithmetic of training."""
    quantize: QuantizeSettings = field(default_factory=QuantizeSettings)
    """Conversion to int8."""

    @field_validator("unfreeze")
    @classmethod
    def _check_order(cls, unfreeze: UnfreezeSettings, info: ValidationInfo) -> UnfreezeSettings:
        """Check the steps against the network, unless the sections of the network have faults."""
        is_known = {"method", "model", "unify"} <= info.data.keys()
        if is_known and info.data["method"] == "two-stage" and info.data["unify"].join != "distil":
            order = info.data["unify"].unfreezing_order(info.data["model"].units)
            if not unfreeze.steps:
                raise ValueError(f"steps = []: expected at least one, for {order[0]}")
            try:
                unfreeze.check_units(order)
            except UsageError as error:
                raise ValueError(str(error)) from None
        return unfreeze

    def as_dict(self) -> dict[str, Any]:
        """A JSON- and TOML-ready form for `recipe_from_dict`."""
        return as_plain(self)

    @property
    def unify_spec(self) -> UnifySpec | None:
        """How two submodels become the final network; None for a single network."""
        return self.trainer_settings().unify_spec

    def stage_epochs(self) -> dict[str, int]:
        """The planned epochs of each stage, in order."""
        return self.trainer_settings().stage_epochs

    def trainer_settings(self) -> TrainerSettings:
        """The settings of the trainer."""
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
        """The recipe as TOML, with every setting."""
        return tomli_w.dumps(self.as_dict())


# The sections of a network, with the family of a section that does not name one.
_NETWORK_SECTIONS = {("model",): "paper", ("distil", "model"): "residual"}


@dataclass(frozen=True, kw_only=True)
class _Override:
    """One replaced setting: the text as given, such as "dual.epochs=5", and its parts, ("dual", "epochs") and 5."""

    text: str
    keys: tuple[str, ...]
    value: Any


def default_recipe(source: object, *, has_budget: bool = False) -> str:
    """The recipe for a source if the user names none.

    It is "balanced", which fits the network to the budget and the input to the images. The named benchmark sets without
    a budget use the recipes of the paper: "digits" for digits, "paper" for the others.
    """
    name = str(source) if isinstance(source, str | Path) else ""
    if has_budget or name not in NAMES:
        return "balanced"
    return "digits" if name == "digits" else "paper"


def grouped(recipe: Recipe, group_by: str) -> Recipe:
    """The recipe with `data.group_by`; unchanged for ""."""
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, group_by=group_by)) if group_by else recipe


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that ship with the package, sorted."""
    folder = resources.files("thaw.recipe") / "recipes"
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def load_recipe(name_or_file: str, overrides: Sequence[str] = ()) -> tuple[str, Recipe]:
    """Load a shipped recipe by its name, or a recipe from a TOML file.

    Args:
        name_or_file: a name or path, such as "paper" or "my-recipe.toml".
        overrides: "section.key=value", with a TOML value or a bare string; the last override of a key applies. Another
            `family` discards the recipe's settings of the section, since each family has its own: settings without an
            override have the defaults of that family.

    Returns:
        (The recipe's name, the recipe.)

    Raises:
        RecipeError: listing all faults: unknown keys, wrong types, values out of range, contradictions.
    """
    name, text = _recipe_text(name_or_file)
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"recipe {given(name_or_file)}: invalid TOML: {given(error)}") from None
    faults: list[str] = []
    parsed = [each for text in overrides if (each := _parsed(encodable(text), faults))]
    _discard_other_families(tree, parsed)
    for override in parsed:
        _apply(tree, override, faults)
    return name, recipe_from_dict(tree, faults)


def _recipe_text(name_or_file: str) -> tuple[str, str]:
    if name_or_file in recipe_names():
        return name_or_file, (resources.files("thaw.recipe") / "recipes" / f"{name_or_file}.toml").read_text("utf-8")
    try:
        path = Path(name_or_file).expanduser()
        is_file = path.suffix == ".toml" or path.is_file()
    # A path may be too long, contain a null byte, or name an unknown user.
    except (OSError, ValueError, RuntimeError):
        path, is_file = Path(), False
    if not is_file:
        close = difflib.get_close_matches(name_or_file, recipe_names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        known = ", ".join(recipe_names())
        raise RecipeError(
            f"unknown recipe {shown(name_or_file)}{hint}\nexpected one of {known}, or the path of a .toml file"
        )
    try:
        return path.stem, path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"cannot read the recipe {given(path, PATH_LENGTH)}: {getattr(error, 'strerror', None) or error}"
        ) from None


def _parsed(text: str, faults: list[str]) -> _Override | None:
    """The override of the form `section.key=value`; a value that is not TOML is a string."""
    path, separator, value_text = text.partition("=")
    keys = tuple(key.strip() for key in path.split("."))
    if not separator or not all(keys):
        faults.append(f"--set {given(text)}: expected section.key=value, such as dual.epochs=5")
        return None
    try:
        value = tomllib.loads(f"value = {value_text.strip()}")["value"]
    except (ValueError, RecursionError):
        value = value_text.strip()
    return _Override(text=text, keys=keys, value=value)


def _discard_other_families(tree: dict[str, Any], overrides: Sequence[_Override]) -> None:
    """Empty each section of a network in `tree` whose family the overrides change."""
    for section_keys, default in _NETWORK_SECTIONS.items():
        chosen = [override.value for override in overrides if override.keys == (*section_keys, "family")]
        section: Any = tree
        for key in section_keys:
            section = section.get(key) if isinstance(section, dict) else None
        if chosen and isinstance(section, dict) and section.get("family", default) != chosen[-1]:
            section.clear()


def _apply(tree: dict[str, Any], override: _Override, faults: list[str]) -> None:
    """Set the value of an override in `tree`."""
    node = tree
    for key in override.keys[:-1]:
        below = node.setdefault(key, {})
        if not isinstance(below, dict):
            faults.append(f"--set {given(override.text)}: expected a section at {given(key)}, found a value")
            return
        node = below
    node[override.keys[-1]] = override.value


def recipe_from_dict(tree: Mapping[str, Any], faults: Sequence[str] = ()) -> Recipe:
    """A recipe from a tree of plain values: the inverse of `Recipe.as_dict`.

    Raises:
        RecipeError: listing all faults, beginning with the caller's `faults`.
    """
    recipe, found = build(Recipe, tree)
    if faults or recipe is None:
        every = [*faults, *found]
        if len(every) == 1:
            raise RecipeError(f"the recipe is not valid: {every[0]}")
        raise RecipeError("\n  ".join([f"{len(every)} faults in the recipe:", *every]))
    return recipe
