"""Words of the prose: no page, message or comment contains a word that words.toml bans.

python tests/docs/test_words.py src tests    # list the words found in these folders
"""

from __future__ import annotations

import io
import os
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

CHECKED = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "docs", "src", "tests", "bench")

# Pattern of file names -> patterns of words.toml that these files may use.
ALLOWED: dict[str, set[str]] = {
    # Names the banned words.
    "tests/docs/words.toml": {".*"},
    "tests/docs/test_words.py": {".*"},
    # The name of a method, as a heading.
    "docs/settings.md": {"distil"},
    # The same name in lists of names.
    "tests/*.py": {"distil"},
    # Lanes of SIMD registers.
    "src/thaw/export/c/*.c": {"lanes?"},
    "src/thaw/kernels/*.[ch]": {"lanes?"},
    "docs/speed.md": {"lanes?"},
    "bench/*.c": {"lanes?"},
    "tests/kernels/*": {"lanes?"},
    # A keyword of CSS.
    "src/thaw/web/style.css": {
        "(?:whilst|amongst|learnt|spelt|burnt|dreamt|towards|afterwards|backwards|forwards|upwards|downwards|onwards)"
    },
}

SUFFIXES = {".py", ".md", ".toml", ".ipynb", ".j2", ".css", ".js", ".html", ".c", ".h"}
WORDS = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))


CODE = re.compile(r"`[^`]*`|\"[\w.=-]+\"")


def _pattern(word: str, section: str) -> re.Pattern[str]:
    if section == "sentences":
        return re.compile(rf"(?:^|(?<=[.!?:] )|(?<=[-*#>|\"'] ))(?:{word})\b", re.MULTILINE)
    return re.compile(rf"(?<![\w`./=-])(?:{word})(?![\w`=-])", re.IGNORECASE)


PATTERNS = [
    (word, _pattern(word, section), better) for section, words in WORDS.items() for word, better in words.items()
]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text): comments and strings of Python, all lines of other files; without code spans and values.

    A value is a quoted single word, such as the name of a setting.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in kinds:
                for number, line in enumerate(token.string.splitlines(), start=token.start[0]):
                    yield number, CODE.sub("`code`", line)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        yield number, CODE.sub("`code`", line)


def findings(path: Path) -> list[str]:
    name = path.relative_to(REPOSITORY).as_posix()
    allowed = {word for pattern, words in ALLOWED.items() if fnmatch(name, pattern) for word in words}
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
    """The files of prose with these names, or in folders of these names; without hidden and generated folders."""
    found: list[Path] = []
    for path in (REPOSITORY / name for name in names):
        if path.is_file():
            found.append(path)
        for folder, inner, contents in os.walk(path):
            inner[:] = sorted(
                each for each in inner if each not in {"vendor", "__pycache__"} and not each.startswith(".")
            )
            found += [Path(folder, each) for each in sorted(contents) if Path(each).suffix in SUFFIXES]
    return found


def test_prose_has_no_banned_words():
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
        ('the method "distil"', False),
        ("A model. Of the seeds, one ships.", True),
        ("One of the seeds ships.", False),
        ("his run", True),
        ("this run", False),
    ],
)
def test_word_finder_finds_words(tmp_path, monkeypatch, text, is_found):
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    assert bool(findings(page)) == is_found


if __name__ == "__main__":
    lines = [line for path in files(tuple(sys.argv[1:]) or CHECKED) for line in findings(path)]
    print("\n".join(lines))  # noqa: T201 - a program for the terminal
    print(f"{len(lines)} words", file=sys.stderr)  # noqa: T201
