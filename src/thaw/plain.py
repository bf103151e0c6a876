"""Checked dataclasses: pydantic's validation with the package's messages, for recipes, file headers and Python callers.

Numbers, strings and booleans are strict: nothing is converted, except an integer where a float is expected. Lists
become tuples and mappings become dataclasses, since JSON and TOML have neither.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import pydantic
import pydantic.dataclasses
from pydantic import AfterValidator, BeforeValidator, Field, Strict

from thaw.errors import ThawError, UsageError
from thaw.faults import faults_of
from thaw.quoting import given, shown

__all__ = [
    "LARGEST_WHOLE",
    "BelowOne",
    "Count",
    "Real",
    "Share",
    "Whole",
    "as_plain",
    "build",
    "check_numbers",
    "checked_dataclass",
    "default_family",
    "from_plain",
    "refusing",
]

T = TypeVar("T")
Kind = TypeVar("Kind")

# Every integer up to this is exact as a float; sizes, seeds and counts are far below.
LARGEST_WHOLE = 2**53
# The normal numbers of float32, which networks compute in. Smaller ones become 0 or lose most of their digits.
SMALLEST_FLOAT, LARGEST_FLOAT = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127


def _check_whole(value: int) -> int:
    if abs(value) > LARGEST_WHOLE:
        raise ValueError(f"expected an integer of at most {LARGEST_WHOLE:,}")
    return value


def _check_real(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("expected a finite number")
    if value and not SMALLEST_FLOAT <= abs(value) <= LARGEST_FLOAT:
        raise ValueError(f"expected 0 or a magnitude from {SMALLEST_FLOAT:.2g} to {LARGEST_FLOAT:.2g}")
    return value


Whole = Annotated[int, Strict(), AfterValidator(_check_whole)]
"""An integer from -2^53 to 2^53."""
Real = Annotated[float, Strict(), Field(allow_inf_nan=False), AfterValidator(_check_real)]
"""A finite float: 0, or a normal number of float32."""
Count = Annotated[Whole, Field(ge=1)]
Share = Annotated[Real, Field(ge=0, le=1)]
BelowOne = Annotated[Real, Field(ge=0, lt=1)]

if TYPE_CHECKING:
    # Type checkers know the standard decorator's fields, `replace` and `asdict`.
    from dataclasses import dataclass as checked_dataclass
else:

    def checked_dataclass(**options: bool) -> Callable[[type[T]], type[T]]:
        """A dataclass whose constructor validates its fields by their annotations. A UsageError lists all faults."""

        def decorate(cls: type[T]) -> type[T]:
            made = pydantic.dataclasses.dataclass(cls, config=pydantic.ConfigDict(extra="forbid"), **options)
            construct = made.__init__

            # pydantic does not call this for a nested section, so the faults of a whole tree are collected.
            @functools.wraps(construct)
            def __init__(self: Any, *positional: Any, **named: Any) -> None:  # noqa: N807 - it becomes the method
                try:
                    construct(self, *positional, **named)
                except pydantic.ValidationError as error:
                    raise UsageError("\n".join(faults_of(made, error, made.__name__))) from None

            made.__init__ = __init__
            return made

        return decorate


def from_plain(kind: type[Kind], tree: Any, where: str) -> Kind:
    """A checked dataclass from a tree of plain values.

    Args:
        kind: the dataclass.
        tree: a mapping from its fields' names to values.
        where: the tree's name in messages, such as "input" in "input.mean[0] = True: expected a number".

    Raises:
        UsageError: with the first fault.
    """
    made, faults = build(kind, tree, where)
    if made is None:
        raise UsageError(faults[0])
    return made


def build(kind: type[Kind], tree: Any, where: str = "") -> tuple[Kind | None, list[str]]:
    """(The dataclass that a tree describes, []), or (None, all faults with their full names)."""
    try:
        return pydantic.TypeAdapter(kind).validate_python(dict(tree) if isinstance(tree, Mapping) else tree), []
    except pydantic.ValidationError as error:
        return None, faults_of(kind, error, where)


def as_plain(made: object) -> dict[str, Any]:
    """The tree of a checked dataclass, ready for JSON and TOML: the inverse of `from_plain`."""
    tree: dict[str, Any] = pydantic.TypeAdapter(type(made)).dump_python(made, mode="json")
    return tree


def refusing(check: Callable[[Any], T]) -> Callable[[Any], T]:
    """Turn a function that raises ThawError into a pydantic validator."""

    def validate(value: Any) -> T:
        try:
            return check(value)
        except ThawError as error:
            raise ValueError(str(error)) from None

    return validate


def default_family(name: str) -> BeforeValidator:
    """For a union of dataclasses with the discriminator `family`: a section without this key gets `name`."""
    return BeforeValidator(lambda value: {"family": name, **value} if isinstance(value, dict) else value)


def check_numbers(tree: Any, where: str) -> None:
    """Check that every number in a tree of plain values is in the range of `Whole` or `Real`.

    Args:
        tree: mappings, lists and single values, as JSON gives them.
        where: the tree's name in messages, such as "recipe"; "" for a tree whose keys are names themselves.

    Raises:
        UsageError: for the first number out of range: "recipe.settings.seed = 9223372036854775808: expected ...".
    """
    if isinstance(tree, Mapping):
        for key, item in tree.items():
            check_numbers(item, f"{where}.{key}" if where else str(key))
    elif isinstance(tree, list):
        for index, item in enumerate(tree):
            check_numbers(item, f"{where}[{index}]")
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        try:
            _check_whole(tree) if isinstance(tree, int) else _check_real(tree)
        except ValueError as error:
            raise UsageError(f"{given(where)} = {shown(tree)}: {error}") from None
