"""The public API: imports of a prediction, and messages that name options or arguments."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from command_line import TINY_OVERRIDES, error_of
from PIL import Image

import thaw
from thaw.wording import for_the_reader, naming_options

IMPORTED = """
import sys
{work}
print(*sorted(name for name in sys.modules if name.split(".")[0] == "thaw"))
"""
FROM_PYTHON = IMPORTED.format(work="import thaw; thaw.Model.load({model!r}).predict({image!r})")
FROM_COMMAND_LINE = IMPORTED.format(
    work="""
from thaw.cli import main
sys.argv = ["thaw", "predict", {model!r}, {image!r}]
try:
    main()
except SystemExit as end:
    assert not end.code
"""
)
MOST_MODULES = 64
"""Modules of thaw that a prediction imports: model with its kernels, model file, and image decoding."""


def imported(program, **values):
    done = subprocess.run(
        [sys.executable, "-c", program.format(**values)], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.splitlines()[-1].split())


def test_prediction_imports_only_what_a_model_needs(finished, tmp_path):
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "a.png")
    values = {"model": str(finished.path), "image": str(tmp_path / "a.png")}
    from_python = imported(FROM_PYTHON, **values)
    command_line = {name for name in imported(FROM_COMMAND_LINE, **values) if not name.startswith("thaw.cli")}
    assert command_line == from_python
    assert len(from_python) <= MOST_MODULES, sorted(from_python)
    assert not {"thaw.run", "thaw.deploy", "thaw.export", "thaw.evidence", "thaw.graph", "thaw.recipe"} & from_python


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("choose another folder with --out, or allow it with --overwrite", "out=, or allow it with overwrite=True"),
        ("make it smaller, with --set data.input=..., or wait", 'with overrides=["data.input=..."], or wait'),
        ("(--set data.range=LOW,HIGH chooses)", '(overrides=["data.range=LOW,HIGH"] chooses)'),
        ("--set dual.epochs: expected section.key=value", 'overrides=["dual.epochs"]: expected'),
        ("take --recipe balanced, which fits", 'take recipe="balanced", which fits'),
        ("resume it with: thaw train --resume a/b", "resume it with: thaw.Run.open(a/b).resume()"),
        ("or resume it with: thaw train --resume 'a b'", "or resume it with: thaw.Run.open('a b').resume()"),
        ("expected one of a, b; see thaw zoo", "expected one of a, b; see thaw.zoo_cards()"),
        ("gcc --version", "gcc --version"),
    ],
)
def test_message_names_options_or_arguments(message, expected):
    assert expected in for_the_reader(message)
    assert for_the_reader(for_the_reader(message)) == for_the_reader(message)
    with naming_options():
        assert for_the_reader(message) == message


def test_same_error_on_command_line_and_in_python(finished, call):
    with pytest.raises(thaw.RunError) as caught:
        thaw.train("digits", overrides=TINY_OVERRIDES, out=finished.path)
    assert "out=" in str(caught.value)
    assert "--" not in str(caught.value)
    error_of(["--out", "--overwrite"], call("train", "digits", "--out", finished.path), 1)
