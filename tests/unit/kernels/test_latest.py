"""First, last and all visible rows of a stretch against a direct look at every row."""

from __future__ import annotations

import numpy as np
import pytest

from tidemill.kernels import latest
from tidemill.kernels.latest import Line


@pytest.mark.parametrize("chunk", [1, 7, 1 << 21])
@pytest.mark.parametrize("seed", range(4))
def test_against_every_row(seed: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latest, "_CHUNK", chunk)
    random = np.random.default_rng(seed)
    rows, queries = 50, 60
    group, time, start = random.integers(0, 3, rows), random.integers(0, 10, rows), random.integers(0, 14, rows)
    end = np.where(random.random(rows) < 0.4, 2**63 - 1, start + random.integers(1, 6, rows))
    seq = random.permutation(rows)
    asked, t = random.integers(-1, 3, queries), random.integers(0, 20, queries)
    line = Line(group, 3, time, start, seq, start, end, asked=asked, t=t)
    order = np.lexsort((seq, start, time))
    for width in (None, 0, 1, 5):
        first, last, pairs = [], [], set()
        for query, (g, at) in enumerate(zip(asked, t, strict=True)):
            seen = (group == g) & (time < at) & (start < at) & (at <= end)
            if width is not None:
                seen &= time >= at - width
            found = [int(row) for row in order if seen[row]]
            first.append(found[0] if found else -1)
            last.append(found[-1] if found else -1)
            pairs |= {(query, row) for row in found}
        assert line.first(width).tolist() == first
        assert line.last(width).tolist() == last
        got = [pair for query, row in line.visible(width) for pair in zip(query.tolist(), row.tolist(), strict=True)]
        assert len(got) == len(pairs)
        assert set(got) == pairs
