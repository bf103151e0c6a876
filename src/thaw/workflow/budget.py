"""What a network may cost at most: `params=15000,ram=8KB,flash=32KB,macs=1M`, and the refusal of one that costs more.

Costs follow from the network, the input's size and the number of classes, so a network that does not fit is refused
before any training.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

from thaw.errors import UsageError
from thaw.graph.cost import CODE_BYTES, STACK_BYTES, Cost, LayerCost
from thaw.quoting import given, shown

EXAMPLE = "params=15000,ram=8KB,flash=32KB,macs=1M"

_COUNT_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}
# As memory is sold and linkers count it: a KB is 1,024 bytes, whichever way it is written.
_BYTE_UNITS = {"": 1, "b": 1, "kb": 1024, "kib": 1024, "mb": 1024**2, "mib": 1024**2}
_UNITS = {"params": _COUNT_UNITS, "ram": _BYTE_UNITS, "flash": _BYTE_UNITS, "macs": _COUNT_UNITS}
_EXPECTED = {
    "params": "a count such as 15000, 15k or 1.5M",
    "ram": "bytes such as 8192, 8KB or 1MB (a KB is 1,024 bytes)",
    "flash": "bytes such as 8192, 8KB or 1MB (a KB is 1,024 bytes)",
    "macs": "a count such as 15000, 15k or 1.5M",
}
_VALUE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")
_LARGEST = 10**12


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits; None is no limit.

    Attributes:
        params: parameters.
        ram: bytes of RAM that the emitted int8 C needs (`Cost.ram_bytes`).
        flash: bytes of flash that it needs (`Cost.flash_bytes`).
        macs: multiply-accumulates for one image.
    """

    params: int | None = None
    ram: int | None = None
    flash: int | None = None
    macs: int | None = None

    def __post_init__(self) -> None:
        for name in _UNITS:
            limit = getattr(self, name)
            is_whole = isinstance(limit, int) and not isinstance(limit, bool)
            if limit is not None and not (is_whole and 1 <= limit <= _LARGEST):
                raise UsageError(
                    f"budget {name} = {shown(limit)}: expected a whole number from 1 to {_LARGEST:,}, or none"
                )

    @classmethod
    def parse(cls, text: str) -> Self:
        """`params=15000,ram=8KB` -> the limits; fractions of one are rounded down.

        Raises:
            UsageError: in one line, for the first thing in the text that cannot be meant.
        """
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"budget {shown(text)}: expected limits such as {EXAMPLE}")
        limits: dict[str, int] = {}
        for part in text.split(","):
            name, separator, value = (piece.strip() for piece in part.partition("="))
            if not separator:
                raise UsageError(f"budget {shown(part.strip())}: expected NAME=LIMIT, as in {EXAMPLE}")
            if name not in _UNITS:
                close = difflib.get_close_matches(name, _UNITS, n=1)
                hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(_UNITS)}"
                raise UsageError(f"budget {shown(name)} is unknown: {hint}")
            if name in limits:
                raise UsageError(f"budget {name} is given twice: expected one limit for each")
            limits[name] = _parse_limit(name, value)
        return cls(**limits)

    def as_dict(self) -> dict[str, int | None]:
        """A JSON-ready form that `from_dict` takes back."""
        return {name: getattr(self, name) for name in _UNITS}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `as_dict`; an unknown name or a value that is no limit is a UsageError."""
        unknown = sorted(set(data) - set(_UNITS))
        if unknown:
            raise UsageError(f"budget {shown(unknown[0])} is unknown: expected {', '.join(_UNITS)}")
        return cls(**data)

    def __str__(self) -> str:
        """The limits in words, such as "params=15,000, ram=8,192"."""
        limits = {name: limit for name, limit in self.as_dict().items() if limit is not None}
        return ", ".join(f"{name}={limit:,}" for name, limit in limits.items()) or "no limit"

    def broken(self, cost: Cost) -> tuple[str, ...]:
        """The names of the limits that a network exceeds."""
        limits = {name: limit for name, limit in self.as_dict().items() if limit is not None}
        return tuple(name for name, limit in limits.items() if needs(cost, name) > limit)


def over_budget(
    budget: Budget, cost: Cost, shape: tuple[int, int, int], classes: int, what: str = "the network"
) -> str:
    """What a network for images (H, W, C) and K classes needs and what it may, a line for each limit that it breaks."""
    size = "x".join(map(str, shape))
    lines = [f"{what} does not fit the budget (input {size}, {classes} classes):"]
    lines += [f"  {name}: {_figures(cost, name, getattr(budget, name))}" for name in budget.broken(cost)]
    return "\n".join(lines)


def _parse_limit(name: str, text: str) -> int:
    found = _VALUE.fullmatch(text)
    unit = _UNITS[name].get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise UsageError(f"budget {name}={given(text)}: expected {_EXPECTED[name]}")
    limit = int(Fraction(found[1]) * unit)
    if not 1 <= limit <= _LARGEST:
        raise UsageError(f"budget {name}={given(text)}: expected at least 1 and at most {_LARGEST:,}")
    return limit


def needs(cost: Cost, name: str) -> int:
    """What a network needs of the limit `name`."""
    counts = {"params": cost.parameters, "ram": cost.ram_bytes, "flash": cost.flash_bytes, "macs": cost.macs}
    return counts[name]


def _figures(cost: Cost, name: str, limit: int) -> str:
    """What a network needs and what it may, and where most of it is."""
    needed = needs(cost, name)
    unit = " bytes" if _UNITS[name] is _BYTE_UNITS else ""
    about = {
        "params": _most(cost, "parameters", lambda layer: layer.parameters),
        "macs": _most(cost, "MACs", lambda layer: layer.macs),
        "flash": f"{needed - CODE_BYTES:,} of constants and {CODE_BYTES:,} allowed for code",
        "ram": f"an arena of {cost.arena_bytes:,} and {STACK_BYTES:,} allowed for the stack; the caller's image takes "
        f"{cost.image_bytes:,} beside it",
    }
    return f"needs {needed:,}{unit}, allowed are {limit:,} ({about[name]})"


def _most(cost: Cost, what: str, of: Callable[[LayerCost], int]) -> str:
    layer = max(cost.layers, key=of)
    return f"{layer.name} has most {what}, {of(layer):,}"
