"""How the HTTP edge is set: who may come in, how much they may send, how long a backend may take."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class WebOptions:
    """Settings of the edge, as plain values.

    host: the address that the port is bound to.
    api_key: what `Authorization: Bearer` has to be on everything but `/health`; empty asks for none.
    check_host: without a key and bound to loopback, refuse requests that name another host in `Host`, as
        the pages of a browser do whose name was bent to this address (DNS rebinding).
    allowed_hosts: names that are right there all the same, such as that of a proxy on this host.
    max_body, max_upload: bytes of a request's body, and of a document that is uploaded.
    connect_timeout, read_timeout: seconds until a backend takes a connection, and between two pieces
        of its answer; a stream may last as long as it likes.
    fallback_retry: seconds in `Retry-After` where the schedule has no better answer and trying
        again makes sense.
    """

    host: str = "127.0.0.1"
    api_key: str = field(default="", repr=False)
    check_host: bool = True
    allowed_hosts: tuple[str, ...] = ()
    max_body: int = 32 * 2**20
    max_upload: int = 512 * 2**20
    connect_timeout: float = 5.0
    read_timeout: float = 600.0
    fallback_retry: float = 5.0


def is_loopback(host: str) -> bool:
    """Whether a host name or address (`[::1]` and `::1` alike) means this machine itself."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
