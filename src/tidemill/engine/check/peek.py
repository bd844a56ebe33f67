"""What the data at hand says of a declared system, before anything is loaded: for ``check``.

Sources that were never loaded are looked at through their readers; what is in the lake already is believed. Derived
tables are rehearsed in a lake of memory by the code that builds them for good, and put to the cut test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl

from tidemill.base.errors import DeclarationError, Fault, SourceError
from tidemill.base.hashing import seed
from tidemill.base.schema import KNOWN_AT
from tidemill.engine.check.column import first_line, title, typed
from tidemill.engine.check.feature import view_title
from tidemill.engine.check.fingerprint import of
from tidemill.engine.expression.expression import evaluate
from tidemill.engine.table.contract import Inference
from tidemill.engine.table.derive import Derivation, cut_test
from tidemill.engine.table.ingest import Intake
from tidemill.engine.table.quality import accept
from tidemill.ports.lake import Fence, Lake
from tidemill.ports.reader import Batch, Reader
from tidemill.spec.expression import Expression
from tidemill.spec.feature import Aggregation, OnDemand
from tidemill.spec.source import Source, Table
from tidemill.spec.system import System
from tidemill.spec.time import Offset

#: Rows of a source that are looked at, about.
ROWS = 1_000_000
#: Rows of a source that expressions are tried on.
TRIED = 1_000
#: Random times at which a derived table is put to the cut test.
CUTS = 6


@dataclass(slots=True)
class Seen:
    """What was seen. ``schemas``, ``repeated`` and ``categories`` as ``check`` takes them; ``faults`` of whole inputs.

    ``batches``: what was read of the sources that are not loaded.
    """

    schemas: dict[str, Mapping[str, pl.DataType]] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    categories: dict[str, dict[str, int]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    batches: dict[str, list[Batch]] = field(default_factory=dict)

    def look(self, source: Source, reader: Reader) -> None:
        """Look at the first rows that ``reader`` brings."""
        try:
            batches, rows = [], 0
            for batch in reader.poll(None):
                batches.append(batch)
                rows += batch.rows.num_rows
                if rows >= ROWS:
                    break
            schema = schema_of(source, batches) if rows else None
        except SourceError as error:
            self.faults.append(Fault(title(source), str(error).removeprefix(f"{title(source)}: ")))
            return
        if schema is not None:
            self.batches[source.name] = batches
            columns = [name for name in schema if schema[name] == pl.String or name in source.key]
            parts = [pl.DataFrame(batch.rows) for batch in batches]
            frame = pl.concat([part.select(each for each in columns if each in part.columns) for part in parts],
                              how="diagonal_relaxed")  # fmt: skip
            self.count(source, schema, frame)

    def count(self, table: Source | Table, schema: Mapping[str, pl.DataType], frame: pl.DataFrame) -> None:
        """Take note of a table's ``schema``, and of keys and categories in ``frame``, which has those columns."""
        self.schemas[table.name] = schema
        texts = [name for name, dtype in schema.items() if dtype == pl.String and name in frame.columns]
        self.categories[table.name] = {name: frame[name].drop_nulls().n_unique() for name in texts}
        key = [name for name in table.key if name in frame.columns]
        if frame.height and len(key) == len(table.key) and frame.select(key).is_duplicated().any():
            self.repeated.add(table.name)


def schema_of(source: Source, batches: Sequence[Batch]) -> Mapping[str, pl.DataType] | None:
    """Return the contract that ``batches`` show; columns that are declared and missing are left for ``check`` to name.

    Raises SourceError for faults of whole files.
    """
    seen = {name for batch in batches for name in batch.rows.column_names}

    def there(name: str | None) -> str | None:
        return name if name in seen else None

    known = source.known_at
    lenient = Source(
        source.name,
        source.reader,
        key=[name for name in source.key if name in seen],
        event_time=there(source.event_time),
        known_at=(known if known.column in seen else None) if isinstance(known, Offset) else there(known),
        corrected_at=there(source.corrected_at),
        tombstone=there(source.tombstone),
    )
    inference = Inference(lenient)
    for batch in batches:
        inference.observe(batch)
    return inference.contract()


@dataclass(frozen=True, slots=True)
class _Known:
    """A reader of batches that were read before."""

    batches: Sequence[Batch]

    def poll(self, cursor: str | None) -> Iterator[Batch]:
        yield from self.batches if cursor is None else ()


def cut_faults(system: System, seen: Seen, lake: Lake, fence: Fence, tick: int) -> Iterator[Fault]:
    """Yield what the cut test finds in the derived tables of ``system``, which must have passed ``check``.

    ``lake``: a lake of memory that holds the tables that exist. What is not there is loaded into it as at ``tick``
    (microseconds), from what was ``seen``.
    """
    missing = [source for source in system.sources if source.name in seen.batches and lake.head(source.name) is None]
    intake = Intake(missing, {source.name: _Known(seen.batches[source.name]) for source in missing}, lake, fence)
    for source in missing:
        try:
            for _ in intake.take(source.name, tick=tick, history=True):
                pass
        except SourceError as error:
            yield Fault(title(source), str(error).removeprefix(f"{title(source)}: "))
    derivation = Derivation(lake, fence)
    for table in system.tables:
        if not isinstance(table, Table) or any(lake.head(name) is None for name in table.inputs):
            continue
        inputs = {name: pl.DataFrame(lake.scan(name)) for name in table.inputs}
        try:
            fault = cut_test(table, inputs, _cuts(table, inputs))
            if fault is None:
                derivation.update(table, tick=tick, code=of(table), history=True)
        except DeclarationError as error:
            yield from error.faults
            continue
        if fault is not None:
            yield fault


def expression_faults(system: System, seen: Seen, tick: int) -> Iterator[Fault]:
    """Yield a fault for each expression of ``system`` that fails on rows that were ``seen``, as of ``tick``.

    The system must have passed ``check``, which tries them on made-up rows. Those may fail where the data does not (a
    text that is read as a number), so that they prove nothing.
    """
    tried: dict[str, pl.DataFrame] = {}
    for source in system.sources:
        if batches := seen.batches.get(source.name):
            batch = replace(batches[0], rows=batches[0].rows.slice(0, TRIED))
            try:
                taken = accept(source, batch, seen.schemas[source.name], tick=tick, history=False, seen=set())
            except SourceError as error:
                yield Fault(title(source), str(error).removeprefix(f"{title(source)}: "))
            else:
                tried[source.name] = taken.rows
    for model in system.models:
        where = f"model '{model.name}'"
        yield from _tried(f"{where}, label", {"its value": model.label.value}, model.label.table, tried)
        for view in model.views:
            if isinstance(view, OnDemand):
                yield from _tried(f"{where}, {view_title(view)}", dict(view.features), model.examples, tried)
            elif isinstance(view, Aggregation):
                values = {name: each.value for name, each in view.features if each.value is not None}
                yield from _tried(view_title(view), values, view.table, tried)


def _tried(
    where: str, values: Mapping[str, Expression], table: Source | Table, tried: Mapping[str, pl.DataFrame]
) -> Iterator[Fault]:
    if (frame := tried.get(table.name)) is None:
        return
    for name, value in values.items():
        try:
            evaluate(frame, {name: value})
        except Exception as error:
            what = f"'{name}' fails on rows of {title(table)}, on {typed(value, frame.schema)}: {first_line(error)}."
            yield Fault(where, what, "Read numbers out of text by tm.cast, in a cleaned table, or drop what is none.")


def _cuts(table: Table, inputs: Mapping[str, pl.DataFrame]) -> list[int]:
    """Return random times, the same for the same function and rows, among those at which a row became known."""
    times = np.unique(
        np.concatenate([rows[KNOWN_AT].drop_nulls().dt.epoch("us").to_numpy() for rows in inputs.values()])
    )
    chosen = np.random.default_rng(seed(of(table))).choice(times, min(CUTS, len(times)), replace=False)
    return sorted(int(time) + 1 for time in chosen)
