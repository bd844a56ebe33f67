"""A Polars expression held as a value: it compares, hashes and is fingerprinted by a canonical tree.

Polars expressions have neither equality nor a hash, and their serialised form changes between versions. The tree here
is our own for the documented subset (columns, literals, arithmetic, comparison, logic, conditionals, null handling,
casts, dates, strings, and the functions of ``spec.function``); anything else enters as Polars' own form together with
the Polars version.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tidemill.base.hashing import canonical
from tidemill.spec.function import own_function

if TYPE_CHECKING:
    import polars as pl

_OPERATORS = {
    "Plus": "+", "Minus": "-", "Multiply": "*", "Divide": "/", "TrueDivide": "/", "FloorDivide": "//", "Modulus": "%",
    "Eq": "==", "NotEq": "!=", "Lt": "<", "LtEq": "<=", "Gt": ">", "GtEq": ">=",
    "And": "&", "Or": "|", "Xor": "^", "LogicalAnd": "&", "LogicalOr": "|",
}  # fmt: skip
_UNTYPED = ("Int", "Float")  # Polars fits their types to what they stand beside
_TYPED = (
    "Null", "Boolean", "String", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64",
    "Float32", "Float64", "Date", "Datetime", "Duration",
)  # fmt: skip


class _ForeignError(Exception):
    """The expression leaves the documented subset."""


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression over the columns of one row.

    ``tree`` is the canonical form (JSON), ``columns`` the columns it reads, in alphabetical order.
    """

    tree: str
    columns: tuple[str, ...]
    _polars: Any = field(default=None, compare=False, repr=False)

    @staticmethod
    def of(value: Expression | str | pl.Expr) -> Expression:
        """Return ``value`` as an Expression; a string names a column. Raises TypeError on anything else."""
        if isinstance(value, Expression):
            return value
        if isinstance(value, str):
            return Expression(canonical(["column", value]).decode(), (value,))
        if type(value).__module__.startswith("polars") and hasattr(value, "meta"):
            return _from_polars(value)
        raise TypeError(f"expected a column name or a Polars expression, not {type(value).__name__}")

    @property
    def polars(self) -> pl.Expr:
        """The Polars expression."""
        if self._polars is None:
            import polars as pl

            return pl.col(self.columns[0])
        expression: pl.Expr = self._polars
        return expression

    @property
    def column(self) -> str | None:
        """The column's name when the expression is nothing but a column, else None."""
        tree = json.loads(self.tree)
        return tree[1] if tree[0] == "column" else None


def _from_polars(expression: pl.Expr) -> Expression:
    import polars as pl

    serialised = expression.meta.serialize(format="json")
    try:
        tree = _canonical_tree(json.loads(serialised))
    except _ForeignError:
        tree = ["polars", pl.__version__, serialised]
        if '"Float":null' in serialised or '"Float64":null' in serialised:  # JSON has neither NaN nor infinities
            tree.append(expression.meta.serialize().hex())
    return Expression(canonical(tree).decode(), tuple(sorted(set(expression.meta.root_names()))), expression)


def _canonical_tree(node: Any) -> list[Any]:
    if not isinstance(node, dict) or len(node) != 1:
        raise _ForeignError
    (kind, body), *_ = node.items()
    match kind:
        case "Column":
            return ["column", body]
        case "Literal":
            return ["literal", *_literal(body)]
        case "BinaryExpr":
            if body["op"] not in _OPERATORS:
                raise _ForeignError
            return [_OPERATORS[body["op"]], _canonical_tree(body["left"]), _canonical_tree(body["right"])]
        case "Ternary":
            return ["if", *(_canonical_tree(body[part]) for part in ("predicate", "truthy", "falsy"))]
        case "Function":
            return ["call", body["function"], *(_canonical_tree(each) for each in body["input"])]
        case "AnonymousFunction" if name := own_function(body["function"]):
            return ["call", {"Tidemill": name}, *(_canonical_tree(each) for each in body["input"])]
        case "Cast":
            return ["cast", body["dtype"], body["options"], _canonical_tree(body["expr"])]
        case "Alias":
            return _canonical_tree(body[0])
        case _:
            raise _ForeignError


def _literal(body: Any) -> list[Any]:
    """Return the kind and the value of a literal as Polars serialises it."""
    match body:
        case {"Dyn": dict(wrapped)}:
            allowed: tuple[str, ...] = _UNTYPED
        case {"Scalar": {"List": _}}:
            return _items(body)
        case {"Scalar": dict(wrapped)}:
            allowed = _TYPED
        case _:
            raise _ForeignError
    (kind, value), *more = wrapped.items()
    if more or kind not in allowed or value is None:
        raise _ForeignError
    return [kind, None if kind == "Null" else value]


def _items(body: Any) -> list[Any]:
    """Return a list of constants (of ``is_in``), which Polars serialises as a file of its own."""
    import polars as pl

    held = pl.select(pl.Expr.deserialize(io.StringIO(json.dumps({"Literal": body})), format="json")).to_series()[0]
    if held.dtype not in (pl.String, pl.Boolean) and not held.dtype.is_integer() and held.dtype != pl.Float64:
        raise _ForeignError
    if held.null_count() or (held.dtype.is_float() and not held.is_finite().all()):
        raise _ForeignError
    return ["List", str(held.dtype), held.to_list()]
