"""All settings of a recipe as data, for the settings page of the documentation."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from thaw.faults import bare_type, field_types, is_union, list_length, value_range
from thaw.recipe.recipe import Recipe

_SCALARS: dict[Any, str] = {int: "integer", float: "number", str: "text", bool: "true or false"}


@dataclass(frozen=True, kw_only=True)
class SettingInfo:
    """One setting of a recipe.

    Attributes:
        key: dotted name, such as "plain.fit.momentum"; for entries of a list, such as "unfreeze.steps[].unit".
        family: the model family that has it; "" for a setting of all families.
        type: such as "integer", "list of integers", or its choices: '"stretch" or "crop"'.
        default: as TOML; "" for a required setting.
        range: such as "from 0 to 1"; for a list, also its length; "" if every value of the type is valid.
        description: one or two sentences.
    """

    key: str
    family: str = ""
    type: str
    default: str
    range: str = ""
    description: str


def settings_reference() -> list[SettingInfo]:
    """Every setting of a recipe, in the order of its sections."""
    return list(_settings(Recipe, Recipe(), "", ""))


def _settings(kind: Any, defaults: Any, prefix: str, family: str) -> Iterator[SettingInfo]:
    """The settings of a section; `defaults` is the section by default, or None for the entries of a list."""
    texts = _descriptions(kind)
    for field in dataclasses.fields(kind):
        key, hint = f"{prefix}{field.name}", field_types(kind)[field.name]
        bare = bare_type(hint)
        families = [each for each in typing.get_args(bare) if hasattr(each, "family")]
        default = field.default if defaults is None else getattr(defaults, field.name)
        if families and prefix:
            text = f"{texts[field.name]} It has the settings of the section [model]."
            yield SettingInfo(key=key, type="section", default=_toml(default), description=text)
        elif families:
            names = [each.family for each in families]
            text = "The network's family. The other settings of this section depend on it."
            yield SettingInfo(key=f"{key}.family", type=_choices(names), default=_toml(names[0]), description=text)
            for each in families:
                made = each()
                rest = _settings(each, made, f"{key}.", made.family)
                yield from (info for info in rest if info.key != f"{key}.family")
        elif dataclasses.is_dataclass(bare):
            yield from _settings(bare, default, f"{key}.", family)
        else:
            yield SettingInfo(
                key=key,
                family=family,
                type=_type_name(hint),
                default=_toml(default),
                range=_range(hint),
                description=texts[field.name],
            )
            for entry in filter(dataclasses.is_dataclass, typing.get_args(bare)):
                yield from _settings(entry, None, f"{key}[].", family)


def _type_name(hint: Any) -> str:
    bare = bare_type(hint)
    arguments = typing.get_args(bare)
    if typing.get_origin(bare) is typing.Literal:
        return _choices(arguments)
    if is_union(bare):
        return " or ".join(map(_type_name, arguments))
    if typing.get_origin(bare) is tuple:
        if dataclasses.is_dataclass(arguments[0]):
            return "list of sections"
        entry = _type_name(arguments[0])
        return f"list of {entry}s" if bare_type(arguments[0]) in _SCALARS else f"list of {entry}"
    return _SCALARS[bare]


def _choices(names: Sequence[str]) -> str:
    quoted = [f'"{name}"' for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]])


def _range(hint: Any) -> str:
    """The range of a number; of a list, its length and the range of its entries."""
    bare = bare_type(hint)
    if typing.get_origin(bare) is not tuple:
        return value_range(hint)
    return ", each ".join(filter(None, [list_length(hint), value_range(typing.get_args(bare)[0])]))


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
    """By field: the string literal after it in the source of the class or of a base class."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        body = typing.cast("ast.ClassDef", ast.parse(inspect.getsource(base)).body[0]).body
        for field, text in itertools.pairwise(body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(description))):
                    found[name] = " ".join(description.split())
    return found
