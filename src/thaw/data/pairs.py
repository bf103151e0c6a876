"""Photographs beside their masks or label maps, which are no images to train on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from thaw.data.problems import Problem
from thaw.quoting import encodable

_MASK_WORDS = "masks?|segmentations?|seg|gt|ground_?truths?|annotations?|labels?|trimaps?|mattes?|depth|overlays?"
_MASK_ENDING = re.compile(rf"(?<=[^_.-])[_.-](?:{_MASK_WORDS})(?=(?:[_.-]?[0-9]{{1,3}})?$)")
_MASK_FOLDER = re.compile(rf"(?:[a-z0-9]+[_-])?(?:{_MASK_WORDS})")
_IMAGE_FOLDER = re.compile(r"(?:[a-z0-9]+[_-])?(?:images?|imgs?|photos?|pictures?|jpegimages|inputs?|originals?|rgb)")


def find_pairs(paths: Iterable[str]) -> Problem | None:
    """A warning where images come in pairs.

    Pairs are `x.jpg` and `x.png` in one folder, `x.png` and `x_mask.png`, or `images/x.png` and `masks/x.png`.

    Args:
        paths: images, relative, with "/" between parts.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for path in paths:
        groups.setdefault(_key(path), []).append(path)
    pairs = [variants for variants in groups.values() if len(variants) > 1 and _are_pair(variants)]
    if not pairs:
        return None
    count = sum(len(variants) - 1 for variants in pairs)
    what = "1 image stands" if count == 1 else f"{count:,} images stand"
    message = (
        f"{what} beside another of the same name: if they are masks or copies, leave them out, "
        f"as with --set 'data.pattern={_proposal(pairs[0])}'"
    )
    return Problem("pairs", "warning", message, tuple(encodable(" + ".join(variants)) for variants in pairs))


def _key(path: str) -> tuple[str, ...]:
    """What a photograph and its mask have in common: the folders but for their kind, and the name but for its ending.

    `*` cannot be the name of a folder that stands for a kind, so such folders meet only one another.
    """
    *folders, name = path.casefold().split("/")
    kinds = ["*" if _MASK_FOLDER.fullmatch(part) or _IMAGE_FOLDER.fullmatch(part) else part for part in folders]
    stem = PurePosixPath(name).stem
    found = _MASK_ENDING.search(stem)
    return (*kinds, stem[: found.start()] if found else stem)


def _are_pair(variants: Sequence[str]) -> bool:
    """Whether images of one key are a photograph and something else, not images of two splits or names in two cases."""
    if len({_is_mask(path) for path in variants}) > 1:
        return True
    return len({path.casefold() for path in variants}) > len({_folder(path) for path in variants})


def _folder(path: str) -> str:
    return path.casefold().rpartition("/")[0]


def _is_mask(path: str) -> bool:
    *folders, name = path.casefold().split("/")
    return bool(_MASK_ENDING.search(PurePosixPath(name).stem)) or any(map(_MASK_FOLDER.fullmatch, folders))


def _proposal(variants: Sequence[str]) -> str:
    """A pattern that leaves the photograph of a pair, and nothing else of it."""
    photo, mask = sorted(variants, key=lambda path: (_is_mask(path), _suffix(path) not in {".jpg", ".jpeg"}, path))[:2]
    if not _is_mask(mask) or _is_mask(photo):
        return f"*{_suffix(photo)}"
    *folders, name = mask.split("/")
    ending = _MASK_ENDING.search(PurePosixPath(name).stem.casefold())
    if ending:
        return f"!*{ending[0]}*"
    place = next(place for place, part in enumerate(folders) if _MASK_FOLDER.fullmatch(part.casefold()))
    return f"!*/{folders[place]}/*" if place else f"!{folders[place]}/*"


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
