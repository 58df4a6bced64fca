"""Who is behind an entry of the ledgers, as far as the platform knows.

A run says only that it was that run: its tags come with the request, and whoever launches a run writes any name there. A command knows its
process: the account and the machine. Belongs here: that. Does not belong here: names of people, of which nothing here has proof.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_command: ContextVar[str | None] = ContextVar("command", default=None)


def of_command() -> str:
    """`cli:user@host` of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's account need not have a name
        user = str(os.getuid())
    return f"cli:{user}@{socket.gethostname()}"


@contextmanager
def as_command() -> Iterator[None]:
    """What runs inside was started by this command, in its own process."""
    token = _command.set(of_command())
    try:
        yield
    finally:
        _command.reset(token)


def of_run(run_id: str) -> str:
    """`run:<id>`, or the command in whose process the run is."""
    return _command.get() or f"run:{run_id[:8]}"
