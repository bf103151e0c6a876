"""A store of compiled training kernels, which every training process otherwise compiles, for several seconds."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from thaw.host_c import compile_c

FOLDER = "THAW_TEST_KERNELS"
"""Environment variable: the folder of the store. Without it nothing is stored."""


def keep_compiled_kernels() -> None:
    """Let this process take compiled kernels from the store.

    It has no effect before the module is imported, since importing torch would slow down tests without it.
    """
    library = sys.modules.get("thaw.kernels.library")
    if library is not None and library.compile_c is compile_c and FOLDER in os.environ:
        library.compile_c = _stored


def _stored(command: Sequence[str], folder: Path, what: str = "the model") -> None:
    """`compile_c`, unless the same command has compiled the same files before."""
    made = folder / command[list(command).index("-o") + 1]
    digest = hashlib.sha256(repr(list(command)).encode())
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    kept = Path(os.environ[FOLDER]) / digest.hexdigest()
    if not kept.exists():
        compile_c(command, folder, what)
        part = kept.with_suffix(f".{os.getpid()}")
        shutil.copy(made, part)
        part.replace(kept)
        return
    shutil.copy(kept, made)
