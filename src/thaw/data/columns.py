"""The roles of the columns of a table: images, classes, splits, groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

from thaw.data.catalog import SPLIT_NAMES, SPLITS, Split
from thaw.data.decode import SUFFIXES
from thaw.data.problems import Problem
from thaw.data.settings import DataSettings
from thaw.errors import DataError
from thaw.quoting import given, listed, shown

# If several columns could be the class, these names decide.
_LABEL_NAMES = ("label", "labels", "class", "target")
_SPLIT_NAMES = ("split", "set", "subset", "partition")
_GROUP_NAMES = ("group", "groups", "group_id")
_NO_COLUMN = "none"

_ROWS_LOOKED_AT = 1000
_MOSTLY = 0.9

Column = Callable[[str], Sequence[object]]
"""Returns the values of a column by its name."""


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The column of each role; "" if there is none."""

    image: str
    label: str
    split: str = ""
    group: str = ""


def choose_roles(
    where: str,
    names: Sequence[str],
    column: Column,
    settings: DataSettings,
    *,
    images: Callable[[], Sequence[str]],
    labels: Callable[[Sequence[str]], Sequence[str]],
) -> Roles:
    """The role of each column, by the settings, else by names and content.

    Args:
        where: the table, for messages.
        names: all columns.
        column: returns the values of a column.
        settings: the columns named by the user.
        images: returns the columns that could hold images.
        labels: returns those of the remaining columns that could hold classes.

    Raises:
        DataError: for a missing or ambiguous column.
    """
    image = _choose("image", settings.image_column, images, names, where)
    split = settings.split_column
    if split and split != _NO_COLUMN and split not in names:
        raise _no_column(where, "split", split, names)
    if not split:
        split = next((name for name in names if name.lower() in _SPLIT_NAMES and _tells_splits(column(name))), "")
    split = "" if split == _NO_COLUMN else split
    group = settings.group_by if settings.group_by in names else ""
    if not settings.group_by:
        group = next((name for name in names if name.lower() in _GROUP_NAMES and name != settings.label_column), "")
    left = [name for name in names if name not in {image, split, group}]
    label = _choose("label", settings.label_column, lambda: _plain_names(left, labels(left), column), names, where)
    if len({image, label, *filter(None, (split, group))}) < 2 + bool(split) + bool(group):
        message = f"{where}: a column is used twice: {listed(filter(None, (image, label, split, group)))}"
        raise DataError(message, code="data-columns")
    return Roles(image=image, label=label, split=split, group=group)


def _plain_names(left: Sequence[str], found: Sequence[str], column: Column) -> Sequence[str]:
    """The only column with a usual name of a class column, even if its values are not classes; else `found`.

    Args:
        left: columns that have no other role.
        found: columns that could hold classes.
        column: returns the values of a column.
    """
    for names in (left, found):
        plain = [name for name in names if name.lower() in _LABEL_NAMES]
        if len(plain) == 1 and (plain[0] in found or any(value is not None for value in column(plain[0]))):
            return plain
    return found


def _choose(what: str, wanted: str, candidates: Callable[[], Sequence[str]], names: Sequence[str], where: str) -> str:
    if wanted:
        if wanted not in names:
            raise _no_column(where, what, wanted, names)
        return wanted
    found = candidates()
    if not found:
        kind = "label column (of integers or strings)" if what == "label" else f"{what} column"
        message = f"{where} has no {kind} among {listed(names)}: name one with data.{what}_column"
        raise DataError(message, code="data-columns")
    if len(found) > 1:
        message = f"{where} has several {what} columns: choose data.{what}_column from {listed(found)}"
        raise DataError(message, code="data-columns")
    return found[0]


def _no_column(where: str, what: str, wanted: str, names: Sequence[str]) -> DataError:
    message = f"{where} has no column {shown(wanted)}: {what}_column must be one of {listed(names)}"
    return DataError(message, code="data-columns")


def split_named(value: object) -> Split | None:
    """The split that a cell names, if any."""
    return SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None


def _tells_splits(values: Sequence[object]) -> bool:
    """Whether most values of a column name a split, and some name the training split."""
    found = [split_named(value) for value in values]
    return "train" in found and 2 * sum(split is None for split in found) < len(found)


def rows_of_splits(values: Sequence[object], column: str) -> tuple[dict[Split, list[int]], list[Problem]]:
    """The rows of each split by a column; rows with other values are ignored, with a warning.

    Raises:
        DataError: when no row is for training.
    """
    rows: dict[Split, list[int]] = {}
    others: dict[str, int] = {}
    for row, value in enumerate(values):
        split = split_named(value)
        if split is None:
            word = "an empty cell" if value is None or value == "" else given(value)
            others[word] = others.get(word, 0) + 1
        else:
            rows.setdefault(split, []).append(row)
    if "train" not in rows:
        found = ", ".join([*rows, *others][:10])
        raise DataError(
            f"split column {shown(column)} has no training rows: expected train, found {found or 'nothing'}",
            code="data-split",
        )
    names = tuple(f"{word} ({count:,})" for word, count in others.items())
    message = f"rows without a split in column {shown(column)} are ignored (expected train, validation or test)"
    problems = [Problem("unused", "warning", message, names)] if others else []
    return {split: rows[split] for split in SPLITS if split in rows}, problems


def name_image_files(values: Iterable[object]) -> bool:
    """Whether nearly all values of a column have the suffix of an image file."""
    # Not `value == ""`, since a cell may hold an array.
    looked_at = islice(values, _ROWS_LOOKED_AT)
    texts = [value for value in looked_at if value is not None and not (isinstance(value, str) and not value)]
    hits = sum(isinstance(text, str) and PurePosixPath(text.strip()).suffix.lower() in SUFFIXES for text in texts)
    return bool(texts) and hits >= _MOSTLY * len(texts)
