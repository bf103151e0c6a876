"""Unusual environments: few resources, unusual locales, terminals, pipes and paths."""

from __future__ import annotations

import os
import pty
import pwd
import resource
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import world as worlds
from forking import Outcome, become_command
from ledger import Ledger
from world import World, write_images

REPOSITORY = Path(__file__).resolve().parent.parent.parent
LIMIT_SECONDS = 300.0
LONGEST = "y" * 200


@dataclass(frozen=True, kw_only=True)
class Surrounding:
    """The environment of a command.

    Attributes:
        env: additional environment variables; None removes a variable.
        limits: of the process, by resource.
        closed: which of 1 and 2 is closed.
        output: "pipe", "head" (one byte is read), "full" (a full disk), or "terminal" (20 columns).
    """

    env: Mapping[str, str | None] = field(default_factory=dict)
    limits: Mapping[int, int] = field(default_factory=dict)
    closed: Sequence[int] = ()
    output: str = "pipe"

    @property
    def is_read_at_startup(self) -> bool:
        """Whether a new interpreter is needed, since Python reads these variables when it starts."""
        return not {"LC_ALL", "PYTHONUTF8"}.isdisjoint(self.env)


def commands(world: World) -> dict[str, list[object]]:
    """Every command, with little work."""
    image, scratch = world.images / "c0" / "0.png", world.root / "scratch"
    return {
        "help": ["--help"],
        "data": ["data", world.images, "--sheet", scratch / "sheet.png"],
        "train": ["train", world.images, *worlds.TINY, "--out", scratch / "run"],
        "resume": ["train", "--resume", scratch / "run", "--json"],
        "predict": ["predict", world.run, image, world.images],
        "csv": ["predict", world.run, world.images, "--format", "csv"],
        "evaluate": ["evaluate", world.run, world.images],
        "info": ["info", world.run],
        "recipe": ["info", "--recipe", "paper"],
        "export": ["export", world.run, "--out", scratch / "export"],
        "verify": ["verify", world.run, "--images", "2", "--out", scratch / "export"],
        "bench": ["bench", world.run, "--out", scratch / "export"],
        "zoo": ["zoo"],
        "card": ["zoo", "mnist-8k"],
        "reproduce": ["reproduce", "--dataset", "mnist", "--seeds", "0", "--out", scratch / "reproduce"],
        "ablate": ["ablate", world.images, *worlds.TINY, "--seeds", "0", "--out", scratch / "ablate"],
    }


QUICK = ("help", "predict", "info", "zoo")
USUAL = ("data", "train", "resume", "predict", "evaluate", "info", "export", "verify", "zoo")


def run(world: World, ledger: Ledger, *, small: bool) -> None:
    """Commands in every surrounding."""
    number = 0
    turkish = _turkish(world)
    cases: list[tuple[str, Surrounding, Sequence[str]]] = [
        ("LC_ALL=C", Surrounding(env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}), USUAL),
        ("LC_ALL=tr_TR.UTF-8", Surrounding(env={"LC_ALL": "tr_TR.UTF-8", **turkish}), USUAL),
        ("no HOME", Surrounding(env={"HOME": None, "THAW_CACHE": None, "XDG_CACHE_HOME": None}), USUAL[:4]),
        ("a terminal of 20 columns", Surrounding(output="terminal", env={"COLUMNS": "20"}), USUAL),
        ("| head -c 1", Surrounding(output="head"), tuple(commands(world))),
        ("> /dev/full", Surrounding(output="full"), ("help", "info", "predict", "csv", "zoo")),
        (">&-", Surrounding(closed=(1,)), ("info", "predict", "zoo", "train")),
        ("2>&-", Surrounding(closed=(2,)), ("info", "predict", "train")),
    ]
    cases += [(f"{count} descriptors", _limited(resource.RLIMIT_NOFILE, count), USUAL) for count in (64, 24, 12)]
    cases += [
        (f"{size} MiB of memory", _limited(resource.RLIMIT_AS, size << 20), ("train", "predict", "export", "verify"))
        for size in (6000, 3000, 1500, 800, 400)
    ]
    for name, surrounding, wanted in cases:
        chosen = [each for each in wanted if not small or each in QUICK[1:3]]
        for command in chosen if not small or number < 24 else ():
            if ledger.wants(number):
                _one(world, ledger, number, name, command, surrounding)
            number += 1
        shutil.rmtree(world.root / "scratch", ignore_errors=True)
    for command in ("data", "predict", "info"):
        if ledger.wants(number):
            ledger.begin("surroundings: no HOME and no name", number, command)
            done = world.call(*commands(world)[command], before=_nameless)
            ledger.check("surroundings: no HOME and no name", f"--case {number}, {command}", done.trouble())
        number += 1
    for name, folder in odd_paths(world, small=small).items():
        if ledger.wants(number):
            _odd_path(world, ledger, number, name, folder)
        number += 1


def _nameless() -> None:
    """Run this process as a user without name and home folder, as in many containers."""
    for name in ("HOME", "THAW_CACHE", "XDG_CACHE_HOME", "USER", "LOGNAME"):
        os.environ.pop(name, None)

    def unknown(_: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    pwd.getpwuid = unknown


def _limited(kind: int, limit: int) -> Surrounding:
    return Surrounding(limits={kind: limit})


def _one(world: World, ledger: Ledger, number: int, name: str, command: str, surrounding: Surrounding) -> None:
    (world.root / "scratch").mkdir(exist_ok=True)
    world.root.chmod(0o777)
    ledger.begin(f"surroundings: {name}", number, command)
    done = fresh(world, commands(world)[command], surrounding)
    ledger.check(f"surroundings: {name}", f"--case {number}, {command}", done.trouble())


def fresh(world: World, arguments: Sequence[object], surrounding: Surrounding, python: Sequence[str] = ()) -> Outcome:
    """`thaw ARGUMENTS` in a surrounding: in a forked process, or in a new interpreter where that makes a difference."""
    env = {**world.env, **surrounding.env}
    started = time.monotonic()
    out_read, out_write = pty.openpty() if surrounding.output == "terminal" else os.pipe()
    err_path = world.root / "err"
    with err_path.open("wb") as err:
        err_fd = out_write if surrounding.output == "terminal" else err.fileno()
        out_fd = os.open("/dev/full", os.O_WRONLY) if surrounding.output == "full" else out_write
        command = _Command([str(argument) for argument in arguments], world.root, env, surrounding, (out_fd, err_fd))
        is_new = bool(python) or surrounding.is_read_at_startup
        process = _Process(_start_interpreter(command, python or (sys.executable,)) if is_new else _fork(command))
    for each in {out_write, out_fd}:
        os.close(each)
    out = _read(out_read, most=1 if surrounding.output == "head" else None)
    timed_out = False
    while (code := process()) is None:
        if time.monotonic() - started > LIMIT_SECONDS and not timed_out:
            os.killpg(process.pid, signal.SIGKILL)
            timed_out = True
        time.sleep(0.005)
    told = err_path.read_text(errors="replace") if surrounding.output != "terminal" else ""
    if code and surrounding.closed and not told:
        told = "(no output)"
    return Outcome(code=code, out=out, err=told, seconds=time.monotonic() - started, timed_out=timed_out)


@dataclass(frozen=True)
class _Process:
    """A process that is waited for by calling it: its exit code, or None while it runs."""

    pid: int

    def __call__(self) -> int | None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None


@dataclass(frozen=True)
class _Command:
    """`thaw WORDS` in a surrounding; its output goes to two descriptors."""

    words: list[str]
    cwd: Path
    env: Mapping[str, str | None]
    surrounding: Surrounding
    streams: tuple[int, int]


def _fork(command: _Command) -> int:
    pid = os.fork()
    if not pid:
        os.setsid()
        closed = command.surrounding.closed
        streams = (-1 if number in closed else each for number, each in zip((1, 2), command.streams, strict=True))
        descriptors = (os.open(os.devnull, os.O_RDONLY), *streams)
        limit = partial(_limit, command.surrounding.limits)
        become_command(command.words, cwd=command.cwd, descriptors=descriptors, env=command.env, before=limit)
    return pid


def _start_interpreter(command: _Command, python: Sequence[str]) -> int:
    process = subprocess.Popen(
        [*python, "-m", "thaw", *command.words],
        stdin=subprocess.DEVNULL,
        stdout=command.streams[0],
        stderr=command.streams[1],
        cwd=command.cwd,
        env={key: value for key, value in {**os.environ, **command.env}.items() if value is not None},
        preexec_fn=lambda: _before(command.surrounding),  # noqa: PLW1509 - there are no threads here
        start_new_session=True,
    )
    process.returncode = 0  # waited for by its process id
    return process.pid


def _limit(limits: Mapping[int, int]) -> None:
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))


def _before(surrounding: Surrounding) -> None:
    _limit(surrounding.limits)
    for number in surrounding.closed:
        os.close(number)


def _read(descriptor: int, *, most: int | None) -> str:
    content = b""
    end = time.monotonic() + LIMIT_SECONDS
    while (most is None or len(content) < most) and time.monotonic() < end:
        if not select.select([descriptor], [], [], 1.0)[0]:
            continue
        try:
            data = os.read(descriptor, 1 << 16 if most is None else most)
        except OSError:
            break
        if not data:
            break
        content += data
    os.close(descriptor)
    return content.decode(errors="replace")


def _turkish(world: World) -> dict[str, str]:
    """The folder of a Turkish locale, created here if possible; otherwise the C locale is used."""
    folder = world.folder("locales")
    made = (
        shutil.which("localedef")
        and not subprocess.run(
            ["localedef", "-i", "tr_TR", "-f", "UTF-8", str(folder / "tr_TR.UTF-8")], capture_output=True, check=False
        ).returncode
    )
    return {"LOCPATH": str(folder)} if made else {}


def odd_paths(world: World, *, small: bool) -> dict[str, Path]:
    """Folders of images with names that are difficult to write, show or quote."""
    root = world.folder("paths")
    names = {
        "Unicode": root / "çiçekler İıŞ 花 🌼 \u202etxt",
        "quotes": root / "a'b\"c $(x) `y` *\\ ;",
    }
    if not small:
        names |= {
            "a name of 255 bytes": root / ("x" * 255),
            "a path of 2,000 letters": root.joinpath(*[f"{LONGEST}{index}" for index in range(9)]),
            "no UTF-8": Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9 \xff")),
            "a line break": root / "two\nlines\x1b[31m",
            "a dash": root / "-rf",
            "spaces": root / "  ",
        }
    for path in names.values():
        write_images(path, classes=2, each=12)
    return names


def _odd_path(world: World, ledger: Ledger, number: int, name: str, folder: Path) -> None:
    run = folder.parent / "runs" / f"{folder.name[:100]}-run"
    shutil.rmtree(run.parent, ignore_errors=True)
    for command in (
        ["data", folder, "--sheet", world.root / "sheet.png"],
        ["train", folder, *worlds.TINY, "--out", run],
        ["train", "--resume", run],
        ["predict", run, folder / "c0" / "0.png"],
        ["evaluate", run, folder],
        ["export", run],
        ["verify", run, "--images", "2"],
    ):
        ledger.begin("surroundings: paths", number, f"{name}: {command[0]}")
        done = world.call(*command)
        found = done.trouble() or (f"ended with {done.code}: {done.err[-300:]}" if done.code else "")
        if "\x1b" in done.out + done.err:
            found = found or "a control character reached the terminal"
        ledger.check("surroundings: paths", f"--case {number}, {name}: {command[0]}", found)


def wheel(world: World, ledger: Ledger) -> None:
    """Build and use the wheel without npm and without a compiler, with the libraries that are installed here."""
    folder, empty = world.folder("wheel"), world.folder("empty-path")
    (empty / "python3").symlink_to(sys.executable)
    env = {**os.environ, "PATH": str(empty)}
    area = "the wheel, without npm and compiler"
    ledger.begin(area, 0, "build")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    done = subprocess.run(build, env=env, capture_output=True, text=True, check=False)
    if ledger.check(area, "build", done.stdout[-500:] + done.stderr[-1500:] if done.returncode else ""):
        return
    (made,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(made), str(folder / "site")], check=True)
    python = _interpreter(world, folder / "site")
    surrounding = Surrounding(env={"PATH": str(empty), "PYTHONPATH": None})
    scratch = world.folder("scratch")
    checks: dict[str, Callable[[Outcome], str]] = dict.fromkeys(
        ("help", "data", "train", "predict", "evaluate", "info", "export", "zoo", "card"),
        lambda done: f"ended with {done.code}: {done.err[-300:]}" if done.code else "",
    )
    checks |= {"verify": lambda done: "" if "compiler" in done.out + done.err else "no word of the compiler"}
    for number, (name, check) in enumerate(checks.items(), start=1):
        ledger.begin(area, number, name)
        done = fresh(world, commands(world)[name], surrounding, python)
        ledger.check(area, name, done.trouble() or check(done))
    ledger.begin(area, 99, "web")
    done = fresh(world, ["export", world.run, "--to", "web", "--out", scratch / "web"], surrounding, python)
    told = done.out + done.err
    is_told = "npm" in told or done.code == 0
    ledger.check(area, "web", done.trouble() or ("" if is_told else f"no word of npm: {told[-300:]}"))
    show = [*python, "-c", "import thaw; print(thaw.__file__)"]
    where = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    ledger.check(area, "where", "" if str(folder) in where else f"it is not the wheel that ran: {where}")


def _interpreter(world: World, site: Path) -> list[str]:
    """A separate environment with the wheel and, after it, the libraries of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(world.root / "venv")], check=True)
    (packages,) = (world.root / "venv" / "lib").glob("python*/site-packages")
    shared = [path for path in sys.path if path.endswith("-packages")] or [sysconfig.get_path("purelib")]
    (packages / "wheel.pth").write_text("".join(f"{path}\n" for path in (site, *shared)))
    return [str(world.root / "venv" / "bin" / "python")]
