"""Record of cases and faults, and the random seed of every case, which the log can reproduce."""

from __future__ import annotations

import collections
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO


@dataclass
class Ledger:
    """Counts of tried cases and the faults among them.

    Attributes:
        seed: seed of the campaign.
        log: file to which every case is written before it is tried.
        only_case: number of the only case to try in each area; None for all.
    """

    seed: int
    log: TextIO
    only_case: int | None = None
    tried: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[tuple[str, str]] = field(default_factory=list)
    notes: collections.Counter[str] = field(default_factory=collections.Counter)
    started: float = field(default_factory=time.monotonic)

    def chance(self, area: str, number: int) -> random.Random:
        """The random generator of a case, determined by seed, area and number."""
        return random.Random(f"{self.seed}/{area}/{number}")

    def wants(self, number: int) -> bool:
        """Whether this case is to be tried."""
        return self.only_case in (None, number)

    def begin(self, area: str, number: int, what: str) -> None:
        """Write down a case before it is tried."""
        self.tried[area] += 1
        self.log.write(f"{time.monotonic() - self.started:8.1f} {area} --case {number}: {what}\n")
        self.log.flush()

    def fault(self, area: str, what: str) -> None:
        """Record a fault of thaw."""
        self.faults.append((area, what))
        self.log.write(f"FAULT {area}: {what}\n")
        self.log.flush()
        sys.stderr.write(f"FAULT {area}: {what[:600]}\n")

    def check(self, area: str, case: str, found: str) -> bool:
        """Record a fault if `found` is not empty; return whether there was one."""
        if found:
            self.fault(area, f"{case}: {found}")
        return bool(found)

    def summary(self) -> str:
        """A table of tried cases and faults."""
        lines = [f"{'area':<34} {'tried':>7} {'faults':>7}"]
        wrong = collections.Counter(area for area, _ in self.faults)
        areas = sorted({*self.tried, *wrong})
        lines += [f"{area:<34} {self.tried[area]:>7,} {wrong[area]:>7,}" for area in areas]
        lines.append(f"{'all':<34} {sum(self.tried.values()):>7,} {len(self.faults):>7,}")
        lines += [f"{count:,} {note}" for note, count in sorted(self.notes.items())]
        lines.append(f"seed {self.seed}, {time.monotonic() - self.started:.0f} s")
        return "\n".join(lines)


def same_files(first: Path, second: Path, names: tuple[str, ...]) -> str:
    """The named files that differ between two folders; "" if none do."""
    differing = [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()]
    return f"{', '.join(differing)} differ from those of an undisturbed run" if differing else ""
