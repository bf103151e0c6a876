"""Turns validation errors of pydantic into the package's messages: one line per fault, with the full name."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pydantic
from pydantic.fields import FieldInfo

from thaw.quoting import given, shown

_NOUNS = {
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "string_unicode": "text that UTF-8 can encode",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "finite_number": "a finite number",
}


def faults_of(kind: Any, error: pydantic.ValidationError, where: str) -> list[str]:
    """All faults that validation of the dataclass `kind` found; `where` is its name in messages, or ""."""
    found = [_fault(kind, details, where) for details in error.errors(include_url=False)]
    return list(dict.fromkeys(found))


def _fault(kind: type[Any], details: Any, where: str) -> str:
    """The message for one fault."""
    code, value, place = details["type"], details["input"], details["loc"]
    context = details.get("ctx", {})
    name, hint = _locate(kind, where, place)
    match code:
        case "unexpected_keyword_argument" | "invalid_key":
            known = field_types(bare_type(_locate(kind, where, place[:-1])[1]))
            close = difflib.get_close_matches(str(place[-1]), known, n=1)
            hint_text = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
            return f"{given(name)} is unknown; {hint_text}"
        case "missing" if isinstance(place[-1], str):
            return f"{name} is missing"
        case "missing":
            name, hint = _locate(kind, where, place[:-1])
        case "dataclass_type" | "model_attributes_type" | "dict_type":
            return f"{name}: expected a section, found {shown(value)}"
        case "union_tag_invalid":
            name, value = f"{name}.family", value["family"]
        case "value_error":
            message = str(context["error"])
            if dataclasses.is_dataclass(bare_type(hint)):
                return f"{name}.{message}" if name else message
            _, separator, expected = message.partition("expected ")
            return f"{name} = {shown(value)}: {separator + expected if separator else message}"
    return f"{name} = {shown(value)}: expected {_expectation(code, hint, context)}"


def _expectation(code: str, hint: Any, context: Mapping[str, Any]) -> str:
    """The rest of "expected ..." for an error of pydantic at a value of type `hint`."""
    if code in _NOUNS:
        return _NOUNS[code]
    match code:
        case "literal_error":
            return f"one of {', '.join(map(str, typing.get_args(bare_type(hint))))}"
        case "union_tag_invalid":
            return f"one of {context['expected_tags'].replace(chr(39), '')}"
        case "missing" | "too_short" | "too_long":
            return list_length(hint)
    words = value_range(hint)
    noun = "an integer" if bare_type(hint) is int else "a number"
    return f"{noun} {f'of {words}' if words.startswith('at ') else words}" if words else str(context)


def _locate(kind: type[Any], where: str, place: Sequence[str | int]) -> tuple[str, Any]:
    """(Dotted name, annotation) of a value whose place pydantic gives as keys, indices and alternatives."""
    name, hint = where, kind
    for part in place:
        bare = bare_type(hint)
        arguments = typing.get_args(bare)
        if isinstance(part, int) and typing.get_origin(bare) is tuple:
            name = f"{name}[{part}]"
            hint = arguments[0 if arguments[-1] is Ellipsis else min(part, len(arguments) - 1)]
        elif is_union(bare):
            # The part names an alternative of a union, by its family if it has one.
            hint = next((each for each in arguments if getattr(each, "family", None) == part), Any)
        else:
            name = f"{name}.{part}" if name else str(part)
            hint = field_types(bare).get(str(part), Any) if dataclasses.is_dataclass(bare) else arguments[-1]
    return name, hint


def value_range(hint: Any) -> str:
    """The range that an annotation allows, such as "from 0 to below 1" or "at least 1"; "" if unrestricted."""
    found = _constraints(hint)
    least, most = (found.get(strict, found.get(name)) for strict, name in (("gt", "ge"), ("lt", "le")))
    most_text = "" if most is None else f"{'below ' if 'lt' in found else ''}{_number(most)}"
    if least is None:
        return most_text and f"at most {most_text}"
    if "gt" in found:
        return f"above {_number(least)}" + (most_text and f" and {'' if 'lt' in found else 'at most '}{most_text}")
    return f"from {_number(least)} to {most_text}" if most_text else f"at least {_number(least)}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def list_length(hint: Any) -> str:
    """The length that the annotation of a list allows, such as "2 entries" or "1 to 8 entries"; "" if unrestricted."""
    entries = typing.get_args(bare_type(hint))
    if entries[-1:] != (Ellipsis,):
        return f"{len(entries)} entries"
    found = _constraints(hint)
    least, most = found.get("min_length", 0), found.get("max_length")
    if most is not None:
        return f"{least} to {most} entries"
    return f"at least {least} entr{'y' if least == 1 else 'ies'}" if least else ""


def _constraints(hint: Any) -> dict[str, Any]:
    """The bounds of an annotation by pydantic's names: ge, gt, le, lt, min_length, max_length."""
    found: dict[str, Any] = {}
    for item in getattr(_without_none(hint), "__metadata__", ()):
        for bound in item.metadata if isinstance(item, FieldInfo) else [item]:
            if type(bound).__module__ == "annotated_types":
                found |= dataclasses.asdict(bound)
    return found


def bare_type(hint: Any) -> Any:
    """A type without its annotations, and without None as an alternative."""
    inner = _without_none(hint)
    return bare_type(typing.get_args(inner)[0]) if typing.get_origin(inner) is Annotated else inner


def _without_none(hint: Any) -> Any:
    if not is_union(hint):
        return hint
    others = [each for each in typing.get_args(hint) if each is not types.NoneType]
    return others[0] if len(others) == 1 else hint


def is_union(hint: Any) -> bool:
    """Whether a type without annotations is a union."""
    return typing.get_origin(hint) in (types.UnionType, typing.Union)


def field_types(kind: Any) -> dict[str, Any]:
    """The annotations of a dataclass by field."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
