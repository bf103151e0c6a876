"""The C compiler of this machine: the one place that looks for it and runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from thaw.errors import MissingDependencyError, ModelFileError

FAST_FLAGS = ("-O3", "-march=native")
"""For code that runs on this machine alone."""
_COMPILE_SECONDS = 300


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


def compile_c(command: Sequence[str], folder: Path, what: str = "the model") -> None:
    """Run a compiler in `folder`.

    Args:
        command: the compiler and its arguments.
        folder: where it runs.
        what: is compiled, for the message.

    Raises:
        ModelFileError: when it refuses the source; the message holds its first line.
    """
    try:
        # What a compiler quotes of a source need not be text.
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
        raise ModelFileError(f"{command[0]} did not compile {what}: {error}") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        reason = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        raise ModelFileError(f"{command[0]} does not compile {what}: {reason[:300]}")
