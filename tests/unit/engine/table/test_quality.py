from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.engine.table.quality import judge, kind_of_reason

CHECKS = [
    tm.not_null("n"),
    tm.between("x", 0, 10),
    tm.between("x", None, 5),
    tm.one_of("s", "a", "bb", "größe"),
    tm.one_of("s", "a", "bb", "größe", "a text of many bytes"),
    tm.one_of("n", 1, 2, 3),
    tm.holds("n is not x", pl.col("n") != pl.col("x")),
    tm.holds("never", pl.lit(value=False)),
    tm.one_of("n", 4, 1),
]


def first_reason(row: dict[str, Any], checks: list[Any]) -> str | None:
    """The definition, row by row: a check on null holds, but for not_null."""
    n, x, s = row["n"], row["x"], row["s"]
    reasons = {
        0: "'n' is null" if n is None else None,
        1: f"'x' is {x}, outside 0 to 10" if x is not None and not 0 <= x <= 10 else None,
        2: f"'x' is {x}, above 5" if x is not None and x > 5 else None,
        3: f"'s' is {s}, not one of a, bb, größe" if s not in (None, "a", "bb", "größe") else None,
        4: f"'s' is {s}, not one of a, bb, größe, a text of many bytes"
        if s not in (None, "a", "bb", "größe", "a text of many bytes")
        else None,
        5: f"'n' is {n}, not one of 1, 2, 3" if n not in (None, 1, 2, 3) else None,
        6: "n is not x does not hold" if n is not None and n == x else None,
        7: "never does not hold",
        8: f"'n' is {n}, not one of 4, 1" if n not in (None, 1, 4) else None,
    }
    return next((reasons[CHECKS.index(check)] for check in checks if reasons[CHECKS.index(check)]), None)


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "n": st.none() | st.integers(0, 4),
                "x": st.none() | st.sampled_from([-1.0, 0.0, 2.0, 6.5, 10.0, 11.0]),
                "s": st.none() | st.sampled_from(["a", "bb", "größe", "c", "", "a text of many bytes"]),
            }
        ),
        max_size=12,
    ),
    st.lists(st.sampled_from(CHECKS), max_size=5),
)
@settings(deadline=None, max_examples=200)
def test_each_row_gets_the_reason_of_the_first_check_it_fails(rows: list[dict[str, Any]], checks: list[Any]) -> None:
    frame = pl.DataFrame(rows, {"n": pl.Int64, "x": pl.Float64, "s": pl.String})
    assert judge(frame, checks).to_list() == [first_reason(row, checks) for row in rows]


def test_keys_are_asked_for_first_and_of_exempt_rows_nothing_else() -> None:
    frame = pl.DataFrame({"k": [None, 1, None, 1], "x": [-1, -1, -1, 1], "gone": [False, True, True, False]})
    reasons = judge(frame, [tm.between("x", 0, None)], key=["k"], exempt=pl.col("gone"))
    null = "'k' is null, and it is part of the key"
    assert reasons.to_list() == [null, None, null, None]
    assert judge(frame, [tm.between("x", 0, None)], exempt=pl.col("gone"))[0] == "'x' is -1, below 0"


def test_a_check_that_cannot_be_evaluated_raises() -> None:
    with pytest.raises(pl.exceptions.PolarsError):
        judge(pl.DataFrame({"x": ["a"]}), [tm.between("x", 0, 1)])


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("'x' is 12.5, outside 0 to 10", "'x' is …, outside 0 to 10"),
        ("'s' is a, b, not one of a, bb", "'s' is …, not one of a, bb"),
        ("'n': 'seven' is not a whole number", "'n': … is not a whole number"),
        ("not a JSON object: it ends (byte 7)", "not a JSON object"),
        ("'n' is null", "'n' is null"),
        ("3 fields where the header has 4", "3 fields where the header has 4"),
        (
            "'q' is not a column of the contract. Did you mean 's'?",
            "'q' is not a column of the contract. Did you mean 's'?",
        ),
    ],
)
def test_reasons_are_alike_but_for_the_value(reason: str, kind: str) -> None:
    assert pl.select(kind_of_reason(pl.lit(reason))).item() == kind
