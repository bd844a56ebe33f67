"""The oracle: a slow, literal interpreter of the ten time rules. Every engine is held against it, bit for bit.

Plain dicts, lists and exact arithmetic (fractions, rounded once at the end), so that it can be believed by reading it.
Polars is asked for one thing only: the value of a declared expression, one row at a time, because "the value of a
Polars expression on this row" is the definition. (Over many rows Polars divides a column by a number through the
reciprocal, 1 ulp off in a third of the cases; on one row it divides. The one row is the definition.)

All times are int microseconds since the epoch, UTC. A row is a dict of its user columns (times as int or None) and the
system columns ``_known_at``, ``_seq`` and ``_tombstone``; ``_tick`` and ``_history`` may be there and are not read.

Where the rules leave something open, the reading taken here:

* A row whose own key holds a null is a version of nothing: it replaces no row and no row replaces it (rule 2, "null
  keys match nothing").
* A static file table without a known-at is always visible, its versions ordered by sequence (rule 4).
* A key's example is the newest version ``v``, by (known-at, sequence), with ``known_at(v) < asked_at(v)``. A version
  that became known too late for its own question changes nothing, even when it came before another version's question.
  A tombstone asks nothing. It takes the example away when it is newer than ``v`` and was known before ``asked_at(v)``:
  at that time the key was withdrawn. A tombstone known later changes nothing (rule 6).
* In aggregates and labels a number that is not finite counts as null, and zero has no sign in what is computed.
  ``first``, ``last`` and ``Latest`` copy values as they are.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import polars as pl

from tidemill.base.clock import from_datetime
from tidemill.base.schema import KNOWN_AT, SEQ, SYSTEM_COLUMNS, TOMBSTONE
from tidemill.spec.expression import Expression
from tidemill.spec.feature import Aggregate, Aggregation, Function, Latest, OnDemand, View
from tidemill.spec.model import Model
from tidemill.spec.source import Files, Source, Table
from tidemill.spec.time import Offset

Row = Mapping[str, Any]
Types = Mapping[str, pl.DataType]


@dataclass(frozen=True, slots=True)
class Example:
    """What was asked about one key: the version that asked, and when (microseconds)."""

    key: tuple[Any, ...]
    asked_at: int
    row: Row


@dataclass(frozen=True, slots=True)
class LabelOutcome:
    """What came true for an example. ``value`` is None unless ``status`` is "labelled"."""

    status: Literal["labelled", "immature", "no_label", "null_label"]
    value: Any = None


@dataclass(frozen=True, slots=True)
class Training:
    """The rows a model learns from, and how many were left out for each reason.

    Each row has the key columns, ``_asked_at``, the model's columns and ``_label``; rows are in order of
    (asked at, key). Reasons: "no_example" (keys), "outside_window", "immature", "no_label", "null_label" (examples).
    """

    rows: list[dict[str, Any]]
    counts: dict[str, int]


class Oracle:
    """Answers questions about ``tables`` (name to rows, in any order) by the letter of the time rules.

    ``types`` gives Polars types of columns, table by table, for evaluating expressions; what is not given is inferred
    from the values, so times (which are ints here) must be given where an expression reads them. A table that is not
    there is empty.
    """

    def __init__(self, tables: Mapping[str, Sequence[Row]], types: Mapping[str, Types] | None = None) -> None:
        self._tables = {name: list(rows) for name, rows in tables.items()}
        self._types: dict[str, dict[str, pl.DataType]] = {}
        for name, rows in self._tables.items():
            inferred = pl.DataFrame([dict(row) for row in rows], infer_schema_length=None, strict=False).schema
            self._types[name] = {**inferred, **(types or {}).get(name, {})}

    @classmethod
    def of(cls, frames: Mapping[str, pl.DataFrame]) -> Oracle:
        """Return an oracle over frames with system columns, such as ``Lake.scan`` returns."""
        rows = {name: [plain(row) for row in frame.iter_rows(named=True)] for name, frame in frames.items()}
        return cls(rows, {name: dict(frame.schema) for name, frame in frames.items()})

    def applied(self, sequences: Mapping[str, int]) -> Oracle:
        """Return an oracle that knows only rows numbered up to ``sequences[table]``, for the tables named there.

        Rule 9: a prediction logs the sequence number that had been applied; re-derivation uses exactly those rows.
        """
        rows = {
            name: [row for row in rows if name not in sequences or row[SEQ] <= sequences[name]]
            for name, rows in self._tables.items()
        }
        return Oracle(rows, self._types)

    # Rules 1, 2, 4: what is visible.

    def visible(self, table: Source | Table, t: int) -> list[Row]:
        """Return the rows of ``table`` that a question asked at ``t`` sees, in order of sequence."""
        rows = self._tables.get(table.name, [])
        if timeless(table):
            # Rule 4: with neither an event time nor a known-at they are always visible at the version pinned.
            known, order = rows, _sequence
        else:
            # Rule 2: a row is seen if and only if known_at < t. Rule 1: a null known-at waits until it is filled.
            known = [row for row in rows if row[KNOWN_AT] is not None and row[KNOWN_AT] < t]
            order = _version_order
        # Rule 2: a table at t is the last visible version of each key, less tombstones.
        last: dict[tuple[Any, ...], Row] = {}
        for row in sorted(known, key=order):
            last[_identity(table, row)] = row
        return sorted((row for row in last.values() if not row[TOMBSTONE]), key=_sequence)

    # Rules 3, 4: feature views.

    def view(self, view: View, request: Row, t: int, *, types: Types | None = None) -> dict[str, Any]:
        """Return the columns of ``view`` for ``request`` asked at ``t``. ``types``: those of the request's columns."""
        match view:
            case Aggregation():
                return self._aggregation(view, request, t)
            case Latest():
                return self._latest(view, request, t)
            case OnDemand():
                return {
                    f"{view.name}__{feature}": evaluate(expression, request, types or {})
                    for feature, expression in view.features
                }

    def _aggregation(self, view: Aggregation, request: Row, t: int) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        rows = self._matching(view, request, t)
        for feature, aggregate in view.features:
            for window in aggregate.over:
                # Rule 3: windows are [t - w, t) on event time. Rule 2: a null event time is in no window.
                inside = [
                    row
                    for row in rows
                    if (happened := _event_time(view.table, row)) is not None and t - window.micros <= happened < t
                ]
                # Rule 3: different keys are ordered by (event time, known-at, sequence).
                inside.sort(key=lambda row: (_event_time(view.table, row), *_version_order(row)))
                columns[f"{view.name}__{feature}_{window.text}"] = self._aggregate(view.table, aggregate, inside, t)
        return columns

    def _aggregate(self, table: Source | Table, aggregate: Aggregate, inside: Sequence[Row], t: int) -> Any:
        if aggregate.function == "count":
            return len(inside)  # counts rows, whatever they hold
        if aggregate.function == "since_last":
            return _since(_event_time(table, inside[-1]), t) if inside else None
        assert aggregate.value is not None
        return reduce(aggregate.function, [self._value(table, aggregate.value, row) for row in inside], aggregate.q)

    def _latest(self, view: Latest, request: Row, t: int) -> dict[str, Any]:
        rows = self._matching(view, request, t)
        table, event_time = view.table, view.table.event_time or ""
        if table.static:
            # Rule 4: static tables are looked up by known-at, or by sequence when they have none.
            rows.sort(key=_sequence if timeless(table) else _version_order)
        elif view.ahead:
            # Rule 3: forecasts by known-at, for the future time that the request states. A null time matches nothing.
            stated = request[view.request_columns[-1]]
            rows = [row for row in rows if stated is not None and row[event_time] == stated]
            rows.sort(key=_version_order)
        else:
            # Rule 3: Latest needs event_time < t; `within` includes its edge; (event time, known-at, sequence).
            rows = [row for row in rows if row[event_time] is not None and row[event_time] < t]
            if view.within is not None:
                rows = [row for row in rows if t - row[event_time] <= view.within]
            rows.sort(key=lambda row: (row[event_time], *_version_order(row)))
        # Rule 3: the last wins.
        return {f"{view.name}__{column}": rows[-1][column] if rows else None for column in view.values}

    def _matching(self, view: Aggregation | Latest, request: Row, t: int) -> list[Row]:
        """Return the visible rows that share the ``by`` columns with the request. Rule 2: null keys match nothing."""
        pairs = [(column, request[name]) for column, name in zip(view.by, view.request_columns, strict=False)]
        return [
            row
            for row in self.visible(view.table, t)
            if all(wanted is not None and row[column] is not None and row[column] == wanted for column, wanted in pairs)
        ]

    def _value(self, table: Source | Table, expression: Expression, row: Row) -> Any:
        return evaluate(expression, row, self._types[table.name])

    def features(self, model: Model, request: Row, t: int) -> dict[str, Any]:
        """Return ``model.columns`` for ``request`` (columns of the examples' table) asked at ``t``."""
        columns: dict[str, Any] = {}
        types = self._types.get(model.examples.name, {})
        for feature in model.features:
            if isinstance(feature, str):
                columns[feature] = request[feature]
            else:
                columns.update(self.view(feature, request, t, types=types))
        return columns

    # Rule 6: examples.

    def examples(self, model: Model, now: int) -> list[Example]:
        """Return the examples known before ``now``, one for each key that has one, in order of (asked at, key)."""
        found = [self._example(model, versions) for versions in self._versions(model.examples, now)]
        return sorted((example for example in found if example is not None), key=_example_order)

    def _versions(self, table: Source | Table, now: int) -> list[list[Row]]:
        """Return the versions known before ``now`` of each key, oldest first."""
        keys: dict[tuple[Any, ...], list[Row]] = {}
        for row in sorted(self._tables.get(table.name, []), key=_sequence):
            if timeless(table) or (row[KNOWN_AT] is not None and row[KNOWN_AT] < now):
                keys.setdefault(_identity(table, row), []).append(row)
        order = _sequence if timeless(table) else _version_order
        return [sorted(versions, key=order) for versions in keys.values()]

    def _example(self, model: Model, versions: Sequence[Row]) -> Example | None:
        # Rule 6: a key's example is its newest version visible at its own asked_at; ...
        for place in reversed(range(len(versions))):
            row = versions[place]
            asked = asked_at(model, row)
            if row[TOMBSTONE] or asked is None or not self._known_before(model.examples, row, asked):
                continue
            # ... later versions and tombstones do not change it, but a tombstone known by then leaves nothing to ask.
            withdrawn = any(
                later[TOMBSTONE] and self._known_before(model.examples, later, asked) for later in versions[place + 1 :]
            )
            return None if withdrawn else Example(tuple(row[name] for name in model.examples.key), asked, row)
        return None

    @staticmethod
    def _known_before(table: Source | Table, row: Row, t: int) -> bool:
        return timeless(table) or (row[KNOWN_AT] is not None and row[KNOWN_AT] < t)

    # Rule 7: labels.

    def label(self, model: Model, example: Example, now: int) -> LabelOutcome:
        """Return what is known at ``now`` to have come true for ``example``."""
        label = model.label
        # Only mature examples count: asked_at + within + settle earlier than now.
        if not example.asked_at + label.within + label.settle < now:
            return LabelOutcome("immature")
        # Labels share the example's key (or `on=`: the table's column to the example's column).
        named = {theirs: ours for ours, theirs in label.on}
        pairs = [(named.get(name, name), example.row[name]) for name in model.examples.key]
        # A label row counts if its event time lies in (asked_at, asked_at + within] and it is visible.
        rows = [
            row
            for row in self.visible(label.table, now)
            if all(wanted is not None and row[column] is not None and row[column] == wanted for column, wanted in pairs)
            and (happened := _event_time(label.table, row)) is not None
            and example.asked_at < happened <= example.asked_at + label.within
        ]
        if not rows:
            # `otherwise` is the label when none came; None excludes the example and counts it, ...
            return LabelOutcome("no_label") if label.otherwise is None else LabelOutcome("labelled", label.otherwise)
        last = max(rows, key=lambda row: (_event_time(label.table, row), *_version_order(row)))
        value = self._value(label.table, label.value, last)
        # ... as does a null label value.
        return LabelOutcome("null_label") if _null(value) else LabelOutcome("labelled", value)

    def training_set(self, model: Model, now: int, window: int | None = None) -> Training:
        """Return what ``model`` may learn from at ``now``: mature, labelled examples asked since ``now - window``."""
        examples = self.examples(model, now)
        counts = dict.fromkeys(("outside_window", "immature", "no_label", "null_label"), 0)
        counts["no_example"] = len(self._versions(model.examples, now)) - len(examples)
        rows = []
        for example in examples:
            if window is not None and example.asked_at < now - window:
                counts["outside_window"] += 1
                continue
            outcome = self.label(model, example, now)
            if outcome.status != "labelled":
                counts[outcome.status] += 1
                continue
            # No example is dropped because a feature is missing (rule 6).
            rows.append(
                {
                    **dict(zip(model.examples.key, example.key, strict=True)),
                    "_asked_at": example.asked_at,
                    **self.features(model, example.row, example.asked_at),
                    "_label": outcome.value,
                }
            )
        return Training(rows, counts)

    # Rule 8: derived tables.

    def derived(self, table: Table, t: int) -> list[dict[str, Any]]:
        """Return the rows (user columns) of ``table`` at ``t``: f(inputs at t), inputs that are derived likewise."""
        frames = []
        for source in table.sources:
            names = [name for name in self._types.get(source.name, {}) if name not in SYSTEM_COLUMNS]
            types = {name: self._types[source.name][name] for name in names}
            rows = self.derived(source, t) if isinstance(source, Table) else self.visible(source, t)
            if isinstance(source, Table) and not types:
                frames.append(pl.LazyFrame(rows, infer_schema_length=None))
            else:
                frames.append(pl.LazyFrame([{name: row[name] for name in names} for row in rows], schema=types))
        return [plain(row) for row in table.function(*frames).collect().iter_rows(named=True)]


# Rules 1 and 5: when a row counts as known.


def known_at(source: Source, row: Row, *, tick: int, first: bool, history: bool) -> int | None:
    """Return the known-at that ingest must give to ``row`` in the commit of ``tick``; None waits until it is filled.

    ``first``: whether the row is its key's first version. ``history``: whether it comes with the first load or a
    back-fill. Raises ValueError where ``check`` refuses: a later version or tombstone in history that has only a
    derived known-at.
    """
    declared: int | None
    later = not first or bool(source.tombstone and row[source.tombstone])
    if isinstance(source.known_at, str):
        # Rule 1: a column.
        declared = row[source.known_at]
    elif later and source.corrected_at is not None:
        # Rule 1: a derived known-at belongs to a key's first version; later ones bring their own column ...
        declared = row[source.corrected_at]
    elif isinstance(source.known_at, Offset) or (isinstance(source.reader, Files) and source.event_time is not None):
        # ... or take the ingest clock, and in history `check` refuses them without one.
        if later and history:
            raise ValueError(f"a later version in the history of {source.name!r} says nothing of when it became known")
        # Rule 1: a delay before or after a column. Undeclared, it is the event time for files ...
        column, micros = _offset(source.known_at or source.event_time or "")
        declared = tick if later else None if row[column] is None else row[column] + micros
    else:
        # ... and the ingest time for streams, pushes and change capture. Rule 4: versions record their commit time.
        declared = tick
    # Rule 5: live ingest sets it to the later of the declared value and the tick; history keeps the declared value.
    return declared if history or declared is None else max(declared, tick)


def timeless(table: Source | Table) -> bool:
    """Tell whether ``table`` has neither an event time nor a known-at (rule 4), so that all of it is always visible.

    Undeclared, a known-at is the event time for files, which static ones lack, and the ingest time for all else.
    """
    if table.event_time is not None or table.known_at is not None or table.corrected_at is not None:
        return False
    if isinstance(table, Table):
        return all(timeless(source) for source in table.sources)  # rule 8: known no earlier than its inputs
    return isinstance(table.reader, Files)


def asked_at(model: Model, row: Row) -> int | None:
    """Return when the version ``row`` of an example is asked about; None when its column is null."""
    column, micros = _offset(model.asked_at)
    return None if row[column] is None else row[column] + micros


def counted(predictions: Iterable[tuple[int, int]], happened: int) -> int | None:
    """Return the one prediction of a key that counts: the last answered before the label's event time ``happened``.

    ``predictions`` are pairs (answered at, sequence). Returns that sequence, None when there is none (rule 7).
    """
    early = [(answered, number) for answered, number in predictions if answered < happened]
    return max(early)[1] if early else None


def may_teach(model: Model, asked: int, block: int, gap: int) -> bool:
    """Tell whether an example asked at ``asked`` may teach the model that predicts the block starting at ``block``.

    Rule 10: each block is judged by a model fitted on rows mature before it; the split keeps ``gap`` before it free.
    """
    return asked + model.label.within + model.label.settle < block and asked < block - gap


# Values.


def evaluate(expression: Expression, row: Row, types: Types) -> Any:
    """Return the value of ``expression`` on ``row`` by Polars' own reading of it; times come back as microseconds."""
    if expression.column is not None:
        return row[expression.column]
    frame = pl.DataFrame(
        {name: [row[name]] for name in expression.columns},
        schema={name: types.get(name) for name in expression.columns},  # None: inferred
    )
    return _micros(frame.select(expression.polars).to_series()[0])


def reduce(function: Function, values: Sequence[Any], q: float | None = None) -> Any:
    """Return one aggregate of ``values``, which are in order; None when no value is left after the nulls.

    Sum, mean, share, std, min and max are floats, the exact result correctly rounded; booleans count as 0 and 1.
    ``first`` and ``last`` are values as they were, the counts integers. ``q`` is that of a quantile.
    """
    present = [value for value in values if not _null(value)]  # aggregates skip nulls
    if not present:
        return None
    match function:
        case "count" | "since_last":
            raise ValueError(f"{function} takes rows, not values")
        case "sum":
            return _rounded(sum(map(Fraction, present), Fraction()))
        case "mean" | "share":
            return _rounded(sum(map(Fraction, present), Fraction()) / len(present))
        case "std":
            return _std([Fraction(value) for value in present])
        case "min":
            return _rounded(min(map(Fraction, present)))
        case "max":
            return _rounded(max(map(Fraction, present)))
        case "quantile":
            assert q is not None
            return _quantile(sorted(map(float, present)), q)
        case "first":
            return present[0]
        case "last":
            return present[-1]
        case "n_unique":
            return len(set(present))


def _std(values: Sequence[Fraction]) -> float | None:
    """Return the sample standard deviation, correctly rounded; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = sum(values, Fraction()) / len(values)
    return root(sum(((value - mean) ** 2 for value in values), Fraction()) / (len(values) - 1))


def _quantile(ordered: Sequence[float], q: float) -> float:
    """Return what lies at the place (n - 1) * q of n values in order, between its two neighbours in proportion.

    The floating-point steps are part of the definition: they are those of ``numpy.quantile``, but for a difference of
    the neighbours that overflows. Zero has no sign.
    """
    place = (len(ordered) - 1) * q
    part = place - math.floor(place)
    a = ordered[math.floor(place)]
    if part == 0:
        return a + 0.0
    b = ordered[math.floor(place) + 1]
    if math.isinf(b - a):
        return a * (1 - part) + b * part + 0.0
    return (a + (b - a) * part if part < 0.5 else b - (b - a) * (1 - part)) + 0.0


def _since(happened: int | None, t: int) -> float | None:
    """Return the seconds from ``happened`` to ``t``."""
    return None if happened is None else _rounded(Fraction(t - happened, 10**6))


def root(square: Fraction) -> float:
    """Return the square root of ``square`` (not negative), correctly rounded.

    An integer root with at least 64 bits, its last bit set when it is inexact ("round to odd"), carries enough to be
    rounded once more without changing the result.
    """
    if square == 0:
        return 0.0
    shift = max(0, 128 - square.numerator.bit_length() + square.denominator.bit_length())
    shift += shift % 2
    scaled, rest = divmod(square.numerator << shift, square.denominator)
    whole = math.isqrt(scaled)
    whole |= rest != 0 or whole * whole != scaled
    return _rounded(Fraction(whole, 1 << shift // 2))


def _rounded(value: Fraction) -> float:
    """Return the nearest float; infinite where that lies beyond the largest."""
    try:
        return value.numerator / value.denominator  # Python rounds the division of integers correctly
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def plain(row: Row) -> dict[str, Any]:
    """Return ``row`` with its times as int microseconds."""
    return {name: _micros(value) for name, value in row.items()}


def _micros(value: Any) -> Any:
    if not isinstance(value, dt.datetime):
        return value
    return from_datetime(value if value.tzinfo else value.replace(tzinfo=dt.UTC))


# Keys and orders.


def _identity(table: Source | Table, row: Row) -> tuple[Any, ...]:
    """Return what the versions of one thing have in common; a null key has nothing in common with any other row."""
    key = tuple(row[name] for name in table.key)
    return ("no key", row[SEQ]) if None in key else ("key", *key)


def _event_time(table: Source | Table, row: Row) -> int | None:
    return None if table.event_time is None else row[table.event_time]


def _version_order(row: Row) -> tuple[int, int]:
    """Rule 2: versions of one key are ordered by (known-at, sequence)."""
    return row[KNOWN_AT], row[SEQ]


def _sequence(row: Row) -> tuple[int, int]:
    return 0, row[SEQ]


def _example_order(example: Example) -> tuple[Any, ...]:
    return example.asked_at, tuple((part is not None, part) for part in example.key)


def _offset(when: str | Offset) -> tuple[str, int]:
    return (when, 0) if isinstance(when, str) else (when.column, when.micros)
