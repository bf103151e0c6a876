"""The emitted C on this machine: the one place that knows the host's C compiler.

The folder is compiled into a shared library in a temporary folder and called through ctypes, one image a call.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from thaw.errors import MissingDependencyError, ModelFileError
from thaw.export.to_c import traced_tensors
from thaw.graph.graph import Graph

STRICT_FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic")
"""What the emitted C compiles with, on every target."""
FAST_FLAGS = ("-O3", "-march=native")
_COMPILE_SECONDS = 300

# A batch in one call, so that a test set is not slowed down by Python; and what a traced step wrote is kept.
_HARNESS = """
#include "model.h"
#include <string.h>

void thaw_run(const uint8_t *pixels, int32_t count, %(type)s *scores);
void thaw_run(const uint8_t *pixels, int32_t count, %(type)s *scores)
{
    int32_t index;
    for (index = 0; index < count; index++) {
        thaw_predict(pixels + (size_t)index * (THAW_HEIGHT * THAW_WIDTH * THAW_CHANNELS), scores + index * THAW_SCORES);
    }
}

#ifdef THAW_TRACE
static uint8_t *trace_at;
void thaw_trace(int step, const void *data, int32_t bytes);
void thaw_trace(int step, const void *data, int32_t bytes)
{
    (void)step;
    if (trace_at) {
        memcpy(trace_at, data, (size_t)bytes);
        trace_at += bytes;
    }
}

void thaw_trace_into(uint8_t *memory);
void thaw_trace_into(uint8_t *memory)
{
    trace_at = memory;
}
#endif
"""


def find_compiler(names: Sequence[str] = ("cc", "gcc", "clang")) -> str:
    """The first of these programs that is there; the environment's CC comes before them.

    Raises:
        MissingDependencyError: when there is none.
    """
    wanted = [*filter(None, [os.environ.get("CC")]), *names]
    for name in wanted:
        found = shutil.which(name)
        if found:
            return found
    raise MissingDependencyError(
        f"no C compiler was found (looked for {', '.join(wanted)})\non Debian and Ubuntu: apt-get install gcc libc6-dev"
    )


def compile_c(command: Sequence[str], folder: Path) -> None:
    """Run a compiler in `folder`.

    Raises:
        ModelFileError: when it refuses the source; the message holds its first line.
    """
    try:
        done = subprocess.run(
            list(command), cwd=folder, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelFileError(f"{command[0]} did not compile the model: {error}") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        reason = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        raise ModelFileError(f"{command[0]} does not compile the model: {reason[:300]}")


class HostCRunner:
    """The emitted C, compiled here and called image by image; also a context manager, which removes the library.

    Args:
        files: what `export_c` gives.
        graph: the int8 graph that it was made from.
        flags: of the compiler, besides those of `STRICT_FLAGS`.
        compiler: by default what `find_compiler` finds.

    Raises:
        MissingDependencyError: without a compiler.
        ModelFileError: when the files do not compile.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        graph: Graph,
        *,
        flags: Sequence[str] = FAST_FLAGS,
        compiler: str | None = None,
    ) -> None:
        self.graph = graph
        self._files = files
        self._flags = tuple(flags)
        self._compiler = compiler or find_compiler()
        self._result = graph.tensor(graph.outputs[-1])
        self._folder = tempfile.TemporaryDirectory(prefix="thaw-c-")
        try:
            self._library = self._build("model.so")
        except OSError as error:
            self.close()
            raise _unusable(error) from error
        except BaseException:
            self.close()
            raise
        self._traced: ctypes.CDLL | None = None

    def _build(self, name: str, *extra: str) -> ctypes.CDLL:
        folder = Path(self._folder.name)
        for file in ("model.h", "model.c"):
            (folder / file).write_bytes(self._files[file])
        kind = "int32_t" if self._result.dtype == "int32" else "int8_t"
        (folder / "harness.c").write_text(_HARNESS % {"type": kind}, encoding="utf-8")
        command = [self._compiler, *STRICT_FLAGS, *self._flags, *extra, "-fPIC", "-shared", "-o", name]
        compile_c([*command, "model.c", "harness.c"], folder)
        return ctypes.CDLL(str(folder / name))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was compiled; the runner cannot be used afterwards."""
        self._folder.cleanup()

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Scores, int8 [N, K] (int32 for a graph that ends in an argmax), for uint8 [N, H, W, C]."""
        pixels = np.ascontiguousarray(images)
        scores = np.empty((len(pixels), *self._result.shape), self._result.dtype)
        self._library.thaw_run(_address(pixels), ctypes.c_int32(len(pixels)), _address(scores))
        return scores

    def tensors(self, image: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """What each step wrote, [1, ...] by tensor, for uint8 [1, H, W, C]: from a second build that tells."""
        if self._traced is None:
            try:
                self._traced = self._build("traced.so", "-DTHAW_TRACE")
            except OSError as error:
                raise _unusable(error) from error
        tensors = [self.graph.tensor(name) for name in traced_tensors(self.graph)]
        sizes = [tensor.elements * np.dtype(tensor.dtype).itemsize for tensor in tensors]
        memory = np.zeros(sum(sizes), np.uint8)
        pixels, scores = np.ascontiguousarray(image), np.empty((1, *self._result.shape), self._result.dtype)
        self._traced.thaw_trace_into(_address(memory))
        self._traced.thaw_run(_address(pixels), ctypes.c_int32(1), _address(scores))
        self._traced.thaw_trace_into(None)
        parts = np.split(memory, np.cumsum(sizes)[:-1])
        return {
            tensor.name: part.view(tensor.dtype).reshape(1, *tensor.shape)
            for tensor, part in zip(tensors, parts, strict=True)
        }

    def predict_one(self, image: npt.NDArray[np.uint8]) -> Callable[[], object]:
        """One inference of uint8 [H, W, C], with everything prepared, for timing."""
        pixels = np.ascontiguousarray(image)
        scores = np.empty(self._result.shape, self._result.dtype)
        function, arguments = self._library.thaw_predict, (_address(pixels), _address(scores))

        def call() -> object:
            function(*arguments)
            return scores

        return call


def _unusable(error: OSError) -> ModelFileError:
    """Of a folder for temporary files that is full, or from which nothing can be loaded."""
    return ModelFileError(
        f"the C cannot be built and loaded in {tempfile.gettempdir()}: {error.strerror or error}\n"
        "set TMPDIR to a folder with space, from which programs may run"
    )


def _address(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
