from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import lmdb
import pytest

import tidemill.adapters.lmdb_online as lmdb_online
from tidemill.adapters.lmdb_online import LmdbOnline
from tidemill.base.errors import FencedError, TidemillError, WorkspaceError
from tidemill.ports.online import Change, Online
from tidemill.testing.online_suite import OnlineSuite

SMALL = 64 * 1024


class TestLmdbOnline(OnlineSuite):
    def open(self, directory: Path) -> Online:
        return LmdbOnline(directory / "online")


def _child(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_what_was_applied_survives_closing(tmp_path: Path) -> None:
    first = LmdbOnline(tmp_path)
    first.apply([Change("s", b"k", b"v")], b"m")
    first.close()
    second = LmdbOnline(tmp_path)
    with second.snapshot() as snapshot:
        assert (snapshot.get("s", b"k"), snapshot.mark()) == (b"v", b"m")
    second.close()


def test_the_map_grows_and_another_process_follows(tmp_path: Path) -> None:
    online = LmdbOnline(tmp_path, map_size=SMALL)
    online.apply([], b"0")
    reader = _child(
        "import sys, pathlib\n"
        "from tidemill.adapters.lmdb_online import LmdbOnline\n"
        f"online = LmdbOnline(pathlib.Path(sys.argv[1]), map_size={SMALL})\n"
        "for line in sys.stdin:\n"
        "    with online.snapshot() as snapshot:\n"
        "        print(len(list(snapshot.items('s'))), snapshot.mark().decode(), flush=True)\n",
        str(tmp_path),
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    with reader:
        for number in range(1, 5):
            reader.stdin.write("look\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == f"{400 * (number - 1)} {number - 1}\n"
            keys = (f"{number}-{key}".encode() for key in range(400))
            online.apply([Change("s", key, bytes(500)) for key in keys], str(number).encode())
        reader.stdin.close()
    online.close()


def test_growing_waits_for_this_process_to_close_its_snapshots(tmp_path: Path) -> None:
    online = LmdbOnline(tmp_path, map_size=SMALL)
    online.apply([Change("s", b"k", b"1")], b"1")
    opened, close = threading.Event(), threading.Event()
    seen: list[bytes | None] = []

    def look() -> None:
        with online.snapshot() as snapshot:
            opened.set()
            close.wait()
            seen.append(snapshot.get("s", b"k"))

    def grow() -> None:
        online.apply([Change("s", bytes([n]), bytes(100_000)) for n in range(10)], b"2")

    threads = [threading.Thread(target=look), threading.Thread(target=grow)]
    threads[0].start()
    opened.wait()
    threads[1].start()
    threads[1].join(timeout=0.2)
    assert threads[1].is_alive()
    close.set()
    for thread in threads:
        thread.join()
    assert seen == [b"1"]
    with online.snapshot() as snapshot:
        assert snapshot.mark() == b"2"
    online.close()


def test_growing_inside_ones_own_snapshot_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_online, "_PATIENCE", 0.1)
    online = LmdbOnline(tmp_path, map_size=SMALL)
    with online.snapshot() as snapshot, pytest.raises(TidemillError, match="has to grow"):
        online.apply([Change("s", b"k", bytes(1_000_000))], b"1")
    with online.snapshot() as snapshot:
        assert list(snapshot.items("s")) == []
        assert snapshot.mark() is None
    online.close()


def test_threads_read_whole_batches_while_the_writer_grows_the_map(tmp_path: Path) -> None:
    online = LmdbOnline(tmp_path, map_size=SMALL)
    online.apply([Change("s", bytes([key]), b"0") for key in range(10)], b"0")
    done = threading.Event()
    faults: list[object] = []

    def read() -> None:
        try:
            while not done.wait(0.001):
                with online.snapshot() as snapshot:
                    assert {value[:1] for _, value in snapshot.items("s")} == {(snapshot.mark() or b"")[:1]}
        except BaseException as error:
            faults.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for number in range(1, 30):
            value = bytes([48 + number]) * (400 * number)
            online.apply([Change("s", bytes([key]), value) for key in range(10)], value[:1])
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert faults == []
    online.close()


def test_a_killed_reader_does_not_hold_pages_for_ever(tmp_path: Path) -> None:
    online = LmdbOnline(tmp_path)
    online.apply([Change("s", bytes([n]), bytes(50_000)) for n in range(20)], b"0")
    reader = _child(
        "import sys, pathlib, time\n"
        "from tidemill.adapters.lmdb_online import LmdbOnline\n"
        "with LmdbOnline(pathlib.Path(sys.argv[1])).snapshot():\n"
        "    print('open', flush=True)\n"
        "    time.sleep(600)\n",
        str(tmp_path),
    )
    assert reader.stdout is not None
    with reader:
        reader.stdout.readline()
        reader.kill()
    for batch in range(30):
        online.apply([Change("s", bytes([n]), bytes(50_000)) for n in range(20)], str(batch).encode())
    # 1 MB of values: with the dead reader's snapshot still counted the file would pass 30 MB.
    assert (tmp_path / "data.mdb").stat().st_size < 8_000_000
    online.close()


@pytest.mark.parametrize("after", [3, 17, 40])
def test_a_killed_writer_leaves_mark_and_content_in_step(tmp_path: Path, after: int) -> None:
    writer = _child(
        "import sys, pathlib, itertools\n"
        "from tidemill.adapters.lmdb_online import LmdbOnline\n"
        "from tidemill.ports.online import Change\n"
        f"online = LmdbOnline(pathlib.Path(sys.argv[1]), map_size={SMALL})\n"
        "for batch in itertools.count(1):\n"
        "    text = str(batch).encode()\n"
        "    changes = [Change('last', bytes([n]), text) for n in range(50)] + [Change('all', text, bytes(200))]\n"
        "    online.apply(changes, text)\n"
        "    print(batch, flush=True)\n",
        str(tmp_path),
    )
    assert writer.stdout is not None
    with writer:
        told = [int(writer.stdout.readline()) for _ in range(after)]
        writer.kill()
        told += [int(line) for line in writer.stdout.readlines() if line.endswith("\n")]
    online = LmdbOnline(tmp_path)
    with online.snapshot() as snapshot:
        mark = snapshot.mark()
        assert mark is not None
        assert int(mark) >= told[-1]
        assert {value for _, value in snapshot.items("last")} == {mark}
        assert {int(key) for key, _ in snapshot.items("all")} == set(range(1, int(mark) + 1))
    online.apply([Change("last", b"x", b"after")], b"after")
    online.close()


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"no database" * 1_000)
    with pytest.raises(WorkspaceError, match="delete the directory"):
        LmdbOnline(tmp_path)


def test_two_threads_may_write(tmp_path: Path) -> None:
    online = LmdbOnline(tmp_path, map_size=SMALL)

    def write(space: str) -> None:
        for number in range(30):
            online.apply([Change(space, bytes([number]), bytes(2_000))], space.encode())

    threads = [threading.Thread(target=write, args=(space,)) for space in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with online.snapshot() as snapshot:
        assert [len(list(snapshot.items(space))) for space in "ab"] == [30, 30]
    online.close()


def test_what_was_replaced_is_room_for_the_next(tmp_path: Path) -> None:
    online = LmdbOnline(tmp_path, map_size=SMALL)
    for number in range(8):
        draft = online.draft()
        for batch in range(10):
            draft.write([Change("s", bytes([batch, n]), bytes(2_000)) for n in range(100)])
        draft.publish(str(number).encode())
        with online.snapshot() as snapshot:
            assert (len(list(snapshot.items("s"))), snapshot.mark()) == (1_000, str(number).encode())
    # 4 MB of pages, beside as many of the one before.
    assert (tmp_path / "data.mdb").stat().st_size < 13_000_000
    online.close()


def test_a_file_of_the_earlier_layout_is_emptied_but_for_who_has_claimed(tmp_path: Path) -> None:
    environment = lmdb.open(str(tmp_path), map_size=1 << 20)
    with environment.begin(write=True) as transaction:
        for key in (b"mark", b"\0" * 8 + b"key"):
            transaction.put(key, b"old")
        transaction.put(b"epoch", b"4")
    environment.close()
    online = LmdbOnline(tmp_path)
    with online.snapshot() as snapshot:
        assert snapshot.mark() is None
        assert snapshot._transaction.stat()["entries"] == 3  # two databases and the epoch
    with pytest.raises(FencedError):
        online.claim(3)
    online.claim(4)
    online.close()


def test_a_claim_drops_the_draft_of_a_writer_that_died(tmp_path: Path) -> None:
    first = LmdbOnline(tmp_path)
    first.apply([Change("s", b"k", b"shown")], b"m")
    first.draft().write([Change("s", bytes([n]), bytes(1_000)) for n in range(200)])
    first.close()
    second = LmdbOnline(tmp_path)
    with second.snapshot() as snapshot:
        assert [snapshot._transaction.stat(each)["entries"] for each in second.databases] == [1, 200]
    second.claim(1)
    with second.snapshot() as snapshot:
        assert [snapshot._transaction.stat(each)["entries"] for each in second.databases] == [1, 0]
        assert (snapshot.get("s", b"k"), snapshot.mark()) == (b"shown", b"m")
    second.close()
