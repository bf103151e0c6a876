"""Export of a trained network to formats that run on devices: `thaw export`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from thaw.data.images import InputSpec
from thaw.deploy.formats import FORMATS, default_formats
from thaw.errors import MissingDependencyError, UsageError
from thaw.export.c_names import check_prefix, prefix_of_name
from thaw.export.card import PRECISIONS, ModelCard, Precision
from thaw.export.folder import MANIFEST, ExportedFormat, write_format
from thaw.graph.graph import Graph
from thaw.graph.plan import constant_bytes, plan_memory
from thaw.quoting import shown


class Deployable(Protocol):
    """A trained network as graphs, with the metadata of its files. It can be exported, verified and timed."""

    @property
    def name(self) -> str:
        """The model's name, from which names in the C are derived."""

    @property
    def input_spec(self) -> InputSpec:
        """How an image becomes the network's input."""

    def graph(self, precision: Precision) -> Graph:
        """The network in one precision. Its only output is the scores."""

    def card(self) -> ModelCard:
        """Metadata of the exported files."""

    def predict_one(self, image: npt.NDArray[np.uint8]) -> Callable[[], object]:
        """A function that runs inference of one image, uint8 [H, W, C], in torch, for timing."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Export:
    """The result of an export.

    Attributes:
        out: the folder.
        formats: the written formats, in the requested order.
        missing: format -> why it could not be written: the missing package.
        memory: "arena_bytes" and "constant_bytes" of the int8 C.
    """

    out: Path
    formats: tuple[ExportedFormat, ...]
    missing: Mapping[str, str]
    memory: Mapping[str, int]

    @property
    def is_complete(self) -> bool:
        """Whether all requested formats were written."""
        return not self.missing

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form: the folder and the `export` part of deployment.json."""
        return {"out": str(self.out), **self.record()}

    def record(self) -> dict[str, Any]:
        """The `export` part of deployment.json."""
        return {
            "formats": {each.format: each.as_dict() for each in self.formats},
            "missing": dict(self.missing),
            "memory": dict(self.memory),
        }

    def __repr__(self) -> str:
        written = ", ".join(f"{each.format} ({' and '.join(each.precisions)})" for each in self.formats)
        missing = f"; missing {', '.join(self.missing)}" if self.missing else ""
        return f"Export({written or 'nothing'} in {str(self.out)!r}{missing})"


def select_formats(
    formats: Sequence[str] | None, precision: Precision | None = None, prefix: str | None = None
) -> dict[str, tuple[Precision, ...]]:
    """Format -> precisions to write.

    Args:
        formats: any of "onnx", "litert", "c", "web"; None for all that run on devices.
        precision: only this one; None for all that a format supports.
        prefix: prefix of the names in the C, if the caller chose one.

    Raises:
        UsageError: for an unknown format, one without the precision, or a prefix that is invalid or not needed.
    """
    names = default_formats() if formats is None else list(dict.fromkeys(formats))
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        what = f"unknown format {shown(unknown[0])}" if unknown else "no format was given"
        raise UsageError(f"{what}: expected {', '.join(FORMATS)}", code="usage-formats")
    chosen = {name: tuple(each for each in FORMATS[name].precisions if precision in (None, each)) for name in names}
    without = [name for name, precisions in chosen.items() if not precisions]
    if without and formats is not None:
        raise UsageError(
            f"format {without[0]} is {FORMATS[without[0]].precisions[0]} only: leave out --{precision}, or the format",
            code="usage-formats",
        )
    chosen = {name: precisions for name, precisions in chosen.items() if precisions}
    if prefix is not None:
        check_prefix(prefix)
        if "c" not in chosen:
            raise UsageError(
                "a prefix applies to the names in the C, which is not exported: add c to the formats",
                code="usage-formats",
            )
    return chosen


def export(
    model: Deployable, formats: Mapping[str, Sequence[Precision]], out: Path, *, prefix: str | None = None
) -> Export:
    """Export a model.

    Args:
        model: the model.
        formats: format -> precisions, from `select_formats`.
        out: the folder; every format gets a subfolder.
        prefix: prefix of names in the C; derived from the model's name by default.

    Raises:
        RunError: when the folder cannot be written.
        NotFiniteError: when the float32 network computes NaN or infinity.
    """
    needed = [each for each in PRECISIONS if any(each in precisions for precisions in formats.values())]
    graphs = {each: model.graph(each) for each in needed}
    card = model.card()
    c_prefix = prefix or prefix_of_name(model.name)
    written, missing = [], {}
    for name, precisions in formats.items():
        try:
            files = FORMATS[name].export({each: graphs[each] for each in precisions}, card, c_prefix)
        except MissingDependencyError as error:
            missing[name] = str(error)
            continue
        written.append(write_format(out, name, precisions, files))
    return Export(out=out, formats=tuple(written), missing=missing, memory=_memory(graphs))


def export_if_none(model: Deployable, out: Path, tell: Callable[[str], None]) -> Export | None:
    """Export all default formats if `out` contains no export, not even a damaged one; otherwise return None."""
    if any((out / name / MANIFEST).exists() for name in default_formats()):
        return None
    tell(f"nothing was exported to {out} yet: exporting {', '.join(default_formats())}")
    return export(model, select_formats(None), out)


def _memory(graphs: Mapping[Precision, Graph]) -> dict[str, int]:
    if "int8" not in graphs:
        return {}
    graph = graphs["int8"]
    return {"arena_bytes": plan_memory(graph).arena_bytes, "constant_bytes": constant_bytes(graph)}
