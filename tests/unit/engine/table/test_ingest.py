from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.adapters.file_reader import FileReader
from tidemill.adapters.log_reader import LogReader
from tidemill.adapters.memory_lake import MemoryLake
from tidemill.adapters.memory_log import MemoryLog
from tidemill.adapters.row_reader import RowReader
from tidemill.base.clock import DAY, HOUR, parse_time, to_datetime
from tidemill.base.errors import FencedError, SourceError
from tidemill.engine.table.ingest import IDEMPOTENCY_PERIOD, Intake, Taken, pushes_table, quarantine_table
from tidemill.ports.lake import Commit, Fence
from tidemill.ports.reader import Reader
from tidemill.spec.check import between, holds, not_null, one_of
from tidemill.spec.source import Source, files, push, rows
from tidemill.spec.time import after, before

TICK = parse_time("2014-01-01T00:00Z")


class Free:
    epoch = 1

    def check(self) -> None:
        pass


def intake(source: Source, reader: Reader, lake: MemoryLake | None = None) -> tuple[Intake, MemoryLake]:
    lake = lake or MemoryLake()
    return Intake([source], {source.name: reader}, lake, Free()), lake


def load(
    source: Source, data: Sequence[dict[str, Any]], *, tick: int = TICK, history: bool = False
) -> tuple[pl.DataFrame, list[tuple[str, str]]]:
    """Load `data` at once; return the rows and the quarantine (reason, row)."""
    taken = list(intake(source, RowReader(lambda done: data[done:]))[0].take(source.name, tick=tick, history=history))
    kept = pl.concat([each.rows for each in taken])
    refused = pl.concat([each.quarantine for each in taken])
    return kept, refused.rows()


def known(frame: pl.DataFrame) -> list[int | None]:
    return frame["_known_at"].dt.epoch("us").to_list()


def flights(**more: Any) -> Source:
    return Source("flights", files("*.csv"), key="id", event_time="at", **more)


def at(text: str) -> int:
    return parse_time(text)


# Known-at ---------------------------------------------------------------------------------------------------------


def test_history_keeps_the_declared_known_at_and_live_raises_it_to_the_tick() -> None:
    source = flights(known_at="reported")
    data: list[dict[str, Any]] = [
        {"id": 1, "at": "2013-01-01T00:00Z", "reported": "2013-01-01T01:00Z"},
        {"id": 2, "at": "2013-01-01T00:00Z", "reported": "2015-01-01T00:00Z"},
        {"id": 3, "at": "2013-01-01T00:00Z", "reported": None},
    ]
    old, _ = load(source, data, history=True)
    assert known(old) == [at("2013-01-01T01:00Z"), at("2015-01-01"), None]
    assert old["_history"].all()
    new, _ = load(source, data)
    assert known(new) == [TICK, at("2015-01-01"), None]
    assert not new["_history"].any()
    assert new["_tick"].dt.epoch("us").to_list() == [TICK] * 3
    assert new["_seq"].to_list() == [0, 1, 2]


def test_undeclared_known_at_is_the_event_time_for_files_and_the_tick_otherwise() -> None:
    data: list[dict[str, Any]] = [{"id": 1, "at": "2013-01-01"}]
    assert known(load(flights(), data, history=True)[0]) == [at("2013-01-01")]
    pushed = Source("flights", rows(lambda _: []), key="id", event_time="at")
    assert known(load(pushed, data, history=True)[0]) == [TICK]
    static = Source("planes", files("*.csv"), key="id")
    assert known(load(static, [{"id": 1}], history=True)[0]) == [TICK]


def test_offsets_move_known_at_both_ways() -> None:
    data: list[dict[str, Any]] = [{"id": 1, "at": "2013-03-01"}]
    assert known(load(flights(known_at=before("at", "30d")), data, history=True)[0]) == [at("2013-03-01") - 30 * DAY]
    assert known(load(flights(known_at=after("at", "1h")), data, history=True)[0]) == [at("2013-03-01") + HOUR]


def test_later_versions_under_a_derived_known_at_need_their_own_in_history_and_take_the_tick_live() -> None:
    data: list[dict[str, Any]] = [{"id": 1, "at": "2013-01-01", "x": 1}, {"id": 1, "at": "2013-01-01", "x": 2}]
    kept, refused = load(flights(), data, history=True)
    assert kept["x"].to_list() == [1]
    assert [reason for reason, _ in refused] == [
        "a later version or tombstone in history needs its own known-at: declare corrected_at=, or a known_at column"
    ]
    live, _ = load(flights(known_at=after("at", "900d")), data)
    assert known(live) == [at("2013-01-01") + 900 * DAY, TICK]


def test_corrected_at_dates_later_versions_only() -> None:
    source = flights(corrected_at="corrected")
    data: list[dict[str, Any]] = [
        {"id": 1, "at": "2013-01-01", "corrected": "2013-09-09"},
        {"id": 1, "at": "2013-01-02", "corrected": "2013-01-05"},
        {"id": 1, "at": "2013-01-03", "corrected": None},
    ]
    kept, refused = load(source, data, history=True)
    assert known(kept) == [at("2013-01-01"), at("2013-01-05")]
    assert "'corrected' is null" in refused[0][0]
    assert known(load(source, data)[0]) == [TICK, TICK, TICK]


def test_the_first_version_is_the_first_accepted_row() -> None:
    source = flights(checks=[between("x", 0, 10)])
    data: list[dict[str, Any]] = [
        {"id": 1, "at": "2013-01-01", "x": 99},
        {"id": 1, "at": None, "x": 1},
        {"id": 1, "at": "2013-01-03", "x": 2},
        {"id": 1, "at": "2013-01-04", "x": 3},
    ]
    kept, refused = load(source, data, history=True)
    assert kept["x"].to_list() == [2]
    assert [reason.split(":")[0] for reason, _ in refused] == [
        "'x' is 99, outside 0 to 10",
        "'at' is null, and the known-at derives from it",
        "a later version or tombstone in history needs its own known-at",
    ]


def test_the_index_of_keys_spans_batches_and_restarts() -> None:
    data: list[dict[str, Any]] = [{"id": 1, "at": "2013-01-01"}, {"id": 1, "at": "2013-01-02"}]
    grown: list[dict[str, Any]] = data[:1]
    source = flights()
    first, lake = intake(source, RowReader(lambda done: grown[done:]))
    list(first.take("flights", tick=TICK, history=True))
    grown = data
    again, _ = intake(source, RowReader(lambda done: grown[done:]), lake)
    (taken,) = again.take("flights", tick=TICK + DAY)
    assert known(taken.rows) == [TICK + DAY]


def test_null_event_time_is_allowed_where_known_at_does_not_derive_from_it() -> None:
    kept, refused = load(flights(known_at="seen"), [{"id": 1, "at": None, "seen": "2013-01-01"}], history=True)
    assert kept["at"].to_list() == [None]
    assert refused == []


def test_tombstones_need_their_key_only() -> None:
    source = flights(known_at="seen", tombstone="gone", checks=[not_null("x")])
    data: list[dict[str, Any]] = [
        {"id": 1, "at": "2013-01-01", "seen": "2013-01-01", "x": 1, "gone": False},
        {"id": 1, "at": None, "seen": "2013-01-03", "x": None, "gone": True},
    ]
    kept, refused = load(source, data, history=True)
    assert kept["_tombstone"].to_list() == [False, True]
    assert refused == []
    kept, refused = load(flights(tombstone="gone"), [{"id": 1, "at": "2013-01-01", "gone": True}], history=True)
    assert kept.is_empty()
    assert "tombstone in history" in refused[0][0]


# Contract and checks ----------------------------------------------------------------------------------------------


def test_checks_give_the_first_failing_reason_and_pass_nulls() -> None:
    source = flights(
        known_at="at",
        checks=[
            not_null("carrier"),
            between("delay", -120, 2000),
            between("delay", None, 3000),
            one_of("carrier", "UA", "AA"),
            holds("delay is even", pl.col("delay") % 2 == 0),
        ],
    )
    base = {"at": "2013-01-01"}
    data: list[dict[str, Any]] = [
        {"id": 1, "carrier": "UA", "delay": 2, **base},
        {"id": 2, "carrier": None, "delay": 2, **base},
        {"id": 3, "carrier": "UA", "delay": 5000, **base},
        {"id": 4, "carrier": "ZZ", "delay": None, **base},
        {"id": 5, "carrier": "AA", "delay": 3, **base},
        {"id": None, "carrier": "AA", "delay": 4, **base},
        {"id": 7, "carrier": "AA", "delay": None, **base},
    ]
    kept, refused = load(source, data)
    assert kept["id"].to_list() == [1, 7]
    assert [reason for reason, _ in refused] == [
        "'carrier' is null",
        "'delay' is 5000, outside -120 to 2000",
        "'carrier' is ZZ, not one of UA, AA",
        "delay is even does not hold",
        "'id' is null, and it is part of the key",
    ]
    assert json.loads(refused[1][1]) == {"id": 3, "carrier": "UA", "delay": 5000, "at": "2013-01-01T00:00:00+00:00"}


def test_the_contract_holds_from_the_first_load_on() -> None:
    data: list[dict[str, Any]] = [{"id": 1, "at": "2013-01-01", "n": 1, "f": 1.5, "s": "a", "b": True}]
    source = flights(known_at="at")
    mill, lake = intake(source, RowReader(lambda done: data[done:]))
    list(mill.take("flights", tick=TICK))
    data += [
        {"id": "2", "at": "2013-01-01T02:00:00+02:00", "n": 12.0, "f": 3, "s": 4.0, "b": "TRUE"},
        {"id": 3, "at": "2013-01-01 05:00", "n": 12.5, "f": 1.0, "s": "a", "b": True},
        {"id": 4, "at": 1356998400, "n": 1, "f": 1.0, "s": "a", "b": True},
        {"id": 5, "at": "2013-02-30", "n": 1, "f": 1.0, "s": "a", "b": True},
        {"id": 6, "at": "2013-01-01", "n": True, "f": 1.0, "s": "a", "b": True},
        {"id": 7, "at": "2013-01-01", "n": 1, "f": float("nan"), "s": "a", "b": 1},
        {"id": 8, "at": "2013-01-01", "f": float("nan"), "s": None},
        {"id": 9, "at": "2013-01-01", "nn": 3},
    ]
    (taken,) = mill.take("flights", tick=TICK)
    assert taken.rows.select("id", "n", "f", "s", "b").rows() == [
        (2, 12, 3.0, "4", True),
        (8, None, None, None, None),
    ]
    assert taken.rows["at"].dt.epoch("us").to_list()[0] == at("2013-01-01")
    assert [reason for reason, _ in taken.quarantine.rows()] == [
        "'n': '12.5' is not a whole number",
        "'at': '1356998400' is not an ISO 8601 time",
        "'at': '2013-02-30' is not an ISO 8601 time",
        "'n': 'true' is not a whole number",
        "'b': '1' is not true or false",
        "'nn' is not a column of the contract. Did you mean 'n'?",
    ]
    assert lake.scan(quarantine_table("flights")).num_rows == 6


def test_a_declared_column_must_be_in_the_first_load() -> None:
    with pytest.raises(SourceError, match=r"'at' is not in the data.*Did you mean 'att'"):
        load(flights(), [{"id": 1, "att": "2013-01-01"}])
    with pytest.raises(SourceError, match="declared as a time but holds a whole number"):
        load(flights(), [{"id": 1, "at": 5}])
    with pytest.raises(SourceError, match="cannot be a column's name"):
        load(flights(), [{"id": 1, "at": "2013-01-01", "_seq": 4}])


def test_text_is_typed_by_every_value_of_the_first_load(tmp_path: Path) -> None:
    lines = ["id,at,zip,n,f,b,t,long,empty,ns"]
    lines += [
        f"{i},2013-01-01,01234,{i},{i},true,2013-01-0{i} 04:00,9999999999999999999,,{2**63 - i}" for i in range(1, 9)
    ]
    lines += [f"9,2013-01-01,12345,NA,1e3,False,NA,1,,-{2**63}"]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    mill, lake = intake(flights(), FileReader("*.csv", tmp_path))
    list(mill.take("flights", tick=TICK, history=True))
    frame = pl.DataFrame(lake.scan("flights"))
    assert {name: frame.schema[name] for name in ("zip", "n", "f", "b", "t", "long", "empty", "ns")} == {
        "zip": pl.String,
        "n": pl.Int64,
        "f": pl.Float64,
        "b": pl.Boolean,
        "t": pl.Datetime("us", "UTC"),
        "long": pl.String,
        "empty": pl.String,
        "ns": pl.Int64,
    }
    assert frame["n"].to_list() == [*range(1, 9), None]
    assert frame["ns"].to_list() == [*(2**63 - i for i in range(1, 9)), -(2**63)]


@settings(deadline=None, max_examples=100)
@given(
    st.datetimes(min_value=to_datetime(0).replace(tzinfo=None)),
    st.sampled_from(["", "Z", "+00:00", "+05:30", "-0800", "+01"]),
    st.sampled_from(["T", " "]),
    st.sampled_from(["seconds", "milliseconds", "microseconds"]),
)
def test_times_read_as_the_standard_library_reads_them(moment: Any, offset: str, between: str, digits: str) -> None:
    text = moment.isoformat(between, digits) + offset
    try:
        expected = parse_time(text)
    except OverflowError:
        return
    kept, _ = load(flights(known_at="at"), [{"id": 1, "at": text}], history=True)
    assert known(kept) == [expected]


# Commits ----------------------------------------------------------------------------------------------------------


def test_rows_and_cursor_commit_together_with_a_deterministic_entry(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,at\n1,2013-01-01\n2,2013-01-01\n,2013-01-01\n")
    entries = []
    for _ in range(2):
        mill, lake = intake(flights(), FileReader("*.csv", tmp_path))
        (taken,) = mill.take("flights", tick=TICK, history=True)
        entries.append(taken.commit.entry)
        assert lake.head("flights") == taken.commit
        assert list(mill.take("flights", tick=TICK + 1)) == []
    assert entries[0] == entries[1]
    assert json.loads(entries[0]) == {
        "table": "flights",
        "rows": 2,
        "quarantined": 1,
        "first_seq": 0,
        "next_seq": 2,
        "tick": TICK,
    }


def test_refused_rows_still_move_the_cursor(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("id,at\n1,2013-01-01\n")
    mill, lake = intake(flights(), FileReader("*.csv", tmp_path))
    list(mill.take("flights", tick=TICK, history=True))
    with file.open("a") as out:
        out.write(",2013-01-01\n1,2,3\n")
    (taken,) = mill.take("flights", tick=TICK)
    assert taken.rows.is_empty()
    assert taken.quarantine.height == 2
    assert list(mill.take("flights", tick=TICK)) == []
    assert lake.scan(quarantine_table("flights")).num_rows == 2


def test_a_faulty_file_stops_the_source_after_what_came_before_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,at\n1,2013-01-01\n")
    mill, lake = intake(flights(), FileReader("*.csv", tmp_path))
    list(mill.take("flights", tick=TICK, history=True))
    (tmp_path / "b.csv").write_text("id,at\n2,2013-01-01\n")
    (tmp_path / "c.csv").write_text("id,at,x\n3,2013-01-01,1\n")
    (tmp_path / "d.csv").write_text("id,at\n4,2013-01-01\n")
    got: list[Taken] = []
    for _ in range(2):
        with pytest.raises(SourceError, match=r"c\.csv are not the contract's: it adds x"):
            got.extend(mill.take("flights", tick=TICK))
    assert [each.rows["id"].to_list() for each in got] == [[2]]
    (tmp_path / "c.csv").write_text("id,at\n3,2013-01-01\n")
    got.extend(mill.take("flights", tick=TICK))
    assert pl.DataFrame(lake.scan("flights"))["id"].to_list() == [1, 2, 3, 4]


def test_files_of_the_first_load_must_agree(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,at\n1,2013-01-01\n")
    (tmp_path / "b.csv").write_text("id,time\n1,2013-01-01\n")
    mill, lake = intake(flights(), FileReader("*.csv", tmp_path))
    with pytest.raises(SourceError, match=r"columns of b\.csv are not those of a\.csv .*at, time"):
        list(mill.take("flights", tick=TICK, history=True))
    assert lake.tables() == ()


def test_a_large_load_streams_in_several_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.engine.table.ingest.COMMIT_ROWS", 100)
    frames = [pl.DataFrame({"id": range(i, i + 60)}).with_columns(at=pl.lit("2013-01-01")) for i in range(0, 600, 60)]

    def feed(taken: int) -> Iterable[Any]:
        return frames[taken // 60 :]

    source = flights(known_at="at")
    mill, lake = intake(source, RowReader(feed))
    taken = list(mill.take("flights", tick=TICK, history=True))
    assert [each.rows.height for each in taken] == [120] * 5
    assert len({each.commit.batch for each in taken}) == 5
    assert pl.DataFrame(lake.scan("flights"))["id"].to_list() == list(range(600))


class Failing(MemoryLake):
    """Fails, once, the n-th append from now."""

    left = -1

    def append(self, table: str, rows: pa.Table, commit: Commit, fence: Fence) -> Commit:
        self.left -= 1
        if self.left == 0:
            raise FencedError("killed")
        return super().append(table, rows, commit, fence)


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_crash_between_two_commits_neither_loses_nor_doubles(fails_at: int, fresh: bool) -> None:
    log, lake = MemoryLog(), Failing()
    source = Source("events", push(), key="id", checks=[between("id", 0, 100)])
    writer = log.writer()
    mill, _ = intake(source, LogReader(log), lake)
    if not fresh:
        writer.append(json.dumps({"rows": [{"id": 1}, {"id": 999}], "idempotency_key": "a"}).encode())
        list(mill.take("events", tick=TICK))
    count = 0 if fresh else 1
    writer.append(json.dumps({"rows": [{"id": 2}, {"id": 777}], "idempotency_key": "b"}).encode())
    lake.left = fails_at
    crashed = False
    try:
        list(mill.take("events", tick=TICK + 1))
    except FencedError:
        crashed = True
    assert crashed == (fails_at <= (5 if fresh else 3))
    lake.left = -1
    again, _ = intake(source, LogReader(log), lake)
    again.recover()
    assert again.recover() == ()
    list(again.take("events", tick=TICK + 2))
    assert lake.scan("events").num_rows == count + 1
    assert lake.scan(quarantine_table("events")).num_rows == count + 1
    assert lake.scan(pushes_table("events")).num_rows == count + 1


def test_a_retried_push_is_one_within_the_period() -> None:
    log, source = MemoryLog(), Source("events", push(), key="id")
    mill, lake = intake(source, LogReader(log))
    writer = log.writer()

    def send(id: int, key: str | None) -> None:
        writer.append(json.dumps({"rows": [{"id": id}], "idempotency_key": key}).encode())

    send(1, "a")
    send(2, "a")
    send(3, None)
    (taken,) = mill.take("events", tick=TICK)
    assert (taken.rows["id"].to_list(), taken.repeated) == ([1, 3], 1)
    mill, _ = intake(source, LogReader(log), lake)
    send(4, "a")
    send(5, "b")
    (taken,) = mill.take("events", tick=TICK + IDEMPOTENCY_PERIOD - 1)
    assert (taken.rows["id"].to_list(), taken.repeated) == ([5], 1)
    send(6, "a")
    writer.append(b"{nonsense")
    (taken,) = mill.take("events", tick=TICK + IDEMPOTENCY_PERIOD)
    assert taken.rows["id"].to_list() == [6]
    assert "not a push of rows" in taken.quarantine["reason"][0]


# However the input is cut up --------------------------------------------------------------------------------------

_row = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["1", "2", "3", "4", "", "x"]),
        "at": st.sampled_from(["2013-01-01", "2013-01-02T05:00Z", "", "soon"]),
        "fix": st.sampled_from(["", "2013-02-01"]),
        "n": st.sampled_from(["1", "7", "", "50", "1.5", "3,4", '"quoted\nline"', '"a"",b"']),
    }
)
_HEAD = "id,at,fix,n\n0,2013-01-01,2013-01-01,0\n"


def _outcome(lake: MemoryLake) -> tuple[list[Any], list[Any]]:
    kept = pl.DataFrame(lake.scan("flights")).drop("_tick").rows()
    table = quarantine_table("flights")
    refused = pl.DataFrame(lake.scan(table)).select("reason", "row").rows() if lake.head(table) else []
    return kept, sorted(refused)


@settings(deadline=None, max_examples=60)
@given(st.lists(_row, max_size=25), st.data())
def test_the_same_input_gives_the_same_rows_however_it_arrives(data: list[dict[str, str]], draw: st.DataObject) -> None:
    text = _HEAD + "".join(",".join(row.values()) + "\n" for row in data)
    whole, pieces = text.encode(), []
    rest = whole[len(_HEAD) :]
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(rest)), max_size=6)))
    for start, end in zip([0, *cuts], [*cuts, len(rest)], strict=True):
        pieces.append(rest[start:end])
    source = flights(corrected_at="fix", checks=[between("n", 0, 9)])

    def run(parts: Iterator[bytes], path: Path) -> tuple[list[Any], list[Any]]:
        reader = FileReader("*.csv", path)
        mill, lake = intake(source, reader)
        for tick, part in enumerate(parts):
            with (path / "a.csv").open("ab") as out:
                out.write(part)
            list(mill.take("flights", tick=TICK + tick, history=True))
        return _outcome(lake)

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        at_once = run(iter([_HEAD.encode(), rest]), Path(one))
        bit_by_bit = run(iter([_HEAD.encode(), *pieces]), Path(two))
    assert at_once == bit_by_bit
