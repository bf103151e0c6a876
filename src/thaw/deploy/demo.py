"""The page of `thaw demo`: a run's networks in a web page, made in memory."""

from __future__ import annotations

from thaw.deploy.export import TrainedRun
from thaw.export.card import Precision
from thaw.export.to_web import export_web


def demo_files(run: TrainedRun) -> dict[str, bytes]:
    """Content by file name of the page, with the float32 network and, where the run has one already, the int8 network.

    Nothing is written, and none of the run's images are needed.

    Raises:
        MissingDependencyError: when `onnx` or onnxruntime-web is not there.
        ModelFileError: for an int8 network that is not the model's.
    """
    precisions: list[Precision] = ["float"]
    if run.zoo is not None or (run.folder is not None and run.folder.int8.is_file()):
        precisions.append("int8")
    return export_web({each: run.graph(each) for each in precisions}, run.card())
