from __future__ import annotations

import datetime as dt
import json
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.base.clock import format_time, from_datetime, parse_time
from tidemill.base.errors import RequestError, TidemillError
from tidemill.engine.predict.request import FEW, MAX_ROWS, RequestRows, pushed_rows, read_json

TIME = pl.Datetime("us", "UTC")
SCHEMA: dict[str, pl.DataType] = {
    "id": pl.String(),
    "distance": pl.Float64(),
    "seats": pl.Int64(),
    "small": pl.UInt8(),
    "late": pl.Boolean(),
    "scheduled": TIME,
    "day": pl.Date(),
}
ROWS = RequestRows(SCHEMA, ("id",))
GOOD: dict[str, Any] = {
    "id": "a",
    "distance": 1.5,
    "seats": 3,
    "small": 255,
    "late": True,
    "scheduled": "2013-10-01T06:00Z",
    "day": "2013-10-01",
}


def read(**changed: Any) -> pl.DataFrame:
    return ROWS.read(json.dumps({**GOOD, **changed}).encode())


def refused(body: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        ROWS.read(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


def test_a_single_row_has_the_declared_columns_and_types() -> None:
    frame = read()
    assert frame.schema == pl.Schema(SCHEMA)
    moment = dt.datetime(2013, 10, 1, 6, tzinfo=dt.UTC)
    assert frame.row(0) == ("a", 1.5, 3, 255, True, moment, dt.date(2013, 10, 1))


def test_rows_keep_their_order_and_columns_may_come_in_any() -> None:
    second = dict(reversed({**GOOD, "id": "b", "distance": None, "seats": None, "late": None}.items()))
    frame = ROWS.read(json.dumps({"rows": [GOOD, second]}).encode())
    assert frame["id"].to_list() == ["a", "b"]
    assert frame["distance"].to_list() == [1.5, None]
    assert frame.schema == pl.Schema(SCHEMA)


@pytest.mark.parametrize(
    ("column", "value", "stored"),
    [
        ("distance", 7, 7.0),
        ("distance", 2**53, float(2**53)),
        ("seats", 12.0, 12),
        ("seats", -(2**63), -(2**63)),
        ("scheduled", 0, dt.datetime(1970, 1, 1, tzinfo=dt.UTC)),
        ("scheduled", "2013-10-01T06:00:00.25+02:00", dt.datetime(2013, 10, 1, 4, 0, 0, 250_000, tzinfo=dt.UTC)),
        ("scheduled", None, None),
    ],
)
def test_what_a_column_takes(column: str, value: Any, stored: Any) -> None:
    assert read(**{column: value})[column].to_list() == [stored]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("distance", True, "Expected a number, got a truth value."),
        ("distance", "1", "Expected a number, got text."),
        ("distance", 2**53 + 1, "beyond 2^53"),
        ("distance", [1.0], "Expected a number, got a list."),
        ("seats", 1.5, "Expected a whole number, got a number."),
        ("seats", False, "Expected a whole number, got a truth value."),
        ("seats", 2**63, "outside -9223372036854775808 to 9223372036854775807"),
        ("small", 256, "outside 0 to 255"),
        ("small", -1, "outside 0 to 255"),
        ("late", 1, "Expected true or false, got a whole number."),
        ("id", 5, "Expected text, got a whole number."),
        ("id", None, "A key cannot be null."),
        ("id", {"a": 1}, "Expected text, got an object."),
        ("scheduled", "yesterday", "is not a time"),
        ("scheduled", 1.5, "Expected a time"),
        ("scheduled", True, "Expected a time"),
        ("scheduled", 10**18, "outside 0001-01-01"),
        ("scheduled", "9999-12-31T23:59:59-10:00", "outside 0001-01-01"),
        ("day", 20131001, "Expected a date"),
        ("day", "1 Oct", "is not a date"),
    ],
)
def test_what_it_refuses_names_the_column_and_the_row(column: str, value: Any, reason: str) -> None:
    alone = refused({**GOOD, column: value})
    assert (alone.field, reason in str(alone)) == (column, True)
    second = refused({"rows": [GOOD, {**GOOD, column: value}]})
    assert (second.field, reason in str(second)) == (f"rows[1].{column}", True)


def test_a_misspelt_column_gets_the_nearest_name() -> None:
    row = {("distnace" if name == "distance" else name): value for name, value in GOOD.items()}
    error = refused({"rows": [GOOD, row]})
    assert error.field == "rows[1].distnace"
    assert "Did you mean 'distance'?" in str(error)


def test_a_missing_column_is_not_null_by_silence() -> None:
    error = refused({name: value for name, value in GOOD.items() if name != "seats"})
    assert (error.field, str(error)) == ("seats", "Missing column. Send null when it is not known.")
    assert str(refused({name: value for name, value in GOOD.items() if name != "id"})) == "Missing column."


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", None),
        (b"{", None),
        (b"\xff", None),
        (b'{"id": NaN}', None),
        (b'{"id": 1e999}', None),
        (b"[" * 1_000_000, None),
        (b'{"rows": ' + b"[" * 1_000_000, None),
        (b"5", None),
        (b"[]", None),
        (b'{"rows": []}', "rows"),
        (b'{"rows": {}}', "rows"),
        (b'{"rows": [5]}', "rows[0]"),
        (b'{"rows": [{}], "more": 1}', "more"),
        (json.dumps({"rows": [{}] * (MAX_ROWS + 1)}).encode(), "rows"),
    ],
)
def test_bodies_that_are_no_rows(body: bytes, field: str | None) -> None:
    assert refused(body).field == field


def test_a_column_may_be_called_rows() -> None:
    reader = RequestRows({"rows": pl.String()}, ("rows",))
    assert reader.read(b'{"rows": "x"}')["rows"].to_list() == ["x"]
    assert reader.read(b'{"rows": [{"rows": "x"}]}')["rows"].to_list() == ["x"]


def test_a_type_that_json_rows_cannot_carry_is_refused_at_once() -> None:
    with pytest.raises(TidemillError, match="'tags' is a List"):
        RequestRows({"tags": pl.List(pl.String)}, ())


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"])),
            st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53),
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.none() | st.booleans(),
            st.none() | st.datetimes(timezones=st.just(dt.UTC)),
        ),
        min_size=1,
        max_size=20,
    )
)
@settings(deadline=None)
def test_every_value_comes_through_unchanged(rows: list[tuple[Any, ...]]) -> None:
    names = ("id", "distance", "seats", "late", "scheduled")
    reader = RequestRows({name: SCHEMA[name] for name in names}, ("id",))
    spelt = [
        {**dict(zip(names, row, strict=True)), "scheduled": row[4] and format_time(from_datetime(row[4]))}
        for row in rows
    ]
    assert reader.read(json.dumps({"rows": spelt}).encode()).rows() == rows


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["rows", *SCHEMA]) | st.text(), inner),
    max_leaves=20,
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
@settings(deadline=None, max_examples=300)
def test_any_body_is_read_or_refused(body: bytes) -> None:
    try:
        frame = ROWS.read(body)
    except RequestError:
        return
    assert frame.schema == pl.Schema(SCHEMA)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({}, "rows[0]"),
        ({"": 1}, "rows[0]."),
        ({"a.b": 1}, "rows[0].a.b"),
        ({"_known_at": 1}, "rows[0]._known_at"),
        ({"n": 2**63}, "rows[0].n"),
        ({"n": {"deep": [2**64]}}, "rows[0].n"),
        ({"n": json.loads("[" * 50 + "]" * 50)}, "rows[0].n"),
    ],
)
def test_pushed_rows_that_no_contract_could_take(row: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        pushed_rows([row])
    assert caught.value.field == field


def test_pushed_rows_may_hold_lists_and_objects() -> None:
    rows = [{"id": "a", "tags": ["x", {"y": 1}], "when": None}]
    assert pushed_rows(read_json(json.dumps(rows).encode())) == rows


def test_the_bounds_of_times_are_those_of_iso_8601() -> None:
    assert read(scheduled=parse_time("0001-01-01"))["scheduled"].item().year == 1
    assert read(scheduled=parse_time("9999-12-31T23:59:59.999999"))["scheduled"].item().year == 9999


PLAIN: dict[str, pl.DataType] = {**SCHEMA, "wide": pl.UInt64(), "single": pl.Int32()}
PLAIN_ROWS = RequestRows(PLAIN, ("id", "seats"))

SPELLED = st.one_of(
    st.sampled_from(
        ["null", "true", "false", "0", "-0", "-0.0", "1", "1.0", "1e3", "255", "256", "-1", "2147483648", "0.1",
         "9007199254740992", "9007199254740993", "9223372036854775807", "9223372036854775808", "18446744073709551615",
         "18446744073709551616", "1e308", "1e309", "5e-324", '""', '"a"', '"\\u0000"', '"\\ud800"', '"12"', "[]", "{}",
         '"2013-10-01"', '"2013-10-01T06:00Z"', '"2013-02-30"', "NaN", "1380585600000000", "01", ""]
    ),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(2**65), 2**65).map(str),
    st.text(max_size=5).map(json.dumps),
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*PLAIN, "other"]), SPELLED, max_size=5),
    st.sampled_from([None, *PLAIN]),
    st.permutations([*PLAIN]),
    st.sampled_from(["%s", '{"rows":[%s]}', '{"rows": [%s, %s]}', '{"rows":[%s],"more":1}', "[%s]", '{"rows":%s}']),
)
def test_the_short_way_reads_rows_as_the_long_way_or_leaves_them_to_it(
    changed: dict[str, str], missing: str | None, order: list[str], shape: str
) -> None:
    good = {name: json.dumps(value) for name, value in {**GOOD, "wide": 7, "single": -5}.items()}
    spelled = {name: {**good, **changed}[name] for name in [*order, *(changed.keys() - PLAIN.keys())]}
    if missing:
        spelled.pop(missing)
    texts = ["{" + ",".join(f'"{name}":{value}' for name, value in each.items()) + "}" for each in (spelled, good)]
    body = (shape % tuple(texts[: shape.count("%s")])).encode()
    found = PLAIN_ROWS.few(body)
    try:
        rows, where = PLAIN_ROWS.objects(body)
        expected = [PLAIN_ROWS.row(row, where.format(place)) for place, row in enumerate(rows)]
    except RequestError:
        assert found is None
        return
    assert where == ("" if shape == "%s" else "rows[{}].")
    if found is not None:
        assert repr(found) == repr(expected)  # types, order, and the sign of zero


def test_the_short_way_takes_what_is_usual() -> None:
    row = {**GOOD, "wide": 7, "single": 1}
    for body, count in ((row, 1), ({"rows": [row]}, 1), ({"rows": [row] * FEW}, FEW), ({"rows": [row] * (FEW + 1)}, 0)):
        found = PLAIN_ROWS.few(json.dumps(body).encode()) or []
        assert [each.keys() for each in found] == [PLAIN.keys()] * count
    assert RequestRows({"rows": pl.Int64()}, ("rows",)).few(b'{"rows": 1}') is None


PARTLY = RequestRows(SCHEMA, ("id",), {"id", "distance", "day"})


@given(st.sets(st.sampled_from(sorted(SCHEMA))), st.booleans())
def test_what_is_not_needed_may_be_left_out_and_is_null(left_out: set[str], several: bool) -> None:
    row = {name: value for name, value in GOOD.items() if name not in left_out}
    body = json.dumps({"rows": [row, row]} if several else row).encode()
    if left_out & {"id", "distance", "day"}:
        first = next(name for name in ("id", "distance", "day") if name in left_out)
        with pytest.raises(RequestError, match="Missing column") as caught:
            PARTLY.read(body)
        assert caught.value.field == ("rows[0]." if several else "") + first
        assert PARTLY.few(body) is None
        return
    whole = {name: None if name in left_out else value for name, value in GOOD.items()}
    rows = [whole, whole] if several else [whole]
    frame = ROWS.read(json.dumps({"rows": rows}).encode())
    assert PARTLY.read(body).equals(frame, null_equal=True)
    values = {name: [row[name]] * len(rows) for name in row}
    assert PARTLY.columns(values).equals(frame, null_equal=True)
    plain = [ROWS.row(each, "") for each in rows]
    assert PARTLY.turned(values) == plain
    assert PARTLY.few(body) == plain
    assert [PARTLY.row(row, "") for _ in rows] == plain


def test_a_misspelt_name_is_told_where_columns_may_be_left_out() -> None:
    with pytest.raises(RequestError, match=r"Unknown column\. Did you mean 'seats'"):
        PARTLY.read(json.dumps({**{name: GOOD[name] for name in ("id", "distance", "day")}, "seat": 3}).encode())
