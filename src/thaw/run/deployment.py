"""deployment.json: what is known of a run's deployment (docs/metrics.md).

`thaw export`, `thaw verify` and `thaw bench` each write a part of it; the report shows the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from thaw.errors import RunError
from thaw.files import read_document, write_document
from thaw.quoting import shown
from thaw.run.folder import DEPLOYMENT_FILE

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
    known = read_document(path, mend=_ANEW)
    parts = [known.get(part, {}) for part in get_args(Part)]
    if not all(isinstance(part, dict) and _has_targets(part) for part in parts):
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
    write_document(folder / DEPLOYMENT_FILE, known)
    return known


def _has_targets(part: Mapping[str, Any]) -> bool:
    """Whether what a part lists of exported files is by target, file and digest."""
    targets = part.get("targets", {})
    return isinstance(targets, dict) and all(
        isinstance(content, dict)
        and isinstance(content.get("files"), dict)
        and all(isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in content["files"].values())
        for content in targets.values()
    )


def _digests(part: object) -> dict[str, Any]:
    """The digests of what was exported, by target and file."""
    found: dict[str, Any] = {}
    if isinstance(part, Mapping):
        for target, content in part.get("targets", {}).items():
            found |= {f"{target}/{name}": entry["sha256"] for name, entry in content["files"].items()}
    return found
