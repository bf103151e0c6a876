"""Write docs/commands.md, the reference of the command line, from the commands themselves.

python docs/tools/commands_page.py
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from thaw.cli.app import app

PAGE = Path(__file__).parents[1] / "commands.md"

INTRODUCTION = """\
# Command line

Every command and option, as `thaw COMMAND --help` prints them. Data go to standard output, everything else to standard
error. Exit codes: 0 for success, 1 for an error that you can fix, 2 for a wrong command line, 70 for an error in thaw,
and 128 plus the number of the signal for a command that was stopped.

This page is generated: run `python docs/tools/commands_page.py` after a change to a command.
"""


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join([INTRODUCTION, *_sections(typer.main.get_command(app), "thaw")])


def _sections(command: Any, name: str) -> Iterator[str]:
    is_group = hasattr(command, "commands")
    if not is_group or (command.params and name != "thaw"):
        yield (
            f"## {name}\n\n{_text(command.help)}\n\n    {_usage(command, name)}\n\n" + "\n".join(_table(command)) + "\n"
        )
    if not is_group:
        return
    for inner in command.commands.values():
        if not inner.hidden:
            yield from _sections(inner, f"{name} {inner.name}")


def _usage(command: Any, name: str) -> str:
    return " ".join([name, *map(_metavar, _of(command, "argument")), "[OPTIONS]"])


def _metavar(argument: Any) -> str:
    name = (argument.metavar or argument.name).upper().strip("[].")
    text = name if argument.required else f"[{name}]"
    return text if argument.nargs == 1 else f"{text}..."


def _of(command: Any, kind: str) -> list[Any]:
    return [each for each in command.params if each.param_type_name == kind and not getattr(each, "hidden", False)]


def _table(command: Any) -> Iterator[str]:
    yield "| argument or option | default | meaning |"
    yield "|---|---|---|"
    for each in (*_of(command, "argument"), *_of(command, "option")):
        names = each.opts + each.secondary_opts if each.param_type_name == "option" else [_metavar(each).strip("[].")]
        cells = (", ".join(f"`{name}`" for name in names), _default(each), _text(each.help))
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    is_given = isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""
    return f"`{value}`" if is_given else ""


def _text(text: str | None) -> str:
    # In Markdown, <name> would be an HTML tag.
    return " ".join(inspect.cleandoc(text or "").split()).replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
