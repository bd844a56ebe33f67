from __future__ import annotations

import pickle  # noqa: TID251  # to see that it refuses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tidemill.adapters.signing import open_key
from tidemill.base.errors import WorkspaceError


def test_a_signature_holds_for_its_content_and_key_only(tmp_path: Path) -> None:
    key, other = open_key(tmp_path / "a" / "key"), open_key(tmp_path / "b" / "key")
    signature = key.sign(b"content")
    assert key.verify(b"content", signature)
    assert open_key(tmp_path / "a" / "key").verify(b"content", signature)
    assert not key.verify(b"content.", signature)
    assert not key.verify(b"content", signature[:-1])
    assert not key.verify(b"content", "")
    assert not key.verify(b"content", "é")
    assert not other.verify(b"content", signature)


def test_the_key_is_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    open_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in tmp_path.iterdir()] == ["key"]
    path.chmod(0o640)
    with pytest.raises(WorkspaceError, match="chmod 600"):
        open_key(path)


def test_the_key_shows_itself_nowhere(tmp_path: Path) -> None:
    key = open_key(tmp_path / "key")
    secret = (tmp_path / "key").read_bytes()
    assert secret.hex() not in repr(key) + str(key)
    assert repr(secret) not in repr(key)
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_a_short_key_is_refused(tmp_path: Path) -> None:
    open_key(tmp_path / "key")
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(WorkspaceError, match="damaged"):
        open_key(tmp_path / "key")


def test_first_uses_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: open_key(tmp_path / "key"), range(16)))
    assert len({key.sign(b"x") for key in keys}) == 1
