"""A mount's changes count at once, reach the disk in groups, and are never lost or half made."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from store_contents import add_picture, picture_latent
from store_invariants import assert_consistent

from latentfs.errors import RefusedChangeError, StoreError, StoreFullError
from latentfs.store import live_store, tables
from latentfs.store.live_store import LiveStore, open_live_store
from latentfs.store.records import Inode
from latentfs.store.rows import Layer
from latentfs.store.snapshot import Snapshot
from latentfs.store.store import Store
from latentfs.store.tables import ROOT_INO
from latentfs.store.writer_lock import WriterLock

FILE = Inode(stat.S_IFREG | 0o644, 1, 2, 1, 0, 1, 1)
FOLDER = Inode(stat.S_IFDIR | 0o755, 1, 2, 2, 0, 1, 1, parent_ino=ROOT_INO)
FULL = StoreFullError("no space left")
BROKEN = StoreError("an input/output error")


class Applies:
    """Stands between a live store and its disk."""

    def __init__(self, store: Store) -> None:
        self._apply = store.apply
        self.error: Exception | None = None
        self.begun = 0
        self.layers: list[int] = []
        self.may_go = threading.Event()
        self.may_go.set()

    def __call__(self, layer: Layer) -> None:
        self.begun += 1
        assert self.may_go.wait(30)
        if self.error is not None:
            raise self.error
        self._apply(layer)
        self.layers.append(len(layer))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "art.lfs") as store:
        yield store
        with store.read() as snapshot:
            assert_consistent(snapshot)


@pytest.fixture
def applies(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Applies]:
    applies = Applies(store)
    monkeypatch.setattr(store, "apply", applies)
    yield applies
    applies.may_go.set()


async def make(live: LiveStore, name: bytes, inode: Inode = FILE, *, data: bytes = b"") -> int:
    await live.may_change()
    with live.change(adds_bytes=512) as transaction:
        ino = transaction.make(ROOT_INO, name, inode)
        if data:
            transaction.write_bytes(ino, inode, offset=0, data=data)
    return ino


async def remove(live: LiveStore, name: bytes) -> None:
    await live.may_change()
    with live.change() as transaction:
        ino, is_orphan = transaction.remove_entry(ROOT_INO, name, directory=False)
        if is_orphan:
            transaction.discard(ino)


def names(of: Store | LiveStore) -> list[bytes]:
    with of.read() as snapshot:
        assert_consistent(snapshot)
        return [name for name, _ in snapshot.entries(ROOT_INO)]


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what a thread does."""
    while not is_so():
        await trio.to_thread.run_sync(threading.Event().wait, 0.002)


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises(RefusedChangeError) as caught:
        yield
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]


# When changes count, and when they are on disk


async def test_a_change_counts_at_once_and_is_written_half_a_second_later(
    store, applies, mock_clock
):
    async with open_live_store(store, writable=True) as live:
        await make(live, b"a")
        assert names(live) == [b"a"]
        assert names(store) == []
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(0.49)
        await trio.testing.wait_all_tasks_blocked()
        assert not applies.begun
        mock_clock.jump(0.02)
        await until(lambda: names(store) == [b"a"])
        assert names(live) == [b"a"]


async def test_many_changes_become_one_transaction(store, applies, autojump_clock):
    async with open_live_store(store, writable=True) as live:
        before = live.changes()
        for number in range(1000):
            await make(live, b"%d" % number)
        await live.sync()
        counted = live.live_statistics()
        assert (counted.changes_total, counted.commits_total) == (1000, 1)
        assert counted.uncommitted_bytes == 0
        assert live.changes() == before + 1
    assert len(applies.layers) == 1


async def test_sync_does_not_wait_for_changes_to_gather(store, autojump_clock):
    async with open_live_store(store, writable=True) as live:
        start_s = trio.current_time()
        for number in range(10):
            await make(live, b"%d" % number)
            await live.sync()
            assert b"%d" % number in names(store)
        assert trio.current_time() - start_s < live_store._COMMIT_INTERVAL_S
        await live.sync()
        assert live.live_statistics().commits_total == 10


async def test_sync_of_what_changed_during_a_commit_comes_right_behind_it(
    store, applies, autojump_clock
):
    async with open_live_store(store, writable=True) as live, trio.open_nursery() as nursery:
        applies.may_go.clear()
        await make(live, b"a")
        nursery.start_soon(live.sync)
        await until(lambda: applies.begun == 1)
        await make(live, b"b")
        assert names(live) == [b"a", b"b"]
        start_s = trio.current_time()
        nursery.start_soon(trio.to_thread.run_sync, applies.may_go.set)
        await live.sync()
        assert names(store) == [b"a", b"b"]
        assert trio.current_time() - start_s < live_store._COMMIT_INTERVAL_S


async def test_sync_does_not_wait_for_what_changes_after_it(store, applies, autojump_clock):
    async with open_live_store(store, writable=True) as live:
        applies.may_go.clear()
        await make(live, b"a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live.sync)
            await until(lambda: applies.begun == 1)
            await make(live, b"b")
            applies.may_go.set()
        assert names(store) == [b"a"]


async def test_what_sync_has_acknowledged_another_process_sees(store, autojump_clock):
    script = (
        "import sys; from pathlib import Path; from latentfs.store.store import Store\n"
        "with Store.open(Path(sys.argv[1])) as store, store.read() as snapshot:\n"
        "    print(snapshot.bytes_of(2, offset=0, end=5).decode())"
    )
    async with open_live_store(store, writable=True) as live:
        await make(live, b"a", data=b"bytes")
        await live.sync()
        command = [sys.executable, "-c", script, str(store.path)]
        result = await trio.run_process(command, capture_stdout=True)
        assert result.stdout == b"bytes\n"


async def test_a_change_that_raises_has_never_been(store, autojump_clock):
    def state(of: Snapshot) -> object:
        return of.next_ids(), of.totals(), list(of.inodes()), list(of._rows.items("chunks"))

    async with open_live_store(store, writable=True) as live:
        await make(live, b"a", data=b"x" * 300_000)
        with live.read() as snapshot:
            before = state(snapshot)
        size_bytes = live.live_statistics().uncommitted_bytes
        await live.may_change()
        with refused(errno.ENODATA), live.change() as transaction:
            ino = transaction.make(ROOT_INO, b"b", FILE)
            transaction.write_bytes(ino, FILE, offset=10, data=b"y" * 300_000)
            transaction.set_xattr(ino, b"user.a", b"1")
            transaction.discard(transaction.remove_entry(ROOT_INO, b"a", directory=False)[0])
            transaction.remove_xattr(ino, b"user.missing")
        with live.read() as snapshot:
            assert state(snapshot) == before
        assert live.live_statistics().uncommitted_bytes == size_bytes
        assert live.live_statistics().changes_total == 1


async def test_a_change_wants_its_turn_first(store):
    async with open_live_store(store, writable=True) as live:
        with pytest.raises(RuntimeError, match="may_change"), live.change():
            pass


# Ends


@pytest.mark.parametrize("begun", [False, True])
async def test_what_is_left_is_written_when_the_mount_ends(store, applies, autojump_clock, begun):
    async with open_live_store(store, writable=True) as live:
        applies.may_go.clear()
        await make(live, b"a")
        if begun:
            await until(lambda: applies.begun == 1)
            await make(live, b"b")
        threading.Timer(0.05, applies.may_go.set).start()
    assert names(store) == ([b"a", b"b"] if begun else [b"a"])
    assert WriterLock(store.path).try_acquire()


@pytest.mark.parametrize("raises", [False, True])
async def test_what_is_left_is_written_when_the_mount_is_cancelled_or_fails(
    store, autojump_clock, raises
):
    with trio.CancelScope() as scope, contextlib.suppress(ExceptionGroup):
        async with open_live_store(store, writable=True) as live:
            await make(live, b"a")
            if raises:
                raise ZeroDivisionError
            scope.cancel()
            await trio.sleep_forever()
    assert names(store) == [b"a"]
    assert WriterLock(store.path).try_acquire()


async def test_what_is_left_is_written_though_no_thread_can_be_started(
    store, autojump_clock, monkeypatch
):
    async with open_live_store(store, writable=True) as live:
        await make(live, b"a")

        async def no_thread(*_args: object, **_options: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
    assert names(store) == [b"a"]


async def test_changes_that_are_lost_at_the_end_are_told_of(store, applies, autojump_clock, caplog):
    async with open_live_store(store, writable=True) as live:
        await make(live, b"a")
        applies.error = FULL
    assert "they are lost: no space left" in caplog.text


# Commits that fail


@pytest.mark.parametrize(("error", "number"), [(FULL, errno.ENOSPC), (BROKEN, errno.EIO)])
async def test_a_failed_commit_is_tried_again_with_all_that_changed_meanwhile(
    store, applies, autojump_clock, error, number
):
    async with open_live_store(store, writable=True) as live:
        await make(live, b"gone")
        await make(live, b"kept", data=b"old")
        await live.sync()
        await make(live, b"new")
        applies.error = error
        for _ in range(3):
            with refused(number):
                await live.sync()
        await remove(live, b"gone")
        assert names(live) == [b"kept", b"new"]
        assert names(store) == [b"gone", b"kept"]
        assert live.live_statistics().commits_failed_total >= 3
        applies.error = None
        await live.sync()
        assert names(store) == [b"kept", b"new"]
        await make(live, b"more")
        await live.sync()


async def test_changes_made_while_a_commit_fails_come_on_top_of_it(store, applies, autojump_clock):
    async with open_live_store(store, writable=True) as live:
        await make(live, b"a", data=b"first")
        applies.may_go.clear()
        applies.error = FULL
        async with trio.open_nursery() as nursery:

            async def sync_fails() -> None:
                with refused(errno.ENOSPC):
                    await live.sync()

            nursery.start_soon(sync_fails)
            await until(lambda: applies.begun == 1)
            await remove(live, b"a")
            await make(live, b"b")
            nursery.start_soon(sync_fails)
            await trio.testing.wait_all_tasks_blocked()
            applies.may_go.set()
        assert names(live) == [b"b"]
        applies.error = None
        await live.sync()
        assert names(store) == [b"b"]


async def test_nothing_is_added_while_the_disk_is_full_and_removing_goes_on(
    store, applies, autojump_clock, monkeypatch
):
    monkeypatch.setattr(live_store, "_LAYER_BYTES_MAX", 1000)
    async with open_live_store(store, writable=True) as live:
        for number in range(5):
            await make(live, b"%d" % number, data=bytes(1000))
        applies.error = FULL
        with refused(errno.ENOSPC):
            await live.sync()
        with refused(errno.ENOSPC):
            await make(live, b"more")
        for number in range(5):
            await remove(live, b"%d" % number)
        assert names(live) == []
        applies.error = None
        await live.sync()
        await make(live, b"more")


async def test_memory_is_bounded_while_the_disk_fails(store, applies, autojump_clock, monkeypatch):
    monkeypatch.setattr(live_store, "_LAYER_BYTES_MAX", 10_000)
    async with open_live_store(store, writable=True) as live:
        applies.error = BROKEN
        await make(live, b"first")
        with refused(errno.EIO):
            await live.sync()
        with refused(errno.EIO):
            for number in range(100):
                await make(live, b"%d" % number, data=bytes(1000))
        assert live.live_statistics().uncommitted_bytes < 12_000
        applies.error = None


async def test_space_that_is_nearly_used_up_is_refused_before_a_commit_fails(
    store, applies, autojump_clock
):
    async with open_live_store(store, writable=True) as live:
        await live.may_change()
        with refused(errno.ENOSPC), live.change(adds_bytes=1 << 62):
            pass
        await make(live, b"a")
        await live.sync()
        assert live.live_statistics().commits_failed_total == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount the small disk that this needs")
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(path)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk can't be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


async def fill(live: LiveStore) -> list[bytes]:
    """Make files until that is refused; return their names."""
    made: list[bytes] = []
    while True:
        try:
            await make(live, b"%d" % len(made), data=os.urandom(1 << 20))
        except RefusedChangeError as error:
            if error.errno != errno.ENOSPC:
                raise
            return made
        made.append(b"%d" % len(made))
        if len(made) % 4 == 0:
            await live.sync()


async def test_a_store_that_has_filled_its_disk_lets_go_of_files_and_takes_new_ones(
    disk, autojump_clock
):
    with Store.create(disk / "art.lfs") as store:
        async with open_live_store(store, writable=True) as live:
            made = await fill(live)
            await live.sync()
            assert names(store) == sorted(made)
            for name in made:
                await remove(live, name)
            await live.sync()
            assert names(store) == []
            again = await fill(live)
            assert len(again) > len(made) / 2
            assert live.live_statistics().commits_failed_total == 0
        assert names(store) == sorted(again)


def fill_up(disk: Path) -> Path:
    """Leave no byte of the disk, as another program would; return the file that has it all."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 12)):
            pass
    return filler


async def test_on_a_disk_that_others_filled_removals_reach_the_disk(disk, autojump_clock):
    with Store.create(disk / "art.lfs") as store:
        async with open_live_store(store, writable=True) as live:
            for number in range(4):
                await make(live, b"%d" % number, data=os.urandom(1 << 20))
            await live.sync()
            filler = fill_up(disk)
            for number in range(3):
                await remove(live, b"%d" % number)
                with refused(errno.ENOSPC), live.change(adds_bytes=8 << 20):
                    pass
                await live.sync()
                fill_up(disk)
            assert names(store) == [b"3"]
            filler.unlink()
            await make(live, b"4")
            await live.sync()
            fill_up(disk)
            await remove(live, b"4")
            await live.sync()
            assert names(store) == [b"3"]
        assert not (disk / "art.lfs" / "reserve").exists()


async def test_what_others_left_no_room_for_is_written_once_there_is_some(
    disk, autojump_clock, monkeypatch
):
    monkeypatch.setattr(live_store, "_RESERVED_BYTES", 1 << 20)
    with Store.create(disk / "art.lfs") as store:
        async with open_live_store(store, writable=True) as live:
            for number in range(4):
                await make(live, b"%d" % number, data=os.urandom(1 << 20))
            filler = fill_up(disk)
            with refused(errno.ENOSPC):
                await live.sync()
            with refused(errno.ENOSPC):
                await make(live, b"more")
            await remove(live, b"0")
            assert names(live) == [b"1", b"2", b"3"]
            filler.unlink()
            await live.sync()
            assert names(store) == [b"1", b"2", b"3"]


# Memory


async def test_writers_wait_while_too_much_is_uncommitted(
    store, applies, autojump_clock, monkeypatch
):
    monkeypatch.setattr(live_store, "_LAYER_BYTES_EARLY", 10_000)
    monkeypatch.setattr(live_store, "_LAYER_BYTES_MAX", 40_000)
    most = 0

    async def write_files(number: int) -> None:
        nonlocal most
        for file in range(30):
            await make(live, b"%d-%d" % (number, file), data=bytes(1000))
            most = max(most, live.live_statistics().uncommitted_bytes)
            await trio.lowlevel.checkpoint()

    async with open_live_store(store, writable=True) as live:
        applies.may_go.clear()
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(write_files, number)
            await until(lambda: applies.begun == 1 and most > 40_000)
            stuck = live.live_statistics()
            await trio.sleep(100)
            assert live.live_statistics() == stuck
            assert stuck.changes_total < 120
            applies.may_go.set()
        await live.sync()
    assert len(names(store)) == 120
    assert most < 45_000


async def test_a_layer_of_many_bytes_is_written_early(store, applies, mock_clock, monkeypatch):
    monkeypatch.setattr(live_store, "_LAYER_BYTES_EARLY", 10_000)
    async with open_live_store(store, writable=True) as live:
        await make(live, b"a", data=bytes(5000))
        await trio.testing.wait_all_tasks_blocked()
        assert not applies.begun
        await make(live, b"b", data=bytes(5000))
        await until(lambda: names(store) == [b"a", b"b"])  # the clock stands still


# The writer lock


async def test_a_lock_that_is_held_for_a_minute_is_an_error(store, autojump_clock):
    other = WriterLock(store.path)
    other.acquire()
    async with open_live_store(store, writable=True) as live:
        start_s = trio.current_time()
        with refused(errno.EIO):
            await live.may_change()
        assert trio.current_time() - start_s == pytest.approx(60, abs=1)
        other.release()
        await make(live, b"a")


async def test_a_mount_that_ends_waits_for_no_other_process(store, autojump_clock, caplog):
    """What waits fails at once, and files without links are left to the next mount."""
    other = WriterLock(store.path)
    refusals: list[int] = []

    async def change() -> None:
        try:
            await live.may_change()
        except RefusedChangeError as error:
            refusals.append(error.errno)

    async with open_live_store(store, writable=True) as live:
        await make(live, b"open")
        await live.may_change()
        with live.change() as transaction:
            transaction.remove_entry(ROOT_INO, b"open", directory=False)
        await live.sync()
        await trio.sleep(1)  # the lock is given back
        other.acquire()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(change)
            await trio.sleep(5)
            assert refusals == []
            start_s = trio.current_time()
            live.stop_waiting()
        await change()
        assert refusals == [errno.ESHUTDOWN] * 4
    assert trio.current_time() - start_s < 1
    assert "next mount" in caplog.text
    other.release()
    with store.read() as snapshot:
        assert len(list(snapshot.orphans())) == 1
    async with open_live_store(store, writable=True):
        pass
    with store.read() as snapshot:
        assert not list(snapshot.orphans())


async def test_a_mount_that_ends_goes_on_changing_while_nobody_else_does(store, autojump_clock):
    async with open_live_store(store, writable=True) as live:
        live.stop_waiting()
        await make(live, b"a")
        await live.sync()
        await trio.sleep(1)
        await make(live, b"b")
    assert names(store) == [b"a", b"b"]


async def test_a_lock_that_can_not_be_opened_is_an_error_of_that_change_alone(
    store, autojump_clock, monkeypatch
):
    async with open_live_store(store, writable=True) as live:

        def no_descriptor(lock: WriterLock) -> bool:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patched:
            patched.setattr(WriterLock, "try_acquire", no_descriptor)
            with refused(errno.EIO):
                await live.may_change()
        await make(live, b"a")


async def test_a_process_that_was_killed_while_it_read_keeps_no_pages(store, autojump_clock):
    """Without that all that is rewritten would grow the database for as long as it is mounted."""
    reads = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from latentfs.store.store import Store\n"
        "with Store.open(Path(sys.argv[1])) as store, store.read() as snapshot:\n"
        "    snapshot.totals()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    await trio.run_process([sys.executable, "-c", reads, str(store.path)], check=False)
    before_bytes = 0
    async with open_live_store(store, writable=True) as live:
        for number in range(12):
            await make(live, b"%d" % number, data=bytes(100_000))
            await live.may_change()
            with live.change() as transaction:
                ino, _ = transaction.remove_entry(ROOT_INO, b"%d" % number, directory=False)
                transaction.discard(ino)
            await live.sync()
            if number == 5:
                before_bytes = store.used_bytes() + store.free_bytes()
        assert store.used_bytes() + store.free_bytes() == before_bytes


async def test_changes_wait_until_another_process_is_done(store, autojump_clock):
    other = WriterLock(store.path)
    other.acquire()
    async with open_live_store(store, writable=True) as live:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(make, live, b"%d" % number)
            await trio.sleep(30)
            assert names(live) == []
            other.release()
        assert names(live) == [b"0", b"1", b"2"]


@pytest.mark.parametrize("what", ["nothing", "refused", "no difference", "a change"])
async def test_the_lock_is_given_back_within_a_second_whatever_was_done(
    store, autojump_clock, what
):
    async with open_live_store(store, writable=True) as live:
        await live.may_change()
        assert not WriterLock(store.path).try_acquire()
        if what == "refused":
            with refused(errno.ENOENT), live.change() as transaction:
                transaction.remove_entry(ROOT_INO, b"missing", directory=False)
        elif what == "no difference":
            with live.change():
                pass
        elif what == "a change":
            await make(live, b"a")
            await until(lambda: live.live_statistics().commits_total == 1)
        await trio.sleep(1)
        other = WriterLock(store.path)
        assert other.try_acquire()
        other.release()
        await make(live, b"b")


ADD_FILES = """
import sys
from pathlib import Path
from store_contents import add_picture, picture_latent
from latentfs.store.store import Store
with Store.open(Path(sys.argv[1]), writable=True) as store:
    for number in range(int(sys.argv[2])):
        with store.write() as transaction:
            print(add_picture(transaction, 1, b"other-%d" % number, picture_latent(number)))
"""


async def test_another_process_gets_its_turn_and_no_number_is_given_twice(store, monkeypatch):
    monkeypatch.setattr(live_store, "_LOCK_HELD_MAX_S", 0.1)
    monkeypatch.setattr(live_store, "_COMMIT_INTERVAL_S", 0.05)
    own: list[int] = []

    async def change_constantly() -> None:
        while True:
            own.append(await make(live, b"own-%d" % len(own)))
            await trio.lowlevel.checkpoint()

    async with open_live_store(store, writable=True) as live, trio.open_nursery() as nursery:
        nursery.start_soon(change_constantly)
        paths = os.pathsep.join(map(str, sys.path))
        result = await trio.run_process(
            [sys.executable, "-c", ADD_FILES, str(store.path), "5"],
            capture_stdout=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
        nursery.cancel_scope.cancel()
    others = [int(line) for line in result.stdout.split()]
    assert len(others) == 5
    assert len(own) > 5
    assert sorted({*own, *others}) == list(range(ROOT_INO + 1, ROOT_INO + 1 + len(own) + 5))
    assert set(names(store)) == {b"own-%d" % n for n in range(len(own))} | {
        b"other-%d" % n for n in range(5)
    }


# Orphans


async def test_orphans_of_a_killed_mount_are_removed_when_it_is_opened(
    store, tmp_path, autojump_clock
):
    with store.write() as transaction:
        add_picture(transaction, ROOT_INO, b"picture", picture_latent(1), chunks=(b"prompt",))
    async with open_live_store(store, writable=True) as live:
        await make(live, b"open", data=b"x" * 300_000)
        await make(live, b"sub", FOLDER)
        for name in (b"picture", b"open", b"sub"):
            await live.may_change()
            with live.change() as transaction:
                transaction.remove_entry(ROOT_INO, name, directory=name == b"sub")
        await live.sync()
        shutil.copytree(store.path, tmp_path / "killed.lfs")
    with store.read() as snapshot:  # a mount that ends leaves none
        assert not list(snapshot.orphans())
    with Store.open(tmp_path / "killed.lfs", writable=True) as killed:
        with killed.read() as snapshot:
            assert len(list(snapshot.orphans())) == 3
        async with open_live_store(killed, writable=False) as live:
            assert names(live) == []
        async with open_live_store(killed, writable=True) as live:
            with live.read() as snapshot:
                assert [ino for ino, _ in snapshot.inodes()] == [ROOT_INO]
        with killed.read() as snapshot:
            assert [ino for ino, _ in snapshot.inodes()] == [ROOT_INO]
            assert not list(snapshot._rows.keys("chunks"))
            assert not list(snapshot._rows.keys("payloads"))


async def test_an_orphan_that_can_not_be_removed_does_not_prevent_a_mount(
    store, autojump_clock, caplog
):
    damage, repair = Layer(), Layer()
    damage.put("catalog", tables.orphan_key(77), b"")
    repair.put("catalog", tables.orphan_key(77), None)
    store.apply(damage)
    async with open_live_store(store, writable=True) as live:
        await make(live, b"a")
    assert "inode 77" in caplog.text
    store.apply(repair)


async def test_orphans_do_not_wait_one_by_one_for_another_process(store, autojump_clock, caplog):
    damage, repair = Layer(), Layer()
    for ino in (77, 78, 79):
        damage.put("catalog", tables.orphan_key(ino), b"")
        repair.put("catalog", tables.orphan_key(ino), None)
    store.apply(damage)
    other = WriterLock(store.path)
    other.acquire()
    start_s = trio.current_time()
    async with open_live_store(store, writable=True):
        assert trio.current_time() - start_s < 70
        other.release()
    assert "3 files without links are left to the next mount" in caplog.text
    store.apply(repair)


# Everything at once


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_fails_and_is_cancelled_the_disk_is_as_the_mount_was(
    store, applies, autojump_clock, seed
):
    """Tasks add and remove files; every state on disk is consistent, the last one is theirs."""
    chance = random.Random(seed)
    present: set[bytes] = set()
    acknowledged: set[bytes] = set()

    async def change_files(task: int) -> None:
        for number in range(60):
            name = b"%d-%d" % (task, number)
            with contextlib.suppress(RefusedChangeError), trio.move_on_after(chance.random() * 9):
                await make(live, name, data=bytes(chance.randrange(300_000)))
                present.add(name)
            if chance.random() < 0.4 and (mine := [n for n in present if n[:1] == b"%d" % task]):
                await remove(live, mine[0])
                present.discard(mine[0])
                acknowledged.discard(mine[0])
            if chance.random() < 0.2:
                before = {n for n in present if n[:1] == b"%d" % task}
                with contextlib.suppress(RefusedChangeError), trio.move_on_after(2):
                    await live.sync()
                    acknowledged.update(before)
                    assert before <= set(names(store))
            await trio.sleep(chance.random() * 0.2)

    async def fail_now_and_then() -> None:
        while True:
            applies.error = chance.choice([None, None, FULL, BROKEN])
            await trio.sleep(chance.random() * 3)
            assert acknowledged <= set(names(store))

    async with open_live_store(store, writable=True) as live:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_now_and_then)
            async with trio.open_nursery() as workers:
                for task in range(3):
                    workers.start_soon(change_files, task)
            nursery.cancel_scope.cancel()
        assert set(names(live)) == present
        applies.error = None
    assert set(names(store)) == present
