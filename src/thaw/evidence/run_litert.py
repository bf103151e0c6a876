"""Runs an exported `.tflite` model in LiteRT on the CPU, in a separate process.

Shapes: N images, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from thaw.errors import MissingDependencyError, ModelFileError, UsageError
from thaw.evidence import litert_process
from thaw.graph.interpret import check_images
from thaw.graph.tensors import Array

_REQUEST_SECONDS = 120.0
_REQUEST_SECONDS_AN_IMAGE = 0.2


class LiteRtRunner:
    """An exported model, float32 or int8, in a LiteRT process that ends with the runner.

    Args:
        model: the content of a .tflite file.
        reference: use the reference kernels, which are bit-exact to the int8 specification, instead of the fast ones
            (XNNPACK), which may differ by a unit in the last place.
        threads: for one operation, at least 1.

    Raises:
        ModelFileError: for a file that LiteRT rejects, or on which it crashes.
        MissingDependencyError: without `ai-edge-litert`.
    """

    def __init__(self, model: bytes, *, reference: bool = False, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"threads = {threads}: expected at least 1")
        _check_package()
        self._model = model
        self._settings: dict[str, Any] = {"reference": reference, "threads": threads}
        # -P: modules in that file's folder must not shadow others.
        self._process = subprocess.Popen(
            [sys.executable, "-P", litert_process.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.close = weakref.finalize(self, _end, self._process)
        opened, _ = self._ask(self._settings, {"model": np.frombuffer(model, np.uint8)})
        self.shape: tuple[int, ...] = tuple(opened["shape"])
        """(H, W, C) of the input images."""

    def run(self, images: npt.NDArray[np.uint8]) -> Array:
        """Scores [N, K], float32 or int8, for images uint8 [N, H, W, C].

        Raises:
            ModelFileError: when LiteRT fails or crashes.
        """
        check_images(images, self.shape)
        return self._ask({"asks": "scores"}, {"images": images})[1]["scores"]

    def tensors(self, image: npt.NDArray[np.uint8]) -> dict[str, Array]:
        """All tensors that the model computes, by name in the graph, [1, ...], for one image [1, H, W, C].

        Some of them are not in the graph. A vector between two int8 dense layers is [1, 1, 1, C].

        Raises:
            ModelFileError: when LiteRT fails or crashes.
        """
        check_images(image, self.shape)
        return self._ask({"asks": "tensors"}, {"images": image})[1]

    def predict_one(self, image: npt.NDArray[np.uint8]) -> Callable[[], object]:
        """A function that runs the model on one image, uint8 [H, W, C], in this process, already prepared.

        Raises:
            ModelFileError: when LiteRT fails or crashes. A trial in a separate process detects this.
        """
        self.run(image[None])
        return litert_process.LiteRtModel(self._model, **self._settings).predict_one(image)

    def _ask(self, request: dict[str, Any], arrays: dict[str, Array]) -> tuple[dict[str, Any], dict[str, Array]]:
        """The reply to a request."""
        limit = _REQUEST_SECONDS + _REQUEST_SECONDS_AN_IMAGE * len(arrays.get("images", ()))
        watch = threading.Timer(limit, self._process.kill)
        watch.start()
        try:
            pipes = cast("Any", self._process)
            litert_process.send(pipes.stdin, request, arrays)
            reply, values = litert_process.receive(pipes.stdout)
        except (EOFError, OSError):
            code = self._process.wait()
            raise ModelFileError(f"LiteRT crashed on the model (exit code {code})", code="model-file-litert") from None
        finally:
            watch.cancel()
        if "error" in reply:
            raise ModelFileError(f"LiteRT rejects the model: {reply['error']}", code="model-file-litert")
        return reply, values


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                # Closing sends buffered bytes, which fails if the process has crashed.
                continue


def _check_package() -> None:
    if find_spec("ai_edge_litert") is None or find_spec("ai_edge_litert.interpreter") is None:
        raise MissingDependencyError("running LiteRT models needs ai-edge-litert: pip install 'thaw-cnn[litert]'")
