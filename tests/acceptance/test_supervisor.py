"""The server beside a worker ends with it, however the worker ends."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tidemill.base.errors import TidemillError
from tidemill.loop.supervisor import ServerProcess

SYSTEM = """
import tidemill as tm
from sklearn.linear_model import LinearRegression

rows = tm.Source("rows", tm.push(), key="id", event_time="at")
model = tm.Model("m", examples=rows, asked_at=tm.after("at", "1h"), label=tm.Label(rows, "y", within="1d"),
                 features=["x"], estimator=LinearRegression())
system = tm.System("s", model)
"""

PARENT = """
import sys, time
from pathlib import Path
from tidemill.loop.supervisor import ServerProcess
folder = Path(sys.argv[1])
server = ServerProcess(folder / "system.py", 0, folder / "server.txt")
print(server.port, flush=True)
time.sleep(600)
"""


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_server_ends_when_its_worker_is_killed(tmp_path: Path) -> None:
    (tmp_path / "system.py").write_text(SYSTEM)
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        line = parent.stdout.readline()
        assert line, (tmp_path / "server.txt").read_text()
        assert listening(int(line))
        parent.kill()
    deadline = time.monotonic() + 60
    while listening(int(line)):
        assert time.monotonic() < deadline, "the server outlived its worker"
        time.sleep(0.1)


def test_a_taken_port_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "system.py").write_text(SYSTEM)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TidemillError) as caught:
            ServerProcess(tmp_path / "system.py", port, tmp_path / "server.txt")
    assert str(caught.value) == (
        f"The server did not start: Port {port} of 127.0.0.1 cannot be had: Address already in use. Declare another, "
        f"as tm.Endpoint(port=…), or 0 for a free one. Its log is {tmp_path / 'server.txt'}."
    )
