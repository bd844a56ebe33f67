"""From differences to findings: which cause accounts for which of them, in which columns, and how large they are.

Columns of a view go to ``mismatch``, all columns of one view together, those that agree too: a cause must give every
one of them. What remains, and values that no table enters, are told apart by what is recorded of the version and by the
values alone.
"""

from __future__ import annotations

import importlib.metadata
import platform
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import polars as pl

from tidemill.base.clock import format_time
from tidemill.base.schema import KNOWN_AT, SEQ, TICK
from tidemill.engine.example.ledger import request_frame
from tidemill.engine.example.outcome import feature_frame, predictions
from tidemill.engine.feature.feature import TableView, compute
from tidemill.engine.parity.mismatch import STATES, causes, cover, suspects_with
from tidemill.engine.parity.parity import PREDICTION, ROUNDING, Difference, Finding, derive, largest
from tidemill.engine.parity.scene import Cause, Scenes, World
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.table.plain import plain, storable_rows, stored
from tidemill.engine.table.table import TIME, timeless
from tidemill.spec.feature import OnDemand
from tidemill.spec.model import Model

#: Distributions whose versions decide bits, recorded with each training.
DECIDING = ("numpy", "polars", "scikit-learn", "tidemill")
#: Differences up to so many units in the last place are of the float kind.
ULPS = 4

#: Questions that every hypothesis is tried on; the others are held against the causes found for these.
LOOKED_INTO = 500

_OPPOSED = 20  # causes held against the predictions that agree

#: Of a logged prediction (its place) to a view (its name).
Question = tuple[int, str]
#: Told how many questions have been looked into, and of how many.
Tell = Callable[[int, int], None]


def libraries() -> dict[str, str]:
    """Return the versions that decide bits, as installed here: of Python and of the ``DECIDING`` distributions."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in DECIDING}}


@dataclass(frozen=True, slots=True)
class Past:
    """What a comparison of one model's predictions goes by.

    ``types``: of the request's columns. ``tables``: all versions of each table that the model's views read.
    ``states``: (t, rows applied by table) of every answer logged, ascending. ``predictor`` and ``made_with`` (its
    libraries, {} where that was not recorded): of the version that predicted.
    """

    model: Model
    types: Mapping[str, pl.DataType]
    tables: Mapping[str, pl.DataFrame]
    states: Sequence[tuple[int, Mapping[str, int]]]
    predictor: Predictor
    made_with: Mapping[str, str]


def states(logged: pl.DataFrame) -> list[tuple[int, Mapping[str, int]]]:
    """Return the distinct states by which ``logged`` (rows of the ledger) were answered, by time."""
    distinct = logged.select(pl.col("asked").cast(TIME).to_physical(), "applied").unique().sort("asked", "applied")
    return [(asked, msgspec.json.decode(applied)) for asked, applied in distinct.iter_rows()]


def explain(
    past: Past,
    logged: pl.DataFrame,
    differences: Sequence[Difference],
    tell: Tell = lambda *_: None,
    looked_into: int = LOOKED_INTO,
) -> tuple[Finding, ...]:
    """Return what lies behind ``differences`` of ``logged`` (rows of the ledger), most predictions first.

    Of more than ``looked_into`` questions to views that were answered otherwise, every hypothesis is tried on so many,
    chosen by their ids, and on the others those that account for these.
    """
    rows = logged.filter(pl.col("id").is_in(list({each.id for each in differences})))
    place = {each: number for number, each in enumerate(rows["id"])}
    by_question: dict[Question, list[Difference]] = {}
    view_of = {column: view.name for view in _looked_up(past.model) for column in view.columns}
    outcomes: list[tuple[Cause, Difference]] = []
    predicted: list[Difference] = []
    for each in differences:
        if each.what == PREDICTION:
            predicted.append(each)
        elif each.what in view_of:
            by_question.setdefault((place[each.id], view_of[each.what]), []).append(each)
        else:
            outcomes.append((_by_value(past, each, "transform"), each))
    # Ids are hashes: the first of them are a sample of all times.
    sampled = set(sorted(by_question, key=lambda each: (rows["id"][each[0]], each[1]))[:looked_into])
    chosen = _of_views(past, rows, list(by_question), sampled, tell)
    for question, found in by_question.items():
        cause = chosen[question]
        if cause is None and question not in sampled:
            said = f"of more than {looked_into:,} answers of views: held against the causes found for the others alone"
            cause = Cause("unexplained", question[1], said)
        outcomes += [(cause or _by_value(past, each, "unexplained"), each) for each in found]
    by_id: dict[str, Cause] = {}
    for cause, each in outcomes:
        by_id.setdefault(each.id, cause)
    follows = _follow(past, rows)
    for each in predicted:
        wrong_features = each.id in by_id and follows[place[each.id]]
        outcomes.append((by_id[each.id] if wrong_features else _by_value(past, each, "model"), each))
    agreeing = logged.filter(~pl.col("id").is_in(list(place)))
    return _findings(past, outcomes, lambda cause, columns: _against(past, agreeing, cause, columns))


def late(past: Past, logged: pl.DataFrame, derived: pl.DataFrame) -> tuple[Finding, ...]:
    """Return which of ``derived`` (the features of ``logged``) would be others, had late rows been there in time.

    A late row was known before t by its own account and committed after it: history that was loaded afterwards. Tables
    without times have none.
    """
    requests = request_frame(logged["request"], past.types)
    asked = logged["asked"].dt.epoch("us").to_numpy().astype(np.int64)
    applied = [msgspec.json.decode(text) for text in logged["applied"]]
    found = []
    for view in _looked_up(past.model):
        rows = past.tables[view.table.name]
        if timeless(view.table) or rows.width == 0:
            continue
        known = rows[KNOWN_AT].cast(TIME).to_physical().fill_null(2**62).to_numpy()
        earliest = np.append(np.minimum.accumulate(known[::-1])[::-1], 2**62)
        seen = np.minimum([each.get(view.table.name, 0) for each in applied], rows.height)
        places = np.flatnonzero(earliest[seen] < asked)
        if not len(places):
            continue
        then, now = derived[places].select(view.columns), compute(view, rows, requests[places], asked[places])
        for row, was, later in zip(
            places.tolist(), plain(then).iter_rows(named=True), plain(now).iter_rows(named=True), strict=True
        ):
            if msgspec.json.encode(was) != msgspec.json.encode(later):
                cause = Cause("late row", view.name, f"rows of {view.table.name} came later")
                found += [
                    (cause, Difference(logged["id"][row], name, was[name], later[name]))
                    for name in view.columns
                    if msgspec.json.encode(was[name]) != msgspec.json.encode(later[name])
                ]
    return _findings(past, found)


def _looked_up(model: Model) -> list[TableView]:
    return [view for view in dict.fromkeys(model.views) if not isinstance(view, OnDemand)]


def _of_views(
    past: Past, rows: pl.DataFrame, questions: Sequence[Question], sampled: Set[Question], tell: Tell
) -> dict[Question, Cause | None]:
    """Return the cause of the mismatch of each question; on those ``sampled`` every hypothesis is tried."""
    requests = request_frame(rows["request"], past.types)
    asked = rows["asked"].cast(TIME).to_physical().to_list()
    applied = [msgspec.json.decode(text) for text in rows["applied"]]
    features = [msgspec.json.decode(text) for text in rows["features"]]
    views = {view.name: view for view in _looked_up(past.model) if past.tables[view.table.name].width}
    scenes = {name: Scenes(views[name], past.tables[views[name].table.name], requests)
              for name in dict.fromkeys(name for _, name in questions) if name in views}  # fmt: skip
    moments = [t for t, _ in past.states]
    suspects: list[World] = []
    known: dict[tuple[Any, ...], list[World]] = {}
    found: dict[Question, list[World]] = {}

    def look(question: Question, *, suspects_only: bool) -> None:
        nonlocal suspects
        row, name = question
        table, t = views[name].table.name, asked[row]
        logged = {column: stored(features[row].get(column)) for column in views[name].columns}
        seen = applied[row].get(table, 0)
        alike = (name, scenes[name].group(row), t, seen, repr(logged), suspects_only)
        if alike not in known:
            upto = bisect_left(moments, t)
            before = [(at, each.get(table, 0)) for at, each in past.states[max(upto - STATES, 0) : upto][::-1]]
            known[alike] = causes(
                scenes[name].scene(row, t, seen, logged, states=before, suspects=suspects, suspects_only=suspects_only)
            )
            suspects = suspects_with(suspects, known[alike])
        found[question] = known[alike]

    # What is found late may account for what came before it: the second pass takes what the first one left.
    passes = [each for each in questions if each in sampled], questions
    total, done = len(sampled) + len(questions), 0
    for suspects_only, chosen in enumerate(passes):
        for question in chosen:
            tell(done, total)
            done += 1
            if question[1] in scenes and not found.get(question):
                look(question, suspects_only=bool(suspects_only))
    tell(total, total)
    return dict(zip(questions, cover([found.get(each, []) for each in questions]), strict=True))


def _by_value(past: Past, each: Difference, otherwise: str) -> Cause:
    """Return the cause of a difference that no row accounts for."""
    where = past.model.name if each.what == PREDICTION else each.what
    now = libraries()
    changed = [
        f"{name} {then} then, {now.get(name, 'none')} now"
        for name, then in sorted(past.made_with.items())
        if now.get(name) != then
    ]
    apart = _ulps(each.logged, each.derived)
    # Aggregates are rounded correctly, whatever the libraries: of those only last digits can be their doing.
    if changed and (otherwise != "unexplained" or (apart is not None and apart <= ULPS)):
        return Cause("library version", where, "; ".join(changed))
    if apart is not None and apart <= ULPS:
        return Cause("float", where, f"by at most {ULPS} units in the last place")
    return Cause(otherwise, where, "")


def _ulps(one: Any, other: Any) -> int | None:
    """Return how many float64 lie between two numbers (of two lists: at most); None for anything else."""
    pair = [each if isinstance(each, list) else [stored(each)] for each in (one, other)]
    if len(pair[0]) != len(pair[1]) or not all(isinstance(each, float) for each in (*pair[0], *pair[1])):
        return None
    bits = [np.array(each, dtype=np.float64).view(np.int64).tolist() for each in pair]
    lines = [[each if each >= 0 else -(2**63) - each for each in every] for every in bits]
    return max((abs(first - second) for first, second in zip(*lines, strict=True)), default=0)


def _follow(past: Past, rows: pl.DataFrame) -> list[bool]:
    """Tell of each row whether its logged prediction is that of its logged features."""
    if rows.is_empty():
        return []
    was = predictions(rows["prediction"])
    now = past.predictor.predict(feature_frame(rows["features"], past.predictor.encoding))
    return list(np.isclose(now, was, rtol=ROUNDING, atol=0.0).reshape(len(was), -1).all(axis=1))


def _against(past: Past, agreeing: pl.DataFrame, cause: Cause, columns: Set[str]) -> int:
    """Return how many of the predictions that agree would not, had the rows that ``cause`` means never been there.

    Only the views that have ``columns`` are asked. Rows are taken away by making them known never.
    """
    if isinstance(cause.detail, str) or cause.kind == "doubled row" or agreeing.is_empty():
        return 0
    affected = [view for view in _looked_up(past.model) if not columns.isdisjoint(view.columns)]
    (table,) = {view.table.name: view.table for view in affected}.values()
    if timeless(table):
        return 0
    gone = pl.col(SEQ).is_between(cause.detail.start, cause.detail.stop, closed="left")
    rows = past.tables[table.name].with_columns(pl.when(~gone).then(KNOWN_AT))
    names = [name for view in affected for name in view.columns]
    derived = derive(past.model, past.types, {**past.tables, table.name: rows}, agreeing).select(names)
    features = map(msgspec.json.decode, agreeing["features"])
    return sum(
        msgspec.json.encode(values) != msgspec.json.encode({name: was.get(name) for name in names})
        for values, was in zip(storable_rows(derived), features, strict=True)
    )


def _findings(
    past: Past,
    outcomes: Sequence[tuple[Cause, Difference]],
    against: Callable[[Cause, Set[str]], int] = lambda *_: 0,
) -> tuple[Finding, ...]:
    grouped: dict[Cause, list[Difference]] = {}
    for cause, each in outcomes:
        grouped.setdefault(cause, []).append(each)
    made = []
    for place, (cause, found) in enumerate(sorted(grouped.items(), key=lambda each: -len(each[1]))):
        columns: dict[str, int] = {}
        for each in found:
            columns[each.what] = columns.get(each.what, 0) + 1
        number = len({each.id for each in found})
        opposed = against(cause, columns.keys()) if place < _OPPOSED else 0
        made.append(Finding(cause.kind, cause.where, _words(past, cause), number, columns, largest(found), opposed))
    return tuple(sorted(made, key=lambda each: (-each.predictions, each.kind, each.where, each.detail)))


def _words(past: Past, cause: Cause) -> str:
    """Say which rows or state a cause means."""
    if isinstance(cause.detail, str):
        said, _, moment = cause.detail.rpartition(" ")
        return f"{said} {format_time(int(moment))}" if said == "as of" else cause.detail
    views = _looked_up(past.model)
    if cause.kind == "stale state":
        table = next(view.table for view in views if view.name == cause.where)
        came = _came(past, table.name, cause.detail.start)
        return f"from row {cause.detail.start} of {table.name} on, committed at {came}"
    table = next(view.table for view in views if view.table.name == cause.where)
    first, last = cause.detail[0], cause.detail[-1]
    begin, end = _came(past, table.name, first), _came(past, table.name, last)
    if first == last:
        row = past.tables[table.name].filter(pl.col(SEQ) == first)
        key = ", ".join(f"{name} {row[name][0]}" for name in table.key)
        return f"row {first} of {table.name} ({key}), committed at {begin}"
    when = f"committed at {begin}" if begin == end else f"committed from {begin} to {end}"
    return f"rows {first} to {last} of {table.name} ({last - first + 1:,} rows), {when}"


def _came(past: Past, table: str, number: int) -> str:
    """Return when a row was committed."""
    row = past.tables[table].filter(pl.col(SEQ) == number)
    return format_time(int(row[TICK].cast(TIME).to_physical()[0]))
