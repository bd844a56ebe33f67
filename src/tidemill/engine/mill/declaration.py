"""What a workspace was built by, and what may change in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill.base.errors import WorkspaceError
from tidemill.engine.check.change import changes
from tidemill.engine.check.fingerprint import describe, judging, operations, origins, recipe
from tidemill.engine.predict.state import State
from tidemill.ports.journal import Journal
from tidemill.spec.feature import OnDemand
from tidemill.spec.system import System


def declared(system: System) -> dict[str, Any]:
    """Return the parts of everything declared, for plans and for noticing a change."""
    return {
        "tables": {table.name: describe(table) for table in system.tables},
        "views": {view.name: describe(view) for view in system.views if not isinstance(view, OnDemand)},
        "models": {
            model.name: {"recipe": recipe(model, system.policy), "judging": judging(model)} for model in system.models
        },
        "operations": operations(system),
    }


def refuse_new_meaning(state: State, parts: Mapping[str, Any]) -> None:
    """Raise WorkspaceError when by ``parts`` the rows that a source has brought would mean something else."""
    for name, new in parts["tables"].items():
        old = state.declared.get("tables", {}).get(name)
        if old is None or old["kind"] != "source" or name not in state.rows:
            continue
        kept = ("reader", "checks")  # these decide which rows come, not what the rows that came mean
        why = changes(
            {key: value for key, value in old.items() if key not in kept},
            {key: value for key, value in new.items() if key not in kept},
        )
        if why:
            raise WorkspaceError(
                f"source {name!r}: its {state.rows[name]:,} rows were taken in under another declaration "
                f"({'; '.join(why)}). Give the source a new name, or start with a new workspace folder."
            )


def refuse_lost_features(system: System, state: State, journal: Journal) -> None:
    """Raise WorkspaceError when a champion, which answers until another is promoted, would get other inputs."""
    for model in system.models:
        known = state.model(model.name)
        step = journal.step(known.resolve("champion").training) if "champion" in known.aliases else None
        if step is None:
            continue
        now, then = origins(model), step["origins"]
        lost = [name for name in step["encoding"]["columns"] if now.get(name) != then[name]]
        if lost:
            raise WorkspaceError(
                f"model {model.name!r}: its champion v{known.aliases['champion']} needs {', '.join(lost)}, which "
                f"{'are' if len(lost) > 1 else 'is'} no longer declared as when it was trained. Add a changed view "
                "under a new name beside the old one; to drop one, declare a new model beside this one."
            )


def recipe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return in words what changed in the recipes of models that both declarations have."""
    known = before.get("models", {})
    return [
        f"{name}: {change}"
        for name, parts in after["models"].items()
        if name in known
        for change in changes(known[name]["recipe"], parts["recipe"])
    ]
