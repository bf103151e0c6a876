"""SIGKILL at random moments: the command resumes, partial results are detected, and the final results are equal."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import world as worlds
from command_line import assert_same_run, without_times
from ledger import Ledger, same_files
from world import World

from thaw.data import ingest
from thaw.deploy.formats import default_formats
from thaw.errors import ModelFileError
from thaw.export.folder import read_format
from thaw.run import quantization

MODELS = ("model.safetensors", "model-int8.safetensors")
QAT = ("--set", "quantize.qat.epochs=6")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A command that is killed.

    Attributes:
        name: name of the area, as in "kill NAME".
        begin: takes the output folder, returns the command.
        resume: takes the output folder, returns the command after a kill.
        check: compares the finished folder with that of an undisturbed run; returns the fault, or "".
        half: checks a folder after a kill; returns the fault, or "".
        before: called in the command's process.
        least: earliest time of a kill, as a fraction of the undisturbed time.
    """

    name: str
    begin: Callable[[Path], list[object]]
    resume: Callable[[Path], list[object]]
    check: Callable[[Path, Path], str]
    half: Callable[[Path], str] = lambda _: ""
    before: Callable[[], object] | None = None
    least: float = 0.0


def always_train_on() -> None:
    """Fine-tune every network in int8, whatever its accuracy."""
    quantization._is_worse = lambda *_: True


def decode_in_helpers() -> None:
    """Decode a few images in the way of a large data set."""
    ingest.SMALLEST_PARALLEL = 1


def _same_run(folder: Path, reference: Path) -> str:
    try:
        assert_same_run(folder, reference)
    except AssertionError as error:
        return f"differs from an undisturbed run: {str(error)[:300]}"
    return ""


def _resume_run(folder: Path) -> list[object]:
    is_begun = (folder / "run.json").is_file()
    return ["train", "--resume", folder] if is_begun else ["train", "images", *worlds.TINY, *QAT, "--out", folder]


def _half_run(folder: Path) -> str:
    """A folder with metrics.json must be a complete run."""
    if (folder / "metrics.json").is_file() and not all((folder / name).is_file() for name in MODELS):
        return "metrics.json is there, but not the models"
    return ""


def _half_export(folder: Path) -> str:
    for target in default_formats():
        try:
            found = read_format(folder, target)
        except ModelFileError as error:
            if "an interrupted export" not in str(error):
                return f"{target}: {error}"
            continue
        if found is not None and found.changed:
            return f"{target} counts as whole, but {found.changed} are not as they were exported"
    return ""


def _same_export(folder: Path, reference: Path) -> str:
    for target in default_formats():
        found, expected = read_format(folder, target), read_format(reference, target)
        if found is None or expected is None or dict(found.files) != dict(expected.files) or found.changed:
            return f"{target} is not what an undisturbed export wrote"
    return ""


def _same_documents(*names: str) -> Callable[[Path, Path], str]:
    def check(folder: Path, reference: Path) -> str:
        for name in names:
            found, expected = (json.loads((each / name).read_text()) for each in (folder, reference))
            timed = ("seconds", "median_latency_us", "command", "environment")
            for content in (found, expected):
                for row in content.get("rows", [content]):
                    for key in timed:
                        row.pop(key, None)
            if without_times(found) != without_times(expected):
                return f"{name} differs from that of an undisturbed run"
        return ""

    return check


def _same_runs(folder: Path, reference: Path) -> str:
    """Every run of a study."""
    runs = sorted(path.parent.name for path in reference.glob("*/run.json"))
    return next(filter(None, (_same_run(folder / name, reference / name) for name in runs)), "")


def _decoded(folder: Path) -> list[object]:
    return ["data", "many", "--sheet", folder / "sheet.png", "--json"]


def scenes(world: World) -> list[Scene]:
    """The commands that are killed."""
    tables = lambda folder: ["reproduce", "--dataset", "mnist", "--seeds", "0", "--out", folder]  # noqa: E731
    arms = lambda folder: ["ablate", "images", *worlds.TINY, "--seeds", "0", "--out", folder]  # noqa: E731
    export = lambda folder: ["export", world.run, "--out", folder]  # noqa: E731
    return [
        Scene(
            name="quantization-aware training",
            begin=lambda folder: ["train", "images", *worlds.TINY, *QAT, "--out", folder],
            resume=_resume_run,
            check=_same_run,
            half=_half_run,
            before=always_train_on,
            least=0.5,
        ),
        Scene(name="export", begin=export, resume=export, check=_same_export, half=_half_export),
        Scene(name="reproduce", begin=tables, resume=tables, check=_same_documents("reproduce.json")),
        Scene(
            name="ablate",
            begin=arms,
            resume=arms,
            check=lambda folder, reference: (
                _same_runs(folder, reference) or _same_documents("ablation.json")(folder, reference)
            ),
        ),
        Scene(
            name="caching",
            begin=_decoded,
            resume=_decoded,
            check=lambda folder, reference: same_files(folder, reference, ("sheet.png",)),
            before=decode_in_helpers,
        ),
    ]


def run(world: World, ledger: Ledger, kills: int) -> None:
    """Kill the commands of all scenes in turn, `kills` times in total."""
    worlds.write_images(world.root / "many", classes=4, each=150, side=40)
    known: dict[str, float] = {}
    for number in range(kills):
        if not ledger.wants(number):
            continue
        scene = scenes(world)[number % len(scenes(world))]
        if scene.name not in known:
            known[scene.name] = _undisturbed(world, scene)
        _kill(world, ledger, scenes(world)[number % len(scenes(world))], number, known[scene.name])


def _cache(world: World, scene: Scene, folder: Path) -> dict[str, str]:
    """A separate cache, if its creation is killed."""
    return {"THAW_CACHE": str(folder / "cache")} if scene.name == "caching" else world.env


def _undisturbed(world: World, scene: Scene) -> float:
    folder = world.folder(f"reference-{scene.name.replace(' ', '-')}")
    if scene.name.startswith("quantization"):
        folder.rmdir()
    done = world.must(*scene.begin(folder), before=scene.before, env=_cache(world, scene, folder))
    return done.seconds


def _kill(world: World, ledger: Ledger, scene: Scene, number: int, seconds: float) -> None:
    area, chance = f"kill {scene.name}", ledger.chance("kill", number)
    reference = world.root / f"reference-{scene.name.replace(' ', '-')}"
    folder = world.folder("killed")
    if scene.name.startswith("quantization"):
        folder.rmdir()
    moment = seconds * chance.uniform(scene.least, 1.0)
    ledger.begin(area, number, f"after {moment:.3f} of {seconds:.2f} s")
    env = _cache(world, scene, folder)
    running = world.start(*scene.begin(folder), before=scene.before, env=env)
    _sleep_until(running.started + moment, chance)
    was_running = running.running()
    if was_running:
        running.kill()
    killed = running.wait(worlds.SECONDS)
    ledger.notes["kills that came while the command ran"] += was_running
    case = f"--case {number}"
    if ledger.check(area, case, "left a process behind" if killed.left_behind else scene.half(folder)):
        return
    after = world.call(*scene.resume(folder), before=scene.before, env=env)
    if ledger.check(area, case, after.trouble()):
        return
    if after.code:
        ledger.fault(area, f"{case}: the resumed command ended with {after.code}: {after.err.strip()[-300:]}")
    else:
        ledger.check(area, case, scene.check(folder, reference))
    shutil.rmtree(folder, ignore_errors=True)


def _sleep_until(moment: float, chance: random.Random) -> None:
    """Wait until a moment, accurate to fractions of a millisecond."""
    time.sleep(max(0.0, moment - time.monotonic()) + chance.uniform(0, 1e-3))
