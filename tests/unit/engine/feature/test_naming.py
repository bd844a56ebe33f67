"""A request's group has one name, however it is made."""

from __future__ import annotations

import datetime as dt
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.engine.feature.feature import keys
from tidemill.engine.feature.layout import groups
from tidemill.engine.feature.naming import name_of, names_of
from tidemill.testing.histories import TIME

_INTS = st.one_of(st.integers(-300, 300), st.sampled_from((2**31, 2**53 + 1, 2**63 - 1)))
#: Types of request columns, and their plain values.
ASKED: dict[str, tuple[pl.DataType, st.SearchStrategy[Any]]] = {
    "text": (pl.String(), st.sampled_from(("p", "q", "é", "", "12", "x" * 500))),
    "whole": (pl.Int64(), _INTS),
    "small": (pl.Int16(), st.integers(-300, 300)),
    "count": (pl.UInt64(), st.integers(0, 2**64 - 1)),
    "float": (pl.Float64(), st.sampled_from((0.0, -0.0, 1.0, 0.1, float("nan"), float("inf"), 2.5))),
    "single": (pl.Float32(), st.sampled_from((0.0, -0.0, 0.5, float("nan")))),
    "flag": (pl.Boolean(), st.booleans()),
    "time": (TIME, st.integers(-(10**15), 10**15)),
    "day": (pl.Date(), st.dates(dt.date(1900, 1, 1), dt.date(2100, 1, 1))),
}
#: Types of key columns.
KEYS: tuple[pl.DataType, ...] = (
    pl.String(), pl.Categorical(), pl.Enum(["p", "q"]), pl.Int8(), pl.Int64(), pl.UInt16(), pl.UInt64(), pl.Float32(),
    pl.Float64(), pl.Boolean(), TIME, pl.Datetime("ms"), pl.Datetime("us"), pl.Date(),
)  # fmt: skip


@given(data=st.data(), names=st.lists(st.sampled_from(list(ASKED)), min_size=1, max_size=2, unique=True))
@settings(max_examples=300, deadline=None)
def test_one_and_many_are_named_as_polars_names_them(data: st.DataObject, names: list[str]) -> None:
    schema = {name: ASKED[name][0] for name in names}
    types = [data.draw(st.sampled_from(KEYS)) for _ in names]
    rows = data.draw(
        st.lists(st.fixed_dictionaries({name: st.one_of(st.none(), ASKED[name][1]) for name in names}), min_size=1)
    )
    frame = pl.DataFrame({name: [row[name] for row in rows] for name in names}, schema=schema)
    columns = tuple(names)
    try:
        want = groups(keys(frame, columns, types).iter_rows())
    except pl.exceptions.PolarsError as error:  # there is no such cast
        with pytest.raises(type(error)):
            names_of(frame, columns, types)
        return
    assert names_of(frame, columns, types) == [name or b"" for name in want]
    name = name_of(columns, types, schema)
    assert [name(row) for row in rows] == want


def test_before_a_table_has_types_nothing_has_a_name() -> None:
    frame = pl.DataFrame({"a": ["x", "y"]})
    assert names_of(frame, ("a",), []) == [b"", b""]
    assert name_of(("a",), [], frame.schema)({"a": "x"}) is None
    with pytest.raises(KeyError, match="b"):
        name_of(("b",), [pl.String()], frame.schema)
