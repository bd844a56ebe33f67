"""Checks of cleaning steps: their arguments, and whether they work on the columns of their table."""

from __future__ import annotations

import math
import zoneinfo
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from tidemill.base.errors import Fault, RequestError
from tidemill.base.schema import KNOWN_AT, NAME
from tidemill.engine.check.column import Schema, first_line, kept, reads_other_rows
from tidemill.engine.table.clean import clean, trial
from tidemill.engine.table.derive import known_column
from tidemill.engine.table.table import TIME
from tidemill.spec.check import Between, Holds, OneOf
from tidemill.spec.clean import (
    Balance,
    Cast,
    Clip,
    Convert,
    Duplicates,
    Fill,
    Invalid,
    Outliers,
    Recode,
    Sample,
    Step,
    Trim,
    label,
)
from tidemill.spec.expression import Expression
from tidemill.spec.source import Table

_DROP = ("null", "drop")
#: What the fields of steps may hold where they are words.
_WORDS: Mapping[type[Any], Mapping[str, tuple[Any, ...]]] = {
    Fill: {"statistic": (None, "mean", "median", "min", "max", "last")},
    Cast: {"to": ("whole", "number", "truth", "text", "time"), "decimal": (".", ","), "otherwise": _DROP},
    Convert: {"otherwise": _DROP},
    Recode: {"otherwise": ("keep", *_DROP)},
    Trim: {"case": (None, "lower", "upper")},
    Invalid: {"then": ("drop", "null", "keep")},
    Outliers: {"method": ("iqr", "z"), "then": ("drop", "null", "clip", "keep")},
}


def cleaned_schema(where: str, table: Table, schema: Schema) -> tuple[Schema | None, list[Fault]]:
    """Return the columns that the steps of ``table`` make of ``schema``, or what is wrong with them."""
    frame = pl.DataFrame(schema={**schema, KNOWN_AT: TIME})
    for step in table.steps:
        for expression in _expressions(step):
            if all(name in frame.columns for name in expression.columns) and reads_other_rows(
                expression, frame.drop(KNOWN_AT).schema
            ):
                what = f"its step '{label(step)}' has an expression that reads other rows."
                return None, [Fault(where, what, "Use functions of the row itself, or a step that looks back.")]
        try:
            with trial():
                frame, _ = clean(frame, (step,), known_at=known_column(table), key=table.key)
        except RequestError as error:
            return None, [Fault(where, f"{error}")]
        except Exception as error:
            what = f"its step '{label(step)}' fails on empty input ({type(error).__name__}): {first_line(error)}."
            return None, [Fault(where, what)]
    return kept(dict(frame.drop(KNOWN_AT).schema)), []


def _expressions(step: Step) -> Iterator[Expression]:
    """Yield the expressions of ``step``, which are of one row."""
    match step:
        case Fill(value=Expression() as expression):
            yield expression
        case Convert(units=units):
            yield from (each for _, each in units if isinstance(each, Expression))
        case Invalid(check=Holds(expression=expression)):
            yield expression


def step_faults(where: str, steps: Sequence[Step]) -> Iterator[Fault]:
    """Yield what is wrong with the arguments of ``steps``."""
    for step in steps:
        for what, do in _faults(step):
            yield Fault(where, f"its step '{label(step)}' {what}", do)


def _faults(step: Step) -> Iterator[tuple[str, str]]:
    for name, words in _WORDS.get(type(step), {}).items():
        if (word := getattr(step, name)) not in words:
            known = ", ".join(repr(each) for each in words if each is not None)
            yield f"has {name}={word!r}, which is none of {known}.", ""
    for name in ("flag", "weight"):
        column = getattr(step, name, None)
        if column is not None and not NAME.match(column):
            yield f"adds a column '{column}', which is no name.", "Use letters, digits and _."
    past = getattr(step, "past", step if isinstance(step, Balance) else None)
    if past is not None and past.over <= 0:
        yield "looks back over no time.", "Write over='30d'."
    if past is not None and past.least < 1:
        yield f"has least={past.least}.", "It is 1 or more."
    yield from _own_faults(step)


def _own_faults(step: Step) -> Iterator[tuple[str, str]]:
    match step:
        case Cast(zone=str(zone)) if zone not in zoneinfo.available_timezones():
            yield f"reads times of the zone '{zone}', which there is not.", "Write an IANA name: 'Europe/Paris'."
        case Convert(units=()):
            yield "knows no other units.", "Write units={'g': 0.001}."
        case Recode(codes=()):
            yield "has no codes.", "Write what becomes of what: {'?': None}."
        case Trim(columns=()) | Duplicates(columns=()):
            yield "names no column.", ""
        case Clip(low=low, high=high):
            if any(bound is not None and math.isnan(bound) for bound in (low, high)):
                yield "has a bound that is not a number.", ""
            elif low is not None and high is not None and low > high:
                yield f"has bounds {low} and {high}, which nothing lies between.", "Swap the bounds."
        case Invalid(check=check, then="null") if not isinstance(check, Between | OneOf):
            yield "cannot tell which value to make null.", "Use between() or one_of(), or drop the rows."
        case Invalid(then="keep", flag=None) | Outliers(then="keep", flag=None):
            yield "changes nothing.", "Give a flag='column', or another then=."
        case Outliers(k=k) if not k > 0:
            yield f"has k={k}.", "It is above zero; 1.5 is usual for 'iqr', 3 for 'z'."
        case Sample(shares=shares, otherwise=otherwise):
            for share in (*(each for _, each in shares), otherwise):
                if not 0 <= share <= 1:
                    yield f"has a share of {share}.", "Shares lie in [0, 1]."
