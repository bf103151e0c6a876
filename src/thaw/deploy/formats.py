"""The table of export formats: the exporter of each, and the runtimes that verify it on this machine.

A new format is an exporter in `thaw.export`, a runner in `thaw.evidence`, and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from thaw.errors import ModelFileError
from thaw.evidence.layers import Runner
from thaw.evidence.run_c import HostCRunner
from thaw.evidence.run_litert import LiteRtRunner
from thaw.evidence.run_onnx import OnnxRunner
from thaw.export.card import PRECISIONS, ModelCard, Precision
from thaw.export.to_c import export_c
from thaw.export.to_litert import export_litert
from thaw.export.to_onnx import export_onnx
from thaw.export.to_web import export_web
from thaw.graph.graph import Graph

Files: TypeAlias = Mapping[str, bytes]
Exporter: TypeAlias = Callable[[Mapping[Precision, Graph], ModelCard, str], dict[str, bytes]]
"""Takes the graphs, the card and the prefix of names in C; returns content by file name."""


class OpenRunner(Runner, Protocol):
    """A runner that can be timed and closed."""

    def predict_one(self, image: npt.NDArray[np.uint8]) -> Callable[[], object]:
        """A function that runs inference of one image, uint8 [H, W, C], already prepared."""

    def close(self) -> object:
        """Stop the processes and remove the files."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A way to run an exported file, on one thread.

    Attributes:
        name: display name.
        precision: "float" or "int8".
        open: takes the exported files, the graph, and whether C must compile without a warning; returns a runner.
        is_exact: whether every byte must equal the reference interpreter's.
        is_timed: whether `thaw bench` times it.
    """

    name: str
    precision: Precision
    open: Callable[[Files, Graph, bool], OpenRunner]
    is_exact: bool = False
    is_timed: bool = True


@dataclass(frozen=True, kw_only=True)
class Format:
    """An export format.

    Attributes:
        export: the exporter.
        precisions: supported precisions.
        runtimes: the runtimes that verify and time it.
        packages: packages whose versions are recorded.
        is_default: whether it is exported when the caller names no format.
    """

    export: Exporter
    precisions: tuple[Precision, ...] = PRECISIONS
    runtimes: tuple[Runtime, ...] = ()
    packages: tuple[str, ...] = ()
    is_default: bool = True


def _onnx(precision: Precision) -> Runtime:
    def open_(files: Files, _graph: Graph, _is_strict: bool) -> OnnxRunner:  # noqa: FBT001 (a callback's place)
        return OnnxRunner(_model(files, f"model-{precision}.onnx"))

    return Runtime(name="onnxruntime", precision=precision, open=open_)


def _litert(name: str, precision: Precision, *, is_reference: bool = False) -> Runtime:
    def open_(files: Files, _graph: Graph, _is_strict: bool) -> LiteRtRunner:  # noqa: FBT001 (a callback's place)
        return LiteRtRunner(_model(files, f"model-{precision}.tflite"), reference=is_reference)

    return Runtime(
        name=f"LiteRT, {name}", precision=precision, open=open_, is_exact=is_reference, is_timed=not is_reference
    )


C_HOST = Runtime(
    name="C on this machine",
    precision="int8",
    open=lambda files, graph, is_strict: HostCRunner(files, graph, is_strict=is_strict),
    is_exact=True,
)

FORMATS: Mapping[str, Format] = {
    "onnx": Format(
        export=lambda graphs, card, _: export_onnx(graphs, card),
        runtimes=(_onnx("float"), _onnx("int8")),
        packages=("onnx", "onnxruntime"),
    ),
    "litert": Format(
        export=lambda graphs, card, _: export_litert(graphs, card),
        runtimes=(
            _litert("XNNPACK", "float"),
            _litert("reference kernels", "int8", is_reference=True),
            _litert("XNNPACK", "int8"),
        ),
        packages=("ai-edge-litert",),
    ),
    "c": Format(
        export=lambda graphs, card, prefix: export_c(graphs, card, prefix=prefix),
        precisions=("int8",),
        runtimes=(C_HOST,),
    ),
    # It includes a runtime of 14 MB, so it is exported on request only.
    "web": Format(export=lambda graphs, card, _: export_web(graphs, card), is_default=False),
}


def default_formats() -> list[str]:
    """The formats that run on devices."""
    return [name for name, each in FORMATS.items() if each.is_default]


def runtimes() -> Iterator[tuple[str, Runtime]]:
    """All runtimes, with the names of their formats."""
    for name, each in FORMATS.items():
        for runtime in each.runtimes:
            yield name, runtime


def runtime_versions() -> Mapping[str, str | None]:
    """Versions of the packages that run exported files; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for package in (package for each in FORMATS.values() for package in each.packages):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _model(files: Files, name: str) -> bytes:
    if name not in files:
        raise ModelFileError(f"the export has no {name}\nexport it again with thaw export", code="model-file-export")
    return files[name]
