"""Packed versions give what unpacked ones give, for every function and every type of value."""

from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.base.errors import WorkspaceError
from tidemill.engine.feature.feature import TableView, Versions, answer, prepare
from tidemill.engine.feature.layout import DIRECTORY, Directory, Shape, has_directory
from tidemill.engine.feature.packed import Fetch, Packed, PackedShelf
from tidemill.engine.feature.parts import Parts
from tidemill.engine.feature.shelf import pack
from tidemill.engine.table.plain import plain
from tidemill.engine.table.table import spans
from tidemill.ports.online import Value
from tidemill.spec.feature import Aggregate
from tidemill.testing.histories import ORIGIN, STEP, TIME, frame, histories

VALUES: dict[str, tuple[pl.DataType, st.SearchStrategy[Any]]] = {
    "f32": (pl.Float32(), st.sampled_from((0.1, -0.0, 3e38, float("nan")))),
    "i8": (pl.Int8(), st.integers(-128, 127)),
    "u64": (pl.UInt64(), st.sampled_from((0, 1, 2**63, 2**64 - 1))),
    "day": (pl.Date(), st.dates(dt.date(1900, 1, 1), dt.date(2100, 1, 1))),
    "clock": (pl.Time(), st.just(dt.time(1, 2, 3, 4))),
    "span": (pl.Duration("ms"), st.just(dt.timedelta(milliseconds=-1500))),
    "nanos": (pl.Datetime("ns"), st.just(dt.datetime.fromisoformat("2024-01-02T03:04:05.000006"))),
    "millis": (pl.Datetime("ms", "America/New_York"), st.just(dt.datetime(2024, 1, 2, tzinfo=dt.UTC))),
    "micros": (TIME, st.just(dt.datetime(1960, 1, 2, tzinfo=dt.UTC))),
    "text": (pl.String(), st.text(max_size=3)),
    "kind": (pl.Enum(["p", "q"]), st.sampled_from(("p", "q"))),
    "cat": (pl.Categorical(), st.sampled_from(("x", "ünï"))),
    "price": (pl.Decimal(12, 2), st.sampled_from((Decimal("1.20"), Decimal("-0.01")))),
    "number": (pl.Float64(), st.floats()),
    "flag": (pl.Boolean(), st.booleans()),
    "whole": (pl.Int64(), st.integers(-(2**63), 2**63 - 1)),
}
TABLE = tm.Source("things", tm.push(), key="id", event_time="at")
OVER = ("0s", "30m", "2h", "7d")
NUMBERS = ("f32", "i8", "u64", "price", "number", "flag", "whole")


def aggregates(column: str) -> dict[str, Aggregate]:
    of: dict[str, Aggregate] = {
        f"{function}_{column}": getattr(tm, function)(column, over=OVER) for function in ("first", "last", "n_unique")
    }
    if column in NUMBERS:
        of |= {
            f"{name}_{column}": getattr(tm, name)(column, over=OVER) for name in ("sum", "mean", "std", "min", "max")
        }
        of |= {f"q{q}_{column}".replace(".", ""): tm.quantile(column, q, over=OVER) for q in (0, 0.25, 0.9)}
    return of


@st.composite
def rows(draw: st.DrawFn, columns: Sequence[str]) -> pl.DataFrame:
    drawn = draw(histories(TABLE, {"id": pl.String(), "at": TIME, "by": pl.String()}, max_rows=25))
    base = frame(drawn, {"id": pl.String(), "at": TIME, "by": pl.String()})
    made = []
    for name in columns:
        dtype, values = VALUES[name]
        made.append(pl.Series(name, [draw(st.one_of(values, values, st.none())) for _ in drawn], dtype=dtype))
    return base.with_columns(made)


class Held:
    """A snapshot of one group as it was written."""

    def __init__(self) -> None:
        self.pairs: dict[tuple[str, bytes], bytes] = {}

    def get(self, space: str, key: bytes) -> bytes | None:
        return self.pairs.get((space, key))

    def get_many(self, space: str, keys: Sequence[bytes]) -> list[Value | None]:
        return [self.get(space, key) for key in keys]

    def items(self, space: str, *, after: bytes | None = None) -> list[tuple[bytes, bytes]]:
        return []

    def mark(self) -> bytes | None:
        return None


def write(view: TableView, versions: Versions) -> Held:
    held = Held()
    parts = Parts(held, view, Shape.of(view, [], versions.values), [b"g"] * len(versions), 0)
    part = parts.of([b"g"] * len(versions), versions)
    for change in parts.write(versions, part):
        assert change.value is not None
        held.pairs[change.space, change.key] = change.value
    return held


def views(columns: Sequence[str]) -> list[TableView]:
    features = {"n": tm.count(over=OVER), "since": tm.since_last(over=OVER)}
    for column in columns:
        features |= aggregates(column)
    return [
        tm.Aggregation("v", TABLE, by="by", features=features),
        tm.Latest("v", TABLE, by="by", columns=columns),
        tm.Latest("v", TABLE, by="by", columns=columns, within="1h"),
        tm.Latest("v", TABLE, by="by", columns=columns, ahead=True),
    ]


def fetching(held: Sequence[Held], packed: Sequence[Packed], t: int) -> Fetch:
    """Return what fetches the blocks of the group from what was written of each view."""

    def fetch(place: int, _: int) -> tuple[bytes, tuple[bytes, ...]]:
        space = "block:" + "vw"[place]
        directory = held[place].pairs[space, b"g" + DIRECTORY]
        needed = packed[place].needs(t, directory)
        return directory, tuple(held[place].pairs[space, b"g" + number.to_bytes(4, "big")] for number in needed)

    return fetch


@given(data=st.data(), columns=st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=3, unique=True))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_packed_and_unpacked_agree(data: st.DataObject, columns: list[str]) -> None:
    pair: list[TableView] = [
        data.draw(st.sampled_from(views(columns))),
        tm.Aggregation("w", TABLE, by="by", features={"n": tm.count(over=OVER), **aggregates(columns[0])}),
    ]
    spanned = spans(data.draw(rows(columns)), TABLE)
    versions = [prepare(view, spanned)[0] for view in pair]
    block = data.draw(st.sampled_from((1, 3, 256)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tidemill.engine.feature.parts.BLOCK", block)
        held = [write(view, each) for view, each in zip(pair, versions, strict=True)]
    heads = [each.get(f"view:{view.name}", b"g") for view, each in zip(pair, held, strict=True)]
    record = pack({number: head for number, head in zip((7, 2), heads, strict=True) if head})
    shapes = [Shape.of(view, [], each.values) for view, each in zip(pair, versions, strict=True)]
    packed = [Packed(view, shape) for view, shape in zip(pair, shapes, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEMILL_KERNELS", "plain")
        plainly = [Packed(view, shape) for view, shape in zip(pair, shapes, strict=True)]
    for step in data.draw(st.lists(st.integers(-2, 14), min_size=1, max_size=3)):
        t = ORIGIN + step * STEP + data.draw(st.sampled_from((0, 1)))
        one = np.zeros(1, dtype=np.int64)
        answers = [
            answer(view, each, np.zeros(len(each), dtype=np.int64), 1, one, one + t)
            for view, each in zip(pair, versions, strict=True)
        ]
        want = pl.concat(answers, how="horizontal")
        for both in (packed, plainly):
            fetch = fetching(held, both, t)
            shelf = PackedShelf(list(zip(both, (7, 2), strict=True)))
            got = shelf.frame(t, [record, None, memoryview(record)], fetch)
            assert got.schema == want.schema
            assert got[[0, 2]].hash_rows().to_list() == want[[0, 0]].hash_rows().to_list()
            assert got[[0, 2]].equals(want[[0, 0]], null_equal=True)
            found = shelf.row(t, record)
            for place, head in enumerate(heads):
                group: Any = head
                if head is not None and has_directory(head):
                    assert found[place] == head
                    group = head, *fetch(place, 0)
                row, wanted = both[place].row(t, group), plain(answers[place]).row(0)
                assert list(map(repr, row)) == list(map(repr, wanted))
                assert found[place] == head or list(map(repr, found[place])) == list(map(repr, wanted))


@given(data=st.data())
def test_no_record_is_read_otherwise_by_the_kernel(data: st.DataObject) -> None:
    """A number that comes twice, an empty head, bytes that are no record."""
    view = tm.Latest("v", TABLE, by="by", columns=["number"])
    shape = Shape.of(view, [], pl.DataFrame(schema={"v0": pl.Float64()}))
    head = struct.pack("<IIqqqqd?", 1, 0, 0, 0, 0, 2**62, 1.5, True)
    fields = data.draw(st.lists(st.tuples(st.integers(0, 3), st.sampled_from((b"", head))), max_size=4))
    record = struct.pack("<H", len(fields))
    record += b"".join([struct.pack("<HI", number, len(each)) for number, each in fields])
    record += b"".join([each for _, each in fields])
    record = data.draw(st.sampled_from((record, record[:-1], record + b"x")) | st.binary(max_size=12))
    found: list[Any] = []
    for kernels in ("", "plain"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TIDEMILL_KERNELS", kernels)
            shelf = PackedShelf([(Packed(view, shape), 1)])
        try:
            found.append((list(shelf.row(1, record)), shelf.frame(1, [record], lambda *_: (b"", ())).rows()))
        except WorkspaceError:
            found.append(None)
    assert found[0] == found[1]


def test_without_a_kernel_or_for_a_function_it_does_not_know_versions_are_unpacked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    view = tm.Aggregation("v", TABLE, by="by", features={"n": tm.count(over="1h")})
    shape = Shape.decode(view, b"")

    class Older:
        def plan(self, *_: Any) -> None:
            raise ValueError("there is no function count")

    monkeypatch.setattr("tidemill.kernels.compiled.load", lambda name: Older())
    packed = Packed(view, shape)
    assert packed.plan is None
    assert packed.row(1, None) == (0,)
    assert packed.summary(b"") == b""


@pytest.mark.skipif(Packed(views(["text"])[1], Shape.decode(views(["text"])[1], b"")).plan is None, reason="not built")
def test_damage_is_told() -> None:
    view = tm.Latest("v", TABLE, by="by", columns=["text"])
    shape = Shape.of(view, [], pl.DataFrame(schema={"v0": pl.String()}))
    for damaged in (b"\1\0", b"\377" * 40, (None, b"", ()), (None, Directory(1, (0, 0, 0), []).encode(), (b"x",))):
        with pytest.raises(WorkspaceError, match="view 'v' is damaged"):
            Packed(view, shape).row(1, damaged)
        head, *rest = damaged if isinstance(damaged, tuple) else (damaged, b"", ())
        head = head or struct.pack("<II", 0, 1)
        with pytest.raises(WorkspaceError, match="record of the online state is damaged"):
            PackedShelf([(Packed(view, shape), 0)]).frame(1, [pack({0: head})], lambda *_, rest=rest: tuple(rest))
    with pytest.raises(WorkspaceError, match="view 'v' is damaged"):
        Packed(view, shape).needs(1, b"\1")
