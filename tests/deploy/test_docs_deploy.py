"""The instructions of docs/deploy.md work: the firmware is built and run, and all names exist."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import REPOSITORY
from PIL import Image
from sklearn.datasets import load_digits

from thaw.data.resize import resize
from thaw.evidence.emulate import missing_tools
from thaw.graph.cost import STACK_BYTES
from thaw.graph.interpret import run as run_reference
from thaw.run.deployment import read_deployment
from thaw.run.run import Run

DOCS = REPOSITORY / "docs"
PAGE = (DOCS / "deploy.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The only code block in this language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    run = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(finished.path, run)
    # The run of the page is named digits.
    Run.open(run).export(formats=["c"], prefix="digits")
    return run


def linker_script(ram_bytes: int) -> str:
    """The board of the page with `ram_bytes` of RAM, including the stack."""
    script, count = re.subn(r"(ORIGIN = 0x20000000, LENGTH = )4M", rf"\g<1>{ram_bytes}", block("ld"))
    assert count == 1
    return script


def links_within(folder: Path, build: list[str], ram_bytes: int) -> bool:
    (folder / "board.ld").write_text(linker_script(ram_bytes))
    return subprocess.run(build, cwd=folder, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(bool(missing_tools()), reason=f"not installed: {' '.join(missing_tools())}")
@pytest.mark.parametrize("number", [3, 10])
def test_documented_firmware_agrees_with_the_model(exported, tmp_path, number):
    gray = np.kron(load_digits().images[number], np.ones((9, 12))).astype(np.uint8) * 15
    photo = np.stack([gray, gray // 2, 255 - gray], axis=-1)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    for name in ("digits.h", "digits.c"):
        shutil.copy(exported / "export" / "c" / name, tmp_path)
    (tmp_path / "main.c").write_text(block("c"))
    # The board has the RAM that the run reports, so that the linker fails if it is too small.
    cost = json.loads((exported / "metrics.json").read_text())["cost"]
    (tmp_path / "board.ld").write_text(linker_script(cost["ram_bytes"]))
    subprocess.run([sys.executable, "-c", block("python")], cwd=tmp_path, check=True)
    build, size, run = map(shlex.split, block("sh").replace("\\\n", " ").splitlines())
    built = subprocess.run(
        [*build, "-Wall", "-Wextra", "-Werror"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    subprocess.run(size, cwd=tmp_path, check=True, capture_output=True)
    assert not links_within(tmp_path, build, cost["arena_bytes"] + STACK_BYTES)
    assert links_within(tmp_path, build, cost["ram_bytes"])

    firmware = subprocess.Popen(run, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        said = firmware.stdout.readline()
    finally:
        # Firmware does not end by itself.
        firmware.kill()
        firmware.communicate()

    opened = Run.open(exported)
    graph, input_spec = opened.model.graph("int8"), opened.model.input_spec
    scores = run_reference(graph, resize(photo, input_spec)[None])[graph.outputs[-1]][0].astype(int)
    best = int(scores.argmax())
    assert said == f"{opened.model.classes[best]}{(scores[best] + 128) * 100 // 256:4d} %\n"


def test_every_name_in_deployment_json_is_documented(exported):
    Run.open(exported).verify(images=3)
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    known = read_deployment(exported)
    # Names of files and programs are not ours.
    for content in known["export"]["formats"].values():
        content["files"] = dict.fromkeys(content["files"])
        assert all(content["files"].keys())
        content["files"] = {}

    def keys(tree):
        if isinstance(tree, dict):
            return set(tree).union(*map(keys, tree.values()))
        return set().union(*map(keys, tree)) if isinstance(tree, list) else set()

    names = keys(json.loads(json.dumps(known)))
    assert {"arena_bytes", "must_be_equal", "ai-edge-litert"} <= names
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_documented_commands_exist():
    from thaw.cli import app

    told = set(re.findall(r"^ {4}thaw (\w+)", PAGE, re.MULTILINE))
    assert told >= {"train", "export", "verify", "bench"}
    assert told <= {command.name or command.callback.__name__ for command in app.app.registered_commands}
