"""Photographs next to their masks or label maps, which are not training images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from thaw.data.decode import SUFFIXES
from thaw.data.problems import Problem
from thaw.quoting import encodable

_MASK_WORDS = "masks?|segmentations?|seg|gt|ground_?truths?|annotations?|labels?|trimaps?|mattes?|depth|overlays?"
_MASK_ENDING = re.compile(rf"(?<=[^_.-])[_.-](?:{_MASK_WORDS})(?=(?:[_.-]?[0-9]{{1,3}})?$)")
_MASK_BEGINNING = re.compile(rf"(?:{_MASK_WORDS})[_.-](?=[^_.-])")
_IMAGE_BEGINNING = re.compile(r"(?:images?|imgs?|photos?|pictures?|inputs?|originals?|rgb)[_.-](?=[^_.-])")
_MASK_FOLDER = re.compile(rf"(?:[a-z0-9]+[_-])?(?:{_MASK_WORDS})")
_IMAGE_FOLDER = re.compile(r"(?:[a-z0-9]+[_-])?(?:images?|imgs?|photos?|pictures?|jpegimages|inputs?|originals?|rgb)")


def find_pairs(paths: Iterable[str]) -> Problem | None:
    """A warning if images come in pairs.

    Pairs are `x.jpg` and `x.png` (or `x.jpg.png`) in one folder, `x.png` and `x_mask.png` (or `mask_x.png`), and
    `x.png` (or `images/x.png`) and `masks/x.png`.

    Args:
        paths: relative paths with "/" between parts.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for path in paths:
        groups.setdefault(_key(path), []).append(path)
    pairs = [members for members in groups.values() if len(members) > 1 and _are_pair(members)]
    if not pairs:
        return None
    count = sum(len(members) - 1 for members in pairs)
    what = "1 image has" if count == 1 else f"{count:,} images have"
    message = (
        f"{what} the name of another image: if they are masks or copies, exclude them, "
        f"for example with --set 'data.pattern={_proposal(pairs[0])}'"
    )
    return Problem("pairs", "warning", message, tuple(encodable(" + ".join(members)) for members in pairs))


def _key(path: str) -> tuple[str, ...]:
    """A key that a photograph and its mask share: folders except for image and mask folders, and the name's stem.

    `*` replaces image and mask folders.
    """
    *folders, name = path.casefold().split("/")
    kinds = (part for part in folders if not (_MASK_FOLDER.fullmatch(part) or _IMAGE_FOLDER.fullmatch(part)))
    stem = _stem(name)
    if found := _MASK_ENDING.search(stem):
        stem = stem[: found.start()]
    elif found := _MASK_BEGINNING.match(stem) or _IMAGE_BEGINNING.match(stem):
        stem = stem[found.end() :]
    return (*kinds, stem)


def _stem(name: str) -> str:
    """A file's name without its suffix, or without both suffixes of `x.jpg.png`."""
    stem = PurePosixPath(name).stem
    return PurePosixPath(stem).stem if _suffix(stem) in SUFFIXES else stem


def _are_pair(members: Sequence[str]) -> bool:
    """Whether images of one key are a photograph and its mask, not images of two splits or differing in case."""
    if len({_is_mask(path) for path in members}) > 1:
        return True
    folded = {path.casefold() for path in members}
    return len(folded) > len({(path.rpartition("/")[0], _stem(path.rpartition("/")[2])) for path in folded})


def _is_mask(path: str) -> bool:
    *folders, name = path.casefold().split("/")
    stem = _stem(name)
    return bool(_MASK_ENDING.search(stem) or _MASK_BEGINNING.match(stem)) or any(map(_MASK_FOLDER.fullmatch, folders))


def _proposal(members: Sequence[str]) -> str:
    """A pattern that keeps only the photograph of a pair."""
    photo, mask = sorted(members, key=lambda path: (_is_mask(path), _suffix(path) not in {".jpg", ".jpeg"}, path))[:2]
    if not _is_mask(mask) or _is_mask(photo):
        return f"*{_suffix(photo)}"
    *folders, name = mask.split("/")
    stem = _stem(name).casefold()
    if ending := _MASK_ENDING.search(stem):
        return f"!*{ending[0]}*"
    if beginning := _MASK_BEGINNING.match(stem):
        return f"!{beginning[0]}*"
    place = next(place for place, part in enumerate(folders) if _MASK_FOLDER.fullmatch(part.casefold()))
    return f"!*/{folders[place]}/*" if place else f"!{folders[place]}/*"


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
