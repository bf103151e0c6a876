"""Damaged files of every kind that thaw opens: they give an error message, or the result of the intact file."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import damage
from ledger import Ledger
from targets import Target, Unnoticed, copy_world, targets_of
from world import World

from thaw.errors import ThawError

JOBS = 2
LIMIT_SECONDS = 10.0
_LONGEST_MESSAGE = 1500
# The result of an intact file is computed before the first file of its kind is damaged.
_PREPARING_SECONDS = 120.0


def run(world: World, ledger: Ledger, count: int, *, patience: float = 1.0) -> None:
    """Try `count` damaged files, in processes that are restarted when one dies."""
    waiting = [number for number in range(count) if ledger.wants(number)]
    workers = [Worker(world, ledger, waiting[start::JOBS], start, patience) for start in range(JOBS)]
    while any(worker.work() for worker in workers):
        select.select([worker.pipe for worker in workers if worker.pipe is not None], [], [], 0.2)


class Worker:
    """A forked process that runs a list of cases and reports each one before and after."""

    def __init__(self, world: World, ledger: Ledger, cases: list[int], number: int, patience: float) -> None:
        self.world, self.ledger, self.number = world, ledger, number
        self.cases = cases
        self.limit = LIMIT_SECONDS * patience
        self.current: dict[str, Any] | None = None
        self.pipe: int | None = None
        self._rest = ""
        self._begin()

    def _begin(self) -> None:
        root = self.world.root / f"worker-{self.number}"
        shutil.rmtree(root, ignore_errors=True)
        read, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            os.close(read)
            _worker(self.world, root, self.ledger, self.cases, os.fdopen(write, "w", buffering=1))
        os.close(write)
        os.set_blocking(read, False)
        self.pipe = read
        self.heard = time.monotonic()
        # Files are copied and prepared before the first case.
        self.slack = _PREPARING_SECONDS

    def work(self) -> bool:
        """Process the reports; return whether more will follow."""
        if self.pipe is None:
            return False
        data: bytes | None = None
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.pipe, 1 << 20)
        for line in self._lines((data or b"").decode()):
            self._take(json.loads(line))
        waited = time.monotonic() - self.heard
        if data == b"":
            self._ended("")
        elif waited > self.limit + self.slack:
            os.kill(self.pid, signal.SIGKILL)
            self._ended(f"it did not end within {waited:.0f} s")
        return self.pipe is not None

    def _lines(self, text: str) -> list[str]:
        *lines, self._rest = (self._rest + text).split("\n")
        return lines

    def _take(self, told: dict[str, Any]) -> None:
        self.heard, self.slack = time.monotonic(), _PREPARING_SECONDS if "preparing" in told else 0.0
        if "preparing" in told:
            return
        if "found" not in told:
            self.current = told
            self.ledger.begin(f"damaged {told['name']}", told["case"], told["what"])
            return
        case = f"--case {told['case']}, {told['what']}"
        self.ledger.check(f"damaged {told['name']}", case, told["found"])
        self.ledger.notes[told["note"]] += 1
        self.cases = [each for each in self.cases if each != told["case"]]
        self.current = None

    def _ended(self, why: str) -> None:
        """Handle the end of the process: the work is done, or it died during a case, which is a fault."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.pipe)
        self.pipe = None
        if self.current is not None:
            told = self.current
            what = why or f"the process ended with {code}"
            self.ledger.fault(f"damaged {told['name']}", f"--case {told['case']}, {told['what']}: {what}")
            self.cases = [each for each in self.cases if each != told["case"]]
            self.current = None
        elif code or why:
            self.ledger.fault("damaged files", f"the worker ended with {code} {why}")
            return
        if self.cases:
            self._begin()


def _worker(world: World, root: Path, ledger: Ledger, cases: list[int], pipe: TextIO) -> None:
    """Run the cases and end the process."""
    code = 1
    try:
        own = copy_world(world, root)
        os.environ.update(own.env)
        targets = targets_of(own)
        whole: dict[str, object] = {}
        for case in cases:
            chance = ledger.chance("mutations", case)
            target = chance.choices(targets, [each.weight for each in targets])[0]
            if target.name not in whole:
                pipe.write(json.dumps({"preparing": target.name}) + "\n")
                with _put_back(target):
                    whole[target.name] = target.ask()
            _one(target, case, chance, whole[target.name], pipe)
        code = 0
    except BaseException:  # noqa: BLE001 - a forked child must not run on in the parent's code
        traceback.print_exc()
    finally:
        pipe.close()
        os._exit(code)


def _one(target: Target, case: int, chance: random.Random, expected: object, pipe: TextIO) -> None:
    """Damage one file, use it, and restore all files."""
    path = chance.choice(target.files)
    content, what, forged = _damaged(target, path.read_bytes(), chance)
    told = {"name": target.name, "case": case, "what": f"{path.name}: {what}{', forged' if forged else ''}"}
    pipe.write(json.dumps(told) + "\n")
    with _put_back(target):
        path.write_bytes(content)
        found, note = _asked(target, expected, may_differ=forged or not target.is_ours)
    pipe.write(json.dumps({**told, "found": found, "note": note}) + "\n")


@contextlib.contextmanager
def _put_back(target: Target) -> Iterator[None]:
    """A context that restores the files at its end, including other files that the use may write."""
    kept = {path: path.read_bytes() for path in (*target.files, *target.beside) if path.is_file()}
    try:
        yield
    finally:
        for path, data in kept.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        for path in target.beside:
            if path not in kept:
                path.unlink(missing_ok=True)


def _damaged(target: Target, data: bytes, chance: random.Random) -> tuple[bytes, str, bool]:
    """The damaged file: as bytes, or within its format, then mostly with a matching digest."""
    if target.damage == "bytes" or chance.random() < 0.4:
        return *damage.bytes_of(data, chance), False
    forged = chance.random() < 0.7
    if target.damage == "document":
        return *damage.document_of(data, chance, forged=forged), forged
    if target.damage == "recipe":
        return *damage.recipe_of(data, chance), False
    return *damage.tensors_of(data, chance, target.damage.removeprefix("tensors: "), forged=forged), forged


def _asked(target: Target, expected: object, *, may_differ: bool) -> tuple[str, str]:
    """The fault in the result, if any, and a short description of the result."""
    shown = io.StringIO()
    wrong, note = "", "damaged files gave the intact result"
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            found = target.ask()
        if may_differ:
            note = "forged files were accepted"
        elif found != expected and not _is_told(target, found):
            wrong = "another result without an error"
    except ThawError as error:
        note = "damaged files were rejected"
        if not 0 < len(str(error)) <= _LONGEST_MESSAGE:
            wrong = f"a message of {len(str(error)):,} letters"
    except Unnoticed as error:
        wrong = str(error)
    except Exception:  # noqa: BLE001 - any other is a fault
        wrong = traceback.format_exc()[-1500:]
    return wrong, note


def _is_told(target: Target, found: object) -> bool:
    """Whether a verification names the changed file."""
    return target.name.startswith("exported") and isinstance(found, tuple) and bool(found[1] or any(found[2]))
