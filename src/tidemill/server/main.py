"""One server process: ``python -m tidemill.server.main --system flights/ --port 8321``.

When it takes requests it prints one line, ``{"port": …}``. SIGTERM and SIGINT drain it: it stops accepting, finishes
what is under way, and syncs and closes its logs. Several processes on one port: ``tidemill.server.group``.
"""

from __future__ import annotations

import tidemill.server.threads  # noqa: F401 - before the libraries that it pins

# isort: split
import argparse
import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import uvloop

from tidemill.base.clock import SECOND
from tidemill.base.errors import TidemillError
from tidemill.engine.feature.lookup import Lookup
from tidemill.engine.predict.records import RESERVED_TABLES
from tidemill.engine.predict.serving import Serving
from tidemill.server.access import AccessLog
from tidemill.server.app import App, log
from tidemill.server.listen import BACKLOG, bind
from tidemill.server.peers import Peers
from tidemill.server.protocol import Connection, Shared
from tidemill.spec.system import Endpoint
from tidemill.workspace import Served, open_served


def serving(project: Served) -> Serving:
    """Return the serving of ``project``, over its workspace."""
    workspace = project.workspace
    return Serving(
        project.system,
        workspace.journal,
        workspace.online,
        lookup=Lookup,
        load=project.load_declared,
        schema=project.request_schema,
        log=lambda table: workspace.log(table if table in RESERVED_TABLES else f"push-{table}").writer(),
        example=project.request_example,
    )


def run(app: App, listener: socket.socket, endpoint: Endpoint) -> None:
    """Serve ``app`` on ``listener`` until SIGTERM or SIGINT, then drain. Prints the port when requests are taken."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(app, listener, endpoint))


async def serve(app: App, listener: socket.socket, endpoint: Endpoint) -> None:
    """Serve until a signal comes, and drain within ``endpoint.drain``."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    try:
        await app.startup()
    except Exception as error:
        log("error", "the journal cannot be followed", error)
        sys.exit(1)
    shared = Shared(
        app.answer,
        settle=app.settle,
        sent=app.account,
        refused=app.refused,
        max_body=endpoint.max_body,
        max_connections=endpoint.max_connections,
        patience=endpoint.timeout / SECOND,
        memory=8 * endpoint.max_body,
    )
    app.connections = lambda: len(shared.connections)
    sweeper = asyncio.create_task(shared.sweep())
    server = await loop.create_server(lambda: Connection(shared), sock=listener, backlog=BACKLOG)
    # What was made until now stays: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    await stop.wait()
    server.close()
    await shared.drain(endpoint.drain / SECOND)
    sweeper.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sweeper
    await app.shutdown()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one server from the command line; ends with 2 and a message when it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m tidemill.server.main", description="Serve a system's champions.")
    parser.add_argument("--system", type=Path, default=Path(), help="folder with system.py, or the declared file")
    parser.add_argument("--workspace", type=Path, help="the workspace; by default .tidemill beside the declared file")
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--port", type=int, help="0 for a free one; by default the endpoint's")
    parser.add_argument("--supervised", action="store_true", help="drain and end when standard input ends")
    parser.add_argument("--socket", type=int, help="the bound socket that was handed down, in place of --port")
    parser.add_argument("--worker", type=int, default=0, help="the number of this worker among those of one port")
    parser.add_argument("--peers", type=Path, help="the folder in which the workers of one port tell their figures")
    given = parser.parse_args(arguments)
    try:
        project = open_served(given.system, given.workspace)
        endpoint = project.system.endpoint
        if given.socket is not None:
            listener = socket.socket(fileno=given.socket)
        else:
            listener = bind(given.host, endpoint.port if given.port is None else given.port)
        lines = AccessLog(project.workspace.root / "log" / f"access-{given.worker}.jsonl", endpoint.access_log)
        app = App(serving(project), peers=Peers(given.worker, given.peers), access=lines)
    except TidemillError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if given.supervised:
        threading.Thread(target=_follow_supervisor, daemon=True).start()
    run(app, listener, endpoint)


def _follow_supervisor() -> None:
    """Drain and end with the process that holds the other end of standard input, however that one ends."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
