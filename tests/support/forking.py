"""Run thaw commands in processes forked from this one, which has imported torch but never used it.

A fork takes milliseconds, a new interpreter with torch takes seconds. This process must not compute anything: threads
do not survive a fork.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TextIO

from compiled import keep_compiled_kernels

INTERNAL = 70
"""The exit code of an unexpected error in thaw."""

UNWRITTEN = 120
"""The exit code of an interpreter that cannot write its buffered output at exit."""

_LEFT_BEHIND_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: exit code; below 0 the signal that ended it.
        out: standard output.
        err: standard error.
        seconds: that it took.
        timed_out: whether it was ended because it took too long.
        left_behind: whether a process that it started outlived it.
    """

    code: int
    out: str
    err: str
    seconds: float
    timed_out: bool = False
    left_behind: bool = False

    def trouble(self) -> str:
        """What no command may do, whatever it is given; "" where it did not."""
        told = (self.out + self.err).strip()
        troubles = {
            f"did not end within {self.seconds:.0f} s": self.timed_out,
            f"ended by signal {-self.code}: {told[-300:]}": self.code < 0,
            f"traceback: {told[-400:]}": "Traceback (most recent call last)" in told,
            f"unforeseen error: {told[-400:]}": self.code == INTERNAL,
            "left a process behind": self.left_behind,
            f"exit code {self.code} without a word": self.code and not told,
        }
        return next((what for what, is_so in troubles.items() if is_so), "")


def preload() -> None:
    """Import what commands need, without computing anything.

    Commands then measure latencies briefly, take compiled kernels from the store, and collect no imported garbage.
    """
    import scipy.stats
    import sklearn.datasets
    import torch._dynamo  # torch.optim imports it when the first optimizer is made

    import thaw.api
    import thaw.cli.training_progress
    import thaw.deploy.bench
    import thaw.kernels.library
    import thaw.run.pipeline
    import thaw.studies.ablation
    import thaw.studies.reproduce

    del scipy, sklearn, torch, thaw
    measure_latency_briefly()
    keep_compiled_kernels()
    gc.collect()
    gc.freeze()


def measure_latency_briefly() -> None:
    """Let runs of this process time a few predictions, instead of a second of them.

    It has no effect before the module is imported, since importing torch would slow down tests without it.
    """
    measures = sys.modules.get("thaw.run.measures")
    if measures is not None:
        from thaw.evidence.latency import measure_latency

        measures.measure_latency = partial(measure_latency, warmup=2, repeats=5, min_seconds=0.0)


def become_command(
    arguments: Sequence[str],
    *,
    cwd: Path | str,
    descriptors: Sequence[int],
    env: Mapping[str, str | None],
    before: Callable[[], object] | None = None,
) -> NoReturn:
    """Run `thaw ARGUMENTS` in this forked child, then exit.

    Args:
        cwd: working directory.
        descriptors: file descriptors that become standard input, output and error; -1 for one that is closed.
        env: changes to the environment; None removes a variable.
        before: called before the command.
    """
    code = INTERNAL
    try:
        # Programs that a shell starts in the background ignore interrupts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, descriptor in enumerate(descriptors):
            if descriptor >= 0:
                os.dup2(descriptor, number)
        for number, descriptor in enumerate(descriptors):
            if descriptor < 0:
                os.close(number)
        for name, value in env.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        os.chdir(cwd)
        # Python opens its streams at startup, according to the descriptors and the environment.
        sys.stdout, sys.stderr = (_stream(number) for number in (1, 2))
        if before is not None:
            before()
        code = run_main(arguments)
    except BaseException:  # noqa: BLE001 - a forked child must not continue in the parent's code
        import traceback

        traceback.print_exc()
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            # As the interpreter reports output that it cannot write at exit.
            except OSError:
                code = UNWRITTEN if stream is sys.stdout else code
        os._exit(code)


def _stream(number: int) -> TextIO | None:
    """Standard output or error as Python opens it at startup; None if the descriptor is closed."""
    try:
        is_terminal = os.isatty(number) or not os.fstat(number)
    except OSError:
        return None
    errors, buffering = ("backslashreplace", 1) if number == 2 else ("strict", 1 if is_terminal else -1)
    return os.fdopen(number, "w", buffering, encoding="utf-8", errors=errors, closefd=False)


class Running:
    """A forked `thaw ARGUMENTS`; its output goes to files in `scratch`."""

    _number = 0

    def __init__(
        self,
        arguments: Sequence[object],
        *,
        scratch: Path,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        Running._number += 1
        self._files = [scratch / f"{name}-{Running._number}" for name in ("out", "err")]
        self.started = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            descriptors = [os.open(os.devnull, os.O_RDONLY), *(os.open(path, flags) for path in self._files)]
            words = [str(argument) for argument in arguments]
            become_command(words, cwd=cwd, descriptors=descriptors, env=env or {}, before=before)

    def running(self) -> bool:
        """Whether it has not ended."""
        return not os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, limit_s: float) -> Outcome:
        """Until it ends, or is ended after `limit_s` seconds."""
        timed_out = False
        while self.running():
            if time.monotonic() - self.started > limit_s:
                timed_out = True
                self.kill()
            time.sleep(0.005)
        _, status = os.waitpid(self.pid, 0)
        seconds = time.monotonic() - self.started
        out, err = (path.read_text(errors="replace") if path.exists() else "" for path in self._files)
        for path in self._files:
            path.unlink(missing_ok=True)
        return Outcome(
            code=os.waitstatus_to_exitcode(status),
            out=out,
            err=err,
            seconds=seconds,
            timed_out=timed_out,
            left_behind=not self._group_is_gone(),
        )

    def _group_is_gone(self) -> bool:
        """Whether all that it started has ended too, in a while."""
        end = time.monotonic() + _LEFT_BEHIND_SECONDS
        while time.monotonic() < end:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.005)
        os.killpg(self.pid, signal.SIGKILL)
        return False


def run_main(arguments: Sequence[str]) -> int:
    """Run `thaw ARGUMENTS` in this process and return its exit code; after a signal the process ends."""
    from thaw.cli import run

    sys.argv = ["thaw", *arguments]
    try:
        run()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def call(arguments: Sequence[object], *, scratch: Path, cwd: Path, limit_s: float = 120.0, **more: Any) -> Outcome:
    """`thaw ARGUMENTS` in a forked process, to its end."""
    return Running(arguments, scratch=scratch, cwd=cwd, **more).wait(limit_s)


def apart(job: Callable[[], object], *, limit_s: float = 300.0) -> str:
    """`job` in a forked process, to its end: "" where it went well, else the traceback."""
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        import traceback

        told = ""
        try:
            os.close(read)
            signal.alarm(int(limit_s))
            job()
        except BaseException:  # noqa: BLE001 - as above
            told = traceback.format_exc()
        finally:
            os.write(write, told.encode()[-60_000:])
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read().decode()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return told or (f"ended with {code}" if code else "")
