"""What is wrong in a data set: collected while it is read, and told together."""

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
    """One kind of trouble and every image or class that has it.

    Attributes:
        kind: a stable word: "unreadable", "label", "alpha", "stray", "duplicate", ...
        severity: "error" stops a run, "warning" may cost accuracy, "note" states a rule that was applied.
        message: one sentence without the names.
        names: all images, files or classes concerned, with the reason where it differs from one to the next.
    """

    kind: str
    severity: Severity
    message: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line, safe for a terminal whatever the files are called."""
        message = for_the_reader(self.message)
        if not self.names:
            return printable(message)
        shown = ", ".join(map(clipped, self.names[:_NAMES_SHOWN]))
        rest = len(self.names) - _NAMES_SHOWN
        return printable(f"{message}: {shown}") + (f" and {rest} more" if rest > 0 else "")

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form that `from_dict` takes back."""
        return {"kind": self.kind, "severity": self.severity, "message": self.message, "names": list(self.names)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Problem:
        """The inverse of `as_dict`."""
        return cls(data["kind"], data["severity"], data["message"], tuple(data["names"]))


def raise_errors(name: str, problems: Iterable[Problem]) -> None:
    """Raises one DataError with all problems of severity "error", if there are any.

    A warning that another folder may have been meant (kind "layout") goes with them, since it may be their cause.

    Raises:
        DataError: one line a problem; a single problem makes a single line.
    """
    name = clipped(printable(name))
    found = [p for p in problems if p.severity == "error" or (p.kind == "layout" and p.severity == "warning")]
    if all(problem.severity != "error" for problem in found):
        return
    errors = [str(problem) for problem in found]
    if len(errors) == 1:
        raise DataError(f"{name}: {errors[0]}")
    if errors:
        raise DataError(
            "\n".join([f"{name}: {len(errors)} problems in the data", *(f"  - {error}" for error in errors)])
        )
