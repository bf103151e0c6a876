"""Class names that differ only in case or in Unicode form are one class."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from thaw.data.catalog import natural_key
from thaw.data.problems import Problem
from thaw.quoting import encodable


def folded(name: str) -> str:
    """Equal for names that are one class: the composed form (NFC) of the name, with every letter folded by itself.

    Letters that fold to several (ß, İ) stay as they are, and no locale counts: it is what a file system that does not
    tell case apart does. Names of one character are not folded, since "a" and "A" are different letters to be read.
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
    """The class that each spelling belongs to.

    The spelling of most images gives the name, in its composed form; of equally many, the first in natural order.

    Args:
        counts: images by spelling.
        merge: where False, every spelling is a class of its own.

    Returns:
        The class name by spelling, and a warning where spellings were merged.
    """
    if not merge:
        return {name: encodable(name) for name in counts}, []
    groups: dict[str, list[str]] = {}
    for name in sorted(counts, key=natural_key):
        groups.setdefault(folded(name), []).append(name)
    names: dict[str, str] = {}
    told = []
    for spellings in groups.values():
        chosen = encodable(unicodedata.normalize("NFC", max(spellings, key=lambda name: counts[name])))
        names.update(dict.fromkeys(spellings, chosen))
        if len(spellings) > 1:
            told.append(f"{' and '.join(_shown(name, spellings, counts) for name in spellings)} are {chosen}")
    message = (
        "class names that differ only in case or Unicode form are one class "
        "(--set data.merge_spellings=false keeps them apart)"
    )
    return names, [Problem("spelling", "warning", message, tuple(told))] if told else []


def _shown(name: str, spellings: list[str], counts: Mapping[str, int]) -> str:
    """A spelling and its images; with its code points where it looks like another."""
    composed = unicodedata.normalize("NFC", name)
    alike = sum(unicodedata.normalize("NFC", other) == composed for other in spellings) > 1
    return f"{encodable(name)}{f' [{ascii(name)[1:-1]}]' if alike else ''} ({counts[name]:,})"
