"""A process that forks `thaw` commands on request, so that a test does not wait until torch is imported.

Tests cannot fork commands themselves, since they compute and have threads. `launch` returns an object with the part of
the interface of `subprocess.Popen` that the tests use.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import forking

_LONGEST_REQUEST = 1 << 20


class Launched:
    """A command that the launcher forked.

    Attributes:
        pid: its process id.
        stdout, stderr: pipes as text, or None where the caller gave a descriptor.
        returncode: exit code, below 0 for a signal; None while it runs.
    """

    def __init__(self, pid: int, status: int, stdout: IO[str] | None, stderr: IO[str] | None) -> None:
        self.pid, self._status, self.stdout, self.stderr = pid, status, stdout, stderr
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            TimeoutExpired: when it runs longer than `timeout` seconds.
        """
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("thaw", timeout or 0.0)
        return code

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as ready:
                ready.register(self._status, selectors.EVENT_READ)
                if ready.select(timeout):
                    self.returncode = int(os.read(self._status, 32))
                    os.close(self._status)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end and return what it wrote to the pipes."""
        received = ["", ""]

        def read(number: int, stream: IO[str]) -> None:
            received[number] = stream.read()
            stream.close()

        streams = [(number, stream) for number, stream in enumerate((self.stdout, self.stderr)) if stream is not None]
        readers = [threading.Thread(target=read, args=each, daemon=True) for each in streams if not each[1].closed]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return received[0], received[1]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _Launcher:
    """The launcher process of this test process."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here = Path(__file__)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")])}
        self._process = subprocess.Popen(
            [sys.executable, str(here), str(theirs.fileno())], pass_fds=[theirs.fileno()], env=env
        )
        theirs.close()

    def request(self, words: Sequence[str], cwd: Path, env: Mapping[str, str], descriptors: Sequence[int]) -> int:
        """Fork a command and return its process id."""
        message = json.dumps({"arguments": words, "cwd": str(cwd), "env": env}).encode()
        socket.send_fds(self._socket, [message], descriptors)
        answer = self._socket.recv(64)
        if not answer:
            raise RuntimeError(f"the launcher of commands ended with {self._process.wait()}")
        return int(answer)

    def close(self) -> None:
        """End the process; its commands have ended or are killed by it."""
        self._socket.close()
        self._process.wait(60)


_launcher: _Launcher | None = None


def launch(
    *arguments: object,
    cwd: Path,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    env: Mapping[str, str] | None = None,
) -> Launched:
    """Start `thaw ARGUMENTS` without standard input.

    Args:
        cwd: working directory.
        stdout: a descriptor, or `subprocess.PIPE`.
        stderr: likewise.
        env: the whole environment; by default that of this process.
    """
    global _launcher  # noqa: PLW0603 - one for each test process
    if _launcher is None:
        _launcher = _Launcher()
        atexit.register(_launcher.close)
    pipes: list[IO[str] | None] = []
    given = [os.open(os.devnull, os.O_RDONLY)]
    for wanted in (stdout, stderr):
        read, write = os.pipe() if wanted == subprocess.PIPE else (-1, os.dup(wanted))
        pipes.append(os.fdopen(read, encoding="utf-8") if read >= 0 else None)
        given.append(write)
    status, reported = os.pipe()
    given.append(reported)
    try:
        words = [str(argument) for argument in arguments]
        pid = _launcher.request(words, cwd, dict(os.environ if env is None else env), given)
    finally:
        for descriptor in given:
            os.close(descriptor)
    return Launched(pid, status, *pipes)


def serve(descriptor: int) -> None:
    """Answer requests until the other side closes the socket."""
    forking.preload()
    requests = socket.socket(fileno=descriptor)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    status_of: dict[int, int] = {}
    with selectors.DefaultSelector() as ready:
        ready.register(requests, selectors.EVENT_READ)
        ready.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fd == woken:
                    os.read(woken, 4096)
                    _report_ended(status_of)
                    continue
                message, descriptors, _, _ = socket.recv_fds(requests, _LONGEST_REQUEST, 4)
                if not message:
                    for pid in status_of:
                        os.kill(pid, signal.SIGKILL)
                    return
                pid = _fork(json.loads(message), descriptors, [requests.fileno(), woken, wake, *status_of.values()])
                status_of[pid] = descriptors[3]
                for inherited in descriptors[:3]:
                    os.close(inherited)
                requests.send(str(pid).encode())


def _fork(request: dict[str, Any], descriptors: Sequence[int], private: Sequence[int]) -> int:
    pid = os.fork()
    if not pid:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (*private, descriptors[3]):
            os.close(descriptor)
        env = {**dict.fromkeys(os.environ), **request["env"]}
        forking.become_command(request["arguments"], cwd=request["cwd"], descriptors=descriptors[:3], env=env)
    return pid


def _report_ended(status_of: dict[int, int]) -> None:
    while status_of:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        os.write(status_of[pid], str(os.waitstatus_to_exitcode(status)).encode())
        os.close(status_of.pop(pid))


if __name__ == "__main__":
    serve(int(sys.argv[1]))
