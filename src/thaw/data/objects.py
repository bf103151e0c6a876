"""Data in memory: arrays, lists of paths, data frames, data sets of torch and of the library `datasets`."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from thaw.data.arrays import array_source, check_groups, check_labels, class_names, split_key, whole_label
from thaw.data.catalog import SPLIT_NAMES, SPLITS, Source, Split
from thaw.data.decode import UnreadableImageError, decode_pillow
from thaw.data.list_files import Columns
from thaw.data.lists import columns_source
from thaw.data.problems import Problem
from thaw.data.scaling import Values
from thaw.data.settings import DataSettings
from thaw.data.tables import ROWS_A_BATCH, Opener, reading, reading_table, table_catalog
from thaw.data.walk import file_state
from thaw.errors import DataError
from thaw.quoting import given, listed, shown

if TYPE_CHECKING:
    import pyarrow as pa

_EXPECTED = (
    "expected (images, labels), (paths, labels), a data frame, a data set with items (image, label), "
    "or a mapping from train, validation and test to these"
)
_ITEM = "expected (image, label) or (image, label, group), or a mapping with image and label"
_IMAGE_KEYS = ("image", "images", "img", "pixel_values")
_LABEL_KEYS = ("label", "labels", "target", "class")
_MOST_WRAPPED = 20


def memory_source(data: Any, settings: DataSettings) -> Source:
    """A source of data in memory.

    Args:
        data: `(images, labels)` or `(paths, labels)`, optionally with groups as a third entry; a pandas or polars data
            frame with the columns of a CSV file; a map-style torch data set with items (image, label); a
            `datasets.Dataset`; or a mapping from split names to these, all of one kind, with optional class names
            under "classes". Each item of a torch data set is read once, in order.
        settings: columns, groups and file pattern.

    Raises:
        DataError: for anything else.
    """
    if isinstance(data, Source):
        return data
    if _is_frame(data):
        return columns_source(_frame_columns(data), settings, where="the data frame", name="frame", base=Path())
    parts = dict(data) if isinstance(data, Mapping) else {"train": data}
    classes = parts.pop("classes", None)
    kinds = {_kind(part) for part in parts.values()}
    if len(kinds) > 1:
        raise DataError(f"the splits have several types ({', '.join(sorted(kinds))}): expected one", code="data-arrays")
    kind = kinds.pop() if kinds else "arrays"
    if kind == "stream":
        raise DataError(f"{type(data).__name__} has no length or cannot be indexed: {_EXPECTED}", code="data-arrays")
    if kind == "rows":
        return _rows_source(parts, settings, is_mapping=isinstance(data, Mapping))
    if kind == "arrays":
        return array_source(parts if classes is None else {**parts, "classes": classes}, settings)
    names = class_names(classes)
    splits: dict[Split, Any] = {}
    for key, part in parts.items():
        splits[split_key(key, splits)] = part
    if kind == "paths":
        return _paths_source(splits, settings, names)
    return _items_source(splits, settings, names)


def _kind(part: Any) -> str:
    if _module(part) == "datasets":
        return "rows" if hasattr(part, "features") and hasattr(part, "__len__") else "stream"
    if isinstance(part, Sequence) and len(part) in (2, 3) and _are_paths(part[0]):
        return "paths"
    if isinstance(part, Sequence) and len(part) in (2, 3) and _are_pictures(part[0]):
        return "items"
    if isinstance(part, Sequence | Mapping | np.ndarray | int | float | None):
        return "arrays"
    if hasattr(part, "__getitem__") and hasattr(part, "__len__"):
        return "items"
    return "stream" if hasattr(part, "__iter__") else "arrays"


def _module(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _is_frame(data: Any) -> bool:
    """Whether `data` is a data frame of pandas, polars or a similar library."""
    return not isinstance(data, Mapping) and hasattr(data, "columns") and hasattr(data, "dtypes")


def _are_paths(value: Any) -> bool:
    if isinstance(value, str | bytes) or not hasattr(value, "__len__") or not hasattr(value, "__iter__"):
        return False
    if isinstance(value, np.ndarray) and (value.ndim != 1 or value.dtype.kind not in "UO"):
        return False
    return bool(len(value)) and all(isinstance(item, str | os.PathLike) for item in value)


def _are_pictures(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(item, Image.Image) for item in value)


def _frame_columns(frame: Any) -> Columns:
    columns: Columns = {}
    for name in frame.columns:
        column = frame[name]
        values = (
            column.tolist() if hasattr(column, "tolist") else column.to_list() if hasattr(column, "to_list") else None
        )
        if values is None or str(name) in columns:
            raise DataError(f"the data frame has two columns {shown(str(name))}: rename one", code="data-columns")
        columns[str(name)] = [_cell(value, f"{name}[{row}]") for row, value in enumerate(values)]
    if not columns or not next(iter(columns.values())):
        raise DataError("the data frame has no rows: expected one row per image", code="data-empty")
    return columns


def _cell(value: Any, where: str) -> Any:
    """None for NA and NaT of pandas, which do not compare equal to anything; pictures losslessly encoded."""
    if isinstance(value, Image.Image) or (isinstance(value, np.ndarray) and value.ndim > 1):
        return _encoded(_pixels(value, where))
    return None if type(value).__name__ in {"NAType", "NaTType"} else value


def _paths_source(splits: Mapping[Split, Any], settings: DataSettings, classes: Sequence[str] | None) -> Source:
    """Paths and labels; relative paths are relative to the current folder."""
    columns: Columns = {"image": [], "label": [], "split": [], "group": []}
    for split, part in splits.items():
        labels, groups = check_labels(part[1], split), check_groups(part, split)
        if len(part[0]) != len(labels):
            message = (
                f"the {split} split has {len(part[0])} paths and {len(labels)} labels: expected one label per path"
            )
            raise DataError(message, code="data-arrays")
        _extend(columns, split, [os.fspath(path) for path in part[0]], labels, groups)
    return _joined_source(columns, settings, classes, where="the list of paths", name="paths")


def _extend(
    columns: Columns, split: Split, images: Sequence[object], labels: Sequence[object], groups: Sequence[object] | None
) -> None:
    columns["image"] += images
    columns["label"] += labels
    columns["split"] += [split] * len(images)
    columns["group"] += [None] * len(images) if groups is None else groups


def _joined_source(
    columns: Columns, settings: DataSettings, classes: Sequence[str] | None, *, where: str, name: str
) -> Source:
    """A source of the columns image, label, split and group."""
    grouped = any(group is not None for group in columns["group"])
    if not grouped:
        del columns["group"]
    by = "group" if grouped and not settings.group_by else settings.group_by
    chosen = replace(settings, image_column="image", label_column="label", split_column="split", group_by=by)
    return columns_source(columns, chosen, where=where, name=name, base=Path(), declared=classes)


@dataclass(frozen=True)
class _RowsTable:
    """A `datasets.Dataset`, read in its stored form. The library need not be installed here."""

    rows: Any
    schema: pa.Schema

    def column(self, name: str) -> list[object]:
        return [value for part in self._arrays(name, 10_000) for value in part.to_pylist()]

    def parts(self, name: str) -> Iterator[tuple[Opener, pa.Array]]:
        for array in self._arrays(name, ROWS_A_BATCH):
            # The table is the caller's own, so the files that it names are opened.
            yield str, array

    def _arrays(self, name: str, rows: int) -> Iterator[pa.Array]:
        with reading_table("the data set cannot be read"):
            for table in self.rows.select_columns([name]).with_format("arrow").iter(batch_size=rows):
                yield table.column(0).combine_chunks()


def _rows_source(parts: Mapping[str, Any], settings: DataSettings, *, is_mapping: bool) -> Source:
    """Splits of the library `datasets`."""
    tables: dict[Split, _RowsTable] = {}
    unused = []
    for key, rows in parts.items():
        split = SPLIT_NAMES.get(str(key).lower())
        if split is None or split in tables:
            unused.append(str(key))
        else:
            tables[split] = _RowsTable(rows, rows.features.arrow_schema)
    if not tables:
        message = f"the data set has the splits {listed(unused)}: expected train, validation or test"
        raise DataError(message, code="data-split")
    message = "splits other than train, validation and test are ignored"
    problems = [Problem("unused", "warning", message, tuple(unused))] if unused and is_mapping else []
    ordered = {split: tables[split] for split in SPLITS if split in tables}
    digest = hashlib.sha256()
    for split, table in ordered.items():
        for column in table.schema.names:
            digest.update(f"{split}:{column}:".encode("utf-8", "backslashreplace"))
            for _, part in table.parts(column):
                _feed(digest, part.to_pylist())
    facts = {"rows": digest.hexdigest(), "reading": reading(settings)}
    read = partial(table_catalog, "the data set", ordered, settings, problems)
    return Source(name="dataset", facts=facts, read=read)


def _feed(digest: Any, values: Iterable[Any]) -> None:
    """Add everything that determines a column: content, or path, size and modification time of files."""
    for value in values:
        if isinstance(value, dict):
            _feed(digest, value.values())
        elif isinstance(value, bytes):
            digest.update(b"b" + hashlib.sha256(value).digest())
        else:
            digest.update(repr(value).encode("utf-8", "backslashreplace"))
            if isinstance(value, str) and os.path.sep in value:
                digest.update(repr(file_state(value)).encode("utf-8", "backslashreplace"))


def _items_source(splits: Mapping[Split, Any], settings: DataSettings, classes: Sequence[str] | None) -> Source:
    """Data sets with items: arrays if all images have one size, else losslessly encoded images."""
    columns: Columns = {"image": [], "label": [], "split": [], "group": []}
    for split, part in splits.items():
        if isinstance(part, Sequence):
            labels, groups = check_labels(part[1], split), check_groups(part, split)
            if len(part[0]) != len(labels):
                counts = f"{len(part[0])} images and {len(labels)} labels"
                raise DataError(f"the {split} split has {counts}: expected one label per image", code="data-arrays")
            images = [_pixels(image, f"{split}[{row}]") for row, image in enumerate(part[0])]
        else:
            classes = classes if classes is not None else _declared(part)
            images, labels, groups = _read_items(part, split)
        _extend(columns, split, images, labels, groups)
    if not columns["image"]:
        raise DataError(f"the data set has no items: {_EXPECTED}", code="data-empty")
    images = [image for image in columns["image"] if isinstance(image, np.ndarray)]
    if len({image.dtype for image in images}) > 1:
        message = "some images have 8 bits per channel and some 16: expected one depth; convert them with astype"
        raise DataError(message, code="data-arrays")
    if len({image.shape for image in images}) == 1:
        return array_source(_stacked(columns, classes), settings)
    columns["image"] = [_encoded(image) for image in columns["image"]]
    return _joined_source(columns, settings, classes, where="the data set", name="arrays")


def _stacked(columns: Columns, classes: Sequence[str] | None) -> dict[str, Any]:
    parts: dict[str, Any] = {} if classes is None else {"classes": list(classes)}
    for split in dict.fromkeys(map(str, columns["split"])):
        rows = [row for row, name in enumerate(columns["split"]) if name == split]
        groups = [columns["group"][row] for row in rows]
        labels = np.array([columns["label"][row] for row in rows], dtype=object)
        images = np.stack([np.asarray(columns["image"][row]) for row in rows])
        parts[split] = (
            (images, labels, np.array(groups, dtype=object))
            if any(g is not None for g in groups)
            else (
                images,
                labels,
            )
        )
    return parts


def _encoded(pixels: Any) -> bytes:
    """Pixels uint8 or uint16 [H, W, 1 or 3] as a PNG file; 16-bit color, which Pillow does not write, as a PPM file."""
    if pixels.dtype != np.uint8 and pixels.shape[2] == 3:
        height, width, _ = pixels.shape
        samples: bytes = pixels.astype(">u2").tobytes()
        return f"P6\n{width} {height}\n65535\n".encode() + samples
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _declared(data: Any) -> list[str] | None:
    """Class names of a data set, or of the data set that it wraps (`Subset.dataset`)."""
    for _ in range(_MOST_WRAPPED):
        names = getattr(data, "classes", None)
        if isinstance(names, Sequence) and not isinstance(names, str) and all(isinstance(n, str) for n in names):
            return class_names(list(names))
        inner = getattr(data, "dataset", None)
        several = getattr(data, "datasets", None)
        data = inner if inner is not None else several[0] if isinstance(several, Sequence) and several else None
        if data is None:
            return None
    return None


def _read_items(data: Any, split: Split) -> tuple[list[Any], list[object], list[object] | None]:
    """Every item of a map-style data set, once."""
    images: list[Any] = []
    labels: list[object] = []
    groups: list[object] = []
    for row in range(len(data)):
        where = f"{split}[{row}]"
        try:
            item = data[row]
        # The code of the caller may raise anything.
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise DataError(f"item {where} of the data set cannot be read ({what})", code="data-unreadable") from error
        image, label, group = _parts_of(item, where)
        images.append(_pixels(image, where))
        labels.append(_label(label, where))
        groups.append(group)
    return images, labels, groups if any(group is not None for group in groups) else None


def _parts_of(item: Any, where: str) -> tuple[Any, Any, object]:
    if isinstance(item, Mapping):
        image = next((item[key] for key in _IMAGE_KEYS if key in item), None)
        label = next((item[key] for key in _LABEL_KEYS if key in item), None)
        return image, label, _scalar(item.get("group"))
    if not isinstance(item, tuple | list) or len(item) not in (2, 3):
        raise DataError(f"item {where} of the data set is {type(item).__name__}: {_ITEM}", code="data-arrays")
    return item[0], item[1], _scalar(item[2]) if len(item) == 3 else None


def _scalar(value: Any) -> Any:
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _label(value: Any, where: str) -> object:
    label = _scalar(value)
    if getattr(label, "shape", None) == (1,):
        label = label.item()
    label = whole_label(label)
    if label is not None and not isinstance(label, int | str):
        message = f"item {where} of the data set has the label {given(label)}: expected an integer or a string"
        raise DataError(message, code="data-label")
    return label


def _pixels(image: Any, where: str) -> Values:
    """uint8 or uint16 [H, W, 1 or 3] from a PIL image, an array [H, W] or [H, W, C], or a tensor [C, H, W].

    Floats must lie in 0..1, as from torchvision's ToTensor, and are rounded to the nearest byte.
    """
    if isinstance(image, Image.Image):
        try:
            return decode_pillow(image).pixels
        except UnreadableImageError as error:
            raise DataError(f"image {where} cannot be read ({error})", code="data-unreadable") from None
    is_tensor = hasattr(image, "detach") and hasattr(image, "cpu")
    try:
        pixels = np.asarray(image.detach().cpu() if is_tensor else image)
    except (TypeError, ValueError, RuntimeError):
        pixels = np.zeros((), dtype=object)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    channels_first = pixels.ndim == 3 and pixels.shape[0] in (1, 3) and (is_tensor or pixels.shape[2] not in (1, 3))
    if channels_first:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape or pixels.dtype.kind not in "uf":
        kind = f"{pixels.dtype} {list(pixels.shape)}" if pixels.ndim else type(image).__name__
        raise DataError(
            f"image {where} is {kind}: expected a PIL image, uint8 [H, W] or [H, W, 1 or 3], or a tensor "
            "[1 or 3, H, W]",
            code="data-arrays",
        )
    if pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if not (0 <= low and high <= 1):
            raise DataError(
                f"image {where} has floats from {low:.4g} to {high:.4g}: expected 0 to 1; remove Normalize from the "
                "transform of the data set",
                code="data-arrays",
            )
        pixels = np.floor(pixels.astype(np.float64) * 255 + 0.5).astype(np.uint8)
    if pixels.dtype not in (np.uint8, np.uint16):
        message = f"image {where} is {pixels.dtype}: expected uint8 or uint16, or floats from 0 to 1"
        raise DataError(message, code="data-arrays")
    return np.ascontiguousarray(pixels)
