"""Derived tables (time rule 8): at t, a derived table is f(its inputs at t).

**Whole tables.** Each tick, f runs over the inputs visible just after it, and what differs from the newest versions of
the derived table is appended: new and changed rows as versions, vanished rows as tombstones, known from the tick on (or
from the declared known-at, where that is later). The first build over history gives rows their declared known-at;
``cut_test`` proves that this is honest. Where corrections became known, history is replayed up to and across each of
them (two evaluations of f for each distinct time), and what a correction changes is known from the correction on.

**Row by row** (``rows=True``). f runs on new versions of its one input. An output row has the key of its input row and
at most one row comes of each; it takes that version's known-at (or the declared one, where later), and a version of
which no row comes, or that is a tombstone, withdraws the key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from tidemill.base.clock import FOREVER, format_time, to_datetime
from tidemill.base.errors import DeclarationError, Fault
from tidemill.base.hashing import canonical, fingerprint
from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ, SYSTEM_COLUMNS, TICK, TOMBSTONE, nearest
from tidemill.engine.table.clean import clean
from tidemill.engine.table.contract import cast, normal
from tidemill.engine.table.ingest import Taken, numbered, to_arrow
from tidemill.engine.table.table import TIME, timeless, visible
from tidemill.engine.table.tally import added, begin, counting, tell
from tidemill.ports.lake import Commit, Fence, Lake
from tidemill.spec.source import Table
from tidemill.spec.time import Offset

_DECLARED = ".declared"
_KNOWN = ".known"  # no column has a dot in its name, so scratch columns with one cannot collide


def evaluate(table: Table, frames: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Return f over ``frames`` (by input name; system columns are taken off), in the lake's types, in order of key.

    Raises DeclarationError when f fails or its rows lack a declared column, a key is null, or a key comes twice.
    """
    where = f"table {table.name!r}"
    begin()
    try:
        made: Any
        if table.steps:
            made = cleaned(table, frames[table.inputs[0]])
        else:
            made = table.function(*(frames[name].drop(SYSTEM_COLUMNS, strict=False).lazy() for name in table.inputs))
        frame = made.collect() if isinstance(made, pl.LazyFrame) else made
    except Exception as error:
        what = "steps" if table.steps else "function"
        raise _wrong(where, f"its {what} failed: {type(error).__name__}: {error}", f"Mend the {what}.") from error
    if not isinstance(frame, pl.DataFrame):
        raise _wrong(where, f"its function returned a {type(frame).__name__}.", "Return a Polars lazy frame.")
    known = table.known_at.column if isinstance(table.known_at, Offset) else table.known_at
    times = [name for name in (table.event_time, known) if name]
    for name in (*table.key, *times):
        if name not in frame.columns:
            do = f"Return it, or declare another.{nearest(name, frame.columns)}"
            raise _wrong(where, f"its function returns no column {name!r}, which is declared.", do)
    for name in frame.columns:
        if not name or "." in name or name in SYSTEM_COLUMNS:
            raise _wrong(where, f"{name!r} cannot be a column's name.", "Rename it.")
    columns = []
    for name in frame.columns:
        dtype = TIME if name in times else normal(frame[name].dtype)
        columns.append(cast(frame[name], dtype))
        if name in times and columns[-1].null_count() > frame[name].null_count():
            raise _wrong(where, f"column {name!r} is declared as a time and holds other values.", "Return times.")
    frame = pl.DataFrame(columns)
    if frame.select(pl.any_horizontal(pl.col(table.key).is_null()).any()).item():
        raise _wrong(where, "its function returns rows with a null in their key.", "Leave them out.")
    twice = frame.filter(frame.select(table.key).is_duplicated())
    if not twice.is_empty():
        key = dict(zip(table.key, twice.select(table.key).row(0), strict=True))
        raise _wrong(where, f"its function returns more than one row with the key {key}.", "Make the key unique.")
    return frame.sort(table.key)


def cleaned(table: Table, rows: pl.DataFrame) -> pl.DataFrame:
    """Return ``rows`` of the one input as the steps of ``table`` leave them; each row was known when it was stored."""
    kept = rows.drop((name for name in SYSTEM_COLUMNS if name != KNOWN_AT), strict=False)
    ties = () if table.event_time is None else (table.event_time,)
    made, counts = clean(kept, table.steps, known_at=known_column(table), key=table.key, ties=ties)
    for count in counts:
        tell(count)
    return made.drop(KNOWN_AT, strict=False)


def known_column(table: Table) -> str | None:
    """Return the column that tells the steps of ``table`` when each row of its input was known, or None."""
    if not timeless(table.sources[0]):
        return KNOWN_AT
    # When a row of a timeless table was stored says nothing. Steps compare times, so an offset does not matter.
    return table.known_at.column if isinstance(table.known_at, Offset) else table.known_at or table.event_time


def _wrong(where: str, what: str, do: str) -> DeclarationError:
    return DeclarationError([Fault(where, what, do)])


def declared_known_at(table: Table) -> pl.Expr:
    """Return the declared known-at of the rows of ``table``: a column, an offset, the event time, or null (static)."""
    if isinstance(table.known_at, Offset):
        return pl.col(table.known_at.column) + pl.duration(microseconds=table.known_at.micros)
    if table.known_at is not None:
        return pl.col(table.known_at)
    return pl.col(table.event_time) if table.event_time is not None else pl.lit(None, dtype=TIME)


def known_of(table: Table, made: pl.DataFrame, frames: Mapping[str, pl.DataFrame]) -> pl.Series:
    """Return when each row ``made`` by f of ``frames`` became known, by its declaration.

    A row that comes of one input row, with its key, is known no earlier than that: row by row, and when cleaned.
    """
    source = table.sources[0]
    inherits = table.by_row or (bool(table.steps) and table.key == source.key and not timeless(source))
    if not inherits:
        return made.with_columns(declared_known_at(table).alias(_KNOWN))[_KNOWN]
    own = frames[source.name].select(*table.key, pl.col(KNOWN_AT).alias(_KNOWN))
    declared = declared_known_at(table) if table.known_at is not None else pl.lit(None, dtype=TIME)
    joined = made.join(own, on=table.key, how="left", maintain_order="left")
    return joined.with_columns(pl.max_horizontal(_KNOWN, declared).alias(_KNOWN))[_KNOWN]


# Whole tables -----------------------------------------------------------------------------------------------------


def differences(
    table: Table, shown: pl.DataFrame, computed: pl.DataFrame, known: pl.Series, *, floor: int | None
) -> pl.DataFrame:
    """Return the versions and tombstones that turn ``shown`` into ``computed``: known-at, tombstone, user columns.

    ``shown``: the newest version of each key, tombstones left out, with ``_known_at``. Known-at is that of ``known``
    (see ``known_of``), at least ``floor`` (microseconds; None: no bound, as in history), and at least that of the
    version replaced, so that the new one wins. A row whose known-at is null is left out: it waits. A static table needs
    a floor.
    """
    names = computed.columns
    bound = pl.lit(None if floor is None else to_datetime(floor), dtype=TIME)
    computed = computed.with_columns(bound.alias(_DECLARED) if _static(table) else known.alias(_DECLARED))
    computed = computed.filter(pl.col(_DECLARED).is_not_null())
    old = shown.select(*names, pl.col(KNOWN_AT).alias(_KNOWN))
    changed = computed.join(old, on=names, how="anti", nulls_equal=True)
    changed = changed.join(old.select(*table.key, _KNOWN), on=table.key, how="left", maintain_order="left")
    gone = old.join(computed, on=table.key, how="anti", maintain_order="left")
    since = pl.max_horizontal(_DECLARED, bound, _KNOWN)
    versions = changed.select(since.alias(KNOWN_AT), pl.lit(value=False).alias(TOMBSTONE), *names)
    withdrawn = pl.max_horizontal(bound, _KNOWN)
    tombstones = gone.select(withdrawn.alias(KNOWN_AT), pl.lit(value=True).alias(TOMBSTONE), *names)
    return pl.concat([versions, tombstones])


def _static(table: Table) -> bool:
    return table.event_time is None and table.known_at is None


def replay(table: Table, inputs: Mapping[str, pl.DataFrame], *, tick: int) -> pl.DataFrame:
    """Return the versions and tombstones of the first build over history, up to and with ``tick``, in order of time."""
    parts: list[pl.DataFrame] = []
    shown: pl.DataFrame | None = None
    for cut, floor in _epochs(table, inputs, tick):
        frames = _at(table, inputs, cut)
        computed = evaluate(table, frames)
        if shown is None:
            shown = computed.clear().with_columns(pl.lit(None, dtype=TIME).alias(KNOWN_AT))
        part = differences(table, shown, computed, known_of(table, computed, frames), floor=floor)
        parts.append(part)
        kept = shown.join(part, on=table.key, how="anti")
        shown = pl.concat([kept, part.filter(~pl.col(TOMBSTONE)).select(shown.columns)])
    return pl.concat(parts)


def _epochs(table: Table, inputs: Mapping[str, pl.DataFrame], tick: int) -> list[tuple[int, int | None]]:
    """Return the times to evaluate at with the floor of what is new then: before and after each correction, and now."""
    static = _static(table)
    epochs: list[tuple[int, int | None]] = []
    for time in _corrections(table, inputs):
        if time <= tick and not static:
            epochs += [(time, None), (time + 1, time)]
    return [*epochs, (tick + 1, tick if static else None)]


def _corrections(table: Table, inputs: Mapping[str, pl.DataFrame]) -> list[int]:
    """Return the distinct times (microseconds) at which a later version or a tombstone became known, in order."""
    times: set[int] = set()
    for source in table.sources:
        rows = inputs[source.name].filter(pl.col(KNOWN_AT).is_not_null()).sort(KNOWN_AT, SEQ)
        later = rows.filter(~pl.struct(source.key).is_first_distinct() | pl.col(TOMBSTONE))
        times.update(later[KNOWN_AT].dt.epoch("us").to_list())
    return sorted(times)


def _at(table: Table, inputs: Mapping[str, pl.DataFrame], t: int) -> dict[str, pl.DataFrame]:
    return {source.name: visible(inputs[source.name], source, t) for source in table.sources}


# Row by row -------------------------------------------------------------------------------------------------------


def by_row(table: Table, versions: pl.DataFrame) -> pl.DataFrame:
    """Return what ``versions`` (rows of the one input, all system columns) make of the table, in the same order.

    Columns as ``differences`` gives them, and the input's ``_history``. Raises DeclarationError when the table has not
    exactly one input with its own key, or a row comes of no input row.
    """
    where = f"table {table.name!r}"
    if len(table.sources) != 1 or table.key != table.sources[0].key:
        do = "Give it one input and that input's key, or leave out rows=True."
        raise _wrong(where, "rows=True needs one input, and the key of that input.", do)
    # f sees each key once at a time, so that its rows can be told apart by key: all first versions, then all second …
    layer = versions.with_columns(pl.int_range(pl.len()).over(list(table.key)).alias(".layer"))
    parts = []
    stamps = [*table.key, KNOWN_AT, SEQ, TOMBSTONE, HISTORY]
    for rows in layer.partition_by(".layer", maintain_order=True, include_key=False) or [versions]:
        made = evaluate(table, {table.inputs[0]: rows.filter(~pl.col(TOMBSTONE))})
        if not made.join(rows, on=table.key, how="anti").is_empty():
            raise _wrong(where, "a row comes of no input row: its key is not that of one.", "Keep the key as it is.")
        present = made.with_columns(pl.lit(value=True).alias(".present"))
        parts.append(rows.select(stamps).join(present, on=table.key, how="left"))
    rows = pl.concat(parts).sort(SEQ)
    known = pl.col(KNOWN_AT)
    if table.known_at is not None:  # a row that is withdrawn declares nothing
        declared = declared_known_at(table)
        waits = pl.col(".present").is_not_null() & declared.is_null()
        known = pl.when(~waits & known.is_not_null()).then(pl.max_horizontal(known, declared))
    return rows.select(known.alias(KNOWN_AT), pl.col(".present").is_null().alias(TOMBSTONE), HISTORY, *made.columns)


# Keeping them -----------------------------------------------------------------------------------------------------


class Derivation:
    """Keeps derived tables in the lake up to date. For the one holder of the fence."""

    def __init__(self, lake: Lake, fence: Fence) -> None:
        self._lake = lake
        self._fence = fence

    def update(self, table: Table, *, tick: int, code: str, history: bool = False) -> Taken | None:
        """Bring ``table`` up to date at the end of ``tick`` (microseconds); None when there is nothing to do.

        Its inputs must be up to date. ``code`` is the fingerprint of the definition and its code; when it changes, f
        runs over everything again. ``history`` matters for the first build of a whole table only. An input that has no
        rows yet leaves the table as it is. Raises DeclarationError as ``evaluate`` does.
        """
        heads = {name: self._lake.head(name) for name in table.inputs}
        if any(head is None for head in heads.values()):
            return None
        reached = {name: head.next_seq for name, head in heads.items() if head is not None}
        head = self._lake.head(table.name)
        before: dict[str, Any] = json.loads(head.cursor) if head and head.cursor else {}
        same = before.get("code") == code
        wakes = before.get("wakes")
        if same and before["reached"] == reached and (wakes is None or wakes > tick):
            return None
        with counting() as runs:
            if table.by_row:
                since = before["reached"][table.inputs[0]] if same else 0
                versions = pl.DataFrame(self._lake.scan(table.inputs[0], since=since))
                changes, wakes = by_row(table, versions), None
            else:
                inputs = {name: pl.DataFrame(self._lake.scan(name)) for name in table.inputs}
                changes, wakes = self._whole(table, inputs, head, tick, history=history), _wakes(inputs, tick)
                runs[:-1] = []  # history is gone through in many runs; the last is over everything
        first = head.next_seq if head else 0
        rows = numbered(changes.with_columns(pl.lit(to_datetime(tick), dtype=TIME).alias(TICK)), first)
        cursor = canonical({"code": code, "reached": reached, "wakes": wakes}).decode()
        following = first + rows.height
        body = {
            "table": table.name,
            "rows": rows.height,
            "quarantined": 0,
            "first_seq": first,
            "next_seq": following,
            "tick": tick,
        }
        if counts := added(runs):
            body["cleaned"] = {"more": table.by_row and same, "steps": counts}
        batch = fingerprint(table.name, head.cursor if head else None, tick)
        commit = Commit(table.name, 0, tick, batch, rows.height, following, cursor, canonical(body).decode())
        commit = self._lake.append(table.name, self._fitting(table, to_arrow(rows)), commit, self._fence)
        return Taken(table.name, rows, pl.DataFrame(schema={"reason": pl.String, "row": pl.String}), 0, commit)

    def _whole(
        self, table: Table, inputs: Mapping[str, pl.DataFrame], head: Commit | None, tick: int, *, history: bool
    ) -> pl.DataFrame:
        if head is None and history:
            return replay(table, inputs, tick=tick).with_columns(pl.lit(value=True).alias(HISTORY))
        frames = _at(table, inputs, tick + 1)
        computed = evaluate(table, frames)
        if head is None:
            shown = computed.clear().with_columns(pl.lit(None, dtype=TIME).alias(KNOWN_AT))
        else:
            rows = pl.DataFrame(self._lake.scan(table.name))
            missing = [name for name in computed.columns if name not in rows.columns]
            if missing:
                raise _columns_changed(table, missing)
            shown = visible(rows, table, FOREVER)  # with versions that wait for their time
        changes = differences(table, shown, computed, known_of(table, computed, frames), floor=tick)
        return changes.with_columns(pl.lit(value=False).alias(HISTORY))

    def _fitting(self, table: Table, rows: pa.Table) -> pa.Table:
        """Return ``rows`` in the table's order of columns. Raises DeclarationError when the columns have changed."""
        if self._lake.head(table.name) is None:
            return rows
        schema = self._lake.schema(table.name)
        changed = sorted(set(schema.names) ^ set(rows.column_names))
        kept = [name for name in schema.names if name not in changed]
        changed += [name for name in kept if rows.schema.field(name).type != schema.field(name).type]
        if changed:
            raise _columns_changed(table, changed)
        return rows.select(schema.names)


def _columns_changed(table: Table, names: Sequence[str]) -> DeclarationError:
    what = f"the columns that its function returns have changed: {', '.join(names)}."
    return _wrong(f"table {table.name!r}", what, "Give the changed table a new name.")


def _wakes(inputs: Mapping[str, pl.DataFrame], tick: int) -> int | None:
    """Return the earliest known-at after ``tick`` among the inputs: when what is visible changes without new rows."""
    now = pl.lit(to_datetime(tick), dtype=TIME)
    times = [rows.filter(pl.col(KNOWN_AT) > now)[KNOWN_AT].dt.epoch("us").min() for rows in inputs.values()]
    return min((time for time in times if isinstance(time, int)), default=None)


# Proof ------------------------------------------------------------------------------------------------------------


def cut_test(table: Table, inputs: Mapping[str, pl.DataFrame], cuts: Sequence[int]) -> Fault | None:
    """Prove on ``cuts`` (microseconds) that f(inputs visible at t) equals the rows of f(inputs) known before t.

    ``inputs``: all versions, with system columns. Each cut is compared with the last time before the next correction,
    so that none lies between. Numbers may differ by 1e-9 relative: sums depend on the order of rows. Rows that the
    table shows later than t by their declared known-at do not count. Returns a Fault with the first differing row, or
    None. Static tables have no past to prove. Raises DeclarationError as ``evaluate`` does.
    """
    if _static(table) and not table.by_row:
        return None
    corrections = _corrections(table, inputs)
    computed: dict[int, pl.DataFrame] = {}
    for cut in sorted(set(cuts)):
        until = next((time for time in corrections if time >= cut), FOREVER)
        if until not in computed:
            computed[until] = _known(table, inputs, until)
        then = _known(table, inputs, cut)
        at = pl.lit(to_datetime(cut), dtype=TIME)
        expected = computed[until].filter(pl.col(_KNOWN) < at).drop(_KNOWN)
        if example := _difference(table, then.filter(pl.col(_KNOWN) < at).drop(_KNOWN), expected):
            return Fault(
                f"table {table.name!r}",
                f"its rows depend on what was not known yet: at {format_time(cut)} {example}.",
                "Let each row read only what is known by its own known-at, or declare a later known_at.",
            )
    return None


def _known(table: Table, inputs: Mapping[str, pl.DataFrame], t: int) -> pl.DataFrame:
    """Return f of what is visible at ``t``, with the known-at that its rows would get in ``.known``."""
    frames = _at(table, inputs, t)
    made = evaluate(table, frames)
    return made.with_columns(known_of(table, made, frames))


def _difference(table: Table, then: pl.DataFrame, later: pl.DataFrame) -> str | None:
    """Return in words how the first row that differs between the two differs, or None."""
    then = then.with_columns(pl.lit(value=True).alias(".then"))
    later = later.with_columns(pl.lit(value=True).alias(".later"))
    both = then.join(later, on=table.key, how="full", suffix=".later", coalesce=True).sort(table.key)
    values = [name for name in then.columns if name not in table.key and name != ".then"]
    for row in both.iter_rows(named=True):
        key = ", ".join(f"{name}={row[name]!r}" for name in table.key)
        if row[".then"] is None:
            return f"the row {key} is missing, which appears with a known-at before that time once more is known"
        if row[".later"] is None:
            return f"there is a row {key} that is gone, or has a later known-at, once more is known"
        for name in values:
            if not _alike(row[name], row[f"{name}.later"]):
                return f"{name!r} of the row {key} is {row[name]!r}, but {row[f'{name}.later']!r} once more is known"
    return None


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or abs(one - other) <= 1e-9 * max(abs(one), abs(other))
    return bool(one == other)
