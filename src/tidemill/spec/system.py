"""Endpoint, monitor, policy, and the system that holds everything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tidemill.base.clock import parse_duration
from tidemill.spec import argument
from tidemill.spec.feature import OnDemand, View
from tidemill.spec.model import Model
from tidemill.spec.source import Source, Table


@dataclass(frozen=True, slots=True, init=False)
class Canary:
    """A version that passed the gate first answers a ``share`` (0 to 1) of the keys, for ``over`` microseconds.

    What it answers, the champion answers too, unseen, and both are compared on the labels that mature. Shown to be
    worse, it is withdrawn; else it is promoted once the stretch is over and the gate's ``min_rows`` pairs are mature.
    """

    share: float
    over: int

    def __init__(self, *, share: float = 0.1, over: str = "1d") -> None:
        argument.number(share, "the share of a canary")
        object.__setattr__(self, "share", share)
        object.__setattr__(self, "over", parse_duration(over))


@dataclass(frozen=True, slots=True, init=False)
class Endpoint:
    """How predictions are served.

    ``log``: "all" keeps every prediction in the lake, a number from 0 to 1 that share of them (by their ids), "none"
    none. ``durability``: "batch" answers once the record is written and syncs within 10 ms; "sync" answers after the
    sync. ``canary``: how a version that passed the gate is let in; None promotes it at once. ``port`` on loopback; 0
    picks a free one. ``workers``: server processes that share the port. ``load``: "start" loads every champion before
    it is ready, "use" each model at its first request.

    Limits, of each worker: ``max_body`` bytes of a request, ``max_requests`` being worked on at once,
    ``max_connections`` open at once; ``timeout`` microseconds within which a request must have come in whole, and
    within which it must be answered; ``drain`` microseconds that stopping waits for requests under way.
    ``access_log``: which requests get a line in the access log.
    """

    log: Literal["all", "none"] | float
    durability: Literal["batch", "sync"]
    canary: Canary | None
    port: int
    workers: int
    load: Literal["start", "use"]
    max_body: int
    max_requests: int
    max_connections: int
    timeout: int
    drain: int
    access_log: Literal["all", "errors", "none"]

    def __init__(
        self,
        *,
        log: Literal["all", "none"] | float = "all",
        durability: Literal["batch", "sync"] = "batch",
        canary: Canary | None = None,
        port: int = 8321,
        workers: int = 1,
        load: Literal["start", "use"] = "start",
        max_body: int = 8 << 20,
        max_requests: int = 256,
        max_connections: int = 1024,
        timeout: str = "10s",
        drain: str = "30s",
        access_log: Literal["all", "errors", "none"] = "errors",
    ) -> None:
        argument.require(log, str | int | float, "log= of an endpoint", "Write 'all', 'none', or a share such as 0.1.")
        argument.require(canary, Canary | None, "canary= of an endpoint", "Write tm.Canary(share=0.1, over='1d').")
        for what, count in (
            ("port", port),
            ("workers", workers),
            ("max_body", max_body),
            ("max_requests", max_requests),
            ("max_connections", max_connections),
        ):
            argument.require(count, int, f"{what}= of an endpoint", "Write a whole number.")
        for attribute, value in (
            ("log", log),
            ("durability", durability),
            ("canary", canary),
            ("port", port),
            ("workers", workers),
            ("load", load),
            ("max_body", max_body),
            ("max_requests", max_requests),
            ("max_connections", max_connections),
            ("timeout", parse_duration(timeout)),
            ("drain", parse_duration(drain)),
            ("access_log", access_log),
        ):
            object.__setattr__(self, attribute, value)

    @property
    def logged(self) -> float:
        """The share of predictions that is kept, from 0 to 1."""
        return {"all": 1.0, "none": 0.0}[self.log] if isinstance(self.log, str) else self.log


@dataclass(frozen=True, slots=True)
class Psi:
    """Population stability index against the training profile: drift when it exceeds ``over``."""

    over: float


@dataclass(frozen=True, slots=True)
class WorseThan:
    """A drop of the gate's metric on mature live predictions by more than ``margin`` against the judged value."""

    margin: float


@dataclass(frozen=True, slots=True)
class Monitor:
    """What is watched: ``drift`` of features and predictions, and ``performance`` as labels mature, every ``every``.

    ``every`` and ``window`` are microseconds: how often reports are made, and over which stretch of predictions.
    """

    drift: Psi | None
    performance: WorseThan | None
    every: int
    window: int

    def __init__(
        self,
        *,
        drift: Psi | None = None,
        performance: WorseThan | None = None,
        every: str = "1d",
        window: str = "7d",
    ) -> None:
        argument.require(drift, Psi | None, "drift= of a monitor", "Write tm.psi(over=0.2).")
        argument.require(performance, WorseThan | None, "performance= of a monitor", "Write tm.worse_than(0.02).")
        for attribute, value in (
            ("drift", drift),
            ("performance", performance),
            ("every", parse_duration(every)),
            ("window", parse_duration(window)),
        ):
            object.__setattr__(self, attribute, value)


def psi(*, over: float = 0.2) -> Psi:
    """Report drift when the population stability index of a feature or of the prediction exceeds ``over``."""
    argument.number(over, "over= of psi()")
    return Psi(over)


def worse_than(margin: float) -> WorseThan:
    """Report a drop when the gate's metric is worse than when the champion was judged by more than ``margin``."""
    argument.number(margin, "the margin of worse_than()")
    return WorseThan(margin)


@dataclass(frozen=True, slots=True)
class Every:
    """Retrain ``micros`` after the last training started."""

    micros: int


@dataclass(frozen=True, slots=True)
class OnDrift:
    """Retrain when drift is reported, at most once every ``cooldown`` microseconds."""

    cooldown: int


@dataclass(frozen=True, slots=True)
class OnDrop:
    """Retrain when a drop of performance is reported, at most once every ``cooldown`` microseconds."""

    cooldown: int


Trigger = Every | OnDrift | OnDrop


def every(period: str) -> Every:
    """Retrain on a schedule: ``period`` after the last training started."""
    return Every(parse_duration(period))


def on_drift(*, cooldown: str = "7d") -> OnDrift:
    """Retrain when drift is reported and the last training started at least ``cooldown`` ago."""
    return OnDrift(parse_duration(cooldown))


def on_drop(*, cooldown: str = "7d") -> OnDrop:
    """Retrain when performance has dropped and the last training started at least ``cooldown`` ago."""
    return OnDrop(parse_duration(cooldown))


@dataclass(frozen=True, slots=True, init=False)
class Policy:
    """When to retrain, and on what.

    ``window``: microseconds of newest examples to learn from, None for all. ``takes``: microseconds of (virtual) time
    after its start at which a training takes effect; the clock waits for it.
    """

    retrain: tuple[Trigger, ...]
    window: int | None
    takes: int

    def __init__(self, *, retrain: Trigger | Iterable[Trigger] = (), window: str = "all", takes: str = "1h") -> None:
        do = "Write tm.every('30d'), tm.on_drift() or tm.on_drop()."
        triggers = argument.listed(retrain, Trigger, "retrain= of a policy", do)
        object.__setattr__(self, "retrain", triggers)
        object.__setattr__(self, "window", None if window == "all" else parse_duration(window))
        object.__setattr__(self, "takes", parse_duration(takes))


@dataclass(frozen=True, slots=True, init=False)
class System:
    """A whole system: its models and how they are served, watched and retrained.

    ``tick``: microseconds between the logical ticks at which rows are taken in and decisions are made.
    """

    name: str
    models: tuple[Model, ...]
    endpoint: Endpoint
    monitor: Monitor
    policy: Policy
    tick: int

    def __init__(
        self,
        name: str,
        *models: Model,
        endpoint: Endpoint | None = None,
        monitor: Monitor | None = None,
        policy: Policy | None = None,
        tick: str = "1m",
    ) -> None:
        argument.name(name, "a system")
        for model in models:
            do = "Pass models; feature views are among a model's features=."
            argument.require(model, Model, f"a model of system {name!r}", do)
        for given, kind in ((endpoint, Endpoint), (monitor, Monitor), (policy, Policy)):
            what = f"{kind.__name__.lower()}= of system {name!r}"
            argument.require(given, kind | None, what, f"Write tm.{kind.__name__}(…).")
        for attribute, value in (
            ("name", name),
            ("models", models),
            ("endpoint", endpoint or Endpoint()),
            ("monitor", monitor or Monitor()),
            ("policy", policy or Policy()),
            ("tick", parse_duration(tick)),
        ):
            object.__setattr__(self, attribute, value)

    @property
    def views(self) -> tuple[View, ...]:
        """Every feature view that a model uses, once each, in order of first use."""
        return tuple(dict.fromkeys(view for model in self.models for view in model.views))

    @property
    def tables(self) -> tuple[Source | Table, ...]:
        """Every source and derived table reached from the models, inputs before what is derived from them."""
        ordered: dict[str, Source | Table] = {}

        def visit(table: Source | Table) -> None:
            if table.name in ordered:
                return
            if isinstance(table, Table):
                for source in table.sources:
                    visit(source)
            ordered[table.name] = table

        for model in self.models:
            visit(model.examples)
            visit(model.label.table)
            for view in model.views:
                if not isinstance(view, OnDemand):
                    visit(view.table)
        return tuple(ordered.values())

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every source, in order of name: the order in which the rows of a tick are taken in."""
        return tuple(sorted((each for each in self.tables if isinstance(each, Source)), key=lambda each: each.name))
