from __future__ import annotations

from pathlib import Path

from tidemill.adapters.memory_online import MemoryOnline
from tidemill.ports.online import Online
from tidemill.testing.online_suite import OnlineSuite


class TestMemoryOnline(OnlineSuite):
    def open(self, directory: Path) -> Online:
        return MemoryOnline()
