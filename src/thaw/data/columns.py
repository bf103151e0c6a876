"""Which column of a table is what: images, classes, splits, groups."""

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

# Where several columns could be the class, a plain name decides.
_LABEL_NAMES = ("label", "labels", "class", "target")
_SPLIT_NAMES = ("split", "set", "subset", "partition")
_GROUP_NAMES = ("group", "groups", "group_id")
_NO_COLUMN = "none"

_ROWS_LOOKED_AT = 1000
_MOSTLY = 0.9

Column = Callable[[str], Sequence[object]]
"""A column's values by its name."""


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Names of the columns of a table; "" where there is none."""

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
    """What each column is, by the settings, else by names and content.

    Args:
        where: the table, for messages.
        names: all columns.
        column: gives a column's values.
        settings: columns that are named.
        images: gives the columns that could hold images.
        labels: gives those that could hold classes, of the columns that are left.

    Raises:
        DataError: for a column that is not there, or several that could be meant.
    """
    image = _choose("image", settings.image_column, images, names, where)
    split = settings.split_column
    if split and split != _NO_COLUMN and split not in names:
        raise DataError(_no_column(where, "split", split, names))
    if not split:
        split = next((name for name in names if name.lower() in _SPLIT_NAMES and _tells_splits(column(name))), "")
    split = "" if split == _NO_COLUMN else split
    group = settings.group_by if settings.group_by in names else ""
    if not settings.group_by:
        group = next((name for name in names if name.lower() in _GROUP_NAMES and name != settings.label_column), "")
    left = [name for name in names if name not in {image, split, group}]
    label = _choose("label", settings.label_column, lambda: _plain_names(left, labels(left), column), names, where)
    if len({image, label, *filter(None, (split, group))}) < 2 + bool(split) + bool(group):
        raise DataError(f"{where}: a column is used twice: {listed(filter(None, (image, label, split, group)))}")
    return Roles(image=image, label=label, split=split, group=group)


def _plain_names(left: Sequence[str], found: Sequence[str], column: Column) -> Sequence[str]:
    """The one column that is called like a class, also where its values are none, which is then told; else `found`.

    Args:
        left: columns that have no other role.
        found: those that could hold classes.
        column: gives a column's values.
    """
    for names in (left, found):
        plain = [name for name in names if name.lower() in _LABEL_NAMES]
        if len(plain) == 1 and (plain[0] in found or any(value is not None for value in column(plain[0]))):
            return plain
    return found


def _choose(what: str, wanted: str, candidates: Callable[[], Sequence[str]], names: Sequence[str], where: str) -> str:
    if wanted:
        if wanted not in names:
            raise DataError(_no_column(where, what, wanted, names))
        return wanted
    found = candidates()
    if not found:
        kind = "label column (of whole numbers or texts)" if what == "label" else f"{what} column"
        raise DataError(f"{where} has no {kind} among {listed(names)}: name one with data.{what}_column")
    if len(found) > 1:
        raise DataError(f"{where} has several {what} columns: choose data.{what}_column from {listed(found)}")
    return found[0]


def _no_column(where: str, what: str, wanted: str, names: Sequence[str]) -> str:
    return f"{where} has no column {shown(wanted)}: {what}_column must be one of {listed(names)}"


def split_named(value: object) -> Split | None:
    """The split that a cell means."""
    return SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None


def _tells_splits(values: Sequence[object]) -> bool:
    """Whether a column that is called so tells splits: mostly, and some rows are for training."""
    found = [split_named(value) for value in values]
    return "train" in found and 2 * sum(split is None for split in found) < len(found)


def rows_of_splits(values: Sequence[object], column: str) -> tuple[dict[Split, list[int]], list[Problem]]:
    """The rows of each split by a column; rows of other words are not used, which is told.

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
            f"column {shown(column)} tells splits, but none for training: expected train, found {found or 'nothing'}"
        )
    names = tuple(f"{word} ({count:,})" for word, count in others.items())
    message = f"rows that column {shown(column)} puts in no split are not used (expected train, validation or test)"
    problems = [Problem("unused", "warning", message, names)] if others else []
    return {split: rows[split] for split in SPLITS if split in rows}, problems


def name_image_files(values: Iterable[object]) -> bool:
    """Whether the texts of a column, nearly all, end like the names of images."""
    # Not `value == ""`, since a cell may hold an array.
    looked_at = islice(values, _ROWS_LOOKED_AT)
    texts = [value for value in looked_at if value is not None and not (isinstance(value, str) and not value)]
    hits = sum(isinstance(text, str) and PurePosixPath(text.strip()).suffix.lower() in SUFFIXES for text in texts)
    return bool(texts) and hits >= _MOSTLY * len(texts)
