"""One server process: ``python -m tidemill.server.main --system flights/ --port 8321``.

When it takes requests it prints one line, ``{"port": …}``. SIGTERM and SIGINT drain it: it stops accepting, finishes
what is under way, and syncs and closes its logs.
"""

from __future__ import annotations

import tidemill.server.threads  # noqa: F401 - before the libraries that it pins

# isort: split
import argparse
import ipaddress
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from tidemill import project as projects
from tidemill.base.errors import TidemillError
from tidemill.engine.ledger import RESERVED_TABLES
from tidemill.engine.online import Lookup
from tidemill.engine.serving import Serving
from tidemill.project import Project, Workspace
from tidemill.server.app import App

#: Connections that may be open at once; beyond, uvicorn answers 503 itself.
CONNECTIONS = 1024
#: Seconds that draining waits for requests under way.
DRAIN = 30


def serving(project: Project) -> Serving:
    """Return the serving of ``project``, over its workspace."""
    workspace = project.workspace
    return Serving(
        project.system,
        workspace.journal,
        workspace.online,
        lookup=Lookup,
        load=project.load_predictor,
        schema=project.request_schema,
        log=lambda table: workspace.log(table if table in RESERVED_TABLES else f"push-{table}").writer(),
    )


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to ``host`` and ``port`` (0: a free one).

    Raises TidemillError when the host is not a loopback address or the port is taken.
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
    made = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((str(address), port))
    except OSError as error:
        made.close()
        raise TidemillError(
            f"Port {port} of {address} cannot be had: {error.strerror}. "
            "Choose another with --port, or 0 for a free one."
        ) from error
    return made


def run(app: App, listener: socket.socket) -> None:
    """Serve ``app`` on ``listener`` until SIGTERM or SIGINT, then drain. Prints the port when requests are taken."""
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=DRAIN,
    )
    # uvicorn raises the signal again once it has drained; a drained server has ended well.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: None)
    _Announcing(config).run(sockets=[listener])


class _Announcing(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets:
            print(json.dumps({"port": sockets[0].getsockname()[1]}), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one server from the command line; ends with 2 and a message when it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m tidemill.server.main", description="Serve a system's champions.")
    parser.add_argument("--system", type=Path, default=Path(), help="folder with system.py, or the declared file")
    parser.add_argument("--workspace", type=Path, help="the workspace; by default .tidemill beside the declared file")
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--port", type=int, help="0 for a free one; by default the endpoint's")
    parser.add_argument("--supervised", action="store_true", help="drain and end when standard input ends")
    given = parser.parse_args(arguments)
    try:
        project = projects.open(given.system)
        if given.workspace:
            project = Project(project.path, project.system, Workspace(given.workspace))
        listener = bind(given.host, project.system.endpoint.port if given.port is None else given.port)
        app = App(serving(project))
    except TidemillError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if given.supervised:
        threading.Thread(target=_follow_supervisor, daemon=True).start()
    run(app, listener)


def _follow_supervisor() -> None:
    """Drain and end with the process that holds the other end of standard input, however that one ends."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
