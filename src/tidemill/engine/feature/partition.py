"""Tables and questions in partitions by the hash of a key, so that no more than a few of them are in memory at a time.

Two rows belong together when they have the same key (they are versions of one thing) or when one asks about the group
of the other. Equal values have equal hashes, so what belongs together lies in the same partition; what else lies there
does not change an answer. The one difficulty is a thing that changes its group: its versions are needed in both, for a
version ends when the next one begins, wherever that one went. So a row goes to the partition of every group that its
thing has ever been in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from tidemill.base.errors import NotFoundError
from tidemill.base.schema import KNOWN_AT, SEQ, TOMBSTONE
from tidemill.engine.feature.feature import by_columns, keys
from tidemill.engine.table.table import LONE, lone
from tidemill.spec.feature import Aggregation, Latest, OnDemand
from tidemill.spec.model import Model
from tidemill.spec.source import Source, Table
from tidemill.spec.time import Offset

Places = npt.NDArray[np.int64]

_THINGS, _GROUPS = 1, 2  # seeds: where a thing lies must not tell where its group lies


@dataclass(frozen=True, slots=True)
class Need:
    """The first ``rows`` rows of a table, less the columns that nobody reads. ``columns`` are in the lake's order."""

    table: str
    rows: int
    columns: tuple[str, ...]

    @property
    def cells(self) -> int:
        """The size: rows times columns."""
        return self.rows * len(self.columns)


def table_views(model: Model) -> tuple[Aggregation | Latest, ...]:
    """Return the views of ``model`` that read a table."""
    return tuple(view for view in model.views if not isinstance(view, OnDemand))


def view_columns(view: Aggregation | Latest) -> set[str]:
    """Return the columns that ``view`` reads of its table, system columns too."""
    read = {*table_columns(view.table), *by_columns(view)}
    if isinstance(view, Latest):
        return read | set(view.values)
    return read.union(*(aggregate.value.columns for _, aggregate in view.features if aggregate.value is not None))


def table_columns(table: Source | Table) -> set[str]:
    """Return the columns by which versions of ``table`` are told apart and put in order."""
    return {*table.key, KNOWN_AT, SEQ, TOMBSTONE} | ({table.event_time} if table.event_time else set())


def label_key(model: Model) -> tuple[str, ...]:
    """Return the columns of the label's table that are compared with the key of the examples, in its order."""
    theirs = {ours: column for column, ours in model.label.on}
    return tuple(theirs.get(column, column) for column in model.examples.key)


def columns_read(model: Model, *, learning: bool) -> dict[str, tuple[str, ...]]:
    """Return the columns that ``model`` reads of each table, system columns too, in alphabetical order.

    ``learning``: of the examples and labels as well, as a training set does.
    """
    read: dict[str, set[str]] = {}
    for view in table_views(model):
        read.setdefault(view.table.name, set()).update(view_columns(view))
    if learning:
        asked = model.asked_at.column if isinstance(model.asked_at, Offset) else model.asked_at
        own = {*table_columns(model.examples), asked, *model.request_columns}
        read.setdefault(model.examples.name, set()).update(own)
        label = model.label
        theirs = {*table_columns(label.table), *label.value.columns, *label_key(model)}
        read.setdefault(label.table.name, set()).update(theirs)
    return {name: tuple(sorted(columns)) for name, columns in sorted(read.items())}


def needs(
    model: Model, schemas: Mapping[str, pa.Schema], next_seq: Mapping[str, int], *, learning: bool
) -> dict[str, Need]:
    """Return what ``model`` needs of each table that has rows. ``schemas``: of those, by name.

    Raises NotFoundError when a table lacks a column.
    """
    found = {}
    for name, columns in columns_read(model, learning=learning).items():
        if next_seq.get(name, 0) == 0:
            continue
        names = schemas[name].names
        wanted = {*columns, *((set(model.slices) & set(names)) if learning and name == model.examples.name else ())}
        for column in columns:
            if column not in names:
                raise NotFoundError(f"table {name!r} has no column {column!r}, which model {model.name!r} reads.")
        found[name] = Need(name, next_seq[name], tuple(column for column in names if column in wanted))
    return found


def things(rows: pl.DataFrame, table: Source | Table, parts: int) -> Places:
    """Return the partition, 0 to ``parts`` - 1, of the thing that each of ``rows`` is a version of.

    A row with a null in its key is a thing of its own.
    """
    return _hashed(_own_keys(rows, table).with_columns(rows.select(lone(table)).to_series()), _THINGS, parts)


def named_things(rows: pl.DataFrame, columns: tuple[str, ...], types: Sequence[pl.DataType], parts: int) -> Places:
    """Return the partition, as ``things`` has it, of the thing that each of ``rows`` names in ``columns``.

    They are compared as ``types``, those of the thing's key.
    """
    named = keys(rows, columns, list(types))
    return _hashed(named.with_columns(pl.lit(-1, dtype=pl.Int64).alias(LONE)), _THINGS, parts)


def groups(rows: pl.DataFrame, columns: tuple[str, ...], types: Sequence[pl.DataType], parts: int) -> Places:
    """Return the partition, 0 to ``parts`` - 1, of the group that each of ``rows`` names in ``columns``.

    They are compared as ``types``, those of the table.
    """
    return _hashed(keys(rows, columns, list(types)), _GROUPS, parts)


def _own_keys(rows: pl.DataFrame, table: Source | Table) -> pl.DataFrame:
    return keys(rows, table.key, [rows.schema[column] for column in table.key])


def _hashed(values: pl.DataFrame, seed: int, parts: int) -> Places:
    return (values.hash_rows(seed) % parts).cast(pl.Int64).to_numpy()


def deal(frame: pl.DataFrame, places: Places, parts: int) -> list[pa.Table]:
    """Return the rows of ``frame`` for each of ``parts`` partitions, in their order."""
    order = np.argsort(places, kind="stable")
    sorted_rows = frame[order].to_arrow()
    ends = np.cumsum(np.bincount(places, minlength=parts))
    return [sorted_rows.slice(int(start), int(end - start)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def deal_versions(rows: pl.DataFrame, table: Source | Table, places: Places, parts: int) -> list[pa.Table]:
    """Return ``rows`` (all versions of some things) by the partition of their group, each in order of sequence.

    A row is in the partition of every group that its thing has been in.
    """
    thing = _own_keys(rows, table).with_columns(
        rows.select(lone(table)).to_series(), pl.Series(".place", places), pl.Series(".row", np.arange(rows.height))
    )
    identity = [name for name in thing.columns if not name.startswith(".")]
    ever = thing.select(*identity, ".place").unique()
    moved = ever.filter(pl.struct(identity).is_duplicated())
    if not moved.height:
        return deal(rows, places, parts)
    both = thing.drop(".place").join(moved, on=identity, nulls_equal=True).select(".row", ".place")
    both = pl.concat([thing.select(".row", ".place"), both]).unique().sort(".row")
    return deal(rows[both[".row"]], both[".place"].to_numpy(), parts)


def frame_of(tables: Sequence[pa.Table]) -> pl.DataFrame:
    """Return Arrow tables of one schema as one frame."""
    return pl.DataFrame(pa.concat_tables(tables))


def schema_of(schema: pa.Schema) -> pl.Schema:
    """Return an Arrow schema as Polars sees it."""
    return pl.DataFrame(schema.empty_table()).schema
