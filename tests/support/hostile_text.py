"""Strings that are special in some language, for the tests of code that writes names into files."""

from __future__ import annotations

import unicodedata
from html.parser import HTMLParser

from hypothesis import strategies as st

PIECES = (
    *("*/", "/*", "//", "\\", "??/", "*\\/", "*\\ int injected(void) { return 1; } \\*", '"', "'", "@NAME@", "%s"),
    *("\n", "\r", "\t", "\x00", "\x07", "\x1b[31m", "\x1b]0;title\x07", "\x7f", "\x85", "\x9b31m"),
    *("\u00a0", "\u00ad", "\u200b", "\u200d", "\u2028", "\u2029", "\u202e", "\u2066", "\ufeff", "\ufffe", "\uffff"),
    *("\udc80", "\udcff", "\ud800", "\U000e0041", "é", "大", "😀", "\u0301"),
    *("<b>", "</script>", "<!--", "]]>", "&amp;", "&#0;", "<svg onload=alert(1)>"),
    *(
        "`",
        "``",
        "|",
        "\\|",
        "[a](javascript:b)",
        "![",
        "**",
        "__",
        "~~",
        "#",
        "- ",
        "1. ",
        "> ",
        "www.a.b",
        "https://a.b",
    ),
    *("=1+1", "=cmd|' /C calc'!A0", "+", "-", "@", ",", ";", "\uff1d"),
    *("$(id)", "${HOME}", "`id`", "; id", "&& id", "*", "?", "~", "!!", " ", "  ", "a", "word"),
)

ISSUE = "photos*\\ int injected(void) {...} \\*"
"""A folder name that was valid C."""

hostile = st.lists(st.one_of(st.sampled_from(PIECES), st.characters()), max_size=8).map("".join)


# Joiners that scripts and emoji need, and visible Arabic signs of this category.
SEEN = {"\u200c", "\u200d", *map(chr, (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2))}
SEEN |= {chr(code) for code in (0x110BD, 0x110CD, *range(0x13430, 0x13440))}


def is_unsafe(letter: str) -> bool:
    return unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and letter not in SEEN


class Seen(HTMLParser):
    """Parsed HTML: tags with attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, list]] = []
        self.text = ""
        self.comments: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        self.comments.append(data)
