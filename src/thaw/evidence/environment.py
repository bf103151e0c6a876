"""The machine and the versions that a number was measured with; no host name, user name or path is among them."""

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
        device: what the numbers were computed on, in words ("cpu", "cuda: NVIDIA H100"); passed on as it is.

    Returns:
        `thaw`, `python`, `torch` and `numpy` versions (str, the last two None where not installed); `os`, `cpu` (str);
        `cores` (int, those that this process may use); `memory_bytes` (int, of the whole machine, None where unknown);
        `device` (str).
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
    """Such as "Debian GNU/Linux 12 (bookworm), Linux 6.1.0, x86_64"."""
    # Only the leading numbers of the kernel's release: what follows is free text of whoever built it.
    number = re.match(r"[\d.]*\d", platform.release())
    kernel = f"{platform.system()} {number.group()}" if number else platform.system()
    parts = [kernel, platform.machine()]
    with contextlib.suppress(OSError, KeyError):
        parts.insert(0, platform.freedesktop_os_release()["PRETTY_NAME"])
    return ", ".join(part for part in parts if part)


def _cpu_model() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    name = ""
    if CPUINFO.is_file():
        name = _cpu_model_from_cpuinfo(CPUINFO.read_text(encoding="utf-8", errors="replace"))
    return name or platform.processor() or platform.machine() or "unknown"


def _cpu_model_from_cpuinfo(text: str) -> str:
    """The first name in the text of /proc/cpuinfo; x86 calls it "model name", MIPS and small ARM boards otherwise."""
    pairs = [line.split(":", 1) for line in text.splitlines() if ":" in line]
    found = {key.strip(): " ".join(value.split()) for key, value in reversed(pairs)}
    return next((found[key] for key in CPUINFO_KEYS if found.get(key) not in (None, "", "unknown")), "")


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    return total if total > 0 else None
