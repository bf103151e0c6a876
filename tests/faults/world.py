"""The files of the campaign: small data sets and undisturbed runs, created once."""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import forking
import numpy as np

# Minimal training; on the bundled digits, since `zoo_add.py` accepts only named data sets.
STEPS = 'unfreeze.steps=[{unit="head", epochs=1}, {unit="all", epochs=1}]'
TINY = ("--recipe", "paper", "--set", "dual.epochs=2", "--set", STEPS)
SIDE = 12
SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class World:
    """The paths of the files.

    Attributes:
        root: scratch folder of the campaign.
        images: class folders of PNG files, three classes.
        data_root: holds a small "mnist".
        run: a finished run on `images`, with folds, exported and verified.
        runs: finished runs on the digits that differ in their seed.
    """

    root: Path
    images: Path
    data_root: Path
    run: Path
    runs: tuple[Path, ...]

    @property
    def env(self) -> dict[str, str]:
        """The environment of every command."""
        return {"THAW_CACHE": str(self.root / "cache"), "HF_HUB_OFFLINE": "1", "THAW_DATA": str(self.data_root)}

    def call(self, *arguments: object, cwd: Path | None = None, **more: object) -> forking.Outcome:
        """`thaw ARGUMENTS` in a forked process."""
        env = {**self.env, **more.pop("env", {})}
        more.setdefault("limit_s", SECONDS)
        return forking.call(arguments, scratch=self.root, cwd=cwd or self.root, env=env, **more)

    def start(self, *arguments: object, cwd: Path | None = None, **more: object) -> forking.Running:
        """Start `thaw ARGUMENTS`."""
        env = {**self.env, **more.pop("env", {})}
        return forking.Running(arguments, scratch=self.root, cwd=cwd or self.root, env=env, **more)

    def must(self, *arguments: object, **more: object) -> forking.Outcome:
        """Run `thaw ARGUMENTS`, which must succeed."""
        done = self.call(*arguments, **more)
        if done.code:
            raise RuntimeError(f"thaw {' '.join(map(str, arguments))} ended with {done.code}:\n{done.err[-2000:]}")
        return done

    def folder(self, name: str) -> Path:
        """A new folder."""
        path = self.root / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path


def write_images(folder: Path, *, classes: int, each: int, side: int = SIDE, black: bool = False) -> Path:
    """Class folders c0, c1, ... of gray PNG files: a bright bar at a different place per class, and noise."""
    from PIL import Image

    chance = np.random.default_rng(5)
    for label in range(classes):
        (folder / f"c{label}").mkdir(parents=True, exist_ok=True)
        for index in range(each):
            pixels = chance.integers(0, 90, (side, side), dtype=np.uint8)
            pixels[(2 * label) % side] += np.uint8(120)
            Image.fromarray(pixels * np.uint8(not black)).save(folder / f"c{label}" / f"{index}.png")
    return folder


def write_mnist(folder: Path) -> None:
    """A parquet data set that `thaw` accepts as mnist: 10 classes of 12x12 images."""
    from data_samples import write_parquet

    chance = np.random.default_rng(3)
    for split, count in (("train", 200), ("test", 60)):
        labels = np.arange(count) % 10
        images = chance.integers(0, 90, (count, SIDE, SIDE), dtype=np.uint8)
        images[np.arange(count), labels] += np.uint8(120)
        folder.mkdir(parents=True, exist_ok=True)
        encoded = [{"bytes": png_of(pixels), "path": None} for pixels in images]
        write_parquet(folder / f"{split}-00000-of-00001.parquet", labels.tolist(), images=encoded)


def png_of(pixels: np.ndarray) -> bytes:
    """Pixels uint8 [H, W] as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def make(root: Path, *, small: bool) -> World:
    """Create the files of all areas; a small campaign creates only those that it needs."""
    world = World(
        root=root,
        images=write_images(root / "images", classes=3, each=24),
        data_root=root / "data",
        run=root / "run",
        runs=(root / "seed1", root / "seed2"),
    )
    write_mnist(world.data_root / "mnist")
    os.environ.update(world.env)
    world.must("train", "images", *TINY, "--folds", 2, "--out", world.run)
    world.must("export", world.run)
    world.must("verify", world.run, "--images", 4)
    for seed, run in enumerate(world.runs[: 1 if small else 2], start=1):
        world.must("train", "digits", *TINY, "--seed", seed, "--out", run)
    return world
