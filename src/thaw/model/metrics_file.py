"""Reads metrics.json for exports, studies, the zoo and the report's deployment section."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from thaw.errors import RunError
from thaw.files import read_document
from thaw.quoting import shown

METRICS_FILE = "metrics.json"
METRICS_SCHEMA = 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_Check = tuple[str, Callable[[Any], bool]]
_SHARE: _Check = ("a share from 0 to 1", lambda value: isinstance(value, float) and 0.0 <= value <= 1.0)
_COUNT: _Check = ("an integer from 0", lambda value: type(value) is int and value >= 0)
_NUMBER: _Check = ("a number from 0", _is_number)
_TEXT: _Check = ("a text", lambda value: isinstance(value, str))
_USED: Mapping[str, _Check] = {
    "dataset": _TEXT,
    "data.fingerprint": _TEXT,
    "recipe": _TEXT,
    "overrides": ("a list of texts", _is_texts),
    "seed": _COUNT,
    "parameters": _COUNT,
    "macs": _COUNT,
    "validation.accuracy": _SHARE,
    "test.accuracy": _SHARE,
    "test.count": _COUNT,
    "int8.test.accuracy": _SHARE,
    "int8.validation.accuracy": _SHARE,
    "latency.median_us": _NUMBER,
    "seconds": _NUMBER,
    "device": _TEXT,
    "precision": _TEXT,
    "kernels": _TEXT,
    "environment": ("an object", lambda value: isinstance(value, dict)),
    "stages": ("a list", lambda value: isinstance(value, list)),
}
"""The values that thaw reads, and their checks. docs/metrics.md describes all values."""


def read_metrics(path: Path) -> dict[str, Any]:
    """A run's metrics.json without its digest. The values that thaw itself uses are checked.

    Raises:
        RunError: when it cannot be read, was edited, has another schema, or a value is invalid.
    """
    metrics = read_document(path, remedy="restore the file, or start a new run")
    if metrics.get("schema") != METRICS_SCHEMA:
        raise RunError(f"{path} has schema {shown(metrics.get('schema'))}; this version of thaw reads {METRICS_SCHEMA}")
    for name, (expected, is_right) in _USED.items():
        value: Any = metrics
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not is_right(value):
            raise RunError(
                f"{path}: invalid {name} {shown(value)} (expected {expected})\nrestore the file, or train again"
            )
    return metrics
