"""Quoting of text: one function for each language that thaw writes.

Names of files, folders, classes and data sets, and all text in foreign files, may contain any character. All text that
is written to a file or a terminal passes through the function for that language.

JSON and shell words can be read back exactly. The other languages only display text: control characters and invisible
characters are escaped as by `printable`, and C comments are reduced to ASCII.
"""

from __future__ import annotations

import json
import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

VALUE_LENGTH = 80
"""Maximum length of a value in a message."""
NAME_LENGTH = 120
"""Maximum length of a file or class name in a message."""
PATH_LENGTH = 200
"""Maximum length of a path in a message."""
LINE_LENGTH = 800
"""Maximum length of one line of an error message."""
_MOST_LINES = 30
_COMMENT_LENGTH = 200
# C99 requires compilers to accept string literals of 4,095 bytes; -pedantic warns about longer ones.
_C_STRING_BYTES = 1000

# Control characters, soft hyphen, bidirectional and invisible marks, line and paragraph separators, lone surrogates,
# noncharacters, and tags. Joiners (U+200C, U+200D) stay: scripts and emoji need them. `web/csv.js` has the same list.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """`text` on one line, with control and invisible characters escaped as in a Python literal.

    Bytes of a file name that are not UTF-8 are written in hexadecimal.
    """
    return text if text.isprintable() else _UNSAFE.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """`printable` for each line of `text`; only line feeds end lines."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _escaped(found: re.Match[str]) -> str:
    letter = found[0]
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


def encodable(text: str) -> str:
    """`text` as valid UTF-8: bytes of a file name that are not UTF-8 are written in hexadecimal."""
    return re.sub("[\ud800-\udfff]", _escaped, text)


def clipped(text: str, limit: int = NAME_LENGTH) -> str:
    """`text`, shortened in the middle if it has more than `limit` characters."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 3]} … {text[len(text) - tail :]}"


def shown(value: object, limit: int = VALUE_LENGTH) -> str:
    """The `repr` of a value for a message, truncated after `limit` characters."""
    if isinstance(value, str) and len(value) > limit:
        return f"{printable(repr(value[:limit]))}… ({len(value):,} characters)"
    try:
        text = printable(repr(value))
    except (ValueError, RecursionError):
        # An integer of more than 4,300 digits, or a tree nested too deeply.
        return f"a {type(value).__name__} that is too long to show"
    # The repr of a string of `limit` characters has two quotation marks in addition.
    return text if len(text) <= limit + 2 else f"{text[:limit]}… ({len(text):,} characters)"


def given(text: object, limit: int = NAME_LENGTH) -> str:
    """Like `shown`, but without quotation marks: for options and names."""
    plain = printable(str(text))
    return plain if len(plain) <= limit else f"{plain[:limit]}… ({len(plain):,} characters)"


def listed(names: Iterable[object], most: int = 20) -> str:
    """Names separated by commas; at most the first `most` of them."""
    every = [clipped(printable(str(name)), VALUE_LENGTH) for name in names]
    rest = len(every) - most
    return ", ".join(every[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def error_text(message: str) -> str:
    """A message for a terminal, with limits on the number and length of lines."""
    lines = message.split("\n")
    rest = len(lines) - _MOST_LINES
    cut = [clipped(printable(line), LINE_LENGTH) for line in lines[:_MOST_LINES]]
    return "\n".join([*cut, f"and {rest:,} more lines"] if rest > 0 else cut)


def shell_word(text: str) -> str:
    """A word of a shell command; control characters are written in the $'...' form of bash, zsh and ksh."""
    if not _UNSAFE.search(text):
        return shlex.quote(text)
    return f"$'{''.join(map(_shell_letter, text))}'"


def _shell_letter(letter: str) -> str:
    if not _UNSAFE.match(letter):
        return f"\\{letter}" if letter in "\\'" else letter
    # Three octal digits cannot merge with the characters that follow.
    is_byte = "\udc80" <= letter <= "\udcff"
    return "".join(f"\\{byte:03o}" for byte in letter.encode("utf-8", "surrogateescape" if is_byte else "replace"))


def shell_command(words: Iterable[str]) -> str:
    """A shell command."""
    return " ".join(map(shell_word, words))


def json_text(value: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """JSON whose strings hold no control characters, no HTML markup and nothing that cannot be encoded.

    Compact without `indent`. Every JSON parser reads back the original strings.

    Raises:
        ValueError: for a number that is not finite; JSON cannot represent it.
    """
    separators = (",", ":") if indent is None else None
    text = json.dumps(
        value, indent=indent, sort_keys=sort_keys, separators=separators, ensure_ascii=False, allow_nan=False
    )
    # The remaining line feeds belong to the indentation; those in strings are escaped already.
    return re.sub(f"(?!\n)(?:{_UNSAFE.pattern}|[<>&])", _json_escaped, text)


def _json_escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1] if found[0] not in "<>&\x7f" else f"\\u{ord(found[0]):04x}"


def xml_text(text: str) -> str:
    """Text of an element or attribute in HTML, SVG or XML; line feeds and tabs are preserved."""
    plain = re.sub(f"(?![\n\t]){_UNSAFE.pattern}", _escaped, text)
    for letter, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&#34;"), ("'", "&#39;")):
        plain = plain.replace(letter, entity)
    return plain


def markdown_text(text: str) -> str:
    """Text in a paragraph, heading or table cell of Markdown, with all markup escaped."""
    plain = re.sub(r"[\\`*_\[\]<>&|~$@:#{}]", r"\\\g<0>", printable(text).strip())
    # "www." starts a link anywhere; the others start a block at the beginning of a line.
    plain = re.sub(r"(?i)\b(www)\.", r"\1\\.", plain)
    return re.sub(r"^([0-9]*)([-+=.)])", r"\1\\\2", plain)


def markdown_code(text: str) -> str:
    """A code span in Markdown. A vertical bar becomes a broken bar, since it would end a table cell."""
    plain = printable(text).replace("|", "\u00a6")
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    # Markdown strips one space from each end of a span that begins and ends with a space.
    is_bare = plain != "" and plain == plain.strip(" `")
    return f"{fence}{plain}{fence}" if is_bare else f"{fence} {plain or '–'} {fence}"


def csv_line(cells: Sequence[str | float]) -> str:
    """A line of CSV: numbers with six decimals, and text that no spreadsheet evaluates as a formula."""
    return ",".join(_csv_text(cell) if isinstance(cell, str) else f"{cell:.6f}" for cell in cells) + "\n"


def _csv_text(text: str) -> str:
    # Full-width signs count too. A semicolon starts a cell in locales with a decimal comma.
    plain = re.sub(r"""(^|;)(?=["\s]*[-=+@\uff1d\uff0b\uff0d\uff20])""", r"\1'", printable(text))
    return '"' + plain.replace('"', '""') + '"' if re.search(r'[",;]|^\s|\s$', plain) else plain


def c_comment(text: str) -> str:
    """Text in a C comment: ASCII, without comment delimiters, line continuations or trigraphs."""
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    plain = re.sub(r"[^ -~]|[*\\?]", "_", "".join(letters))
    return clipped(plain, _COMMENT_LENGTH).replace("…", "...")


def c_string(text: str) -> str:
    """A C string literal in UTF-8, safe to print; octal escapes cannot merge with the characters that follow."""
    content = printable(text).encode()
    if len(content) > _C_STRING_BYTES:
        content = f"{content[:_C_STRING_BYTES].decode(errors='ignore')}…".encode()
    letters = []
    for byte in content:
        letter = chr(byte)
        is_plain = " " <= letter <= "~" and letter not in '"\\?'
        letters.append(letter if is_plain else f"\\{byte:03o}")
    return f'"{"".join(letters)}"'
