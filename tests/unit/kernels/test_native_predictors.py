"""The compiled kernel against the plain one and a literal oracle, over random programs and hostile values."""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.kernels import compiled
from tidemill.kernels import program as p
from tidemill.kernels.predictors import MalformedError, _Plain, open_program
from tidemill.kernels.program import MAGIC, Program

kernel = compiled.load("predictors")
pytestmark = pytest.mark.skipif(kernel is None, reason="the compiled kernel is not built")

HOSTILE = [math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, -5e-324, 1e-40, 1e308, -1e308, 3.5e38, 0.5, -0.5, 1.0, 2.0]


def numbers(random: np.random.Generator, count: int) -> np.ndarray[Any, Any]:
    """Return numbers of which many are equal, and some hostile."""
    plain = np.round(random.normal(size=count) * 3) / 2
    return np.where(random.random(count) < 0.2, random.choice(HOSTILE, count), plain)


def some_program(seed: int) -> Program:
    """Return a random sound program."""
    random = np.random.default_rng(seed)
    columns: list[tuple[str, tuple[str, ...] | None]] = [("first", None)]
    for i in range(random.integers(0, 6)):
        texts = tuple(f"ü{j}" for j in range(random.integers(0, 70)))
        columns.append((f"column {i}", texts if random.random() < 0.4 else None))
    sizes = [len(values) + 1 for _, values in columns if values is not None]
    slots = len(columns) - len(sizes)
    ops, args, tables = [], [], np.sort(np.round(random.normal(size=40) * 3) / 2)
    for _ in range(random.integers(0, 10)):
        op = int(random.choice([*range(p.IMPUTE, p.TRUNC + 1), p.MATCH, p.BINS]))
        table = (0, 0)
        if op in (p.MATCH, p.BINS):
            unique = len(np.unique(tables))
            tables[:unique] = np.unique(tables)
            table = (0, int(random.integers(0, unique + 1)))
            sizes.append(table[1] + 2)
        ops.append((op, int(random.integers(0, slots)), *table))
        args.append(tuple(np.round(random.normal(size=2), 1)))
        slots += op in range(p.IMPUTE, p.TRUNC + 1)
    if random.random() < 0.2:
        ops.append((p.CHECK, int(random.integers(0, slots)), 0, int(random.integers(1, 4))))
        args.append((0.0, 0.0))
    outputs = int(random.integers(1, 5))
    common: dict[str, Any] = {
        "ops": np.array(ops, np.int32).reshape(-1, 4),
        "args": np.array(args, np.float64).reshape(-1, 2),
        "base": np.round(random.normal(size=outputs), 2).astype(np.float32).astype(np.float64),
    }
    link = int(random.choice([*range(p.OVR + 1), p.NUMPY_EXP, p.NUMPY_SOFTMAX, p.NUMPY_SOFTMAX_COLUMNS]))
    if random.random() < 0.4:
        terms = random.integers(0, slots, random.integers(0, 6)).astype(np.int32)
        groups = [(int(random.integers(0, len(sizes))), len(tables)) for _ in range(3) if sizes]
        rest = random.normal(size=max(sizes, default=0) * outputs)
        arrays: dict[str, Any] = {
            "tables": np.concatenate([tables, rest]), "terms": terms,
            "weights": random.normal(size=(len(terms), outputs)), "groups": np.array(groups, np.int32).reshape(-1, 2),
        }  # fmt: skip
        return Program("linear", tuple(columns), {**common, **arrays}, link=link, exact=False)
    width = int(random.choice([1, outputs]))
    nodes: list[tuple[int, int, float, int, int]] = []  # feature, left, threshold, missing, payload
    roots, leaves = [], 0
    bits = random.integers(0, 2**32, 12, dtype=np.uint32)
    for _ in range(random.integers(0, 20)):
        roots.append(len(nodes))
        open_ = [len(nodes)]
        nodes.append((-1, 0, 0.0, 0, 0))
        while open_:
            at = open_.pop(0)
            if random.random() < 0.6 and len(nodes) - roots[-1] < 60:
                feature = int(random.integers(0, slots + len(sizes)))
                payload = 0 if feature < slots else int(random.integers(0, 12 - -(-sizes[feature - slots] // 32) + 1))
                tip = float(np.nan_to_num(numbers(random, 1)[0], posinf=1e308, neginf=-1e308))
                nodes[at] = (feature, len(nodes), tip, int(random.integers(0, 2)), payload)
                open_ += [len(nodes), len(nodes) + 1]
                nodes += [(-1, 0, 0.0, 0, 0)] * 2
            else:
                nodes[at] = (-1, 0, 0.0, 0, leaves)
                leaves += 1
    if not nodes:
        nodes, leaves = [(-1, 0, 0.0, 0, 0)], 1
    features, left, threshold, missing, payloads = (list(each) for each in zip(*nodes, strict=True))
    arrays = {
        "tables": tables, "roots": np.array(roots, np.int32),
        "outputs": np.array(random.integers(0, outputs - width + 1, len(roots)), np.int32),
        "feature": np.array(features, np.int32), "left": np.array(left, np.int32),
        "threshold": np.array(threshold, np.float64), "missing": np.array(missing, np.uint8),
        "payload": np.array(payloads, np.uint32), "bits": bits,
        "values": np.round(random.normal(size=leaves * width), 2).astype(np.float32).astype(np.float64),
    }  # fmt: skip
    return Program(
        "trees", tuple(columns), {**common, **arrays}, link=link, width=width, single=bool(random.random() < 0.3),
        divisor=float(len(roots)) if random.random() < 0.3 else 0.0, scale=float(random.choice([1.0, 2.0])),
    )  # fmt: skip


def some_columns(program: Program, rows: int, seed: int) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return [
        numbers(random, rows) if values is None else random.integers(0, len(values) + 1, rows).astype(np.int32)
        for _, values in program.columns
    ]


def some_values(program: Program, columns: list[np.ndarray[Any, Any]], row: int) -> list[Any]:
    made: list[Any] = []
    for column, (_, values) in zip(columns, program.columns, strict=True):
        value = column[row].item()
        if values is None:
            made.append(None if math.isnan(value) and row % 2 else value)
        else:
            made.append(values[value] if value < len(values) else (None if row % 2 else "nobody knows this"))
    return made


def outcome(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except ValueError as error:
        return str(error).split(":")[0]


def bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the bits of numbers, every NaN alike."""
    made: np.ndarray[Any, Any] = np.where(np.isnan(values), math.nan, values).view(np.int64)
    return made


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.sampled_from([0, 1, 5, 63, 64, 65, 200]))
def test_a_batch_has_the_bits_of_the_plain_kernel_and_of_each_row(seed: int, rows: int) -> None:
    program = some_program(seed)
    opened, plain = open_program(program.encode()), _Plain(program)
    assert type(opened) is not type(plain)
    columns = some_columns(program, rows, seed)
    together, slowly = outcome(opened.batch, columns, rows), outcome(plain.batch, columns, rows)
    if isinstance(together, str):
        assert together == slowly
        return
    np.testing.assert_array_equal(bits(together), bits(slowly))
    for row in range(min(rows, 20)):
        alone = opened.row(some_values(program, columns, row))
        np.testing.assert_array_equal(bits(np.atleast_1d(alone)), bits(together[row]))


def walked(program: Program, columns: list[np.ndarray[Any, Any]], row: int) -> list[float]:
    """Return the sums of a program of trees without operations, as its description says, with plain Python."""
    get = {name: array.tolist() for name, array in program.arrays.items()}
    slots = [column[row].item() for column, (_, v) in zip(columns, program.columns, strict=True) if v is None]
    codes = [column[row].item() for column, (_, v) in zip(columns, program.columns, strict=True) if v is not None]
    sums = list(get["base"])
    for root, output in zip(get["roots"], get["outputs"], strict=True):
        at = root
        while get["feature"][at] >= 0:
            feature = get["feature"][at]
            if feature < len(slots):
                right = get["missing"][at] == 1 if math.isnan(slots[feature]) else slots[feature] > get["threshold"][at]
            else:
                code = codes[feature - len(slots)]
                right = get["bits"][get["payload"][at] + code // 32] >> code % 32 & 1 == 1
            at = get["left"][at] + right
        leaf = get["payload"][at] * program.width
        for j in range(program.width):
            sums[output + j] += get["values"][leaf + j]
            if program.single:
                sums[output + j] = struct.unpack("f", struct.pack("f", sums[output + j]))[0]
    return sums


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_trees_are_walked_as_described(seed: int) -> None:
    program = some_program(seed)
    if program.kind != "trees" or len(program.arrays["ops"]):
        return
    program = replace(program, link=p.IDENTITY, divisor=0.0)
    columns = some_columns(program, 70, seed)
    made = open_program(program.encode()).batch(columns, 70)
    for row in range(70):
        assert made[row].tolist() == walked(program, columns, row)


def signed(body: bytes) -> bytes:
    return MAGIC + hashlib.sha256(body).digest() + body


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 200),
    place=st.integers(0, 2**20),
    bytes_=st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0" * 8])),
)
def test_a_damaged_form_is_refused_or_harmless(seed: int, place: int, bytes_: bytes) -> None:
    """Damage with a good checksum: whatever still opens must run without leading anywhere."""
    program = some_program(seed)
    body = bytearray(program.encode()[len(MAGIC) + 32 :])
    at = place % len(body)
    body[at : at + len(bytes_)] = bytes_
    try:
        opened = open_program(signed(bytes(body)))
    except (MalformedError, MemoryError):
        return
    columns = some_columns(opened.program, 70, seed)
    outcome(opened.batch, columns, 70)
    outcome(opened.row, some_values(opened.program, columns, 0))


@pytest.mark.parametrize("cut", [0, 5, 20, 60, -1])
def test_a_cut_or_changed_form_is_refused(cut: int) -> None:
    form = some_program(7).encode()
    with pytest.raises(MalformedError, match="not a compiled predictor"):
        open_program(form[:cut])
    changed = bytearray(form)
    changed[cut] ^= 1
    with pytest.raises(MalformedError, match="not a compiled predictor"):
        open_program(bytes(changed))


def small(**changes: Any) -> Program:
    """Return one tree on one number and one text."""
    arrays: dict[str, Any] = {
        "ops": np.zeros((0, 4), np.int32), "args": np.zeros((0, 2)), "tables": np.zeros(0), "base": np.zeros(1),
        "roots": np.array([0], np.int32), "outputs": np.array([0], np.int32),
        "feature": np.array([0, -1, 1, -1, -1], np.int32), "left": np.array([1, 0, 3, 0, 0], np.int32),
        "threshold": np.array([0.5, 0, 0, 0, 0]), "missing": np.array([1, 0, 0, 0, 0], np.uint8),
        "payload": np.array([0, 0, 0, 1, 2], np.uint32), "bits": np.array([2], np.uint32),
        "values": np.array([10.0, 20.0, 30.0]),
    }  # fmt: skip
    return Program("trees", (("x", None), ("c", ("a", "b"))), {**arrays, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"left": np.array([0, 0, 3, 0, 0], np.int32)},
        {"left": np.array([4, 0, 3, 0, 0], np.int32)},
        {"left": np.array([1, 0, 1, 0, 0], np.int32)},
        {"feature": np.array([2, -1, 1, -1, -1], np.int32)},
        {"payload": np.array([0, 3, 0, 1, 2], np.uint32)},
        {"payload": np.array([0, 0, 1, 1, 2], np.uint32)},
        {"payload": np.array([0, 0, 2**32 - 1, 1, 2], np.uint32)},
        {"roots": np.array([5], np.int32)},
        {"roots": np.array([-1], np.int32)},
        {"outputs": np.array([1], np.int32)},
        {"threshold": np.array([np.nan, 0, 0, 0, 0])},
        {"missing": np.array([2, 0, 0, 0, 0], np.uint8)},
        {"ops": np.array([[p.IMPUTE, 1, 0, 0]], np.int32), "args": np.zeros((1, 2))},
        {"ops": np.array([[p.MATCH, 0, 0, 1]], np.int32), "args": np.zeros((1, 2))},
        {"ops": np.array([[p.CHECK, 0, 2, 1]], np.int32), "args": np.zeros((1, 2))},
        {"ops": np.array([[p.CHECK_CODE, 0, 0, 0]], np.int32), "args": np.zeros((1, 2))},
        {"ops": np.array([[99, 0, 0, 0]], np.int32), "args": np.zeros((1, 2))},
        {"base": np.zeros(0)},
    ],
    ids=str,
)
def test_what_leads_astray_is_refused_by_both(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedError, match="malformed"):
        small(**changes)
    sound = small()
    assert kernel is not None
    with pytest.raises(ValueError, match="malformed"):
        kernel.Program(sound.columns, "trees", {**sound.arrays, **changes}, 0, 1, False, 0.0, 1.0)


@pytest.mark.parametrize("opened", [open_program(small().encode()), _Plain(small())], ids=["compiled", "plain"])
def test_values_of_a_row(opened: Any) -> None:
    assert opened.row([0.5, "a"]) == 10.0
    assert opened.row((0.6, "a")) == 20.0
    assert opened.row([1, "b"]) == 30.0
    assert opened.row([True, "b"]) == 30.0
    assert opened.row([False, "b"]) == 10.0
    assert opened.row([None, "b"]) == opened.row([math.nan, "b"]) == 30.0
    assert opened.row([1.0, None]) == opened.row([1.0, "c" * 10**6]) == opened.row([1.0, "\ud800"]) == 20.0
    for wrong in (["x", "a"], [b"1", "a"], [1j, "a"], [[], "a"], [1.0, 3], [1.0, b"a"], [10**400, "a"]):
        with pytest.raises(ValueError, match=r"Column '[xc]' (takes|holds)"):
            opened.row(wrong)
    for wrong in ([1.0], [1.0, "a", "b"], []):
        with pytest.raises(ValueError, match="A row has 2 values"):
            opened.row(wrong)
    others: list[Any] = [{}, "ab", None, 3, iter([1.0, "a"])]
    for nothing in others:
        with pytest.raises(TypeError):
            opened.row(nothing)


@pytest.mark.parametrize("opened", [open_program(small().encode()), _Plain(small())], ids=["compiled", "plain"])
def test_columns_of_a_batch(opened: Any) -> None:
    x, c = np.array([0.0, 1.0, 1.0]), np.array([0, 1, 2], np.int32)
    assert opened.batch((x, c), 3).tolist() == [[10.0], [30.0], [20.0]]
    assert opened.batch((x[:0], c[:0]), 0).shape == (0, 1)
    for columns, rows in (
        ((x,), 3), ((x, c), 2), ((x, c), 4), ((x, c.astype(np.int64)), 3), ((x.astype(np.float32), c), 3),
        ((x, np.array([0, 1, 3], np.int32)), 3), ((x, np.array([0, 1, -1], np.int32)), 3),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            opened.batch(columns, rows)


def test_the_kernel_refuses_other_arguments() -> None:
    assert kernel is not None
    made, sound = kernel.Program, small()
    arrays = dict(sound.arrays)
    out = np.zeros(3)
    program = made(sound.columns, "trees", arrays, 0, 1, False, 0.0, 1.0)
    x, c = np.array([0.0, 1.0, 1.0]), np.array([0, 1, 2], np.int32)
    for wrong in (
        ((x, c), 3), ([x, c], 3, out), ((x, c), -1, out), ((x, c), 2**62, out), ((x, c), "3", out),
        ((x, c), 3, out[:2]), ((x, c), 3, bytes(24)), ((x[::2], c), 2, out[:2]), ((x, 3), 3, out), (None, 3, out),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError, BufferError, OverflowError)):
            program.batch(*wrong)
    out.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        program.batch((x, c), 3, out)
    for columns in ((("x", None, 1),), (("x",),), (3,), (("x", ["a"]),), (("x", (3,)),), ((None, None),)):
        with pytest.raises((TypeError, ValueError)):
            made(columns, "trees", arrays, 0, 1, False, 0.0, 1.0)
    for kind in ("trees", "linear"):
        for name in arrays:
            with pytest.raises((TypeError, ValueError)):
                made(sound.columns, kind, {k: v for k, v in arrays.items() if k != name}, 0, 1, False, 0.0, 1.0)
    for given_ in (("forest", 0, 1), ("trees", 8, 1), ("trees", -1, 1), ("trees", 0, 0), ("trees", 0, 2)):
        with pytest.raises(ValueError):
            made(sound.columns, given_[0], arrays, given_[1], given_[2], False, 0.0, 1.0)
    with pytest.raises(TypeError):
        made(sound.columns, "trees", arrays, link=0)


def test_a_check_names_its_column() -> None:
    ops = np.array([[p.CHECK, 0, 0, 3], [p.CHECK_CODE, 0, 1, 0]], np.int32)
    program = small(ops=ops, args=np.zeros((2, 2)), tables=np.array([0.0, 1.0, 0.0]))
    for opened in (open_program(program.encode()), _Plain(program)):
        assert opened.row([0.0, "a"]) == 10.0
        with pytest.raises(ValueError, match="Column 'x' holds a value that the model does not take"):
            opened.row([math.inf, "a"])
        with pytest.raises(ValueError, match="Column 'c' holds a value that the model has not learned"):
            opened.row([0.0, "b"])
