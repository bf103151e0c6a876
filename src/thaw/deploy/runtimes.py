"""Where artifacts run on this machine, what is asked of each, and how each is opened."""

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
        """One inference of uint8 [H, W, C], with everything prepared."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One way to run an artifact.

    Attributes:
        target: "onnx", "litert" or "c".
        precision: "float" or "int8".
        name: as it is shown.
        is_exact: whether every byte must be the reference interpreter's.
        is_timed: whether `thaw bench` times it.
    """

    target: str
    precision: Precision
    name: str
    is_exact: bool = False
    is_timed: bool = True


LITERT_REFERENCE = Runtime(
    target="litert", precision="int8", name="LiteRT, reference kernels", is_exact=True, is_timed=False
)
C_HOST = Runtime(target="c", precision="int8", name="C on this machine", is_exact=True)
RUNTIMES = (
    Runtime(target="onnx", precision="float", name="onnxruntime"),
    Runtime(target="onnx", precision="int8", name="onnxruntime"),
    Runtime(target="litert", precision="float", name="LiteRT, XNNPACK"),
    LITERT_REFERENCE,
    Runtime(target="litert", precision="int8", name="LiteRT, XNNPACK"),
    C_HOST,
)
_PACKAGES = ("onnx", "onnxruntime", "ai-edge-litert")


def open_runner(runtime: Runtime, exported: ExportedTarget, graph: Graph, *, is_strict: bool = True) -> TimedRunner:
    """The artifact of an export in a runtime, on one thread.

    Args:
        runtime: which.
        exported: the export of its target.
        graph: the graph that the artifact was made from.
        is_strict: whether C must compile without a warning.

    Raises:
        MissingDependencyError: naming the package that is missing.
        ModelFileError: when the artifact is not there or cannot be used.
    """
    if runtime.target == "c":
        return HostCRunner(exported.files, graph, is_strict=is_strict)
    if runtime.target == "onnx":
        return OnnxRunner(_file(exported, f"model-{runtime.precision}.onnx"), threads=1)
    model = _file(exported, f"model-{runtime.precision}.tflite")
    return LiteRtRunner(model, reference=runtime == LITERT_REFERENCE, threads=1)


def close_runner(runner: Any) -> None:
    """Remove what a runner has on disk, if anything."""
    close = getattr(runner, "close", None)
    if close is not None:
        close()


def runtime_versions() -> Mapping[str, str | None]:
    """Versions of the packages that run artifacts; None where one is not installed."""
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
