from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.adapters.memory_journal import MemoryJournal
from tidemill.ports.journal import Journal, Lease
from tidemill.testing.journal_suite import JournalSuite


class TestMemoryJournal(JournalSuite):
    @pytest.fixture(autouse=True)
    def _journals(self) -> None:
        self._by_directory: dict[Path, MemoryJournal] = {}

    def open(self, directory: Path) -> Journal:
        return self._by_directory.setdefault(directory, MemoryJournal())

    def usurp(self, directory: Path) -> Lease:
        return self._by_directory[directory].take_over()
