"""From payloads to pixels of the model's input size, a batch at a time, with facts about each image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from thaw.data.catalog import Payload
from thaw.data.decode import UnreadableImageError, decode_image, quiet_decoding
from thaw.data.images import Fit, InputSpec
from thaw.data.resize import resize
from thaw.data.scaling import Use, ValueRange, Values, range_use, value_span

Pixels = npt.NDArray[np.uint8]

DIGEST_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Target:
    """The form of prepared images: size, fit, and 1 or 3 channels; 0 channels if the images decide.

    `range` scales values of more than 8 bits (`thaw.data.scaling`).
    """

    height: int
    width: int
    channels: int
    fit: Fit
    range: ValueRange | None = None

    @classmethod
    def of(cls, input_spec: InputSpec) -> Target:
        """The target of a model's input specification."""
        names = ("height", "width", "channels", "fit", "range")
        return cls(**{name: getattr(input_spec, name) for name in names})

    def input_spec(self, channels: int) -> InputSpec:
        """The input specification for images that have `channels` channels."""
        channels = self.channels or channels
        return InputSpec(height=self.height, width=self.width, channels=channels, fit=self.fit, range=self.range)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about each of n images.

    Attributes:
        sizes: int32 [n, 2], height and width before resizing.
        gray: bool [n], whether the original is gray by content.
        originals: uint8 [n, 16], a digest of the decoded original; equal for identical images.
        prepared: uint8 [n, 16], a digest of the prepared pixels.
        sums: int64 [n, 3], sum of the prepared pixels per channel (three equal sums for gray images).
        squares: int64 [n, 3], sum of their squares.
        wide: bool [n], whether the original has more than 8 bits per channel; if not, the following are 0.
        spans: uint16 [n, 2], lowest and highest relevant value of the original (`scaling.value_span`).
        levels: int32 [n, 2], levels in use after scaling to bytes, and before (`scaling.Use`).
        outside: float32 [n], share of values outside the range.
    """

    sizes: npt.NDArray[np.int32]
    gray: npt.NDArray[np.bool_]
    originals: Pixels
    prepared: Pixels
    sums: npt.NDArray[np.int64]
    squares: npt.NDArray[np.int64]
    wide: npt.NDArray[np.bool_]
    spans: npt.NDArray[np.uint16]
    levels: npt.NDArray[np.int32]
    outside: npt.NDArray[np.float32]


FACT_SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "sizes": ("<i4", (2,)),
    "gray": ("|b1", ()),
    "originals": ("|u1", (DIGEST_BYTES,)),
    "prepared": ("|u1", (DIGEST_BYTES,)),
    "sums": ("<i8", (3,)),
    "squares": ("<i8", (3,)),
    "wide": ("|b1", ()),
    "spans": ("<u2", (2,)),
    "levels": ("<i4", (2,)),
    "outside": ("<f4", ()),
}
"""dtype and shape of the facts about one image, by the field names of `Facts`."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A decoded batch.

    Attributes:
        pixels: uint8 [n, h, w, c]; c as in the target, or 1 if every image is gray, else 3.
        facts: facts about these n images.
        kept: their n places among the payloads.
        modes: their n pixel formats.
        rules: conversion rule -> places of the images that it was applied to.
        failures: place -> why the image could not be decoded.
    """

    pixels: Pixels
    facts: Facts
    kept: list[int]
    modes: list[str]
    rules: dict[str, list[int]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)


def decode_chunk(
    payloads: Sequence[Payload], target: Target, *, before: Callable[[int], object] | None = None
) -> Chunk:
    """Decode and resize images; an image that cannot be decoded is listed in `failures`.

    Args:
        payloads: encoded images or paths.
        target: size and channels of the result.
        before: called with the place of each image before it is decoded.
    """
    parts: list[Pixels] = []
    kept: list[int] = []
    modes: list[str] = []
    sizes: list[tuple[int, int]] = []
    gray: list[bool] = []
    digests: list[bytes] = []
    depths: list[_Depth] = []
    rules: dict[str, list[int]] = {}
    failures: dict[int, str] = {}
    with quiet_decoding():
        for place, payload in enumerate(payloads):
            if before is not None:
                before(place)
            try:
                decoded = decode_image(payload)
                small = resize(decoded.pixels, target.input_spec(decoded.pixels.shape[2]))
            except UnreadableImageError as error:
                failures[place] = str(error)
                continue
            except MemoryError:
                failures[place] = "not enough memory to decode it"
                continue
            parts.append(small)
            kept.append(place)
            modes.append(decoded.mode)
            sizes.append((decoded.pixels.shape[0], decoded.pixels.shape[1]))
            gray.append(decoded.pixels.shape[2] == 1)
            digests.append(_digest(decoded.pixels))
            depths.append(_depth(decoded.pixels, target.range, decoded.span))
            for rule in decoded.rules:
                rules.setdefault(rule, []).append(place)
    pixels = _stack(parts, target)
    facts = _facts(pixels, sizes, gray, digests, depths)
    return Chunk(pixels=pixels, facts=facts, kept=kept, modes=modes, rules=rules, failures=failures)


def convert_chunk(images: Values, target: Target) -> Chunk:
    """`decode_chunk` for images uint8 or uint16 [n, H, W, C] that are already decoded."""
    count, height, width, channels = images.shape
    gray = np.ones(count, dtype=np.bool_)
    originals = images
    if channels == 3:
        gray = ((images[..., 0] == images[..., 1]) & (images[..., 0] == images[..., 2])).all(axis=(1, 2))
        if gray.all():
            images = originals = images[..., :1]
    small = resize(images, target.input_spec(images.shape[3]))
    digests = [
        _digest(original[..., :1] if is_gray else original) for original, is_gray in zip(originals, gray, strict=True)
    ]
    is_wide = images.dtype == np.uint16
    depths = [_depth(image, target.range) for image in images] if is_wide else [_EIGHT_BITS] * count
    facts = _facts(small, [(height, width)] * count, gray.tolist(), digests, depths)
    of_gray, of_color = ("I;16", "RGB;16") if is_wide else ("L", "RGB")
    modes = [of_gray if is_gray else of_color for is_gray in gray]
    return Chunk(pixels=small, facts=facts, kept=list(range(count)), modes=modes)


def _stack(parts: Sequence[Pixels], target: Target) -> Pixels:
    channels = target.channels or max((part.shape[2] for part in parts), default=1)
    pixels = np.empty((len(parts), target.height, target.width, channels), dtype=np.uint8)
    for place, part in enumerate(parts):
        pixels[place] = part  # broadcasts one channel to three
    return pixels


_Depth = tuple[bool, tuple[int, int], Use]
"""The last four fields of `Facts` for one image."""

_EIGHT_BITS: _Depth = (False, (0, 0), Use(0, 0, 0.0))


def _depth(pixels: Values, value_range: ValueRange | None, span: tuple[int, int] | None = None) -> _Depth:
    if pixels.dtype == np.uint8:
        return _EIGHT_BITS
    wide = pixels.view(np.uint16)
    return (True, span or value_span(wide), range_use(wide, value_range))


def _digest(pixels: Values) -> bytes:
    shape = ("x".join(str(side) for side in pixels.shape) + ":").encode()
    digest = hashlib.blake2b(shape, digest_size=DIGEST_BYTES)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def _facts(
    pixels: Pixels,
    sizes: Sequence[tuple[int, int]],
    gray: Sequence[bool],
    digests: Sequence[bytes],
    depths: Sequence[_Depth],
) -> Facts:
    count = len(pixels)
    # A gray image has the same digest in a gray chunk as among color images.
    prepared = [_digest(image[..., :1] if is_gray else image) for image, is_gray in zip(pixels, gray, strict=True)]
    # 64-bit sums suffice: 1024 * 1024 * 255**2 needs 37 bits.
    sums = pixels.sum(axis=(1, 2), dtype=np.int64)
    squares = np.square(pixels, dtype=np.uint16).sum(axis=(1, 2), dtype=np.int64)
    return Facts(
        sizes=np.array(sizes, dtype=np.int32).reshape(count, 2),
        gray=np.array(gray, dtype=np.bool_),
        originals=np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(count, DIGEST_BYTES),
        prepared=np.frombuffer(b"".join(prepared), dtype=np.uint8).reshape(count, DIGEST_BYTES),
        sums=np.broadcast_to(sums, (count, 3)).copy(),
        squares=np.broadcast_to(squares, (count, 3)).copy(),
        wide=np.array([each[0] for each in depths], dtype=np.bool_),
        spans=np.array([each[1] for each in depths], dtype=np.uint16).reshape(count, 2),
        levels=np.array([each[2][:2] for each in depths], dtype=np.int32).reshape(count, 2),
        outside=np.array([each[2].outside for each in depths], dtype=np.float32),
    )


def join_facts(parts: Sequence[Facts]) -> Facts:
    """Concatenate the facts of several chunks."""
    joined = {}
    for name, (kind, shape) in FACT_SHAPES.items():
        columns = [getattr(part, name) for part in parts]
        joined[name] = np.concatenate(columns) if columns else np.zeros((0, *shape), dtype=kind)
    return Facts(**joined)
