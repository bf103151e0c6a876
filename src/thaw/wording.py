"""One message for two readers: the command line names options, Python names arguments.

Messages are written with options, such as "choose another folder with --out". A caller from Python reads "choose
another folder with out=".
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
# An option, and the value after it if it is a setting or a plain word.
_OPTION = re.compile(r"(--[a-z][a-z0-9-]*)(?: '?([\w.]+=\S*?)'?(?=[,;:)]?(?:\s|$)))?")
_COMMANDS = {
    r"thaw train --resume (\S+)": r"thaw.Run.open(\1).resume()",
    r"thaw export --to (\w+)": r'export(["\1"])',
    r"--recipe ([\w-]+)": r'recipe="\1"',
}

_names_options = [False]


@contextlib.contextmanager
def naming_options() -> Iterator[None]:
    """Within it, messages name options: the reader is at the command line."""
    before, _names_options[0] = _names_options[0], True
    try:
        yield
    finally:
        _names_options[0] = before


def for_the_reader(message: str) -> str:
    """A message as its reader knows things: with options at the command line, elsewhere with arguments."""
    if _names_options[0]:
        return message
    for pattern, replacement in _COMMANDS.items():
        message = re.sub(pattern, replacement, message)
    return _OPTION.sub(_argument, message)


def _argument(found: re.Match[str]) -> str:
    option, setting = found[1], found[2]
    if option == "--set" and setting:
        return f'overrides=["{setting}"]'
    return found[0].replace(option, _ARGUMENTS.get(option, option))
