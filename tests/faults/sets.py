"""Caches that are damaged during use, numbers of threads, and extreme data sets."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
import world as worlds
from command_line import assert_same_run, history
from forking import Running
from ledger import Ledger, same_files
from world import World, write_images

# Long enough for an event in the middle.
LONGER = ("--recipe", "paper", "--set", "dual.epochs=25", "--set", "dual.patience=25", "--set", worlds.STEPS)
MODELS = ("model.safetensors", "model-int8.safetensors")


def caches(world: World, ledger: Ledger, *, small: bool) -> None:
    """Prepared images that are removed, or have a flipped bit, during a run, do not change its result."""
    reference, cache = world.folder("cached") / "run", world.folder("cache-of-its-own")
    env = {"THAW_CACHE": str(cache)}
    world.must("train", "images", *LONGER, "--out", reference, env=env)
    for number, (name, disturb) in enumerate(_DISTURBANCES.items()):
        if not ledger.wants(number) or (small and number > 1):
            continue
        ledger.begin("cache in the middle of a run", number, name)
        run = world.folder("disturbed") / "run"
        running = world.start("train", "images", *LONGER, "--out", run, env=env)
        _wait_for(lambda run=run: len(history(run)) >= 1, running)
        folder = next(path for path in cache.iterdir() if path.name.startswith("images-"))
        disturb(folder, ledger.chance("cache", number))
        done = running.wait(worlds.SECONDS)
        if ledger.check("cache in the middle of a run", name, done.trouble() or done.err * bool(done.code)):
            continue
        ledger.check("cache in the middle of a run", name, _differs(run, reference))
        again = world.call("train", "images", *LONGER, "--out", run, "--overwrite", env=env)
        found = again.trouble() or _differs(run, reference)
        ledger.check("cache in the middle of a run", f"{name}, the next run", found)


def _flip(folder: Path, name: str, chance: random.Random) -> None:
    path = folder / name
    with path.open("r+b") as file:
        at = chance.randrange(path.stat().st_size)
        file.seek(at)
        value = file.read(1)[0]
        file.seek(at)
        file.write(bytes([value ^ 1 << chance.randrange(8)]))


_DISTURBANCES: dict[str, Callable[[Path, random.Random], object]] = {
    "a bit of the images": lambda folder, chance: _flip(folder, "images.bin", chance),
    "removed": lambda folder, _: shutil.rmtree(folder),
    "a bit of the facts": lambda folder, chance: _flip(folder, "facts.npz", chance),
    "a bit of the texts": lambda folder, chance: _flip(folder, "text.json", chance),
    "a bit of the check sums": lambda folder, chance: _flip(folder, "check.json", chance),
    "images cut": lambda folder, _: (folder / "images.bin").write_bytes(b""),
    "a file in its place": lambda folder, _: (shutil.rmtree(folder), folder.write_text("no folder")),
}


def _differs(run: Path, reference: Path) -> str:
    try:
        assert_same_run(run, reference)
    except AssertionError as error:
        return f"another result than that of an undisturbed run: {str(error)[:200]}"
    return ""


def _wait_for(condition: Callable[[], bool], running: Running) -> None:
    while running.running() and not condition():
        time.sleep(0.002)


def threads(world: World, ledger: Ledger, *, small: bool) -> None:
    """One, two, four and eight threads: a killed run resumes with its number of threads and gives the same bits."""
    for number, count in enumerate((2,) if small else (1, 2, 4, 8)):
        if not ledger.wants(number):
            continue
        ledger.begin("threads", number, f"{count} threads, resumed with another number")
        whole, killed = world.folder(f"threads-{count}") / "run", world.folder("threads-killed") / "run"
        world.must("train", "images", *LONGER, "--out", whole, before=lambda count=count: torch.set_num_threads(count))
        running = world.start(
            "train", "images", *LONGER, "--out", killed, before=lambda count=count: torch.set_num_threads(count)
        )
        _wait_for(lambda killed=killed: len(history(killed)) >= 3, running)
        if running.running():
            running.kill()
        running.wait(worlds.SECONDS)
        done = world.call("train", "--resume", killed, before=lambda count=count: torch.set_num_threads(3 - count % 2))
        ledger.check("threads", f"{count} threads", done.trouble() or _differs(killed, whole))


def odd_sets(world: World, ledger: Ledger, *, small: bool) -> None:
    """Extreme data sets give a result with finite numbers, or an error message."""
    root = world.folder("odd")
    sets: dict[str, tuple[Path, tuple[str, ...]]] = {
        "all black": (write_images(root / "black", classes=3, each=12, black=True), ()),
        "two classes": (write_images(root / "two", classes=2, each=12), ()),
        "one image a class": (write_images(root / "one", classes=6, each=1), ()),
        "three images a class": (write_images(root / "three", classes=3, each=3), ()),
        "one class": (write_images(root / "lonely", classes=1, each=12), ()),
        "no image": (root, ()),
    }
    if not small:
        sets["500 classes"] = (write_images(root / "many", classes=500, each=4), ())
        sets["all black, balanced"] = (root / "black", ("--recipe", "balanced", "--set", "plain.epochs=1"))
        sets["two classes, balanced"] = (root / "two", ("--recipe", "balanced", "--set", "plain.epochs=1"))
        sets["a pixel that differs"] = (_one_pixel(write_images(root / "pixel", classes=2, each=12, black=True)), ())
    for number, (name, (folder, options)) in enumerate(sets.items()):
        if not ledger.wants(number):
            continue
        for command in (["data", folder, "--sheet", root / "sheet.png", "--json"], _train(folder, options, root)):
            ledger.begin("odd data sets", number, f"{name}: {command[0]}")
            done = world.call(*command, limit_s=600)
            ledger.check("odd data sets", f"{name}: {command[0]}", done.trouble() or _not_finite(done.out))
        if done.code == 0:
            for command in (["evaluate", root / "run", folder, "--json"], ["export", root / "run", "--to", "c"]):
                ledger.begin("odd data sets", number, f"{name}: {command[0]}")
                done = world.call(*command)
                ledger.check("odd data sets", f"{name}: {command[0]}", done.trouble() or _not_finite(done.out))
        shutil.rmtree(root / "run", ignore_errors=True)


def _train(folder: Path, options: tuple[str, ...], root: Path) -> list[object]:
    return ["train", folder, *(options or worlds.TINY), "--out", root / "run", "--json"]


def _one_pixel(folder: Path) -> Path:
    """All black except for one pixel of one image: the smallest possible standard deviation."""
    from PIL import Image

    path = folder / "c0" / "0.png"
    image = Image.open(path)
    image.putpixel((0, 0), 1)
    image.save(path)
    return folder


def _not_finite(out: str) -> str:
    return "NaN or Infinity in its answer" if "NaN" in out or "Infinity" in out else ""


__all__ = ["caches", "odd_sets", "same_files", "threads"]
