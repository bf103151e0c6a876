"""Hardware and software versions of a measurement, without host name, user name or paths."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from thaw._version import __version__

CPUINFO = Path("/proc/cpuinfo")
CPUINFO_KEYS = ("model name", "cpu model", "Model", "Hardware", "uarch")


def environment(device: str) -> dict[str, Any]:
    """Versions and hardware, JSON-ready.

    Args:
        device: description of the compute device ("cpu", "cuda: NVIDIA H100"), returned unchanged.

    Returns:
        `thaw`, `python`, `torch` and `numpy` versions (str; None for one that is not installed); `os`, `cpu` (str);
        `cores` (int, available to this process); `memory_bytes` (int, of the machine; None if unknown); `device` (str).
    """
    return {
        "thaw": __version__,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "numpy": _version("numpy"),
        "os": _operating_system(),
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "memory_bytes": _memory_bytes(),
        "device": device,
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _operating_system() -> str:
    """For example "Debian GNU/Linux 12 (bookworm), Linux 6.1.0, x86_64"."""
    # Only the version numbers of the kernel: the rest of the release is free text.
    number = re.match(r"[\d.]*\d", platform.release())
    kernel = f"{platform.system()} {number.group()}" if number else platform.system()
    parts = [kernel, platform.machine()]
    with contextlib.suppress(OSError, KeyError):
        parts.insert(0, platform.freedesktop_os_release()["PRETTY_NAME"])
    return ", ".join(part for part in parts if part)


def _cpu_model() -> str:
    """The processor's name if known, otherwise its architecture."""
    text = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else ""
    return _cpu_model_from_cpuinfo(text) or platform.processor() or platform.machine() or "unknown"


def _cpu_model_from_cpuinfo(text: str) -> str:
    """The first processor name in the text of /proc/cpuinfo; "" if there is none."""
    pairs = [line.split(":", 1) for line in text.splitlines() if ":" in line]
    found = {key.strip(): " ".join(value.split()) for key, value in reversed(pairs)}
    return next((found[key] for key in CPUINFO_KEYS if found.get(key) not in (None, "", "unknown")), "")


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0))


def _memory_bytes() -> int | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    return total if total > 0 else None
