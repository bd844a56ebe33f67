"""Compiled kernels are found where they are, and missed without a fault where they are not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tidemill.kernels import compiled

ROOT = Path(__file__).parents[3]


def test_plain_kernels_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_KERNELS", "plain")

    assert compiled.missing() == compiled.NAMES


def test_every_kernel_is_named() -> None:
    sources = sorted(file.stem for file in (ROOT / "src/tidemill/kernels/native").glob("*.c"))

    assert sources == sorted(compiled.NAMES)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_with_a_compiler_every_kernel_is_built() -> None:
    script = "from tidemill.kernels import compiled; print(*compiled.missing())"
    missing = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()

    assert missing == []
