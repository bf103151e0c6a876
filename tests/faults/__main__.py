"""The fault campaign: `python tests/faults` tests faults of other machines; CI runs it with --small.

    python tests/faults                             # everything: 100 kills, 10,000 mutated files, ...
    python tests/faults --only mutations --seed 7   # one area with another seed
    python tests/faults --only kills --case 12      # repeat one case, as in its line of the log

It needs nothing but what the tests need, writes to a scratch folder of its own, and ends with a table and exit code 1
if there was a fault. The log (--log) has a line for every case before it is tried.
"""

from __future__ import annotations

import os

# Before NumPy and torch are imported.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "support"))
sys.path.insert(1, str(Path(__file__).resolve().parents[2] / "bench"))

import forking
import kills
import mutations
import sets
import surroundings
import world as worlds
from ledger import Ledger

AREAS = ("kills", "mutations", "caches", "surroundings", "threads", "sets", "wheel")


def main() -> int:
    """Run the requested areas."""
    parser = argparse.ArgumentParser(prog="python tests/faults", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--small", action="store_true", help="a few cases of each area, in under a minute")
    parser.add_argument("--only", action="append", choices=AREAS, help="an area; repeatable")
    parser.add_argument("--seed", type=int, default=20_250_101)
    parser.add_argument("--case", type=int, help="only this case of each area")
    parser.add_argument("--kills", type=int)
    parser.add_argument("--mutations", type=int)
    parser.add_argument("--patience", type=float, default=1.0, help="times the 10 s in which a damaged file is refused")
    parser.add_argument("--log", type=Path, default=Path("faults.log"))
    parser.add_argument("--keep", action="store_true", help="leave the scratch folder there")
    given = parser.parse_args()
    if given.kills is None:
        given.kills = 3 if given.small else 100
    if given.mutations is None:
        given.mutations = 400 if given.small else 10_000
    areas = given.only or [area for area in AREAS if area != "wheel" or not given.small]
    forking.preload()
    root = Path(tempfile.mkdtemp(prefix="thaw-faults-"))
    try:
        with given.log.open("w", encoding="utf-8") as log:
            ledger = Ledger(seed=given.seed, log=log, only_case=given.case)
            world = worlds.make(root, small=given.small)
            for area in areas:
                _run(area, world, ledger, given)
            log.write(ledger.summary() + "\n")
    finally:
        if not given.keep:
            shutil.rmtree(root, ignore_errors=True)
    sys.stdout.write(ledger.summary() + "\n")
    return 1 if ledger.faults else 0


def _run(area: str, world: worlds.World, ledger: Ledger, given: argparse.Namespace) -> None:
    match area:
        case "kills":
            kills.run(world, ledger, given.kills)
        case "mutations":
            mutations.run(world, ledger, given.mutations, patience=given.patience)
        case "caches":
            sets.caches(world, ledger, small=given.small)
        case "surroundings":
            surroundings.run(world, ledger, small=given.small)
        case "threads":
            sets.threads(world, ledger, small=given.small)
        case "sets":
            sets.odd_sets(world, ledger, small=given.small)
        case _:
            surroundings.wheel(world, ledger)


if __name__ == "__main__":
    sys.exit(main())
