"""The one tree of exceptions. A message says what is wrong, where, and what to do about it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass


class TidemillError(Exception):
    """Base of every error that Tidemill raises on purpose."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong in a declared system.

    ``where`` names the declaration ("source 'arrivals'"), ``what`` says what is wrong, ``do`` says how to mend it.
    """

    where: str
    what: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" {self.do}" if self.do else "")


class DeclarationError(TidemillError, ValueError):
    """The declared file is wrong. Carries every fault found, not only the first."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class StorageError(TidemillError):
    """The disk under a workspace is full or fails. What was stored is there; what was being stored is done again."""

    @staticmethod
    def of(error: Exception) -> StorageError | None:
        """Return what ``error`` of a library says, where it is a disk that is full, fails or cannot be written."""
        if isinstance(error, StorageError):
            return error
        said = str(error)
        number = error.errno if isinstance(error, OSError) else None
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            if number == code or f"(os error {code})" in said or os.strerror(code).lower() in said.lower():
                return StorageError(f"The disk cannot be written: {os.strerror(code)}. Free some space, or mend it.")
        return None


class SourceError(TidemillError):
    """A whole input (a file, a feed) cannot be read; nothing of it was loaded and the source stands still."""


class RequestError(TidemillError, ValueError):
    """A request to the server or a call of the Python API is malformed. ``field`` names the offending part."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        self.field = field
        super().__init__(message)


class NotFoundError(TidemillError, LookupError):
    """A name, version or id does not exist in this workspace."""


class NotReadyError(TidemillError):
    """What was asked for will be there, but is not yet: no champion was promoted, or state is still being built."""


class WorkspaceError(TidemillError):
    """The workspace is missing, damaged, or made by another version."""


class FencedError(TidemillError):
    """This process no longer holds the lease: another worker has taken over. Nothing was committed."""


class LeaseHeldError(TidemillError):
    """Another worker holds the lease of this workspace."""


class TrainingError(TidemillError):
    """A training failed; the message carries the estimator's own error."""


class FingerprintError(TidemillError, TypeError):
    """A function, or a value it reads, has no lasting content to hash: a lock, an open file, a random generator."""


class ArtefactError(TidemillError):
    """An artefact is missing, damaged, unsigned, or not safe to load."""


class NotCompiledError(TidemillError):
    """An estimator has no exact compiled form; the message says which part of it stands in the way."""


class MissingExtraError(TidemillError, ImportError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed. Run: pip install 'tidemill[{extra}]'", name=library)
