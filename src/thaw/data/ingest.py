"""Prepare the images of a source, or read them from the cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thaw.data.cache import cache_root, check_room, open_or_build, store_folder
from thaw.data.catalog import NO_LABEL, Catalog, Entries, Payload, Source, Split
from thaw.data.chunks import Chunk, Facts, Target, convert_chunk, join_facts
from thaw.data.decode import LOSSY_RULES, RULES, UnreadableImageError, decode_image, quiet_decoding
from thaw.data.images import Fit, parse_shape
from thaw.data.problems import Problem, Severity
from thaw.data.scaling import ValueRange, Values
from thaw.data.settings import parse_input
from thaw.data.store import ImageFile, Store, image_blocks, map_images, write_tables
from thaw.data.workers import SMALLEST_PARALLEL, decode_chunks, usual_workers

Progress = Callable[[int, int], None]
"""Called with the number of prepared images and of all images."""

LARGEST_OWN_SIDE = 64
USUAL_SIDE = 32
# Sample of images that is decoded before all are.
_GLANCED = 64


class _SizesDifferError(Exception):
    """Images that were assumed to have one size differ."""


@dataclass(frozen=True)
class _Wanted:
    """The form of images that the caller asks for."""

    input: str
    fit: Fit
    range: ValueRange | None

    def target(self, height: int, width: int, channels: int) -> Target:
        """The target of that size; 0 channels if the images decide."""
        return Target(height=height, width=width, channels=channels, fit=self.fit, range=self.range)


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """The target, and the reason if it was chosen automatically."""

    target: Target
    reason: str = ""
    own_size: bool = False


@dataclass
class _Findings:
    """Results of decoding other than pixels."""

    kept: dict[Split, list[int]] = field(default_factory=dict)
    facts: dict[Split, list[Facts]] = field(default_factory=dict)
    modes: Counter[str] = field(default_factory=Counter)
    rules: dict[str, list[str]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def add(self, split: Split, places: Sequence[int], names: Sequence[str], chunk: Chunk) -> None:
        self.kept.setdefault(split, []).extend(places[place] for place in chunk.kept)
        self.facts.setdefault(split, []).append(chunk.facts)
        self.modes.update(chunk.modes)
        for rule, found in chunk.rules.items():
            self.rules.setdefault(rule, []).extend(names[places[place]] for place in found)
        self.unreadable.extend(f"{names[places[place]]} ({reason})" for place, reason in sorted(chunk.failures.items()))


def read_store(
    source: Source,
    *,
    wanted_input: str,
    fit: Fit,
    value_range: ValueRange | None = None,
    cache_dir: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Store:
    """All prepared images of a source, from the cache if possible.

    Args:
        source: from `open_source`.
        wanted_input: "auto", HEIGHTxWIDTHxCHANNELS or HEIGHTxWIDTHxauto.
        fit: how images of another aspect ratio are fitted.
        value_range: range of images of more than 8 bits; None for 0 to 65,535.
        cache_dir: the cache folder, instead of the default.
        workers: number of decoding processes; by default one per core.
        progress: called after each decoded batch.

    Raises:
        DataError: when the source cannot be read or the cache cannot be written. Images that cannot be decoded are
            listed in the store.
    """
    wanted = _Wanted(wanted_input, fit, value_range)
    if source.facts is None:
        return _convert(source, source.read(), wanted, progress)
    folder = store_folder(cache_root(cache_dir), source, wanted_input, fit, value_range)

    def build(making: Path) -> Store:
        catalog = source.read()
        if any(entries.array is not None for entries in catalog.splits.values()):
            store = _convert(source, catalog, wanted, progress)
            file = ImageFile(making / "images.bin", *store.shape)
            for images in store.images.values():
                for block in image_blocks(images):
                    file.append(block)
            write_tables(making, store, file.close())
            return store
        return _decode(making, source, catalog, wanted, workers, progress)

    return open_or_build(folder, build)


def first_shape(entries: Entries) -> tuple[int, int] | None:
    """Height and width of the first readable image."""
    if entries.array is not None:
        return (entries.array.shape[1], entries.array.shape[2]) if len(entries.array) else None
    with quiet_decoding():
        for batch in entries.batches():
            for payload in batch:
                try:
                    return decode_image(payload).pixels.shape[:2]
                except UnreadableImageError:
                    continue
    return None


@dataclass(frozen=True, kw_only=True)
class Glance:
    """Sizes and colors of a sample of the images of a source.

    Attributes:
        sizes: height and width of each.
        color: whether any is in color.
    """

    sizes: tuple[tuple[int, int], ...]
    color: bool

    @property
    def shorter_side(self) -> int:
        """The median of the images' shorter sides."""
        return int(np.median([min(size) for size in self.sizes]))

    @property
    def own_size(self) -> tuple[int, int] | None:
        """The common size of the images, if "auto" uses it: all equal, and no side over 64 pixels."""
        own = self.sizes[0]
        return own if len(set(self.sizes)) == 1 and max(own) <= LARGEST_OWN_SIDE else None


def glance(splits: Mapping[Split, Entries]) -> Glance | None:
    """Sample a few images before all are decoded; None if none of them can be read."""
    total = sum(len(entries.labels) for entries in splits.values())
    every = max(1, total // _GLANCED)
    sizes: list[tuple[int, int]] = []
    color = False
    for entries in splits.values():
        for height, width, channels in _some_shapes(entries, every):
            sizes.append((height, width))
            color = color or channels == 3
    return Glance(sizes=tuple(sizes), color=color) if sizes else None


def _some_shapes(entries: Entries, every: int) -> Iterator[tuple[int, ...]]:
    """(H, W, C) of every `every`-th image that can be read; C = 1 if it is gray by content."""
    if entries.array is not None:
        for image in entries.array[::every]:
            gray = image.shape[2] == 1 or (image == image[..., :1]).all()
            yield (*image.shape[:2], 1 if gray else 3)
        return
    start = 0
    with quiet_decoding():
        for batch in entries.batches():
            for payload in batch[-start % every :: every]:
                try:
                    yield decode_image(payload).pixels.shape
                except UnreadableImageError:
                    continue
            start += len(batch)


def _choose(source: Source, splits: Mapping[Split, Entries], wanted: _Wanted) -> _Choice:
    if wanted.input == "auto" and source.usual_input:
        target = wanted.target(*parse_shape(source.usual_input))
        return _Choice(target=target, reason=f"the usual size for {source.name}")
    if wanted.input != "auto":
        return _Choice(target=wanted.target(*parse_input(wanted.input)))
    shapes = [shape for shape in (first_shape(entries) for entries in splits.values()) if shape is not None]
    usual = wanted.target(USUAL_SIDE, USUAL_SIDE, 0)
    if not shapes:
        return _Choice(target=usual)
    if len(set(shapes)) > 1:
        return _Choice(target=usual, reason="the images differ in size")
    height, width = shapes[0]
    if max(height, width) > LARGEST_OWN_SIDE:
        return _Choice(target=usual, reason=f"the images have sides of over {LARGEST_OWN_SIDE} pixels")
    reason = "the images' own size"
    return _Choice(target=wanted.target(height, width, 0), reason=reason, own_size=True)


def _convert(source: Source, catalog: Catalog, wanted: _Wanted, progress: Progress | None) -> Store:
    """Prepare arrays; the result is a view of the input if nothing has to change."""
    choice = _choose(source, catalog.splits, wanted)
    arrays = {split: entries.array for split, entries in catalog.splits.items() if entries.array is not None}
    total, done = sum(len(array) for array in arrays.values()), 0
    findings = _Findings()
    blocks: dict[Split, list[npt.NDArray[np.uint8]]] = {split: [] for split in arrays}
    for split, array in arrays.items():
        labels, names = catalog.splits[split].labels, catalog.splits[split].names
        whole = bool((labels != NO_LABEL).all())
        start = 0
        for block in image_blocks(array):
            places = np.flatnonzero(labels[start : start + len(block)] != NO_LABEL)
            used = block if whole else block[places]
            chunk = convert_chunk(used, choice.target)
            findings.add(split, (places + start).tolist(), names, chunk)
            # Unchanged pixels are not copied.
            is_kept = whole and np.shares_memory(chunk.pixels, block)
            blocks[split].append(chunk.pixels[:0] if is_kept else chunk.pixels)
            start += len(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
    gray = all(part.gray.all() for parts in findings.facts.values() for part in parts)
    channels = choice.target.channels or (1 if gray else 3)
    shape = (choice.target.height, choice.target.width, channels)
    images = {split: _joined(arrays[split], blocks[split], shape) for split in arrays}
    return _store(source, catalog, choice, findings, images, shape)


def _joined(
    array: Values, blocks: Sequence[npt.NDArray[np.uint8]], shape: tuple[int, int, int]
) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8 and array.shape[1:3] == shape[:2] and not any(len(block) for block in blocks):
        view = array[..., : shape[2]].view(np.uint8)
        if view.shape[3] == shape[2]:
            view.flags.writeable = False
            return view
    result = np.empty((sum(len(block) for block in blocks), *shape), dtype=np.uint8)
    start = 0
    for block in blocks:
        result[start : start + len(block)] = block
        start += len(block)
    result.flags.writeable = False
    return result


def _decode(
    folder: Path,
    source: Source,
    catalog: Catalog,
    wanted: _Wanted,
    workers: int | None,
    progress: Progress | None,
) -> Store:
    """Decode images into `folder`; a second time if small images turn out to differ in size."""
    choice = _choose(source, catalog.splits, wanted)
    total = sum(len(entries.labels) for entries in catalog.splits.values())
    processes = usual_workers() if workers is None else workers
    if total < SMALLEST_PARALLEL:
        processes = 1
    try:
        findings, shape, written = _decode_as(folder, catalog, choice, processes, progress)
    except _SizesDifferError:
        choice = _Choice(target=wanted.target(USUAL_SIDE, USUAL_SIDE, 0), reason="the images differ in size")
        findings, shape, written = _decode_as(folder, catalog, choice, processes, progress)
    counts = {split: len(findings.kept.get(split, [])) for split in catalog.splits}
    store = _store(source, catalog, choice, findings, map_images(folder, shape, counts), shape)
    write_tables(folder, store, written)
    return store


def _decode_as(
    folder: Path, catalog: Catalog, choice: _Choice, processes: int, progress: Progress | None
) -> tuple[_Findings, tuple[int, int, int], tuple[int, list[int]]]:
    target = choice.target
    total = sum(len(entries.labels) for entries in catalog.splits.values())
    check_room(folder, total * target.height * target.width * (target.channels or 1))
    findings, done = _Findings(), 0
    file = ImageFile(folder / "images.bin", target.height, target.width, target.channels)
    try:
        for split, entries in catalog.splits.items():
            rows = np.flatnonzero(entries.labels != NO_LABEL).tolist()
            names = [entries.names[row] for row in rows]
            start = 0
            for chunk in decode_chunks(_labeled(entries), target, processes, names):
                if choice.own_size and (chunk.facts.sizes != (target.height, target.width)).any():
                    raise _SizesDifferError
                file.append(chunk.pixels)
                count = len(chunk.kept) + len(chunk.failures)
                findings.add(split, rows[start : start + count], entries.names, chunk)
                start, done = start + count, done + count
                if progress is not None:
                    progress(done, total)
    finally:
        written = file.close()
    return findings, (target.height, target.width, file.channels), written


def _labeled(entries: Entries) -> Iterator[Sequence[Payload]]:
    """The images that have a label."""
    start = 0
    for batch in entries.batches():
        has_label = entries.labels[start : start + len(batch)] != NO_LABEL
        yield (
            batch
            if has_label.all()
            else [payload for payload, is_used in zip(batch, has_label, strict=True) if is_used]
        )
        start += len(batch)


def conversions(rules: Mapping[str, Sequence[str]]) -> list[Problem]:
    """Report conversions by `RULES`, from the names of the images by rule.

    `thaw.data.ranges` reports the range of 16-bit images.
    """
    problems = []
    for rule, names in rules.items():
        if rule != "16-bit":
            severity: Severity = "warning" if rule in LOSSY_RULES else "note"
            message = f"{len(names):,} image{'' if len(names) == 1 else 's'}: {RULES[rule]}"
            problems.append(Problem(rule, severity, message, tuple(names)))
    if {"unit-float", "byte-float"} <= set(rules):
        few = min((rules["unit-float"], rules["byte-float"]), key=len)
        message = "floating-point values up to 1 in some images and up to 255 in others are scaled differently"
        problems.append(Problem("float-scale", "warning", message, tuple(few)))
    return problems


def _store(
    source: Source,
    catalog: Catalog,
    choice: _Choice,
    findings: _Findings,
    images: Mapping[Split, npt.NDArray[np.uint8]],
    shape: tuple[int, int, int],
) -> Store:
    kept = {split: np.array(findings.kept.get(split, []), dtype=np.int64) for split in catalog.splits}
    gray = all(part.gray.all() for parts in findings.facts.values() for part in parts)
    reason = choice.reason
    if reason and not choice.target.channels:
        reason += "; every image is gray" if gray else "; some images are in color"
    return Store(
        name=source.name,
        classes=catalog.classes,
        named=catalog.named,
        shape=shape,
        fit=choice.target.fit,
        range=choice.target.range,
        chosen=reason,
        images=images,
        labels={split: entries.labels[kept[split]] for split, entries in catalog.splits.items()},
        names={split: [entries.names[row] for row in kept[split]] for split, entries in catalog.splits.items()},
        facts={split: join_facts(findings.facts.get(split, [])) for split in catalog.splits},
        modes=dict(findings.modes),
        unreadable=tuple(findings.unreadable),
        problems=(*catalog.problems, *conversions(findings.rules)),
        groups=replace(
            catalog.groups,
            numbers={split: column[kept[split]] for split, column in catalog.groups.numbers.items() if split in kept},
        ),
    )
