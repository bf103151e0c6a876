"""The web page of `thaw demo`, built in memory."""

from __future__ import annotations

import contextlib

from thaw.deploy.export import Deployable
from thaw.errors import RunError
from thaw.export.card import Precision
from thaw.export.to_web import export_web
from thaw.graph.graph import Graph


def demo_files(model: Deployable) -> dict[str, bytes]:
    """File name -> content of the page, with the float32 network and, if one is stored, the int8 network.

    Nothing is written, and no data are needed.

    Raises:
        MissingDependencyError: when `onnx` or onnxruntime-web is missing.
        ModelFileError: when the stored int8 network was made from another model.
    """
    graphs: dict[Precision, Graph] = {"float": model.graph("float")}
    # Otherwise quantization would need the run's data.
    with contextlib.suppress(RunError):
        graphs["int8"] = model.graph("int8")
    return export_web(graphs, model.card())
