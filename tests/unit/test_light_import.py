"""`import tidemill` is light: nothing heavy is loaded before it is used, and every public name resolves."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tidemill

HEAVY = {"polars", "sklearn", "lance", "pyarrow", "torch", "sqlalchemy", "rich", "numpy", "pandas", "scipy", "uvicorn"}
DECLARING = """
import tidemill as tm
s = tm.Source("s", tm.files("*.csv"), key="id", event_time="at", known_at=tm.after("at", "1h"),
              checks=[tm.not_null("id"), tm.between("x", 0, 1), tm.one_of("y", "a")])
v = tm.Aggregation("v", s, by="id", features={"n": tm.count(over="1d"), "m": tm.mean("x", over="1d")})
l = tm.Latest("l", s, by="id", columns="x", within="1h")
m = tm.Model("m", examples=s, asked_at="at", label=tm.Label(s, "x", within="1d"), features=[v, l], estimator=None)
tm.System("s", m, endpoint=tm.Endpoint(), monitor=tm.Monitor(drift=tm.psi()),
          policy=tm.Policy(retrain=[tm.every("1d")]))
"""


@pytest.mark.parametrize(
    "code", ["import tidemill", "import tidemill; dir(tidemill)", DECLARING], ids=["import", "dir", "declare"]
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    script = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "tidemill" in loaded
    assert not loaded & HEAVY


def test_unknown_names_are_unknown() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = tidemill.nothing
    assert {"Source", "Model", "System", "__version__"} <= set(dir(tidemill))
