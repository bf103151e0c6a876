"""Upper limits on the network's cost, such as `params=15000,ram=8KB,flash=32KB,macs=1M`.

RAM includes the input image, unless the budget says `image=excluded`. Costs follow from the network, the input size and
the number of classes, so a network that does not fit is refused before training.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Annotated, Any, Self

from pydantic import Field, StrictBool, model_validator

from thaw.errors import UsageError
from thaw.graph.cost import CODE_BYTES, STACK_BYTES, Cost, LayerCost
from thaw.plain import Whole, checked_dataclass, from_plain
from thaw.quoting import given, shown

EXAMPLE = "params=15000,ram=8KB,flash=32KB,macs=1M"

_COUNT_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}
# KB and KiB are 1,024 bytes, as in data sheets and linker output.
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


_Limit = Annotated[Whole, Field(ge=1, le=_LARGEST)]


@checked_dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits; None for no limit."""

    params: _Limit | None = None
    """Parameters."""
    ram: _Limit | None = None
    """Bytes of RAM to run the emitted int8 C (`Cost.ram_bytes`)."""
    flash: _Limit | None = None
    """Bytes of flash for the emitted int8 C (`Cost.flash_bytes`)."""
    macs: _Limit | None = None
    """Multiply-accumulates per image."""
    counts_image: StrictBool = True
    """Whether `ram` includes the input image. False if the camera writes it to other memory, or it lies in flash."""

    @model_validator(mode="after")
    def _check_image(self) -> Self:
        if not self.counts_image and self.ram is None:
            raise ValueError("image = excluded: expected ram=LIMIT too, to which it applies")
        return self

    @classmethod
    def parse(cls, text: str) -> Self:
        """`params=15000,ram=8KB` -> the limits, rounded down to integers.

        Raises:
            UsageError: for the first invalid part of the text.
        """
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"budget {shown(text)}: expected limits such as {EXAMPLE}", code="usage-budget-empty")
        limits: dict[str, int] = {}
        image: bool | None = None
        for part in text.split(","):
            name, separator, value = (piece.strip() for piece in part.partition("="))
            if not separator:
                raise UsageError(
                    f"budget {shown(part.strip())}: expected NAME=LIMIT, as in {EXAMPLE}", code="usage-budget-syntax"
                )
            if name not in _NAMES:
                close = difflib.get_close_matches(name, _NAMES, n=1)
                hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(_NAMES)}"
                raise UsageError(f"budget {shown(name)} is unknown: {hint}", code="usage-budget-name")
            if name in limits or (name == "image" and image is not None):
                raise UsageError(f"budget {name}: expected one value, found two", code="usage-budget-twice")
            if name == "image":
                image = _parse_image(value)
            else:
                limits[name] = _parse_limit(name, value)
        return from_plain(cls, {**limits, "counts_image": image is not False}, "budget")

    def as_dict(self) -> dict[str, int | str | None]:
        """A JSON-ready form for `from_dict`. It has "image" only if the image is excluded."""
        limits: dict[str, int | str | None] = dict(self.limits())
        return limits if self.counts_image else limits | {"image": "excluded"}

    def limits(self) -> dict[str, int | None]:
        """Limit by name; None for no limit."""
        return {name: getattr(self, name) for name in _UNITS}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `as_dict`. An unknown name or an invalid limit is a UsageError."""
        limits = {name: limit for name, limit in data.items() if name != "image"}
        counts_image = _parse_image(data.get("image", "included"))
        return from_plain(cls, {**limits, "counts_image": counts_image}, "budget")

    def __str__(self) -> str:
        """For example "params=15,000, ram=8,192"."""
        parts = [f"{name}={limit:,}" for name, limit in self.limits().items() if limit is not None]
        return ", ".join([*parts, *([] if self.counts_image else ["image=excluded"])]) or "no limit"

    def needs(self, cost: Cost) -> dict[str, int]:
        """The network's cost by limit."""
        ram = cost.ram_bytes if self.counts_image else cost.ram_bytes - cost.image_bytes
        return {"params": cost.parameters, "ram": ram, "flash": cost.flash_bytes, "macs": cost.macs}

    def exceeded(self, cost: Cost) -> tuple[str, ...]:
        """The names of the limits that the network exceeds."""
        needed = self.needs(cost)
        return tuple(name for name, limit in self.limits().items() if limit is not None and needed[name] > limit)


def over_budget(
    budget: Budget, cost: Cost, shape: tuple[int, int, int], classes: int, what: str = "the network"
) -> str:
    """Why a network for images (H, W, C) and K classes is refused: one line per exceeded limit."""
    size = "x".join(map(str, shape))
    lines = [f"{what} does not fit the budget (input {size}, {classes} classes):"]
    lines += [f"  {name}: {_figures(budget, cost, name)}" for name in budget.exceeded(cost)]
    return "\n".join(lines)


def ram_parts(cost: Cost, *, counts_image: bool = True) -> str:
    """A description of the parts of `Cost.ram_bytes`."""
    image = f"image {cost.image_bytes:,}" if counts_image else f"image of {cost.image_bytes:,} not counted"
    return f"arena {cost.arena_bytes:,}, {image}, scores {cost.score_bytes:,}, {STACK_BYTES:,} reserved for the stack"


def _parse_limit(name: str, text: str) -> int:
    found = _VALUE.fullmatch(text)
    unit = _UNITS[name].get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise UsageError(f"budget {name}={given(text)}: expected {_EXPECTED[name]}", code="usage-budget-value")
    limit = int(Fraction(found[1]) * unit)
    if not 1 <= limit <= _LARGEST:
        raise UsageError(
            f"budget {name}={given(text)}: expected at least 1 and at most {_LARGEST:,}", code="usage-budget-range"
        )
    return limit


def _parse_image(text: object) -> bool:
    if not isinstance(text, str) or text not in _IMAGE:
        raise UsageError(f"budget image={given(text)}: expected {' or '.join(_IMAGE)}", code="usage-budget-value")
    return _IMAGE[text]


def _figures(budget: Budget, cost: Cost, name: str) -> str:
    """Cost and limit, and the largest part of the cost."""
    needed, limit = budget.needs(cost)[name], budget.limits()[name]
    unit = " bytes" if _UNITS[name] is _BYTE_UNITS else ""
    about = {
        "params": _largest_layer(cost, lambda layer: layer.parameters),
        "macs": _largest_layer(cost, lambda layer: layer.macs),
        "flash": f"{needed - CODE_BYTES:,} of constants and {CODE_BYTES:,} reserved for code",
        "ram": ram_parts(cost, counts_image=budget.counts_image),
    }
    return f"needs {needed:,}{unit}, limit {limit:,} ({about[name]})"


def _largest_layer(cost: Cost, of: Callable[[LayerCost], int]) -> str:
    layer = max(cost.layers, key=of)
    return f"largest layer: {layer.name}, {of(layer):,}"
