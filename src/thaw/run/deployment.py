"""deployment.json: the results of export, verify and bench (docs/metrics.md), one part for each, for the report."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from thaw.errors import ModelFileError, RunError
from thaw.export.folder import exported_formats, read_format
from thaw.files import read_document, write_document
from thaw.quoting import shown
from thaw.run.folder import DEPLOYMENT_FILE

DEPLOYMENT_SCHEMA = 1

Part = Literal["export", "verify", "bench"]

_REMEDY = "remove it; export, verify and bench write it again"


def read_deployment(folder: Path) -> dict[str, Any]:
    """The content of a run folder's deployment.json; only a schema if there is no such file.

    Raises:
        RunError: when it is damaged or has another schema.
    """
    path = folder / DEPLOYMENT_FILE
    if not path.exists():
        return {"schema": DEPLOYMENT_SCHEMA}
    known = read_document(path, remedy=_REMEDY)
    parts = [known.get(part, {}) for part in get_args(Part)]
    if not all(isinstance(part, dict) and _has_formats(part) for part in parts):
        raise RunError(f"{path}: invalid content\n{_REMEDY}")
    if known.get("schema") != DEPLOYMENT_SCHEMA:
        found = shown(known.get("schema"))
        raise RunError(f"{path} has schema {found}; this version of thaw reads {DEPLOYMENT_SCHEMA}\n{_REMEDY}")
    return known


def update_deployment(folder: Path, part: Part, content: Mapping[str, Any]) -> dict[str, Any]:
    """Replace one part of deployment.json. An export of other files removes the results for the earlier ones.

    Returns:
        The new content of the file.
    """
    known = read_deployment(folder)
    if part == "export" and _digests(known.get("export")) != _digests(content):
        known = {"schema": DEPLOYMENT_SCHEMA}
    known[part] = dict(content)
    write_document(folder / DEPLOYMENT_FILE, known)
    return known


def exported_files(out: Path) -> dict[str, dict[str, Any]]:
    """Format -> precisions and files, for every complete export in `out`."""
    found: dict[str, dict[str, Any]] = {}
    for name in exported_formats(out):
        with contextlib.suppress(ModelFileError):
            exported = read_format(out, name)
            if exported is not None:
                found[name] = exported.as_dict()
    return found


def _has_formats(part: Mapping[str, Any]) -> bool:
    """Whether a part lists exported files by format, name and digest."""
    formats = part.get("formats", {})
    return isinstance(formats, dict) and all(
        isinstance(content, dict)
        and isinstance(content.get("files"), dict)
        and all(isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in content["files"].values())
        for content in formats.values()
    )


def _digests(part: object) -> dict[str, Any]:
    """The digests of the exported files, by format and name."""
    found: dict[str, Any] = {}
    if isinstance(part, Mapping):
        for format_, content in part.get("formats", {}).items():
            found |= {f"{format_}/{name}": entry["sha256"] for name, entry in content["files"].items()}
    return found
