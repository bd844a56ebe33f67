"""The contract of ``ports.log.Log``: subclass ``LogSuite``, give it a fixture ``log``, and its tests run on it."""
# ruff: noqa: D102 - the name of a test says what it holds

from __future__ import annotations

import random
import threading
from collections.abc import Mapping

import pytest

from tidemill.ports.log import Log, Record


def drain(
    log: Log, cursor: Mapping[str, int] | None = None, *, limit: int = 10_000
) -> tuple[list[Record], dict[str, int]]:
    """Return the records past ``cursor`` and the cursor after them."""
    records = list(log.read(cursor or {}, limit=limit))
    return records, {**(cursor or {}), **{record.segment: record.end for record in records}}


def payloads(log: Log) -> list[bytes]:
    """Return the payloads of all records, in order."""
    return [record.payload for record in log.read({})]


class LogSuite:
    """Tests that every log passes."""

    @pytest.fixture
    def log(self) -> Log:
        """Return an empty log."""
        raise NotImplementedError

    def test_an_empty_log_reads_empty(self, log: Log) -> None:
        assert drain(log) == ([], {})
        log.trim({})
        log.writer().close()
        assert drain(log) == ([], {})

    def test_records_come_back_in_order(self, log: Log) -> None:
        sent = [b"", b"one", bytes(range(256)), b"x" * 100_000, b"\0" * 8]
        writer = log.writer()
        futures = [writer.append(payload) for payload in sent]
        assert payloads(log) == sent  # at once: written, whether synced or not
        for future in futures:
            assert future.result(timeout=10) is None
        writer.close()
        writer.close()
        assert payloads(log) == sent

    def test_records_written_together_follow_one_another(self, log: Log) -> None:
        writer, other = log.writer(), log.writer()
        writer.append(b"1").result(timeout=10)
        assert writer.append(b"2", b"", b"3").result(timeout=10) is None
        other.append(b"4")
        assert payloads(log) == [b"1", b"2", b"", b"3", b"4"]
        assert [record.payload for record in log.read({}, limit=2)] == [b"1", b"2"]
        for each in (writer, other):
            each.close()

    def test_a_record_is_on_disk_without_a_close(self, log: Log) -> None:
        writer = log.writer()
        for number in range(3):
            assert writer.append(b"%d" % number).result(timeout=10) is None
        writer.close()

    def test_segments_are_read_by_creation(self, log: Log) -> None:
        first, second = log.writer(), log.writer()
        second.append(b"b1")
        first.append(b"a1")
        second.append(b"b2")
        third = log.writer()
        third.append(b"c1")
        first.append(b"a2")
        assert payloads(log) == [b"a1", b"a2", b"b1", b"b2", b"c1"]
        assert len({record.segment for record in log.read({})}) == 3
        for writer in (first, second, third):
            writer.close()

    def test_a_cursor_continues(self, log: Log) -> None:
        writer, other = log.writer(), log.writer()
        for number in range(10):
            writer.append(b"a%d" % number)
        other.append(b"b0")
        _, cursor = drain(log, limit=4)
        rest, cursor = drain(log, cursor)
        assert [record.payload for record in rest] == [*(b"a%d" % n for n in range(4, 10)), b"b0"]
        assert drain(log, cursor) == ([], cursor)
        writer.append(b"late")
        more, cursor = drain(log, {**cursor, "a segment that is gone": 7})
        assert [record.payload for record in more] == [b"late"]
        assert list(log.read(cursor, limit=0)) == []
        writer.close()
        other.close()

    def test_any_cursor_along_the_way_splits_the_log(self, log: Log) -> None:
        draw = random.Random(7)  # noqa: S311 - a reproducible test
        writers = [log.writer() for _ in range(3)]
        for number in range(100):
            draw.choice(writers).append(draw.randbytes(draw.randint(0, 50)) + b"%d" % number)
        everything, _ = drain(log)
        for limit in (1, 7, 99, 100):
            cursor: dict[str, int] = {}
            parts: list[Record] = []
            while part := drain(log, cursor, limit=limit)[0]:
                assert len(part) <= limit
                parts += part
                cursor.update({record.segment: record.end for record in part})
            assert parts == everything
        for writer in writers:
            writer.close()

    def test_trim_keeps_what_is_unread_or_written_to(self, log: Log) -> None:
        done, living = log.writer(), log.writer()
        done.append(b"1")
        done.append(b"2")
        done.close()
        living.append(b"3")
        _, cursor = drain(log, limit=1)
        log.trim(cursor)
        rest, cursor = drain(log, cursor)
        assert [record.payload for record in rest] == [b"2", b"3"]
        log.trim(cursor)
        living.append(b"4")
        rest, _ = drain(log, cursor)
        assert [record.payload for record in rest] == [b"4"]
        living.close()

    def test_threads_share_a_writer(self, log: Log) -> None:
        writer = log.writer()

        def work(name: int) -> None:
            last = [writer.append(b"%d:%d" % (name, number)) for number in range(200)][-1]
            last.result(timeout=10)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.close()
        read = payloads(log)
        assert len(read) == 800
        for name in range(4):
            own = [payload for payload in read if payload.startswith(b"%d:" % name)]
            assert own == [b"%d:%d" % (name, number) for number in range(200)]
