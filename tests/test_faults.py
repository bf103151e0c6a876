"""A small part of the fault campaign (tests/faults, `make faults`): cases of every area except the wheel.

The whole campaign takes half an hour; CONTRIBUTING.md says when to run it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).resolve().parent / "faults"


@pytest.mark.timeout(900)
def test_small_campaign_finds_no_fault(tmp_path):
    # With patience, since other tests may run at the same time.
    command = [sys.executable, str(CAMPAIGN), "--small", "--patience", "4"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    # The line of a fault has the command to repeat it: python tests/faults --small --only AREA --case N.
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-6000:]}"
    for area in ("damaged model.safetensors", "damaged run.json", "kill export", "cache in the", "odd data sets"):
        assert area in done.stdout
