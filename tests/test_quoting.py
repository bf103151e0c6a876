"""Hostile texts in every language that thaw writes, parsed by independent programs."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from xml.etree import ElementTree as ET

import pytest
from hostile_text import ISSUE, PIECES, Seen, hostile, is_unsafe
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from thaw import quoting
from thaw.quoting import printable

# Examples may be slow to draw on a busy machine.
MANY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FEW = settings(MANY, max_examples=8)
GCC = shutil.which("gcc")
BASH = shutil.which("bash")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror")


# Terminal


def test_control_and_invisible_characters_are_escaped():
    for code in range(sys.maxunicode + 1):
        letter = chr(code)
        made = printable(letter)
        if is_unsafe(letter):
            assert made.isascii(), hex(code)
            assert made.isprintable(), hex(code)
        elif letter not in "\ufffe\uffff" and not (0x2060 <= code <= 0x206F or 0xE0000 <= code <= 0xE007F):
            assert made == letter, hex(code)


def test_escapes_are_those_of_python():
    assert printable("a\nb\t\x1b[31m é 大\x85\u202e\U000e0041") == "a\\nb\\t\\x1b[31m é 大\\x85\\u202e\\U000e0041"
    # A byte of a file name that is not UTF-8, as given by the system, and any other surrogate.
    assert printable(os.fsdecode(b"a\xff") + "\ud800") == "a\\xff\\ud800"
    assert quoting.encodable("a\n\x1b\udcff") == "a\n\x1b\\xff"


@given(hostile)
@MANY
def test_printable_text_is_one_line_and_stable(text):
    made = printable(text)
    assert not any(map(is_unsafe, made))
    assert len(made.splitlines()) <= 1
    assert printable(made) == made
    assert quoting.printable_lines(text) == "\n".join(map(printable, text.split("\n")))


# Messages


@pytest.mark.parametrize(
    "value",
    ["x" * 5000, ["x"] * 5000, {"a": "\x1b" * 5000}, 10**5000, b"\xff" * 5000, "\u202e" * 5000, (1,) * 5000],
    ids=["text", "list", "dictionary", "number", "bytes", "marks", "tuple"],
)
def test_value_in_a_message_is_short(value):
    for made in (quoting.shown(value), quoting.given(value if isinstance(value, str) else "x" * 5000)):
        # One character may become an escape sequence of ten.
        assert len(made) <= 10 * quoting.VALUE_LENGTH + 40
        assert not any(map(is_unsafe, made))
    assert "x" in quoting.shown("x")


def test_short_value_is_shown_as_its_repr():
    for value in ("a'b", 1.5, [1, 2], None, {"a": "b"}, "x" * 80):
        assert quoting.shown(value) == repr(value)
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert "list" in quoting.shown(nested)
    assert quoting.shown("x" * 5000).endswith("… (5,000 characters)")


@given(st.lists(st.integers(0, 3000).map("é".__mul__), max_size=200))
@FEW
def test_error_has_a_limited_number_and_length_of_lines(lines):
    made = quoting.error_text("\n".join(lines)).split("\n")
    assert len(made) <= 31
    assert max(map(len, made)) <= quoting.LINE_LENGTH
    assert quoting.error_text("a short one\nwith a hint") == "a short one\nwith a hint"


# Shell


def as_argument(text: str) -> str | None:
    try:
        return os.fsdecode(os.fsencode(text)) if "\0" not in text else None
    except UnicodeEncodeError:
        return None


@given(hostile)
@MANY
def test_word_without_controls_is_parsed_by_shlex(text):
    word = quoting.shell_word(text)
    assert printable(word) == word
    if not word.startswith("$'"):
        assert not any(map(is_unsafe, text))
        assert shlex.split(word) == [text]


@pytest.mark.skipif(BASH is None, reason="needs bash")
@given(st.lists(hostile, min_size=20, max_size=60))
@FEW
def test_words_are_parsed_by_bash(texts):
    words = [text for text in map(as_argument, [ISSUE, "it's\n\x1b", *PIECES, *texts]) if text is not None]
    line = quoting.shell_command(["printf", "%s\\0", *words])
    done = subprocess.run([BASH, "-c", line], capture_output=True, check=True, timeout=60)
    assert done.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in words]
    assert done.stderr == b""


# JSON

trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | hostile,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hostile, inner, max_size=4),
    max_leaves=10,
)


@given(trees, st.sampled_from([None, 1]))
@MANY
def test_json_round_trip_without_markup(value, indent):
    text = quoting.json_text(value, indent=indent)
    assert json.loads(text) == value
    assert not any(map(is_unsafe, text.replace("\n", "")))
    text.encode()
    page = Seen(f'<script type="application/json">{text}</script>')
    assert (page.text, [tag for tag, _ in page.tags], page.comments) == (text, ["script"], [])
    assert json.loads(Seen(f"<p>{text}</p>").text) == value


def test_json_rejects_nan():
    with pytest.raises(ValueError):
        quoting.json_text({"a": float("nan")})


# HTML, SVG and XML


def as_lines(text: str) -> str:
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


@given(hostile)
@example("".join(map(chr, range(32))) + "\x7f\ufffe\uffff\ud800")
@MANY
def test_xml_text_round_trip_in_elements_and_attributes(text):
    made = quoting.xml_text(text)
    document = f"<a b=\"{made}\" c='{made}'>{made}</a>"
    element = ET.fromstring(document.encode())
    assert element.text or "" == as_lines(text)
    assert not len(element)
    page = Seen(document)
    assert ([tag for tag, _ in page.tags], page.comments) == (["a"], [])
    assert page.text == as_lines(text)
    assert page.tags[0][1] == [("b", as_lines(text)), ("c", as_lines(text))]


# Markdown

PAGE = "# {0}\n\n| a | b |\n|---|---|\n| {0} | x |\n\n{0}\n\n- {0}\n\nMade by {0}.\n"


def parsed(text: str) -> tuple[list[str], list]:
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(PAGE.format(text))
    return [token.type for token in tokens], [token.children for token in tokens if token.type == "inline"]


@given(hostile)
@MANY
def test_markdown_text_is_text_in_any_position(text):
    shown = printable(text).strip()
    assume(shown)
    kinds, inlines = parsed(quoting.markdown_text(text))
    assert kinds == parsed("word")[0]
    for children, around in zip(inlines, ["{}", "a", "b", "{}", "x", "{}", "{}", "Made by {}."], strict=True):
        assert {child.type for child in children} <= {"text", "text_special"}, text
        assert "".join(child.content for child in children) == around.format(shown)


@given(hostile)
@MANY
def test_markdown_code_is_one_span_in_any_position(text):
    shown = printable(text).replace("|", "\u00a6")
    assume(shown.strip(" "))
    kinds, inlines = parsed(quoting.markdown_code(text))
    assert kinds == parsed("`word`")[0]
    for index in (0, 3, 5, 6):
        assert [(child.type, child.content) for child in inlines[index] if child.content] == [("code_inline", shown)]


def test_bare_address_in_markdown_is_not_a_link():
    # Links and mentions of GitHub, beyond the standard.
    for text in ("www.example.org", "https://example.org", "a@example.org", "@someone", "#1", ":smile:", "$x$"):
        made = quoting.markdown_text(text)
        assert not re.search(r"(?i)(?<!\\)(@|:|#|\$)|www\.", made), made


# CSV

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")


@given(st.lists(st.one_of(hostile, st.floats(-1, 1)), min_size=1, max_size=6))
@example(["=1+1", "\t=1", " =1", "-1", "+1", "@a", "\r=1", 'a;"=1', "a\n=1"])
@MANY
def test_csv_cell_is_never_a_formula(cells):
    cells = ["first", *cells]
    line = quoting.csv_line(cells)
    assert line.count("\n") == 1
    assert line.endswith("\n")
    (row,) = csv.reader([line])
    for cell, found in zip(cells, row, strict=True):
        if isinstance(cell, float):
            assert float(found) == pytest.approx(cell, abs=1e-6)
        else:
            assert not found.lstrip().startswith(FORMULA)
            assert found.replace("'", "") == printable(cell).replace("'", "")
    # In locales with a decimal comma, a spreadsheet splits this at semicolons.
    for part in next(csv.reader([line], delimiter=";")):
        assert not part.lstrip(' "').startswith(FORMULA) or re.match(r"-?[0-9.]+(,|$)", part)


# C


def compiled(source: str, folder, *flags: str) -> bytes:
    (folder / "test.c").write_text(source, encoding="utf-8")
    done = subprocess.run([GCC, *STRICT, *flags, "test.c"], cwd=folder, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()[:2000]
    return done.stdout


NAMES = [
    ISSUE,
    "".join(PIECES),
    "a*\\/b",
    "é" * 2 + "/",
    "?" * 9 + "/",
    "*" * 5 + "/",
    "x" * 5000,
    "ends in \\",
    "*",
    "/",
]


@pytest.mark.skipif(GCC is None, reason="needs gcc")
@given(st.lists(hostile, min_size=50, max_size=100))
@FEW
def test_c_comment_contains_no_code(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("comment")
    comments = [quoting.c_comment(text) for text in [*NAMES, *PIECES, *texts]]
    assert all(len(comment) <= 210 and comment.isascii() and comment.isprintable() for comment in comments)
    lines = [f"/* {comment} */ int a{index};\n/* {comment}\n*/" for index, comment in enumerate(comments)]
    seen = compiled("\n".join(lines) + "\n", folder, "-trigraphs", "-E", "-P").split()
    expected = b" ".join(f"int a{index};".encode() for index in range(len(comments))).split()
    assert seen == expected


@pytest.mark.skipif(GCC is None, reason="needs gcc")
@given(st.lists(hostile, min_size=50, max_size=100))
@FEW
def test_c_string_round_trip(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("string")
    names = [name for name in [*NAMES, *PIECES, *texts] if len(name) < 900]
    entries = ",\n".join(quoting.c_string(name) for name in [*names, "x" * 5000, "大" * 5000])
    source = (
        "#include <stdio.h>\n"
        f"static const char *const names[] = {{\n{entries}\n}};\n"
        "int main(void)\n{\n    size_t i;\n    for (i = 0; i < sizeof names / sizeof *names; i++) { puts(names[i]); }\n"
        "    return 0;\n}\n"
    )
    compiled(source, folder, "-o", "test")
    said = subprocess.run([folder / "test"], capture_output=True, check=True, timeout=60).stdout.decode().split("\n")
    assert said[:-3] == list(map(printable, names))
    assert [line[:9] for line in said[-3:-1]] == ["x" * 9, "大" * 9]
