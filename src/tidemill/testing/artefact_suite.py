"""What every artefact store must do. A test class inherits ``ArtefactSuite`` and says how to open one."""

# ruff: noqa: D102  # the name of a test says what it holds
from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.base.errors import ArtefactError
from tidemill.base.hashing import digest
from tidemill.ports.artefacts import Artefacts


class ArtefactSuite:
    """Inherit as ``class TestX(ArtefactSuite)`` and define ``open``."""

    def open(self, directory: Path) -> Artefacts:
        """Return an empty store that belongs to ``directory``."""
        raise NotImplementedError

    @pytest.mark.parametrize("content", [b"", b"model", bytes(range(256)) * 5_000])
    def test_content_comes_back_under_its_digest(self, tmp_path: Path, content: bytes) -> None:
        artefacts = self.open(tmp_path)
        assert digest(content) not in artefacts
        name = artefacts.put(content)
        assert name == digest(content)
        assert name in artefacts
        assert artefacts.get(name) == content

    def test_putting_twice_changes_nothing(self, tmp_path: Path) -> None:
        artefacts = self.open(tmp_path)
        name = artefacts.put(b"model")
        assert artefacts.put(b"model") == name
        assert artefacts.put(b"other") != name
        assert artefacts.get(name) == b"model"

    @pytest.mark.parametrize("name", ["0" * 40, "", "../../etc/passwd", "0" * 39, "é" * 40])
    def test_what_is_not_there_is_an_error(self, tmp_path: Path, name: str) -> None:
        artefacts = self.open(tmp_path)
        assert name not in artefacts
        assert 3 not in artefacts
        with pytest.raises(ArtefactError):
            artefacts.get(name)
