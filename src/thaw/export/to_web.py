"""A graph -> a web page that runs it: static files for any web server, without a build step or external requests.

The page is `thaw/web`, the model is the ONNX file of `to_onnx`, and the runtime is onnxruntime-web, which the build
puts into `thaw/web/vendor`. All files are in one folder, with suffixes whose media type every web server knows: `.js`,
not `.mjs`.
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
"""Media type by suffix."""


def export_web(graphs: Mapping[Precision, Graph], card: ModelCard) -> dict[str, bytes]:
    """The files of the web folder: the page, the models and the runtime.

    Args:
        graphs: by precision; at least one. The page starts with "float" if it has it.
        card: shown on the page.

    Returns:
        content by file name.

    Raises:
        MissingDependencyError: when `onnx` is not installed, or thaw was built without onnxruntime-web.
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
    """How to draw input for this model; None for a model that does not recognize characters.

    Such a model has gray input, and every class is a single character or a number. Strokes are bright if images are
    dark on average.
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
            "install npm, then run make web in thaw's source folder, or reinstall thaw"
        ) from None
