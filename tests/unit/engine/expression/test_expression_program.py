"""Compiled expressions have the definition's bits, or stay in Polars."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.base.clock import parse_time
from tidemill.engine.check.feature import staying
from tidemill.engine.expression import functions, program
from tidemill.engine.expression.assemble import Value
from tidemill.engine.expression.expression import evaluate
from tidemill.engine.expression.program import Program, Stay, compiled, proofs, trust
from tidemill.engine.feature.feature import demand
from tidemill.kernels import compiled as kernels
from tidemill.kernels.expressions import Plain
from tidemill.spec.expression import Expression

SCHEMA: dict[str, pl.DataType] = {
    "a": pl.Float64(), "x": pl.Float64(), "n": pl.Int64(), "m": pl.Int64(), "i": pl.Int8(), "w": pl.UInt32(),
    "f": pl.Float32(), "b": pl.Boolean(), "s": pl.String(), "zone": pl.String(), "c": pl.Categorical(),
    "d": pl.Date(), "t": pl.Datetime("us", "UTC"), "u": pl.Datetime("us", "UTC"),
}  # fmt: skip
A, X, N, M, I8, W, F, B, S, Z, C, D, T, U = map(pl.col, SCHEMA)
YORK, BY = tm.local("t", "America/New_York"), tm.local("t", pl.col("zone"))
SINCE = T - U
DAY = dt.datetime(2013, 1, 1, tzinfo=dt.UTC)

#: What docs/declare.md says is compiled, an example of each.
SUBSET: dict[str, list[pl.Expr]] = {
    "arithmetic": [
        A + X,
        A - N,
        A * 2.5,
        A / 3,
        A // 0.3,
        A % 0.3,
        3 / A,
        N // 7,
        N % -7,
        N // M,
        N % M,
        N * M,
        -A,
        -N,
        I8 + 1,
        I8 * 100,
        I8 / 24,
        W - 5,
        W * I8,
        F / 3,
        F * 0.1,
        F % 0.3,
        F // X,
        A / (pl.lit(2.0) * 1.5),
    ],
    "powers": [A**2, A**3, A**0.5, A**1.7, A**-1, A**N, N**2, I8**3, F**2],
    "comparison": [
        A > 1,
        A >= N,
        A.eq(0.1),
        F.eq(0.1),
        F > A,
        N > 1.5,
        I8 > 300,
        N != M,
        B.eq(pl.lit(True)),
        S == "a",
        S != Z,
        S > "b",
        C == "a",
        T > U,
        T.ge(DAY),
        D.ge(dt.date(2013, 1, 1)),
        SINCE.gt(dt.timedelta(hours=1)),
    ],
    "logic": [(A > 1) & B, (A > 1) | B, B ^ (N > 3), ~B, pl.all_horizontal(B, A > 1), pl.any_horizontal(B, A > 1)],
    "conditionals": [
        pl.when(A > 1).then(A / 9).otherwise(N / 11),
        pl.when(B).then(1).otherwise(None),
        pl.when(B).then(S).otherwise(pl.lit("x")),
        pl.when(A > 3).then(I8).when(A > 1).then(N).otherwise(0.5),
    ],
    "nulls": [
        A.is_null(),
        S.is_not_null(),
        A.is_nan(),
        A.is_not_nan(),
        N.is_nan(),
        A.is_finite(),
        A.is_infinite(),
        A.fill_null(0.5),
        N.fill_null(0.5),
        I8.fill_null(300),
        S.fill_null("none"),
        T.fill_null(U),
        A.fill_nan(None),
        A.fill_nan(0),
        pl.coalesce(A, N, 1),
    ],
    "membership": [
        N.is_in([1, 2, 7]),
        A.is_in([1.5, 0.0]),
        S.is_in(["a", "ß"]),
        C.is_in(["a"]),
        I8.is_in([1, 2]),
        N.is_between(0, 10),
        A.is_between(0.1, X, closed="left"),
        T.is_between(DAY, U, closed="none"),
    ],
    "numbers": [
        A.abs(),
        I8.abs(),
        N.sign(),
        A.sign(),
        A.floor(),
        F.ceil(),
        A.round(),
        A.round(2),
        A.round(1, mode="half_away_from_zero"),
        F.round(),
        N.round(1),
        A.clip(0, 1),
        N.clip(-3),
        I8.clip(upper_bound=5),
        pl.min_horizontal(A, N),
        pl.max_horizontal(A, X, 1),
    ],
    "functions": [
        A.sqrt(),
        A.log(),
        A.log(2),
        A.log10(),
        A.log1p(),
        A.exp(),
        A.sin(),
        A.cos(),
        A.tan(),
        A.arcsin(),
        A.arccos(),
        A.arctan(),
        A.degrees(),
        A.radians(),
        N.sqrt(),
    ],
    "casts": [
        N.cast(pl.Float64),
        A.cast(pl.Int64, strict=False),
        A.cast(pl.Int8, strict=False),
        N.cast(pl.Int16),
        A.cast(pl.Float32),
        B.cast(pl.Int8),
        B.cast(pl.String),
        N.cast(pl.Boolean),
        A.cast(pl.Boolean),
        N.cast(pl.String),
        S.cast(pl.Categorical),
        T.cast(pl.Int64),
        T.cast(pl.Date),
        D.cast(pl.Datetime("us")),
    ],
    "calendar": [
        getattr(time.dt, field)()
        for time in (T, YORK, BY, D)
        for field in ("weekday", "day", "month", "year", "ordinal_day", "week", "iso_year", "quarter", "is_leap_year")
    ]
    + [
        getattr(time.dt, field)()
        for time in (T, YORK, BY)
        for field in ("hour", "minute", "second", "microsecond", "date")
    ],
    "time": [
        SINCE,
        T - dt.timedelta(hours=1),
        (T + dt.timedelta(days=1)).dt.day(),
        D - D,
        SINCE.dt.total_days(),
        SINCE.dt.total_hours(),
        SINCE.dt.total_minutes(),
        SINCE.dt.total_seconds(),
        SINCE.dt.total_milliseconds(),
        SINCE.dt.total_microseconds(),
        SINCE.dt.total_hours(fractional=True),
        T.dt.epoch("s"),
        T.dt.epoch("us"),
    ],
    "texts": [
        S.str.len_chars(),
        S.str.len_bytes(),
        S.str.to_lowercase(),
        S.str.to_uppercase(),
        S.str.starts_with("a"),
        S.str.ends_with("c"),
        S.str.contains("ab"),
        S.str.contains("a.", literal=True),
        S + "x",
        S + Z,
    ],
    "ours": [
        *tm.cyclic("hour", YORK.dt.hour(), 24).values(),
        tm.distance(A, X, "x", N),
        tm.text_length("s"),
        tm.bucket("s", 32),
        tm.bucket(N + 1, 7),
        tm.bucket("c", 5),
    ],
    "constants": [pl.lit(1.5), pl.lit(True), pl.lit("a"), pl.lit(1) + 2],
}
STAYING = {
    "text patterns": (S.str.contains("a.c"), "a pattern"),
    "numbers as texts": (A.cast(pl.String), "Float64 as String"),
    "slices": (S.str.slice(0, 2), "Slice"),
    "truncation": (T.dt.truncate("1d"), "Truncate"),
    "roots": (A.cbrt(), "Cbrt"),
    "logarithms of float32": (F.log(), "Float32"),
    "other rows": (A.mean(), "outside the documented subset"),
    "not a number": (A + float("nan"), "outside the documented subset"),
    "unknown columns": (pl.col("no") + 1, "'no', which is not there"),
}


def of(expression: pl.Expr) -> Program:
    return Program({"value": Expression.of(expression)}, SCHEMA)


@pytest.mark.parametrize("part", SUBSET)
def test_the_documented_subset_is_compiled(part: str) -> None:
    for expression in SUBSET[part]:
        assert of(expression).stays == (), str(expression)


@pytest.mark.parametrize("what", STAYING)
def test_what_stays_in_polars_says_why(what: str) -> None:
    expression, why = STAYING[what]
    (stay,) = of(expression).stays
    assert stay.name == "value"
    assert why in stay.why


@pytest.mark.parametrize("part", ["arithmetic", "nulls", "numbers", "functions", "calendar", "texts", "ours"])
def test_plain_kernels_give_the_same(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_KERNELS", "plain")
    for expression in SUBSET[part]:
        found = of(expression)
        assert isinstance(found._run._machine, Plain)
        assert found.stays == (), str(expression)


# Random trees over random rows.

floats = (
    st.sampled_from(
        (0.0, -0.0, 1.0, 0.5, 2.5, -2.5, 0.1, 1e300, 5e-324, float("nan"), float("inf"), -float("inf"), 1e16)
    )
    | st.floats()
)
wholes = (
    st.sampled_from((0, 1, -1, 7, 2**63 - 1, -(2**63), 2**53 + 1))
    | st.integers(-(2**63), 2**63 - 1)
    | st.integers(-9, 9)
)
turns = (0, -1, *(parse_time(text) for text in ("2024-03-10T07:00", "2024-11-03T05:59:59.999999", "2024-02-29")))
moments = st.sampled_from(turns) | st.integers(
    parse_time("0002-01-01"), parse_time("9998-01-01"))  # fmt: skip
texts = st.sampled_from(("", "a", "abc", "ABC", "é", "ß", "日本", "UTC", "Europe/Berlin", "Nowhere/None")) | st.text(
    max_size=5
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "a": floats, "x": floats, "n": wholes, "m": wholes, "i": st.integers(-128, 127), "w": st.integers(0, 2**32 - 1),
    "f": st.floats(width=32), "b": st.booleans(), "s": texts, "zone": texts, "c": texts, "t": moments, "u": moments,
    "d": st.dates(dt.date(2, 1, 1), dt.date(9998, 1, 1)),
}  # fmt: skip
ROW = st.fixed_dictionaries({name: st.none() | values for name, values in VALUES.items()})


def series(name: str, values: list[Any]) -> pl.Series:
    dtype = SCHEMA[name]
    return pl.Series(name, values, dtype=pl.Int64 if dtype == pl.Datetime else dtype).cast(dtype)


def frame_of(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame([series(name, [row[name] for row in rows]) for name in SCHEMA])


numbers = st.sampled_from(
    [
        A,
        X,
        N,
        M,
        I8,
        W,
        F,
        pl.lit(2),
        pl.lit(0.3),
        pl.lit(-1),
        YORK.dt.hour(),
        BY.dt.weekday(),
        tm.text_length("s"),
        SINCE.dt.total_hours(fractional=True),
    ]
)
conditions = st.sampled_from([B, A > 1, N == 7, S == "a", T > U, S.is_in(["a", "b"]), C == "a", A.is_null()])


def larger(inner: st.SearchStrategy[pl.Expr]) -> st.SearchStrategy[pl.Expr]:
    pairs = st.tuples(inner, inner)
    return (
        pairs.map(lambda p: p[0] + p[1]) | pairs.map(lambda p: p[0] - p[1]) | pairs.map(lambda p: p[0] * p[1])
        | pairs.map(lambda p: p[0] / p[1]) | pairs.map(lambda p: p[0] // p[1]) | pairs.map(lambda p: p[0] % p[1])
        | st.tuples(conditions, inner, inner).map(lambda p: pl.when(p[0]).then(p[1]).otherwise(p[2]))
        | pairs.map(lambda p: p[0].fill_null(p[1])) | pairs.map(lambda p: pl.max_horizontal(*p))
        | pairs.map(lambda p: (p[0] < p[1]) & p[1].is_not_null()) | pairs.map(lambda p: p[0].is_between(p[1], 3))
        | inner.map(lambda e: e.abs()) | inner.map(lambda e: -e)
        | inner.map(lambda e: e.round(1)) | inner.map(lambda e: e.sqrt())
        | inner.map(lambda e: e.cast(pl.Float64))
        | inner.map(lambda e: e.cast(pl.Int32, strict=False)) | inner.map(lambda e: e.cast(pl.Int64))
        | inner.map(lambda e: e.clip(-2, 5)) | inner.map(lambda e: e.log1p()) | inner.map(lambda e: e**2)
    )  # fmt: skip


@given(expression=st.recursive(numbers, larger, max_leaves=6), rows=st.lists(ROW, min_size=1, max_size=4))
@settings(max_examples=int(os.environ.get("TIDEMILL_ORACLE_EXAMPLES", "60")), deadline=None)
def test_any_expression_has_the_definition_s_bits(expression: pl.Expr, rows: list[dict[str, Any]]) -> None:
    one = {"value": Expression.of(expression)}
    found = of(expression)
    frame = frame_of(rows)
    together = outcome(lambda: evaluate(frame, one))
    assert alike(outcome(lambda: found.frame(frame)), together)
    for place, row in enumerate(rows):
        alone = outcome(lambda place=place: evaluate(frame[place : place + 1], one))
        assert alike(outcome(lambda row=row: found.row(row)), alone)


def outcome(call: Any) -> Any:
    """Return what a call gives, or the kind of error it raises."""
    try:
        return call()
    except Exception as error:
        return type(error)


def alike(got: Any, expected: Any) -> bool:
    if isinstance(expected, type):
        return bool(got == expected)
    values = program._physical(expected.to_series()).to_list()
    if isinstance(got, pl.DataFrame):
        return got.schema == expected.schema and all(
            map(program._same, program._physical(got.to_series()).to_list(), values)
        )
    return len(got) == 1 and program._same(got[0], values[0])


# The parts of the machine.

VIEW = {name: Expression.of(each) for name, each in {
    "hour": YORK.dt.hour(), "ratio": A / X, "slice": S.str.slice(0, 1), "lower": S.str.to_lowercase(),
    "plain": pl.col("n"),
    "there": BY.dt.hour(), "day": T.dt.date(), "late": T - dt.timedelta(hours=1),
}.items()}  # fmt: skip
GOOD: dict[str, Any] = {
    "t": parse_time("2024-07-01T12:00"),
    "a": 1.0,
    "x": 3.0,
    "s": "Ab",
    "n": 5,
    "zone": "Asia/Tokyo",
}


def test_a_row_mixes_what_is_compiled_and_what_is_not() -> None:
    found = compiled(VIEW, SCHEMA)
    assert [stay.name for stay in found.stays] == ["slice"]
    late = parse_time("2024-07-01T11:00")
    assert found.row(GOOD) == (8, 1 / 3, "A", "ab", 5, 21, dt.date(2024, 7, 1), late)
    assert found.row({**GOOD, "s": "ÀB"})[2:4] == ("À", "àb")  # declined by the kernel
    assert found.row({**GOOD, "zone": "Nowhere"})[5] is None
    assert found.row(dict.fromkeys(GOOD)) == (None,) * 8
    assert compiled(dict(VIEW), {**SCHEMA, "more": pl.Int8()}) is found
    with pytest.raises(KeyError):
        found.row({name: GOOD[name] for name in GOOD if name != "a"})
    with pytest.raises(TypeError, match="column 'a'"):
        found.row({**GOOD, "a": "1"})


def test_frames_come_as_by_the_definition() -> None:
    found = compiled(VIEW, SCHEMA)
    rows = [
        {**dict.fromkeys(SCHEMA), **GOOD},
        dict.fromkeys(SCHEMA),
        {**dict.fromkeys(SCHEMA), **GOOD, "zone": "UTC", "s": "é"},
    ]
    for part in (rows, rows[:2] * 200, rows[:1], []):
        frame = frame_of(part)
        assert found.frame(frame).equals(evaluate(frame, VIEW), null_equal=True)
        assert found.frame(frame).schema == evaluate(frame, VIEW).schema
    sliced = frame_of(rows[:2] * 100)[3:77]
    assert found.frame(sliced).equals(evaluate(sliced, VIEW), null_equal=True)


def test_a_view_is_computed_by_its_program() -> None:
    view = tm.OnDemand("o", {"third": A / 3, "hour": YORK.dt.hour()})
    frame = frame_of([{**dict.fromkeys(SCHEMA), **GOOD}] * 3)
    assert demand(view, frame).to_dict(as_series=False) == {"o__third": [1 / 3] * 3, "o__hour": [8] * 3}
    assert demand(view, frame.head(0)).schema == {"o__third": pl.Float64, "o__hour": pl.Int8}


def test_strict_casts_fail_as_in_polars() -> None:
    found = of(A.cast(pl.Int8))
    assert found.stays == ()
    assert found.row({"a": -3.9}) == (-3,)
    for value in (300.0, float("nan")):
        with pytest.raises(pl.exceptions.InvalidOperationError):
            found.row({"a": value})
        with pytest.raises(pl.exceptions.InvalidOperationError):
            found.frame(pl.DataFrame({"a": [1.0, value]}))


def wrong_sine(assembler: Any, arguments: Any, options: Any, dtype: Any) -> Any:
    return functions.FUNCTIONS["Trigonometry.Cos"](assembler, arguments, options, dtype)


def wrong_at_an_edge(assembler: Any, arguments: Any, options: Any, dtype: Any) -> Any:
    """Zeros lose their sign: only an edge shows it."""
    value = functions._by_kind("ABS", assembler, arguments, options, dtype)
    return Value(dtype, assembler.emit("FADD", value.at, assembler.constant("f", 0.0)))


def test_a_difference_is_found_and_keeps_the_expression_in_polars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tidemill.engine.expression.compile.FUNCTIONS", {**functions.FUNCTIONS, "Trigonometry.Sin": wrong_sine}
    )
    monkeypatch.setattr(program, "_proved", {})
    found = of(A.sin())
    assert "compiled it would be" in found.stays[0].why
    assert found.row({"a": 0.0}) == (0.0,)
    assert found.frame(pl.DataFrame({"a": [0.0]})).item() == 0.0
    monkeypatch.setattr(
        "tidemill.engine.expression.compile.FUNCTIONS", {**functions.FUNCTIONS, "Negate": functions.FUNCTIONS["Abs"]}
    )
    assert of(-A).stays
    monkeypatch.setattr(
        "tidemill.engine.expression.compile.FUNCTIONS", {**functions.FUNCTIONS, "Floor": wrong_at_an_edge}
    )
    assert of(A.floor()).stays


def test_the_cost_of_a_row_is_measured() -> None:
    found = compiled(VIEW, SCHEMA)
    assert found.cost("slice") > 0
    assert found.cost("hour") > 0


def test_plain_kernels_leave_frames_to_polars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_KERNELS", "plain")
    found = Program(VIEW, SCHEMA)
    frame = frame_of([{**dict.fromkeys(SCHEMA), **GOOD}] * 2)
    assert found.frame(frame).equals(evaluate(frame, VIEW), null_equal=True)
    assert found.row(GOOD) == compiled(VIEW, SCHEMA).row(GOOD)


def test_the_kernel_is_in_use() -> None:
    native = kernels.load("expressions")
    if native is None:
        pytest.skip("the compiled kernel is not built")
    assert isinstance(compiled(VIEW, SCHEMA)._run._machine, native.Program)


def test_check_says_which_expression_stays_in_polars_and_what_that_costs() -> None:
    rows = tm.Source("rows", tm.push(), key="n", event_time="t")
    view = tm.OnDemand("o", {"third": A / 3, "slice": S.str.slice(0, 1)})
    (note,) = staying(view, rows, {"rows": SCHEMA})
    assert note.where == "feature view 'o'"
    assert re.match(
        r"'slice' is computed by Polars, in \d+ µs a row: the function Slice cannot be compiled\.", note.what
    )
    assert list(staying(view, rows, {})) == []


LOCAL = {"hour": Expression.of(tm.local("at", "Asia/Kolkata").dt.hour()), "third": Expression.of(pl.col("x") / 3)}
LOCAL_SCHEMA: dict[str, pl.DataType] = {"at": pl.Datetime("us", "UTC"), "x": pl.Float64()}


def test_what_another_process_proved_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_proved", {})
    proved = proofs(LOCAL, LOCAL_SCHEMA)
    assert list(proved.values()) == [None, None]
    monkeypatch.setattr(program, "_proved", {})
    tried: list[str] = []

    def difference(expression: Expression, _: object) -> str:
        tried.append(expression.tree)
        return "tried again"

    monkeypatch.setattr(program, "_difference", difference)
    trust(json.loads(json.dumps(proved)))
    assert Program(LOCAL, LOCAL_SCHEMA).stays == ()
    assert tried == []
    # Other types, or other code, are another fingerprint.
    narrow = {**LOCAL_SCHEMA, "x": pl.Float32()}
    assert [each.name for each in Program(LOCAL, narrow).stays] == ["third"]
    monkeypatch.setattr(program, "_code", lambda: "newer")
    assert len(Program(LOCAL, LOCAL_SCHEMA).stays) == 2


def test_why_an_expression_stays_in_polars_is_part_of_its_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_proved", {})
    one = {"s": Expression.of(pl.col("x").round_sig_figs(3))}
    (why,) = proofs(one, LOCAL_SCHEMA).values()
    assert why is not None
    assert Program(one, LOCAL_SCHEMA).stays == (Stay("s", why),)
