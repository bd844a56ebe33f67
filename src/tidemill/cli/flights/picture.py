"""The live picture of the demo: what is happening, calmly, and what was decided."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tidemill.base.clock import DAY, format_time
from tidemill.cli.words import decisions, figure, when
from tidemill.engine.mill.mill import Mill, Turned
from tidemill.engine.predict.state import State

_NOTES = (
    "Each report of a landing comes 0 to 90 minutes late, by a hash of its flight; 0.5 % are corrected days later.",
    "Each question is asked at least two hours before departure and sees only what was known then.",
)
_SHOWN = 9  # newest decisions


@dataclass(slots=True)
class Scene:
    """Everything the picture shows and the summary tells, gathered as the ticks go by."""

    start: int
    end: int
    now: int = 0
    doing: str = "loading January to September"
    endpoint: str = ""
    sent: int = 0
    seconds: float = 0.0
    quarantined: int = 0
    state: State = field(default_factory=State)
    decided: list[tuple[int, str, str]] = field(default_factory=list)
    arrived: dict[str, int] = field(default_factory=dict)
    finished: bool = False

    def delivered(self, rows: Mapping[str, int]) -> None:
        """Take note of rows that the feeds wrote this tick."""
        self.arrived = dict(rows)

    def turned(self, turned: Turned, state: State) -> None:
        """Take note of what a tick did."""
        self.now, self.state, self.doing = turned.tick, state, ""
        for entry in turned.entries:
            if entry.kind == "commit":
                self.quarantined += entry.body["quarantined"]
            self.decided.extend((entry.tick, style, text) for style, text in decisions(entry))

    def asked(self, sent: int, seconds: float) -> None:
        """Take note of questions answered so far, and how long the answers took in all."""
        self.sent, self.seconds = sent, seconds

    def finish(self) -> None:
        """Take note that the last tick is over."""
        self.finished = True


class Picture:
    """Draws a scene while it changes. On something that is no terminal it prints each decision on a line."""

    def __init__(self, scene: Scene, mill: Mill, console: Console) -> None:
        self._scene, self._mill, self._console = scene, mill, console
        self._began = time.perf_counter()
        self._printed = 0
        self._month = ""
        self._trainings: dict[str, float] = {}  # when each training under way was first seen
        self._live = Live(get_renderable=self.draw, console=console, refresh_per_second=6, transient=False)

    def __enter__(self) -> Picture:
        if self._console.is_terminal:
            self._live.start()
        else:
            for note in _NOTES:
                self._console.print(note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def refresh(self) -> None:
        """Print what is new, where there is no live picture."""
        if self._console.is_terminal:
            return
        scene = self._scene
        month = format_time(scene.now)[:7]
        if month != self._month:
            self._month = month
            self._console.print(f"{format_time(scene.now)[:10]}  {scene.sent:,} questions answered so far")
        for at, style, text in scene.decided[self._printed :]:
            self._console.print(Text(f"{when(at)}  {text}", style=style), soft_wrap=True)
        self._printed = len(scene.decided)

    def draw(self) -> RenderableType:
        """Return the picture of this moment."""
        scene = self._scene
        spent = time.perf_counter() - self._began
        share = max(0.0, min(1.0, (scene.now - scene.start) / (scene.end - scene.start))) if scene.now else 0.0
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column()
        head.add_column(justify="center")
        head.add_column(justify="right")
        left = f"about {spent / share - spent:.0f} s left" if 0.02 < share < 1 else ""
        day = f"day {(scene.now - scene.start) // DAY} of {(scene.end - scene.start) // DAY}" if scene.now else ""
        head.add_row(Text(when(scene.now) if scene.now else "", style="bold"), day, f"{spent:.0f} s  {left}")
        body = Table.grid(padding=(0, 2))
        body.add_column(style="dim", min_width=9)
        body.add_column()
        for name, value in self._lines():
            body.add_row(name, value)
        log = Table.grid(padding=(0, 2))
        log.add_column(style="dim", no_wrap=True)
        log.add_column()
        for at, style, text in scene.decided[-_SHOWN:]:
            log.add_row(when(at), Text(text, style=style))
        notes = Text("\n".join(_NOTES), style="dim")
        bar = ProgressBar(total=1.0, completed=share, width=None)
        parts: list[RenderableType] = [head, bar, Text(), body]
        if scene.decided:
            parts += [Text(), Text("decisions", style="dim"), log]
        return Panel(Group(*parts, Text(), notes), title="tidemill · flights 2013", title_align="left", padding=(0, 1))

    def _left(self, model: str, share: float) -> str:
        """Return how long a training will still take, by how long its share took."""
        now = time.perf_counter()
        if share <= 0 or model not in self._trainings:
            self._trainings[model] = now
            return ""
        left = (now - self._trainings[model]) * (1 - share) / share
        return f"   about {left:.0f} s left" if share < 1 else ""

    def _lines(self) -> list[tuple[str, RenderableType]]:
        scene, state = self._scene, self._scene.state
        lines: list[tuple[str, RenderableType]] = []
        if scene.doing:
            lines.append(("now", Text(f"{scene.doing} …", style="cyan")))
        if state.rows:
            counts = []
            for name in ("schedules", "arrivals", "weather", "planes"):
                new = scene.arrived.get(name, 0)
                counts.append(f"{name} {state.rows.get(name, 0):,}" + (f" [green]+{new}[/]" if new else ""))
            text = Text.from_markup("   ".join(counts))
            if scene.quarantined:
                text.append(f"   quarantined {scene.quarantined}", style="yellow")
            lines.append(("rows", text))
        for name, model in sorted(state.models.items()):
            if "champion" in model.aliases:
                version = model.version(model.aliases["champion"])
                metrics: Mapping[str, Any] = version.judged.get("metrics", {})
                order = next(each.metrics for each in self._mill.system.models if each.name == name)
                said = "   ".join(f"{metric} {figure(metrics[metric])}" for metric in order if metric in metrics)
                lines.append(("champion", f"{name} v{version.number} since {when(version.tick)}"))
                lines.append(("judged", said))
            progress = self._mill.progress().get(name)
            if model.training is not None:
                doing = progress.doing if progress else "waiting for its hour"
                bar = Table.grid(padding=(0, 1))
                done, total = (progress.done, max(progress.total, 1)) if progress else (1, 1)
                bar.add_row(
                    ProgressBar(total=total, completed=done, width=24),
                    Text(f"{doing}{self._left(name, done / total)}", style="cyan"),
                )
                lines.append(("training", bar))
            else:
                self._trainings.pop(name, None)
            if model.watched:
                lines.extend(_watched(model.watched))
        if scene.sent:
            rate = scene.sent / scene.seconds if scene.seconds else 0.0
            lines.append(("serving", f"{scene.sent:,} questions answered, {rate:,.0f}/s   {scene.endpoint}"))
        return lines


def _watched(body: Mapping[str, Any]) -> list[tuple[str, RenderableType]]:
    lines: list[tuple[str, RenderableType]] = []
    performance, drift = body["performance"], body["drift"]
    if performance:
        live = performance["live"]
        judged = figure({**performance["judged"], "low": None})
        known = f"{performance['metric']} {figure(live)} on {live['rows']:,} recent questions (judged {judged})"
        lines.append(("labels", known))
    if drift and drift["shifts"]:
        worst = drift["shifts"][0]
        style = "yellow" if drift["drifted"] else ""
        name = "the prediction" if worst["feature"] == "_prediction" else worst["feature"]
        text = f"furthest {name}, PSI {worst['psi']:.2f} (alarm above {drift['over']:g})"
        lines.append(("drift", Text(text, style=style)))
    return lines
