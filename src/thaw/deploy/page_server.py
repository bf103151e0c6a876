"""A web server for one page. It serves a table of files in memory, and nothing from the disk."""

from __future__ import annotations

import errno
import io
import re
import socket
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import Any

from thaw.errors import RunError
from thaw.export.to_web import INDEX, MEDIA_TYPES
from thaw.quoting import given

DEFAULT_PORT = 8000
PORTS_TRIED = 100
"""Number of ports that are tried, from the default one, if the caller names none."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    # These three make the page "cross-origin isolated", so that its clock is fine enough to time an inference.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Another model may be served at the same address tomorrow.
    "Cache-Control": "no-store",
}

HEAD_SECONDS = 10
"""Time limit for the whole head of a request, in seconds. Sending bytes slowly does not extend it."""
_BODY_SECONDS = 60
"""Time limit for sending a file, in seconds."""

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::([0-9]{1,5}))?", re.ASCII)
"""A Host header: an address or name, and a port."""

_LONGEST_TARGET = 2048


class PageServer(ThreadingHTTPServer):
    """Serves `files` at the root of `host`. The constructor binds; `serve_forever` answers."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, files: Mapping[str, bytes], host: str, port: int) -> None:
        self.table = {f"/{name}": (_media_type(name), data) for name, data in files.items()}
        self.table["/"] = self.table[f"/{INDEX}"]
        self.is_loopback = is_loopback(host)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    @property
    def port(self) -> int:
        """The port."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """The address of the page."""
        host = str(self.server_address[0])
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def server_bind(self) -> None:
        """Bind without a reverse lookup of the address, which the library would do."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.port

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show nothing: browsers abort connections."""
        del request, client_address

    def knows_host(self, host: str | None) -> bool:
        """Whether a request's Host header is this server's.

        On loopback, a request for another name comes from a remote page whose name resolves to this machine (DNS
        rebinding).
        """
        if not self.is_loopback:
            return True
        found = _HOST.fullmatch(host or "")
        return (
            found is not None
            and int(found[2] or 80) == self.port
            and is_loopback(found[1].removeprefix("[").removesuffix("]"))
        )


def start_server(files: Mapping[str, bytes], *, host: str, port: int | None) -> PageServer:
    """Bind a server.

    Args:
        files: content by name, with the names of `export_web`.
        host: an address or a name of this machine.
        port: 0 for any free one; None for 8000 or the next free one.

    Raises:
        RunError: when the port is in use, or the address is not one of this machine.
    """
    tried = range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED) if port is None else (port,)
    for each in tried:
        try:
            return PageServer(files, host, each)
        except (OSError, UnicodeError) as error:
            if getattr(error, "errno", None) == errno.EADDRINUSE and each != tried[-1]:
                continue
            reason = getattr(error, "strerror", None) or error
            hint = "choose another --host or --port"
            raise RunError(
                f"cannot serve at {given(host)}, port {each}: {reason}; {hint}", code="run-address"
            ) from error
    raise AssertionError("at least one port is tried")


def is_loopback(host: str) -> bool:
    """Whether an address or name can be reached only from this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _media_type(name: str) -> str:
    return MEDIA_TYPES[PurePosixPath(name).suffix]


class _UntilDeadline(socket.SocketIO):
    """The bytes from a client, until a deadline: each read waits for the remaining time at most."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        super().__init__(connection, "rb")
        self._connection = connection
        self._deadline = deadline

    def readinto(self, buffer: Any) -> int | None:
        """Read into `buffer`; raise TimeoutError after the deadline."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the head of a request took too long")
        self._connection.settimeout(left)
        return super().readinto(buffer)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the names in the table. Names are only compared, never used as paths."""

    server: PageServer

    def setup(self) -> None:
        """Set a deadline for the head of the request; each connection serves one request."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_UntilDeadline(self.connection, time.monotonic() + HEAD_SECONDS))

    def parse_request(self) -> bool:
        """Parse, then reject requests for other servers."""
        is_whole = super().parse_request()
        self.connection.settimeout(_BODY_SECONDS)
        if not is_whole:
            return False
        refusal = self._refusal()
        if refusal is not None:
            self._send(refusal, "text/plain; charset=utf-8", f"{refusal.value} {refusal.phrase}\n".encode())
        return refusal is None

    def _refusal(self) -> HTTPStatus | None:
        if self.command not in {"GET", "HEAD"}:
            return HTTPStatus.METHOD_NOT_ALLOWED
        hosts = self.headers.get_all("Host", [])
        # The library stops at a malformed line, and would miss a second Host header after it.
        if len(hosts) > 1 or self.headers.defects:
            return HTTPStatus.BAD_REQUEST
        if not self.server.knows_host(hosts[0] if hosts else None):
            return HTTPStatus.MISDIRECTED_REQUEST
        if len(self.path) > _LONGEST_TARGET:
            return HTTPStatus.REQUEST_URI_TOO_LONG
        return None if self._target in self.server.table else HTTPStatus.NOT_FOUND

    @property
    def _target(self) -> str:
        return self.path.partition("?")[0]

    def do_GET(self) -> None:
        """Send a file of the table."""
        media_type, content = self.server.table[self._target]
        self._send(HTTPStatus.OK, media_type, content)

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def _send(self, status: HTTPStatus, media_type: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(content)))
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send an error of the library as plain text."""
        del message, explain
        status = HTTPStatus(code)
        self._send(status, "text/plain; charset=utf-8", f"{status.value} {status.phrase}\n".encode())

    def end_headers(self) -> None:
        """Add the headers of every response."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def version_string(self) -> str:
        """The server's name, without version numbers."""
        return "thaw"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Log nothing: the terminal shows the address."""
