"""Build the catalog of a table from its columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from thaw.data.catalog import Catalog, Entries, Groups, Payload, Split
from thaw.data.columns import Roles
from thaw.data.groups import NO_GROUPS, groups_by_pattern, no_groups_here, number_groups
from thaw.data.labels import encode_labels
from thaw.data.pairs import find_pairs
from thaw.data.problems import Problem
from thaw.data.settings import DataSettings
from thaw.errors import DataError
from thaw.quoting import given, shown


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one split.

    Attributes:
        column: returns the values of a column by its name.
        names: names of the images, for messages.
        batches: returns an iterator over the images, in batches.
        paths: returns the paths of the images; None if the table holds the images themselves.
    """

    column: Callable[[str], Sequence[object]]
    names: Sequence[str]
    batches: Callable[[], Iterator[Sequence[Payload]]]
    paths: Callable[[], Sequence[str]] | None


def row_catalog(
    where: str,
    roles: Roles,
    settings: DataSettings,
    parts: Mapping[Split, Rows],
    *,
    declared: Sequence[str] | None = None,
    problems: Iterable[Problem] = (),
) -> Catalog:
    """The entries, labels, classes and groups of a table.

    Args:
        where: the table, for messages.
        roles: roles of the columns.
        settings: groups, and whether spellings are merged.
        parts: the rows of each split.
        declared: class names that the table declares.
        problems: earlier problems.

    Raises:
        DataError: for labels that cannot be classes.
        UsageError: for groups that the table cannot provide.
    """
    values = {split: rows.column(roles.label) for split, rows in parts.items()}
    odd = next(
        (v for column in values.values() for v in column if v is not None and not isinstance(v, int | str)), None
    )
    if odd is not None:
        raise DataError(
            f"{where}: column {shown(roles.label)} holds {given(odd)}: expected integers or strings as classes; "
            "write the class into a column of its own, and name it with data.label_column",
            code="data-label",
        )
    names = {split: rows.names for split, rows in parts.items()}
    encoded = encode_labels(values, names, declared, merge=settings.merge_spellings)
    used = {split: parts[split] for split in encoded.labels}
    groups, grouping = _groups(where, roles, settings, used)
    pairs = find_pairs(path.replace("\\", "/") for rows in used.values() if rows.paths for path in rows.paths())
    return Catalog(
        classes=encoded.classes,
        splits={
            split: Entries(names=rows.names, labels=encoded.labels[split], batches=rows.batches)
            for split, rows in used.items()
        },
        named=encoded.named,
        problems=(*problems, *encoded.problems, *grouping, *([pairs] if pairs else [])),
        groups=groups,
    )


def _groups(
    where: str, roles: Roles, settings: DataSettings, parts: Mapping[Split, Rows]
) -> tuple[Groups, list[Problem]]:
    """Groups by a column, or by a pattern in the paths of the images."""
    if roles.group:
        values = {split: rows.column(roles.group) for split, rows in parts.items()}
        groups, problems = number_groups(values, f"column {shown(roles.group)}", is_asked_for=bool(settings.group_by))
        if not settings.group_by:
            message = f"splits keep the groups of column {shown(roles.group)} together (--group-by none ignores them)"
            problems.append(Problem("groups", "note", message))
        return groups, problems
    if settings.group_by in {"", NO_GROUPS}:
        return Groups(), []
    paths = {split: rows.paths() for split, rows in parts.items() if rows.paths is not None}
    if len(paths) < len(parts):
        no_groups_here(settings.group_by, f"{where} (without a column of that name)")
    return groups_by_pattern(paths, settings.group_by)
