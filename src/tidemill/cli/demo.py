"""``tidemill demo``: the flagship project on a year of real flights, under a virtual clock.

It is the production code: rows come through files and ingest, questions go over HTTP to the server process, trainings
run in their own process. Only the clock is virtual, and this module moves it.
"""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import click
import polars as pl
from rich.console import Console

from tidemill import project as projects
from tidemill.base.clock import DAY, HOUR, VirtualClock, format_time, parse_time
from tidemill.base.errors import TidemillError
from tidemill.cli.flights import feeds
from tidemill.cli.flights.picture import Picture, Scene
from tidemill.cli.flights.summary import summarise
from tidemill.loop.supervisor import ServerProcess
from tidemill.project import Project

START = parse_time("2013-10-01")
END = parse_time("2014-01-03")  # two days after the last flight, so that its label is known
AHEAD = 2 * HOUR
MODEL = "late_arrival"


@click.command(name="demo", short_help="See the whole mill turn on a year of real flights.")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("flights"))
@click.option(
    "--minutes", default=2.0, show_default=True, help="About how long the three months may take; 0: no pauses."
)
@click.option("--until", default="2014-01-03", show_default=True, help="The virtual day on which to stop.")
@click.option("--serve", is_flag=True, help="Keep the endpoint up at the end.")
@click.option("--fresh", is_flag=True, help="Delete what an earlier demo left in FOLDER and start anew.")
def command(folder: Path, minutes: float, until: str, serve: bool, fresh: bool) -> None:
    """Lay the flights project down in FOLDER and run October to December 2013 through it.

    January to September 2013 are loaded as history. Then the mill turns: rows arrive late and are corrected, questions
    are asked two hours before each departure, labels come in, drift is watched, and the model is retrained under its
    gate.
    """
    console = Console()
    end = min(END, parse_time(until))
    if end < START + DAY:
        raise TidemillError(f"--until {until}: the demo begins on 2013-10-01; name a later day, such as 2013-11-01.")
    lay_down(folder, fresh=fresh)
    with console.status("Reading the flights of 2013 …"):
        delivery = feeds.Delivery(folder, feeds.make())
        asked = feeds.questions(feeds.scheduled(feeds.read_flights()), AHEAD)
        delivery.until(START)
    project = projects.open(folder)
    scene = run(project, delivery, asked, end, minutes * 60, console)
    console.print(summarise(project, scene))
    if serve:
        _serve(project, scene, console)


def lay_down(folder: Path, *, fresh: bool) -> None:
    """Put the flagship's declared file into ``folder``. Raises TidemillError when something else is there."""
    if fresh and (folder / ".tidemill").exists():
        shutil.rmtree(folder)
    if (folder / ".tidemill").exists():
        raise TidemillError(
            f"{folder} holds an earlier demo. Look at it with: tidemill status -p {folder}\n"
            f"Or start anew with: tidemill demo {folder} --fresh"
        )
    if folder.exists() and any(folder.iterdir()):
        raise TidemillError(f"{folder} is not empty. Name a new folder: tidemill demo my_flights")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(feeds.__file__).with_name("system.py"), folder / "system.py")


@dataclass(slots=True)
class Asking:
    """Sends each tick's questions to the server, as its users would: typed JSON rows over HTTP."""

    server: ServerProcess
    rows: pl.DataFrame
    columns: tuple[str, ...]
    sent: int = 0
    seconds: float = 0.0
    _place: int = field(default=0)

    def skip(self, until: int) -> None:
        """Leave out questions that were to be asked before ``until`` (microseconds)."""
        self._place = int(self.rows["_asked"].search_sorted(until, side="left"))

    def ask(self, until: int) -> int:
        """Ask what is to be asked before ``until``, so never later than it should be; return how many questions."""
        end = int(self.rows["_asked"].search_sorted(until, side="left"))
        if end <= self._place:
            return 0
        part = self.rows[self._place : end].select(self.columns)
        rows = part.with_columns(pl.col(pl.Datetime).dt.strftime("%Y-%m-%dT%H:%M:%SZ")).to_dicts()
        began = time.perf_counter()
        self.server.call("POST", f"/v1/models/{MODEL}/predict", {"rows": rows}, {"X-Request-Id": str(until)})
        self.seconds += time.perf_counter() - began
        self.sent += len(rows)
        self._place = end
        return len(rows)


def run(
    project: Project, delivery: feeds.Delivery, asked: pl.DataFrame, end: int, seconds: float, console: Console
) -> Scene:
    """Turn the mill from START to ``end`` and return what was seen. ``seconds``: how long it should about take."""
    workspace, system = project.workspace, project.system
    clock = VirtualClock(START)
    scene = Scene(START, end)
    model = project.declared_model(MODEL)
    lease = workspace.journal.acquire()
    mill = project.mill(lease)
    server: ServerProcess | None = None
    try:
        with Picture(scene, mill, console) as picture:
            mill.start()
            asking: Asking | None = None
            ticks = range(START, end + 1, system.tick)
            began = time.perf_counter()
            for number, tick in enumerate(ticks):
                clock.advance_to(tick)
                scene.delivered(delivery.until(tick))
                turned = mill.tick(tick)
                scene.turned(turned, mill.state)
                if server is None and "champion" in mill.state.model(MODEL).aliases:
                    scene.doing = "opening the endpoint"
                    server = ServerProcess(project.path, 0, workspace.root / "log" / "server.txt")
                    scene.endpoint = server.url
                    asking = Asking(server, asked, model.request_columns)
                    asking.skip(tick)
                    scene.doing = ""
                    began = time.perf_counter() - seconds * number / len(ticks)
                if server is not None and any(entry.kind in ("alias", "version") for entry in turned.entries):
                    server.follow(turned.entries[-1].number)
                if asking is not None:
                    asking.ask(tick + system.tick)
                    scene.asked(asking.sent, asking.seconds)
                picture.refresh()
                if (
                    server is not None
                    and (left := began + seconds * (number + 1) / len(ticks) - time.perf_counter()) > 0
                ):
                    time.sleep(left)
            scene.finish()
    finally:
        mill.stop()
        if server is not None:
            server.stop()
        lease.release()
    return scene


def _serve(project: Project, scene: Scene, console: Console) -> None:
    server = ServerProcess(project.path, project.system.endpoint.port, project.workspace.root / "log" / "server.txt")
    console.print(f"Serving on {server.url} until Ctrl-C. The virtual clock stands at {format_time(scene.now)}.")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("Stopped.")
    finally:
        server.stop()
