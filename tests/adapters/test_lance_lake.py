from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from lance import LanceDataset

from tidemill.adapters.lance_lake import LanceLake
from tidemill.adapters.memory_lake import MemoryLake
from tidemill.base.errors import FencedError, NotFoundError, TidemillError
from tidemill.base.schema import SEQ
from tidemill.ports.lake import Commit, Lake
from tidemill.testing.lake_suite import GivenFence, LakeSuite, append, check_content, make_commit, make_rows


class TestLanceLake(LakeSuite):
    @pytest.fixture
    def lake(self, tmp_path: Path) -> Lake:
        return LanceLake(tmp_path / "lake")


@pytest.fixture
def fence() -> GivenFence:
    return GivenFence()


def test_another_process_sees_every_commit(tmp_path: Path, fence: GivenFence) -> None:
    writer, reader = LanceLake(tmp_path), LanceLake(tmp_path)
    assert reader.head("arrivals") is None
    for count in (2, 0, 5):
        head = append(writer, count, fence)
        check_content(reader, head)
    writer.compact("arrivals", fence)
    writer.cleanup("arrivals", keep=1, fence=fence)
    check_content(reader, head)
    check_content(LanceLake(tmp_path), head)


# One writer


def test_a_stale_writer_is_refused_until_it_looks_again(tmp_path: Path, fence: GivenFence) -> None:
    stale, successor = LanceLake(tmp_path), LanceLake(tmp_path)
    first = append(stale, 3, fence)
    head = append(successor, 2, fence)
    assert stale.scan("arrivals").num_rows == 5  # reading is not looking at the head
    writes: list[Callable[[], object]] = [
        lambda: stale.append("arrivals", make_rows(3, 2), make_commit(3, 2), fence),
        lambda: stale.append("arrivals", make_rows(3, 0), make_commit(3, 0), fence),
        lambda: stale.restore("arrivals", first.version, fence),
        lambda: stale.cleanup("arrivals", keep=1, fence=fence),
    ]
    for write in writes:
        with pytest.raises(FencedError, match="after version 1"):
            write()
    check_content(successor, head)
    check_content(stale, head)
    check_content(successor, append(stale, 1, fence))


def test_a_stale_writer_is_refused_after_cleanup_too(tmp_path: Path, fence: GivenFence) -> None:
    stale, successor = LanceLake(tmp_path), LanceLake(tmp_path)
    append(stale, 3, fence)
    for _ in range(5):
        append(successor, 1, fence)
    successor.compact("arrivals", fence)
    successor.cleanup("arrivals", keep=1, fence=fence)
    with pytest.raises(FencedError):
        stale.append("arrivals", make_rows(3, 2), make_commit(3, 2), fence)
    assert successor.scan("arrivals").num_rows == 8


def test_a_stale_creator_is_refused(tmp_path: Path, fence: GivenFence) -> None:
    stale, successor = LanceLake(tmp_path), LanceLake(tmp_path)
    assert stale.head("arrivals") is None
    head = append(successor, 3, fence)
    with pytest.raises(FencedError):
        stale.append("arrivals", make_rows(0, 2), make_commit(0, 2), fence)
    check_content(successor, head)


@pytest.mark.parametrize("fence_falls", [True, False])
def test_a_writer_paused_before_its_commit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fence_falls: bool
) -> None:
    """Its files are written and synced, then a successor commits, then it wakes."""
    paused, successor = LanceLake(tmp_path), LanceLake(tmp_path)
    old, new = GivenFence(epoch=1), GivenFence(epoch=2)
    append(paused, 3, old)
    files_written, wake = threading.Event(), threading.Event()
    write_files = LanceLake._write_files

    def pause(self: LanceLake, *args: object) -> object:
        fragments = write_files(self, *args)  # type: ignore[arg-type]
        if self is paused:
            files_written.set()
            assert wake.wait(10)
        return fragments

    monkeypatch.setattr(LanceLake, "_write_files", pause)
    failures: list[BaseException] = []

    def write() -> None:
        try:
            paused.append("arrivals", make_rows(3, 2), make_commit(3, 2), old)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    assert files_written.wait(10)
    old.lost = fence_falls
    if not fence_falls:
        append(successor, 4, new)
    wake.set()
    thread.join(10)
    assert [type(failure) for failure in failures] == [FencedError]
    head = append(successor, 1, new)
    check_content(successor, head)
    assert successor.cleanup("arrivals", keep=1, fence=new) > 0  # the refused files go
    check_content(LanceLake(tmp_path), head)


def test_a_commit_in_progress_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fence: GivenFence) -> None:
    """Past its last check a writer holds the directory lock: its successor's commit comes after it, or not at all."""
    slow, successor = LanceLake(tmp_path), LanceLake(tmp_path)
    append(slow, 3, fence)
    successor.head("arrivals")
    inside, go_on = threading.Event(), threading.Event()
    publish = LanceLake._publish

    def pause(self: LanceLake, *args: object) -> LanceDataset:
        if self is slow:
            inside.set()
            assert go_on.wait(10)
        return publish(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(LanceLake, "_publish", pause)
    outcomes: dict[str, object] = {}

    def write(lake: LanceLake, name: str) -> None:
        try:
            outcomes[name] = lake.append("arrivals", make_rows(3, 2), make_commit(3, 2), fence)
        except FencedError as error:
            outcomes[name] = error

    first = threading.Thread(target=write, args=(slow, "slow"))
    first.start()
    assert inside.wait(10)
    second = threading.Thread(target=write, args=(successor, "successor"))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    go_on.set()
    first.join(10)
    second.join(10)
    assert isinstance(outcomes["slow"], Commit)
    assert isinstance(outcomes["successor"], FencedError)
    check_content(successor, outcomes["slow"])


def test_a_foreign_commit_at_the_last_moment_is_not_built_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fence: GivenFence
) -> None:
    """A tool without our lock commits after the check: Lance would rebase, its commit lock refuses."""
    lake = LanceLake(tmp_path)
    append(lake, 3, fence)
    publish = LanceLake._publish

    def interfere(self: LanceLake, *args: object) -> LanceDataset:
        lance.dataset(tmp_path / "arrivals.lance").update_config({"someone": "else"})
        return publish(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(LanceLake, "_publish", interfere)
    with pytest.raises(FencedError):
        lake.append("arrivals", make_rows(3, 2), make_commit(3, 2), fence)
    monkeypatch.undo()
    check_content(lake, lake.head("arrivals"))
    check_content(lake, append(lake, 2, fence))


def _append_as_stopped(root: Path) -> str:
    lake = LanceLake(root)
    lake.head("arrivals")
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        lake.append("arrivals", make_rows(3, 2), make_commit(3, 2), GivenFence())
    except FencedError:
        return "fenced"
    return "committed"


def test_a_stopped_process_is_refused(tmp_path: Path, fence: GivenFence) -> None:
    lake = LanceLake(tmp_path)
    append(lake, 3, fence)
    command = [sys.executable, __file__, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        head = append(lake, 2, fence)
        child.send_signal(signal.SIGCONT)
        assert child.communicate(timeout=30)[0] == "fenced\n"
    check_content(lake, head)


# Durability


@contextmanager
def recorded_syncs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    synced: list[Path] = []
    fsync = os.fsync

    def record(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", record)
        yield synced


def _needed(table: Path) -> set[Path]:
    """Return what a version stands on: manifests, data files, and the directories that name them."""
    files = {*table.glob("_versions/*.manifest"), *table.glob("data/*.lance")}
    return files | {file.parent for file in files}


def test_all_that_a_commit_stands_on_is_synced_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fence: GivenFence
) -> None:
    lake = LanceLake(tmp_path)
    table = tmp_path / "arrivals.lance"
    with recorded_syncs(monkeypatch) as synced:
        append(lake, 3, fence)
    assert {*_needed(table), table, tmp_path} <= set(synced)
    for write in (
        lambda: append(lake, 3, fence),
        lambda: append(lake, 0, fence),
        lambda: lake.restore("arrivals", 1, fence),
        lambda: append(lake, 2, fence),
        lambda: lake.compact("arrivals", fence),
    ):
        before = set(table.rglob("*.*"))
        with recorded_syncs(monkeypatch) as synced:
            write()
        new = {path for path in _needed(table) if path.is_file()} - before
        assert {*new, *(path.parent for path in new)} <= set(synced)
        kinds = [path.parent.name if path.is_file() else path.name for path in synced]
        assert kinds == sorted(kinds, key=["data", "_versions"].index)  # rows before the manifest that names them


def test_manifests_contain_their_transactions(tmp_path: Path, fence: GivenFence) -> None:
    """Only manifests are synced, not the transaction files: those may be lost."""
    lake = LanceLake(tmp_path)
    commits = [append(lake, 3, fence) for _ in range(3)]
    lake.restore("arrivals", 2, fence)
    shutil.rmtree(tmp_path / "arrivals.lance" / "_transactions")
    again = LanceLake(tmp_path)
    check_content(again, commits[1])
    assert again.commits("arrivals") == tuple(commits[:2])
    check_content(again, append(again, 2, fence))


@pytest.mark.parametrize("left", [0, 7, -3])
@pytest.mark.parametrize("versions", [1, 3])
def test_a_manifest_torn_by_a_power_loss_is_dropped(
    tmp_path: Path, fence: GivenFence, left: int, versions: int
) -> None:
    lake = LanceLake(tmp_path)
    commits = [append(lake, 3, fence) for _ in range(versions)]
    newest = min(tmp_path.glob("arrivals.lance/_versions/*.manifest"))
    newest.write_bytes(newest.read_bytes()[:left])
    again = LanceLake(tmp_path)
    check_content(again, commits[-2] if versions > 1 else None)
    check_content(again, append(again, 4, fence))


def test_a_hint_torn_by_a_power_loss_is_ignored(tmp_path: Path, fence: GivenFence) -> None:
    head = append(LanceLake(tmp_path), 3, fence)
    (tmp_path / "arrivals.lance" / "_versions" / "latest_version_hint.json").write_bytes(b"")
    check_content(LanceLake(tmp_path), head)


# The rest


def test_cleanup_spares_tags_and_drops_leftovers(tmp_path: Path, fence: GivenFence) -> None:
    lake = LanceLake(tmp_path)
    commits = [append(lake, 3, fence) for _ in range(5)]
    table = tmp_path / "arrivals.lance"
    lance.dataset(table).tags.create("training", commits[1].version)
    leftovers = [table / name for name in ("data/.tmp1", "_versions/.tmp2", "_versions/1.manifest#1", "data/a0.lance")]
    for leftover in leftovers:
        leftover.write_bytes(b"x" * 100)
    assert lake.cleanup("arrivals", keep=1, fence=fence) >= 100 * len(leftovers)
    assert not any(leftover.exists() for leftover in leftovers)
    check_content(lake, commits[-1])
    assert lake.scan("arrivals", version=commits[1].version).equals(make_rows(0, 6))
    assert lake.commits("arrivals") == (commits[1], commits[-1])


def test_head_reads_past_the_transactions_of_other_tools(tmp_path: Path, fence: GivenFence) -> None:
    lake = LanceLake(tmp_path)
    append(lake, 3, fence)
    lake.compact("arrivals", fence)
    head = append(lake, 2, fence)
    lance.dataset(tmp_path / "arrivals.lance").update_config({"someone": "else"})
    check_content(lake, head)
    check_content(lake, append(lake, 2, fence))


def test_a_column_type_that_would_come_back_as_another_is_refused(tmp_path: Path, fence: GivenFence) -> None:
    lake = LanceLake(tmp_path)
    rows = make_rows(0, 2)
    rows = rows.set_column(0, "key", rows["key"].cast(pa.string_view()))
    with pytest.raises(TidemillError, match="'key' as string_view"):
        lake.append("arrivals", rows, make_commit(0, 2), fence)
    assert lake.tables() == ()
    check_content(lake, append(lake, 2, fence))


def test_reading_while_another_thread_writes(tmp_path: Path, fence: GivenFence) -> None:
    lake = LanceLake(tmp_path)
    append(lake, 1, fence)
    stop = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                head = lake.head("arrivals")
                assert head is not None
                rows = lake.scan("arrivals")
                assert rows.num_rows >= head.next_seq
                assert rows.equals(make_rows(0, rows.num_rows))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(20):
        append(lake, 3, fence)
        if number % 8 == 7:
            lake.compact("arrivals", fence)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert failures == []


@pytest.mark.parametrize("seed", range(6))
def test_both_lakes_do_the_same(tmp_path: Path, fence: GivenFence, seed: int) -> None:
    """Random appends, compactions, cleanups, restores and reopenings; memory is the model."""
    draw = random.Random(seed)
    model, lake = MemoryLake(), LanceLake(tmp_path)
    pairs: list[tuple[Commit, Commit]] = []  # the same append in each

    def plain(commit: Commit | None) -> Commit | None:
        return commit and Commit(commit.table, 0, *[getattr(commit, name) for name in Commit.__slots__[2:]])

    def readable(lake: Lake, commit: Commit) -> bool:
        try:
            lake.scan("arrivals", version=commit.version, columns=[SEQ])
        except NotFoundError:
            return False
        return True

    for step in range(40):
        action = draw.choices(("append", "compact", "cleanup", "restore", "reopen"), (10, 2, 2, 3, 2))[0]
        if action == "append" or not pairs:  # no pairs: none made, or all cleaned up
            count = draw.choice((0, 1, 2, 50))
            pairs.append((append(model, count, fence), append(lake, count, fence)))
        elif action == "compact":
            model.compact("arrivals", fence)
            lake.compact("arrivals", fence)
        elif action == "cleanup":  # versions differ in number (a compaction makes three), so what is kept may too
            keep = draw.randint(1, 5)
            model.cleanup("arrivals", keep=keep, fence=fence)
            lake.cleanup("arrivals", keep=keep, fence=fence)
            pairs = [pair for pair in pairs if readable(model, pair[0]) and readable(lake, pair[1])]
        elif action == "restore":
            ours, theirs = draw.choice(pairs)
            model.restore("arrivals", ours.version, fence)
            lake.restore("arrivals", theirs.version, fence)
        else:
            lake = LanceLake(tmp_path)
        head = model.head("arrivals")
        assert head is not None
        assert plain(lake.head("arrivals")) == plain(head), (step, action)
        since = draw.randint(0, head.next_seq + 1)
        assert lake.scan("arrivals", since=since).equals(model.scan("arrivals", since=since)), (step, action)
        assert lake.scan("arrivals").equals(make_rows(0, head.next_seq))
        ours_kept, theirs_kept = model.commits("arrivals"), lake.commits("arrivals")
        shorter = min(len(ours_kept), len(theirs_kept))
        assert [plain(c) for c in theirs_kept[len(theirs_kept) - shorter :]] == [
            plain(c) for c in ours_kept[len(ours_kept) - shorter :]
        ], (step, action)
        for ours, theirs in pairs:
            at = lake.scan("arrivals", version=theirs.version)
            assert at.equals(model.scan("arrivals", version=ours.version)), (step, action)


if __name__ == "__main__":
    print(_append_as_stopped(Path(sys.argv[1])))
