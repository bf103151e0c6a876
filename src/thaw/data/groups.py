"""Groups of images that belong together: by a column of a table, or by a pattern in file names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from thaw.data.catalog import SPLITS, Groups, Split
from thaw.data.problems import Problem
from thaw.data.splits import Rows
from thaw.errors import UsageError
from thaw.quoting import encodable, given

NO_GROUPS = "none"
FOLDER = "folder"

# A pattern may need exponential time on a name that almost matches, and cannot be interrupted inside the process.
_SEARCH_SECONDS = 20
_SEARCH = """
import json, re, sys
pattern, texts = json.load(sys.stdin)
found = (re.search(pattern, text) for text in texts)
json.dump([None if hit is None else hit[1 if hit.re.groups else 0] for hit in found], sys.stdout)
"""


def quoted(group_by: str) -> str:
    """The setting for messages: truncated, and without the doubled backslashes of `repr`."""
    return f"'{given(group_by)}'"


def no_groups_here(group_by: str, where: str) -> None:
    """Refuse `group_by` for data without columns and paths.

    Raises:
        UsageError: unless `group_by` is empty or "none".
    """
    if group_by not in {"", NO_GROUPS}:
        raise UsageError(
            f"group_by {quoted(group_by)}: {where} has neither columns nor paths to group images by; "
            "from Python, pass (images, labels, groups)",
            code="usage-groups",
        )


def groups_by_pattern(paths: Mapping[Split, Sequence[str]], group_by: str) -> tuple[Groups, list[Problem]]:
    """Groups by the paths of the images.

    Args:
        paths: relative paths with "/" between parts, by split.
        group_by: "folder", or a regular expression that is searched in the file names, or in the paths if it matches no
            file name. Its capturing group, or the whole match, names the group of an image. "" and "none" for no
            groups.

    Raises:
        UsageError: when it is not a regular expression, has several capturing groups, matches nothing, or needs too
            much time.
    """
    if group_by in {"", NO_GROUPS}:
        return Groups(), []
    if group_by == FOLDER:
        folders = {split: [PurePosixPath(path).parent.name for path in column] for split, column in paths.items()}
        return number_groups(folders, "folder", is_asked_for=True)
    _check_expression(group_by)
    by = f"the pattern {quoted(group_by)}"
    flat = [(split, path) for split in paths for path in paths[split]]
    found = _search(group_by, [path.rpartition("/")[2] for _, path in flat])
    if not any(found):
        found = _search(group_by, [path for _, path in flat])
    lacking = tuple(encodable(path) for (_, path), value in zip(flat, found, strict=True) if not value)
    if flat and len(lacking) == len(flat):
        raise UsageError(
            f"group_by {quoted(group_by)} matches none of {len(flat):,} images, such as {given(lacking[0])}: expected "
            r"a column, folder, or a regular expression such as '^(person\d+)_'",
            code="usage-groups",
        )
    values: dict[Split, list[str | None]] = {split: [] for split in paths}
    for (split, _), value in zip(flat, found, strict=True):
        values[split].append(value or None)
    groups, problems = number_groups(values, by, is_asked_for=True, reports_missing=False)
    if lacking:
        message = f"{len(lacking):,} image(s) do not match {by}: rename them, or extend the pattern"
        problems.insert(0, Problem("group", "error", message, lacking))
    return groups, problems


def _check_expression(group_by: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = re.compile(group_by)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(
            f"group_by {quoted(group_by)} is neither a column nor a regular expression ({error}): expected one such "
            r"as '^(person\d+)_'",
            code="usage-groups",
        ) from None
    if compiled.groups > 1:
        raise UsageError(
            f"group_by {quoted(group_by)} has {compiled.groups} groups: expected one; write the others as (?:...)",
            code="usage-groups",
        )


def _search(pattern: str, texts: Sequence[str]) -> list[str | None]:
    """The match of the pattern in each text, searched in a separate process that can be stopped."""
    command = [sys.executable, "-I", "-S", "-c", _SEARCH]
    try:
        done = subprocess.run(
            command,
            input=json.dumps([pattern, list(texts)]),
            capture_output=True,
            text=True,
            check=True,
            timeout=_SEARCH_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"group_by {quoted(pattern)} took more than {_SEARCH_SECONDS} s on {len(texts):,} names: nested repeats "
            "such as (a+)+ need exponential time; simplify the pattern",
            code="usage-groups-time",
        ) from None
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(f"cannot search for group_by {quoted(pattern)}: {error}", code="usage-groups") from None
    result: list[str | None] = json.loads(done.stdout)
    return result


def number_groups(
    values: Mapping[Split, Iterable[object]], by: str, *, is_asked_for: bool, reports_missing: bool = True
) -> tuple[Groups, list[Problem]]:
    """Number the groups in the order in which they first appear.

    Args:
        values: the name of each image's group, by split; None, "" and NaN for an image that is a group of its own.
        by: what defines the groups, in words.
        is_asked_for: whether a group in two splits of the source is an error; otherwise it is a warning.
        reports_missing: whether to report images without a group.
    """
    numbers: dict[Split, Rows] = {}
    names: list[str] = []
    index: dict[str, int] = {}
    alone = 0
    for split, column in values.items():
        rows = []
        for value in column:
            text = "" if value is None or value != value else str(value)  # noqa: PLR0124 - NaN
            if text and text in index:
                rows.append(index[text])
                continue
            rows.append(len(names))
            names.append(encodable(text))
            alone += not text
            if text:
                index[text] = len(names) - 1
        numbers[split] = np.array(rows, dtype=np.int64)
    groups = Groups(by=by, names=tuple(names), numbers=numbers)
    problems = _straddling(groups, is_asked_for=is_asked_for)
    if alone and reports_missing:
        message = f"{alone:,} image{' has' if alone == 1 else 's have'} no group by {by} and form groups of their own"
        problems.append(Problem("group", "warning", message))
    return groups, problems


def _straddling(groups: Groups, *, is_asked_for: bool) -> list[Problem]:
    """Groups that the source has in several splits."""
    present = {split: set(groups.numbers[split].tolist()) for split in SPLITS if split in groups.numbers}
    counts: dict[int, list[str]] = {}
    for split, members in present.items():
        for number in members:
            counts.setdefault(number, []).append(split)
    crossing = {number: splits for number, splits in sorted(counts.items()) if len(splits) > 1}
    if not crossing:
        return []
    names = tuple(f"{groups.names[number]} ({', '.join(splits)})" for number, splits in crossing.items())
    message = f"groups by {groups.by} in several splits of the source: move the images of each into one split"
    return [Problem("group", "error" if is_asked_for else "warning", message, names)]
