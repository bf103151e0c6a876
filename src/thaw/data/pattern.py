"""The setting `data.pattern`, which chooses files."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from thaw.errors import DataError, UsageError
from thaw.quoting import shown

_KINDS_SHOWN = 5


class PatternError(DataError):
    """A pattern that matches no image."""

    code = "data-pattern"


@dataclass(frozen=True)
class FilePattern:
    """Glob patterns that include files, and patterns with "!" that exclude files.

    A pattern without "/" is matched against the file name, a pattern with "/" against the path below the source. `*`
    matches any characters, `?` one character, `[ab]` one of these. Case is ignored.
    """

    chosen: tuple[str, ...]
    left_out: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> FilePattern:
        """Parse patterns separated by commas; without an including pattern, all files that are not excluded match.

        Raises:
            UsageError: for an empty pattern.
        """
        parts = [part.strip() for part in text.split(",")] if text.strip() else []
        if any(not part.removeprefix("!") for part in parts):
            message = f"pattern {shown(text)}: expected globs separated by commas, such as *.jpg,!*_mask.*"
            raise UsageError(message, code="usage-pattern")
        chosen = tuple(part for part in parts if not part.startswith("!"))
        return cls(chosen, tuple(part[1:] for part in parts if part.startswith("!")))

    def select(self, paths: Sequence[str]) -> list[str]:
        """The paths that match, in order."""
        chosen, left_out = _expression(self.chosen), _expression(self.left_out)
        return [
            path
            for path in paths
            if (not self.chosen or _matches(chosen, path)) and not (self.left_out and _matches(left_out, path))
        ]


def require_match(where: str, text: str, paths: Sequence[str], chosen: Sequence[str]) -> None:
    """Refuse a pattern that matches none of the paths.

    Raises:
        PatternError: with the kinds of files that exist.
    """
    if chosen or not paths:
        return
    kinds = Counter(PurePosixPath(path).suffix.lower() or "no suffix" for path in paths)
    there = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(_KINDS_SHOWN))
    raise PatternError(f"data.pattern {shown(text)} matches none of the {len(paths):,} images of {where} ({there})")


def _expression(patterns: Sequence[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Expressions for file names and for paths; without patterns of a kind, its expression never matches."""
    names = [fnmatch.translate(pattern.casefold()) for pattern in patterns if "/" not in pattern]
    paths = [fnmatch.translate(pattern.casefold()) for pattern in patterns if "/" in pattern]
    return re.compile("|".join(names) or r"(?!)"), re.compile("|".join(paths) or r"(?!)")


def _matches(expression: tuple[re.Pattern[str], re.Pattern[str]], path: str) -> bool:
    folded = path.casefold()
    return bool(expression[0].match(folded.rsplit("/", 1)[-1]) or expression[1].match(folded))
