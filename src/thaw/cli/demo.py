"""What `thaw demo` does; `app` holds its options."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

from thaw.cli.commands import print_text
from thaw.cli.interrupt import told_when_stopped
from thaw.deploy.demo import demo_files
from thaw.deploy.export import TrainedRun
from thaw.deploy.page_server import is_loopback, start_server


def demo(run: Path, *, host: str, port: int | None, opens: bool | None) -> None:
    """`thaw demo RUN`."""
    files = demo_files(TrainedRun.open(run))
    with start_server(files, host=host, port=port) as server, told_when_stopped("stopped"):
        print_text(f"{server.url}  (Ctrl-C stops)")
        if not is_loopback(host):
            print_text("everyone who reaches this machine at that address can see the page and load the model")
        sys.stdout.flush()
        if opens or (opens is None and _has_desktop()):
            webbrowser.open(server.url)
        server.serve_forever(poll_interval=0.1)


def _has_desktop() -> bool:
    """Whether somebody sits before it who would see a browser open, and not a text browser in this terminal."""
    return sys.stdout.isatty() and bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
