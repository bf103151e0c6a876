"""How a data set becomes model inputs: the `data` section of a recipe."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictStr, model_validator

from thaw.data.images import Fit, parse_shape
from thaw.data.pattern import FilePattern
from thaw.data.scaling import ValueRange, check_range, parse_range
from thaw.plain import Real, checked_dataclass, refusing
from thaw.quoting import shown

Normalize = Literal["unit", "standard"]
NORMALIZATIONS: tuple[Normalize, ...] = get_args(Normalize)


def parse_input(text: str) -> tuple[int, int, int]:
    """'28x28x1' -> (28, 28, 1) and '28x28xauto' -> (28, 28, 0), where the images decide on the channels.

    Raises:
        UsageError: for any other text.
    """
    size, separator, channels = text.rpartition("x")
    if separator and channels.strip() == "auto":
        height, width, _ = parse_shape(f"{size}x1")
        return (height, width, 0)
    return parse_shape(text)


def _check_input(text: str) -> str:
    if text != "auto":
        parse_input(text)
    return text


def _check_pattern(text: str) -> str:
    FilePattern.parse(text)
    return text


def _read_range(value: Any) -> Any:
    if value == "auto":
        return value
    return parse_range(value) if isinstance(value, str) else check_range(value)


_Fraction = Annotated[Real, Field(gt=0, le=0.5)]


@checked_dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How images are read, resized, normalized and split."""

    input: Annotated[StrictStr, AfterValidator(refusing(_check_input))] = "auto"
    """Input size of the network: HEIGHTxWIDTHxCHANNELS such as "28x28x1", or "auto". "auto" takes the images' own size
    if all are equal and no side is over 64 pixels, else 32x32, with one channel if every image is gray, else three.
    "28x28xauto" fixes the size and chooses the channels."""
    range: Annotated[StrictStr | tuple[int, int], BeforeValidator(refusing(_read_range))] = "auto"
    """Values of images with more than 8 bits per channel that become 0 and 255: [low, high] or "low,high". "auto" finds
    them in the training images. Has no effect on 8-bit images."""
    fit: Fit = "stretch"
    """How an image of another shape becomes the input: "stretch" scales both sides independently; "crop" takes the
    largest centered window with the input's aspect ratio."""
    normalize: Normalize = "standard"
    """"standard" subtracts the mean of the training images and divides by their standard deviation, per channel;
    "unit" leaves pixels from 0 to 1."""
    validation_fraction: _Fraction = 0.1
    """Fraction of the training images to use for validation if the source has no validation split."""
    test_fraction: _Fraction = 0.2
    """Fraction of all images to use as the test set if the source has no test split."""
    image_column: StrictStr = ""
    """Image column of a table. Required only if several columns hold images."""
    label_column: StrictStr = ""
    """Class column of a table. Required only if several columns qualify."""
    split_column: StrictStr = ""
    """Column of a table that holds "train", "validation" or "test". By default a column named split, set, subset or
    partition, if it holds only such values. "none" for no column."""
    group_by: StrictStr = ""
    """Images of one group stay in one split. The column of a table, "folder" for the folder of an image, or a regular
    expression whose one group is found in the file name or else in the path. By default a column named group, groups
    or group_id. "none" for no groups."""
    pattern: Annotated[StrictStr, AfterValidator(refusing(_check_pattern))] = ""
    """Comma-separated globs that select the files of a folder, such as "*.jpg" or "!*_mask.*"."""
    merge_spellings: StrictBool = True
    """Treat class names that differ only in case or Unicode form as one class."""

    @model_validator(mode="after")
    def _check_columns(self) -> DataSettings:
        columns = {name: getattr(self, name) for name in ("image_column", "label_column", "split_column")}
        for one, other in itertools.combinations(columns, 2):
            if columns[one] and columns[one] == columns[other]:
                raise ValueError(f"{one} and {other} are both {shown(columns[one])}: expected two columns")
        return self

    @property
    def fixed_range(self) -> ValueRange | None:
        """The range that the user named; None for "auto"."""
        return None if isinstance(self.range, str) else self.range
