"""The examples in the documentation use commands, options and library names that exist."""

from __future__ import annotations

import re
import shlex

import pytest
import typer
from command_line import REPOSITORY

import thaw

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
COMMAND = re.compile(r"^(?: {4}(?:\.venv/bin/)?|.*`)(thaw [a-z]+ [^`]*?)(?:`.*)?$", re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The command lines in indented blocks and code spans, as words without comments and optional parts."""
    lines = COMMAND.findall(text.replace("\\\n", " "))
    return [shlex.split(re.sub(r"[\[\]|]|\.\.\.", " ", line), comments=True) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_command_and_option_exists(page):
    from thaw.cli.app import app

    group = typer.main.get_command(app)
    for _, name, *words in commands(page.read_text(encoding="utf-8")):
        assert name in group.commands, name
        command = group.commands[name]
        parts = [command, *getattr(command, "commands", {}).values()]
        known = {
            option
            for part in parts
            for parameter in part.params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= known | {"--help"}, f"thaw {name}: {used - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_library_name_exists(page):
    for block in re.findall(r"```(?:python|pycon)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for name in re.findall(r"\bthaw\.(\w+)", block):
            assert name in thaw.__all__
        for owner, kind in (("run", thaw.Run), ("model", thaw.Model)):
            for name in re.findall(rf"\b{owner}\.(\w+)", block):
                assert hasattr(kind, name), f"{owner}.{name}"


def test_command_finder_finds_commands():
    text = (
        "    thaw train photos/ --set a.b=c  # why\nRun `thaw zoo add NAME` first.\n    thaw info \\\n        --json\n"
    )
    assert commands(text) == [
        ["thaw", "train", "photos/", "--set", "a.b=c"],
        ["thaw", "zoo", "add", "NAME"],
        ["thaw", "info", "--json"],
    ]


def test_recipe_in_the_guide_is_valid(tmp_path):
    page = (REPOSITORY / "docs" / "choose.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "looped.toml").write_text(block, encoding="utf-8")
    assert thaw.load_recipe(str(tmp_path / "looped.toml")).model.family == "looped"
