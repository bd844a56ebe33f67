"""What would be done to bring a workspace to its declaration, and why. Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tidemill.base.errors import Fault
from tidemill.base.hashing import fingerprint
from tidemill.engine.check.change import changes
from tidemill.engine.check.check import warnings
from tidemill.engine.check.fingerprint import describe, judging, operations, recipe
from tidemill.spec.feature import OnDemand
from tidemill.spec.source import Files, Push, Source, Table
from tidemill.spec.system import System

Action = Literal["load", "create", "rebuild", "train", "retrain", "change", "serve", "nothing"]


@dataclass(frozen=True, slots=True)
class BuiltTable:
    """A table that exists.

    ``parts``: its ``describe`` when it was built. ``rows``: versions of rows in it. ``newest``: the tick of its newest
    commit, microseconds. ``pending``: files or rows that wait to be read, None when that is not known.
    """

    parts: Mapping[str, Any]
    rows: int
    newest: int | None = None
    pending: int | None = None


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A model that has a champion: the ``recipe`` it was trained by, and its ``judging`` when last applied."""

    version: str
    recipe: Mapping[str, Any]
    judging: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Built:
    """What exists in a workspace. All parts as ``fingerprint.py`` gave them, by the declaration's name.

    ``views``: parts of the feature views whose online state is kept. ``operations``: of the system when last applied.
    ``serving``: an endpoint is up. ``undecided``: models without a champion of which the last training was of the
    declared recipe and judged as declared, and how it ended.
    """

    tables: Mapping[str, BuiltTable] = field(default_factory=dict)
    views: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    models: Mapping[str, BuiltModel] = field(default_factory=dict)
    operations: Mapping[str, Any] | None = None
    serving: bool = False
    undecided: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that would be done: ``what`` names it ("table 'arrivals'"), ``why`` gives the reasons."""

    action: Action
    what: str
    why: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that would be done, in order, and what the person should know beside it."""

    items: tuple[Item, ...]
    warnings: tuple[Fault, ...]

    @property
    def idle(self) -> bool:
        """True when everything is as declared; bringing the endpoint up counts as no work."""
        return all(item.action in ("nothing", "serve") for item in self.items)


def plan(system: System, built: Built) -> Plan:
    """Return what separates ``built`` from ``system``: tables, feature views, models, operations, endpoint, in order.

    The system must have passed ``check``. Raises FingerprintError when a function cannot be fingerprinted.
    """
    items = [*_tables(system, built), *_views(system, built), *_models(system, built)]
    parts = operations(system)
    if built.operations is not None and (why := changes(built.operations, parts)):
        items.append(Item("change", f"system '{system.name}'", why))
    if built.serving:
        items.append(Item("nothing", "endpoint"))
    else:
        items.append(Item("serve", "endpoint", (f"on http://127.0.0.1:{system.endpoint.port}",)))
    return Plan(tuple(items), (*warnings(system), *_left_over(system, built)))


def _tables(system: System, built: Built) -> Iterator[Item]:
    moving: set[str] = set()  # tables whose rows will change
    for table in system.tables:
        what = f"{'source' if isinstance(table, Source) else 'table'} '{table.name}'"
        known = built.tables.get(table.name)
        item = _source(table, what, known) if isinstance(table, Source) else _derived(table, what, known, moving)
        if item.action in ("load", "create", "rebuild"):
            moving.add(table.name)
        yield item


def _source(source: Source, what: str, known: BuiltTable | None) -> Item:
    if known is None:
        if isinstance(source.reader, Push):
            return Item("create", what, ("not created yet; waits for rows that are pushed",))
        return Item("load", what, ("not loaded yet",))
    old, new = dict(known.parts), describe(source)
    where = changes({"reader": old.pop("reader", None)}, {"reader": new.pop("reader")})
    why = changes(old, new)
    if why and isinstance(source.reader, Push):
        return Item("change", what, (*why, "rows already pushed cannot be read again and stay as they are"))
    if why:
        return Item("rebuild", what, (*why, *where))
    if where:
        return Item("change", what, (*where, f"the {known.rows:,} rows already loaded stay"))
    if known.pending:
        kind = "file" if isinstance(source.reader, Files) else "row"
        return Item("load", what, (f"{known.pending:,} new {kind}{'s' if known.pending > 1 else ''}",))
    return Item("nothing", what)


def _derived(table: Table, what: str, known: BuiltTable | None, moving: set[str]) -> Item:
    if known is None:
        return Item("create", what, ("not built yet",))
    if why := changes(known.parts, describe(table)):
        return Item("rebuild", what, why)
    if fresh := [name for name in table.inputs if name in moving]:
        return Item("load", what, (f"new rows in {', '.join(fresh)}",))
    return Item("nothing", what)


def _views(system: System, built: Built) -> Iterator[Item]:
    for view in system.views:
        if isinstance(view, OnDemand):
            continue  # computed from the request; nothing is kept
        what = f"online state of feature view '{view.name}'"
        known = built.views.get(view.name)
        if known is None:
            yield Item("create", what, ("not built yet",))
        elif why := changes(known, describe(view)):
            yield Item("rebuild", what, why)
        else:
            yield Item("nothing", what)


def _models(system: System, built: Built) -> Iterator[Item]:
    for model in system.models:
        what = f"model '{model.name}'"
        known = built.models.get(model.name)
        if known is None and model.name in built.undecided:
            again = f"tried again when more has matured, or by: tidemill retrain {model.name}"
            yield Item("nothing", what, (f"no champion yet: {built.undecided[model.name]}", again))
            continue
        if known is None:
            yield Item("train", what, ("no version yet",))
            continue
        new = recipe(model, system.policy)
        if fingerprint(known.recipe) != fingerprint(new):
            yield Item("retrain", what, changes(known.recipe, new))
        else:
            yield Item("nothing", what, (f"version {known.version} has this recipe",))
        if why := changes(known.judging, judging(model)):
            yield Item("change", f"judging of model '{model.name}'", why)


def _left_over(system: System, built: Built) -> Iterator[Fault]:
    declared = {table.name for table in system.tables}
    for name, table in built.tables.items():
        if name not in declared:
            yield Fault(f"table '{name}'", f"is no longer declared; its {table.rows:,} rows are kept.", "")
    names = {model.name for model in system.models}
    for name in built.models:
        if name not in names:
            yield Fault(f"model '{name}'", "is no longer declared; its versions are kept and not served.", "")
