"""Declared expressions evaluated over frames, with the values they have on one row.

The value of an expression on a row is what Polars makes of a frame of that one row. Over more rows Polars divides a
column by a number through the number's reciprocal, which is 1 ulp off in a third of the cases; so the number is spread
out to a column here, and Polars divides. One row and a million then have the same bits. Expressions must work row by
row; one that reads other rows (``cum_sum``, ``over``) has no value on a row.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import polars as pl

from tidemill.spec.expression import Expression

_DIVISIONS = ("Divide", "TrueDivide", "FloorDivide", "Modulus")


def evaluate(frame: pl.DataFrame, expressions: Mapping[str, Expression]) -> pl.DataFrame:
    """Return one column for each of ``expressions``, under its name, with one value for each row of ``frame``."""
    columns: list[pl.Expr] = []
    spread: dict[str, pl.Series] = {}
    for place, (name, expression) in enumerate(expressions.items()):
        if expression.column is not None:
            columns.append(pl.col(expression.column).alias(name))
            continue
        schema = tuple((column, frame.schema[column]) for column in expression.columns if column in frame.schema)
        by_row, divisors = _by_row(expression, schema, place)
        columns.append(by_row.alias(name))
        for divisor in divisors:
            spread[divisor.name] = divisor.new_from_index(0, frame.height).rechunk()
    if all(expression.column is not None for expression in expressions.values()):
        return frame.select(columns)
    # with_columns, not select: an expression without columns has a value for each row, too.
    spread_out = frame.with_columns(spread.values()) if spread else frame
    return spread_out.with_columns(columns).select(list(expressions))


@lru_cache(maxsize=1024)
def _by_row(
    expression: Expression, schema: tuple[tuple[str, pl.DataType], ...], place: int
) -> tuple[pl.Expr, tuple[pl.Series, ...]]:
    """Return the expression with each dividing constant replaced by a column, and those constants by column name."""
    divisors: list[pl.Series] = []
    empty = pl.DataFrame(schema=dict(schema))

    def rewrite(node: Any) -> Any:
        if isinstance(node, list):
            return [rewrite(each) for each in node]
        if not isinstance(node, dict):
            return node
        body = node.get("BinaryExpr")
        if not isinstance(body, dict) or body["op"] not in _DIVISIONS or not _constant(body["right"]):
            return {name: rewrite(each) for name, each in node.items()}
        dividend = empty.select(_expression(body["left"])).dtypes[0]
        divisor = pl.select(_expression(body["right"])).to_series().alias(f"_divisor_{place}_{len(divisors)}")
        if '"Dyn"' in json.dumps(body["right"]):
            divisor = _typed_like(divisor, dividend)
        divisors.append(divisor)
        return {"BinaryExpr": {**body, "left": rewrite(body["left"]), "right": {"Column": divisor.name}}}

    tree = json.loads(expression.polars.meta.serialize(format="json"))
    rewritten = rewrite(tree)
    return (_expression(rewritten) if divisors else expression.polars), tuple(divisors)


def _expression(tree: Any) -> pl.Expr:
    return pl.Expr.deserialize(io.StringIO(json.dumps(tree)), format="json")


def _constant(node: Any) -> bool:
    text = json.dumps(node)
    return '"Literal"' in text and '"Column"' not in text


def _typed_like(divisor: pl.Series, dividend: pl.DataType) -> pl.Series:
    """Return an untyped constant with the type that Polars gives it beside ``dividend``: the same, where it fits."""
    if dividend.is_float() or (dividend.is_integer() and divisor.dtype.is_integer()):
        fitted = divisor.cast(dividend, strict=False)
        return divisor if fitted.null_count() else fitted
    return divisor
