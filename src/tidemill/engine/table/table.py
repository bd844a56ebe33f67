"""What of a table is visible when (time rules 1, 2 and 4).

A frame of a table holds all its versions: user columns and the system columns of ``base/schema.py``.
"""

from __future__ import annotations

import polars as pl

from tidemill.base.clock import FOREVER
from tidemill.base.schema import KNOWN_AT, SEQ, TOMBSTONE
from tidemill.kernels.keys import repeated
from tidemill.spec.source import Files, Source, Table

#: A version is the visible one of its key for exactly the t with FROM < t <= TO: int64 microseconds.
FROM = "_from"
TO = "_to"

#: With the key, what the versions of one thing have in common (see ``lone``).
LONE = "_lone"

#: Earlier than every time: where the validity of a row that is always visible begins.
ALWAYS = -(2**63)

#: The type of times in frames.
TIME = pl.Datetime("us", "UTC")


def timeless(table: Source | Table) -> bool:
    """Tell whether ``table`` has neither an event time nor a known-at, so that its newest versions always show.

    Undeclared, the known-at of files is their event time, which such a table lacks; of pushed rows and iterables it is
    the time of ingest. A derived table is timeless when all its inputs are.
    """
    if table.event_time is not None or table.known_at is not None or table.corrected_at is not None:
        return False
    if isinstance(table, Table):
        return all(timeless(source) for source in table.sources)
    return isinstance(table.reader, Files)


def visible(rows: pl.DataFrame, table: Source | Table, t: int) -> pl.DataFrame:
    """Return the table that a question asked at ``t`` (microseconds) sees, in order of sequence.

    The last version of each key with known-at before ``t``, less tombstones. A key with a null in it has nothing in
    common with any other row. A timeless table shows its last versions whatever ``t`` is.
    """
    known = rows if timeless(table) else rows.filter(pl.col(KNOWN_AT) < pl.lit(t, dtype=TIME))
    versions = known.with_columns(lone(table)).sort(version_order(table))
    last = versions.unique([*table.key, LONE], keep="last", maintain_order=True)
    return last.filter(~pl.col(TOMBSTONE)).drop(LONE).sort(SEQ)


def spans(rows: pl.DataFrame, table: Source | Table) -> pl.DataFrame:
    """Return the versions that are ever visible, with the int64 columns ``_from`` and ``_to`` of when they are.

    A version is the visible one of its key for exactly the t with ``_from < t <= _to``; ``_to`` is FOREVER when nothing
    replaces it. Left out are tombstones, versions replaced at the very time they became known, and versions with a null
    known-at. The order of ``rows`` is kept.
    """
    always = timeless(table)
    if not always and rows[KNOWN_AT].null_count():
        rows = rows.filter(pl.col(KNOWN_AT).is_not_null())
    begin = pl.lit(ALWAYS, dtype=pl.Int64) if always else pl.col(KNOWN_AT).cast(TIME).to_physical()
    spanned = rows.with_columns(begin.alias(FROM), _ends(rows, table, always=always).alias(TO))
    seen = ~spanned[TOMBSTONE] & (spanned[FROM] < spanned[TO])
    return spanned if seen.all() else spanned.filter(seen)


def _ends(rows: pl.DataFrame, table: Source | Table, *, always: bool) -> pl.Series:
    """Return until when each version is valid. Most keys have one version: only the others are sorted and compared."""
    forever = pl.Series(TO, [FOREVER], dtype=pl.Int64).new_from_index(0, rows.height)
    hashes = rows.select(table.key).hash_rows()
    places = pl.Series("_place", repeated(hashes.to_numpy()))
    hashes = hashes.gather(places)
    places = places.filter(hashes.is_duplicated())
    if not len(places):
        return forever
    needed = rows.select(*table.key, KNOWN_AT, SEQ)[places]
    versions = needed.with_columns(lone(table), places).sort(version_order(table))
    identity = (*table.key, LONE)
    if always:
        newest = pl.col(SEQ).shift(-1).over(*identity).is_null()
        end = pl.when(newest).then(FOREVER).otherwise(ALWAYS).cast(pl.Int64)
    else:
        end = pl.col(KNOWN_AT).cast(TIME).to_physical().shift(-1).over(*identity).fill_null(FOREVER)
    ended = versions.select("_place", end.alias(TO))
    return forever.scatter(ended["_place"], ended[TO])


def version_order(table: Source | Table) -> list[str]:
    """Return the columns by which versions of a key are ordered."""
    return [SEQ] if timeless(table) else [KNOWN_AT, SEQ]


def lone(table: Source | Table) -> pl.Expr:
    """Return the column ``LONE``: a row's own number where its key has a null, so that it is a version of nothing."""
    null = pl.any_horizontal(pl.col(name).is_null() for name in table.key)
    return pl.when(null).then(pl.col(SEQ)).otherwise(-1).alias(LONE)
