"""What a workspace was built by, as the journal keeps it, and what changed in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill.engine.check.change import changes
from tidemill.engine.check.fingerprint import describe, judging, operations, recipe
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


def recipe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return in words what changed in the recipes of models that both declarations have."""
    known = before.get("models", {})
    return [
        f"{name}: {change}"
        for name, parts in after["models"].items()
        if name in known
        for change in changes(known[name]["recipe"], parts["recipe"])
    ]
