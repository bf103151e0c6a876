"""Runs an exported ONNX model in onnxruntime on the CPU.

Shapes: N images, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.errors import MissingDependencyError, ModelFileError, UsageError
from thaw.export.onnx_file import one_line, read_onnx, with_all_outputs
from thaw.export.to_onnx import OPERATIONS
from thaw.graph.interpret import check_images
from thaw.graph.tensors import Array

BATCH = 250
_ONLY_FATAL = 4
_MAPS_TO_NHWC = (0, 2, 3, 1)


class OnnxRunner:
    """An onnxruntime session for an exported model, float32 or int8.

    Args:
        model: the content of a .onnx file.
        threads: for one operation, at least 1.

    Raises:
        ModelFileError: for a file that is damaged or was not written by `thaw export`.
        MissingDependencyError: without `onnx` and `onnxruntime`.
    """

    def __init__(self, model: bytes, *, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"threads = {threads}: expected at least 1")
        self._threads = threads
        self._model = read_onnx(model, OPERATIONS)
        self._session = _session(model, threads)
        self._traced: tuple[Any, dict[str, str]] | None = None
        read = self._session.get_inputs()[0]
        self._input, self._shape = read.name, tuple(read.shape[1:])
        if read.type != "tensor(uint8)" or len(self._shape) != 3 or not all(type(side) is int for side in self._shape):
            raise ModelFileError(
                f"ONNX model with input {read.type} {read.shape}: expected uint8 [N, H, W, C]", code="model-file-onnx"
            )

    def run(self, images: npt.NDArray[np.uint8]) -> Array:
        """The model's output [N, K] for images uint8 [N, H, W, C]."""
        check_images(images, self._shape)
        # An empty batch runs on one black image, for the shape and dtype of the result.
        padded = images if len(images) else np.zeros((1, *self._shape), np.uint8)
        parts = [
            _run(self._session, None, {self._input: np.ascontiguousarray(padded[start : start + BATCH])})[0]
            for start in range(0, len(padded), BATCH)
        ]
        return np.concatenate(parts)[: len(images)]

    def tensors(self, image: npt.NDArray[np.uint8]) -> dict[str, Array]:
        """All tensors by name in the graph, [1, ...] with maps as [1, H, W, C], for one image [1, H, W, C].

        In an int8 model all are int8, including the last. onnxruntime fuses fewer operations than in `run`, since
        every tensor is an output, so the last bits can differ.
        """
        check_images(image, self._shape)
        if self._traced is None:
            copy, names = with_all_outputs(self._model)
            self._traced = _session(copy, self._threads), names
        session, names = self._traced
        values = _run(session, list(names.values()), {self._input: np.ascontiguousarray(image)})
        return {
            name: _as_in_graph(value, is_output=copied == self._output)
            for (name, copied), value in zip(names.items(), values, strict=True)
        }

    def predict_one(self, image: npt.NDArray[np.uint8]) -> Callable[[], object]:
        """A function that runs the model on one image, uint8 [H, W, C], already prepared."""
        check_images(image[None], self._shape)
        run, feeds = self._session.run, {self._input: np.ascontiguousarray(image[None])}
        return lambda: run(None, feeds)

    @property
    def _output(self) -> str:
        name: str = self._session.get_outputs()[0].name
        return name

    def close(self) -> None:
        """Nothing to do: a session has no processes or files."""


def _as_in_graph(value: Array, *, is_output: bool) -> Array:
    """A tensor as in the graph: maps as [1, H, W, C], int8 numbers without the added 128."""
    if value.ndim == 4 and not is_output:
        value = np.ascontiguousarray(value.transpose(_MAPS_TO_NHWC))
    return (value ^ 0x80).view(np.int8) if value.dtype == np.uint8 else value


def _session(model: bytes, threads: int) -> Any:
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ONLY_FATAL
    # On x86 processors without VNNI, int8 products are added in 16 bits, which saturates. This keeps the sums exact.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 (onnxruntime raises a dozen classes without a common base)
        raise ModelFileError(f"onnxruntime rejects the model: {one_line(error)}", code="model-file-onnx") from None


def _run(session: Any, names: list[str] | None, feeds: dict[str, npt.NDArray[np.uint8]]) -> list[Array]:
    try:
        values: list[Array] = session.run(names, feeds)
    except Exception as error:  # noqa: BLE001 (as in `_session`)
        raise ModelFileError(f"onnxruntime cannot run the model: {one_line(error)}", code="model-file-onnx") from None
    return values


def _runtime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        name = error.name or "onnxruntime"
        raise MissingDependencyError(f"running ONNX models needs {name}: pip install 'thaw-cnn[onnx]'") from None
    module: ModuleType = onnxruntime
    return module
