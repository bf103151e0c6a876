"""Checks of the whole repository: no local paths, no large files, valid links, a complete package."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from pathlib import PurePosixPath

import pytest
from command_line import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from thaw._version import __version__

MAX_FILE_BYTES = 1_000_000
MAX_MODULE_LINES = 450

# A path of one machine. The character before the slash distinguishes it from the middle of a URL.
LOCAL_PATH = re.compile(r"(?<![\w.~/-])/(?:home/[\w.-]+|Users/[\w.-]+|root|work|workspace)/")

# [text](target), ![text](target "title"), <img src="target">, <a href="target">
LINK = re.compile(r"""\]\(\s*<?([^)\s>]+)>?[^)]*\)|(?:src|href)=["']([^"']+)["']""")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)


@cache
def repository_files() -> tuple[str, ...]:
    """The files of the repository, tracked or untracked, as paths relative to its root."""
    # The folder may belong to another user than the one who runs the tests, which git rejects by default.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: which files belong to the repository is not known")
    return tuple(sorted(name for name in listing.decode().split("\0") if name and (REPOSITORY / name).is_file()))


def text_files() -> dict[str, str]:
    """Path -> content of the repository's text files: those without a zero byte."""
    contents = {name: (REPOSITORY / name).read_bytes() for name in repository_files()}
    return {name: data.decode() for name, data in contents.items() if b"\0" not in data and not _is_picture(name)}


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in {".png", ".jpg", ".jpeg", ".gif", ".webp"}


def test_no_file_contains_a_local_path():
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in text_files().items()
        for number, line in enumerate(text.splitlines(), start=1)
        if LOCAL_PATH.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "is_local"),
    [
        ("see {home}/ann/thaw/x.py", True),
        ('"{root}/thaw"', True),
        ("https://example.org{home}/ann/", False),
        ("../shared{root}/data", False),
        ("/usr/bin/python3", False),
    ],
)
def test_local_path_finder_finds_local_paths(text, is_local):
    line = text.format(home="/" + "home", root="/" + "root")
    assert bool(LOCAL_PATH.search(line)) == is_local


def test_no_file_is_too_large():
    sizes = {name: (REPOSITORY / name).stat().st_size for name in repository_files()}
    assert {name: size for name, size in sizes.items() if size > MAX_FILE_BYTES} == {}


def test_no_module_is_too_long():
    lines = {name: text.count("\n") for name, text in text_files().items() if name.endswith(".py")}
    assert {name: count for name, count in lines.items() if count > MAX_MODULE_LINES} == {}


def test_relative_links_point_to_files_of_the_repository():
    files = repository_files()
    known = {PurePosixPath(name) for name in files} | {up for name in files for up in PurePosixPath(name).parents}
    broken = [
        f"{name}: {target}"
        for name, text in text_files().items()
        if name.endswith(".md")
        for target in _relative_links(text)
        if _normal(PurePosixPath(name).parent / target) not in known
    ]
    assert not broken, "\n".join(broken)


def test_link_finder_finds_links():
    text = (
        '[a](docs/a.md#part) ![b](b.png "title") <img src="c.png"> [d](https://example.org) [e](#here)\n'
        "```\n[f](in/code.md)\n```\n"
    )
    assert _relative_links(text) == ["docs/a.md", "b.png", "c.png"]


def _relative_links(text: str) -> list[str]:
    targets = [first or second for first, second in LINK.findall(FENCE.sub("", text))]
    return [target.split("#")[0] for target in targets if not EXTERNAL.match(target) and not target.startswith("#")]


def _normal(path: PurePosixPath) -> PurePosixPath | None:
    """The path without `..`, or None if it is outside the repository."""
    parts: list[str] = []
    for part in path.parts:
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            return None
    return PurePosixPath(*parts)


@cache
def _constraints() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == [], "more than name==version"
    return {canonicalize_name(name): version for name, version in (pin.split("==") for pin in pins)}


def test_constraints_have_a_version_for_every_dependency():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    for text in [*project["dependencies"], *(text for extra in extras for text in extra)]:
        requirement = Requirement(text)
        version = _constraints().get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt has no version of {requirement.name}"
        assert requirement.specifier.contains(version), f"{requirement} does not allow {version} of constraints.txt"


def test_changelog_begins_with_this_version():
    versions = re.findall(r"^## \[([^\]]+)\]", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == __version__


def test_wheel_contains_every_file_of_the_package(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    expected = {name.removeprefix("src/") for name in repository_files() if name.startswith("src/thaw/")}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "thaw/py.typed" in expected
    # Files that the build downloads are in addition to these.
    packaged = {name for name in names if name.startswith("thaw/") and not name.startswith("thaw/web/vendor/")}
    assert packaged == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)
