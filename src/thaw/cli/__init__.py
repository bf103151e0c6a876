"""The command line. Heavy imports happen inside the commands, so that `thaw --help` answers at once."""

from __future__ import annotations

from thaw.cli.app import main, run

__all__ = ["main", "run"]
