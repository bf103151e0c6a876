"""Writing a trained network in formats that run on devices: what `thaw export` does."""

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
    """What is exported, verified and timed: a trained network as graphs, with what its files say about it."""

    @property
    def name(self) -> str:
        """Names in the C are made from it."""

    @property
    def input_spec(self) -> InputSpec:
        """How an image becomes its input."""

    def graph(self, precision: Precision) -> Graph:
        """The network in one precision, with one output: the scores."""

    def card(self) -> ModelCard:
        """What the exported files say about it."""

    def predict_one(self, image: npt.NDArray[np.uint8]) -> Callable[[], object]:
        """A function that runs one inference of uint8 [H, W, C] in torch, for timing."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Export:
    """What an export wrote.

    Attributes:
        out: the folder.
        formats: what was written, in the order that was asked for.
        missing: format -> why it could not be written: the package that it needs.
        memory: of an int8 network: "arena_bytes" and "constant_bytes" of the C.
    """

    out: Path
    formats: tuple[ExportedFormat, ...]
    missing: Mapping[str, str]
    memory: Mapping[str, int]

    @property
    def is_complete(self) -> bool:
        """Whether everything that was asked for is there."""
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
        precision: only this one; None for all that a format has.
        prefix: of the names in the C, if the caller chose one.

    Raises:
        UsageError: for an unknown format, one that lacks the precision, or a prefix that is invalid or not needed.
    """
    names = default_formats() if formats is None else list(dict.fromkeys(formats))
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        what = f"unknown format {shown(unknown[0])}" if unknown else "no format was given"
        raise UsageError(f"{what}: expected {', '.join(FORMATS)}")
    chosen = {name: tuple(each for each in FORMATS[name].precisions if precision in (None, each)) for name in names}
    without = [name for name, precisions in chosen.items() if not precisions]
    if without and formats is not None:
        raise UsageError(
            f"format {without[0]} is {FORMATS[without[0]].precisions[0]} only: leave out --{precision}, or the format"
        )
    chosen = {name: precisions for name, precisions in chosen.items() if precisions}
    if prefix is not None:
        check_prefix(prefix)
        if "c" not in chosen:
            raise UsageError("a prefix applies to the names in the C, which is not exported: add c to the formats")
    return chosen


def export(
    model: Deployable, formats: Mapping[str, Sequence[Precision]], out: Path, *, prefix: str | None = None
) -> Export:
    """Write a model.

    Args:
        model: what to write.
        formats: format -> precisions, from `select_formats`.
        out: the folder; every format has a folder in it.
        prefix: what names in the C begin with; made from the model's name by default.

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
    """Export everything if `out` holds no export yet, not even a damaged one; None if it does."""
    if any((out / name / MANIFEST).exists() for name in default_formats()):
        return None
    tell(f"nothing was exported to {out} yet: exporting {', '.join(default_formats())}")
    return export(model, select_formats(None), out)


def _memory(graphs: Mapping[Precision, Graph]) -> dict[str, int]:
    if "int8" not in graphs:
        return {}
    graph = graphs["int8"]
    return {"arena_bytes": plan_memory(graph).arena_bytes, "constant_bytes": constant_bytes(graph)}
