"""Messages name options on the command line, and arguments in Python.

Messages are written with options, such as "choose another folder with --out". A Python caller sees "choose another
folder with out=".
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

_ARGUMENTS = {
    "--board": "boards=",
    "--budget": "budget=",
    "--classes": "classes=",
    "--data-root": "data_root=",
    "--device": "device=",
    "--float": 'precision="float"',
    "--folds": "folds=",
    "--group-by": "group_by=",
    "--input": "input=",
    "--int8": 'precision="int8"',
    "--out": "out=",
    "--overwrite": "overwrite=True",
    "--prefix": "prefix=",
    "--recipe": "recipe=",
    "--seed": "seed=",
    "--set": "overrides=",
    "--skip-broken": "skip_broken=True",
}
_OPTION = re.compile("--[a-z][a-z0-9-]*")
_PHRASES = {
    r"thaw train --resume ('[^\n]*'|\S+)": r"thaw.Run.open(\1).resume()",
    r"thaw export --to (\w+)": r'export(["\1"])',
    r"see thaw zoo$": "see thaw.zoo_cards()",
    r"--(device|recipe) ([\w-]+)": r'\1="\2"',
    r"--data-root (\S+)": r"data_root=\1",
    r"--set '?(\S+?)'?(?=[,;:)]?(?:\s|$))": r'overrides=["\1"]',
}

_names_options = [False]


@contextlib.contextmanager
def naming_options() -> Iterator[None]:
    """A context in which messages name options, for the command line."""
    before, _names_options[0] = _names_options[0], True
    try:
        yield
    finally:
        _names_options[0] = before


def for_the_reader(message: str) -> str:
    """A message that names options on the command line, and arguments elsewhere."""
    if _names_options[0]:
        return message
    for pattern, replacement in _PHRASES.items():
        message = re.sub(pattern, replacement, message)
    return _OPTION.sub(lambda option: _ARGUMENTS.get(option[0], option[0]), message)
