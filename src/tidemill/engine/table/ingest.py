"""Ingest: what readers bring becomes rows of the lake, exactly once.

A batch commits to up to three tables, in this order: ``<source>__quarantine`` (rows refused, with reasons),
``<source>__pushes`` (idempotency keys seen), and the source's own table with the reader's cursor. All three carry one
batch id, made of the source, the cursor before, and the tick. A crash in between leaves companions of a batch whose
rows never came: ``Intake.recover`` finds them by that id and takes them back, so that the retry does not double them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl
import pyarrow as pa

from tidemill.base.clock import DAY, to_datetime
from tidemill.base.errors import SourceError
from tidemill.base.hashing import canonical, fingerprint
from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ, SYSTEM_COLUMNS, TICK, TOMBSTONE
from tidemill.engine.table.contract import Contract, Inference, contract_of
from tidemill.engine.table.quality import Accepted, Key, accept, derived_known_at
from tidemill.engine.table.table import TIME
from tidemill.ports.lake import Commit, Fence, Lake
from tidemill.ports.reader import Batch, Reader
from tidemill.spec.source import Source

#: A push whose idempotency key came less than this many microseconds before it is the same push.
IDEMPOTENCY_PERIOD = 7 * DAY
#: A commit is made when this many rows are waiting, so that a large load streams.
COMMIT_ROWS = 250_000

_KEY = "idempotency_key"


def quarantine_table(source: str) -> str:
    """Return the name of the table of rows that ``source`` refused: ``reason``, ``row`` (JSON), system columns."""
    return f"{source}__quarantine"


def pushes_table(source: str) -> str:
    """Return the name of the table of idempotency keys that ``source`` has taken."""
    return f"{source}__pushes"


def batch_id(source: str, cursor: str | None, tick: int) -> str:
    """Return the id shared by the commits of the batch that starts at ``cursor``."""
    return fingerprint(source, cursor, tick)


def numbered(rows: pl.DataFrame, first: int) -> pl.DataFrame:
    """Return ``rows`` with sequence numbers from ``first`` on, system columns in front."""
    rows = rows.with_columns(pl.int_range(first, first + rows.height, dtype=pl.Int64, eager=True).alias(SEQ))
    return rows.select(*SYSTEM_COLUMNS, *(name for name in rows.columns if name not in SYSTEM_COLUMNS))


def to_arrow(rows: pl.DataFrame) -> pa.Table:
    """Return ``rows`` in the Arrow types that the lake keeps."""
    return rows.to_arrow(compat_level=pl.CompatLevel.oldest())


@dataclass(frozen=True, slots=True)
class Taken:
    """What one commit brought.

    ``rows``: with all system columns, in order of ``_seq``. ``quarantine``: columns ``reason`` and ``row``.
    ``repeated``: pushes left out because their idempotency key had come before. ``commit.entry`` is the body of the
    journal entry; the entries of companion tables are empty, they are announced by this one.
    """

    table: str
    rows: pl.DataFrame
    quarantine: pl.DataFrame
    repeated: int
    commit: Commit


class Intake:
    """Polls the readers of the declared sources and commits what they bring. For the one holder of the fence."""

    def __init__(self, sources: Sequence[Source], readers: Mapping[str, Reader], lake: Lake, fence: Fence) -> None:
        self._sources = {source.name: source for source in sources}
        self._readers = readers
        self._lake = lake
        self._fence = fence
        self._keys: dict[str, set[Key]] = {}  # per source with derived known-at: keys that have a version
        self._pushed: dict[str, dict[str, int]] = {}  # per source: idempotency key to the tick it came at

    def recover(self) -> tuple[str, ...]:
        """Take back companion commits whose rows were never committed; return the tables changed.

        Call it once, at the start, before anything is taken.
        """
        mended = []
        for name in sorted(self._sources):
            head = self._lake.head(name)
            for companion in (quarantine_table(name), pushes_table(name)):
                left = self._lake.head(companion)
                if left and left.batch == batch_id(name, head.cursor if head else None, left.tick):
                    # Versions count by one under the fence, and the table was made by a commit of its own (_append).
                    self._lake.restore(companion, left.version - 1, self._fence)
                    mended.append(companion)
        return tuple(mended)

    def take(self, name: str, *, tick: int, history: bool = False) -> Iterator[Taken]:
        """Take what is new in source ``name``, yielding each commit; the work is done as the result is consumed.

        ``tick`` in microseconds; ``history``: rows keep their declared known-at (the first load, a back-fill). What the
        reader could not bring as a row is quarantined; zero rows still move the cursor. Raises SourceError when a whole
        input is at fault, after what came before it was committed and yielded, and FencedError.
        """
        source, head = self._sources[name], self._lake.head(name)
        cursor = head.cursor if head else None
        contract: Contract | None = contract_of(self._lake.schema(name)) if head else self._infer(source)
        if contract is None:
            return
        try:
            fault = yield from self._stream(source, contract, cursor, tick=tick, history=history)
        except BaseException:
            # What memory holds of a batch that did not reach the lake is forgotten, and read anew when next needed.
            self._keys.pop(name, None)
            self._pushed.pop(name, None)
            raise
        if fault is not None:
            raise fault

    def _stream(
        self, source: Source, contract: Contract, cursor: str | None, *, tick: int, history: bool
    ) -> Generator[Taken, None, SourceError | None]:
        """Commit what the reader brings after ``cursor``, and return the fault that ended it, or None."""
        batches = self._readers[source.name].poll(cursor)
        waiting: list[Accepted] = []
        pushed: list[str] = []
        repeated, after = 0, cursor
        fault: SourceError | None = None
        while True:
            try:
                batch = next(batches, None)
                if batch is not None:
                    batch, fresh, again = self._once(source.name, batch, tick)
                    accepted = accept(source, batch, contract, tick=tick, history=history, seen=self._seen(source))
            except SourceError as error:
                batch, fault = None, error
            if batch is not None:
                waiting.append(accepted)
                pushed += fresh
                repeated += again
                after = batch.cursor
                self._seen(source).update(accepted.keys)
            full = sum(each.rows.height for each in waiting) >= COMMIT_ROWS
            if full or (batch is None and after != cursor):
                id = batch_id(source.name, cursor, tick)
                assert after is not None  # a batch was read, and it brought a cursor
                yield self._commit(source.name, waiting, pushed, repeated, id, after, tick=tick, history=history)
                waiting, pushed, repeated, cursor = [], [], 0, after
            if batch is None:
                return fault

    def _infer(self, source: Source) -> Contract | None:
        """Return the contract that the first load of ``source`` shows, read whole; None when there is no row yet."""
        inference, rows, broken = Inference(source), 0, ""
        for batch in self._readers[source.name].poll(None):
            inference.observe(batch)
            rows += batch.rows.num_rows
            broken = broken or next((reason for _, reason in batch.broken), "")
        if not rows and broken:
            raise SourceError(
                f"source {source.name!r}: its first load has no readable row ({broken}), so that its columns are "
                "unknown. Mend the input."
            )
        return inference.contract() if rows else None

    def _seen(self, source: Source) -> set[Key]:
        """Return the keys that have a version, where that matters; built from the lake once, then extended."""
        if derived_known_at(source) is None:
            return set()
        if source.name not in self._keys:
            keys: set[Key] = set()
            if self._lake.head(source.name):
                frame = pl.DataFrame(self._lake.scan(source.name, columns=source.key))
                keys.update(frame.select(source.key).iter_rows())
            self._keys[source.name] = keys
        return self._keys[source.name]

    def _once(self, name: str, batch: Batch, tick: int) -> tuple[Batch, list[str], int]:
        """Return ``batch`` without repeated pushes, the idempotency keys that are new, and the number left out."""
        if not any(key for key, _ in batch.pushes):
            return batch, [], 0
        if name not in self._pushed:
            table = pushes_table(name)
            self._pushed[name] = {}
            if self._lake.head(table):
                frame = pl.DataFrame(self._lake.scan(table, columns=[_KEY, TICK]))
                self._pushed[name].update(frame.select(_KEY, pl.col(TICK).dt.epoch("us")).iter_rows())
        pushed = self._pushed[name]
        for old in [key for key, came in pushed.items() if came <= tick - IDEMPOTENCY_PERIOD]:
            del pushed[old]
        fresh: list[str] = []
        repeated, start, parts = 0, 0, []
        for key, count in batch.pushes:
            if key is not None and key in pushed:
                repeated += 1
            else:
                parts.append(batch.rows.slice(start, count))
                if key is not None:
                    pushed[key] = tick
                    fresh.append(key)
            start += count
        rows = pa.concat_tables(parts) if parts else batch.rows.slice(0, 0)
        return replace(batch, rows=rows), fresh, repeated

    def _commit(
        self,
        name: str,
        waiting: Sequence[Accepted],
        pushed: Sequence[str],
        repeated: int,
        batch: str,
        cursor: str,
        *,
        tick: int,
        history: bool,
    ) -> Taken:
        quarantine = pl.concat([each.quarantine for each in waiting])
        self._append(quarantine_table(name), quarantine, batch, tick, history=history)
        self._append(pushes_table(name), pl.DataFrame({_KEY: pushed}, {_KEY: pl.String}), batch, tick, history=history)
        head = self._lake.head(name)
        first = head.next_seq if head else 0
        rows = numbered(pl.concat([each.rows for each in waiting]), first)
        following = first + rows.height
        body = {
            "table": name,
            "rows": rows.height,
            "quarantined": quarantine.height,
            "first_seq": first,
            "next_seq": following,
            "tick": tick,
        }
        commit = Commit(name, 0, tick, batch, rows.height, following, cursor, canonical(body).decode())
        commit = self._lake.append(name, to_arrow(rows), commit, self._fence)
        return Taken(name, rows, quarantine, repeated, commit)

    def _append(self, table: str, rows: pl.DataFrame, batch: str, tick: int, *, history: bool) -> None:
        """Append ``rows`` to a companion table; no-op when there are none."""
        if rows.is_empty():
            return
        now = pl.lit(to_datetime(tick), dtype=TIME)
        stamped = rows.with_columns(
            now.alias(KNOWN_AT), pl.lit(value=False).alias(TOMBSTONE), now.alias(TICK), pl.lit(history).alias(HISTORY)
        )
        head = self._lake.head(table)
        if head is None:  # an empty commit makes the table, so that there is always a version to go back to
            made = Commit(table, 0, tick, "", 0, 0, None, "")
            head = self._lake.append(table, to_arrow(numbered(stamped.clear(), 0)), made, self._fence)
        stamped = numbered(stamped, head.next_seq)
        commit = Commit(table, 0, tick, batch, rows.height, head.next_seq + rows.height, None, "")
        self._lake.append(table, to_arrow(stamped), commit, self._fence)
