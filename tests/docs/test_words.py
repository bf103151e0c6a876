"""The words of the prose: no page, message or comment in the checked folders has a word that words.toml bans.

python tests/docs/test_words.py src tests    # list what the words find elsewhere
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

# Strict here. Add a folder when its prose is clean.
CHECKED = ("README.md", "CONTRIBUTING.md", "docs", "tests/docs")

# File -> patterns that it may use. Generated pages have the words of the code that writes them.
ALLOWED: dict[str, set[str]] = {
    # Names the banned words.
    "tests/docs/words.toml": {".*"},
    "tests/docs/test_words.py": {".*"},
    # Written from the docstrings of the settings classes.
    "docs/settings.md": {".*"},
}

SUFFIXES = {".py", ".md", ".toml", ".ipynb", ".j2", ".css", ".js", ".html", ".c", ".h"}
WORDS = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))


def _pattern(word: str, section: str) -> re.Pattern[str]:
    if section == "sentences":
        return re.compile(rf"(?:^|(?<=[.!?:] )|(?<=[-*#>|\"'] ))(?:{word})\b", re.MULTILINE)
    return re.compile(rf"(?<![\w`./=-])(?:{word})(?![\w`=-])", re.IGNORECASE)


PATTERNS = [
    (word, _pattern(word, section), better) for section, words in WORDS.items() for word, better in words.items()
]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of what a reader reads: comments and strings of Python, all of other files but code spans."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in kinds:
                yield from enumerate(token.string.splitlines(), start=token.start[0])
        return
    for number, line in enumerate(text.splitlines(), start=1):
        yield number, re.sub(r"`[^`]*`", "`code`", line)


def findings(path: Path) -> list[str]:
    name = path.relative_to(REPOSITORY).as_posix()
    allowed = ALLOWED.get(name, set())
    if ".*" in allowed:
        return []
    return [
        f"{name}:{number}: {match[0]!r}: write {better}"
        for number, line in prose(path)
        for word, pattern, better in PATTERNS
        if word not in allowed
        for match in pattern.finditer(line)
    ]


def files(names: tuple[str, ...]) -> list[Path]:
    found: list[Path] = []
    for name in names:
        path = REPOSITORY / name
        found += [path] if path.is_file() else sorted(path.rglob("*"))
    return [path for path in found if path.is_file() and path.suffix in SUFFIXES]


def test_the_prose_uses_the_words_of_the_field():
    found = [line for path in files(CHECKED) for line in findings(path)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("the optimiser quantises", True),
        ("the optimizer quantizes", False),
        ("a fault that a user can mend", True),
        ("recommend, amend", False),
        ("run `thawed-at-once`", False),
        ("A model. Of the seeds, one ships.", True),
        ("One of the seeds ships.", False),
        ("his run", True),
        ("this run", False),
    ],
)
def test_the_word_finder_finds_words(tmp_path, monkeypatch, text, is_found):
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    assert bool(findings(page)) == is_found


if __name__ == "__main__":
    lines = [line for path in files(tuple(sys.argv[1:]) or CHECKED) for line in findings(path)]
    print("\n".join(lines))  # noqa: T201 - a program for the terminal
    print(f"{len(lines)} words", file=sys.stderr)  # noqa: T201
