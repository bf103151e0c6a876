"""The documentation site: it includes every page, and generated pages are up to date."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest
from command_line import REPOSITORY

from thaw.recipe.reference import settings_reference

DOCS = REPOSITORY / "docs"


def tool(name: str):
    spec = importlib.util.spec_from_file_location(name, DOCS / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_settings_page_is_up_to_date():
    written = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert written == tool("settings_page").page(), "run python docs/tools/settings_page.py"


def test_commands_page_is_up_to_date():
    written = (REPOSITORY / "docs" / "commands.md").read_text("utf-8")
    assert written == tool("commands_page").page(), "run python docs/tools/commands_page.py"


def test_settings_page_has_every_setting():
    written = (DOCS / "settings.md").read_text(encoding="utf-8")
    keys = {each.key for each in settings_reference()}
    assert {"augment.cutmix", "plain.fit.label_smoothing", "plain.fit.ema", "data.image_column"} <= keys
    assert [key for key in sorted(keys) if f"| `{key}` |" not in written] == []


def test_site_builds_without_warnings(tmp_path):
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    sources = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")}
    assert sources | {"tutorial.html"} <= pages
    # The site works offline: no page loads a script, a style or a font from elsewhere.
    for name in pages:
        text = (tmp_path / "site" / name).read_text(encoding="utf-8")
        assert 'src="http' not in text, name
        assert '<link rel="stylesheet" href="http' not in text, name


def test_glossary_defines_each_term_once_in_alphabetical_order():
    terms = re.findall(r"^\*\*(.+?)\.\*\*", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(terms) > 30
    assert terms == sorted(set(terms), key=str.lower)
