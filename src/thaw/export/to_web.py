"""A graph -> a web page that runs it: static files for any web server, without a build step or a request elsewhere.

The page is `thaw/web`, the model the ONNX file of `to_onnx`, and what runs it onnxruntime-web, which the build puts
into `thaw/web/vendor`. All names lie in one folder, and end in what every web server knows the type of: `.js`, never
`.mjs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from thaw.data.images import are_characters
from thaw.errors import MissingDependencyError
from thaw.export.card import ModelCard, Precision
from thaw.export.to_onnx import export_onnx
from thaw.graph.graph import Graph
from thaw.quoting import json_text

INDEX = "index.html"
CARD = "model.json"
PAGE = (
    *(INDEX, "style.css", "icon.svg", "page.js", "batch.js", "csv.js", "decode.js", "draw.js", "exif.js", "files.js"),
    *("model.js", "png.js", "resize.js", "samples.js", "show.js", "strokes.js", "onnxruntime-web.LICENSE.txt"),
)
"""The files of `thaw/web`."""

RUNTIME = {
    "ort.wasm.min.js": "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.js": "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
"""The files of onnxruntime-web: their names in the page, and in `thaw/web/vendor`."""

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".onnx": "application/octet-stream",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}
"""By how a name ends: what a web server says that the file is."""


def export_web(graphs: Mapping[Precision, Graph], card: ModelCard) -> dict[str, bytes]:
    """The files of the web folder: the page, the models, and what runs them.

    Args:
        graphs: by precision; at least one. The page begins with "float", where it is there.
        card: what the page says of the model.

    Returns:
        content by file name.

    Raises:
        MissingDependencyError: when `onnx` is not installed, or onnxruntime-web was not there when thaw was built.
    """
    runtime = _runtime()
    made = {name: (_web() / name).read_bytes() for name in PAGE}
    models = {name: data for name, data in export_onnx(graphs, card).items() if name.endswith(".onnx")}
    described = {
        precision: {"file": name, "bytes": len(models[name])}
        for precision in sorted(graphs)
        for name in (f"model-{precision}.onnx",)
    }
    content = {**card.as_dict(), "models": described, "drawing": _drawing(card)}
    made[CARD] = (json_text(content, indent=1) + "\n").encode()
    return {**made, **models, **runtime}


def _drawing(card: ModelCard) -> dict[str, Any] | None:
    """How one draws for this model; None for a model that drawings are nothing for.

    Digits and letters are drawn: gray images in classes of one character each, or of numbers. Where images are dark on
    average, strokes are bright on dark.
    """
    if card.input_spec.channels != 1 or not are_characters(card.classes):
        return None
    return {"isBright": card.input_spec.mean[0] < 0.5}


def _web() -> Path:
    return Path(str(resources.files("thaw") / "web"))


def _runtime() -> dict[str, bytes]:
    vendor = _web() / "vendor"
    try:
        return {name: (vendor / source).read_bytes() for name, source in RUNTIME.items()}
    except OSError:
        raise MissingDependencyError(
            "the web page needs onnxruntime-web, which this installation of thaw lacks\n"
            "install npm, then run make web in thaw's folder, or install thaw again"
        ) from None
