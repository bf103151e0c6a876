"""Which files of a folder count: the setting `data.pattern`."""

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
    """A pattern that chooses nothing."""


@dataclass(frozen=True)
class FilePattern:
    """Glob patterns, some that choose files and some ("!...") that leave files out.

    A pattern without "/" is matched with the file's name, one with "/" with its path below the source; `*` stands for
    any characters, `?` for one, `[ab]` for one of these. Capital and small letters are the same.
    """

    chosen: tuple[str, ...]
    left_out: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> FilePattern:
        """Patterns with commas between them; without one that chooses, everything that is not left out counts.

        Raises:
            UsageError: for an empty pattern.
        """
        parts = [part.strip() for part in text.split(",")] if text.strip() else []
        if any(not part.removeprefix("!") for part in parts):
            raise UsageError(f"pattern {shown(text)}: expected globs with commas between them, such as *.jpg,!*_mask.*")
        chosen = tuple(part for part in parts if not part.startswith("!"))
        return cls(chosen, tuple(part[1:] for part in parts if part.startswith("!")))

    def select(self, paths: Sequence[str]) -> list[str]:
        """The paths that count, in order."""
        chosen, left_out = _expression(self.chosen), _expression(self.left_out)
        return [
            path
            for path in paths
            if (not self.chosen or _matches(chosen, path)) and not (self.left_out and _matches(left_out, path))
        ]


def require_match(where: str, text: str, paths: Sequence[str], chosen: Sequence[str]) -> None:
    """Refuses a pattern that leaves nothing.

    Raises:
        PatternError: with the kinds of files that there are.
    """
    if chosen or not paths:
        return
    kinds = Counter(PurePosixPath(path).suffix.lower() or "no suffix" for path in paths)
    there = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(_KINDS_SHOWN))
    raise PatternError(
        f"data.pattern {shown(text)} matches none of the {len(paths):,} images of {where}: there are {there}"
    )


def _expression(patterns: Sequence[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What names must match, and what paths must match; never, where there is no pattern of that kind."""
    names = [fnmatch.translate(pattern.casefold()) for pattern in patterns if "/" not in pattern]
    paths = [fnmatch.translate(pattern.casefold()) for pattern in patterns if "/" in pattern]
    return re.compile("|".join(names) or r"(?!)"), re.compile("|".join(paths) or r"(?!)")


def _matches(expression: tuple[re.Pattern[str], re.Pattern[str]], path: str) -> bool:
    folded = path.casefold()
    return bool(expression[0].match(folded.rsplit("/", 1)[-1]) or expression[1].match(folded))
