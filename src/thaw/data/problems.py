"""Problems of a data set: collected while it is read, and reported together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from thaw.errors import DataError
from thaw.quoting import clipped, printable
from thaw.wording import for_the_reader

Severity = Literal["error", "warning", "note"]

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Problem:
    """One kind of problem and all images or classes that have it.

    Attributes:
        kind: a stable word, such as "unreadable", "label" or "duplicate"; the error has the code "data-KIND".
        severity: an "error" stops a run, a "warning" may cost accuracy, a "note" states a rule that was applied.
        message: one sentence, without the names.
        names: all images, files or classes concerned, with the reason if it differs between them.
    """

    kind: str
    severity: Severity
    message: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line that is safe for a terminal."""
        message = for_the_reader(self.message)
        if not self.names:
            return printable(message)
        shown = ", ".join(map(clipped, self.names[:_NAMES_SHOWN]))
        rest = len(self.names) - _NAMES_SHOWN
        return printable(f"{message}: {shown}") + (f" and {rest} more" if rest > 0 else "")

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form for `from_dict`."""
        return {"kind": self.kind, "severity": self.severity, "message": self.message, "names": list(self.names)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Problem:
        """The inverse of `as_dict`."""
        return cls(data["kind"], data["severity"], data["message"], tuple(data["names"]))


def raise_errors(name: str, problems: Iterable[Problem]) -> None:
    """Raise one DataError with all problems of severity "error", if any.

    A warning that another folder may have been meant (kind "layout") goes with them, since it may be their cause.

    Raises:
        DataError: one line per problem; its code is "data-KIND" of the first.
    """
    name = clipped(printable(name))
    # Warnings about the layout often explain the errors.
    found = [p for p in problems if p.severity == "error" or (p.kind == "layout" and p.severity == "warning")]
    errors = [problem for problem in problems if problem.severity == "error"]
    if not errors:
        return
    lines = [f"{name}: {errors[0]}"]
    if len(found) > 1:
        lines = [f"{name}: {len(found)} problems in the data", *(f"  - {problem}" for problem in found)]
    raise DataError("\n".join(lines), code=f"data-{errors[0].kind}")
