from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidemill.adapters.artefact_files import ArtefactFiles
from tidemill.base.errors import ArtefactError
from tidemill.ports.artefacts import Artefacts
from tidemill.testing.artefact_suite import ArtefactSuite


class TestArtefactFiles(ArtefactSuite):
    def open(self, directory: Path) -> Artefacts:
        return ArtefactFiles(directory / "artefacts")


def test_files_lie_two_levels_deep_with_nothing_beside(tmp_path: Path) -> None:
    name = ArtefactFiles(tmp_path).put(b"model")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name[:2] / name]
    assert ArtefactFiles(tmp_path).get(name) == b"model"


def test_damage_is_noticed_and_mended_by_the_next_put(tmp_path: Path) -> None:
    artefacts = ArtefactFiles(tmp_path)
    name = artefacts.put(b"model")
    (tmp_path / name[:2] / name).write_bytes(b"mod")
    with pytest.raises(ArtefactError, match="damaged"):
        artefacts.get(name)
    assert artefacts.put(b"model") == name
    assert artefacts.get(name) == b"model"


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    artefacts = ArtefactFiles(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        artefacts.put(b"model")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_content_is_synced_before_it_gets_its_name_and_directories_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        steps.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix)
        fsync(descriptor)

    def renamed(source: str, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    ArtefactFiles(tmp_path).put(b"model")
    assert steps == ["sync .part", "rename", "sync ", "sync "]
