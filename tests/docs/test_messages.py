"""docs/messages.md explains every error class, kind of data problem and finding that the package has."""

from __future__ import annotations

import inspect
import re

import pytest
from command_line import REPOSITORY

from thaw import errors
from thaw.data.decode import RULES

PAGE = (REPOSITORY / "docs" / "messages.md").read_text(encoding="utf-8")
SOURCES = REPOSITORY / "src" / "thaw"


def names_in_code(pattern: str, folder: str) -> set[str]:
    texts = [path.read_text(encoding="utf-8") for path in (SOURCES / folder).glob("*.py")]
    return {name for text in texts for name in re.findall(pattern, text)}


def error_classes():
    return [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, errors.ThawError)]


@pytest.mark.parametrize("error", error_classes(), ids=lambda each: each.__name__)
def test_every_error_class_is_explained(error):
    assert f"`{error.__name__}`" in PAGE
    if code := getattr(error, "code", ""):
        assert f"`{code}`" in PAGE


def test_every_kind_of_data_problem_is_explained():
    kinds = names_in_code(r'Problem\(\s*"([a-z-]+)"', "data")
    assert {"duplicate", "pairs", "unreadable"} <= kinds
    # The kind `range` reports `16-bit`.
    assert [kind for kind in sorted(kinds | set(RULES) - {"16-bit"}) if f"`{kind}`" not in PAGE] == []


def test_every_finding_is_explained():
    codes = names_in_code(r'Finding\(\s*code="([a-z0-9-]+)"', "evidence")
    assert {"largest-class", "int8-class-lost"} <= codes
    assert [code for code in sorted(codes) if f"`{code}`" not in PAGE] == []
