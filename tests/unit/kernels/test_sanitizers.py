"""The compiled kernels pass their own tests under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = sorted(HERE.parents[2].glob("src/tidemill/kernels/native/*.c"))


def _runtime(library: str) -> str | None:
    """Return the path of gcc's ``library``, or None where there is no compiler or no such library."""
    if shutil.which("gcc") is None:
        return None
    path = subprocess.run(["gcc", f"-print-file-name={library}"], capture_output=True, text=True, check=True).stdout
    return path.strip() if "/" in path else None


@pytest.mark.slow
@pytest.mark.skipif(_runtime("libasan.so") is None, reason="gcc or its address sanitizer is not installed")
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_no_sanitizer_complains(source: Path, tmp_path: Path) -> None:
    tests = sorted(str(file) for file in HERE.glob(f"test_native_{source.stem}*.py"))
    assert tests, f"{source.name} has no tests/unit/kernels/test_native_{source.stem}*.py"
    module = tmp_path / f"_{source.stem}{sysconfig.get_config_var('EXT_SUFFIX')}"
    flags = ["-std=c11", "-O1", "-g", "-ffp-contract=off", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    include = [f"-I{source.parent}", f"-I{sysconfig.get_paths()['include']}"]
    subprocess.run(["gcc", "-shared", "-fPIC", *flags, *include, str(source), "-o", str(module), "-lm"], check=True)
    environment = {
        **os.environ,
        "TIDEMILL_KERNELS": str(tmp_path),
        "LD_PRELOAD": str(_runtime("libasan.so")),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # the interpreter keeps memory to the end
        "PYTHONMALLOC": "malloc",  # so that overruns of Python's own small blocks are seen too
    }
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=",
         "--import-mode=importlib", *tests],
        env=environment, cwd=HERE.parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-6000:]
