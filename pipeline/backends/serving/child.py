"""What our model servers have in common as programs: the lines to the parent, the watch on it, the socket, the loop.

Knows no model and no route.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import select
import signal
import socket
import stat
import threading
import time
from typing import TYPE_CHECKING, Any

import uvicorn

from pipeline.core.errors import NightshiftError

if TYPE_CHECKING:
    from starlette.applications import Starlette

API_KEY_VARIABLE = "NIGHTSHIFT_BACKEND_API_KEY"
"""Read from the environment, since every user of the host may read a command line."""

MAX_WAITING_TOKENS = 1_000_000
"""Of requests that were admitted and not computed yet, about 10 MB of them."""

DRAIN_SECONDS = 5
"""How long requests in flight may take after SIGTERM."""

BACKLOG = 128
"""Connections that wait to be taken; asyncio tries as often in a row where file descriptors are used up."""

PARENT_CHECK_SECONDS = 1.0


class Channel:
    """JSON lines to the parent. Takes standard output over, so that no library can write in between."""

    def __init__(self) -> None:
        self._descriptor = os.dup(1)
        os.dup2(2, 1)
        self._last_progress = 0.0

    def send(self, **fields: Any) -> None:
        """Write one line; a parent that reads no longer is no error."""
        try:
            os.write(self._descriptor, json.dumps(fields).encode() + b"\n")
        except OSError:
            return

    def progress(self, share: float) -> None:
        """Tell the parent, a few times a second at most, how much of the model is loaded (0 to 1)."""
        now = time.monotonic()
        if now - self._last_progress >= 0.25:
            self._last_progress = now
            self.send(progress=round(share, 3))


def watch_parent() -> threading.Event:
    """End this process as soon as its parent is gone, even in the middle of a native call.

    The parent holds the other end of standard input for as long as it lives. A process that it
    forked meanwhile may hold that end too, so the parent's id is looked at as well. Returns what
    is set as soon as the parent writes something, or at once where standard input is no pipe.
    """
    spoken = threading.Event()
    if not stat.S_ISFIFO(os.fstat(0).st_mode) and not stat.S_ISSOCK(os.fstat(0).st_mode):
        spoken.set()
        return spoken
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            if select.select([0], [], [], PARENT_CHECK_SECONDS)[0]:
                if not os.read(0, 4096):
                    break
                spoken.set()
        os._exit(3)

    threading.Thread(target=watch, name="watch the parent", daemon=True).start()
    return spoken


def run_app(app: Starlette, listener: socket.socket) -> None:
    """Serve `app` until SIGTERM, and then for as long as requests in flight may take."""
    config = uvicorn.Config(
        app,
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn stops on these and then raises them again for whoever handled them before: nobody.
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises NightshiftError where there can be none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named TCP, since asyncio turns Nagle's delay off (40 ms an answer) only on sockets that say so.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise NightshiftError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener


def loopback(text: str) -> str:
    """An argument that is a loopback address; argparse's error for any other."""
    host = "127.0.0.1" if text == "localhost" else text
    try:
        if ipaddress.ip_address(host).is_loopback:
            return host
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text} is not a loopback address; this server is not for the network")
