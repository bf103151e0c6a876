"""Models that ship with the package: "zoo:NAME", and its folder.

src/thaw/zoo/NAME/    model.safetensors, model-int8.safetensors, card.json
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path

from thaw.errors import ModelFileError
from thaw.quoting import shown

ZOO_PREFIX = "zoo:"
CARD_FILE = "card.json"


def zoo_root() -> Path:
    """The folder of the models that ship with the package."""
    return Path(str(resources.files("thaw") / "zoo"))


def zoo_folders() -> tuple[Path, ...]:
    """The folders of the models that ship with the package, sorted; each has the name of its model."""
    root = zoo_root()
    found = root.iterdir() if root.is_dir() else ()
    return tuple(sorted(entry for entry in found if (entry / CARD_FILE).is_file()))


def zoo_folder(path: str | Path) -> Path | None:
    """The folder of "zoo:NAME"; None for a path.

    Raises:
        ModelFileError: when the zoo has no such model.
    """
    text = str(path)
    return folder_of(text.removeprefix(ZOO_PREFIX)) if text.startswith(ZOO_PREFIX) else None


def folder_of(name: str) -> Path:
    """The folder of the model `name`, without zoo:.

    Raises:
        ModelFileError: when the zoo has no such model.
    """
    known = {folder.name: folder for folder in zoo_folders()}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=2)
        hint = f"; did you mean {' or '.join(ZOO_PREFIX + each for each in close)}?" if close else ""
        expected = f"expected one of {', '.join(known)}" if known else "no models are installed"
        raise ModelFileError(
            f"unknown model {shown(ZOO_PREFIX + name)}{hint}\n{expected}; see thaw zoo", code="model-file-zoo"
        )
    return known[name]
