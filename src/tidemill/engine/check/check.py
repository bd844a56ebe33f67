"""`check`: every fault of a declared system at once, in order of declaration. Pure but for `installation`.

Reads no data, trains nothing. What the data says comes in as values: the columns of tables that exist, the tables in
whose data keys come twice, the numbers of different strings, and what the cut test of derived tables found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

import polars as pl

from tidemill.base.errors import Fault
from tidemill.engine.check.column import Schema, first_line, kept, title
from tidemill.engine.check.feature import staying, view_faults, view_title
from tidemill.engine.check.fingerprint import known_at
from tidemill.engine.check.model import Categories, model_faults
from tidemill.engine.check.table import bad_name, derived_schema, table_faults
from tidemill.kernels.compiled import missing
from tidemill.spec.feature import OnDemand, View
from tidemill.spec.source import Files, Rows, Source, Table
from tidemill.spec.system import Endpoint, Every, OnDrift, OnDrop, System


class _Named(Hashable, Protocol):
    @property
    def name(self) -> str: ...


Declared = TypeVar("Declared", bound=_Named)

#: What an endpoint's settings that are words may be.
_WORDS = {"durability": ("batch", "sync"), "load": ("start", "use"), "access_log": ("all", "errors", "none")}


def check(
    system: System,
    schemas: Mapping[str, Mapping[str, pl.DataType]] | None = None,
    *,
    repeated: Collection[str] = (),
    categories: Categories | None = None,
    cut_faults: Iterable[Fault] = (),
) -> tuple[Fault, ...]:
    """Return every fault of ``system``, tables first, then feature views, models and the system; () when it is sound.

    ``schemas``: columns and types, by name, of the tables whose data exists, as read or as kept; the columns of any
    other source are taken on trust, those of derived tables are found by running their functions on empty frames.
    ``repeated``: names of sources in whose data a key comes twice. ``categories``: how many different values string
    columns have, by table and column. ``cut_faults``: what the cut test of derived tables found.
    """
    known: dict[str, Schema] = {name: kept(schema) for name, schema in (schemas or {}).items()}
    tables, views = _every_table(system), _every_view(system)
    early = [*_cycles(tables), *_twice(tables, title, "table")]
    twisted = {fault.where for fault in early}
    faults = [*early]
    for table in tables:
        if isinstance(table, Table) and table.name not in known and title(table) not in twisted:
            schema, wrong = derived_schema(table, known)
            faults.extend(wrong)
            if schema is not None:
                known[table.name] = schema
        faults.extend(_examined(title(table), table_faults(table, known, repeated)))
    faults.extend(cut_faults)
    faults.extend(_twice(views, view_title, "feature view"))
    for view in views:
        faults.extend(_examined(view_title(view), view_faults(view, known)))
    faults.extend(_twice(system.models, lambda model: f"model '{model.name}'", "model"))
    for model in system.models:
        faults.extend(_examined(f"model '{model.name}'", model_faults(model, known, categories or {})))
    faults.extend(_examined(f"system '{system.name}'", _system(system)))
    order = {where: place for place, where in enumerate(_titles(system, tables, views))}
    unique = dict.fromkeys(faults)
    return tuple(sorted(unique, key=lambda fault: order.get(fault.where.partition(",")[0], len(order))))


def _examined(where: str, faults: Iterator[Fault]) -> Iterator[Fault]:
    """Yield ``faults``; what the examination of a declaration does not foresee is one more, not the end of them all."""
    try:
        yield from faults
    except Exception as error:
        what = f"cannot be examined ({type(error).__name__}): {first_line(error)}."
        yield Fault(where, what, "One of its arguments is likely of the wrong type.")


def derived_schemas(system: System, schemas: Mapping[str, Schema]) -> dict[str, Schema]:
    """Return ``schemas`` with those of the derived tables that can be told from them."""
    known: dict[str, Schema] = {name: kept(schema) for name, schema in schemas.items()}
    for table in system.tables:
        if isinstance(table, Table) and table.name not in known:
            schema, _ = derived_schema(table, known)
            if schema is not None:
                known[table.name] = schema
    return known


def warnings(system: System) -> tuple[Fault, ...]:
    """Return what is allowed but should be known: history that is not kept, a feature named like the label's column."""
    found = [
        Fault(
            title(table),
            "has neither event time nor known-at: it is seen as it is now, also from the past; history is not kept.",
            "Declare known_at= if its rows change.",
        )
        for table in system.tables
        if isinstance(table, Source) and isinstance(table.reader, Files) and table.static and known_at(table) is None
    ]
    found += [
        Fault(
            title(source),
            "brings rows of a function: each is known from the tick on that takes it in, so that no question of the "
            "past sees it.",
            "Where the function returns the past at first, declare tm.rows(…, history=True); or bring it as files.",
        )
        for source in system.sources
        if isinstance(source.reader, Rows) and not source.has_history
    ]
    for model in system.models:
        same = [column for column in model.plain if column in model.label.value.columns]
        if model.label.table.name != model.examples.name:
            found.extend(
                Fault(
                    f"model '{model.name}'",
                    f"the feature '{column}' has the name of a column that the label is computed from.",
                    f"Make sure that {title(model.examples)} does not already hold what came true.",
                )
                for column in same
            )
    return tuple(found)


def uncompiled(system: System, schemas: Mapping[str, Schema]) -> tuple[Fault, ...]:
    """Return a note for each on-demand expression that stays in Polars: why, and its measured cost. Not pure."""
    known = derived_schemas(system, schemas)
    pairs = {(view, model.examples): None for model in system.models for view in model.views}
    return tuple(
        note for view, examples in pairs if isinstance(view, OnDemand) for note in staying(view, examples, known)
    )


def installation() -> tuple[Fault, ...]:
    """Return what is to be known about this installation: kernels that could not be compiled. Not pure: it looks."""
    if not (plain := missing()):
        return ()
    return (
        Fault(
            "installation",
            f"the kernels for {', '.join(plain)} run as plain Python: the same answers, but many times slower.",
            "Install a C compiler and Python's headers, then pip install --force-reinstall --no-deps tidemill.",
        ),
    )


def _every_table(system: System) -> list[Source | Table]:
    """Return every table reached, inputs first; two that share a name both appear."""
    found: dict[Source | Table, None] = {}

    def visit(table: Source | Table) -> None:
        if table not in found:
            for source in table.sources if isinstance(table, Table) else ():
                visit(source)
            found[table] = None

    for model in system.models:
        visit(model.examples)
        visit(model.label.table)
        for view in model.views:
            if not isinstance(view, OnDemand):
                visit(view.table)
    return list(found)


def _every_view(system: System) -> list[View]:
    return list(dict.fromkeys(view for model in system.models for view in model.views))


def _titles(system: System, tables: list[Source | Table], views: list[View]) -> list[str]:
    titles = [*map(title, tables), *map(view_title, views), *(f"model '{model.name}'" for model in system.models)]
    return list(dict.fromkeys([*titles, f"system '{system.name}'"]))


def _twice(declared: Iterable[Declared], name: Callable[[Declared], str], kind: str) -> Iterator[Fault]:
    each = list(declared)
    counts = Counter(one.name for one in each)
    for one in {other.name: other for other in each}.values():
        if counts[one.name] > 1 and not (isinstance(one, Table) and one.name in _ancestors(one)):
            what = f"{counts[one.name]} different declarations have this name."
            yield Fault(name(one), what, f"Give each {kind} its own name.")


def _ancestors(table: Table) -> dict[str, str]:
    """Return the names a table is derived from, each with the way there."""
    names: dict[str, str] = {}
    for source in table.sources:
        names.setdefault(source.name, f"{source.name}")
        if isinstance(source, Table):
            for name, way in _ancestors(source).items():
                names.setdefault(name, f"{source.name} -> {way}")
    return names


def _cycles(tables: list[Source | Table]) -> Iterator[Fault]:
    for table in tables:
        if isinstance(table, Table) and table.name in (ancestors := _ancestors(table)):
            way = f"{table.name} -> {ancestors[table.name]}"
            yield Fault(title(table), f"is derived from itself: {way}.", "Give the derived table a name of its own.")


def _system(system: System) -> Iterator[Fault]:
    where = f"system '{system.name}'"
    yield from bad_name(where, system.name)
    if not system.models:
        yield Fault(where, "has no model.", "Pass one: tm.System('name', model).")
    monitor, policy = system.monitor, system.policy
    durations = {"tick": system.tick, "monitor's every": monitor.every, "monitor's window": monitor.window}
    if policy.window is not None:
        durations["policy's window"] = policy.window
    for trigger in policy.retrain:
        if isinstance(trigger, Every):
            durations["schedule of retraining"] = trigger.micros
        if isinstance(trigger, OnDrift) and monitor.drift is None:
            do = "Write monitor=tm.Monitor(drift=tm.psi(over=0.2))."
            yield Fault(where, "retrains on drift, which nothing watches.", do)
        if isinstance(trigger, OnDrop) and monitor.performance is None:
            do = "Write monitor=tm.Monitor(performance=tm.worse_than(0.02))."
            yield Fault(where, "retrains on a drop of performance, which nothing watches.", do)
    for what, micros in durations.items():
        if micros <= 0:
            yield Fault(where, f"the {what} is zero.", "Write a duration such as '1d'.")
    if monitor.drift is not None and not monitor.drift.over > 0:
        yield Fault(where, f"psi(over={monitor.drift.over}) is out of bounds.", "It is above zero; 0.2 is usual.")
    if monitor.performance is not None and not monitor.performance.margin >= 0:
        yield Fault(where, f"worse_than({monitor.performance.margin}) is out of bounds.", "It is zero or more.")
    yield from _check_endpoint(where, system.endpoint)


def _check_endpoint(where: str, endpoint: Endpoint) -> Iterator[Fault]:
    if not 0 <= endpoint.port <= 65_535:
        yield Fault(where, f"port={endpoint.port} is out of bounds.", "It lies in [0, 65535].")
    if isinstance(endpoint.log, str) and endpoint.log not in ("all", "none"):
        yield Fault(where, f"log={endpoint.log!r} is not known.", "Write 'all', 'none', or a share such as 0.1.")
    elif not 0 <= endpoint.logged <= 1:
        yield Fault(where, f"log={endpoint.log} is out of bounds.", "A share lies in [0, 1].")
    for name, words in _WORDS.items():
        if (word := getattr(endpoint, name)) not in words:
            yield Fault(where, f"{name}={word!r} is not known.", f"Write one of {', '.join(map(repr, words))}.")
    canary = endpoint.canary
    if canary is not None:
        if not 0 < canary.share < 1:
            yield Fault(where, f"Canary(share={canary.share}) is out of bounds.", "It lies between 0 and 1.")
        if canary.over <= 0:
            yield Fault(where, "the canary's stretch is zero.", "Write a duration such as over='1d'.")
        if endpoint.logged < 1:
            do = "Write log='all', or leave the canary out."
            yield Fault(where, "a canary is judged on logged predictions, and not all of them are logged.", do)
    for name in ("workers", "max_body", "max_requests", "max_connections", "timeout", "drain"):
        if getattr(endpoint, name) <= 0:
            yield Fault(where, f"the endpoint's {name} is not above zero.", "Write a larger one, or leave it out.")
