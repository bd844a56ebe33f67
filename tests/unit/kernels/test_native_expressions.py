"""The compiled kernel for on-demand expressions against the plain interpreter, and against hostile callers."""

from __future__ import annotations

import array
import datetime as dt
import gc
import math
import re
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.kernels import compiled
from tidemill.kernels.expressions import Plain, machine
from tidemill.kernels.xxh64 import bucket, xxh64

if compiled.load("expressions") is None:
    pytest.skip("the compiled kernel is not built", allow_module_level=True)
native: Any = compiled.load("expressions")

HEADER = Path(__file__).parents[3] / "src/tidemill/kernels/native/expressions.h"
#: Of every instruction: the kinds of its arguments, the kind of its result, and what its number means.
FORMS = {
    name: (arguments, result, number)
    for name, arguments, result, number in re.findall(r'X\((\w+), "([fis?]+)", \'(\w)\', \'(.)\'\)', HEADER.read_text())
}

#: The specification's own test vectors (XXH64, seed 0).
VECTORS = {
    b"": 0xEF46DB3751D8E999, b"a": 0xD24EC4F1A98C6E5B, b"abc": 0x44BC2CF5AD770999, b"as": 0x1C330FB2D66BE179,
    b"asd": 0x631C37CE72A97393, b"asdf": 0x415872F599CEA71E,
    b"Call me Ishmael. Some years ago--never mind how long precisely-": 0x02A2E85470D6FD96,
}  # fmt: skip

FLOATS = [
    0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, math.nan, math.inf, -math.inf, 5e-324, 1e-300, 1.7976931348623157e308,
    4503599627370495.5, 0.49999999999999994, 2.0**63, -(2.0**63), 3.4028235677973366e38, 1e-45, 7.0, 3.0,
]  # fmt: skip
WHOLES = [
    0,
    1,
    -1,
    2,
    7,
    127,
    128,
    -128,
    -129,
    255,
    256,
    2**31,
    -(2**31),
    2**53 + 1,
    2**62,
    2**63 - 1,
    -(2**63),
    719_468,
]
MICROS = [
    0, -1, 86_400_000_000, 951_782_400_000_000, -62_135_596_800_000_000, -62_135_596_800_000_001,
    253_402_300_799_999_999, 253_402_300_800_000_000, 1_709_164_800_000_000, -2_203_977_600_000_000,
]  # fmt: skip
TEXTS = ["", "a", "ab", "abc", "B", "é", "ß", "日本", "🙂", "\x00", "x" * 40, "Nowhere", "Far/East"]
ZONE = ("z", (-(10**15), 0, 10**15), (3_600_000_000, -7_200_000_000, 0, 45_000_000_000))
SETS = {
    "f": ("f", tuple(sorted({1.0, 2.5, -0.5, 7.0}))),
    "i": ("i", (-1, 0, 7, 2**63 - 1)), "s": ("s", ("", "a", "abc", "é")),
}  # fmt: skip

floats = st.sampled_from(FLOATS) | st.floats(width=64)
wholes = st.sampled_from(WHOLES + MICROS) | st.integers(-(2**63), 2**63 - 1) | st.integers(-10, 10)
texts = st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
OF_KIND: dict[str, st.SearchStrategy[Any]] = {"f": floats, "i": wholes, "s": texts}
INPUTS = [
    ("d", "d"), ("f", "f"), ("t", "?"), ("q", "q"), ("i", "i"), ("h", "h"), ("b", "b"), ("I", "I"),
    ("H", "H"), ("B", "B"),
    ("s", "s"), ("D", "D"), ("T", "T"), ("s2", "s"), ("d2", "d"),
]  # fmt: skip
DATES = st.dates()
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "d": floats, "f": floats, "?": st.booleans(), "q": wholes, "T": wholes, "s": texts, "D": DATES,
    **{letter: st.integers(-(2**bits), 2**bits - 1) for letter, bits in (("i", 31), ("h", 15), ("b", 7))},
    **{letter: st.integers(0, 2**bits - 1) for letter, bits in (("I", 32), ("H", 16), ("B", 8))},
}  # fmt: skip


def number_of(meaning: str, of_kind: str) -> st.SearchStrategy[int]:
    """The numbers that an instruction may carry: tables are ``ZONE`` and those of ``SETS``."""
    if meaning == "w":
        return st.sampled_from((8, 16, 32, 64, -8, -16, -32))
    if meaning == "n":
        return st.integers(1, 2**31 - 1) | st.integers(1, 40)
    return st.just(1 + list(SETS).index(of_kind) if meaning == "t" else 0)


def kind(letter: str) -> str:
    return "f" if letter in "df" else "s" if letter == "s" else "i"


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or struct.pack("<d", one) == struct.pack("<d", other)
    return bool(one == other)


@st.composite
def programs(draw: st.DrawFn) -> tuple[Any, ...]:
    """Any program that is well formed."""
    kinds = [kind(letter) for _, letter in INPUTS]
    constants: list[tuple[str, Any]] = []
    for of_kind in draw(st.lists(st.sampled_from("fis"), max_size=4)):
        constants.append((of_kind, draw(st.none() | OF_KIND[of_kind])))
        kinds.append(of_kind)
    tables = [ZONE, *SETS.values()]
    code = []
    for _ in range(draw(st.integers(1, 12))):
        name = draw(st.sampled_from(sorted(FORMS)))
        arguments, result, number = FORMS[name]
        recent = list(reversed(range(len(kinds))))
        chosen = tuple(
            draw(st.sampled_from([each for each in recent if wanted in ("?", kinds[each])])) for wanted in arguments
        )
        code.append((name, chosen, draw(number_of(number, arguments[0]))))
        kinds.append(result)
    letters = {"f": "df", "i": "qT", "s": "s"}
    outputs = [(place, draw(st.sampled_from(letters[each]))) for place, each in enumerate(kinds)]
    return INPUTS, constants, tables, code, outputs


def row_of(draw: st.DrawFn) -> dict[str, Any]:
    return {name: draw(st.none() | VALUES[letter]) for name, letter in INPUTS}


rows = st.composite(row_of)()


def both(program: tuple[Any, ...]) -> tuple[Any, Any]:
    compiled_one, plain = native.Program(*program), Plain(*program)
    for each in (compiled_one, plain):
        assert each.add_zone("Far/East", *ZONE[1:])
        assert each.add_zone("Nowhere", None, None)
    return compiled_one, plain


def agree(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_the_machine_is_the_compiled_one() -> None:
    assert isinstance(machine([], [], [], [], []), native.Program)
    assert len(FORMS) > 90


@pytest.mark.parametrize("content", VECTORS)
def test_the_hash_has_its_published_values(content: bytes) -> None:
    assert xxh64(content) == VECTORS[content]
    assert native.xxh64(content) == VECTORS[content]


@given(content=st.binary(max_size=200))
def test_the_hashes_agree(content: bytes) -> None:
    assert native.xxh64(content) == xxh64(content)


@given(program=programs(), row=rows)
@settings(max_examples=200, deadline=None)
def test_programs_agree_with_the_plain_interpreter(program: tuple[Any, ...], row: dict[str, Any]) -> None:
    fast, plain = both(program)
    got, expected = fast.row(row), plain.row(row)
    assert agree(got, expected), (got, expected)


@pytest.mark.parametrize("name", sorted(FORMS))
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_every_instruction_agrees_with_the_plain_interpreter(name: str, data: st.DataObject) -> None:
    arguments, result, meaning = FORMS[name]
    kinds = [data.draw(st.sampled_from("fis")) if each == "?" else each for each in arguments]
    inputs = [(f"x{place}", {"f": "d", "i": "q", "s": "s"}[each]) for place, each in enumerate(kinds)]
    code = [(name, tuple(range(len(kinds))), data.draw(number_of(meaning, kinds[0])))]
    letter = {"f": "d", "i": "q", "s": "s"}[result]
    fast, plain = both((inputs, [], [ZONE, *SETS.values()], code, [(len(kinds), letter)]))
    for _ in range(3):
        row = {name: data.draw(st.none() | OF_KIND[each]) for (name, _), each in zip(inputs, kinds, strict=True)}
        got, expected = fast.row(row), plain.row(row)
        assert agree(got, expected), (code, row, got, expected)


def bits(flags: list[bool]) -> bytes:
    packed = bytearray((len(flags) + 7) // 8)
    for place, flag in enumerate(flags):
        packed[place // 8] |= flag << place % 8
    return bytes(packed)


def single(value: float) -> float:
    """Return what float32 makes of a number."""
    try:
        (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        return math.copysign(math.inf, value)
    return float(rounded)


def column(values: list[Any], letter: str, offset: int) -> tuple[Any, int, Any, Any]:
    """Lay a column out as Arrow does, behind ``offset`` rows of something else."""
    filler: Any = {"s": "zz", "?": True, "D": dt.date(2001, 2, 3)}.get(letter, 3)
    values = [filler] * offset + values
    valid = bits([value is not None for value in values])
    if letter == "s":
        encoded = [b"" if value is None else value.encode() for value in values]
        ends = [0]
        for each in encoded:
            ends.append(ends[-1] + len(each))
        return b"".join(encoded), offset, valid, array.array("q", ends)
    if letter == "?":
        return bits([bool(value) for value in values]), offset, valid, None
    if letter == "D":
        values = [value and value.toordinal() - 719_163 for value in values]
    code = {"T": "q", "D": "i"}.get(letter, letter)
    if letter == "f":
        values = [value and single(value) for value in values]
    return (
        struct.pack(f"<{len(values)}{code}", *(0 if value is None else value for value in values)),
        offset,
        valid,
        None,
    )


def unpacked(result: Any, letter: str, count: int) -> list[Any]:
    validity, data, ends = result
    if letter == "s":
        limits = struct.unpack(f"<{count + 1}q", ends)
        values: list[Any] = [data[limits[i] : limits[i + 1]].decode() for i in range(count)]
    else:
        values = list(struct.unpack(f"<{count}{ {'T': 'q'}.get(letter, letter) }", data))
    return [value if validity is None or validity[i // 8] >> i % 8 & 1 else None for i, value in enumerate(values)]


@given(
    program=programs(),
    several=st.lists(rows, min_size=1, max_size=4),
    offset=st.integers(0, 9),
    times=st.sampled_from((1, 50)),
)
@settings(max_examples=60, deadline=None)
def test_many_rows_are_one_row_many_times(
    program: tuple[Any, ...], several: list[dict[str, Any]], offset: int, times: int
) -> None:
    fast, _ = both(program)
    several *= times  # beyond one block
    columns = [column([row[name] for row in several], letter, offset) for name, letter in INPUTS]
    alone = [fast.row(row) for row in several]
    together = fast.columns(columns, len(several))
    if isinstance(together, list):
        letters = [letter for _, letter in program[4]]
        outputs = [unpacked(each, letter, len(several)) for each, letter in zip(together, letters, strict=True)]
        for place, row in enumerate(alone):
            for values, expected, letter in zip(outputs, row, letters, strict=True):
                rounded = single(expected) if letter == "f" and expected is not None else expected
                assert same(values[place], rounded)
    elif together is None:
        assert None in alone or any(isinstance(each, str) for each in alone)
    else:
        assert together in alone


def test_rows_are_checked() -> None:
    program = native.Program([(name, letter) for name, letter in INPUTS], [], [], [], [(0, "d")])
    plain = Plain([(name, letter) for name, letter in INPUTS], [], [], [], [(0, "d")])
    good: dict[str, Any] = dict.fromkeys((name for name, _ in INPUTS), None)
    assert program.row(good) == plain.row(good) == (None,)
    wrong: list[tuple[str, Any, type[Exception]]] = [
        ("d", "1", TypeError), ("d", True, TypeError), ("d", 10**400, OverflowError), ("t", 1, TypeError),
        ("q", 1.0, TypeError), ("q", True, TypeError), ("q", 2**63, OverflowError), ("b", 128, OverflowError),
        ("B", -1, OverflowError), ("s", b"a", TypeError), ("s", "\ud800", UnicodeEncodeError), ("D", 3, TypeError),
        ("T", dt.datetime(2020, 1, 1, tzinfo=dt.UTC), TypeError), ("T", "2020-01-01", TypeError),
    ]  # fmt: skip
    for name, value, error in wrong:
        for each in (program, plain):
            with pytest.raises(error):
                each.row({**good, name: value})
    del good["s"]
    for each in (program, plain):
        with pytest.raises(KeyError, match="s"):
            each.row(good)
    with pytest.raises(TypeError):
        program.row([1])
    assert program.row({**dict.fromkeys((name for name, _ in INPUTS), None), "d": 3}) == (3.0,)


#: A program, part by part, that is well formed; the tests below spoil it.
SOUND: dict[str, Any] = {
    "inputs": [("x", "d"), ("s", "s"), ("z", "s"), ("t", "T")],
    "constants": [("f", 2.0), ("s", "a"), ("i", None)],
    "tables": [("f", (1.0, 2.0)), ZONE],
    "code": [("FADD", (0, 4), 0), ("FIN", (7,), 0), ("LOCAL", (3,), 1), ("LOCALBY", (3, 2), 0)],
    "outputs": [(7, "d"), (8, "?"), (9, "T"), (10, "T")],
}

MALFORMED: list[dict[str, Any]] = [
    {"inputs": None},
    {"inputs": 3},
    {"inputs": [("x",)]},
    {"inputs": [["x", "d"]]},
    {"inputs": [(1, "d")]},
    {"inputs": [("x", "dd")]},
    {"inputs": [("x", "")]},
    {"inputs": [("x", "é")]},
    {"inputs": [("x", "P")]},
    {"inputs": [("x", "d")] * 5000},
    {"inputs": []},
    {"constants": [("f", "a")]},
    {"constants": [("i", 2.5)]},
    {"constants": [("i", 2**63)]},
    {"constants": [("s", "\ud800")]},
    {"constants": [("d", 1.0)]},
    {"constants": [1]},
    {"constants": [("f", 1.0)] * 4097},
    {"tables": []},
    {"tables": [("f", (2.0, 1.0)), ZONE]},
    {"tables": [("f", (1.0, 1.0)), ZONE]},
    {"tables": [("f", [1.0]), ZONE]},
    {"tables": [("i", (1,)), ZONE]},
    {"tables": [("f", ("a",)), ZONE]},
    {"tables": [("z", (1, 2), (0, 0)), ZONE]},
    {"tables": [("f", (1.0,)), ("z", (1,), (0, 2**60))]},
    {"tables": [("f", (1.0,)), ("z", (1,))]},
    {"tables": [ZONE, ZONE]},
    {"tables": [("f", (1.0,), (1.0,)), ZONE]},
    {"tables": [("q", ()), ZONE]},
    {"code": [("NOPE", (0,), 0)]},
    {"code": [("FADD", (0,), 0)]},
    {"code": [("FADD", (0, 0, 0), 0)]},
    {"code": [("FADD", (0, 7), 0)]},
    {"code": [("FADD", (0, -1), 0)]},
    {"code": [("FADD", (0, 2**40), 0)]},
    {"code": [("FADD", (0, 1), 0)]},
    {"code": [("FADD", (0, 0.0), 0)]},
    {"code": [("FADD", [0, 0], 0)]},
    {"code": [("FADD", (0, 0), 1)]},
    {"code": [("FADD", (0, 0), 2**40)]},
    {"code": [("FIN", (0,), 2)]},
    {"code": [("FIN", (0,), -1)]},
    {"code": [("FIN", (0,), 1)]},
    {"code": [("LOCAL", (3,), 0)]},
    {"code": [("IWRAP", (3,), 7)]},
    {"code": [("SBUCKET", (1,), 0)]},
    {"code": [("SBUCKET", (1,), -5)]},
    {"code": [("IPOW", (3,), -1)]},
    {"code": [()]},
    {"code": ["x"]},
    {"outputs": [(11, "d")]},
    {"outputs": [(-1, "d")]},
    {"outputs": [(0, "q")]},
    {"outputs": [(0, "s")]},
    {"outputs": [(1, "d")]},
    {"outputs": [("a", "d")]},
    {"outputs": [(0, "")]},
    {"outputs": [(0,)]},
    {"outputs": [(0, "d")] * 5000},
]


@pytest.mark.parametrize("spoilt", MALFORMED, ids=str)
def test_malformed_programs_are_refused(spoilt: dict[str, Any]) -> None:
    native.Program(**SOUND)
    with pytest.raises((TypeError, ValueError, OverflowError)):
        native.Program(**{**SOUND, **spoilt})


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 12) | st.integers() | st.floats()
    | st.text(max_size=4) | st.binary(max_size=9)
    | st.sampled_from(sorted(FORMS)) | st.sampled_from(list("df?qihbIHBsDTz")),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple),
    max_leaves=12,
)  # fmt: skip


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_nothing_that_python_hands_in_crashes_the_kernel(data: st.DataObject) -> None:
    parts = {name: data.draw(st.just(sound) | junk) for name, sound in SOUND.items()}
    try:
        program = native.Program(**parts)
    except (TypeError, ValueError, OverflowError):
        program = native.Program(**SOUND)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: program.row(data.draw(st.dictionaries(st.sampled_from(["x", "s", "z", "t"]), junk))),
        lambda: program.columns(data.draw(junk), data.draw(st.integers(-2, 40) | junk)),
        lambda: program.columns(data.draw(st.lists(st.tuples(junk, junk, junk, junk), min_size=4, max_size=4)), 2),
        lambda: program.add_zone(data.draw(junk), data.draw(junk), data.draw(junk)),
        lambda: program.columns(), lambda: program.add_zone(1), lambda: native.xxh64(data.draw(junk)),
    )  # fmt: skip
    for call in calls:
        try:
            call()
        except (TypeError, ValueError, OverflowError, KeyError, BufferError):
            continue


def test_columns_are_checked() -> None:
    program = native.Program([("x", "d"), ("s", "s")], [], [], [("SCHARS", (1,), 0)], [(0, "d"), (2, "q"), (1, "s")])
    x, s = column([1.0, None], "d", 0), column(["a", "bc"], "s", 0)
    assert [unpacked(each, letter, 2) for each, letter in zip(program.columns([x, s], 2), "dqs", strict=True)] == [
        [1.0, None], [1, 2], ["a", "bc"],
    ]  # fmt: skip
    spoilt: list[tuple[Any, Any, Any]] = [
        (x, s, 3), (x, s, -1), (x, s, 2**40), ((x[0], 1, None, None), s, 2), ((x[0], -1, None, None), s, 2),
        ((x[0], 2**62, None, None), s, 2), ((x[0], 0, b"", None), s, 2), ((x[0], 0, None, b"00000000" * 3), s, 2),
        (x, (s[0], 0, None, None), 2), (x, (s[0], 0, None, array.array("q", [0, 5, 9])), 2),
        (x, (s[0], 0, None, array.array("q", [0, 2, 1])), 2), (x, (s[0], 0, None, array.array("q", [-1, 0, 1])), 2),
        (x, (s[0], 0, None, array.array("q", [0, 2**62, 2**62])), 2), (x, None, 2), (("a", 0, None, None), s, 2),
    ]  # fmt: skip
    for one, other, count in spoilt:
        with pytest.raises((TypeError, ValueError, OverflowError)):
            program.columns([one, other], count)
    with pytest.raises(ValueError, match="another number of columns"):
        program.columns([x], 2)


def test_zones_are_asked_for_and_there_is_room_for_only_so_many() -> None:
    program = native.Program([("t", "T"), ("z", "s")], [], [], [("LOCALBY", (0, 1), 0)], [(2, "T")])
    plain = Plain([("t", "T"), ("z", "s")], [], [], [("LOCALBY", (0, 1), 0)], [(2, "T")])
    for each in (program, plain):
        assert each.row({"t": 0, "z": "Far/East"}) == "Far/East"
        assert each.row({"t": None, "z": "Far/East"}) == (None,)
        assert each.add_zone("Far/East", *ZONE[1:]) is True
        assert each.row({"t": 0, "z": "Far/East"}) == (0,)
        assert each.row({"t": -1, "z": "Far/East"}) == (-7_200_000_001,)
        assert each.row({"t": 2**62, "z": "Far/East"}) is None
        assert each.add_zone("Nowhere", None, None) is True
        assert each.row({"t": 0, "z": "Nowhere"}) == (None,)
    taken = [program.add_zone(f"Zone/{number}", None, None) for number in range(2100)]
    assert taken == [True] * 2046 + [False] * 54
    assert program.row({"t": 0, "z": "Zone/2045"}) == (None,)
    assert program.row({"t": 0, "z": "Zone/2046"}) == "Zone/2046"


def test_threads_share_a_program() -> None:
    program = native.Program([("x", "d")], [("f", 2.0)], [], [("FMUL", (0, 1), 0)], [(2, "d")])
    data = struct.pack("<5000d", *range(5000))
    wrong = []

    def work() -> None:
        for _ in range(30):
            ((_, found, _),) = program.columns([(data, 0, None, None)], 5000)
            if struct.unpack("<5000d", found) != tuple(2.0 * each for each in range(5000)) or program.row({"x": 4}) != (
                8.0,
            ):
                wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nothing_is_kept_that_is_not_needed() -> None:
    text = "a text of its own " * 3
    before = sys.getrefcount(text)
    program = native.Program([("s", "s")], [("s", text)], [], [("SJOIN", (0, 1), 0)], [(2, "s")])
    for _ in range(100):
        assert program.row({"s": text}) == (text + text,)
    del program
    gc.collect()
    assert sys.getrefcount(text) == before


@given(moment=st.datetimes(timezones=st.just(dt.UTC)))
def test_the_calendar_is_python_s(moment: dt.datetime) -> None:
    fields = [
        "HOUR",
        "MINUTE",
        "SECOND",
        "MICROSECOND",
        "WEEKDAY",
        "DAY",
        "MONTH",
        "YEAR",
        "ORDINAL",
        "WEEK",
        "ISOYEAR",
    ]
    program = native.Program(
        [("t", "T")], [], [], [(name, (0,), 0) for name in fields], [(1 + i, "q") for i in range(11)]
    )
    iso = moment.isocalendar()
    assert program.row({"t": (moment - EPOCH) // dt.timedelta(microseconds=1)}) == (
        moment.hour, moment.minute, moment.second, moment.microsecond, moment.isoweekday(), moment.day, moment.month,
        moment.year, moment.timetuple().tm_yday, iso.week, iso.year,
    )  # fmt: skip


@given(value=wholes, n=st.integers(1, 2**31 - 1))
def test_buckets_of_whole_numbers(value: int, n: int) -> None:
    assert bucket(value, n) == xxh64(value.to_bytes(8, "little", signed=True)) % n
