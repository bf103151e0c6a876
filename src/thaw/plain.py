"""Dataclasses from plain trees, as JSON and TOML give them: by type hints, every fault under its full name."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from thaw.errors import ThawError, UsageError
from thaw.quoting import given, shown

Kind = TypeVar("Kind")

# Every whole number within it is a float too; sizes, seeds and counts are far below.
LARGEST_WHOLE = 2**53
# The normal numbers of float32, which networks compute in. A smaller one is 0 there, or loses most of its digits.
SMALLEST_FLOAT, LARGEST_FLOAT = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127


def from_plain(kind: type[Kind], tree: Any, where: str) -> Kind:
    """A dataclass from a tree of plain values.

    Args:
        kind: the dataclass.
        tree: a mapping from its fields' names to values.
        where: what the tree is called, such as "input": "input.mean[0] = True: expected a number".

    Raises:
        UsageError: with the first fault that was found.
    """
    faults: list[str] = []
    made = build(kind, tree, where, faults)
    if faults or not isinstance(made, kind):
        raise UsageError(faults[0])
    return made


def build(kind: type[Any], tree: Any, where: str, faults: list[str]) -> Any:
    """A dataclass `kind` from a mapping; adds what is wrong to `faults` and then returns None."""
    if not isinstance(tree, Mapping):
        faults.append(f"{where}: expected a section, found {shown(tree)}")
        return None
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    before = len(faults)
    for key, value in tree.items():
        name = f"{where}.{key}" if where else key
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            known = f"did you mean {close[0]}?" if close else f"known here: {', '.join(fields)}"
            faults.append(f"{given(name)} is unknown; {known}")
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
    """What a dataclass has against values of the right types.

    It stops at the first, so each value is also tried alone, beside defaults. That counts only where one of them is
    what it stops at: else the values contradict each other, and alone they may contradict defaults that were not meant.
    """
    together = _refusal(kind, values)
    if together is None:
        return []
    base = {name: values[name] for name in required}
    alone = [_refusal(kind, {**base, name: value}) for name, value in values.items()]
    found = [refusal for refusal in alone if refusal is not None]
    return list(dict.fromkeys(found)) if together in found else [together]


def _refusal(kind: type[Any], values: dict[str, Any]) -> str | None:
    try:
        kind(**values)
    except ThawError as error:
        return str(error)
    return None


def _required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, name: str, faults: list[str]) -> Any:
    """`value` as the type `hint`; the kinds of type that settings use are all here."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, name, faults)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(arguments, value, name, faults)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _convert_mapping(arguments, value, name, faults)
    if origin is tuple:
        return _convert_tuple(arguments, value, name, faults)
    if origin is typing.Literal:
        if not isinstance(value, str) or value not in arguments:
            faults.append(f"{name} = {shown(value)}: expected one of {', '.join(map(str, arguments))}")
    elif isinstance(origin, type) and not isinstance(value, origin):
        faults.append(f"{name} = {shown(value)}: expected {origin.__name__}")
    elif origin is None and not isinstance(hint, type):
        raise TypeError(f"settings of type {hint} are not known here")
    elif origin is None and hint is not Any:
        return _convert_single(hint, value, name, faults)
    return value


def _convert_single(hint: type[Any], value: Any, name: str, faults: list[str]) -> Any:
    """A number, a string or a truth value."""
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST_WHOLE:
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
        faults.append(f"{name} = {shown(value)}: expected {names.get(hint, hint.__name__)}")
    elif expected := _out_of_range(value):
        faults.append(f"{name} = {shown(value)}: expected {expected}")
    return value


def _out_of_range(value: Any) -> str:
    """What is expected instead of a number that is not finite or too small or large; "" for every other value."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if isinstance(value, float) and value and not SMALLEST_FLOAT <= abs(value) <= LARGEST_FLOAT:
        return f"0 or a number of a size from {SMALLEST_FLOAT:.2g} to {LARGEST_FLOAT:.2g}"
    if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        return f"a whole number of at most {LARGEST_WHOLE:,}"
    return ""


def check_numbers(tree: Any, where: str) -> None:
    """See that every number in a tree of plain values is in the range of those that dataclasses take.

    Args:
        tree: mappings, lists and single values, as JSON gives them.
        where: what the tree is called, such as "recipe"; "" for one whose keys are names themselves.

    Raises:
        UsageError: naming the first that is not: "recipe.settings.seed = 9223372036854775808: expected ...".
    """
    if isinstance(tree, Mapping):
        for key, item in tree.items():
            check_numbers(item, f"{where}.{key}" if where else str(key))
    elif isinstance(tree, list):
        for index, item in enumerate(tree):
            check_numbers(item, f"{where}[{index}]")
    elif expected := _out_of_range(tree):
        raise UsageError(f"{given(where)} = {shown(tree)}: expected {expected}")


def _convert_union(arguments: Sequence[Any], value: Any, name: str, faults: list[str]) -> Any:
    """One of several dataclasses, or a value of the first other type that takes it; None where that is one of them."""
    kinds = [each for each in arguments if each is not types.NoneType]
    if value is None and len(kinds) < len(arguments):
        return None
    if len(kinds) == 1:
        return _convert(kinds[0], value, name, faults)
    if all(map(dataclasses.is_dataclass, kinds)):
        return _build_one_of(kinds, value, name, faults)
    refusals: list[str] = []
    for kind in kinds:
        found: list[str] = []
        converted = _convert(kind, value, name, found)
        if not found:
            return converted
        refusals += [fault.partition("expected ")[2] for fault in found]
    faults.append(f"{name} = {shown(value)}: expected {' or '.join(dict.fromkeys(refusals))}")
    return value


def _convert_mapping(arguments: Sequence[Any], value: Any, name: str, faults: list[str]) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        faults.append(f"{name} = {shown(value)}: expected a section")
        return {}
    return {key: _convert(arguments[1], item, f"{name}.{key}", faults) for key, item in value.items()}


def _build_one_of(kinds: Sequence[type[Any]], tree: Any, where: str, faults: list[str]) -> Any:
    """One of several dataclasses, chosen by the key "family"; the first of them where there is none."""
    if not isinstance(tree, Mapping):
        faults.append(f"{where}: expected a section, found {shown(tree)}")
        return None
    families = {kind.family: kind for kind in kinds}
    family = tree.get("family", kinds[0].family)
    if not isinstance(family, str) or family not in families:
        faults.append(f"{where}.family = {shown(family)}: expected one of {', '.join(families)}")
        return None
    return build(families[family], {key: value for key, value in tree.items() if key != "family"}, where, faults)


def _convert_tuple(arguments: tuple[Any, ...], value: Any, name: str, faults: list[str]) -> Any:
    if not isinstance(value, (list, tuple)):
        faults.append(f"{name} = {shown(value)}: expected a list")
        return ()
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        faults.append(f"{name} = {shown(list(value))}: expected {len(arguments)} entries")
        return ()
    items = zip(arguments, value, strict=True)
    return tuple(_convert(hint, item, f"{name}[{index}]", faults) for index, (hint, item) in enumerate(items))
