"""`thaw demo`: served files, allowed clients, shutdown; `thaw export --to web`; the download of onnxruntime-web."""

from __future__ import annotations

import base64
import hashlib
import http.client
import importlib.util
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command_line import REPOSITORY, FinishedRun, start
from error_matching import raises
from export_samples import card_of, paper_graph
from web_samples import WEB, needs_vendor

from thaw.data.images import InputSpec
from thaw.deploy import page_server
from thaw.deploy.page_server import PageServer, is_loopback, start_server
from thaw.export import to_web
from thaw.export.card import ModelCard
from thaw.export.to_web import MEDIA_TYPES, PAGE, RUNTIME, export_web

FILES = {"index.html": b"<!doctype html>", "page.js": b"//", "a.wasm": bytes(100_000), "model.json": b"{}"}


@pytest.fixture
def server() -> Iterator[PageServer]:
    with start_server(FILES, host="127.0.0.1", port=0) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join(10)


def ask(server: PageServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def raw(server: PageServer, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while received := connection.recv(65536):
            answer += received
        return answer


def test_files_have_media_types_and_a_policy(server: PageServer) -> None:
    for path, name in (("/", "index.html"), ("/?question", "index.html"), *((f"/{name}", name) for name in FILES)):
        status, headers, content = ask(server, path)
        assert (status, content) == (200, FILES[name])
        assert headers["Content-Type"] == MEDIA_TYPES[Path(name).suffix]
        assert headers["X-Content-Type-Options"] == "nosniff"
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self' 'wasm-unsafe-eval';")
        assert "unsafe-inline" not in policy
        assert "Python" not in headers["Server"]
    assert ask(server, "/page.js", "HEAD")[::2] == (200, b"")


def test_page_and_server_have_the_same_policy(server: PageServer) -> None:
    (content,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', (WEB / "index.html").read_text())
    _, headers, _ = ask(server, "/")
    assert headers["Content-Security-Policy"] == f"{content}; frame-ancestors 'none'"


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/./page.js",
        "/page.js/",
        "/page.js%00",
        "/PAGE.JS",
        "/page%2ejs",
        "\\..\\page.js",
        "/vendor/ort.wasm.min.mjs",
        "/favicon.ico",
        "/index.html/../page.js",
        "page.js",
        "*",
        "http://127.0.0.1/page.js",
        "file:///etc/passwd",
    ],
)
def test_serves_only_its_own_files(server: PageServer, path: str) -> None:
    status, _, content = ask(server, path, Host=f"127.0.0.1:{server.port}")
    assert (status, content) == (404, b"404 Not Found\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"])
def test_only_get_and_head_are_allowed(server: PageServer, method: str) -> None:
    status, headers, _ = ask(server, "/", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n", 414),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\nHost: 127.0.0.1:{port}\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nhOST: 127.0.0.1:{port}\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost : evil.example\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}, evil.example\r\n\r\n", 421),
        (b"GET / HTTP/3.0\r\n\r\n", 505),
        (b"GET / HTTP/x\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431),
    ],
)
def test_malformed_requests_are_rejected(server: PageServer, request_: bytes, status: int) -> None:
    answer = raw(server, request_.replace(b"{port}", str(server.port).encode()))
    assert f" {status} ".encode() in answer.split(b"\r\n")[0] or answer.startswith(f"{status} ".encode())
    assert b"<html" not in answer
    assert ask(server, "/")[0] == 200  # the server is still running


def test_slow_client_is_dropped_at_the_deadline(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "HEAD_SECONDS", 1.0)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        began = time.monotonic()
        connection.sendall(b"GET / HTTP/1.1\r\n")
        connection.settimeout(0.1)
        ended = False
        while not ended and time.monotonic() - began < 20:
            try:
                connection.sendall(b"X")  # sends a byte at least every second
                ended = connection.recv(100) == b""
            except TimeoutError:
                pass
            except OSError:
                ended = True
        assert ended
        assert 0.9 < time.monotonic() - began < 10
    # A client that requested in time and receives slowly is served.
    assert ask(server, "/")[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("LOCALHOST:{port}", 200),
        ("[::1]:{port}", 200),
        ("evil.example:{port}", 421),
        ("evil.example", 421),
        ("localhost.evil.example:{port}", 421),
        ("127.0.0.1.evil.example:{port}", 421),
        ("192.168.0.1:{port}", 421),
        ("localhost:1", 421),
        ("", 421),
        (":{port}", 421),
    ],
)
def test_rejects_requests_for_other_hosts(server: PageServer, host: str, status: int) -> None:
    assert ask(server, "/", Host=host.format(port=server.port))[0] == status


def test_ports_and_addresses() -> None:
    with start_server(FILES, host="127.0.0.1", port=0) as first:
        assert first.url == f"http://127.0.0.1:{first.port}/"
        assert first.server_address[0] == "127.0.0.1"
        with raises("run-address", f"port {first.port}", "Address already in use"):
            start_server(FILES, host="127.0.0.1", port=first.port)
    with (
        start_server(FILES, host="127.0.0.1", port=None) as one,
        start_server(FILES, host="127.0.0.1", port=None) as two,
    ):
        assert 8000 <= one.port < two.port < 8100
    with raises("run-address", "203"):
        start_server(FILES, host="203.0.113.7", port=0)
    with raises("run-address", "no such host"):
        start_server(FILES, host="no such host", port=0)
    with start_server(FILES, host="0.0.0.0", port=0) as wide:
        assert wide.knows_host("anything")
    assert [is_loopback(host) for host in ("localhost", "127.9.9.9", "::1", "0.0.0.0", "::", "", "example.org")] == [
        True, True, True, False, False, False, False,
    ]  # fmt: skip


@needs_vendor
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_command_serves_and_stops_cleanly(
    finished: FinishedRun, tmp_path: Path, stop: signal.Signals, code: int
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")}
    began = time.monotonic()
    process = start("demo", finished.path, "--port", "0", "--no-open", cwd=tmp_path)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = re.match(r"http://127\.0\.0\.1:(\d+)/  \(Ctrl-C stops\)\n", line)
        assert url, (line, process.communicate() if process.poll() is not None else "")
        connection = http.client.HTTPConnection("127.0.0.1", int(url.group(1)), timeout=30)
        connection.request("GET", "/model.json")
        card = json.loads(connection.getresponse().read())
        assert list(card["models"]) == ["float", "int8"]
        assert card["drawing"] == {"isBright": True}
        assert {"parameters", "macs", "test accuracy", "test accuracy in int8"} <= set(card)
        # A silent connection does not block it.
        with socket.create_connection(("127.0.0.1", int(url.group(1)))):
            until_served, began = time.monotonic() - began, time.monotonic()
            process.send_signal(stop)
            out, err = process.communicate(timeout=60)
            # A signal does not wait for the shutdown of torch: the time is small compared with the start.
            assert time.monotonic() - began < max(1.0, until_served / 4)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out, err) == (code, "", "interrupted\n")
    assert {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")} == before


@needs_vendor
def test_command_line_reports_errors(call: Any, finished: FinishedRun, tmp_path: Path, monkeypatch: Any) -> None:
    code, _, err = call("demo", tmp_path / "nothing")
    assert code == 1
    assert len(err.splitlines()) <= 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = call("demo", finished.path, "--port", taken.getsockname()[1], "--no-open")
    assert (code, err.count("\n")) == (1, 1)
    assert "Address already in use" in err
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "onnx", None)
        code, _, err = call("demo", finished.path, "--port", 0)
        assert (code, err) == (1, "error: ONNX files need onnx: pip install 'thaw-cnn[onnx]'\n")
    monkeypatch.setattr(to_web, "RUNTIME", {"ort.js": "missing.mjs"})
    code, _, err = call("demo", finished.path, "--port", 0)
    assert (code, err.count("\n")) == (1, 2)
    assert "make web" in err


@needs_vendor
def test_bare_model_file_is_served_in_float(tmp_path: Path, finished: FinishedRun) -> None:
    from thaw.deploy.demo import demo_files
    from thaw.model.model import Model

    files = demo_files(Model.load(shutil.copy(finished.path / "model.safetensors", tmp_path)))
    assert list(json.loads(files["model.json"])["models"]) == ["float"]


@needs_vendor
def test_web_is_exported_on_request(call: Any, finished: FinishedRun, tmp_path: Path) -> None:
    # A copy, since the export changes the run's report.
    run = Path(shutil.copytree(finished.path, tmp_path / "run"))
    code, out, err = call("export", run, "--to", "web", "--float", "--out", tmp_path / "out", "--json")
    assert code == 0, err
    told = json.loads(out)["formats"]
    assert list(told) == ["web"]
    folder = tmp_path / "out" / "web"
    assert {path.name for path in folder.iterdir()} == {*told["web"]["files"], "export.json"}
    assert list(json.loads((folder / "model.json").read_text())["models"]) == ["float"]
    assert {path.suffix for path in folder.iterdir()} <= set(MEDIA_TYPES)
    # Again, now with both: existing files are replaced.
    assert call("export", run, "--to", "web,c", "--out", tmp_path / "out")[0] == 0
    assert list(json.loads((folder / "model.json").read_text())["models"]) == ["float", "int8"]
    code, out, _ = call("export", run, "--to", "page", "--out", tmp_path / "out")
    assert code == 2


def test_page_has_no_other_origin_and_no_inline_code() -> None:
    names = {path.name for path in WEB.iterdir() if path.is_file()}
    assert names == set(PAGE)
    for name in names - {"onnxruntime-web.LICENSE.txt"}:
        text = (WEB / name).read_text()
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) in ([], ["http://"]), name  # "(http://…)"
    page = (WEB / "index.html").read_text()
    assert not re.search(r"<style|<script(?![^>]*src=)|\son\w+=|\sstyle=", page)
    for module in WEB.glob("*.js"):
        assert set(re.findall(r'(?:from|import\() ?"\./([\w.-]+)"', module.read_text())) <= {*PAGE, *RUNTIME}


@needs_vendor
@pytest.mark.parametrize(
    ("classes", "channels", "mean", "drawing"),
    [
        (tuple("0123456789"), 1, 0.13, {"isBright": True}),
        (tuple("0123456789"), 1, 0.87, {"isBright": False}),
        (tuple("abcdefghij"), 1, 0.2, {"isBright": True}),
        (tuple(map(str, range(5, 15))), 1, 0.2, {"isBright": True}),
        (tuple("0123456789"), 3, 0.2, None),
        (("T-shirt", *"123456789"), 1, 0.2, None),
    ],
)
def test_models_with_a_drawing_pad(classes: tuple[str, ...], channels: int, mean: float, drawing: Any) -> None:
    graph = paper_graph((28, 28, channels), "float")
    input_spec = InputSpec(height=28, width=28, channels=channels, mean=(mean,) * channels, std=(0.3,) * channels)
    files = export_web({"float": graph}, ModelCard(name="x", classes=classes, input_spec=input_spec))
    assert json.loads(files["model.json"])["drawing"] == drawing


def test_missing_runtime_is_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_web, "RUNTIME", {"ort.js": "missing.mjs"})
    graph = paper_graph((28, 28, 1), "float")
    with raises("missing-dependency", "make web"):
        export_web({"float": graph}, card_of(graph))


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """hatch_build.py with another target folder."""
    spec = importlib.util.spec_from_file_location("hatch_build", REPOSITORY / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "VENDOR", tmp_path / "vendor")
    return module


def fake_npm(folder: Path, archive: bytes | None, version: str) -> None:
    folder.mkdir()
    (folder / "archive").write_bytes(archive or b"")
    action = f"cp '{folder}/archive' 'onnxruntime-web-{version}.tgz'" if archive else "echo 'no network' >&2; exit 1"
    (folder / "npm").write_text(f"#!/bin/sh\n{action}\n")
    (folder / "npm").chmod(0o755)


def archive_of(names: tuple[str, ...]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in names:
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    return file.getvalue()


def test_runtime_is_fetched_once_by_version_and_digest(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of((*hook.FILES, "other.js"))
    fake_npm(tmp_path / "bin", archive, hook.VERSION)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(hook.VendorError, match="expected sha512-"):
        hook.fetch_vendor()
    assert not hook.is_there()
    monkeypatch.setattr(hook, "SHA512", base64.b64encode(hashlib.sha512(archive).digest()).decode())
    hook.fetch_vendor()
    assert hook.is_there()
    assert {path.name: path.read_text() for path in hook.VENDOR.iterdir()} == {
        **{name: name for name in hook.FILES},
        "VERSION": f"{hook.VERSION}\n",
    }
    (tmp_path / "bin" / "npm").unlink()
    monkeypatch.setenv("PATH", "")
    hook.fetch_vendor()  # nothing is requested again
    monkeypatch.setattr(hook, "VERSION", "99.0.0")
    with pytest.raises(hook.VendorError, match="npm is not installed"):
        hook.fetch_vendor()


def test_build_succeeds_without_npm_or_network(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    class App:
        display_warning = staticmethod(told.append)

    made = hook.WebVendorHook(str(REPOSITORY), {}, None, None, str(tmp_path), "wheel", App())
    monkeypatch.setenv("PATH", "")
    made.initialize("standard", {})
    fake_npm(tmp_path / "bin", None, hook.VERSION)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    made.initialize("editable", {})
    assert ["npm is not installed" in told[0], "no network" in told[1]] == [True, True]
    assert not hook.is_there()


@needs_vendor
def test_installed_runtime_matches_the_hook() -> None:
    done = subprocess.run(
        [sys.executable, "hatch_build.py"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": ""},
    )
    assert (done.returncode, done.stderr) == (0, "")
    names = {path.name for path in (WEB / "vendor").iterdir()}
    assert names == {*RUNTIME.values(), "VERSION"}
