"""The runtimes of this machine that run exported files, and how each is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from thaw.errors import ModelFileError
from thaw.evidence.layers import Runner
from thaw.evidence.run_c import HostCRunner
from thaw.evidence.run_litert import LiteRtRunner
from thaw.evidence.run_onnx import OnnxRunner
from thaw.export.card import Precision
from thaw.export.folder import ExportedTarget
from thaw.graph.graph import Graph


class TimedRunner(Runner, Protocol):
    """A runner that can also be timed."""

    def predict_one(self, image: npt.NDArray[np.uint8]) -> Callable[[], object]:
        """A function that runs one inference of uint8 [H, W, C], already prepared."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One way to run an exported file.

    Attributes:
        format: "onnx", "litert" or "c".
        precision: "float" or "int8".
        name: as it is shown.
        is_exact: whether every byte must equal the reference interpreter's.
        is_timed: whether `thaw bench` times it.
    """

    format: str
    precision: Precision
    name: str
    is_exact: bool = False
    is_timed: bool = True


LITERT_REFERENCE = Runtime(
    format="litert", precision="int8", name="LiteRT, reference kernels", is_exact=True, is_timed=False
)
C_HOST = Runtime(format="c", precision="int8", name="C on this machine", is_exact=True)
RUNTIMES = (
    Runtime(format="onnx", precision="float", name="onnxruntime"),
    Runtime(format="onnx", precision="int8", name="onnxruntime"),
    Runtime(format="litert", precision="float", name="LiteRT, XNNPACK"),
    LITERT_REFERENCE,
    Runtime(format="litert", precision="int8", name="LiteRT, XNNPACK"),
    C_HOST,
)
_PACKAGES = ("onnx", "onnxruntime", "ai-edge-litert")


def open_runner(runtime: Runtime, exported: ExportedTarget, graph: Graph, *, is_strict: bool = True) -> TimedRunner:
    """An exported file, opened in a runtime on one thread.

    Args:
        runtime: which one.
        exported: the export of its format.
        graph: the graph that the file was made from.
        is_strict: whether the C must compile without a warning.

    Raises:
        MissingDependencyError: naming the missing package.
        ModelFileError: when the file is not there or cannot be used.
    """
    if runtime.format == "c":
        return HostCRunner(exported.files, graph, is_strict=is_strict)
    if runtime.format == "onnx":
        return OnnxRunner(_file(exported, f"model-{runtime.precision}.onnx"), threads=1)
    model = _file(exported, f"model-{runtime.precision}.tflite")
    return LiteRtRunner(model, reference=runtime == LITERT_REFERENCE, threads=1)


def close_runner(runner: Any) -> None:
    """Remove the files of a runner, if it has any."""
    close = getattr(runner, "close", None)
    if close is not None:
        close()


def runtime_versions() -> Mapping[str, str | None]:
    """Versions of the packages that run exported files; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _file(exported: ExportedTarget, name: str) -> bytes:
    if name not in exported.files:
        raise ModelFileError(f"the {exported.target} export has no {name}\nexport it again with thaw export")
    return exported.files[name]
