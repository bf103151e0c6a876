"""Decoding on all cores: helper processes that speak over pipes.

A helper is a plain `python -m thaw.data.workers`. Unlike `multiprocessing` this neither forks a process that has
threads nor imports the caller's main script again, so it is safe from any program, and it needs no pickle. A message is
a line of JSON, which also gives the lengths of the binary parts that follow it. A helper ends when its input closes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

import numpy as np

from thaw.data.catalog import Payload
from thaw.data.chunks import FACT_SHAPES, Chunk, Facts, Target, decode_chunk
from thaw.errors import DataError

# Below this many images starting helpers takes longer than it saves.
SMALLEST_PARALLEL = 600
_MOST_HELPERS = 16


def usual_workers() -> int:
    """Cores that this process may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return min(cores, _MOST_HELPERS)


def decode_chunks(batches: Iterable[Sequence[Payload]], target: Target, workers: int) -> Iterator[Chunk]:
    """Decodes batches of payloads, in order; with `workers` over 1 on so many helper processes.

    Raises:
        DataError: when a helper process ends unexpectedly.
    """
    if workers <= 1 or not sys.executable:
        for batch in batches:
            yield decode_chunk(batch, target)
        return
    helpers: list[subprocess.Popen[bytes]] = []
    free: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[Chunk]] = deque()
    try:
        for _ in range(workers):
            helpers.append(_start())
            free.put(helpers[-1])
        for batch in batches:
            waiting.append(pool.submit(_ask, free, batch, target))
            # Two batches a helper keep all of them busy; what waits stays small whatever the size of the data set.
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        _stop(helpers, pool)


def _start() -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    # -P: a file in the current folder that is called like a library must not be imported in its place.
    command = [sys.executable, "-P", "-m", "thaw.data.workers"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _stop(helpers: Sequence[subprocess.Popen[bytes]], pool: ThreadPoolExecutor) -> None:
    """Ends helpers and threads at once, whatever they are at."""
    for helper in helpers:
        helper.kill()
    pool.shutdown(wait=True, cancel_futures=True)
    for helper in helpers:
        helper.wait()
        for stream in (helper.stdin, helper.stdout):
            _close(stream)


def _close(stream: IO[bytes] | None) -> None:
    try:
        if stream is not None:
            stream.close()
    except OSError:
        pass  # the helper went first, and took unsent bytes with it


def _ask(free: SimpleQueue[subprocess.Popen[bytes]], batch: Sequence[Payload], target: Target) -> Chunk:
    helper = free.get()
    try:
        if helper.stdin is None or helper.stdout is None:
            raise AssertionError("helpers are started with pipes")
        _send_request(helper.stdin, batch, target)
        return _receive_chunk(helper.stdout)
    except (OSError, ValueError, EOFError) as error:
        named = [payload for payload in batch if isinstance(payload, str)]
        where = f" while it read {named[0]} to {named[-1]}" if named else ""
        raise DataError(
            f"a decoding process ended unexpectedly (exit status {helper.poll()}){where}: "
            "it may have run out of memory; try fewer workers"
        ) from error
    finally:
        free.put(helper)


def _send(stream: IO[bytes], header: dict[str, Any], parts: Sequence[bytes | memoryview]) -> None:
    line = json.dumps({**header, "lengths": [len(part) for part in parts]})
    stream.write(line.encode() + b"\n")
    for part in parts:
        stream.write(part)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    line = stream.readline()
    if not line:
        raise EOFError
    header: dict[str, Any] = json.loads(line)
    parts = [stream.read(length) for length in header["lengths"]]
    if any(len(part) != length for part, length in zip(parts, header["lengths"], strict=True)):
        raise EOFError
    return header, parts


def _send_request(stream: IO[bytes], batch: Sequence[Payload], target: Target) -> None:
    # A path stands in the header; bytes follow it, and are marked by True there.
    marks = [True if isinstance(payload, bytes) else payload for payload in batch]
    header = {"target": asdict(target), "payloads": marks}
    _send(stream, header, [payload for payload in batch if isinstance(payload, bytes)])


def _receive_request(stream: IO[bytes]) -> tuple[list[Payload], Target]:
    header, parts = _receive(stream)
    content = iter(parts)
    payloads = [next(content) if mark is True else mark for mark in header["payloads"]]
    settings = header["target"]
    # JSON made a list of the range.
    return payloads, Target(**{**settings, "range": settings["range"] and tuple(settings["range"])})


def _send_chunk(stream: IO[bytes], chunk: Chunk) -> None:
    header = {
        "shape": chunk.pixels.shape,
        "kept": chunk.kept,
        "modes": chunk.modes,
        "rules": chunk.rules,
        "failures": list(chunk.failures.items()),
    }
    columns = [np.ascontiguousarray(getattr(chunk.facts, name), dtype=kind) for name, (kind, _) in FACT_SHAPES.items()]
    _send(stream, header, [column.tobytes() for column in (chunk.pixels, *columns)])


def _receive_chunk(stream: IO[bytes]) -> Chunk:
    header, (pixels, *columns) = _receive(stream)
    facts = {
        name: np.frombuffer(column, dtype=kind).reshape(-1, *shape)
        for (name, (kind, shape)), column in zip(FACT_SHAPES.items(), columns, strict=True)
    }
    return Chunk(
        pixels=np.frombuffer(pixels, dtype=np.uint8).reshape(header["shape"]),
        facts=Facts(**facts),
        kept=header["kept"],
        modes=header["modes"],
        rules=header["rules"],
        failures=dict(header["failures"]),
    )


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """A helper's life: answers requests until its input closes."""
    while True:
        try:
            payloads, target = _receive_request(requests)
        except EOFError:
            return
        _send_chunk(answers, decode_chunk(payloads, target))


def _main() -> None:
    # A signal that stops a command may reach the whole group of processes; the parent decides, and closes the pipe.
    for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(signal.Signals.__members__):
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # A library that prints would spoil the answers.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    try:
        serve(sys.stdin.buffer, answers)
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    _main()
