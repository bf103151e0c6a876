"""How a data set becomes model inputs: the settings of a recipe's `data` table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from thaw.data.images import FITS, Fit, InputContract, parse_shape
from thaw.data.scaling import ValueRange, check_range, parse_range
from thaw.errors import UsageError
from thaw.quoting import shown

Normalise = Literal["unit", "standard"]
NORMALISATIONS: tuple[Normalise, ...] = get_args(Normalise)

_LARGEST_FRACTION = 0.5


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How images are read, resized, normalised and split.

    Attributes:
        input: "auto" or HEIGHTxWIDTHxCHANNELS such as "28x28x1". "auto" takes the images' own size where all are equal
            and neither side is over 64 pixels, else 32x32; one channel where every image is grey, else three.
            "28x28xauto" chooses the channels alone.
        range: (low, high), the values of images of more than 8 bits a channel that become 0 and 255, also as the text
            "low,high"; "auto" finds it on the training images (`thaw.data.scaling`). 8-bit values are used as they are.
        fit: "stretch" scales both sides independently; "crop" takes the largest centred window of the model's aspect
            ratio.
        normalise: "standard" subtracts the training part's mean and divides by its deviation, a channel each; "unit"
            leaves pixels from 0 to 1.
        validation_fraction: share of the training images that is cut off where the source has no validation split.
        test_fraction: share of all images that is cut off where the source has no test split.
        image_column: name of the image column of a table; needed only where there are several.
        label_column: name of the class column of a table; needed only where there are several.
    """

    input: str = "auto"
    range: str | tuple[int, int] = "auto"
    fit: Fit = "stretch"
    normalise: Normalise = "standard"
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    image_column: str = ""
    label_column: str = ""

    def __post_init__(self) -> None:
        for name in ("input", "fit", "normalise", "image_column", "label_column"):
            if not isinstance(getattr(self, name), str):
                raise UsageError(f"{name} is {shown(getattr(self, name))}: expected text")
        if self.range != "auto":
            found = parse_range(self.range) if isinstance(self.range, str) else check_range(self.range)
            object.__setattr__(self, "range", found)
        if self.fit not in FITS:
            raise UsageError(f"fit {shown(self.fit)}: expected one of {', '.join(FITS)}")
        if self.normalise not in NORMALISATIONS:
            raise UsageError(f"normalise {shown(self.normalise)}: expected one of {', '.join(NORMALISATIONS)}")
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST_FRACTION:
                raise UsageError(f"{name} {shown(value)}: expected a number above 0 and at most {_LARGEST_FRACTION}")
        if self.input != "auto":
            height, width, channels = parse_input(self.input)
            InputContract(height=height, width=width, channels=channels or 1)
        if self.image_column and self.image_column == self.label_column:
            raise UsageError(f"image_column and label_column are both {shown(self.image_column)}: expected two columns")

    @property
    def fixed_range(self) -> ValueRange | None:
        """The range that the user named; None for "auto"."""
        return None if isinstance(self.range, str) else self.range


def parse_input(text: str) -> tuple[int, int, int]:
    """'28x28x1' -> (28, 28, 1) and '28x28xauto' -> (28, 28, 0), where the images decide on the channels.

    Raises:
        UsageError: for anything else.
    """
    size, separator, channels = text.rpartition("x")
    if separator and channels.strip() == "auto":
        height, width, _ = parse_shape(f"{size}x1")
        return (height, width, 0)
    return parse_shape(text)
