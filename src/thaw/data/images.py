"""ImageSet: images as bytes with labels and class names; InputSpec: the input of a model.

Shapes: N images, H rows, W columns, C channels (1 gray, 3 RGB), K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from thaw.data.scaling import ValueRange, check_range
from thaw.errors import DataError, UsageError
from thaw.plain import Real, Whole, checked_dataclass, from_plain, refusing
from thaw.quoting import shown

Fit = Literal["stretch", "crop"]
FITS: tuple[Fit, ...] = get_args(Fit)

MAX_SIDE = 1024
Side = Annotated[Whole, Field(ge=1, le=MAX_SIDE)]

# Limits on the standard deviation of pixels in 0..1 and on normalized values: beyond those of real images, and within
# the range of float32.
SMALLEST_STD, LARGEST_STATISTIC = 1e-9, 1e9

_MOST_DIGITS = 9


def _check_range_or_none(value: Any) -> Any:
    return None if value is None else check_range(value)


def _check_channels(channels: int) -> int:
    if channels not in (1, 3):
        raise ValueError("expected 1 (gray) or 3 (red, green, blue)")
    return channels


@checked_dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The input of a model, uint8 pixels [height, width, channels], and how an image of any size is converted to it.

    Pixels become `(value / 255 - mean) / std`, with one mean and standard deviation per channel.
    """

    height: Side
    """Rows."""
    width: Side
    """Columns."""
    channels: Annotated[Whole, AfterValidator(_check_channels)]
    """1 (gray) or 3 (red, green, blue)."""
    fit: Fit = "stretch"
    """"stretch" scales both sides independently; "crop" first takes the largest centered window with the input's aspect
    ratio."""
    mean: tuple[Annotated[Real, Field(ge=-LARGEST_STATISTIC, le=LARGEST_STATISTIC)], ...] = ()
    """One per channel; by default 0."""
    std: tuple[Annotated[Real, Field(ge=SMALLEST_STD, le=LARGEST_STATISTIC)], ...] = ()
    """One per channel; by default 1."""
    range: Annotated[ValueRange | None, BeforeValidator(refusing(_check_range_or_none))] = None
    """(low, high), the part of 0 to 65,535 that is scaled to bytes in images with more than 8 bits per channel
    (`thaw.data.scaling`); None for a model that was trained on 8-bit images."""

    @model_validator(mode="after")
    def _check_statistics(self) -> InputSpec:
        object.__setattr__(self, "mean", self.mean or (0.0,) * self.channels)
        object.__setattr__(self, "std", self.std or (1.0,) * self.channels)
        for name in ("mean", "std"):
            if len(values := getattr(self, name)) != self.channels:
                raise ValueError(f"{name} = {shown(list(values))}: expected one number per channel ({self.channels})")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (self.height, self.width, self.channels)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.channels}"

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form for `from_dict`."""
        return {
            "height": self.height,
            "width": self.width,
            "channels": self.channels,
            "fit": self.fit,
            "mean": list(self.mean),
            "std": list(self.std),
            **self.range_as_dict(),
        }

    @property
    def range_in_words(self) -> str:
        """The conversion of 16-bit images, after a semicolon; "" for a model of 8-bit images."""
        return "" if self.range is None else f"; 16-bit values {self.range[0]:,} to {self.range[1]:,} become 0 to 255"

    def range_as_dict(self) -> dict[str, list[int]]:
        """{"range": [low, high]}, or {} without a range, so that the metadata of 8-bit models has no such key."""
        return {} if self.range is None else {"range": list(self.range)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InputSpec:
        """The inverse of `as_dict`. An unknown or missing key or a value of another type is a UsageError."""
        missing = [name for name in ("fit", "mean", "std") if isinstance(data, Mapping) and name not in data]
        if missing:
            raise UsageError(f"input.{missing[0]} is missing")
        return from_plain(cls, data, "input")


def check_statistics(where: str, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Check the mean and standard deviation of pixels in 0..1.

    Args:
        where: the name of their section, for messages.
        mean: one number per channel, from -1e9 to 1e9.
        std: one number per channel, from 1e-9 to 1e9.
        channels: number of channels.

    Raises:
        UsageError: for the first invalid number.
    """
    for name, values, least in (("mean", mean, -LARGEST_STATISTIC), ("std", std, SMALLEST_STD)):
        if len(values) != channels:
            raise UsageError(f"{where}.{name} has {len(values)} numbers: expected one per channel ({channels})")
        for index, value in enumerate(values):
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or not least <= value <= LARGEST_STATISTIC:
                expected = f"a number from {least:g} to {LARGEST_STATISTIC:g}"
                raise UsageError(f"{where}.{name}[{index}] = {shown(value)}: expected {expected}")


def are_characters(classes: Sequence[str]) -> bool:
    """Whether all class names are single characters or integers, as for digits and letters."""
    return all(len(name) == 1 or (name.isascii() and name.isdigit()) for name in classes)


def parse_shape(text: str) -> tuple[int, int, int]:
    """'28x28x1' -> (28, 28, 1): height, width, channels.

    Raises:
        UsageError: unless it is two sides from 1 to 1024 and 1 or 3 channels, with x between them.
    """
    parts = [part.strip() for part in text.lower().replace("×", "x").split("x")]
    if len(parts) == 3 and all(map(_is_whole_number, parts)):
        height, width, channels = (int(part) for part in parts)
        if 1 <= min(height, width) and max(height, width) <= MAX_SIDE and channels in (1, 3):
            return (height, width, channels)
    raise UsageError(
        f"input {shown(text)}: expected HEIGHTxWIDTHxCHANNELS, such as 28x28x1 or 32x32x3, with sides from 1 to "
        f"{MAX_SIDE} pixels and 1 (gray) or 3 (color) channels"
    )


def _is_whole_number(text: str) -> bool:
    """A few ASCII digits: `isdigit` alone accepts "²", and `int` refuses thousands of digits."""
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS


@dataclass(frozen=True, kw_only=True, repr=False)
class ImageSet:
    """Labeled images of one size.

    Attributes:
        images: uint8 [N, H, W, C], 0 to 255; may be a read-only memory map.
        labels: int64 [N], 0 to K-1.
        classes: K names.
        names: N names for messages ("daisy/0001.jpg", "test[17]"), or empty.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    names: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] not in (1, 3):
            raise DataError(
                f"images are {self.images.dtype} {list(self.images.shape)}: expected uint8 [N, H, W, C], C = 1 or 3",
                code="data-arrays",
            )
        if self.labels.shape != (len(self.images),):
            raise DataError(
                f"{len(self.images)} images but labels of shape {list(self.labels.shape)}: "
                "expected one label per image",
                code="data-arrays",
            )
        if len(self.labels) and not (0 <= int(self.labels.min()) and int(self.labels.max()) < len(self.classes)):
            raise DataError(
                f"labels from {self.labels.min()} to {self.labels.max()}: expected 0 to {len(self.classes) - 1} "
                f"for {len(self.classes)} classes",
                code="data-label",
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"ImageSet({len(self):,} images {'x'.join(map(str, self.shape))}, {len(self.classes)} classes)"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        _, height, width, channels = self.images.shape
        return (height, width, channels)

    def name(self, index: int) -> str:
        """The name of image `index`, for messages."""
        return self.names[index] if len(self.names) else f"[{index}]"
