"""`thaw demo`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from thaw.cli.options import RunPath


def demo(
    run: RunPath,
    host: Annotated[
        str, typer.Option(help="Address to serve at; the default can be reached only from this machine.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port; 8000 or the next free one by default, 0 for any free one.", show_default=False
        ),
    ] = None,
    opens: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open a browser; by default on a desktop.", show_default=False),
    ] = None,
) -> None:
    """Serve a web page that classifies drawings and image files in the browser."""
    import webbrowser

    import thaw
    from thaw.cli.interrupt import told_when_stopped
    from thaw.cli.output import print_text

    with thaw.Model.load(run).demo(host=host, port=port) as server, told_when_stopped("interrupted"):
        print_text(f"{server.url}  (Ctrl-C stops)")
        if not server.is_loopback:
            print_text("everyone who can reach this machine at that address can see the page and load the model")
        sys.stdout.flush()
        if opens or (opens is None and _has_desktop()):
            webbrowser.open(server.url)
        server.serve_forever(poll_interval=0.1)


def _has_desktop() -> bool:
    """Whether a browser would open a window, instead of a text browser in this terminal."""
    return sys.stdout.isatty() and bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
