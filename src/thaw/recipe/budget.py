"""What a network may cost at most: `params=15000,ram=8KB,flash=32KB,macs=1M`, and the refusal of one that costs more.

RAM includes the image that the caller holds, unless the budget says `image=excluded`.

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
_NAMES = (*_UNITS, "image")
_IMAGE = {"included": True, "excluded": False}
_VALUE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")
_LARGEST = 10**12


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits; None is no limit.

    Attributes:
        params: parameters.
        ram: bytes of RAM for running the emitted int8 C (`Cost.ram_bytes`).
        flash: bytes of flash that it needs (`Cost.flash_bytes`).
        macs: multiply-accumulates for one image.
        counts_image: whether `ram` includes the image that the caller holds; not where a camera writes it elsewhere, or
            it lies in flash.
    """

    params: int | None = None
    ram: int | None = None
    flash: int | None = None
    macs: int | None = None
    counts_image: bool = True

    def __post_init__(self) -> None:
        for name in _UNITS:
            limit = getattr(self, name)
            is_whole = isinstance(limit, int) and not isinstance(limit, bool)
            if limit is not None and not (is_whole and 1 <= limit <= _LARGEST):
                raise UsageError(
                    f"budget {name} = {shown(limit)}: expected a whole number from 1 to {_LARGEST:,}, or none"
                )
        if not self.counts_image and self.ram is None:
            raise UsageError("budget image=excluded: it changes what ram counts, so expected ram=LIMIT beside it")

    @classmethod
    def parse(cls, text: str) -> Self:
        """`params=15000,ram=8KB` -> the limits; fractions of one are rounded down.

        Raises:
            UsageError: in one line, for the first thing in the text that cannot be meant.
        """
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"budget {shown(text)}: expected limits such as {EXAMPLE}")
        limits: dict[str, int] = {}
        image: bool | None = None
        for part in text.split(","):
            name, separator, value = (piece.strip() for piece in part.partition("="))
            if not separator:
                raise UsageError(f"budget {shown(part.strip())}: expected NAME=LIMIT, as in {EXAMPLE}")
            if name not in _NAMES:
                close = difflib.get_close_matches(name, _NAMES, n=1)
                hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(_NAMES)}"
                raise UsageError(f"budget {shown(name)} is unknown: {hint}")
            if name in limits or (name == "image" and image is not None):
                raise UsageError(f"budget {name} is given twice: expected one limit for each")
            if name == "image":
                image = _parse_image(value)
            else:
                limits[name] = _parse_limit(name, value)
        return cls(**limits, counts_image=image is not False)

    def as_dict(self) -> dict[str, int | str | None]:
        """A JSON-ready form that `from_dict` takes back; it has "image" only where that is excluded."""
        limits: dict[str, int | str | None] = dict(self.limits())
        return limits if self.counts_image else limits | {"image": "excluded"}

    def limits(self) -> dict[str, int | None]:
        """Limit by name, None where there is none."""
        return {name: getattr(self, name) for name in _UNITS}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `as_dict`; an unknown name or a value that is no limit is a UsageError."""
        unknown = sorted(set(data) - set(_NAMES))
        if unknown:
            raise UsageError(f"budget {shown(unknown[0])} is unknown: expected {', '.join(_NAMES)}")
        counts_image = _parse_image(data.get("image", "included"))
        return cls(**{name: limit for name, limit in data.items() if name != "image"}, counts_image=counts_image)

    def __str__(self) -> str:
        """The limits in words, such as "params=15,000, ram=8,192"."""
        told = [f"{name}={limit:,}" for name, limit in self.limits().items() if limit is not None]
        return ", ".join([*told, *([] if self.counts_image else ["image=excluded"])]) or "no limit"

    def needs(self, cost: Cost) -> dict[str, int]:
        """What a network needs of each limit."""
        ram = cost.ram_bytes if self.counts_image else cost.ram_bytes - cost.image_bytes
        return {"params": cost.parameters, "ram": ram, "flash": cost.flash_bytes, "macs": cost.macs}

    def broken(self, cost: Cost) -> tuple[str, ...]:
        """The names of the limits that a network exceeds."""
        needed = self.needs(cost)
        return tuple(name for name, limit in self.limits().items() if limit is not None and needed[name] > limit)


def over_budget(
    budget: Budget, cost: Cost, shape: tuple[int, int, int], classes: int, what: str = "the network"
) -> str:
    """What a network for images (H, W, C) and K classes needs and what it may, a line for each limit that it breaks."""
    size = "x".join(map(str, shape))
    lines = [f"{what} does not fit the budget (input {size}, {classes} classes):"]
    lines += [f"  {name}: {_figures(budget, cost, name)}" for name in budget.broken(cost)]
    return "\n".join(lines)


def ram_parts(cost: Cost, *, counts_image: bool = True) -> str:
    """What `Cost.ram_bytes` is made of, in words."""
    image = f"image {cost.image_bytes:,}" if counts_image else f"without the image of {cost.image_bytes:,}"
    return f"arena {cost.arena_bytes:,}, {image}, scores {cost.score_bytes:,}, {STACK_BYTES:,} allowed for the stack"


def _parse_limit(name: str, text: str) -> int:
    found = _VALUE.fullmatch(text)
    unit = _UNITS[name].get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise UsageError(f"budget {name}={given(text)}: expected {_EXPECTED[name]}")
    limit = int(Fraction(found[1]) * unit)
    if not 1 <= limit <= _LARGEST:
        raise UsageError(f"budget {name}={given(text)}: expected at least 1 and at most {_LARGEST:,}")
    return limit


def _parse_image(text: object) -> bool:
    if not isinstance(text, str) or text not in _IMAGE:
        raise UsageError(f"budget image={given(text)}: expected {' or '.join(_IMAGE)}")
    return _IMAGE[text]


def _figures(budget: Budget, cost: Cost, name: str) -> str:
    """What a network needs and what it may, and where most of it is."""
    needed, limit = budget.needs(cost)[name], budget.limits()[name]
    unit = " bytes" if _UNITS[name] is _BYTE_UNITS else ""
    about = {
        "params": _most(cost, "parameters", lambda layer: layer.parameters),
        "macs": _most(cost, "MACs", lambda layer: layer.macs),
        "flash": f"{needed - CODE_BYTES:,} of constants and {CODE_BYTES:,} allowed for code",
        "ram": ram_parts(cost, counts_image=budget.counts_image),
    }
    return f"needs {needed:,}{unit}, allowed are {limit:,} ({about[name]})"


def _most(cost: Cost, what: str, of: Callable[[LayerCost], int]) -> str:
    layer = max(cost.layers, key=of)
    return f"{layer.name} has most {what}, {of(layer):,}"
