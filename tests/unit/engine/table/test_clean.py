from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.base.clock import HOUR, parse_time
from tidemill.base.errors import RequestError
from tidemill.engine.table.clean import clean
from tidemill.engine.table.derive import cut_test, evaluate
from tidemill.engine.table.tally import added, counting, report
from tidemill.spec.clean import Step

TIME = pl.Datetime("us", "UTC")
T0 = parse_time("2024-01-01")


def one(values: list[Any], *steps: Step, **more: Any) -> list[Any]:
    """Return the column ``x`` of ``values`` after ``steps``."""
    made, _ = clean(pl.DataFrame({"x": values}, strict=False), steps, known_at=None, **more)
    return made["x"].to_list()


def hourly(hours: list[int], **columns: Any) -> pl.DataFrame:
    made = pl.DataFrame({"id": range(len(hours)), "known": hours, **columns})
    return made.with_columns((pl.col("known") * HOUR + T0).cast(TIME))


# Steps of one row -------------------------------------------------------------------------------------------------


def test_missing_values_are_filled_and_counted() -> None:
    frame = pl.DataFrame({"x": [1.5, None, float("nan")], "y": [10.0, 20.0, None], "n": [1, None, 3]})
    steps = (tm.fill("x", pl.col("y") / 10), tm.fill("x", 0), tm.fill("n", 0.5))
    made, counts = clean(frame, steps, known_at=None)
    assert made["x"].to_list() == [1.5, 2.0, 0.0]
    assert made["n"].to_list() == [1.0, 0.5, 3.0]
    assert [(count["step"], count["filled"], count["changed"]) for count in counts] == [
        ("fill x", 1, 0), ("fill x", 1, 0), ("fill n", 1, 0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "step", "expected"),
    [
        (["1", " 2.5 ", "n/a", "", "x"], tm.cast("x", "number", missing=["n/a"]), [1.0, 2.5, None, None, None]),
        (["1.234,5", "7", "1,5,0"], tm.cast("x", "number", decimal=","), [1234.5, 7.0, None]),
        (["1,234.5", "12.34", "1.2.3", "1.5", "1.5e3"], tm.cast("x", "number", decimal=","), [None] * 5),
        (
            ["1.234.567", " -12,34 ", "+1,5e3", ",5", "5,", "1234.567", ",", ".5"],
            tm.cast("x", "number", decimal=","),
            [1234567.0, -12.34, 1500.0, 0.5, 5.0, None, None, None],
        ),
        (["1.234", "1.234,0", "12.34", "1e3"], tm.cast("x", "whole", decimal=","), [1234, 1234, None, 1000]),
        (["1,234.5", "1.2.3", "12,34", ".5"], tm.cast("x", "number"), [None, None, None, 0.5]),
        (["12.34", "1,5"], tm.cast("x", "number", decimal=",", otherwise="drop"), [1.5]),
        ([1.5, -999.0, 0.0], tm.cast("x", "number", missing=[-999]), [1.5, None, 0.0]),
        ([1.5, -999.0, 0.0], tm.cast("x", "number", missing=["-999", "n/a", "-0"]), [1.5, None, None]),
        ([1.5, 2.0], tm.cast("x", "number", decimal=",", missing=["1,5", 2.0]), [None, None]),
        ([1, -999, 2**53 + 1], tm.cast("x", "whole", missing=[-999.0, str(2**53)]), [1, None, 2**53 + 1]),
        ([1, -999], tm.cast("x", "whole", missing=["-999.0"], otherwise="drop"), [1, None]),
        ([1, -999], tm.cast("x", "text", missing=[-999]), ["1", None]),
        ([True, False, None], tm.cast("x", "text", missing=[False, "1"]), ["true", None, None]),
        (
            [datetime.fromisoformat("1900-01-01"), datetime.fromisoformat("2024-01-01")],
            tm.cast("x", "time", missing=["1900-01-01"], zone="Asia/Tokyo"),
            [None, datetime(2023, 12, 31, 15, tzinfo=UTC)],
        ),
        (
            [datetime(1900, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC)],
            tm.cast("x", "time", missing=["1900-01-01"]),
            [None, datetime(2024, 1, 1, tzinfo=UTC)],
        ),
        (["-999.00", "1", "n/a", "?"], tm.cast("x", "number", missing=[-999, "n/a"]), [None, 1.0, None, None]),
        (["-999.00", "1"], tm.cast("x", "text", missing=[-999]), [None, "1"]),
        (["-999,0", "1,5"], tm.cast("x", "number", decimal=",", missing=[-999]), [None, 1.5]),
        (["1", "2.5", "3.0"], tm.cast("x", "whole"), [1, None, 3]),
        (["1", "-", "2.5"], tm.cast("x", "whole", missing=["-"], otherwise="drop"), [1, None]),
        ([1.0, 2.5, None], tm.cast("x", "text"), ["1", "2.5", None]),
        (["true", "FALSE", "1"], tm.cast("x", "truth"), [True, False, None]),
        ([" a ", "  ", None, "B"], tm.trim("x", case="lower"), ["a", None, None, "b"]),
        ([1, 5, 9, None], tm.clip("x", 2, 8), [2, 5, 8, None]),
        ([1, 5, 9, None], tm.clip("x", None, 4.5), [1.0, 4.5, 4.5, None]),
        (["1", " 9.5 ", "n/a", "", None, "inf"], tm.clip("x", 2, 8), [2.0, 8.0, None, None, None, None]),
        (["a", "b", None], tm.recode("x", {"a": "A", "c": "C"}), ["A", "b", None]),
        (["a", "b", None], tm.recode("x", {"a": "A"}, otherwise="null"), ["A", None, None]),
        (["a", "b", None], tm.recode("x", {"a": "A"}, otherwise="drop"), ["A", None]),
        (["y", "n", "?"], tm.recode("x", {"y": True, "n": False}, otherwise="null"), [True, False, None]),
        (["y", "?"], tm.recode("x", {"?": None}), ["y", None]),
        ([1, 5, None], tm.invalid(tm.between("x", 2, 8)), [5, None]),
        ([1, 5, None], tm.invalid(tm.between("x", 2, 8), then="null"), [None, 5, None]),
        ([1, 5, None], tm.invalid(tm.not_null("x")), [1, 5]),
        ([1, 5, None], tm.invalid(tm.holds("odd", pl.col("x") % 2 == 0)), [None]),
    ],
)
def test_steps_of_one_row(values: list[Any], step: Step, expected: list[Any]) -> None:
    assert one(values, step) == expected


def test_times_are_read_by_format_and_zone() -> None:
    def read(*texts: str, **how: Any) -> list[Any]:
        return one(list(texts), tm.cast("x", "time", **how))

    assert read("2024-07-01T10:00", "2024-07-01") == [
        datetime(2024, 7, 1, 10, tzinfo=UTC),
        datetime(2024, 7, 1, tzinfo=UTC),
    ]
    assert read("01/07/2024 10:00", format="%d/%m/%Y %H:%M") == [datetime(2024, 7, 1, 10, tzinfo=UTC)]
    paris = {"format": "%d/%m/%Y %H:%M", "zone": "Europe/Paris"}
    assert read("01/07/2024 10:00", "01/01/2024 10:00", "x", **paris) == [
        datetime(2024, 7, 1, 8, tzinfo=UTC), datetime(2024, 1, 1, 9, tzinfo=UTC), None
    ]  # fmt: skip
    # a time that the clocks skip, and one that they have twice
    assert read("31/03/2024 02:30", "27/10/2024 02:30", **paris) == [None, None]
    assert read("2024-07-01T10:00", "2024-07-01T10:00+05:00", zone="Europe/Paris") == [
        datetime(2024, 7, 1, 8, tzinfo=UTC), datetime(2024, 7, 1, 5, tzinfo=UTC)
    ]  # fmt: skip
    assert read("2024-07-01 10:00 +0200", format="%Y-%m-%d %H:%M %z", zone="Asia/Tokyo") == [
        datetime(2024, 7, 1, 8, tzinfo=UTC)
    ]


def test_units_become_one() -> None:
    frame = pl.DataFrame({"t": [20.0, 68.0, 293.15, 5.0, 1.0, None], "u": ["C", "F", "K", None, "R", "X"]})
    step = tm.convert("t", unit="u", to="C", units={"F": (pl.col("t") - 32) / 1.8, "K": pl.col("t") - 273.15})
    made, (count,) = clean(frame, (step,), known_at=None)
    assert made["t"].to_list() == pytest.approx([20.0, 20.0, 20.0, None, None, None])
    assert made["u"].to_list() == ["C", "C", "C", None, None, "X"]
    assert (count["changed"], count["emptied"]) == (2, 2)
    dropping = tm.convert("t", unit="u", to="C", units={"F": 1.0, "K": 1.0}, otherwise="drop")
    assert clean(frame, (dropping,), known_at=None)[0].height == 4  # nothing to convert in the last


def test_values_declared_missing_are_emptied_whatever_type_they_were_read_as() -> None:
    step = tm.cast("x", "number", missing=["-999"])
    for values in (["-999", "1"], [-999, 1], [-999.0, 1.0]):
        made, (count,) = clean(pl.DataFrame({"x": values}), (step,), known_at=None)
        assert made["x"].to_list() == [None, 1.0]
        assert count["emptied"] == 1


@pytest.mark.parametrize("member", [None, float("nan"), float("inf"), b"x", [1]])
def test_what_no_column_holds_is_no_missing_value(member: Any) -> None:
    with pytest.raises(TypeError, match=r"cast\('x'\) has missing=\[.*\], which is no text and no finite number"):
        tm.cast("x", "number", missing=[member])


def test_text_that_is_no_number_is_emptied_and_stops_no_step() -> None:
    frame = hourly([0, 1, 2, 3, 4], x=["10", "11", "n/a", "9", "99"], u=["g", "kg", "g", "F", "g"])
    convert = tm.convert("x", unit="u", to="kg", units={"g": 0.5, "F": pl.col("x") * 2})
    made, (count,) = clean(frame, (convert,), known_at=None)
    assert made["x"].to_list() == [5.0, 11.0, None, 18.0, 49.5]
    assert count["emptied"] == 1
    assert clean(frame, (tm.clip("x", 0, 10),), known_at=None)[1][0]["emptied"] == 1
    expected: dict[Any, list[Any]] = {
        "null": ["10", "11", None, "9", None],  # still text
        "clip": [10.0, 11.0, None, 9.0, 11.5],
        "keep": frame["x"].to_list(),
        "drop": ["10", "11", "n/a", "9"],
    }
    for then, values in expected.items():
        step = tm.outliers("x", over="1d", least=3, k=1, then=then, flag="far")
        made, (count,) = clean(frame, (step,), known_at="known")
        assert made["x"].to_list() == values
        assert count["emptied"] == sum(each is None for each in values)
    filled, _ = clean(hourly([0, 1, 2], x=["n/a", "2.5", None]), (tm.fill("x", trailing="mean", over="1d"),),
                      known_at="known")  # fmt: skip
    assert filled["x"].to_list() == ["n/a", "2.5", "2.5"]


def test_invalid_rows_are_flagged_and_kept() -> None:
    step = tm.invalid(tm.between("x", 0, None), flag="odd")
    made, (count,) = clean(pl.DataFrame({"x": [1, -1, None]}), (step,), known_at=None)
    assert made["odd"].to_list() == [False, True, False]
    assert (count["flagged"], count["dropped"]) == (1, 0)


STEPS: list[Step] = [
    tm.fill("x", 0.5), tm.fill("x", 1), tm.fill("x", trailing="median", over="1d"), tm.fill("s", "none"),
    tm.fill("x", trailing="last", over="1d"), tm.cast("s", "number"), tm.cast("s", "time"), tm.cast("x", "text"),
    tm.convert("x", unit="s", to="a", units={"b": 2}), tm.recode("s", {"a": 1}, otherwise="null"),
    tm.recode("s", {"a": "A"}), tm.trim("s"), tm.clip("x", 0.5, 2), tm.clip("x", 0, 2),
    tm.clip("s", 0, 2), tm.convert("s", unit="x", to="a", units={"2": 2}), tm.cast("x", "whole", missing=[-3, "b"]),
    tm.outliers("s", over="1d", least=1, then="null"), tm.outliers("s", over="1d", least=1, then="clip"),
    tm.fill("s", trailing="mean", over="1d"), tm.cast("s", "number", decimal=",", missing=[2]),
    tm.invalid(tm.between("x", 0, 2), flag="odd"), tm.outliers("x", over="1d", least=1, then="clip"),
    tm.outliers("x", over="1d", method="z", least=2, then="null", flag="odd"), tm.duplicates("s"),
    tm.sample(0.5, weight="w"), tm.sample({"a": 0.5}, by="s", weight="w"), tm.balance("s", over="1d", weight="w"),
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS, ids=str)
@given(st.lists(st.tuples(st.none() | st.integers(-3, 9), st.none() | st.sampled_from(["a", "b", "2"])), max_size=6))
@settings(deadline=None, max_examples=20)
def test_types_hang_on_the_declaration_and_not_on_the_rows(step: Step, rows: list[tuple[Any, Any]]) -> None:
    schema = {"x": pl.Int64, "s": pl.String}
    frame = pl.DataFrame(rows, schema, orient="row").with_columns(
        id=pl.int_range(pl.len()), known=pl.lit(T0).cast(TIME)
    )
    made, (count,) = clean(frame, (step,), known_at="known", key=["id"])
    empty, _ = clean(frame.clear(), (step,), known_at="known", key=["id"])
    assert made.schema == empty.schema
    assert count["rows"] - count["dropped"] == made.height


# Steps that look back ---------------------------------------------------------------------------------------------


def test_outliers_are_judged_by_what_was_known_before() -> None:
    frame = hourly([0, 1, 2, 3, 4, 5, 5], x=[10.0, 11.0, 9.0, 10.0, 99.0, 10.5, 98.0])
    flagged, _ = clean(frame, (tm.outliers("x", over="1d", least=4, flag="far"),), known_at="known")
    assert flagged["far"].to_list() == [False] * 4 + [True, False, True]
    dropped, (count,) = clean(frame, (tm.outliers("x", over="1d", least=4),), known_at="known")
    assert dropped["id"].to_list() == [0, 1, 2, 3, 5]
    assert count["dropped"] == 2
    clipped, _ = clean(frame, (tm.outliers("x", over="1d", least=4, method="z", then="clip"),), known_at="known")
    assert clipped["x"][4] == pytest.approx(10 + 3 * (2 / 3) ** 0.5)
    emptied, _ = clean(frame, (tm.outliers("x", over="1d", least=4, then="null"),), known_at="known")
    assert emptied["x"].to_list() == [10.0, 11.0, 9.0, 10.0, None, 10.5, None]


def test_values_without_spread_judge_nothing() -> None:
    frame = hourly([0, 1, 2, 3], x=[0.0, 0.0, 0.0, 5.0])
    for method in ("iqr", "z"):
        step = tm.outliers("x", over="1d", least=2, method=method)
        assert clean(frame, (step,), known_at="known")[0].height == 4


def test_missing_values_are_filled_from_the_past_of_their_group() -> None:
    frame = hourly([0, 1, 2, 3, 30], g=["a", "a", "b", "a", "a"], x=[1.0, 4.0, 9.0, None, None])
    for statistic, value in (("mean", 2.5), ("median", 2.5), ("min", 1.0), ("max", 4.0), ("last", 4.0)):
        step = tm.fill("x", trailing=statistic, over="6h", by="g")  # type: ignore[arg-type]
        assert clean(frame, (step,), known_at="known")[0]["x"].to_list() == [1.0, 4.0, 9.0, value, None]
    few = tm.fill("x", trailing="mean", over="6h", by="g", least=3)
    assert clean(frame, (few,), known_at="known")[0]["x"][3] is None


def test_the_first_known_of_duplicates_stays() -> None:
    frame = hourly([5, 0, 1, 30, 0], who=["a", "a", "a", "a", None], what=[1, 1, 2, 1, 1])
    made, (count,) = clean(frame, (tm.duplicates("who", "what", within="6h"),), known_at="known")
    assert made["id"].to_list() == [1, 2, 3, 4]
    assert count["dropped"] == 1
    made, _ = clean(frame, (tm.duplicates("who", "what"),), known_at="known")
    assert made["id"].to_list() == [1, 2, 4]


def test_rows_with_a_null_in_a_compared_column_are_no_duplicates() -> None:
    frame = hourly([0, 1, 2, 3, 4, 5], who=["a", None, None, "a", "a", "a"], what=[None, 1.0, 1.0, None, 1.0, 1.0])
    for within in (None, "1d"):
        made, (count,) = clean(frame, (tm.duplicates("who", "what", within=within),), known_at="known")
        assert made["id"].to_list() == [0, 1, 2, 3, 4]
        assert count["dropped"] == 1
    nans = hourly([0, 1], what=[float("nan")] * 2)
    assert clean(nans, (tm.duplicates("what"),), known_at="known")[0].height == 2


def test_of_duplicates_known_at_one_time_the_first_by_key_stays_whatever_their_order() -> None:
    frame = hourly([0, 0, 0], x=[1, 1, 1])
    for order in ([0, 1, 2], [2, 0, 1]):
        made, _ = clean(frame[order], (tm.duplicates("x"),), known_at="known", key=["id"])
        assert made["id"].to_list() == [0]


SOURCE = tm.Source("readings", tm.files("*.csv"), key="id", event_time="at", known_at="known")
BACKWARDS: list[Step] = [
    tm.outliers("x", over="10h", by="g", least=3),
    tm.outliers("x", over="10h", method="z", least=3, then="clip"),
    tm.fill("x", trailing="median", over="5h", by="g"),
    tm.fill("x", trailing="last", over="9h"),
    tm.duplicates("g", "x", within="8h"),
    tm.balance("g", over="20h", least=3, weight="weight"),
    tm.sample({"a": 0.5}, by="g", otherwise=1.0, weight="w"),
    tm.fill("x", trailing="mean", over="9h"),
]
readings = st.lists(
    st.tuples(
        st.integers(0, 30), st.integers(0, 30), st.none() | st.sampled_from("ab"),
        st.none() | st.sampled_from([1.0, 2.0, 3.0, 50.0]),
    ),
    min_size=1, max_size=25,
)  # fmt: skip


def stored(rows: list[tuple[int, int, str | None, float | None]]) -> pl.DataFrame:
    """All versions of the source's rows: (event time, known-at, g, x), each its own key."""
    frame = pl.DataFrame(rows, {"at": pl.Int64, "known": pl.Int64, "g": pl.String, "x": pl.Float64}, orient="row")
    frame = frame.with_columns((pl.col("at", "known") * HOUR + T0).cast(TIME), id=pl.int_range(pl.len()))
    return frame.with_columns(
        _known_at="known",
        _seq=pl.int_range(pl.len(), dtype=pl.Int64),
        _tombstone=pl.lit(value=False),
        _tick="known",
        _history=pl.lit(value=True),
    )


@given(readings, st.lists(st.sampled_from(BACKWARDS), min_size=1, max_size=4), st.integers(0, 31))
@settings(deadline=None, max_examples=150)
def test_what_comes_later_changes_nothing(rows: list[Any], steps: list[Step], cut: int) -> None:
    table = tm.clean("cleaned", SOURCE, steps)
    versions = stored(rows)
    assert cut_test(table, {"readings": versions}, [cut * HOUR + T0]) is None
    # Said once more without the engine's own proof: rows known before the cut are the same with the rest and without.
    moment = pl.lit(cut * HOUR + T0).cast(TIME)
    early = evaluate(table, {"readings": versions.filter(pl.col("known") < moment)})
    whole = evaluate(table, {"readings": versions}).filter(pl.col("known") < moment)
    assert early.equals(whole)


@given(readings, st.lists(st.sampled_from(BACKWARDS), min_size=1, max_size=4), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=100)
def test_the_order_of_arrival_changes_nothing(rows: list[Any], steps: list[Step], chance: Any) -> None:
    # Of rows known at one time nothing but event time and key says which is first; here no two are alike in both.
    versions = stored(list({row[:2]: row for row in rows}.values()))
    table = tm.clean("cleaned", SOURCE, steps)
    shuffled = versions[chance.sample(range(versions.height), versions.height)]
    assert evaluate(table, {"readings": versions}).equals(evaluate(table, {"readings": shuffled}))


# Samples ----------------------------------------------------------------------------------------------------------


def test_samples_hang_on_the_key_alone() -> None:
    frame = pl.DataFrame({"id": range(2000), "x": [1, 2] * 1000})
    small, _ = clean(frame[:1000], (tm.sample(0.3, weight="w"),), known_at=None, key=["id"])
    large, (count,) = clean(frame[::-1], (tm.sample(0.3, weight="w"),), known_at=None, key=["id"])
    assert set(small["id"]) == {each for each in large["id"] if each < 1000}
    assert 500 < large.height < 700
    assert count["dropped"] == 2000 - large.height
    assert large["w"].unique().to_list() == pytest.approx([1 / 0.3])
    other, _ = clean(frame, (tm.sample(0.3, seed=1),), known_at=None, key=["id"])
    assert 100 < len(set(other["id"]) & set(large["id"])) < 260  # 180 by chance


def test_shares_by_value_and_weights_that_make_up_for_them() -> None:
    frame = pl.DataFrame({"id": range(5000), "kind": (["fraud"] + ["fine"] * 9) * 500})
    step = tm.sample({"fraud": 1.0, "fine": 0.1}, by="kind", weight="w")
    made, _ = clean(frame, (step,), known_at=None, key=["id"])
    kept = dict(made["kind"].value_counts().iter_rows())
    assert kept["fraud"] == 500
    assert 380 < kept["fine"] < 520
    assert made["w"].sum() == pytest.approx(5000, rel=0.15)


def test_frequent_values_are_thinned_out_to_the_rarest() -> None:
    hours = list(range(4000))
    frame = hourly(hours, kind=["rare" if hour % 8 == 0 else "often" for hour in hours])
    step = tm.balance("kind", over="2000h", least=50, weight="w")
    made, _ = clean(frame, (step,), known_at="known", key=["id"])
    late = made.filter(pl.col("id") > 500)
    kept = dict(late["kind"].value_counts().iter_rows())
    assert 0.8 < kept["often"] / kept["rare"] < 1.25
    assert late["w"].sum() == pytest.approx(3499, rel=0.15)


def test_a_sample_of_a_sample_has_its_share() -> None:
    frame = pl.DataFrame({"id": range(4000), "x": ["a"] * 4000})
    twice = (tm.sample(0.5), tm.sample({"a": 0.5}, by="x"))
    assert 850 < clean(frame, twice, known_at=None, key=["id"])[0].height < 1150


# Counts and errors ------------------------------------------------------------------------------------------------


def test_steps_inside_a_function_are_counted() -> None:
    frame = pl.DataFrame({"x": [None, 1, 99]}).lazy()
    with counting() as runs:
        runs.append([])
        made = tm.apply(frame, [tm.fill("x", 0), tm.invalid(tm.between("x", 0, 10))]).collect()
        runs.append([])
        tm.apply(frame, [tm.fill("x", 0)])
    assert made["x"].to_list() == [0, 1]
    total = added(runs)
    assert [(each["step"], each["rows"], each["filled"], each["dropped"]) for each in total] == [
        ("fill x", 6, 2, 0), ("invalid x", 3, 0, 1)
    ]  # fmt: skip
    assert tm.apply(frame, []).collect().height == 3  # nobody counts


def test_a_report_adds_up_what_came_row_by_row() -> None:
    step = {"step": "fill x", "rows": 2, "filled": 1}
    bodies: list[dict[str, Any]] = [
        {"table": "a", "cleaned": {"more": False, "steps": [step]}},
        {"table": "a", "cleaned": {"more": True, "steps": [step]}},
        {"table": "b", "cleaned": {"more": False, "steps": [step]}},
        {"table": "b", "cleaned": {"more": False, "steps": [step]}},
        {"table": "c", "rows": 1},
    ]
    assert report(bodies) == {"a": [{"step": "fill x", "rows": 4, "filled": 2}], "b": [step]}


def test_what_a_step_lacks_is_named() -> None:
    frame = pl.DataFrame({"price": [1.0], "id": [1]})
    with pytest.raises(RequestError, match=r"'fill prize' reads 'prize'.*Did you mean 'price'"):
        clean(frame, (tm.fill("prize", 0),), known_at=None)
    with pytest.raises(RequestError, match="looks back: say when rows were known"):
        clean(frame, (tm.duplicates("price"),), known_at=None)
    with pytest.raises(RequestError, match="'id' holds no times"):
        clean(frame, (tm.duplicates("price"),), known_at="id")
    with pytest.raises(RequestError, match="draws rows by their key"):
        clean(frame, (tm.sample(0.5),), known_at=None)
    with pytest.raises(TypeError, match=r"Between is no cleaning step. Write tm.invalid\(check\)"):
        tm.clean("c", SOURCE, [tm.between("x", 0, 1)])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="takes a value, or trailing"):
        tm.fill("x")
    with pytest.raises(TypeError, match="takes one share, or by="):
        tm.sample(0.5, by="x")


def test_text_of_a_row_that_is_no_number_fills_nothing() -> None:
    frame = pl.DataFrame({"x": [1.0, None, None], "s": ["7", "n/a", "2.5"]})
    made, _ = clean(frame, (tm.fill("x", pl.col("s")),), known_at=None)
    assert made["x"].to_list() == [1.0, None, 2.5]
    with pytest.raises(pl.exceptions.InvalidOperationError):
        clean(frame, (tm.fill("x", "n/a"),), known_at=None)


def test_one_value_may_stand_for_missing() -> None:
    assert one(["1", "n/a", "-999"], tm.cast("x", "number", missing="n/a")) == [1.0, None, -999.0]
    assert one(["1", "n/a", "-999"], tm.cast("x", "number", missing=-999)) == [1.0, None, None]
