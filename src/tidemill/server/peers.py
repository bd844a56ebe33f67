"""What the workers of one port tell each other: each writes its figures into a file, and whoever is asked reads all.

A file is replaced whole. Figures of a worker that died stay until the one in its place writes its own.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from tidemill.server.metrics import Family


class Told(msgspec.Struct, frozen=True):
    """What a worker tells: the journal entry that it serves by, and its figures."""

    applied: int
    families: list[Family]


_decode = msgspec.json.Decoder(Told).decode


class Peers:
    """The workers that share a port; without a ``folder``, this one alone."""

    def __init__(self, worker: int = 0, folder: Path | None = None) -> None:
        self.worker = str(worker)
        self._folder = folder

    def tell(self, told: Told) -> None:
        """Replace what this worker tells."""
        if self._folder is not None:
            file = self._folder / f"{self.worker}.json"
            draft = file.with_suffix(".new")
            draft.write_bytes(msgspec.json.encode(told))
            os.replace(draft, file)

    def all(self, own: Told) -> dict[str, Told]:
        """Return what each worker tells, this one ``own``, by worker."""
        found = {self.worker: own}
        if self._folder is not None:
            for file in self._folder.glob("*.json"):
                if file.stem != self.worker:
                    found[file.stem] = _decode(file.read_bytes())
        return dict(sorted(found.items(), key=lambda each: int(each[0])))
