"""``tidemill backtest``: rehearse retraining policies on the past, or replay a live run from its record."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from tidemill import project as projects
from tidemill.base.clock import format_duration, format_time, parse_duration, parse_time
from tidemill.base.errors import TidemillError
from tidemill.cli.common import echo_json, json_option, project_option
from tidemill.cli.layout import console, count, grid, section
from tidemill.cli.words import figure, when
from tidemill.engine.mill.rehearse import Difference
from tidemill.ports.journal import Entry
from tidemill.rehearsal import Backtest, Rehearsed, asking, backtest, past_of, period, recorded, replay_record
from tidemill.spec.system import Policy, Trigger, every, on_drift, on_drop

DECLARED = "declared"
NEVER = "never"

_MANY_TICKS = 100_000  # beyond it a rehearsal takes minutes

_WORDS = """Words of a policy, separated by commas:
  declared        as in the declared file
  never           train once, then never again
  every 30d       30 days after the last training started
  drift [7d]      when drift is reported; 7 days of cooldown
  drop [7d]       when performance has dropped; 7 days of cooldown
  window 90d      learn from the last 90 days; or: window all"""


@click.command(name="backtest", short_help="Rehearse retraining policies on your own past.")
@project_option
@click.option("--from", "start", metavar="TIME", help="Where the rehearsal starts, such as 2013-10-01.")
@click.option("--to", "end", metavar="TIME", help="Where it ends.")
@click.option(
    "--policy", "specs", metavar="[NAME=]WORDS", multiple=True, help="A policy to rehearse; give two or more."
)
@click.option("--tick", metavar="DURATION", help="Time between ticks; by default the system's own.")
@click.option("--record", "replaying", is_flag=True, help="Replay the live run from its record and compare.")
@json_option
def command(
    path: Path,
    start: str | None,
    end: str | None,
    specs: tuple[str, ...],
    tick: str | None,
    replaying: bool,
    as_json: bool,
) -> None:
    """Rehearse retraining policies on your own past, with the code that runs live, and compare what they earn.

    Rows come when they became known, questions when they would have been asked, to the tick. Without --from and --to it
    is the last third of the time in which questions were asked, or the live run once that is at least a tenth as long.
    Without --policy, the declared policy is held against never retraining:

    \b
      tidemill backtest --policy "monthly=every 30d" --policy "weekly=every 7d, drift, window 90d"

    \b
    Words of a policy, separated by commas:
      declared        as in the declared file
      never           train once, then never again
      every 30d       30 days after the last training started
      drift [7d]      when drift is reported; 7 days of cooldown
      drop [7d]       when performance has dropped; 7 days of cooldown
      window 90d      learn from the last 90 days; or: window all

    With --record, the record of the live run (ticks, rows, questions, requests) is fed to a fresh mill, whose journal
    must come out the same, byte for byte. Exits with 1 when it does not.
    """
    project = projects.open(path)
    if replaying:
        if start or end or specs or tick:
            raise TidemillError("--record replays the whole live run; leave out --from, --to, --policy and --tick.")
        _replay(project, as_json=as_json)
        return
    policies = _policies(specs, project.system.policy)
    with _progress(quiet=as_json) as tell:
        tell(0, 1, "reading the past")
        past = past_of(project)
        asked = asking(project.system, past)
        first, last = period(project, asked)
        since, until = parse_time(start) if start else first, parse_time(end) if end else last
        beat = _duration(tick, "--tick") if tick else project.system.tick
        if patience := long(since, until, beat):
            click.echo(patience, err=True)
        made = backtest(project, policies, past, asked, since, until, beat, tell)
    if as_json:
        echo_json(_plain(made))
    else:
        _show(console(), made)


def long(start: int, end: int, tick: int) -> str:
    """Return a word of warning where there are so many ticks that it takes long, else ""."""
    ticks = (end - start) // tick
    if ticks <= _MANY_TICKS:
        return ""
    return f"There are {ticks:,} ticks of {format_duration(tick)} for each policy. Fewer take less time: --tick 1h"


# Policies ---------------------------------------------------------------------------------------------------------


def _policies(specs: Sequence[str], declared: Policy) -> dict[str, Policy]:
    """Return the policies of ``--policy``, by name; two by default. Raises TidemillError on words not understood."""
    if not specs:
        other = NEVER if declared.retrain else "every 30d"
        return {DECLARED: declared, other: policy_of(other, declared)}
    policies: dict[str, Policy] = {}
    for spec in specs:
        name, _, words = spec.rpartition("=")
        name = name.strip() or words.strip()
        if name in policies:
            raise TidemillError(f"--policy: the name {name!r} is given twice.")
        policies[name] = policy_of(words, declared)
    return {DECLARED: declared, **policies} if len(policies) == 1 and DECLARED not in policies else policies


def policy_of(words: str, declared: Policy) -> Policy:
    """Return the policy that ``words`` spell; what they leave open is as in ``declared``. Raises TidemillError."""
    triggers: list[Trigger] = []
    window, retrains = declared.window, False
    for part in (each.strip() for each in words.split(",")):
        match part.split():
            case ["declared"]:
                triggers += declared.retrain
                retrains = True
            case ["never"]:
                retrains = True
            case ["every", duration]:
                triggers.append(every(_checked(duration, part)))
            case ["drift"]:
                triggers.append(on_drift())
            case ["drift", duration]:
                triggers.append(on_drift(cooldown=_checked(duration, part)))
            case ["drop"]:
                triggers.append(on_drop())
            case ["drop", duration]:
                triggers.append(on_drop(cooldown=_checked(duration, part)))
            case ["window", "all"]:
                window = None
            case ["window", duration]:
                window = _duration(duration, part)
            case _:
                raise TidemillError(f"--policy: {part!r} is not understood. {_WORDS}")
    return Policy(
        retrain=triggers if triggers or retrains else declared.retrain,
        window="all" if window is None else format_duration(window),
        takes=format_duration(declared.takes),
    )


def _checked(duration: str, where: str) -> str:
    _duration(duration, where)
    return duration


def _duration(text: str, where: str) -> int:
    try:
        micros = parse_duration(text)
    except ValueError as error:
        raise TidemillError(f"{where}: {error}") from None
    if micros <= 0:
        raise TidemillError(f"{where}: must be longer than nothing.")
    return micros


# Showing ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Show how far it is with the time left; nothing for JSON."""
    if quiet:
        yield lambda *_: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("")

        def tell(done: int, total: int, doing: str) -> None:
            shown.update(task, completed=done, total=total, description=doing)

        yield tell


def _show(out: Console, made: Backtest) -> None:
    policies = list(dict.fromkeys(each.policy for each in made.rehearsed))
    out.print(
        f"[bold]{when(made.start)} to {when(made.end)}[/], {count(len(policies), 'policy')}: "
        f"{count(made.trainings, 'distinct training')} in {made.training_seconds:.0f} s, all in {made.seconds:.0f} s"
    )
    for model in dict.fromkeys(each.model for each in made.rehearsed):
        rows = [each for each in made.rehearsed if each.model == model]
        section(out, f"{model}: what was decided", _decided(rows))
        section(out, f"{model}: how good it was, on predictions whose label is known", _earned(rows))


def _decided(rows: Sequence[Rehearsed]) -> Any:
    table = grid(
        "policy", "trainings", "promoted", "refused", "too few rows", "failed", "predictions", right=range(1, 7)
    )
    for each in rows:
        made = each.decisions
        numbers = (made.trainings, made.promotions, made.refusals, made.waits, made.failures, each.predictions)
        table.add_row(each.policy, *(f"{number:,}" for number in numbers))
    return table


def _earned(rows: Sequence[Rehearsed]) -> Any:
    first = rows[0]
    table = grid("", "policy", "95 % interval", f"difference to {first.policy}")
    for name in first.figures:
        for each in rows:
            label = Text(name, style="bold") if each is first else Text()
            against = "" if each.against is None else figure(each.against[name].as_json())
            value = figure(each.figures[name].as_json()) if each.figures else "no predictions"
            table.add_row(label, each.policy, value, against)
    return table


def _plain(made: Backtest) -> dict[str, Any]:
    return {
        "from": format_time(made.start),
        "to": format_time(made.end),
        "distinct_trainings": made.trainings,
        "training_seconds": round(made.training_seconds, 3),
        "seconds": round(made.seconds, 3),
        "policies": [
            {
                "policy": each.policy,
                "model": each.model,
                "trainings": each.decisions.trainings,
                "promotions": each.decisions.promotions,
                "refusals": each.decisions.refusals,
                "waits": each.decisions.waits,
                "failures": each.decisions.failures,
                "predictions": each.predictions,
                "mature": each.mature,
                "figures": {name: value.as_json() for name, value in each.figures.items()},
                "against_first": None
                if each.against is None
                else {name: value.as_json() for name, value in each.against.items()},
            }
            for each in made.rehearsed
        ],
    }


# Replaying --------------------------------------------------------------------------------------------------------


def _replay(project: projects.Project, *, as_json: bool) -> None:
    run = recorded(project)
    difference: Difference | None = None
    with _progress(quiet=as_json) as tell:
        for done, (tick, found) in enumerate(replay_record(project.system, run), 1):
            tell(done, len(run.ticks), format_time(tick)[:10])
            difference = found
    same = len(run.entries)
    if difference is not None:
        number = (difference.live or difference.replayed or run.entries[-1]).number
        same = number - 1
    if as_json:
        first = difference and {
            "live": difference.live and _entry(difference.live),
            "replayed": difference.replayed and _entry(difference.replayed),
        }
        echo_json({"identical": difference is None, "entries": len(run.entries), "same": same, "difference": first})
    else:
        out = console()
        if difference is None:
            out.print(
                f"[bold green]Identical:[/] replaying {count(len(run.ticks), 'tick')} wrote the same "
                f"{count(len(run.entries), 'entry')}, byte for byte."
            )
        else:
            _show_difference(out, difference.live, difference.replayed, same)
    if difference is not None:
        sys.exit(1)


def _show_difference(out: Console, live: Entry | None, replayed: Entry | None, same: int) -> None:
    at = live or replayed
    assert at is not None
    out.print(f"[bold red]Not identical[/] after {count(same, 'entry')}, at {when(at.tick)}.")
    if live and replayed and live.kind == replayed.kind == "declare":
        out.print("The declared file is not the one of the live run; replay with the file and the versions it had.")
        return
    one, other = (_lines(live), _lines(replayed))
    for title, lines, rest in (("live", one, other), ("replayed", other, one)):
        own = [line for line in lines if line not in rest] or ["(the same so far, but no such entry)"]
        section(out, title, Text("\n".join(own[:12])))


def _lines(entry: Entry | None) -> list[str]:
    """Return an entry as lines of ``path: value``, so that two can be told apart by the lines that differ."""
    return [] if entry is None else [f"{name}: {value}" for name, value in _leaves(_entry(entry), "")]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, each in sorted(value.items()):
            yield from _leaves(each, f"{path}.{name}" if path else name)
    else:
        yield path, value


def _entry(entry: Entry) -> dict[str, Any]:
    return {"number": entry.number, "tick": format_time(entry.tick), "kind": entry.kind, "body": entry.body}
