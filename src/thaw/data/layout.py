"""Which folders are splits and which are classes; suggests another folder if neither fits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from thaw.data.catalog import SPLIT_NAMES, Split, natural_key
from thaw.data.problems import Problem
from thaw.data.walk import is_hidden
from thaw.errors import DataError
from thaw.quoting import encodable, shown

# Words in names of folders that hold a part of a data set instead of a class.
_PART_WORDS = frozenset(
    {*SPLIT_NAMES, "learn", "learning", "eval", "evaluation", "dev", "holdout", "heldout", "unseen"}
)
_NUMBERED_PART = re.compile(r"(?:fold|part|set|split|batch|subset)[_-]?[0-9]+")

# Folders next to a data set in a repository, whose pictures illustrate its documentation.
_PAGE_FOLDERS = frozenset(
    {"asset", "assets", "app", "demo", "demos", "doc", "docs", "example", "examples", "figs", "figure", "figures"}
    | {"image", "images", "img", "imgs", "media", "notebook", "notebooks", "output", "outputs", "pics", "pictures"}
    | {"plot", "plots", "report", "reports", "result", "results", "sample", "samples", "screenshot", "screenshots"}
    | {"src", "static", "template", "templates", "test_images", "web", "website"}
)

_MOST_OF_ALL = 0.9
# Fewer cannot be split into training, validation and test images.
_FEWEST_OF_A_CLASS = 3


@dataclass(frozen=True)
class Layout:
    """Files by split and class, all class folders (also those without images), and problems."""

    files: dict[Split, list[tuple[str, str]]]  # (path, class folder)
    classes: list[str]
    problems: list[Problem]


@dataclass(frozen=True)
class FolderTree:
    """Folders with their subfolders and numbers of images; the root is "".

    Attributes:
        below: subfolders that are not hidden, naturally sorted.
        direct: number of images in the folder itself.
        total: number of images in the folder and all its subfolders.
        other: number of files in these that are not images.
    """

    below: Mapping[str, list[str]]
    direct: Counter[str]
    total: Counter[str]
    other: Counter[str]

    @classmethod
    def of(cls, images: Iterable[str], others: Iterable[str], folders: Iterable[str]) -> FolderTree:
        """Build the tree from relative paths, without hidden folders."""
        below: dict[str, list[str]] = {}
        for folder in folders:
            if not is_hidden(folder):
                below.setdefault(folder.rpartition("/")[0], []).append(folder)
        direct: Counter[str] = Counter()
        total: Counter[str] = Counter()
        other: Counter[str] = Counter()
        for path in images:
            direct[path.rpartition("/")[0]] += 1
            total.update(_above(path))
        for path in others:
            other.update(_above(path))
        return cls(below, direct, total, other)

    def holding(self, folder: str) -> list[str]:
        """The subfolders that hold images, at any depth."""
        return [name for name in self.below.get(folder, []) if self.total[name]]

    def inner(self, folder: str) -> str:
        """The first folder that is more than a wrapper: skips folders that hold a single folder and no image."""
        while not self.direct[folder] and len(self.holding(folder)) == 1:
            folder = self.holding(folder)[0]
        return folder

    def holds_classes(self, folder: str) -> bool:
        """Whether at least two subfolders hold images."""
        return len(self.holding(folder)) > 1


def _above(path: str) -> Iterator[str]:
    """All folders above a path, up to "" for the root."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def last_part(path: str) -> str:
    """The last part of a path."""
    return path.rpartition("/")[2]


def find_layout(where: str, images: Sequence[str], others: Iterable[str], folders: Iterable[str]) -> Layout:
    """Sort images into splits and classes.

    The layouts are CLASS/.../IMAGE, SPLIT/CLASS/.../IMAGE and CLASS/SPLIT/IMAGE. A folder that only wraps the content
    of a split folder is skipped.

    Args:
        where: the root, for messages.
        images: relative paths.
        others: relative paths of the other files.
        folders: relative paths of all folders.

    Raises:
        DataError: if another folder was probably meant, or the layout is ambiguous.
    """
    tree = FolderTree.of(images, others, folders)
    splits, unused = _split_folders(tree)
    if splits:
        return _sorted_in(tree, images, _class_places(tree, splits), unused)
    if _splits_lie_in_classes(tree):
        return _sorted_by_inner_splits(tree, images)
    warnings = _check_root(where, tree)
    layout = _sorted_in(tree, images, {"": "train"}, [])
    return Layout(layout.files, layout.classes, [*warnings, *layout.problems])


def has_class_folders(images: Iterable[str], folders: Iterable[str]) -> bool:
    """Whether images lie in several folders that could be classes and are not the splits of one class."""
    tree = FolderTree.of(images, [], folders)
    places = [tree.inner("")]
    if all(last_part(folder).lower() in SPLIT_NAMES for folder in tree.holding(places[0])):
        places = [tree.inner(folder) for folder in tree.holding(places[0])]
    return any(tree.holds_classes(place) for place in places)


def _split_folders(tree: FolderTree) -> tuple[dict[str, Split], list[str]]:
    """Split folders below the root, and the other folders there; empty if there are no splits."""
    top = tree.below.get("", [])
    named = [folder for folder in top if folder.lower() in SPLIT_NAMES and folder in tree.below]
    if named and (len(named) == len(top) or any(SPLIT_NAMES[folder.lower()] == "train" for folder in named)):
        splits: dict[str, Split] = {}
        for folder in named:
            if SPLIT_NAMES[folder.lower()] in splits.values():
                name = SPLIT_NAMES[folder.lower()]
                raise DataError(f"two folders for the {name} split ({shown(folder)}): expected one", code="data-split")
            splits[folder] = SPLIT_NAMES[folder.lower()]
        return splits, [folder for folder in top if folder not in named]
    # "training_set" and "test_set", or "seg_train" and "seg_test", are splits only if they occur together.
    loose = {
        folder: split for folder in tree.holding("") if not tree.direct[folder] and (split := _loose_split(folder))
    }
    if "train" in loose.values() and 1 < len(loose) == len(set(loose.values())):
        return loose, [folder for folder in top if folder not in loose]
    return {}, []


def _class_places(tree: FolderTree, splits: Mapping[str, Split]) -> dict[str, Split]:
    """The folder that holds the class folders of each split: the split folder, or a wrapper in it."""
    inner = {folder: tree.inner(folder) for folder in splits}
    plain = {last_part(name) for folder in splits if inner[folder] == folder for name in tree.holding(folder)}
    return {
        inner[folder]
        if tree.holds_classes(inner[folder]) and not plain & set(inner[folder].split("/"))
        else folder: split
        for folder, split in splits.items()
    }


def _loose_split(name: str) -> Split | None:
    words = re.split(r"[^a-z]+", name.lower())
    found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def _splits_lie_in_classes(tree: FolderTree) -> bool:
    """Whether every class folder holds only split folders."""
    classes = tree.holding("")
    inner = [last_part(name).lower() for folder in classes for name in tree.holding(folder)]
    return (
        bool(classes)
        and not any(tree.direct[folder] for folder in classes)
        and all(name in SPLIT_NAMES for name in inner)
        and not any(tree.holds_classes(name) for folder in classes for name in tree.holding(folder))
        and any(SPLIT_NAMES[name] == "train" for name in inner)
    )


def _sorted_by_inner_splits(tree: FolderTree, images: Iterable[str]) -> Layout:
    """CLASS/SPLIT/IMAGE."""
    files: dict[Split, list[tuple[str, str]]] = {}
    outside = []
    for path in images:
        parts = path.split("/")
        if len(parts) < 3:
            outside.append(path)
        else:
            files.setdefault(SPLIT_NAMES[parts[1].lower()], []).append((path, parts[0]))
    message = "the folders in the class folders are splits (CLASS/SPLIT/IMAGE)"
    problems = [Problem("layout", "note", message), *_outside(outside)]
    classes, unused = _class_folders(tree, [""])
    return Layout(files, classes, [*problems, *unused])


def _check_root(where: str, tree: FolderTree) -> list[Problem]:
    """Refuse a root whose class folders lie deeper, with the path to use; a warning if that is uncertain."""
    top = tree.holding("")
    if not top:
        return []
    largest = max(top, key=lambda folder: tree.total[folder])
    meant = tree.inner(largest)
    if tree.direct[largest] or not tree.holds_classes(meant):
        return []
    others = [folder for folder in top if folder != largest]
    path = f"{where}/{encodable(meant)}"
    if all(folder.lower() in _PAGE_FOLDERS for folder in others):
        names = ", ".join(encodable(last_part(name)) for name in tree.holding(meant)[:3])
        raise DataError(
            f"{where} has no class folders, but {encodable(meant)} has ({names}{_more(tree, meant)}): "
            f"did you mean {path}?",
            code="data-layout",
        )
    beside = [folder for folder in others if tree.total[folder]]
    is_most = tree.total[largest] >= _MOST_OF_ALL * tree.total[""]
    are_few = all(tree.total[folder] < _FEWEST_OF_A_CLASS for folder in beside)
    if beside and (is_most or are_few) and all(tree.direct[folder] for folder in beside):
        message = f"nearly all images lie in subfolders of {encodable(largest)}: did you mean {path}?"
        return [Problem("layout", "warning", message)]
    return []


def _more(tree: FolderTree, folder: str) -> str:
    return ", ..." if len(tree.holding(folder)) > 3 else ""


def _sorted_in(tree: FolderTree, images: Iterable[str], places: Mapping[str, Split], others: Sequence[str]) -> Layout:
    """Assign each image a split, by the folder that it lies in, and a class, by the folder below that."""
    files: dict[Split, list[tuple[str, str]]] = {split: [] for split in places.values()}
    outside = []
    for path in images:
        above = next((place for place in places if not place or path.startswith(f"{place}/")), None)
        if above is not None:
            name, below, _ = path[len(above) + 1 if above else 0 :].partition("/")
            if below:
                files[places[above]].append((path, name))
                continue
        elif any(path.startswith(f"{folder}/") for folder in others):
            continue
        outside.append(path)
    message = "folders next to the split folders are ignored"
    problems = [Problem("unused", "warning", message, tuple(map(encodable, others)))] if others else []
    problems += [*_nested(tree, list(places)), *_outside(outside)]
    classes, unused = _class_folders(tree, list(places))
    return Layout(files, classes, [*problems, *unused])


def _outside(paths: Sequence[str]) -> list[Problem]:
    if not paths:
        return []
    message = f"{len(paths):,} image(s) outside the class folders have no class and are ignored"
    return [Problem("unused", "warning", message, tuple(encodable(path) for path in paths))]


def _class_folders(tree: FolderTree, places: Collection[str]) -> tuple[list[str], list[Problem]]:
    """Class names, sorted; folders that hold files but no images are reported and are not classes."""
    classes: set[str] = set()
    without: list[str] = []
    for place in places:
        for folder in tree.below.get(place, []):
            if tree.total[folder] or not tree.other[folder]:
                classes.add(last_part(folder))
            else:
                without.append(folder)
    names = tuple(encodable(folder) for folder in without if last_part(folder) not in classes)
    message = "folders without images are ignored"
    problems = [Problem("unused", "warning", message, names)] if names else []
    return sorted(classes, key=natural_key), problems


def _nested(tree: FolderTree, places: Sequence[str]) -> list[Problem]:
    """Report class folders that hold images in subfolders only; an error if they look like parts of a data set."""
    classes = [folder for place in places for folder in tree.holding(place)]
    nested = [folder for folder in classes if not tree.direct[folder]]
    if not nested:
        return []
    names = tuple(encodable(folder) for folder in nested)
    common = set.intersection(*({last_part(name) for name in tree.holding(folder)} for folder in nested))
    if len(nested) == len(classes) > 1 and len(common) > 1:
        inner = ", ".join(encodable(name) for name in sorted(common, key=natural_key)[:3])
        if any(_is_part(last_part(folder)) for folder in nested):
            message = (
                "folders with images in subfolders only: expected CLASS/IMAGE, or SPLIT/CLASS/IMAGE "
                "with split folders named train, validation (or val) and test"
            )
            return [Problem("layout", "error", message, names)]
        message = f"class folders that all have the subfolders {inner}: if those are the classes, move them up"
        return [Problem("layout", "warning", message, names)]
    return [Problem("layout", "note", "images in subfolders belong to the class folder above them", names)]


def _is_part(name: str) -> bool:
    folded = name.lower()
    return bool(_PART_WORDS.intersection(re.split(r"[^a-z]+", folded))) or bool(_NUMBERED_PART.fullmatch(folded))
