from __future__ import annotations

import pytest

from tidemill.adapters.memory_lake import MemoryLake
from tidemill.ports.lake import Lake
from tidemill.testing.lake_suite import GivenFence, LakeSuite, append, make_rows


class TestMemoryLake(LakeSuite):
    @pytest.fixture
    def lake(self) -> Lake:
        return MemoryLake()

    def test_old_versions_stay_whole_when_lines_part(self, lake: Lake, fence: GivenFence) -> None:
        first = append(lake, 2, fence)
        undone = append(lake, 3, fence)
        lake.restore("arrivals", first.version, fence)
        again = append(lake, 4, fence)
        lake.compact("arrivals", fence)
        assert lake.scan("arrivals", version=undone.version).equals(make_rows(0, 5))
        assert lake.scan("arrivals", version=again.version).equals(make_rows(0, 6))
        assert lake.scan("arrivals").column("value").num_chunks <= 2
