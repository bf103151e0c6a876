"""Before a build, and for `make web`: onnxruntime-web, which the page of `thaw demo` runs, from npm into the package.

It is not in the repository, since it is 14 MB. It comes by the npm client, in the version and with the digest below.
Where that fails the build goes on without it, and `thaw demo` says what to do; where it is there already, nothing is
asked for.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # `make web` needs no hatchling
    BuildHookInterface = object

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package's archive, in base64, as npm's records have it."""

FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
VENDOR = Path(__file__).resolve().parent / "src" / "thaw" / "web" / "vendor"
MARK = "VERSION"
"""A file that is written last, and says which version the others are of."""

NPM_SECONDS = 300


class VendorError(Exception):
    """Why onnxruntime-web could not be had."""


class WebVendorHook(BuildHookInterface):
    """The build hook, which hatchling finds by its base class."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See that the files are there, for wheels and editable installs alike."""
        del version, build_data
        try:
            fetch_vendor()
        except VendorError as error:
            self.app.display_warning(f"built without {PACKAGE}, so `thaw demo` will not run: {error}")


def is_there() -> bool:
    """Whether this version is there already."""
    mark = VENDOR / MARK
    whole = all((VENDOR / name).is_file() for name in FILES)
    return whole and mark.is_file() and mark.read_text("utf-8").strip() == VERSION


def fetch_vendor() -> None:
    """Put the files into the package, unless they are there.

    Raises:
        VendorError: without npm, without its registry, or for an archive that is another than the one we know.
    """
    if is_there():
        return
    npm = shutil.which("npm")
    if npm is None:
        raise VendorError("npm is not installed")
    try:
        with tempfile.TemporaryDirectory() as folder:
            _unpack(_download(npm, Path(folder)), Path(folder))
    except OSError as error:
        raise VendorError(f"it could not be written to {VENDOR}: {error.strerror or error}") from error


def _download(npm: str, folder: Path) -> Path:
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--fetch-retries=1", "--loglevel=error"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=NPM_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VendorError(f"npm did not run: {error}") from error
    archive = folder / f"{PACKAGE}-{VERSION}.tgz"
    if done.returncode or not archive.is_file():
        why = " ".join(done.stderr.split())[:300] or f"exit code {done.returncode}"
        raise VendorError(f"npm could not fetch {PACKAGE} {VERSION}: {why}")
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != SHA512:
        raise VendorError(f"{PACKAGE} {VERSION} has the digest sha512-{found}: expected sha512-{SHA512}")
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    VENDOR.mkdir(parents=True, exist_ok=True)
    (VENDOR / MARK).unlink(missing_ok=True)
    with tarfile.open(archive) as contents:
        for name in FILES:
            member = contents.extractfile(f"package/dist/{name}")
            if member is None:
                raise VendorError(f"{PACKAGE} {VERSION} has no {name}")
            temporary = folder / name
            temporary.write_bytes(member.read())
            shutil.move(temporary, VENDOR / name)
    (VENDOR / MARK).write_text(f"{VERSION}\n", "utf-8")


if __name__ == "__main__":
    try:
        fetch_vendor()
    except VendorError as problem:
        sys.exit(f"error: {problem}")
