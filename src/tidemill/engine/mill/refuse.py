"""What a changed file must not do to what a workspace holds: give stored rows another meaning, or rob a champion.

And what a person should know while the champion and the versions to come differ in what they read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tidemill.base.errors import Fault, WorkspaceError
from tidemill.engine.check.change import changes
from tidemill.engine.check.fingerprint import describe, origins
from tidemill.engine.predict.state import State
from tidemill.spec.model import Model
from tidemill.spec.system import System

#: The result of a training by its id, None when it is not recorded.
Step = Callable[[str], Mapping[str, Any] | None]

_FREE = ("reader", "checks")  # these decide which rows come, not what the rows that came mean


def refusals(system: System, state: State, step: Step) -> Iterator[str]:
    """Yield why ``system`` cannot take over the workspace of ``state``: what, and what to do instead."""
    yield from _new_meanings(system, state)
    yield from _robbed(system, state, step)


def _new_meanings(system: System, state: State) -> Iterator[str]:
    before = state.declared.get("tables", {})
    for source in system.sources:
        old = before.get(source.name)
        if old is None or old["kind"] != "source" or source.name not in state.rows:
            continue
        why = changes(_meaning(old), _meaning(describe(source)))
        if why:
            yield (
                f"source {source.name!r}: its {state.rows[source.name]:,} rows were taken in under another declaration "
                f"({'; '.join(why)}). Give the source a new name, or start with a new workspace folder."
            )


def _meaning(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parts.items() if key not in _FREE}


def _robbed(system: System, state: State, step: Step) -> Iterator[str]:
    """Yield which versions that answer, champions and arms, would get other inputs."""
    for model in system.models:
        known = state.model(model.name)
        answering = {"its champion": known.aliases["champion"]} if "champion" in known.aliases else {}
        answering |= {f"its arm {arm.name!r},": arm.version for arm in known.route.arms}
        for who, number in answering.items():
            made = step(known.version(number).training)
            if made is not None and (gone := lost(model, made)):
                yield (
                    f"model {model.name!r}: {who} v{number} needs {changed(gone)}. Put it back, among the model's "
                    "retired= if new versions are not to learn from it, and give a changed view a new name; take it "
                    "out when a version without it is the champion."
                )


def transition_notes(system: System, state: State, step: Step) -> Iterator[Fault]:
    """Yield notes on what differs between a champion and the versions to come: features and columns of requests."""
    for model in system.models:
        known = state.model(model.name)
        made = step(known.resolve("champion").training) if "champion" in known.aliases else None
        if made is None:
            continue
        where, champion = f"model '{model.name}'", f"its champion v{known.aliases['champion']}"
        reads = made["encoding"]["columns"]
        for feature in model.retired:
            name, columns = (feature, (feature,)) if isinstance(feature, str) else (feature.name, feature.columns)
            if set(columns).isdisjoint(reads):
                yield Fault(
                    where,
                    f"{champion} does not need the retired feature '{name}'.",
                    "Take it out of retired=, unless you may yet roll back to a version that needs it.",
                )
        brought = model.reading(reads).request_columns
        coming = [name for name in model.reading(model.learned_columns).request_columns if name not in brought]
        if coming:
            yield Fault(
                where,
                f"requests need not bring {', '.join(coming)} yet: {champion} does not read it.",
                "Have clients send it before a version is promoted that does; from then on it must not be left out.",
            )


def lost(model: Model, made: Mapping[str, Any]) -> list[str]:
    """Return the inputs of the estimator that a training ``made`` which ``model`` no longer declares as they were."""
    now = origins(model)
    then = made.get("origins", now)  # not kept: nothing can be told
    return [name for name in made["encoding"]["columns"] if now.get(name) != then.get(name)]


def check_champion(model: Model, number: int, made: Mapping[str, Any] | None) -> None:
    """Raise WorkspaceError when version ``number``, ``made`` by a training, could not answer as ``model`` is declared.

    Where the training is not recorded nothing can be told.
    """
    if made is not None and (gone := lost(model, made)):
        raise WorkspaceError(
            f"v{number} of model {model.name!r} needs {changed(gone)}, so that it could not answer. Put that "
            "declaration back first, and start again: tidemill up"
        )


def changed(names: list[str]) -> str:
    """Return in words that the features ``names`` have changed."""
    return f"{', '.join(names)}, which {'are' if len(names) > 1 else 'is'} no longer declared as when it was trained"
