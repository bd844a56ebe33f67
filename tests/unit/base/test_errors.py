"""What libraries say of a disk that cannot be written is one error of ours."""

from __future__ import annotations

import errno

import pytest

from tidemill.base.errors import StorageError

FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EROFS, "Read-only file system", "/x"),
    OSError("LanceError(IO): write failed: No space left on device (os error 28), /rust/file.rs:1"),
    RuntimeError("mdb_txn_commit: No space left on device"),
]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_disk_that_is_full_is_told(error: Exception) -> None:
    found = StorageError.of(error)
    assert found is not None
    assert "The disk cannot be written" in str(found)
    assert StorageError.of(found) is found


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "No such file"), OSError("LanceError(IO): x")])
def test_other_trouble_is_not(error: Exception) -> None:
    assert StorageError.of(error) is None
