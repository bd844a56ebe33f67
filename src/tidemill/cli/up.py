"""``tidemill up``: one worker that turns the mill, and a server beside it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.status import Status
from rich.text import Text

from tidemill import project as projects
from tidemill.base.clock import SECOND, SystemClock, format_duration, format_time, parse_duration
from tidemill.base.errors import StorageError, TidemillError, TrainingError, WorkspaceError
from tidemill.cli.check import inspect
from tidemill.cli.common import project_option
from tidemill.cli.layout import console, count, endpoint_file, print_faults
from tidemill.cli.words import decisions, rebuild, refused_rows, when
from tidemill.engine.check.check import installation
from tidemill.engine.mill.declaration import declared
from tidemill.engine.mill.mill import Turned
from tidemill.loop.supervisor import ServerProcess
from tidemill.loop.worker import next_tick, work
from tidemill.ports.journal import Lease
from tidemill.project import Project
from tidemill.spec.source import Push

Say = Callable[[str, str], None]

_RETRY = 10.0  # seconds between attempts to write to a disk that was full
_PULSE = 0.5  # seconds between looks at the trainings and the server
_PATIENCE = 60.0  # seconds at most between attempts to start a server that will not stay up


@click.command(name="up", short_help="Build what is missing, serve, and keep the mill turning.")
@project_option
@click.option("--once", is_flag=True, help="Do what is due, wait for trainings, and exit: for scripts and CI.")
@click.option(
    "--wait", default="5m", show_default=True, help="With --once: wait this long for a training to take effect."
)
def command(path: Path, once: bool, wait: str) -> None:
    """Check the file, build what is missing, open the endpoint, and keep the mill turning until Ctrl-C.

    Every tick takes in new rows, watches what was served and decides; each decision is a line here and an entry of the
    journal. A training takes effect a declared time after its start (Policy(takes=…)). With --once there is no
    endpoint: one tick is turned, the trainings it started are waited for, and those that take effect within --wait do
    so. Then it exits, with 1 when a check fails, a source stands still, a training fails, or a gate refuses.
    """
    try:
        patience = parse_duration(wait)
    except ValueError as error:
        raise TidemillError(f"--wait: {error}") from error
    out = console()
    project = projects.open(path)
    if declared(project.system) != _last_declared(project):
        found = inspect(project)
        faults = found.faults
        print_faults(out, found.bare, style="yellow")
        if faults:
            out.print(f"[bold red]{count(len(faults), 'fault')}[/] in {project.path.name}; nothing was done.")
            print_faults(out, faults, style="red")
            sys.exit(1)
    print_faults(out, installation(), style="yellow")
    lease = project.workspace.journal.acquire()
    try:
        run = _Run(project, lease, out)
        try:
            healthy = run.once(patience) if once else run.keep_turning()
        finally:
            run.close()
    finally:
        lease.release()
    if not healthy:
        sys.exit(1)


def _last_declared(project: Project) -> Any:
    """Return the parts that the workspace was last worked by, None when there are none; without folding the journal."""
    entries = project.workspace.journal.read(kinds=["declare"]) if project.workspace.exists else ()
    return next((entry.body["declared"] for entry in reversed(list(entries))), None)


class _Run:
    """One run of the worker: turns the mill and tells what it decides."""

    def __init__(self, project: Project, lease: Lease, out: Console) -> None:
        self._project, self._lease, self._out = project, lease, out
        self._mill = project.mill(lease)
        self._clock, self._stop = SystemClock(), threading.Event()
        self._endpoint = _Endpoint(project, self._say)
        self._healthy = True
        self._serving = False
        self._status: Status | None = None

    def once(self, patience: int) -> bool:
        """Turn one tick, and those at which trainings take effect within ``patience`` microseconds of now."""
        until = self._clock.now() + patience
        with self._shown("starting"):
            tick = self._first_tick()
            while under_way := [each.training for each in self._mill.state.models.values() if each.training]:
                self._show("training")
                results = self._mill.results()
                ready = max(training.ready for training in under_way)
                if ready > until:
                    for name, result in results.items():
                        self._tell_early(name, result, ready)
                    break
                self._clock.sleep_until(max(ready, tick + SECOND))
                tick = self._now(tick)
                self._turned(self._mill.tick(tick))
        return self._healthy

    def keep_turning(self) -> bool:
        """Turn ticks until SIGINT or SIGTERM; a second one does not wait for the tick under way."""
        before = {each: signal.signal(each, self._on_signal) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            with self._shown("starting"):
                tick = self._first_tick()
                self._serving = True
                self._serve()
                self._show("waiting for the next tick")
                while not self._stop.is_set():
                    try:
                        work(self._mill, self._clock, self._stop, self._turned, last=tick)
                    except (OSError, StorageError) as error:
                        tick = self._recovered(error, tick)
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
        self.close()
        self._say("", "Stopped. Nothing is lost; go on with: tidemill up")
        return True

    def close(self) -> None:
        """Stop the server and the trainings under way; the next start takes those up again. Idempotent."""
        self._stop.set()
        self._endpoint.stop()
        self._mill.stop()
        self._project.workspace.online.close()

    def _first_tick(self) -> int:
        """Start the mill and turn the first tick now, also when this period of the grid has had its tick."""
        recovered = self._mill.start()
        last = max(self._project.workspace.journal.ticks(), default=None)
        now = self._clock.now()
        if last is not None and last >= now:
            raise WorkspaceError(
                f"The newest tick of this workspace, {format_time(last)}, lies ahead of this machine's clock "
                f"({format_time(now)}). Set the clock right."
            )
        tick = next_tick(now, self._mill.system.tick, last)
        if last is not None and tick > now:
            tick = self._now(last)
        turned = self._mill.tick(tick)
        changed = [entry for entry in (*recovered, *turned.entries) if entry.kind != "declare"]
        if turned.rows:
            taken = ", ".join(f"{name} {rows:,}" for name, rows in turned.rows.items() if rows)
            self._say("", f"{when(tick)}  rows taken in: {taken or 'none'}")
        if not changed and not recovered:
            self._say("", self._as_declared())
        elif not changed:
            self._say("", f"{when(tick)}  the new declaration is in force; nothing had to be built")
        self._turned(turned)
        for name, awaited in self._mill.waits(tick).items():
            self._say("yellow", f"{name}: no training yet; it waits for {awaited}")
        return tick

    def _recovered(self, error: Exception, tick: int) -> int:
        """Begin anew after a tick failed because of the disk, once that takes writes again; return the last tick.

        Servers go on meanwhile. Raises ``error`` when it is of another kind.
        """
        while (trouble := StorageError.of(error)) is not None:
            self._say("red", f"{when(self._clock.now())}  {trouble} It is tried again every {_RETRY:.0f} s.")
            if self._stop.wait(_RETRY):
                return tick
            try:
                self._mill.stop()
                self._mill = self._project.mill(self._lease)
                self._mill.start()
            except (OSError, StorageError) as again:
                error = again
            else:
                self._say("green", f"{when(self._clock.now())}  The disk takes writes again.")
                return max([tick, *self._project.workspace.journal.ticks()])
        raise error

    def _now(self, last: int) -> int:
        """Return the time as a tick: to the second, where that lies after ``last``."""
        now = self._clock.now()
        whole = now - now % SECOND
        return whole if whole > last else max(now, last + 1)

    def _as_declared(self) -> str:
        state = self._mill.state
        tables = [table.name for table in self._mill.system.tables if table.name in state.rows]
        models = [
            f"{model.name} v{state.model(model.name).aliases['champion']}"
            for model in self._mill.system.models
            if "champion" in state.model(model.name).aliases
        ]
        rows = sum(state.rows[name] for name in tables)
        parts = [count(len(tables), "table"), count(rows, "row version"), *models]
        return f"Nothing new: {', '.join(parts)}, as declared."

    def _turned(self, turned: Turned) -> None:
        for entry in turned.entries:
            refused = entry.kind == "judge" and entry.body["judged"]["verdict"]["outcome"] == "refuse"
            if refused or entry.kind in ("fail", "halt"):
                self._healthy = False
            if entry.kind == "commit" and entry.body["quarantined"]:
                self._say("yellow", f"{when(entry.tick)}  {refused_rows(entry.body)}")
            for style, text in decisions(entry):
                self._say(style, f"{when(entry.tick)}  {text}")
        if self._serving and any(entry.kind == "alias" for entry in turned.entries):
            self._serve()
        self._show("waiting for the next tick")

    def _tell_early(self, name: str, result: object, ready: int) -> None:
        """Say how a training ended whose hour has not come."""
        if isinstance(result, TrainingError):
            self._healthy = False
            self._say("red", f"{name}: the training failed: {str(result).splitlines()[0]}")
            return
        assert isinstance(result, dict)
        verdict = result["judged"]["verdict"]
        self._healthy &= verdict["outcome"] != "refuse"
        said = {"pass": ("green", "passes the gate"), "refuse": ("red", "is refused by the gate")}
        style, word = said.get(verdict["outcome"], ("yellow", "is not decided"))
        self._say(style, f"{name}: trained; it {word}: {'; '.join(verdict['reasons'])}")
        left = format_duration(max(0, ready - self._clock.now()) // SECOND * SECOND)
        self._say("dim", f"It takes effect at the first tick from {when(ready)} UTC ({left} from now; see --wait).")

    def _serve(self) -> None:
        state, system = self._mill.state, self._mill.system
        champion = any("champion" in state.model(model.name).aliases for model in system.models)
        if champion or any(isinstance(source.reader, Push) for source in system.sources):
            self._endpoint.start(state.number)

    # Showing ----------------------------------------------------------------------------------------------------------

    def _say(self, style: str, text: str) -> None:
        self._out.print(Text(text, style=style), soft_wrap=not self._out.is_terminal)

    def _shown(self, doing: str) -> Status | _Quiet:
        self._status = Status(doing, console=self._out, spinner_style="dim") if self._out.is_terminal else None
        if self._status is not None:
            threading.Thread(target=self._pulse, args=(self._status,), daemon=True).start()
        return self._status or _Quiet()

    def _show(self, doing: str) -> None:
        if self._status is not None:
            self._status.update(Text(doing, style="dim"))

    def _pulse(self, status: Status) -> None:
        """Show how far trainings are, while there are any."""
        while not self._stop.wait(_PULSE):
            parts = []
            for name, progress in self._mill.progress().items():
                if progress.done < progress.total:
                    parts.append(f"{name}: {progress.doing} ({progress.done} of {progress.total})")
            if (anew := self._mill.rebuilding) is not None:
                parts.append(f"online state: {rebuild(anew.table, anew.done, anew.steps, anew.left)}")
            if parts:
                status.update(Text("; ".join(parts), style="cyan"))

    def _on_signal(self, _: int, __: FrameType | None) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt
        self._stop.set()


class _Quiet:
    """Stands in for the status line where there is no terminal."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class _Endpoint:
    """Keeps one server up, from ``start`` on, in a thread of its own. A server that ends is started again."""

    def __init__(self, project: Project, say: Say) -> None:
        self._project, self._say = project, say
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, number: int) -> None:
        """Start the server, once; it is open when it has followed journal entry ``number``. Returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep, args=(number,), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the server when there is one."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _keep(self, number: int) -> None:
        workspace, endpoint = self._project.workspace, self._project.system.endpoint
        port = endpoint.port
        file, delay = endpoint_file(workspace), 1.0
        while not self._ended.is_set():
            server: ServerProcess | None = None
            try:
                said = workspace.root / "log" / "server.txt"
                server = ServerProcess(self._project.path, port, said, workers=endpoint.workers)
                for name, ails in server.follow(number, stopped=self._ended).items():
                    self._say("red", f"Model {name!r} is not served: {ails}")
                port = server.port  # a free one stays the same after a restart
                if not self._ended.is_set():
                    file.write_text(server.url)
                    self._say("bold", f"Serving on {server.url}")
                lived = 0.0
                while server.running() and not self._ended.wait(_PULSE):
                    lived += _PULSE
                    delay = 1.0 if lived > _PATIENCE else delay
                trouble = "The server has ended."
            except (OSError, TidemillError) as error:
                trouble = str(error)
            finally:
                file.unlink(missing_ok=True)
                if server is not None:
                    server.stop()
            if not self._ended.is_set():
                self._say("red", f"{trouble} It is started again in {delay:.0f} s.")
                self._ended.wait(delay)
                delay = min(2 * delay, _PATIENCE)
