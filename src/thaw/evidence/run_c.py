"""Runs the exported C on this machine.

It is compiled in a temporary folder into a program that reads images and writes scores, and for timing into a shared
library that ctypes calls.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from thaw.errors import ModelFileError
from thaw.export.c_names import prefix_of_files, with_prefix
from thaw.export.to_c import traced_tensors
from thaw.graph.graph import Graph
from thaw.graph.tensors import Array, Tensor
from thaw.host_c import FAST_FLAGS, compile_c, find_compiler

STRICT_FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic")
"""Compiler flags for verification."""

_ANY_FLAGS = ("-std=c99", "-w")
"""Compiler flags for timing; warnings are disabled."""

# No exported file has this name, since a prefix contains no hyphen.
_SOURCE = "thaw-program.c"

_RUN_SECONDS = 60.0
_RUN_SECONDS_AN_IMAGE = 0.02

# Reads a file of images and writes a file of scores, or of the output of each step. It is a separate program, so that a
# crash or an infinite loop does not affect this process.
_PROGRAM = """
#include "@HEADER@"
#include <stdio.h>

static FILE *results;

#ifdef THAW_TRACE
void thaw_trace(int step, const void *data, int32_t bytes);
void thaw_trace(int step, const void *data, int32_t bytes)
{
    (void)step;
    (void)fwrite(data, 1, (size_t)bytes, results);
}
#endif

int main(int count, char **names)
{
    static uint8_t pixels[THAW_INPUT_BYTES];
    static thaw_score scores[THAW_SCORES];
    FILE *images;
    if (count != 3) {
        return 2;
    }
    images = fopen(names[1], "rb");
    results = fopen(names[2], "wb");
    if (!images || !results) {
        return 3;
    }
    while (fread(pixels, 1, sizeof pixels, images) == sizeof pixels) {
        thaw_predict(pixels, scores);
#ifndef THAW_TRACE
        (void)fwrite(scores, sizeof *scores, THAW_SCORES, results);
#endif
    }
    return ferror(results) || fclose(results) ? 4 : 0;
}
"""


class HostCRunner:
    """The exported C, compiled on this machine. A context manager that removes the compiled files.

    Args:
        files: the files of `export_c`.
        graph: the int8 graph of these files.
        flags: compiler flags in addition to language and warnings.
        compiler: the compiler; by default that of `find_compiler`.
        is_strict: whether warnings are errors.
        launcher: the command that starts the program, such as an emulator of another processor; empty by default.

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
        is_strict: bool = True,
        launcher: Sequence[str] = (),
    ) -> None:
        self.graph = graph
        self._files = files
        self._prefix = prefix_of_files(files)
        self._flags = (*(STRICT_FLAGS if is_strict else _ANY_FLAGS), *flags)
        self._launcher = tuple(launcher)
        self._compiler = compiler or find_compiler()
        self._result = graph.tensor(graph.outputs[-1])
        self._folder = tempfile.TemporaryDirectory(prefix="thaw-c-")
        try:
            self._build("program", _SOURCE)
        except BaseException:
            self.close()
            raise

    def _build(self, name: str, *extra: str) -> Path:
        folder = Path(self._folder.name)
        header, source = f"{self._prefix}.h", f"{self._prefix}.c"
        if not (folder / name).exists():
            try:
                for file in (header, source):
                    (folder / file).write_bytes(self._files[file])
                program = with_prefix(_PROGRAM, self._prefix).replace("@HEADER@", header)
                (folder / _SOURCE).write_text(program, encoding="utf-8")
            except OSError as error:
                raise _unusable(error) from error
            compile_c([self._compiler, *self._flags, "-o", name, source, *extra], folder)
        return folder / name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the compiled files. The runner cannot be used after this."""
        self._folder.cleanup()

    def run(self, images: npt.NDArray[np.uint8]) -> Array:
        """Scores, int8 [N, K] (int32 for a graph that ends in an argmax), for uint8 [N, H, W, C].

        Raises:
            ModelFileError: when the C crashes or does not finish in time.
        """
        return self._read(self._build("program", _SOURCE), images, [self._result])[0]

    def tensors(self, image: npt.NDArray[np.uint8]) -> dict[str, Array]:
        """The output of each step by tensor, [1, ...], for uint8 [1, H, W, C], from a second build with tracing.

        Raises:
            ModelFileError: when the C crashes or does not finish in time.
        """
        tensors = [self.graph.tensor(name) for name in traced_tensors(self.graph)]
        parts = self._read(self._build("traced", _SOURCE, "-DTHAW_TRACE"), image, tensors)
        return {tensor.name: part for tensor, part in zip(tensors, parts, strict=True)}

    def _read(self, program: Path, images: npt.NDArray[np.uint8], tensors: Sequence[Tensor]) -> list[Array]:
        """The output of `program` for all images, split into `tensors`, [N, ...]."""
        folder = Path(self._folder.name)
        limit = _RUN_SECONDS + _RUN_SECONDS_AN_IMAGE * len(images)
        try:
            (folder / "images.bin").write_bytes(np.ascontiguousarray(images).tobytes())
            done = subprocess.run(
                [*self._launcher, str(program), "images.bin", "results.bin"],
                cwd=folder,
                capture_output=True,
                timeout=limit,
                check=False,
            )
            content = (folder / "results.bin").read_bytes() if done.returncode == 0 else b""
        except OSError as error:
            raise _unusable(error) from error
        except subprocess.TimeoutExpired:
            raise ModelFileError(f"the C did not finish within {limit:.0f} s", code="model-file-c") from None
        if done.returncode != 0:
            raise ModelFileError(f"the C failed with exit code {done.returncode}", code="model-file-c")
        sizes = [tensor.elements * np.dtype(tensor.dtype).itemsize for tensor in tensors]
        if len(content) != len(images) * sum(sizes):
            raise ModelFileError(
                f"the C wrote {len(content)} bytes: expected {len(images) * sum(sizes)}", code="model-file-c"
            )
        rows = np.frombuffer(content, np.uint8).reshape(len(images), sum(sizes))
        parts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
        return [
            np.ascontiguousarray(part).view(tensor.dtype).reshape(len(images), *tensor.shape)
            for tensor, part in zip(tensors, parts, strict=True)
        ]

    def library(self) -> ctypes.CDLL:
        """The C as a shared library in this process, for timing."""
        try:
            return ctypes.CDLL(str(self._build("model.so", "-fPIC", "-shared")))
        except OSError as error:
            raise _unusable(error) from error

    def predict_one(self, image: npt.NDArray[np.uint8]) -> Callable[[], object]:
        """A function that runs inference of one image, uint8 [H, W, C], already prepared, for timing.

        Raises:
            ModelFileError: when the C crashes or does not finish in time. A trial in a separate process detects this.
        """
        self.run(image[None])
        pixels = np.ascontiguousarray(image)
        scores = np.empty(self._result.shape, self._result.dtype)
        function = getattr(self.library(), f"{self._prefix}_predict")
        arguments = _address(pixels), _address(scores)

        def call() -> object:
            function(*arguments)
            return scores

        return call


def _unusable(error: OSError) -> ModelFileError:
    """The error for a temporary folder that is full, or from which libraries cannot be loaded."""
    return ModelFileError(
        f"the C cannot be built and loaded in {tempfile.gettempdir()}: {error.strerror or error}\n"
        "set TMPDIR to a folder with space, from which programs may run",
        code="model-file-c",
    )


def _address(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
