"""Tells systemd that the daemon is ready, alive, or stopping, where systemd asked to be told."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> bool:
    """Send `state` (READY=1, WATCHDOG=1, STOPPING=1, STATUS=...) to $NOTIFY_SOCKET; whether there is one.

    Source: sd_notify(3). A datagram that cannot be sent at once is no reason to stop or to wait.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            sender.sendto(state.encode(), address)
    except OSError:
        return False
    return True
