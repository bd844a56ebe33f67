from __future__ import annotations

from pathlib import Path

from tidemill.adapters.memory_artefacts import MemoryArtefacts
from tidemill.ports.artefacts import Artefacts
from tidemill.testing.artefact_suite import ArtefactSuite


class TestMemoryArtefacts(ArtefactSuite):
    def open(self, directory: Path) -> Artefacts:
        return MemoryArtefacts()
