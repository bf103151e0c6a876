"""Decoding on all cores, in helper processes.

A helper is a plain `python -c`. Unlike `multiprocessing`, this neither forks a process that has threads nor imports the
caller's main script again, so it is safe from any program. A decoder that crashes ends its helper, not the caller, and
the error names the image.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from thaw.data.catalog import Payload
from thaw.data.chunks import Chunk, Target, decode_chunk
from thaw.errors import DataError
from thaw.quoting import given

# Below this many images, starting helpers takes longer than it saves.
SMALLEST_PARALLEL = 600
_MOST_HELPERS = 16


def usual_workers() -> int:
    """Cores that this process may use, at most 16."""
    return min(len(os.sched_getaffinity(0)), _MOST_HELPERS)


def decode_chunks(
    batches: Iterable[Sequence[Payload]], target: Target, workers: int, names: Sequence[str]
) -> Iterator[Chunk]:
    """Decode batches of payloads, in order.

    Args:
        batches: encoded images or paths.
        target: size and channels of the result.
        workers: above 1, batches are decoded in that many helper processes.
        names: of all images of all batches, for messages.

    Raises:
        DataError: when a helper process ends while it decodes an image.
    """
    if workers <= 1 or not sys.executable:
        for batch in batches:
            yield decode_chunk(batch, target)
        return
    helpers: list[_Helper] = []
    free: SimpleQueue[_Helper] = SimpleQueue()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[Chunk]] = deque()
    first = 0
    try:
        for _ in range(workers):
            helpers.append(_Helper(target))
            free.put(helpers[-1])
        for batch in batches:
            waiting.append(pool.submit(_ask, free, batch, names[first : first + len(batch)]))
            first += len(batch)
            # Two batches per helper keep all of them busy; the queue stays short whatever the size of the data set.
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for helper in helpers:
            helper.process.kill()
        pool.shutdown(wait=True, cancel_futures=True)
        for helper in helpers:
            helper.process.wait()
            helper.connection.close()


def _ask(free: SimpleQueue[_Helper], batch: Sequence[Payload], names: Sequence[str]) -> Chunk:
    helper = free.get()
    try:
        return helper.decode(batch, names)
    finally:
        free.put(helper)


class _Helper:
    """A process that decodes batches for one target."""

    def __init__(self, target: Target) -> None:
        self.connection, theirs = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        # -P: a file in the current folder that has the name of a library must not be imported in its place.
        command = [sys.executable, "-P", "-c", f"from thaw.data.workers import serve; serve({theirs.fileno()})"]
        # Libraries that print would mix with the caller's output.
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment, pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self._target = target

    def decode(self, batch: Sequence[Payload], names: Sequence[str]) -> Chunk:
        place = 0
        try:
            self.connection.send((batch, self._target))
            while isinstance(answer := self.connection.recv(), int):
                place = answer
        except (OSError, EOFError) as error:
            status = self.process.wait()
            ended = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
            raise DataError(
                f"decoding {given(names[place])} ended its process ({ended}): the file crashes its decoder, or memory "
                "ran out\nRemove or convert the image, or free some memory.",
                code="data-decoder-crash",
            ) from error
        chunk: Chunk = answer
        return chunk


def serve(descriptor: int) -> None:
    """The main loop of a helper: receive a batch, send each image's index before decoding it, then send the chunk."""
    # A signal that stops a command may reach the whole process group; the parent decides, and closes the connection.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        while True:
            batch, target = connection.recv()
            connection.send(decode_chunk(batch, target, before=connection.send))
    except (EOFError, OSError):
        os._exit(0)
