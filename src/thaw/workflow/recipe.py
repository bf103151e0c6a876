"""Recipes: TOML <-> frozen dataclasses, strictly. Every default stands in the dataclass beside what it configures."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w

from thaw.data.augment import AugmentSettings
from thaw.data.settings import DataSettings
from thaw.errors import RecipeError, ThawError, UsageError
from thaw.models.families import FAMILIES, FamilySpec, PaperSpec
from thaw.models.fusion import FusionSpec
from thaw.training.compute import ComputeSettings
from thaw.training.stages import DualSettings, UnfreezeSettings
from thaw.workflow.quantisation import QuantizeSettings

# Every whole number below it is a float too.
_LARGEST_WHOLE = 2**53


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides what a run trains and how; with the data, the seed and the machine it decides the weights."""

    description: str = ""
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    model: FamilySpec = field(default_factory=PaperSpec)
    fusion: FusionSpec = field(default_factory=FusionSpec)
    dual: DualSettings = field(default_factory=DualSettings)
    unfreeze: UnfreezeSettings = field(default_factory=UnfreezeSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    quantize: QuantizeSettings = field(default_factory=QuantizeSettings)

    def __post_init__(self) -> None:
        if not self.unfreeze.steps:
            raise UsageError("unfreeze.steps is empty: at least the head has to be trained")
        self.unfreeze.check_units(("head", *reversed(self.model.units)))

    def as_dict(self) -> dict[str, Any]:
        """A JSON- and TOML-ready form that `recipe_from_dict` takes back."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        plain["model"] = {"family": self.model.family, **plain["model"]}
        return plain

    def stage_epochs(self) -> dict[str, int]:
        """The planned epochs of each stage, in order."""
        return {"dual": self.dual.epochs, **{step.thaws: step.epochs for step in self.unfreeze.steps}}

    def as_toml(self) -> str:
        """The resolved recipe, every setting written out."""
        return tomli_w.dumps(self.as_dict())


def default_recipe(source: object) -> str:
    """The recipe that a source is trained with when none is named: "digits" for the bundled digits, else "paper"."""
    return "digits" if isinstance(source, str | Path) and str(source) == "digits" else "paper"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def recipe_names() -> tuple[str, ...]:
    """The recipes that ship with the package, sorted."""
    folder = resources.files("thaw") / "recipes"
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def load_recipe(name_or_file: str, overrides: Sequence[str] = ()) -> tuple[str, Recipe]:
    """A recipe by its shipped name or from a TOML file, with `section.key=value` overrides: (its name, the recipe).

    Raises:
        RecipeError: listing every fault at once: unknown keys, wrong types, values out of range, contradictions.
    """
    name, text = _recipe_text(name_or_file)
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RecipeError(f"recipe {name_or_file} is not TOML: {error}") from None
    faults: list[str] = []
    for override in overrides:
        _apply(tree, override, faults)
    recipe = recipe_from_dict(tree, faults)
    return name, recipe


def _recipe_text(name_or_file: str) -> tuple[str, str]:
    if name_or_file in recipe_names():
        return name_or_file, (resources.files("thaw") / "recipes" / f"{name_or_file}.toml").read_text("utf-8")
    path = Path(name_or_file).expanduser()
    if path.suffix != ".toml" and not path.is_file():
        close = difflib.get_close_matches(name_or_file, recipe_names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        known = ", ".join(recipe_names())
        raise RecipeError(
            f"there is no recipe {name_or_file!r}{hint}\nexpected one of {known}, or the path of a .toml file"
        )
    try:
        return path.stem, path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}") from None


def _apply(tree: dict[str, Any], override: str, faults: list[str]) -> None:
    """Set one `section.key=value` in `tree`; the value is read as TOML, or else taken as a string."""
    path, separator, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not separator or not all(keys):
        faults.append(f"--set {override}: expected section.key=value, such as dual.epochs=5")
        return
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text.strip()
    node = tree
    for key in keys[:-1]:
        below = node.setdefault(key, {})
        if not isinstance(below, dict):
            faults.append(f"--set {override}: {key} is a value, not a section")
            return
        node = below
    node[keys[-1]] = value


def recipe_from_dict(tree: Mapping[str, Any], faults: Sequence[str] = ()) -> Recipe:
    """A recipe from a tree of plain values (the inverse of `Recipe.as_dict`).

    Raises:
        RecipeError: listing every fault at once, after `faults` that the caller has found already.
    """
    found = list(faults)
    recipe = _build(Recipe, _without_family(tree, found), "", found)
    if found or not isinstance(recipe, Recipe):
        count = f"{len(found)} faults in the recipe:\n" if len(found) > 1 else "the recipe is not valid: "
        raise RecipeError(count + "\n".join(f"  {fault}" if len(found) > 1 else fault for fault in found))
    return recipe


def _without_family(tree: Mapping[str, Any], faults: list[str]) -> Mapping[str, Any]:
    """`tree` without model.family, which chooses the spec that the rest of the model section fills."""
    model = tree.get("model")
    if not isinstance(model, Mapping) or "family" not in model:
        return tree
    if model["family"] not in tuple(FAMILIES):
        faults.append(f"model.family = {model['family']!r}: expected one of {', '.join(FAMILIES)}")
    return {**tree, "model": {key: value for key, value in model.items() if key != "family"}}


def _build(kind: type[Any], tree: Any, where: str, faults: list[str]) -> Any:
    """A dataclass `kind` from a mapping; adds what is wrong to `faults` and then returns None."""
    if not isinstance(tree, Mapping):
        faults.append(f"{where}: expected a section, found {tree!r}")
        return None
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    before = len(faults)
    for key, value in tree.items():
        name = f"{where}.{key}" if where else key
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            known = f"did you mean {close[0]}?" if close else f"known here: {', '.join(fields)}"
            faults.append(f"{name} is unknown; {known}")
            continue
        known_faults = len(faults)
        converted = _convert(hints[key], value, name, faults)
        if len(faults) == known_faults:
            values[key] = converted
    required = [name for name, item in fields.items() if _required(item)]
    faults.extend(f"{where}.{name} is missing" for name in required if name not in tree)
    if all(name in values for name in required):
        faults.extend(_refusals(kind, values, required))
    return kind(**values) if len(faults) == before else None


def _refusals(kind: type[Any], values: dict[str, Any], required: Sequence[str]) -> list[str]:
    """What a dataclass has against values of the right types: each alone, since it stops at the first, then all."""
    base = {name: values[name] for name in required}
    refusals: dict[str, None] = {}
    for some in (*({**base, name: value} for name, value in values.items()), values):
        try:
            kind(**some)
        except ThawError as error:
            refusals[str(error)] = None
    return list(refusals)


def _required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, name: str, faults: list[str]) -> Any:
    """`value` as the type `hint`; the kinds of type that settings use are all here."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, name, faults)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return _convert_tuple(arguments, value, name, faults)
    if origin is typing.Literal:
        if value not in arguments:
            faults.append(f"{name} = {value!r}: expected one of {', '.join(map(str, arguments))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST_WHOLE:
        value = float(value)
    if not isinstance(hint, type) or isinstance(hint, types.GenericAlias):
        raise TypeError(f"settings of type {hint} are not known here")
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
        faults.append(f"{name} = {value!r}: expected {names.get(hint, hint.__name__)}")
    elif isinstance(value, float) and not math.isfinite(value):
        faults.append(f"{name} = {value!r}: expected a finite number")
    return value


def _convert_tuple(arguments: tuple[Any, ...], value: Any, name: str, faults: list[str]) -> Any:
    if not isinstance(value, (list, tuple)):
        faults.append(f"{name} = {value!r}: expected a list")
        return ()
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        faults.append(f"{name} = {list(value)!r}: expected {len(arguments)} entries")
        return ()
    items = zip(arguments, value, strict=True)
    return tuple(_convert(hint, item, f"{name}[{index}]", faults) for index, (hint, item) in enumerate(items))
