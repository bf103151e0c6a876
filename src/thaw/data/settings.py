"""How a data set becomes model inputs: the settings of a recipe's `data` table."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, get_args

from thaw.data.images import FITS, Fit, InputSpec, parse_shape
from thaw.data.pattern import FilePattern
from thaw.data.scaling import ValueRange, check_range, parse_range
from thaw.errors import UsageError
from thaw.quoting import shown

Normalize = Literal["unit", "standard"]
NORMALIZATIONS: tuple[Normalize, ...] = get_args(Normalize)

_LARGEST_FRACTION = 0.5

_TEXTS = ("input", "fit", "normalize", "image_column", "label_column", "split_column", "group_by", "pattern")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How images are read, resized, normalized and split.

    Attributes:
        input: "auto" or HEIGHTxWIDTHxCHANNELS such as "28x28x1". "auto" takes the images' own size where all are equal
            and neither side is over 64 pixels, else 32x32; one channel where every image is gray, else three.
            "28x28xauto" chooses the channels alone.
        range: (low, high), the values of images of more than 8 bits a channel that become 0 and 255, also as the text
            "low,high"; "auto" finds it on the training images (`thaw.data.scaling`). 8-bit values are used as they are.
        fit: "stretch" scales both sides independently; "crop" takes the largest centered window of the model's aspect
            ratio.
        normalize: "standard" subtracts the training part's mean and divides by its deviation, a channel each; "unit"
            leaves pixels from 0 to 1.
        validation_fraction: share of the training images that is cut off where the source has no validation split.
        test_fraction: share of all images that is cut off where the source has no test split.
        image_column: name of the image column of a table; needed only where there are several.
        label_column: name of the class column of a table; needed only where there are several.
        split_column: name of the column of a table that says "train", "validation" or "test"; without it a column
            called split, set, subset or partition that holds nothing else. "none" for no column.
        group_by: what must not be separated by a split: the column of a table, "folder" for the folder that an image
            lies in, or a regular expression of which one group is found in the image's name, else in its path. Without
            it, a table's column that is called group, groups or group_id. "none" for no groups.
        pattern: globs with commas between them that choose the images of a folder, such as "*.jpg" or "!*_mask.*".
        merge_spellings: class names that differ only in case or Unicode form are one class.
    """

    input: str = "auto"
    range: str | tuple[int, int] = "auto"
    fit: Fit = "stretch"
    normalize: Normalize = "standard"
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    image_column: str = ""
    label_column: str = ""
    split_column: str = ""
    group_by: str = ""
    pattern: str = ""
    merge_spellings: bool = True

    def __post_init__(self) -> None:
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                raise UsageError(f"{name} is {shown(getattr(self, name))}: expected text")
        if self.range != "auto":
            found = parse_range(self.range) if isinstance(self.range, str) else check_range(self.range)
            object.__setattr__(self, "range", found)
        if not isinstance(self.merge_spellings, bool):
            raise UsageError(f"merge_spellings {shown(self.merge_spellings)}: expected true or false")
        FilePattern.parse(self.pattern)
        if self.fit not in FITS:
            raise UsageError(f"fit {shown(self.fit)}: expected one of {', '.join(FITS)}")
        if self.normalize not in NORMALIZATIONS:
            raise UsageError(f"normalize {shown(self.normalize)}: expected one of {', '.join(NORMALIZATIONS)}")
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST_FRACTION:
                raise UsageError(f"{name} {shown(value)}: expected a number above 0 and at most {_LARGEST_FRACTION}")
        if self.input != "auto":
            height, width, channels = parse_input(self.input)
            InputSpec(height=height, width=width, channels=channels or 1)
        self._check_columns()

    def _check_columns(self) -> None:
        columns = {name: getattr(self, name) for name in ("image_column", "label_column", "split_column")}
        for one, other in itertools.combinations(columns, 2):
            if columns[one] and columns[one] == columns[other]:
                raise UsageError(f"{one} and {other} are both {shown(columns[one])}: expected two columns")

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
