"""Compile the C source of a kernel for this machine and load it."""

from __future__ import annotations

import ctypes
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch

from thaw.errors import MissingDependencyError, ModelFileError
from thaw.host_c import FAST_FLAGS, compile_c, find_compiler

SOURCES = files("thaw.kernels")

POINTER, SIZE, INT, FLOAT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_float
"""Argument types of the C functions."""

Signatures = Mapping[str, Sequence[type]]
"""C functions that return nothing -> the types of their arguments."""


def load_library(source: str, signatures: Signatures, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """Compile `source`, a file of this package, and return it as a library with the given functions.

    The library is not stored: one that another machine, or another version, left behind cannot be loaded. Compiling
    takes about a second. Calls release the global interpreter lock.

    Raises:
        MissingDependencyError: without a C compiler that can compile it.
    """
    try:
        library = _compiled(source, tuple(flags))
        for name, types in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = None, list(types)
    except (MissingDependencyError, ModelFileError, OSError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise MissingDependencyError(
            f"{source} cannot be compiled: {reason}\n"
            "on Debian and Ubuntu: apt-get install gcc libc6-dev; or train with compute.kernels=torch"
        ) from error
    return library


@cache
def _compiled(source: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    compiler = find_compiler()
    with tempfile.TemporaryDirectory(prefix="thaw-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for file in SOURCES.iterdir():
            if file.name == source or file.name.endswith(".h"):
                (folder / file.name).write_bytes(file.read_bytes())
        made = Path(source).with_suffix(".so").name
        # Without contraction, all compilers round alike.
        rest = ["-std=c99", "-ffp-contract=off", *flags, "-fPIC", "-shared", "-o", made, source, "-lm"]
        try:
            compile_c([compiler, *FAST_FLAGS, *rest], folder, source)
        except ModelFileError:
            # Some compilers do not support -march=native on this processor.
            compile_c([compiler, FAST_FLAGS[0], *rest], folder, source)
        return ctypes.CDLL(str(folder / made))


def compile_all(loaders: Sequence[Callable[[], object]]) -> None:
    """Call functions that compile and load a kernel, all at the same time.

    Raises:
        MissingDependencyError: as `load_library`.
    """
    if not loaders:
        return
    with ThreadPoolExecutor(len(loaders), "thaw-compile") as pool:
        for future in [pool.submit(loader) for loader in loaders]:
            future.result()


class Scratch(threading.local):
    """Memory for a kernel's intermediate values; each thread has its own, kept from call to call."""

    def __init__(self) -> None:
        self._floats = torch.empty(0, dtype=torch.float32)

    def pointer(self, floats: int) -> int:
        """The address of at least this many float32 values, which are not initialized."""
        if len(self._floats) < floats:
            self._floats = torch.empty(floats, dtype=torch.float32)
        return self._floats.data_ptr()
