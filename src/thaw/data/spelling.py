"""Merge class names that differ only in case or Unicode form."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from thaw.data.catalog import natural_key
from thaw.data.problems import Problem
from thaw.quoting import encodable


def folded(name: str) -> str:
    """A key that is equal for names of one class: the composed form (NFC) with each letter case-folded.

    Letters that fold to several (ß, İ) are kept, and the locale has no effect, as in a case-insensitive file system.
    Names of one character are not folded, since "a" and "A" are different classes of characters.
    """
    composed = unicodedata.normalize("NFC", name)
    if len(composed) == 1:
        return composed
    return unicodedata.normalize("NFC", "".join(map(_fold_letter, composed)))


def _fold_letter(letter: str) -> str:
    for simple in (letter.casefold(), letter.lower()):
        if len(simple) == 1:
            return simple
    return letter


def one_spelling(counts: Mapping[str, int], *, merge: bool = True) -> tuple[dict[str, str], list[Problem]]:
    """The class name of each spelling: the most frequent spelling in composed form, or the first of equals.

    Args:
        counts: number of images by spelling.
        merge: if False, each spelling is a class of its own.

    Returns:
        The class name by spelling, and a warning if spellings were merged.
    """
    if not merge:
        return {name: encodable(name) for name in counts}, []
    groups: dict[str, list[str]] = {}
    for name in sorted(counts, key=natural_key):
        groups.setdefault(folded(name), []).append(name)
    names: dict[str, str] = {}
    merged = []
    for spellings in groups.values():
        chosen = encodable(unicodedata.normalize("NFC", max(spellings, key=lambda name: counts[name])))
        names.update(dict.fromkeys(spellings, chosen))
        if len(spellings) > 1:
            merged.append(f"{' and '.join(_shown(name, spellings, counts) for name in spellings)} are {chosen}")
    message = (
        "class names that differ only in case or Unicode form are one class "
        "(--set data.merge_spellings=false keeps them apart)"
    )
    return names, [Problem("spelling", "warning", message, tuple(merged))] if merged else []


def _shown(name: str, spellings: list[str], counts: Mapping[str, int]) -> str:
    """A spelling and its number of images; with its code points if it looks like another."""
    composed = unicodedata.normalize("NFC", name)
    alike = sum(unicodedata.normalize("NFC", other) == composed for other in spellings) > 1
    return f"{encodable(name)}{f' [{ascii(name)[1:-1]}]' if alike else ''} ({counts[name]:,})"
