"""Every setting of a recipe, as data: what the settings page of the documentation is made from."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from thaw.recipe.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class SettingInfo:
    """One setting of a recipe.

    Attributes:
        key: its dotted name, such as "plain.fit.momentum"; entries of a list are "unfreeze.steps[].unit".
        family: the model family that has it; "" for a setting that does not depend on the family.
        type: such as "whole number", "list: whole number", or its choices: '"stretch" or "crop"'.
        default: as TOML writes it; "" where the setting is required.
        range: such as "0 to 1"; "" where every value of the type is allowed.
        description: what it does, in a sentence or two.
    """

    key: str
    family: str = ""
    type: str
    default: str
    range: str = ""
    description: str


_SCALARS: dict[Any, str] = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def settings_reference() -> list[SettingInfo]:
    """Every setting of a recipe, in the order of its sections."""
    return list(_settings(Recipe, Recipe(), "", ""))


def _settings(kind: type[Any], defaults: Any, prefix: str, family: str) -> Iterator[SettingInfo]:
    """The settings of a section; `defaults` has its values where a recipe says nothing, None for a list's entries."""
    hints = typing.get_type_hints(kind)
    descriptions = _descriptions(kind)
    for field in dataclasses.fields(kind):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        families = [each for each in typing.get_args(hint) if hasattr(each, "family")]
        if families:
            if prefix:
                description = f"{descriptions[field.name]} Has the settings of a family, as [model] does."
                yield SettingInfo(key=key, type="section", default="", description=description)
                continue
            names = [each.family for each in families]
            yield SettingInfo(
                key=f"{key}.family",
                type=_choices(names),
                default=f'"{names[0]}"',
                description="The network's family, which decides the other settings of this section.",
            )
            for each in families:
                yield from _settings(each, each(), f"{key}.", each.family)
        elif dataclasses.is_dataclass(hint):
            yield from _settings(typing.cast("type[Any]", hint), getattr(defaults, field.name), f"{key}.", family)
        else:
            yield SettingInfo(
                key=key,
                family=family,
                type=_type_name(hint),
                default=_toml(field.default if defaults is None else getattr(defaults, field.name)),
                description=descriptions.get(field.name, ""),
            )
            entry = next((each for each in typing.get_args(hint) if dataclasses.is_dataclass(each)), None)
            if entry is not None:
                yield from _settings(typing.cast("type[Any]", entry), None, f"{key}[].", family)


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return _choices(arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type_name(each) for each in arguments)
    if origin is tuple:
        kind = arguments[0]
        name = "section" if dataclasses.is_dataclass(kind) else _type_name(kind)
        return f"list: {name}" if arguments[-1] is Ellipsis else f"list of {len(arguments)}: {name}"
    return _SCALARS[hint]


def _choices(names: typing.Sequence[str]) -> str:
    quoted = [f'"{name}"' for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]])


def _toml(value: Any) -> str:
    if value is dataclasses.MISSING:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if dataclasses.is_dataclass(value):
        fields = (f"{field.name} = {_toml(getattr(value, field.name))}" for field in dataclasses.fields(value))
        return f"{{ {', '.join(fields)} }}"
    return str(value)


def _descriptions(kind: type[Any]) -> dict[str, str]:
    """By field, from the "Attributes:" section of the class's docstring."""
    _, _, section = (kind.__doc__ or "").partition("Attributes:\n")
    found = re.findall(r"^        (\w+): (.*(?:\n {12}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
