"""A turn of a server's event loop: what the questions that are answered in it share."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import AbstractContextManager

from tidemill.ports.log import LogWriter
from tidemill.ports.online import Online, Snapshot


class Turn:
    """A snapshot of the online state, and one write to the log, for all questions of a turn. For one thread.

    Answers whose records are kept here may go out once ``end`` has returned. What opens a snapshot of its own calls
    ``release`` first: a store that has to take a new size waits for the snapshots of its process, so a thread that held
    one while it opened another would wait for itself.
    """

    def __init__(self, online: Online, log: LogWriter) -> None:
        self._online, self._log = online, log
        self._opened: tuple[AbstractContextManager[Snapshot], Snapshot] | None = None
        self._records: list[bytes] = []

    def snapshot(self) -> Snapshot:
        """Return the turn's snapshot, opened when it is first asked for. Raises what opening one raises."""
        if self._opened is None:
            opening = self._online.snapshot()
            self._opened = opening, opening.__enter__()
        return self._opened[1]

    def keep(self, record: bytes) -> None:
        """Take a record for the log."""
        self._records.append(record)

    def release(self) -> None:
        """Close the snapshot, if one is open; the next question opens another."""
        if self._opened is not None:
            (opened, _), self._opened = self._opened, None
            opened.__exit__(None, None, None)

    def end(self) -> Future[None] | None:
        """Close the snapshot and write the records; return what is done once they are on disk, if there are any.

        Raises TidemillError when they cannot be written; none of them is then.
        """
        self.release()
        records, self._records = self._records, []
        return self._log.append(*records) if records else None
