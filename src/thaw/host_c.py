"""Finds and runs the C compiler of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from thaw.errors import MissingDependencyError, ModelFileError

FAST_FLAGS = ("-O3", "-march=native")
"""Flags for code that runs on this machine only."""
_COMPILE_SECONDS = 300


def find_compiler(names: Sequence[str] = ("cc", "gcc", "clang")) -> str:
    """The path of the first of these programs that exists. The environment variable CC has priority.

    Raises:
        MissingDependencyError: when no compiler exists.
    """
    wanted = [*filter(None, [os.environ.get("CC")]), *names]
    for name in wanted:
        found = shutil.which(name)
        if found:
            return found
    raise MissingDependencyError(
        f"no C compiler found (looked for {', '.join(wanted)})\nOn Debian and Ubuntu: apt-get install gcc libc6-dev",
        code="missing-dependency-compiler",
    )


def compile_c(command: Sequence[str], folder: Path, what: str = "the model") -> None:
    """Run a compiler in `folder`.

    Args:
        command: the compiler and its arguments.
        folder: where it runs.
        what: the name of the source in messages.

    Raises:
        ModelFileError: when compilation fails; the message holds the first line of the compiler's error.
    """
    try:
        # Compilers quote lines of the source, which may not be valid UTF-8.
        done = subprocess.run(
            list(command),
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMPILE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelFileError(f"{command[0]} could not compile {what}: {error}", code="model-file-compile") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        reason = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        raise ModelFileError(f"{command[0]} could not compile {what}: {reason[:300]}", code="model-file-compile")
