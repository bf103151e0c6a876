"""deployment.json: what is known of a run's deployment (docs/metrics.md).

`thaw export`, `thaw verify` and `thaw bench` each write a part of it; the report shows the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from thaw.errors import RunError
from thaw.files import write_atomically
from thaw.quoting import json_text, shown
from thaw.workflow.run_folder import DEPLOYMENT_FILE, read_json

DEPLOYMENT_SCHEMA = 1

Part = Literal["export", "verify", "bench"]

_ANEW = "remove it: export, verify and bench write it anew"


def read_deployment(folder: Path) -> dict[str, Any]:
    """What a run folder's deployment.json holds; nothing but its schema where there is none.

    Raises:
        RunError: when it cannot be read, or is of another schema.
    """
    path = folder / DEPLOYMENT_FILE
    if not path.exists():
        return {"schema": DEPLOYMENT_SCHEMA}
    try:
        known = read_json(path)
    except RunError as error:
        raise RunError(f"{str(error).splitlines()[0]}\n{_ANEW}") from error
    parts = [known.get(part, {}) for part in get_args(Part)]
    if not all(isinstance(part, dict) and isinstance(part.get("targets", {}), dict) for part in parts):
        raise RunError(f"{path} is not what thaw wrote\n{_ANEW}")
    if known.get("schema") != DEPLOYMENT_SCHEMA:
        raise RunError(f"{path} has schema {shown(known.get('schema'))}, this thaw reads {DEPLOYMENT_SCHEMA}\n{_ANEW}")
    return known


def update_deployment(folder: Path, part: Part, content: Mapping[str, Any]) -> dict[str, Any]:
    """Put one part into deployment.json; an export of other files drops what was found of those before.

    Returns:
        What the file holds now.
    """
    known = read_deployment(folder)
    if part == "export" and _digests(known.get("export")) != _digests(content):
        known = {"schema": DEPLOYMENT_SCHEMA}
    known[part] = dict(content)
    write_atomically(folder / DEPLOYMENT_FILE, json_text(known, indent=2) + "\n")
    return known


def _digests(part: object) -> dict[str, Any]:
    """The digests of what was exported, by target and file."""
    found: dict[str, Any] = {}
    if isinstance(part, Mapping):
        for target, content in part.get("targets", {}).items():
            found |= {f"{target}/{name}": entry["sha256"] for name, entry in content["files"].items()}
    return found
