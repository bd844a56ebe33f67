from __future__ import annotations

import socket

import pytest

from tidemill.base.errors import TidemillError
from tidemill.server.listen import bind, bind_all
from tidemill.server.main import main


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org", ""])
def test_only_loopback_is_listened_on(host: str) -> None:
    with pytest.raises(TidemillError, match="loopback only"):
        bind(host, 0)


def test_a_free_port_is_found_and_a_taken_one_is_named() -> None:
    with bind("localhost", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(TidemillError, match=f"Port {port} of 127.0.0.1 cannot be had: Address already in use"):
            bind("127.0.0.1", port)
        assert first.family == socket.AF_INET


def test_several_sockets_share_a_port_that_nobody_else_gets() -> None:
    first, second, third = bind_all("127.0.0.1", 0, 3)
    with first, second, third:
        port = first.getsockname()[1]
        assert {each.getsockname()[1] for each in (second, third)} == {port}
        for each in (first, second, third):
            each.listen()
        for count in (1, 2):
            with pytest.raises(TidemillError, match="cannot be had"):
                bind_all("127.0.0.1", port, count)


def test_a_missing_project_ends_with_a_message(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--system", str(tmp_path)])
    assert caught.value.code == 2
    assert "There is no" in capsys.readouterr().err
