"""What the C compiler of this machine can do, and flags for tests."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import pytest

from thaw.errors import MissingDependencyError
from thaw.host_c import find_compiler

FEW_INTRINSICS = ("-isystem", str(Path(__file__).resolve().parent / "few_intrinsics"))
"""Flags with which gcc reads only the intrinsics that the exported C uses: most of the time of a compilation."""

try:
    find_compiler()
except MissingDependencyError:
    HAS_COMPILER = False
else:
    HAS_COMPILER = True

needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="needs a C compiler: apt-get install gcc libc6-dev")


@cache
def has_sanitizers() -> bool:
    """Whether the compiler has the address and the undefined-behavior sanitizer."""
    command = [find_compiler(), "-fsanitize=address,undefined", "-x", "c", "-", "-o", "/dev/null"]
    return not subprocess.run(
        command, input="int main(void) { return 0; }", text=True, check=False, capture_output=True
    ).returncode
