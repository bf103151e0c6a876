"""LiteRT: runs an exported `.tflite` model on the CPU; the only file that runs its interpreter.

Shapes: N images, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.errors import MissingDependencyError, ModelFileError, UsageError
from thaw.export.litert_file import read_litert, with_all_outputs

_STDERR = 2
_quiet_lock = threading.Lock()


class LiteRtRunner:
    """An interpreter of an exported model, float32 or int8.

    Args:
        model: the content of a .tflite file.
        reference: by the reference kernels, whose bits are those of the int8 specification, instead of the fast ones
            (XNNPACK), which may differ by a unit in the last place.
        threads: that one operation may use, at least 1.

    Raises:
        ModelFileError: for a file that is damaged, or is not one that `thaw export` writes.
        MissingDependencyError: without `ai-edge-litert`.
    """

    def __init__(self, model: bytes, *, reference: bool = False, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"{threads} threads: expected at least 1")
        self._file = read_litert(model)
        self._model, self._reference, self._threads = model, reference, threads
        self._interpreter = self._prepare(model)
        self._keeping: Any = None
        self._image = self._interpreter.get_input_details()[0]["index"]
        self._scores = self._interpreter.get_output_details()[0]["index"]

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C) of the images that it takes."""
        return self._file.image.shape[1:]

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """What the model gives, [N, K], float32 or int8, for images uint8 [N, H, W, C]."""
        self._check(images)
        scores = np.empty((len(images), *self._file.scores.shape[1:]), self._file.scores.dtype)
        for index in range(len(images)):
            scores[index] = self._run_one(self._interpreter, images[index : index + 1])
        return scores

    def tensors(self, image: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Every tensor that the model computes, by the name it has in the graph, [1, ...], for one image [1, H, W, C].

        There are some more, which the graph has not; and a vector between two int8 dense layers is [1, 1, 1, C].
        They come from a copy of the model that has all of them as outputs, so that the kernels are those of `run`,
        XNNPACK's too.
        """
        self._check(image)
        if self._keeping is None:
            self._keeping = self._prepare(with_all_outputs(self._model))
        self._run_one(self._keeping, image)
        return {tensor.name: self._keeping.get_tensor(index) for index, tensor in self._file.written.items()}

    def predict_one(self, image: npt.NDArray[np.uint8]) -> Callable[[], object]:
        """A call that runs the model on one image, uint8 [H, W, C], with everything prepared."""
        self._check(image[None])
        pixels = np.ascontiguousarray(image[None])
        return lambda: self._run_one(self._interpreter, pixels)

    def _run_one(self, interpreter: Any, image: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        interpreter.set_tensor(self._image, np.ascontiguousarray(image))
        interpreter.invoke()
        scores: npt.NDArray[Any] = interpreter.get_tensor(self._scores)
        return scores

    def _prepare(self, model: bytes) -> Any:
        """An interpreter with its memory."""
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError:
            raise MissingDependencyError(
                "running LiteRT models needs ai-edge-litert: pip install 'thaw-cnn[litert]'"
            ) from None
        kernels = OpResolverType.BUILTIN_REF if self._reference else OpResolverType.AUTO
        try:
            with _quiet():
                interpreter = Interpreter(
                    model_content=model,
                    num_threads=self._threads,
                    experimental_op_resolver_type=kernels,
                )
                interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelFileError(f"LiteRT refuses the model: {reason}") from None
        return interpreter

    def _check(self, images: npt.NDArray[np.uint8]) -> None:
        if images.dtype != np.uint8 or images.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise UsageError(f"images are {images.dtype} {list(images.shape)}: expected uint8 [N, {expected}]")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps off the terminal what LiteRT says while it starts; it writes past Python's own standard error."""
    with _quiet_lock, warnings.catch_warnings(), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        warnings.simplefilter("ignore")
        sys.stderr.flush()
        kept = os.dup(_STDERR)
        os.dup2(nowhere.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
