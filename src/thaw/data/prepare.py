"""Prepare a source for training, evaluation or prediction."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from thaw.data.cache import cache_root, take_rows
from thaw.data.catalog import SPLITS, Source, Split
from thaw.data.checks import LEFT_OUT_KINDS, find_problems, unusable_images
from thaw.data.chunks import join_facts
from thaw.data.groups import NO_GROUPS
from thaw.data.images import ImageSet, InputSpec
from thaw.data.ingest import Progress, read_store
from thaw.data.pattern import PatternError
from thaw.data.problems import Problem, raise_errors
from thaw.data.ranges import find_range, range_problems, use_problems
from thaw.data.settings import DataSettings
from thaw.data.sources import SourceLike, open_source
from thaw.data.spelling import folded
from thaw.data.split_plan import SplitPlan, plan_splits
from thaw.data.splits import Rows
from thaw.data.store import Store
from thaw.errors import DataError, UsageError
from thaw.quoting import shown

_FROM_SOURCE: Mapping[str, Any] = {"origin": "source", "fraction": None, "seed": None}


class SealedTestSet:
    """The test images, which can be opened once."""

    def __init__(self, images: ImageSet) -> None:
        self._images = images
        self._opened = False

    def __len__(self) -> int:
        return len(self._images)

    def __repr__(self) -> str:
        return f"SealedTestSet({len(self):,} images, {'opened' if self._opened else 'sealed'})"

    @property
    def names(self) -> Sequence[str]:
        """The names of the images, available before opening."""
        return self._images.names

    def open(self) -> ImageSet:
        """The images with their labels.

        Raises:
            RuntimeError: on the second call; the test set cannot measure a choice that was made with it.
        """
        if self._opened:
            raise RuntimeError("the test set has already been opened: keep the result of the first call")
        self._opened = True
        return self._images


@dataclass(frozen=True, kw_only=True, repr=False)
class PreparedData:
    """A data set that is ready for training.

    Attributes:
        train: the training images.
        validation: the images for choices during training.
        test: the test images, sealed until the end.
        train_groups: int64 [len(train)]; equal for identical images and images of one group, which folds keep together.
        grouping: None, or "by" (in words) and the number of groups in each split.
        input_spec: the input of the model, with mean and standard deviation of the training images if the settings ask
            for these.
        name: the name of the source, one printable line.
        fingerprint: SHA-256 of classes, input shape, range, prepared pixels and labels in the order and splits of the
            source. It does not depend on the seed, unless the range was found on training images that the seed chose.
        problems: all problems except errors, which are raised.
        splits: for each split "count", "origin" ("source", or "cut" from the training split), and the "fraction" and
            "seed" of the cut, else None.
        is_whole: whether memory-mapped images of the cache are unchanged.
    """

    train: ImageSet
    validation: ImageSet
    test: SealedTestSet
    train_groups: Rows
    grouping: Mapping[str, Any] | None
    input_spec: InputSpec
    name: str
    fingerprint: str
    problems: tuple[Problem, ...]
    splits: Mapping[Split, Mapping[str, Any]]
    is_whole: Callable[[], bool] = lambda: True

    def __repr__(self) -> str:
        counts = f"{len(self.train):,} train, {len(self.validation):,} validation, {len(self.test):,} test"
        return f"PreparedData({self.name!r}, {counts}, {len(self.train.classes)} classes, input {self.input_spec})"

    @property
    def left_out(self) -> tuple[str, ...]:
        """Skipped images that are broken or have no label, with the reason."""
        return tuple(name for problem in self.problems if problem.kind in LEFT_OUT_KINDS for name in problem.names)


def prepare(  # noqa: PLR0913 (independent options, by keyword only)
    source: SourceLike,
    settings: DataSettings,
    *,
    seed: int,
    data_root: str | Path | None = None,
    skip_broken: bool = False,
    cache_dir: str | Path | None = None,
    folds: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> PreparedData:
    """Read and check a source, split it, and measure the training images.

    Args:
        source: a name, path, Hub id or arrays (see `open_source`).
        settings: input, fit, normalization, fractions, columns.
        seed: seed of the splits.
        data_root: a folder in which the known data sets are looked up first.
        skip_broken: skip images that cannot be read or have no label, instead of raising an error.
        cache_dir: the cache folder, instead of the default.
        folds: number of folds that each class must be large enough for; 0 for none.
        workers: number of decoding processes; by default one per core.
        progress: called with the number of decoded images and of all images.

    Raises:
        DataError: with all problems of the data.
        UsageError: for an invalid seed, number of folds or data root.
    """
    _check_numbers(seed, folds)
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
    problems = [*opened.problems, *find_problems(store, skip_broken=skip_broken, folds=folds)]
    raise_errors(store.name, problems)
    plan = plan_splits(store, settings, seed=seed, folds=folds)
    raise_errors(store.name, plan.problems)
    # Labels and splits do not depend on the range, which is found on the training images.
    store = _in_found_range(store, plan.rows["train"], settings, read)
    is_set = settings.fixed_range is not None
    problems += [*plan.problems, *range_problems(store, plan.rows["train"], is_set=is_set)]
    return _prepared_data(store, settings, plan, problems, cache_root(cache_dir))


def _check_numbers(seed: int, folds: int) -> None:
    for what, value in (("seed", seed), ("folds", folds)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise UsageError(f"{what} {shown(value)}: expected an integer", code=f"usage-{what}")
    if folds < 0:
        raise UsageError(f"folds {folds}: expected at least 2, or 0 for none", code="usage-folds")


def _in_found_range(store: Store, train: Rows, settings: DataSettings, read: Callable[..., Store]) -> Store:
    """The store, or the store read again in the range of its 16-bit training images if the settings have none."""
    if settings.fixed_range is not None or (found := find_range(store.facts["train"], train)) is None:
        return store
    scaled = read(value_range=found)
    if scaled.names != store.names:
        raise DataError(f"{scaled.name} changed while it was read: start again", code="data-changed")
    return scaled


def _prepared_data(
    store: Store, settings: DataSettings, plan: SplitPlan, problems: Sequence[Problem], root: Path
) -> PreparedData:
    """The images of each split, and what describes them."""
    rows = plan.rows
    sets = {
        split: _image_set(store, split if split in store.labels else "train", rows[split], root) for split in SPLITS
    }
    return PreparedData(
        train=sets["train"],
        validation=sets["validation"],
        test=SealedTestSet(sets["test"]),
        train_groups=plan.groups[rows["train"]],
        grouping=plan.grouping,
        input_spec=_input_spec(store, settings, rows["train"]),
        name=store.name,
        fingerprint=_fingerprint(store),
        problems=tuple(problems),
        splits={split: {**plan.cut_by.get(split, _FROM_SOURCE), "count": len(rows[split])} for split in SPLITS},
        is_whole=store.is_whole,
    )


def _image_set(store: Store, split: Split, rows: Rows, root: Path) -> ImageSet:
    names = store.names[split]
    return ImageSet(
        images=take_rows(store.images[split], rows, root),
        labels=store.labels[split][rows],
        classes=store.classes,
        names=[names[row] for row in rows.tolist()],
    )


def _input_spec(store: Store, settings: DataSettings, train: Rows) -> InputSpec:
    """The input specification; "standard" statistics are computed from exact integer sums."""
    height, width, channels = store.shape
    input_spec = InputSpec(height=height, width=width, channels=channels, fit=store.fit, range=store.range)
    if settings.normalize == "unit":
        return input_spec
    facts = store.facts["train"]
    count = len(train) * height * width
    mean, deviation = [], []
    for channel in range(channels):
        total = int(facts.sums[train, channel].sum())
        squares = int(facts.squares[train, channel].sum())
        variance = (count * squares - total * total) / (count * count * 255**2)
        mean.append(total / (255 * count))
        # A constant channel is only shifted.
        deviation.append(variance**0.5 if variance > 0 else 1.0)
    return replace(input_spec, mean=tuple(mean), std=tuple(deviation))


def _fingerprint(store: Store) -> str:
    value_range = () if store.range is None else (store.range,)
    digest = hashlib.sha256(json.dumps([store.classes, store.shape, store.fit, *value_range]).encode())
    for split in SPLITS:
        if split in store.labels:
            digest.update(f"{split}:{len(store.labels[split])}:".encode())
            digest.update(np.ascontiguousarray(store.facts[split].prepared).tobytes())
            digest.update(store.labels[split].astype("<i8").tobytes())
            if split in store.groups.numbers:
                digest.update(b"groups:" + _renumbered(store, split).astype("<i8").tobytes())
    return digest.hexdigest()


def _renumbered(store: Store, split: Split) -> Rows:
    """The groups of a split, numbered by first appearance in all splits, so that names do not matter."""
    order = np.concatenate([store.groups.numbers[name] for name in SPLITS if name in store.groups.numbers])
    found, first = np.unique(order, return_index=True)
    rank = np.empty(len(store.groups.names), dtype=np.int64)
    rank[found[np.argsort(first)]] = np.arange(len(found))
    result: Rows = rank[store.groups.numbers[split]]
    return result


def open_image_set(  # noqa: PLR0913 (independent options, by keyword only)
    source: SourceLike,
    input_spec: InputSpec,
    classes: Sequence[str],
    *,
    settings: DataSettings | None = None,
    data_root: str | Path | None = None,
    skip_broken: bool = False,
    cache_dir: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[ImageSet, tuple[Problem, ...]]:
    """The images for the evaluation of a trained model: the test split of the source, or all its images.

    Classes of the source are matched to those of the model by name. Numbers without names are class indices of the
    model, unless they are its class names.

    Args:
        source: as for `prepare`.
        input_spec: the input of the model.
        classes: the class names of the model.
        settings: only the columns are used, and the pattern if it matches.
        data_root: as for `prepare`.
        skip_broken: as for `prepare`.
        cache_dir: as for `prepare`.
        workers: as for `prepare`.
        progress: as for `prepare`.

    Raises:
        DataError: for broken images, a class that the model does not know, or no images.
    """
    chosen = replace(settings if settings is not None else DataSettings(), group_by=NO_GROUPS)
    opened = _open_for_evaluation(source, chosen, data_root)
    store = read_store(
        opened,
        wanted_input=str(input_spec),
        fit=input_spec.fit,
        value_range=input_spec.range,
        cache_dir=cache_dir,
        workers=workers,
        progress=progress,
    )
    used: list[Split] = ["test"] if len(store.labels.get("test", ())) else list(store.labels)
    problems = [*opened.problems, *unusable_images(store, skip_broken=skip_broken)]
    problems += [problem for problem in store.problems if problem.kind not in LEFT_OUT_KINDS]
    if not sum(len(store.labels[split]) for split in used):
        problems.append(Problem("split", "error", "no usable images"))
    labels, unknown = _match_classes(store, used, classes)
    if unknown:
        known = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
        problems.append(Problem("class", "error", f"classes unknown to the model, which knows {known}", unknown))
    raise_errors(store.name, problems)
    images = [store.images[split] for split in used]
    names = [name for split in used for name in store.names[split]]
    problems += use_problems(join_facts([store.facts[split] for split in used]), names, input_spec.range)
    joined = images[0] if len(images) == 1 else np.concatenate(images)
    return ImageSet(images=joined, labels=labels, classes=tuple(classes), names=names), tuple(problems)


def _open_for_evaluation(source: SourceLike, settings: DataSettings, data_root: str | Path | None) -> Source:
    """Open the source; a pattern of the training that matches nothing in it is dropped with a warning."""
    if not settings.pattern:
        return open_source(source, settings, data_root=data_root)
    try:
        opened = open_source(source, settings, data_root=data_root)
        opened.read()
    except PatternError as error:
        opened = open_source(source, replace(settings, pattern=""), data_root=data_root)
        warning = Problem("pattern", "warning", f"all images are used: {error}")
        return replace(opened, problems=(*opened.problems, warning))
    return opened


def _match_classes(store: Store, used: Sequence[Split], classes: Sequence[str]) -> tuple[Rows, tuple[str, ...]]:
    """The labels as class numbers of the model, and the names of unknown classes."""
    labels = np.concatenate([store.labels[split] for split in used])
    index = {name: place for place, name in enumerate(classes)}
    # As in training, names that differ in case or Unicode form are one class, if that is unambiguous.
    alike = Counter(folded(name) for name in classes)
    by_fold = {folded(name): place for name, place in index.items() if alike[folded(name)] == 1}
    index = {name: by_fold[folded(name)] for name in store.classes if folded(name) in by_fold} | index
    present = np.unique(labels).tolist()
    if not store.named and any(store.classes[label] not in index for label in present):
        index = {str(place): place for place in range(len(classes))}
    unknown = tuple(store.classes[label] for label in present if store.classes[label] not in index)
    table = np.array([index.get(name, 0) for name in store.classes], dtype=np.int64)
    return table[labels] if len(labels) else labels, unknown
