from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tidemill.adapters.segment_log import MAX_PAYLOAD, SegmentLog
from tidemill.base.errors import TidemillError
from tidemill.ports.log import Log
from tidemill.testing.log_suite import LogSuite, drain, payloads


class TestSegmentLog(LogSuite):
    @pytest.fixture
    def log(self, tmp_path: Path) -> Log:
        return SegmentLog(tmp_path / "log")


@pytest.fixture
def log(tmp_path: Path) -> SegmentLog:
    return SegmentLog(tmp_path)


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.log"))


def test_trim_deletes_segments_that_are_done(tmp_path: Path, log: SegmentLog) -> None:
    done, empty, living = log.writer(), log.writer(), log.writer()
    done.append(b"1")
    living.append(b"2")
    done.close()
    empty.close()
    _, cursor = drain(log)
    log.trim({})
    assert len(segments(tmp_path)) == 2  # `empty` holds nothing to read
    log.trim(cursor)
    assert len(segments(tmp_path)) == 1
    living.close()
    log.trim(cursor)
    assert segments(tmp_path) == []
    again = log.writer()
    again.append(b"3")
    assert [record.payload for record in drain(log, cursor)[0]] == [b"3"]
    again.close()


def test_another_log_on_the_directory_respects_a_living_writer(tmp_path: Path, log: SegmentLog) -> None:
    writer = log.writer()
    writer.append(b"1").result(10)
    other = SegmentLog(tmp_path)
    _, cursor = drain(other)
    other.trim(cursor)
    assert len(segments(tmp_path)) == 1
    writer.append(b"2")
    assert [record.payload for record in other.read(cursor)] == [b"2"]
    writer.close()


@pytest.mark.parametrize("seed", range(5))
def test_a_tear_or_a_flipped_bit_ends_its_segment(tmp_path: Path, log: SegmentLog, seed: int) -> None:
    """Wherever the damage lies, the whole records before it are read, and none that was not written."""
    draw = random.Random(seed)
    sent = [draw.randbytes(draw.choice((0, 1, 30, 500))) for _ in range(20)]
    writer = log.writer()
    for payload in sent:
        writer.append(payload)
    writer.close()
    next_writer = log.writer()
    next_writer.append(b"next")
    next_writer.close()
    (path, _), whole = segments(tmp_path), segments(tmp_path)[0].read_bytes()
    ends = [record.end for record in log.read({}) if record.segment == path.stem]
    for _ in range(40):
        place = draw.randrange(len(whole))
        torn = draw.choice((whole[:place], whole[:place] + bytes(len(whole) - place), None))
        if torn is None:
            torn = whole[:place] + bytes([whole[place] ^ (1 << draw.randrange(8))]) + whole[place + 1 :]
        path.write_bytes(torn)
        kept = sum(end <= place or torn[:end] == whole[:end] for end in ends)
        assert payloads(log) == [*sent[:kept], b"next"]
    path.write_bytes(whole[: ends[3] + 5])
    _, cursor = drain(log)
    log.trim({path.stem: ends[2]})
    assert path in segments(tmp_path)
    log.trim(cursor)
    assert segments(tmp_path) == []


def test_a_length_beyond_the_limit_is_a_tear(tmp_path: Path, log: SegmentLog) -> None:
    writer = log.writer()
    writer.append(b"1")
    writer.close()
    with segments(tmp_path)[0].open("ab") as file:
        file.write(b"\xff" * 100)
    assert payloads(log) == [b"1"]


def test_a_record_that_is_too_long_is_refused(log: SegmentLog) -> None:
    writer = log.writer()
    with pytest.raises(TidemillError, match="16,777,217 bytes"):
        writer.append(b"short", bytes(MAX_PAYLOAD + 1))
    writer.append(bytes(MAX_PAYLOAD)).result(10)
    writer.close()
    assert [len(payload) for payload in payloads(log)] == [MAX_PAYLOAD]


def test_a_closed_writer_refuses(log: SegmentLog) -> None:
    writer = log.writer()
    last = writer.append(b"1")
    writer.close()
    assert last.done()
    with pytest.raises(TidemillError, match="it is closed"):
        writer.append(b"2")
    assert payloads(log) == [b"1"]


def test_futures_follow_the_sync(log: SegmentLog, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed, syncs = threading.Event(), []

    def wait(handle: int) -> None:
        syncs.append(handle)
        assert allowed.wait(10)

    monkeypatch.setattr(os, "fdatasync", wait)
    writer = log.writer()
    futures = [writer.append(b"%d" % number) for number in range(50)]
    assert not any(future.cancel() or future.done() for future in futures)
    assert len(payloads(log)) == 50
    allowed.set()
    for future in futures:
        future.result(10)
    assert len(syncs) <= 2  # the first record's, and one for all that came meanwhile
    writer.close()


def test_a_failed_sync_ends_the_segment(log: SegmentLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(5, "Input/output error")

    writer = log.writer()
    writer.append(b"kept").result(10)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(TidemillError, match="cannot sync"):
            writer.append(b"lost?").result(10)
        with pytest.raises(TidemillError, match="Start a new writer"):
            writer.append(b"refused")
    writer.close()
    again = log.writer()
    again.append(b"on").result(10)
    again.close()
    assert payloads(log)[0] == b"kept"
    assert payloads(log)[-1] == b"on"


def _fill(directory: Path, *, cut_off: bool) -> None:
    """Under a limit on file size, the kernel writes a part of the record that crosses it and then fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    if not cut_off:

        def refuse(handle: int, size: int) -> None:
            raise OSError(5, "Input/output error")

        os.ftruncate = refuse
    log = SegmentLog(directory)
    writer = log.writer()
    writer.append(b"a" * 600).result(10)
    with pytest.raises(TidemillError, match=r"cannot write to .*File too large"):
        writer.append(b"b" * 600)
    if cut_off:
        writer.append(b"c" * 300).result(10)
    else:
        with pytest.raises(TidemillError, match="left a torn record"):
            writer.append(b"c" * 300)
        again = log.writer()
        again.append(b"c" * 300).result(10)
        again.close()
    writer.close()


@pytest.mark.parametrize("cut_off", [True, False])
def test_a_full_disk_leaves_the_log_usable(tmp_path: Path, log: SegmentLog, cut_off: bool) -> None:
    subprocess.run([sys.executable, __file__, "fill", str(tmp_path), str(int(cut_off))], check=True, timeout=60)
    assert payloads(log) == [b"a" * 600, b"c" * 300]
    log.trim(drain(log)[1])
    assert segments(tmp_path) == []


def _append_until_killed(directory: Path) -> None:
    """Append numbered records from two threads; print a number once it is on disk."""
    log = SegmentLog(directory)
    writer = log.writer()

    def work(parity: int) -> None:
        draw = random.Random(os.getpid() + parity)
        for number in range(parity, 1_000_000, 2):
            done = writer.append(b"%d:" % number + bytes(draw.randint(0, 3000)))
            if draw.random() < 0.1:
                done.result()
                os.write(1, b"%d\n" % number)

    for parity in range(2):
        threading.Thread(target=work, args=(parity,)).start()


def test_acknowledged_records_survive_kills(tmp_path: Path) -> None:
    """Twenty processes are killed in the midst of appending, a drain and a trim between them."""
    draw = random.Random(20)
    command = [sys.executable, __file__, "append", str(tmp_path)]
    log = SegmentLog(tmp_path)
    cursor: dict[str, int] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        for _ in range(20):
            nursery.stdin.write("start\n")
            nursery.stdin.flush()
            pid, acknowledged = int(nursery.stdout.readline()), [int(nursery.stdout.readline())]
            time.sleep(draw.uniform(0, 0.05))
            log.trim(cursor)  # the writer lives
            os.kill(pid, signal.SIGKILL)
            while (line := nursery.stdout.readline()) != "dead\n":
                acknowledged += [int(line)] if line.endswith("\n") else []
            records, cursor = drain(log, cursor, limit=10**9)
            assert len({record.segment for record in records}) == 1
            numbers = [int(record.payload.partition(b":")[0]) for record in records]
            assert set(acknowledged) <= set(numbers)
            for parity in range(2):
                own = [number for number in numbers if number % 2 == parity]
                assert own == list(range(parity, parity + 2 * len(own), 2))
            assert drain(log, cursor)[0] == []
            if draw.random() < 0.5:
                log.trim(cursor)
                assert segments(tmp_path) == []
        nursery.stdin.close()


def _serve_children(directory: Path) -> None:
    """Fork a child for every line read, and say when it is dead: a fork starts faster than an interpreter."""
    while sys.stdin.readline():
        child = os.fork()
        if child == 0:
            os.write(1, b"%d\n" % os.getpid())
            _append_until_killed(directory)
            signal.pause()
        os.waitpid(child, 0)
        os.write(1, b"dead\n")


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        _fill(Path(sys.argv[2]), cut_off=bool(int(sys.argv[3])))
    else:
        _serve_children(Path(sys.argv[2]))
