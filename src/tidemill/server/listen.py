"""The sockets that servers listen on: loopback only, one or several on the same port."""

from __future__ import annotations

import ipaddress
import socket

from tidemill.base.errors import TidemillError

#: Connections that may wait to be accepted, of each worker.
BACKLOG = 1024


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to ``host`` and ``port`` (0: a free one).

    Raises TidemillError when the host is not a loopback address or the port is taken.
    """
    return bind_all(host, port, 1)[0]


def bind_all(host: str, port: int, count: int) -> list[socket.socket]:
    """Return ``count`` sockets bound to one port, between which the kernel shares connections out. Raises as ``bind``.

    The first is bound alone, so that a port that others listen on is noticed; only then may the rest join it.
    """
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise TidemillError(
            f"The server listens on loopback only, for it does not know who asks; {host!r} is refused. "
            "Use 127.0.0.1, and put a proxy that authenticates in front of it to reach it from elsewhere."
        )
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    made: list[socket.socket] = []
    try:
        for place in range(count):
            one = socket.socket(family, socket.SOCK_STREAM)
            made.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if place:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind((str(address), made[0].getsockname()[1] if place else port))
            if count > 1:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        for one in made:
            one.close()
        raise TidemillError(
            f"Port {port} of {address} cannot be had: {error.strerror}. "
            "Declare another, as tm.Endpoint(port=…), or 0 for a free one."
        ) from error
    return made
