"""The command line: one file per command, a client of the public API.

Slow imports are inside the commands, so that `thaw --help` answers at once.
"""

from __future__ import annotations

from thaw.cli.app import main, run

__all__ = ["main", "run"]
