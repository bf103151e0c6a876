"""Ctrl-C as an error with something to say."""

from __future__ import annotations

from thaw.errors import ThawError


class StoppedError(ThawError):
    """The user stopped the command; the message says what has been kept.

    A KeyboardInterrupt would not do: typer takes it, and what it makes of it differs between its versions.
    """

    exit_code = 130
