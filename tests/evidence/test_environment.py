"""The description of the machine: correct, complete, and without personal names."""

from __future__ import annotations

import getpass
import json
import os
import platform
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from thaw._version import __version__
from thaw.evidence import environment

module = import_module("thaw.evidence.environment")

X86 = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Intel(R)  Xeon(R) CPU @ 2.00GHz\nflags\t: fpu\n"
TWO_KINDS = X86 + X86.replace("Xeon(R)", "Other")
RASPBERRY = "processor\t: 0\nCPU part\t: 0xd08\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"


def test_values_are_correct() -> None:
    found = environment("cpu")
    assert set(found) == {"thaw", "python", "torch", "numpy", "os", "cpu", "cores", "memory_bytes", "device"}
    assert found["thaw"] == __version__
    assert found["python"] == platform.python_version()
    assert found["numpy"] == np.__version__
    assert found["device"] == "cpu"
    assert platform.machine() in found["os"]
    assert found["cpu"]
    assert json.loads(json.dumps(found)) == found


def test_contains_no_host_user_or_path() -> None:
    text = json.dumps(environment("cpu"))
    assert str(Path.home()) not in text
    for name in (socket.gethostname(), getpass.getuser()):
        assert f'"{name}"' not in text


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no processor affinity")
def test_cores_are_those_available_to_the_process() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert environment("cpu")["cores"] == 1
    finally:
        os.sched_setaffinity(0, before)
    assert environment("cpu")["cores"] == len(before)


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="this system has no /proc/meminfo")
def test_memory_is_that_of_the_machine() -> None:
    kib = int(Path("/proc/meminfo").read_text().split()[1])
    assert environment("cpu")["memory_bytes"] == pytest.approx(kib * 1024, rel=0.05)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (X86, "Intel(R) Xeon(R) CPU @ 2.00GHz"),
        (TWO_KINDS, "Intel(R) Xeon(R) CPU @ 2.00GHz"),
        (RASPBERRY, "Raspberry Pi 4 Model B Rev 1.4"),
        ("processor : 0\nBogoMIPS : 50.00\n", ""),
        ("model name : unknown\n", ""),
        ("", ""),
    ],
)
def test_processor_names_are_read_from_cpuinfo(text: str, name: str) -> None:
    assert module._cpu_model_from_cpuinfo(text) == name


def test_unknown_processor_gives_the_architecture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "missing")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert environment("cpu")["cpu"] == "riscv64"


def test_free_text_in_the_kernel_release_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "6.1.55-built-by-someone")
    assert "someone" not in environment("cpu")["os"]
    assert "6.1.55" in environment("cpu")["os"]


def test_missing_package_has_no_version() -> None:
    assert module._version("no-such-distribution-anywhere") is None


def test_evidence_does_not_import_torch() -> None:
    code = "import sys, thaw.evidence as e; e.environment('cpu'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
