"""Answers from the packed versions of views, by the compiled kernel where there is one.

The kernel reads packed versions as they are. Without it, or for a function that it does not know, they are unpacked and
given to ``feature.answer``, the function that computes training sets. Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from tidemill.base.errors import WorkspaceError
from tidemill.engine.feature.feature import TableView, answer, by_version, kernel_function, slot_of, slots
from tidemill.engine.feature.layout import Directory, Shape, has_directory, kind
from tidemill.engine.feature.shelf import take
from tidemill.engine.table.plain import plain
from tidemill.kernels import compiled
from tidemill.ports.online import Value
from tidemill.spec.feature import Latest

#: A group as it was read: its head (None when there is no such group), or head, directory and the blocks it needs.
Group = bytes | tuple[bytes | None, bytes, tuple[Value, ...]] | None

#: Returns the directory and the needed blocks of a group, told by the places of view and record.
Fetch = Callable[[int, int], tuple[bytes, tuple[Value, ...]]]


class Packed:
    """Answers for ``view`` from blobs of ``shape``."""

    def __init__(self, view: TableView, shape: Shape) -> None:
        self._view, self._shape = view, shape
        self._native: Any = compiled.load("online")
        self.plan: Any = None  # the view's, for the kernel; None where it does not answer
        if self._native is not None:
            kinds = "".join(map(kind, shape.values.values()))
            try:
                self.plan = self._native.plan(shape.timeless, kinds, _features(view))
            except ValueError:  # of a function that the kernel does not know
                self.plan = None

    def needs(self, t: int, directory: bytes) -> Sequence[int]:
        """Return the numbers of the blocks that must be read to answer at ``t``, in order."""
        if self.plan is None:
            return [block.number for block in Directory.decode(directory).blocks]
        try:
            numbers: tuple[int, ...] = self._native.needs(self.plan, t, directory)
        except ValueError as error:
            raise self._damaged(error) from error
        return numbers

    def row(self, t: int, group: Group) -> tuple[Any, ...]:
        """Return the view's values for a group at ``t``: as ``predict.plain`` gives them."""
        if self.plan is None:
            return plain(self.unpacked(t, [group])).row(0)
        try:
            values: tuple[Any, ...] = (
                self._native.answer(self.plan, t, *group)
                if type(group) is tuple
                else self._native.answer(self.plan, t, group, None, ())
            )
        except ValueError as error:
            raise self._damaged(error) from error
        return self.even(values)

    def unpacked(self, t: int, groups: Sequence[Group]) -> pl.DataFrame:
        """Return the view's columns with a row for each of ``groups``, read whole, at ``t``: without the kernel."""
        blobs: list[bytes] = []
        places: list[int] = []
        for place, group in enumerate(groups):
            head, _, blocks = group if isinstance(group, tuple) else (group, None, ())
            blobs += [*map(bytes, blocks), head or b""]
            places += [place] * (len(blocks) + 1)
        versions, which = self._shape.unpack(blobs)
        return self._answer(versions, np.array(places, dtype=np.int64)[which], len(groups), t)

    def summary(self, block: bytes) -> bytes:
        """Return what a directory keeps of the values in ``block``; b"" where the kernel does not answer."""
        summary: bytes = self._native.summary(self.plan, block) if self.plan is not None else b""
        return summary

    def even(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the kernel's ``values`` with those of types that only Polars turns into plain ones."""
        if not self.odd:
            return values
        changed = list(values)
        for place, dtype in self.odd.items():
            if changed[place] is not None:
                changed[place] = plain(pl.DataFrame([pl.Series("", [changed[place]]).cast(dtype)])).item()
        return tuple(changed)

    def _damaged(self, error: ValueError) -> WorkspaceError:
        return WorkspaceError(
            f"the online state of view {self._view.name!r} is damaged ({error}); ask for another: tidemill rebuild"
        )

    def _answer(self, versions: Any, group: Any, groups: int, t: int) -> pl.DataFrame:
        asked = np.arange(groups, dtype=np.int64)
        return answer(self._view, versions, group, groups, asked, np.full(groups, t, dtype=np.int64))

    @cached_property
    def schema(self) -> pl.Schema:
        """The view's columns and their types."""
        return self._answer(*self._shape.unpack([]), 1, 0).schema

    @cached_property
    def odd(self) -> dict[int, pl.DataType]:
        """The columns whose values are not what the kernel gives, by place."""
        return {place: dtype for place, dtype in enumerate(self.schema.dtypes()) if not _even(dtype)}


class PackedShelf:
    """Answers for views whose heads lie in the same records: ``views`` with the number that each has there.

    Either the kernel answers for all of them, or for none.
    """

    def __init__(self, views: Sequence[tuple[Packed, int]]) -> None:
        self._views = views
        self._native: Any = compiled.load("online") if all(packed.plan is not None for packed, _ in views) else None
        self._plans = tuple((packed.plan, number) for packed, number in views)
        self._names = tuple(name for packed, _ in views for name in packed.schema)
        self._odd = any(packed.odd for packed, _ in views)
        self._casts: list[pl.Expr] | None = None  # of the kernel's columns to the views' types

    def row(self, t: int, record: bytes | None) -> Sequence[tuple[Any, ...] | bytes]:
        """Return the values of each view for a group at ``t``; its head, where it has blocks as well.

        Raises WorkspaceError when the record is damaged.
        """
        if self._native is None:
            heads = [(packed, take(record, number)) for packed, number in self._views]
            return [head if head and has_directory(head) else packed.row(t, head) for packed, head in heads]
        try:
            found: tuple[tuple[Any, ...] | bytes, ...] = self._native.answers(self._plans, t, record)
        except ValueError as error:
            raise _damaged(error) from error
        if not self._odd:
            return found
        pairs = zip(self._views, found, strict=True)
        return [each if isinstance(each, bytes) else packed.even(each) for (packed, _), each in pairs]

    def frame(self, t: int, records: list[Value | None], fetch: Fetch) -> pl.DataFrame:
        """Return the columns of the views with a row for each of ``records`` at ``t``.

        ``fetch`` is called for a group that has blocks. Raises WorkspaceError when something is damaged.
        """
        if self._native is None:
            return self._unpacked(t, [None if record is None else bytes(record) for record in records], fetch)
        try:
            exported = _Exported(self._native.columns(self._plans, t, records, fetch, self._names))
        except ValueError as error:
            raise _damaged(error) from error
        frame = pl.Series(exported).struct.unnest()
        if self._casts is None:
            schemas = [packed.schema for packed, _ in self._views]
            self._casts = [
                pl.col(name).cast(dtype)
                for schema in schemas
                for name, dtype in schema.items()
                if frame.schema[name] != dtype
            ]
        return frame.with_columns(self._casts) if self._casts else frame

    def _unpacked(self, t: int, records: Sequence[bytes | None], fetch: Fetch) -> pl.DataFrame:
        frames = []
        for place, (packed, number) in enumerate(self._views):
            heads = [take(record, number) for record in records]
            groups = [
                (head, *fetch(place, row)) if head and has_directory(head) else head for row, head in enumerate(heads)
            ]
            frames.append(packed.unpacked(t, groups))
        return pl.concat(frames, how="horizontal")


def _damaged(error: ValueError) -> WorkspaceError:
    return WorkspaceError(f"a record of the online state is damaged ({error}); ask for another state: tidemill rebuild")


@dataclass(frozen=True, slots=True)
class _Exported:
    """What the kernel gives away: capsules of an Arrow schema and array."""

    capsules: tuple[Any, Any]

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[Any, Any]:
        return self.capsules


def _features(view: TableView) -> tuple[tuple[str, int, int, float], ...]:
    """Return what the kernel's plan wants to know: function, place of the value or -1, width or -1, share."""
    if isinstance(view, Latest):
        width = -1 if by_version(view) or view.within is None else view.within
        return tuple(("latest", place, width, 0.0) for place in range(len(view.values)))
    places = {slot: place for place, slot in enumerate(slots(view))}
    found = []
    for _, each in view.features:
        slot = slot_of(each)
        place = -1 if slot is None else places[slot]
        function = kernel_function(each.function)
        found += [(function, place, window.micros, each.q or 0.0) for window in each.over]
    return tuple(found)


def _even(dtype: pl.DataType) -> bool:
    """Tell whether the kernel's value of this type is the one that JSON carries."""
    if isinstance(dtype, pl.Datetime):
        return dtype.time_unit == "us"
    return not isinstance(dtype, pl.Date | pl.Time | pl.Duration | pl.Decimal)
