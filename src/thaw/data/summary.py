"""Inspect a source before training: its content, its problems, and a contact sheet."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from thaw.data.catalog import Split
from thaw.data.checks import find_problems
from thaw.data.contact_sheet import draw_sheet
from thaw.data.images import ImageSet, InputSpec
from thaw.data.ingest import Progress, read_store
from thaw.data.problems import Problem
from thaw.data.ranges import find_range, range_problems
from thaw.data.settings import DataSettings
from thaw.data.sources import SourceLike, open_source
from thaw.data.split_plan import plan_splits
from thaw.data.store import Store
from thaw.errors import RunError, UsageError
from thaw.files import write_atomically
from thaw.quoting import printable

_PREVIEW_IMAGES = 10


@dataclass(frozen=True, kw_only=True, repr=False)
class SourceSummary:
    """The content and the problems of a source.

    Attributes:
        name: the name of the source.
        input: the input specification that training would use, without statistics.
        classes: K class names.
        counts: number of usable images by split and class, for the splits of the source.
        heights: smallest, median and largest height of the originals in pixels; zeros without images.
        widths: smallest, median and largest width.
        distinct_sizes: number of different sizes.
        modes: number of images by pixel format of the file.
        gray_images: number of images that are gray by content.
        balance: images of the largest class over images of the smallest non-empty class, in the training split.
        problems: all problems, errors included.
        preview: a few images of each class in the form used for training, from the training split if there is one.
        recipe: name of the recipe that would train on it; empty if unknown.
    """

    name: str
    input: InputSpec
    classes: tuple[str, ...]
    counts: Mapping[Split, Mapping[str, int]]
    heights: tuple[int, float, int]
    widths: tuple[int, float, int]
    distinct_sizes: int
    modes: Mapping[str, int]
    gray_images: int
    balance: float
    problems: tuple[Problem, ...]
    preview: ImageSet
    recipe: str = ""

    @property
    def count(self) -> int:
        """Number of usable images in all splits."""
        return sum(sum(counts.values()) for counts in self.counts.values())

    @property
    def usable(self) -> bool:
        """Whether training could start, that is, no problem is an error."""
        return not any(problem.severity == "error" for problem in self.problems)

    def __repr__(self) -> str:
        kind = "usable" if self.usable else "not usable"
        return f"SourceSummary({self.name!r}, {self.count:,} images, {len(self.classes)} classes, {kind})"

    def describe(self) -> str:
        """The summary as text; control characters in names are escaped."""
        found = f"{self.count:,} images of {len(self.classes)} classes; input {self.input} ({self.input.fit})"
        lines = [f"{printable(self.name)}: {found}"]
        lines += [f"  {split}: {sum(counts.values()):,} images" for split, counts in self.counts.items()]
        low, middle, high = (f"{h:g}x{w:g}" for h, w in zip(self.heights, self.widths, strict=True))
        one = (
            f"all {low}"
            if self.distinct_sizes == 1
            else f"{self.distinct_sizes:,} sizes, {low} to {high}, median {middle}"
        )
        modes = ", ".join(f"{count:,} {mode}" for mode, count in sorted(self.modes.items()))
        lines.append(
            f"  height x width: {one}; pixel formats: {modes or 'none'}; gray by content: {self.gray_images:,}"
        )
        lines.append(f"  balance: the largest class has {self.balance:.2f} times as many images as the smallest")
        shown = {name: printable(name) for name in self.classes}
        widest = max((len(text) for text in shown.values()), default=0)
        for name in self.classes:
            numbers = ", ".join(f"{split} {counts[name]:,}" for split, counts in self.counts.items())
            lines.append(f"    {shown[name]:<{widest}}  {numbers}")
        lines += [f"  {problem.severity}: {problem}" for problem in self.problems] or ["  no problems"]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form, without the preview."""
        sides = ("smallest", "median", "largest")
        return {
            "name": self.name,
            "input": str(self.input),
            "fit": self.input.fit,
            **self.input.range_as_dict(),
            "classes": list(self.classes),
            "count": self.count,
            "counts": {split: dict(counts) for split, counts in self.counts.items()},
            "heights": dict(zip(sides, self.heights, strict=True)),
            "widths": dict(zip(sides, self.widths, strict=True)),
            "distinct_sizes": self.distinct_sizes,
            "modes": dict(self.modes),
            "gray_images": self.gray_images,
            "balance": self.balance,
            "usable": self.usable,
            "problems": [problem.as_dict() for problem in self.problems],
            "recipe": self.recipe,
        }

    def contact_sheet(self, path: str | Path, *, per_class: int = 8) -> Path:
        """Write a PNG with a row of images per class, in the form used for training.

        Args:
            path: the file; missing folders are created.
            per_class: images per class, from 1 to 10.

        Returns:
            The path of the file.

        Raises:
            UsageError: for `per_class` below 1.
            RunError: when the file cannot be written.
        """
        if per_class < 1:
            raise UsageError(f"{per_class} images per class: expected at least 1", code="usage-per-class")
        target = Path(path).expanduser()
        content = io.BytesIO()
        draw_sheet(self.preview, per_class).save(content, format="PNG")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write contact sheet {target}: {error.strerror}", code="run-write") from None
        write_atomically(target, content.getvalue())
        return target


def look(
    source: SourceLike,
    settings: DataSettings,
    *,
    data_root: str | Path | None = None,
    skip_broken: bool = False,
    cache_dir: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> SourceSummary:
    """Read a source like `prepare`, but report errors instead of raising them.

    Raises:
        DataError: when the source cannot be opened or read.
        UsageError: for an invalid data root.
    """
    opened = open_source(source, settings, data_root=data_root)
    read = partial(
        read_store,
        opened,
        wanted_input=settings.input,
        fit=settings.fit,
        cache_dir=cache_dir,
        workers=workers,
        progress=progress,
    )
    store = read(value_range=settings.fixed_range)
    # A run finds the range on its training images, which depend on its seed; here all are used.
    train = np.arange(len(store.labels[_main_split(store)]))
    found = None if settings.fixed_range else find_range(store.facts[_main_split(store)], train)
    store = store if found is None else read(value_range=found)
    counts = {split: np.bincount(labels, minlength=len(store.classes)) for split, labels in store.labels.items()}
    sizes = np.concatenate([facts.sizes for facts in store.facts.values()])
    main = counts[_main_split(store)]
    present = main[main > 0]
    problems = [*opened.problems, *find_problems(store, skip_broken=skip_broken, folds=0)]
    training = range_problems(store, train, is_set=settings.fixed_range is not None)
    is_grouped = "train" in store.groups.numbers and not any(problem.severity == "error" for problem in problems)
    grouping = plan_splits(store, settings, seed=0).problems if is_grouped else ()
    height, width, channels = store.shape
    return SourceSummary(
        name=store.name,
        input=InputSpec(height=height, width=width, channels=channels, fit=store.fit, range=store.range),
        classes=store.classes,
        counts={split: dict(zip(store.classes, count.tolist(), strict=True)) for split, count in counts.items()},
        heights=_spread(sizes[:, 0]),
        widths=_spread(sizes[:, 1]),
        distinct_sizes=len(np.unique(sizes, axis=0)),
        modes=store.modes,
        gray_images=sum(int(facts.gray.sum()) for facts in store.facts.values()),
        balance=float(present.max() / present.min()) if len(present) else 0.0,
        problems=(*problems, *grouping, *training),
        preview=_preview(store),
    )


def _spread(values: np.ndarray[Any, np.dtype[np.int32]]) -> tuple[int, float, int]:
    if not len(values):
        return (0, 0.0, 0)
    return (int(values.min()), float(np.median(values)), int(values.max()))


def _main_split(store: Store) -> Split:
    return "train" if "train" in store.labels else next(iter(store.labels))


def _preview(store: Store) -> ImageSet:
    """Images of each class, evenly spaced over the split."""
    split = _main_split(store)
    labels = store.labels[split]
    rows = []
    for label in range(len(store.classes)):
        members = np.flatnonzero(labels == label)
        count = min(_PREVIEW_IMAGES, len(members))
        rows += [members[place * len(members) // count] for place in range(count)]
    chosen = np.array(rows, dtype=np.int64)
    return ImageSet(
        images=store.images[split][chosen],
        labels=labels[chosen],
        classes=store.classes,
        names=[store.names[split][row] for row in rows],
    )
