"""What led to one prediction: the entries of the journal and the versions of the data behind it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tidemill.engine.predict.route import CHAMPION, Route
from tidemill.ports.journal import Entry


@dataclass(frozen=True, slots=True)
class Data:
    """How far a table had been applied: rows below ``next_seq``.

    ``tick`` and ``version``: of the commit that brought the last of them (microseconds; the lake's storage version).
    None when the table had no rows, or its rows were not journaled when the prediction was made.
    """

    next_seq: int
    tick: int | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Lineage:
    """The journal's part of a prediction's account.

    ``data`` by table. ``train``, ``judge`` and ``version``: the entries by which the model's version came to be;
    ``alias``: the newest entry (of kind alias or route) that gave it its route before the prediction. None where the
    journal has no such entry.
    """

    data: Mapping[str, Data] = field(default_factory=dict)
    train: Entry | None = None
    judge: Entry | None = None
    version: Entry | None = None
    alias: Entry | None = None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries that led to the model's version and its route, in order."""
        found = [each for each in (self.train, self.judge, self.version, self.alias) if each is not None]
        return tuple(sorted(found, key=lambda entry: entry.number))


def lineage(entries: Iterable[Entry], logged: Mapping[str, Any], applied: Mapping[str, int]) -> Lineage:
    """Return what the journal says of a prediction: its row of the ledger, and the rows ``applied`` of each table."""
    model, number, upto = logged["model"], logged["version"], logged["journal"]
    data = {table: Data(count) for table, count in sorted(applied.items())}
    trains: dict[str, Entry] = {}
    judges: dict[str, Entry] = {}
    version = alias = None
    for entry in entries:
        body = entry.body
        if entry.kind == "commit":
            if body["next_seq"] == applied.get(body["table"]) and data[body["table"]].tick is None:
                data[body["table"]] = Data(body["next_seq"], entry.tick, entry.meta.get("version"))
            continue
        if body.get("model") != model:
            continue
        match entry.kind:
            case "train":
                trains[body["training"]] = entry
            case "judge":
                judges[body["training"]] = entry
            case "version" if body["version"] == number:
                version = entry
            case "alias" if body["version"] == number and body["alias"] == logged["route"] and entry.number <= upto:
                alias = entry
            case "route" if number in Route.from_json(body["route"]).versions and entry.number <= upto:
                alias = entry if logged["route"] != CHAMPION else alias
    training = version.body["training"] if version is not None else ""
    return Lineage(data, trains.get(training), judges.get(training), version, alias)
