"""The compiled kernel of online lookups against a literal reading of the rows, whole and cut into blocks."""

from __future__ import annotations

import contextlib
import itertools
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tidemill.kernels import compiled
from tidemill.testing.oracle import reduce

native: Any = compiled.load("online")
pytestmark = pytest.mark.skipif(native is None, reason="the compiled kernels were not built")

ALWAYS, FOREVER = -(2**63), 2**63 - 1
FUNCTIONS = ("sum", "mean", "std", "min", "max")
KINDS = "fitbu"
PLACE = {kind: place for place, kind in enumerate(KINDS)}
WIDTHS = (0, 1, 7, 10**6)

#: (function, value or -1, width, share)
FEATURES = tuple(
    (function, place, width, share)
    for width in WIDTHS
    for function, place, share in (
        ("count", -1, 0.0),
        ("since_last", -1, 0.0),
        *((function, place, 0.0) for function in FUNCTIONS for place in (0, 1)),
        ("share", 1, 0.0),
        *(("quantile", place, share) for place in (0, 1) for share in (0.0, 0.3, 0.5, 1.0)),
        *((function, place, 0.0) for function in ("first", "last", "n_unique") for place in range(5)),
    )
)
FEW = tuple(each for each in FEATURES if each[0] not in ("quantile", "n_unique"))
LATEST = tuple(("latest", place, 7, 0.0) for place in range(5))

Row = dict[str, Any]

_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "time": st.integers(0, 12),
            "known": st.integers(0, 12),
            "end": st.sampled_from((FOREVER, FOREVER, 0, 5, 9, 10, 11)),
            "f": st.one_of(
                st.none(),
                st.sampled_from((0.1, -0.1, 0.0, -0.0, 5e-324, 1e308, -1e308, 1e16, 1.0)),
                st.floats(allow_nan=False, allow_infinity=False),
            ),
            "i": st.one_of(st.none(), st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1)),
            "t": st.one_of(st.none(), st.sampled_from(("", "a", "b", "ünï")), st.text(max_size=5)),
            "b": st.one_of(st.none(), st.booleans()),
            "u": st.one_of(st.none(), st.sampled_from((0, 1, 2**64 - 1))),
        }
    ),
    max_size=20,
)


def ordered(rows: Sequence[Row]) -> list[Row]:
    numbered = [{**row, "seq": seq} for seq, row in enumerate(rows)]
    return sorted(numbered, key=lambda row: (row["time"], row["known"], row["seq"]))


def blob(rows: Sequence[Row]) -> bytes:
    records, texts = b"", b""
    for row in rows:
        text = None if row["t"] is None else row["t"].encode()
        records += struct.pack("<qqqq", row["time"], row["known"], row["seq"], row["end"])
        records += struct.pack(
            "<d?q?", 0.0 if row["f"] is None else row["f"], row["f"] is not None, row["i"] or 0, row["i"] is not None
        )
        records += struct.pack("<Ii", len(texts), -1 if text is None else len(text))
        records += struct.pack("<??Q?", bool(row["b"]), row["b"] is not None, row["u"] or 0, row["u"] is not None)
        texts += text or b""
    return struct.pack("<II", len(rows), 0) + records + texts if rows else b""


def directory(plan: Any, blocks: Sequence[Sequence[Row]], *, summarised: bool, timeless: bool = False) -> bytes:
    entries, summaries = b"", b""
    for number, rows in enumerate(blocks):
        summary = native.summary(plan, blob(rows)) if summarised else b""
        entries += struct.pack("<IIqqq", number * 7, len(rows), 0, 0, 0)
        times = [row["time"] for row in rows]
        opened = ALWAYS if timeless else max(row["known"] for row in rows)
        entries += struct.pack("<qqqq", min(times), max(times), opened, min(row["end"] for row in rows))
        entries += struct.pack("<II", 32 + 72 * len(blocks) + len(summaries), len(summary))
        summaries += summary
    return struct.pack("<IIqqq", 0, len(blocks), 0, 0, 0) + entries + summaries


def noted(head: bytes) -> bytes:
    """Return a head with the note that the group has blocks."""
    return head[:4] + b"\1" + head[5:]


def record(*heads: bytes) -> bytes:
    """Return a record of heads, numbered from 0."""
    listed = [struct.pack("<HI", number, len(head)) for number, head in enumerate(heads)]
    return b"".join((struct.pack("<H", len(heads)), *listed, *heads))


def brute(rows: Sequence[Row], features: Sequence[tuple[str, int, int, float]], t: int) -> list[Any]:
    answers: list[Any] = []
    for function, place, width, share in features:
        inside = [
            row for row in rows if row["known"] < t <= row["end"] and row["time"] < t and row["time"] >= t - width
        ]
        values = [row[KINDS[place]] for row in inside] if place >= 0 else []
        if function == "count":
            answers.append(len(inside))
        elif function == "since_last":
            answers.append((t - inside[-1]["time"]) / 1e6 if inside else None)
        elif function == "latest":
            answers.append(values[-1] if values else None)
        else:
            answers.append(reduce(function, values, share))  # type: ignore[arg-type]
    return answers


def bits(values: Sequence[Any]) -> list[Any]:
    return [(type(value), struct.pack("<d", value) if isinstance(value, float) else value) for value in values]


def cut(rows: Sequence[Row], size: int) -> tuple[list[list[Row]], list[Row]]:
    """Cut rows into blocks of ``size`` and a head, which holds the last."""
    blocks = [list(each) for each in itertools.batched(rows, size)] if hasattr(itertools, "batched") else [
        list(rows[first : first + size]) for first in range(0, len(rows), size)
    ]  # fmt: skip
    return blocks[:-1], blocks[-1] if blocks else []


@given(rows=_ROWS, t=st.integers(-1, 14), size=st.integers(1, 6), chosen=st.sampled_from((FEATURES, FEW, LATEST)))
@settings(deadline=None, max_examples=150)
@example(rows=[], t=0, size=1, chosen=FEATURES)
def test_it_is_a_literal_reading(rows: list[Row], t: int, size: int, chosen: Any) -> None:
    rows = ordered(rows)
    plan = native.plan(False, KINDS, chosen)
    want = bits(brute(rows, chosen, t))
    assert bits(native.answer(plan, t, blob(rows), None, ())) == want
    blocks, head = cut(rows, size)
    for summarised in (True, False):
        listing = directory(plan, blocks, summarised=summarised)
        needed = native.needs(plan, t, listing)
        assert list(needed) == sorted(set(needed))
        read = tuple(blob(blocks[number // 7]) for number in needed)
        assert bits(native.answer(plan, t, blob(head), listing, read)) == want


@given(rows=_ROWS, t=st.integers(0, 14))
@settings(deadline=None, max_examples=30)
def test_a_timeless_table_shows_its_rows_whenever_it_is_asked(rows: list[Row], t: int) -> None:
    rows = [{**row, "time": ALWAYS, "known": 100} for row in ordered(rows)]
    chosen = tuple(("latest", place, -1, 0.0) for place in range(5))
    plan = native.plan(True, KINDS, chosen)
    shown = [row for row in rows if t <= row["end"]]
    want = [shown[-1][kind] for kind in KINDS] if shown else [None] * 5
    assert bits(native.answer(plan, t, blob(rows), None, ())) == bits(want)
    blocks, head = cut(rows, 2)
    listing = directory(plan, blocks, summarised=True, timeless=True)
    read = tuple(blob(blocks[number // 7]) for number in native.needs(plan, t, listing))
    assert bits(native.answer(plan, t, blob(head), listing, read)) == bits(want)


def row(time: int, seq: int = 0, **values: Any) -> Row:
    return {
        "time": time,
        "known": 0,
        "end": FOREVER,
        "seq": seq,
        "f": 1.0,
        "i": 1,
        "t": "a",
        "b": True,
        "u": 1,
        **values,
    }


def test_only_blocks_on_the_edge_of_a_window_are_read() -> None:
    blocks = [[row(time, f=0.1) for time in range(10 * number, 10 * number + 10)] for number in range(10)]
    plan = native.plan(False, KINDS, (("sum", 0, 50, 0.0), ("count", -1, 30, 0.0), ("max", 0, 50, 0.0)))
    listing = directory(plan, blocks, summarised=True)
    assert native.needs(plan, 95, listing) == (7 * 4, 7 * 6, 7 * 9)  # 45 to 95, and 65 to 95
    assert native.needs(plan, 100, listing) == ()
    read = tuple(map(blob, (blocks[4], blocks[6], blocks[9])))
    assert native.answer(plan, 95, None, listing, read) == (5.0, 30, 0.1)
    last = native.plan(False, KINDS, (("last", 0, 90, 0.0),))
    listing = directory(last, [*blocks[:8], [row(85, f=None)], [row(90, f=None)]], summarised=True)
    assert native.needs(last, 100, listing) == (7 * 7,)  # the newest block with a value
    first = native.plan(False, KINDS, (("first", 0, 90, 0.0),))
    assert native.needs(first, 100, listing) == (7 * 1,)


def test_many_rows_and_distinct_values() -> None:
    rows = [row(seq, seq, f=float(seq % 1000), i=seq, t=str(seq % 700)) for seq in range(6000)]
    features = (
        ("n_unique", 0, 10**6, 0.0),
        ("n_unique", 2, 10**6, 0.0),
        ("quantile", 1, 10**6, 0.25),
        ("sum", 1, 6000, 0.0),
    )
    plan = native.plan(False, KINDS, features)
    assert native.answer(plan, 6000, blob(rows), None, ()) == (1000, 700, 0.25 * 5999, 6000 * 5999 / 2)


def test_since_last_is_correctly_rounded_beyond_the_exact_integers() -> None:
    plan = native.plan(False, "", (("since_last", -1, 2**62, 0.0),))
    time, t = -(2**61) - 1, 2**60 + 12345
    one = struct.pack("<IIqqqq", 1, 0, time, time, 0, FOREVER)
    assert native.answer(plan, t, one, None, ()) == ((t - time) / 10**6,)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((False, "x", ()), ValueError, "one of f, i, u, b and t"),
        ((False, "f", (("median", 0, 1, 0.0),)), ValueError, "no function median"),
        ((False, "f", (("sum", 1, 1, 0.0),)), ValueError, "sum of value 1"),
        ((False, "f", (("sum", -1, 1, 0.0),)), ValueError, "sum of value -1"),
        ((False, "f", (("count", 0, 1, 0.0),)), ValueError, "count of value 0"),
        ((False, "t", (("sum", 0, 1, 0.0),)), ValueError, "no number"),
        ((False, "f", (("sum", 0, -1, 0.0),)), ValueError, "has a width"),
        ((False, "f", (("quantile", 0, 1, 1.5),)), ValueError, "between 0 and 1"),
        ((False, "f", (("quantile", 0, 1, math.nan),)), ValueError, "between 0 and 1"),
        ((False, "f", (("latest", 0, 1, 0.0), ("sum", 0, 1, 0.0))), ValueError, "stands alone"),
        ((False, "f", (("latest", 0, 1, 0.0), ("latest", 0, 2, 0.0))), ValueError, "one width"),
        ((False, "f", ("sum",)), TypeError, "tuple"),
        ((False, "f", (("sum", 0),)), TypeError, "takes exactly 4|argument"),
        ((False, b"f", ()), TypeError, "a text and a tuple"),
        ((False,), TypeError, "takes"),
    ],
)
def test_what_makes_no_plan_is_refused(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        native.plan(*arguments)


def test_wrong_arguments_are_refused() -> None:
    plan = native.plan(False, KINDS, FEATURES)
    one = blob([row(1)])
    views, names = ((plan, 0),), ("n",) * len(FEATURES)

    def fetch(*_: int) -> tuple[Any, Any]:
        return None, ()

    calls: tuple[Callable[[], Any], ...] = (
        lambda: native.answer(plan, 1, one, None),
        lambda: native.answer(object(), 1, one, None, ()),
        lambda: native.answer(plan, "1", one, None, ()),
        lambda: native.answer(plan, 1, "text", None, ()),
        lambda: native.answer(plan, 1, one, None, []),
        lambda: native.needs(plan, 1, None),
        lambda: native.answers((plan,), 1, record(one)),
        lambda: native.answers(((plan, -1),), 1, record(one)),
        lambda: native.answers(((plan, 0),), 1, "text"),
        lambda: native.answers(((plan, 0),), 1, one),
        lambda: native.columns(views, 1, (record(one),), fetch, names),
        lambda: native.columns(views, 1, [record(one)], fetch, ("n",)),
        lambda: native.columns(views, 1, ["text"], fetch, names),
        lambda: native.columns(views, 1, [record(one)], fetch, (1,) * len(FEATURES)),
        lambda: native.columns(((plan,),), 1, [record(one)], fetch, names),
        lambda: native.columns(((one, 0),), 1, [record(one)], fetch, names),
        lambda: native.columns(views, 1, [record(noted(one))], lambda *_: (None, None), names),
        lambda: native.columns(views, 1, [record(noted(one))], lambda *_: (), names),
        lambda: native.summary(plan),
        lambda: native.summary(plan, 1),
    )
    for call in calls:
        with pytest.raises((TypeError, ValueError, OverflowError)):
            call()
    with pytest.raises(OverflowError):
        native.answer(plan, 2**63, one, None, ())
    listing = directory(plan, [[row(1)]], summarised=True)
    for blocks in ((), (one, one)):
        with pytest.raises(ValueError, match="number of blocks"):
            native.answer(plan, 5, None, listing, blocks)


@given(data=st.data(), rows=_ROWS, t=st.integers(0, 14))
@settings(deadline=None, max_examples=200)
def test_no_bytes_can_harm_it(data: st.DataObject, rows: list[Row], t: int) -> None:
    rows = ordered(rows)
    chosen = data.draw(st.sampled_from((FEATURES, FEW, LATEST)))
    plan = native.plan(False, KINDS, chosen)
    blocks, head = cut(rows, 3)
    blobs = [blob(head), directory(plan, blocks, summarised=True), *map(blob, blocks)]
    for place, each in enumerate(blobs):
        if each:
            spoilt = bytearray(each)
            for at in data.draw(st.lists(st.integers(0, len(each) - 1), max_size=4)):
                spoilt[at] = data.draw(st.sampled_from((0, 1, 127, 128, 255)))
            blobs[place] = bytes(spoilt[: data.draw(st.sampled_from((len(each), len(each) // 2, 40, 9, 3)))])
    try:
        needed = native.needs(plan, t, blobs[1])
    except ValueError:
        needed = ()
    read = tuple(blobs[2 + number // 7] if number // 7 < len(blocks) else b"" for number in needed)
    names = tuple(f"c{place}" for place in range(len(chosen)))
    shelved = bytearray(record(blobs[0], blobs[0]))
    for at in data.draw(st.lists(st.integers(0, 13), max_size=3)):
        shelved[at] = data.draw(st.sampled_from((0, 1, 2, 255)))
    calls: tuple[Callable[[], Any], ...] = (
        lambda: native.answer(plan, t, blobs[0], None, ()),
        lambda: native.answer(plan, t, blobs[0], blobs[1], read),
        lambda: native.answers(((plan, 1), (plan, 0)), t, shelved),
        lambda: native.columns(((plan, 1),), t, [record(blobs[0], b"x"), None], lambda *_: (blobs[1], read), names),
        lambda: native.columns(((plan, 1),), t, [record(noted(blobs[0]))], lambda *_: (blobs[1], read), names),
        lambda: native.columns(((plan, 0),), t, [shelved], lambda *_: (blobs[1], read), names),
        lambda: native.summary(plan, blobs[0]),
    )
    for call in calls:
        with contextlib.suppress(ValueError):
            call()
