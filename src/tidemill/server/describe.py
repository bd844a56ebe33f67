"""What a server says of what it serves: its models, its health, and the figures of its state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill.base.clock import format_time
from tidemill.engine.predict.route import PLAIN
from tidemill.engine.predict.serving import Serving
from tidemill.server.metrics import Family, gauge
from tidemill.spec.feature import OnDemand


def model(serving: Serving, name: str) -> dict[str, Any]:
    """Return what ``GET /v1/models/{model}`` says. Raises NotFoundError."""
    declared = serving.model(name)
    live = serving.lives.get(name)
    known = serving.state.model(name)
    described: dict[str, Any] = {
        "model": name,
        "task": declared.task,
        "key": declared.examples.key,
        "champion": None,
        "route": None if known.route == PLAIN else known.route.as_json(),
        "versions": len(known.versions),
        "trouble": serving.troubles.get(name),
    }
    if live:
        described["champion"] = {"version": live.champion.version, "training": live.champion.training}
        described["classes"] = live.champion.predictor.encoding.classes
        described["columns"] = {column: str(dtype) for column, dtype in live.rows.schema.items()}
    return described


def behind(serving: Serving) -> dict[str, int]:
    """Return for each table how many committed rows the online state has not applied."""
    applied = serving.watermark()
    seen = dict(applied.next_seq) if applied else {}
    rows = serving.state.rows
    tables = {view.table.name for view in serving.system.views if not isinstance(view, OnDemand)}
    return {table: max(rows.get(table, 0) - seen.get(table, 0), 0) for table in sorted(tables)}


def health(serving: Serving, workers: Mapping[str, int]) -> dict[str, Any]:
    """Return what ``GET /v1/health`` says; ``workers``: the journal entry that each serves by."""
    applied = serving.watermark()
    rows = behind(serving)
    views = {
        view.name: {"table": view.table.name, "rows_behind": rows[view.table.name]}
        for view in serving.system.views
        if not isinstance(view, OnDemand)
    }
    return {
        "alive": True,
        "journal": min(workers.values()),
        "workers": workers,
        "watermark": format_time(applied.t) if applied else None,
        "views": views,
        "champions": {name: live.champion.version for name, live in serving.lives.items()},
        "routes": {name: live.route.as_json() for name, live in serving.lives.items() if live.route != PLAIN},
        "troubles": dict(serving.troubles),
    }


def gauges(serving: Serving) -> list[Family]:
    """Return what ``GET /metrics`` says of the state that is served."""
    applied = serving.watermark()
    failures = [
        ("", {"model": model, "version": version}, float(count))
        for (model, version), count in sorted(serving.answering.failures.items())
    ]
    entries = max(serving.state.number - (applied.journal if applied else 0), 0)
    views = serving.freshness().views
    events = {name: fresh.event_time for name, fresh in views.items()}
    knowns = {name: fresh.known_at for name, fresh in views.items()}
    return [
        Family("tidemill_trial_failures_total", "counter", "Failures of arms and shadows.", failures),
        gauge("tidemill_journal_applied", "Journal entry served by.", [({}, serving.applied)]),
        gauge("tidemill_journal_behind", "Journal entries that online state has not applied.", [({}, entries)]),
        gauge(
            "tidemill_watermark_seconds",
            "Time as of which questions are answered, seconds since the epoch.",
            [({}, applied.t / 1e6)] if applied else [],
        ),
        gauge(
            "tidemill_view_event_seconds",
            "Newest event time among the rows that a feature view has taken in, seconds since the epoch.",
            [({"view": name}, at / 1e6) for name, at in sorted(events.items()) if at is not None],
        ),
        gauge(
            "tidemill_view_known_seconds",
            "Newest known-at among the rows that a feature view has taken in, seconds since the epoch.",
            [({"view": name}, at / 1e6) for name, at in sorted(knowns.items()) if at is not None],
        ),
        gauge(
            "tidemill_rows_behind",
            "Committed rows of a table that online state has not applied.",
            [({"table": table}, rows) for table, rows in behind(serving).items()],
        ),
    ]
