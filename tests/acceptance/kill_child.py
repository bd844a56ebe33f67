"""The processes that ``test_kills`` kills: a zygote forks workers and servers that have every import behind them.

``python kill_child.py <fd>``: the control socket brings one order a message, with the channel of the process to be.
A process dies by SIGKILL before or after a named write, or reports that it got there and is killed a little later. The
writes are named by wrapping the adapters' methods here; the package knows nothing of it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import sklearn.tree  # noqa: F401 - imported once, before the forks

import tidemill.loop.training  # noqa: F401 - as above
from tidemill import project as projects
from tidemill.adapters import row_reader  # noqa: F401 - as above
from tidemill.adapters.estimator_files import EstimatorFiles
from tidemill.adapters.inline_executor import InlineExecutor
from tidemill.adapters.lance_lake import LanceLake
from tidemill.adapters.lmdb_online import LmdbOnline
from tidemill.adapters.process_executor import ProcessExecutor
from tidemill.adapters.segment_log import SegmentLog, SegmentWriter
from tidemill.adapters.sql_journal import SqlJournal
from tidemill.base.errors import TidemillError
from tidemill.engine.mill import mill as mills
from tidemill.engine.mill.mill import Mill
from tidemill.engine.predict.state import fold
from tidemill.project import Project
from tidemill.server.app import App, Limits
from tidemill.server.listen import bind
from tidemill.server.main import run, serving


class Channel:
    """JSON messages to and from the test, one a packet."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, message: dict[str, Any]) -> None:
        self._connection.send(json.dumps(message).encode())

    def receive(self) -> dict[str, Any] | None:
        data = self._connection.recv(65536)
        return None if not data else dict(json.loads(data))


class Death:
    """Where this process is to die: ``{"after": name or null, "at": name, "when": …, "nth": n, "how": …}``.

    Once ``after`` has been passed (at once when null), the ``nth`` time (from 1) that ``at`` is reached counts.
    ``when``: "before" or "after" the write. ``how``: "kill" or "stop" (SIGSTOP) there and then, or "tell" the test,
    which kills at a moment of its own.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._spec: dict[str, Any] | None = None
        self._armed = False
        self._left = 0

    def expect(self, spec: dict[str, Any] | None) -> None:
        self._spec = spec
        if spec is not None:
            self._armed = spec["after"] is None
            self._left = spec["nth"]

    def pass_by(self, names: Iterable[str], when: str) -> None:
        spec = self._spec
        if spec is None:
            return
        if self._armed and spec["at"] in names and spec["when"] == when:
            self._left -= 1
            if self._left == 0:
                self._spec = None
                if spec["how"] == "tell":
                    self._channel.send({"reached": spec["at"]})
                else:
                    os.kill(os.getpid(), signal.SIGKILL if spec["how"] == "kill" else signal.SIGSTOP)
        elif when == "after" and spec["after"] in names:
            self._armed = True


def name_writes(death: Death) -> None:
    """Wrap every write of the adapters so that ``death`` is told before and after."""

    def wrap(cls: type, method: str, names: Callable[[tuple[Any, ...]], tuple[str, ...]]) -> None:
        inner = getattr(cls, method)

        def outer(*args: Any, **kwargs: Any) -> Any:
            called = names(args)
            death.pass_by(called, "before")
            result = inner(*args, **kwargs)
            death.pass_by(called, "after")
            return result

        setattr(cls, method, outer)

    for method in ("append", "restore", "compact", "cleanup"):
        wrap(LanceLake, method, lambda args, m=method: (f"lake.{m}", f"lake.{m}:{args[1]}"))  # type: ignore[misc]
    # Rows are on disk and belong to no version yet; then the table's lock is held and the fence has been looked at.
    wrap(LanceLake, "_turn", lambda args: ("lake.turn", f"lake.turn:{args[1]}"))
    wrap(LanceLake, "_publish", lambda args: ("lake.publish", f"lake.publish:{args[1]}"))
    wrap(SqlJournal, "append", lambda args: ("journal.append", *(f"journal.append:{draft.kind}" for draft in args[1])))
    wrap(SqlJournal, "end_tick", lambda _: ("journal.end_tick",))
    wrap(SqlJournal, "record_step", lambda _: ("journal.record_step",))
    wrap(LmdbOnline, "apply", lambda _: ("online.apply",))
    wrap(SegmentLog, "trim", lambda _: ("log.trim",))
    wrap(SegmentWriter, "append", lambda _: ("log.append",))
    wrap(EstimatorFiles, "save", lambda _: ("models.save",))
    wrap(InlineExecutor, "submit", lambda _: ("executor.submit",))
    wrap(ProcessExecutor, "submit", lambda _: ("executor.submit",))
    wrap(Project, "load_predictor", lambda _: ("load_predictor",))


def work(channel: Channel, path: Path, order: dict[str, Any]) -> None:
    """Start a mill and turn it at every tick that comes; ``order["lock"]`` takes the lease by another lock file."""
    death = Death(channel)
    death.expect(order["death"])
    if order["tidy"]:
        mills.TIDY_VERSIONS, mills.KEPT_VERSIONS = 1, 1
    project = projects.open(path)
    workspace = project.workspace
    if order.get("lock"):
        workspace.__dict__["journal"] = SqlJournal(workspace.root / "journal.db", lock=order["lock"])
    name_writes(death)
    lease = workspace.journal.acquire()
    mill = project.mill(lease)
    if order["executor"] == "inline":
        executor: Any = mill.ports.executor
        executor = replace(executor, inner=InlineExecutor({"train": "tidemill.loop.training:run"}, threads=1))
        mill = Mill(project.system, replace(mill.ports, executor=executor), lease)
    mill.start()
    channel.send({"ticks": list(workspace.journal.ticks()), "folds": fold(workspace.journal.read()) == mill.state})
    while (order_ := channel.receive()) is not None:
        death.expect(order_["death"])
        turned = mill.tick(order_["tick"])
        channel.send(
            {
                "number": mill.state.number,
                "folds": fold(workspace.journal.read()) == mill.state,
                "rows": dict(turned.rows),
                "kinds": [entry.kind for entry in turned.entries],
            }
        )
    mill.stop()
    lease.release()


def serve(channel: Channel, path: Path, order: dict[str, Any]) -> None:
    """Serve on a free port, which goes to the test; messages that come say where to die."""
    death = Death(channel)
    death.expect(order["death"])
    name_writes(death)
    listener = bind("127.0.0.1", 0)
    listener.listen()  # from here on clients wait instead of being refused

    def listen() -> None:
        while (message := channel.receive()) is not None:
            death.expect(message["death"])
            channel.send({"armed": True})

    project = projects.open(path)
    app = App(serving(project), Limits(poll=0.005))
    channel.send({"port": listener.getsockname()[1]})
    threading.Thread(target=listen, daemon=True).start()
    run(app, listener, project.system.endpoint)


def main(control: socket.socket) -> None:
    """Fork a process for every order until the test hangs up; its pid is the answer."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are gone at once: no zombies
    roles = {"work": work, "serve": serve}
    while True:
        message, handles, _, _ = socket.recv_fds(control, 65536, 1)
        if not message:
            return
        order = json.loads(message)
        pid = os.fork()
        if pid == 0:
            code = 1
            channel = Channel(socket.socket(fileno=handles[0]))
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                control.close()
                roles[order["role"]](channel, Path(order["project"]), order)
                code = 0
            except TidemillError as error:
                channel.send({"error": type(error).__name__, "message": str(error)})
            except Exception:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(handles[0])
        control.send(b"%d" % pid)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
