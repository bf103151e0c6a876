"""Whether this machine has a C compiler."""

from __future__ import annotations

import pytest

from thaw.errors import MissingDependencyError
from thaw.host_c import find_compiler

try:
    find_compiler()
except MissingDependencyError:
    HAS_COMPILER = False
else:
    HAS_COMPILER = True

needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="needs a C compiler: apt-get install gcc libc6-dev")
