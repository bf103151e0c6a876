"""Texts that mean something in some language, for the tests of everything that writes names into files."""

from __future__ import annotations

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
"""The folder's name that was C."""

hostile = st.lists(st.one_of(st.sampled_from(PIECES), st.characters()), max_size=8).map("".join)
