"""Check a card.json of the zoo that was edited by hand, and write its new digest.

python bench/zoo_seal.py mnist-15k
"""

from __future__ import annotations

import argparse
from pathlib import Path

from thaw.errors import ModelFileError, ThawError
from thaw.files import SEAL, parse_object, write_document
from thaw.model.zoo import CARD_FILE, zoo_root
from thaw.model.zoo_card import ZooCard, card_of, read_card


def main() -> None:
    """Seal one card."""
    parser = argparse.ArgumentParser(prog="bench/zoo_seal.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="name of the model")
    parser.add_argument("--out", type=Path, help="folder of the zoo (default: the one in the package)")
    options = parser.parse_args()
    print(f"zoo:{seal_card(options.name, out=options.out).name}: sealed")


def seal_card(name: str, *, out: Path | None = None) -> ZooCard:
    """Write the digest of an edited card.json, and return the card.

    Raises:
        ModelFileError: if there is no card, or the edited one is not valid.
    """
    folder = (zoo_root() if out is None else out.expanduser()) / name
    path = folder / CARD_FILE
    try:
        content = parse_object(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not a JSON object"
        raise ModelFileError(f"cannot read {path}: {reason}") from error
    content.pop(SEAL, None)
    card_of(content, path)
    write_document(path, content)
    return read_card(folder)


if __name__ == "__main__":
    try:
        main()
    except ThawError as error:
        raise SystemExit(f"error: {error}") from None
