"""The argument RUN of a command: a run folder, a model file, or zoo:NAME."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import thaw


def open_run(path: Path, data_root: Path | None) -> thaw.Run | thaw.Model:
    """A run if it is a run folder, else a model; both can export, verify and bench."""
    import thaw

    if (path.expanduser() / "run.json").is_file():
        return thaw.Run.open(path, data_root=data_root)
    return thaw.Model.load(path)
