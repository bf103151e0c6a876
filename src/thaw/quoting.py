"""Text that goes into another language: one function for each language that thaw writes.

Names of files, folders, classes and data sets, and all text in a file that somebody else made, may hold any character.
Every text that goes into a file or to a terminal passes through the function of that language here.

JSON and shell words read back as the very text. The other languages show it: control characters and marks that cannot
be seen are written out, as by `printable`, and C comments are reduced to ASCII.
"""

from __future__ import annotations

import json
import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

VALUE_LENGTH = 80
"""Characters of a value that a message shows."""
NAME_LENGTH = 120
"""Characters of a file's or class's name that a message shows."""
PATH_LENGTH = 200
"""Characters of a path that a message shows."""
LINE_LENGTH = 800
"""Characters of a line of an error; what is longer comes from a text that somebody made to be so."""
_MOST_LINES = 30
_COMMENT_LENGTH = 200
# C99 asks compilers for string literals of 4,095 bytes, and -pedantic warns of longer ones.
_C_STRING_BYTES = 1000

# Control characters, soft hyphen, marks that turn the direction of writing or cannot be seen, line and paragraph
# separators, lone surrogates, noncharacters, and tags. Joiners (U+200C, U+200D) stay: scripts and emoji need them.
# The page's `csv.js` has the same list.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """`text` on one line that a terminal only shows: what could steer it is written as Python writes it in a literal.

    A byte of a file's name that is no UTF-8 is written in hexadecimal.
    """
    return text if text.isprintable() else _UNSAFE.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """`printable` of each line; only line feeds end lines."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _escaped(found: re.Match[str]) -> str:
    letter = found[0]
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


def encodable(text: str) -> str:
    """`text` as UTF-8 can hold it: a byte of a file's name that is no UTF-8 in hexadecimal, and all else as it is."""
    return re.sub("[\ud800-\udfff]", _escaped, text)


def clipped(text: str, limit: int = NAME_LENGTH) -> str:
    """`text`, of which the middle is left out where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 3]} … {text[len(text) - tail :]}"


def shown(value: object, limit: int = VALUE_LENGTH) -> str:
    """A value that was given, as a message shows it: as Python writes it, with its beginning only where it is long."""
    if isinstance(value, str) and len(value) > limit:
        return f"{printable(repr(value[:limit]))}… ({len(value):,} characters)"
    try:
        text = printable(repr(value))
    except (ValueError, RecursionError):
        # A whole number of more than 4,300 digits, or a tree nested too deeply.
        return f"a value of type {type(value).__name__} that is too long to show"
    # A text of just that length has two quotation marks besides.
    return text if len(text) <= limit + 2 else f"{text[:limit]}… ({len(text):,} characters)"


def given(text: object, limit: int = NAME_LENGTH) -> str:
    """Like `shown`, without quotation marks: for options, names and parts of them."""
    plain = printable(str(text))
    return plain if len(plain) <= limit else f"{plain[:limit]}… ({len(plain):,} characters)"


def listed(names: Iterable[object], most: int = 20) -> str:
    """Names with commas between them, the first of them where there are many."""
    every = [clipped(printable(str(name)), VALUE_LENGTH) for name in names]
    rest = len(every) - most
    return ", ".join(every[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def error_text(message: str) -> str:
    """A message in lines of moderate number and length, for a terminal."""
    lines = message.split("\n")
    rest = len(lines) - _MOST_LINES
    cut = [clipped(printable(line), LINE_LENGTH) for line in lines[:_MOST_LINES]]
    return "\n".join([*cut, f"and {rest:,} more lines"] if rest > 0 else cut)


def shell_word(text: str) -> str:
    """A word of a command line to be typed; what cannot be shown is written as bash, zsh and ksh read it: $'...'."""
    if not _UNSAFE.search(text):
        return shlex.quote(text)
    return f"$'{''.join(map(_shell_letter, text))}'"


def _shell_letter(letter: str) -> str:
    if not _UNSAFE.match(letter):
        return f"\\{letter}" if letter in "\\'" else letter
    # Octal escapes of bytes cannot run into what follows.
    is_byte = "\udc80" <= letter <= "\udcff"
    return "".join(f"\\{byte:03o}" for byte in letter.encode("utf-8", "surrogateescape" if is_byte else "replace"))


def shell_command(words: Iterable[str]) -> str:
    """A command line to be typed."""
    return " ".join(map(shell_word, words))


def json_text(value: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """JSON in which strings hold nothing that steers a terminal, ends an HTML element, or cannot be encoded.

    Compact without `indent`. Whatever reads JSON gets the very strings back.

    Raises:
        ValueError: for a number that is not finite, which JSON has no form for.
    """
    separators = (",", ":") if indent is None else None
    text = json.dumps(
        value, indent=indent, sort_keys=sort_keys, separators=separators, ensure_ascii=False, allow_nan=False
    )
    # Line feeds are those of the indentation: in strings they are escaped already.
    return re.sub(f"(?!\n)(?:{_UNSAFE.pattern}|[<>&])", _json_escaped, text)


def _json_escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1] if found[0] not in "<>&\x7f" else f"\\u{ord(found[0]):04x}"


def xml_text(text: str) -> str:
    """Text of an element or attribute of HTML, SVG or XML; line feeds and tabs stay, for whoever shows lines."""
    plain = re.sub(f"(?![\n\t]){_UNSAFE.pattern}", _escaped, text)
    for letter, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&#34;"), ("'", "&#39;")):
        plain = plain.replace(letter, entity)
    return plain


def markdown_text(text: str) -> str:
    """Text within a paragraph, heading or table cell of Markdown: no markup, link, HTML or column of its own."""
    plain = re.sub(r"[\\`*_\[\]<>&|~$@:#{}]", r"\\\g<0>", printable(text).strip())
    # www. begins a link, wherever it stands; the others begin a block where they begin a line.
    plain = re.sub(r"(?i)\b(www)\.", r"\1\\.", plain)
    return re.sub(r"^([0-9]*)([-+=.)])", r"\1\\\2", plain)


def markdown_code(text: str) -> str:
    """A code span of Markdown, in a table cell too: a vertical bar, which may end the cell, becomes a broken one."""
    plain = printable(text).replace("|", "\u00a6")
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    # Of a span that begins and ends with a space, one is taken off at each end.
    is_bare = plain != "" and plain == plain.strip(" `")
    return f"{fence}{plain}{fence}" if is_bare else f"{fence} {plain or '–'} {fence}"


def csv_line(cells: Sequence[str | float]) -> str:
    """A line of a CSV: texts that no spreadsheet takes for a formula, and numbers with six decimals."""
    return ",".join(_csv_text(cell) if isinstance(cell, str) else f"{cell:.6f}" for cell in cells) + "\n"


def _csv_text(text: str) -> str:
    # Signs count in full width too. A semicolon begins a cell where the comma separates decimals.
    plain = re.sub(r"""(^|;)(?=["\s]*[-=+@\uff1d\uff0b\uff0d\uff20])""", r"\1'", printable(text))
    return '"' + plain.replace('"', '""') + '"' if re.search(r'[",;]|^\s|\s$', plain) else plain


def c_comment(text: str) -> str:
    """Text in a comment of C: ASCII without what ends or begins a comment, continues a line, or is a trigraph."""
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    plain = re.sub(r"[^ -~]|[*\\?]", "_", "".join(letters))
    return clipped(plain, _COMMENT_LENGTH).replace("…", "...")


def c_string(text: str) -> str:
    """A string literal of C in UTF-8, safe to print; octal escapes cannot run into what follows them."""
    content = printable(text).encode()
    if len(content) > _C_STRING_BYTES:
        content = f"{content[:_C_STRING_BYTES].decode(errors='ignore')}…".encode()
    letters = []
    for byte in content:
        letter = chr(byte)
        is_plain = " " <= letter <= "~" and letter not in '"\\?'
        letters.append(letter if is_plain else f"\\{byte:03o}")
    return f'"{"".join(letters)}"'
