"""Open files: what meets between the moments at which a handler waits."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio
import trio.testing
import zstandard
from pyfuse3 import FUSEError
from store_contents import add_picture, picture_latent
from store_damage import Damage
from store_invariants import assert_consistent

from latentfs.errors import (
    LatentfsError,
    RefusedChangeError,
    RenderError,
    RenderFailedError,
    StoreCorruptError,
)
from latentfs.fs import open_files
from latentfs.fs.open_files import OpenFiles
from latentfs.fs.open_inodes import OpenInodes
from latentfs.fs.prefetch import SequenceDetector
from latentfs.fs.renditions import Renditions
from latentfs.latents import payload as payload_codec
from latentfs.latents.latent import Latent
from latentfs.render.job_queue import Reader
from latentfs.store import tables
from latentfs.store.chunks import FILE_BYTES_MAX
from latentfs.store.file_transaction import FileTransaction
from latentfs.store.live_store import LiveStore, open_live_store
from latentfs.store.records import Inode, LatentFileContent
from latentfs.store.snapshot import blob_id
from latentfs.store.store import Store
from latentfs.store.tables import ROOT_INO
from latentfs.store.writer_lock import WriterLock
from latentfs.telemetry.activity import Activity, ReadTrail, Tier

SIZE_BYTES = 300_000
PICTURE = os.urandom(SIZE_BYTES)
FILE = Inode(stat.S_IFREG | 0o644, 1, 2, 1, 0, 1, 1)
CTX = cast(pyfuse3.RequestContext, SimpleNamespace(uid=1, gid=2, pid=os.getpid(), umask=0))
READER = Reader(1, 1)


class SlowRenditions:
    """Every picture is PICTURE, once *may_go* is set."""

    def __init__(self) -> None:
        self.may_go = trio.Event()
        self.error: LatentfsError | None = None
        self.asked = 0
        self.ahead: list[int] = []

    def prefetch(self, ino: int, inode: Inode, is_wanted: Callable[[], bool]) -> None:
        self.ahead.append(ino)

    async def get(self, ino: int, inode: Inode, reader: Reader, trail: ReadTrail) -> bytes:
        self.asked += 1
        trail.tier = Tier.MISS
        await self.may_go.wait()
        if self.error is not None:
            raise self.error
        return PICTURE


class Opened:
    """A live store with a picture, and its open files."""

    def __init__(self, live: LiveStore, ino: int) -> None:
        self.live = live
        self.ino = ino
        self.renditions = SlowRenditions()
        self.inodes = OpenInodes(live)
        self.written: list[int] = []
        self.activity = Activity()
        self.detector = SequenceDetector(files_max=0)
        self.ahead_bytes = 0
        self.files = OpenFiles(
            live,
            cast(Renditions, self.renditions),
            self.inodes,
            self.detector,
            itertools.count(1),
            self.activity,
            ahead_bytes=lambda: self.ahead_bytes,
            on_written=self.written.append,
        )

    async def open(self, ino: int | None = None, flags: int = os.O_RDWR) -> int:
        return await self.files.open(self.ino if ino is None else ino, flags, CTX)

    async def make(self, name: bytes) -> int:
        await self.live.may_change()
        with self.live.change() as transaction:
            return transaction.make(ROOT_INO, name, FILE)

    async def unlink(self, name: bytes) -> None:
        await self.live.may_change()
        with self.live.change() as transaction:
            ino, is_orphan = transaction.remove_entry(ROOT_INO, name, directory=False)
        if is_orphan:
            self.inodes.orphaned(ino)
            await self.inodes.forgotten(ino)

    def inode(self, ino: int | None = None) -> Inode | None:
        with self.live.read() as snapshot:
            assert_consistent(snapshot)
            return snapshot.inode(self.ino if ino is None else ino)

    def content(self, ino: int | None = None) -> bytes:
        """The bytes of a file that is no picture any more."""
        inode = self.inode(ino)
        assert inode is not None
        assert inode.content is None
        with self.live.read() as snapshot:
            end = inode.size_bytes
            return snapshot.bytes_of(self.ino if ino is None else ino, offset=0, end=end)

    def is_picture(self) -> bool:
        inode = self.inode()
        return inode is not None and inode.content is not None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "art.lfs") as store:
        yield store
        with store.read() as snapshot:
            assert_consistent(snapshot)


@asynccontextmanager
async def opened_store(store: Store) -> AsyncIterator[Opened]:
    with store.write() as transaction:
        ino = add_picture(transaction, ROOT_INO, b"a.png", picture_latent(1), size_bytes=SIZE_BYTES)
    async with open_live_store(store, writable=True) as live:
        yield Opened(live, ino)


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises((RefusedChangeError, FUSEError)) as caught:
        yield
    assert errno.errorcode[cast(Any, caught.value).errno] == errno.errorcode[number]


def written(offset: int, data: bytes, to: bytes = PICTURE) -> bytes:
    return to[:offset] + data + to[offset + len(data) :]


# Writing into pictures


async def test_two_writers_who_meet_in_a_picture_both_have_their_bytes_in_it(store, autojump_clock):
    async with opened_store(store) as opened:
        one, two = await opened.open(), await opened.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.files.write, one, 10, b"first")
            nursery.start_soon(opened.files.write, two, 200_000, b"second")
            await trio.testing.wait_all_tasks_blocked()
            assert opened.is_picture()
            opened.renditions.may_go.set()
        assert opened.content() == written(200_000, b"second", written(10, b"first"))


@pytest.mark.parametrize("size_bytes", [0, 5, SIZE_BYTES + 10])
async def test_a_picture_that_is_cut_while_it_is_written_into_has_both_done(
    store, autojump_clock, size_bytes
):
    async with opened_store(store) as opened:
        handle = await opened.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.files.write, handle, 100, b"data")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(opened.files.resize, opened.ino, size_bytes, READER)
            await trio.testing.wait_all_tasks_blocked()
            assert opened.is_picture() == (size_bytes > 0)
            opened.renditions.may_go.set()
        cut_last = (written(100, b"data") + bytes(10))[:size_bytes]
        cut_first = written(100, b"data", (PICTURE + bytes(10))[:size_bytes].ljust(100, b"\0"))
        assert opened.content() in ({cut_first} if size_bytes == 0 else {cut_last, cut_first})


async def test_a_picture_that_is_removed_while_it_is_written_into_is_written_to_its_close(
    store, autojump_clock
):
    async with opened_store(store) as opened:
        handle = await opened.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.files.write, handle, 0, b"data")
            await trio.testing.wait_all_tasks_blocked()
            await opened.unlink(b"a.png")
            opened.renditions.may_go.set()
        assert opened.content() == written(0, b"data")
        assert await opened.files.read(handle, 0, 4) == b"data"
        await opened.files.close(handle)
        assert opened.inode() is None


async def test_a_picture_that_another_process_replaces_while_it_is_written_into_is_stale(
    store, autojump_clock
):
    async with opened_store(store) as opened:
        handle = await opened.open()

        async def write() -> None:
            with refused(errno.ESTALE):
                await opened.files.write(handle, 0, b"data")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await trio.sleep(2)
            with store.write() as transaction:
                transaction.remove_file_by_command(ROOT_INO, b"a.png")
            opened.renditions.may_go.set()


async def test_others_may_change_the_store_while_a_picture_renders(store, autojump_clock):
    async with opened_store(store) as opened:
        handle = await opened.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.files.write, handle, 0, b"data")
            await trio.sleep(1)
            other = WriterLock(store.path)
            assert other.try_acquire()
            opened.renditions.may_go.set()
            await trio.sleep(1)
            assert opened.is_picture()
            other.release()
        assert opened.content() == written(0, b"data")


async def test_a_picture_that_can_not_be_rendered_stays_one_and_can_be_overwritten(
    store, autojump_clock
):
    async with opened_store(store) as opened:
        opened.renditions.error = RenderFailedError("it can't")
        opened.renditions.may_go.set()
        handle = await opened.open()
        with pytest.raises(RenderFailedError):
            await opened.files.write(handle, 0, b"data")
        with pytest.raises(RenderFailedError):
            await opened.files.resize(opened.ino, 10, READER)
        assert opened.is_picture()
        await opened.files.resize(opened.ino, 0, READER)
        await opened.files.write(handle, 0, b"data")
        assert opened.content() == b"data"


async def test_a_read_that_fails_is_refused_for_a_moment_and_then_tried_again(
    store, autojump_clock
):
    """The kernel asks twice for one read; others may use the handle right after it."""
    async with opened_store(store) as opened:
        opened.renditions.error = RenderFailedError("it can't")
        opened.renditions.may_go.set()
        handle = await opened.open(flags=os.O_RDONLY)
        with pytest.raises(RenderError):
            await opened.files.read(handle, 0, SIZE_BYTES)
        opened.renditions.error = None
        with refused(errno.EIO):
            await opened.files.read(handle, 0, 4096)
        assert opened.renditions.asked == 1
        other = await opened.open(flags=os.O_RDONLY)
        assert await opened.files.read(other, 0, SIZE_BYTES) == PICTURE
        await trio.sleep(0.2)
        assert await opened.files.read(handle, 0, SIZE_BYTES) == PICTURE


async def test_a_damaged_head_fails_as_a_head_and_names_its_inode(store, autojump_clock):
    with store.write() as transaction:
        ino = add_picture(
            transaction,
            ROOT_INO,
            b"b.png",
            picture_latent(2),
            size_bytes=SIZE_BYTES,
            chunks=(b"text",),
        )
    Damage(store).put("metadata", tables.blob_key(blob_id(b"text")), b"no zstd")
    async with opened_store(store) as opened:
        handle = await opened.open(ino, os.O_RDONLY)
        with pytest.raises(RenderError, match=f"inode {ino}: metadata blob"):
            await opened.files.read(handle, 0, 8)
        reads = opened.activity.statistics().reads
        assert reads["head"].failed == 1
        assert sum(times.count for times in reads.values()) == 1


async def test_without_space_for_its_bytes_a_picture_stays_one(store, autojump_clock, monkeypatch):
    async with opened_store(store) as opened:
        handle = await opened.open()
        opened.renditions.may_go.set()
        monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=0, f_frsize=4096))
        with refused(errno.ENOSPC):
            await opened.files.write(handle, 0, b"data")
        assert opened.is_picture()
        await opened.files.resize(opened.ino, 0, READER)
        assert opened.content() == b""


async def test_a_write_that_is_cancelled_has_done_nothing(store, autojump_clock):
    async with opened_store(store) as opened:
        handle = await opened.open()
        with trio.move_on_after(1):
            await opened.files.write(handle, 0, b"data")
        assert opened.is_picture()
        await trio.sleep(1)
        other = WriterLock(store.path)
        assert other.try_acquire()
        with trio.move_on_after(1) as scope:
            await opened.files.write(handle, 0, b"data")
        assert scope.cancelled_caught
        assert opened.is_picture()
        other.release()


async def test_a_handle_that_is_closed_while_it_writes_does_no_harm(store, autojump_clock):
    async with opened_store(store) as opened:
        handle = await opened.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.files.write, handle, 0, b"data")
            nursery.start_soon(opened.files.read, handle, 200_000, 10)
            await trio.testing.wait_all_tasks_blocked()
            await opened.files.close(handle)
            opened.renditions.may_go.set()
        assert opened.content() == written(0, b"data")
        counted = opened.files.statistics()
        assert (counted.open_files, counted.pinned_bytes) == (0, 0)


# Reading


async def test_a_read_that_waits_while_its_picture_is_overwritten_gets_the_picture(
    store, autojump_clock
):
    pieces: list[bytes] = []
    async with opened_store(store) as opened:
        reader, writer = await opened.open(), await opened.open()

        async def read() -> None:
            pieces.append(bytes(await opened.files.read(reader, 200_000, 50)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await opened.files.resize(opened.ino, 0, READER)
            await opened.files.write(writer, 0, b"new bytes")
            opened.renditions.may_go.set()
        assert pieces == [PICTURE[200_000:200_050]]
        assert await opened.files.read(reader, 0, 50) == b"new bytes"
        assert opened.files.statistics().pinned_bytes == 0


async def test_a_picture_that_was_overwritten_before_it_could_be_rendered_is_no_failure(
    store, autojump_clock
):
    pieces: list[bytes] = []
    async with opened_store(store) as opened:
        reader, writer, other = [await opened.open() for _ in range(3)]

        async def read() -> None:
            pieces.append(bytes(await opened.files.read(reader, 200_000, 50)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(opened.files.write, other, 300_000, b"end")
            await trio.testing.wait_all_tasks_blocked()
            await opened.files.resize(opened.ino, 0, READER)
            await opened.files.write(writer, 200_000, b"new bytes")
            # What the content needed went with the last file that had it.
            opened.renditions.error = StoreCorruptError("a payload is missing")
            opened.renditions.may_go.set()
        assert [piece[:9] for piece in pieces] == [b"new bytes"]
        assert opened.content()[200_000:].strip(b"\0") == b"new bytes" + bytes(99_991) + b"end"
        assert await opened.files.read(reader, 200_000, 9) == b"new bytes"


def add_latent_file(store: Store, name: bytes, seed: int) -> tuple[int, bytes]:
    """Return its number and its bytes."""
    rest = b"head and tail"
    latents = [picture_latent(10 * seed + number) for number in range(4)]
    data = b"".join((rest[:5], *(latent.bits.tobytes() for latent in latents), rest[5:]))
    with store.write_rows() as rows:
        key = tables.blob_references_key(blob_id(rest))
        if rows.get("metadata", key) is None:
            rows.put("metadata", key, bytes(8))
            rows.put("metadata", tables.blob_key(blob_id(rest)), zstandard.compress(rest))
        transaction = FileTransaction(rows)
        ino = transaction.make(ROOT_INO, name, FILE)
        transaction.truncate(ino, transaction.require(ino), size_bytes=len(data))
        payloads = [
            transaction.add_payload(latent.digest(), payload_codec.encode(latent))
            for latent in latents
        ]
        content = LatentFileContent(tuple(payloads), blob_id(rest), 5, False)
        transaction.make_latent(ino, transaction.require(ino), content)
        transaction.finish()
    return ino, data


async def test_latent_files_read_in_turns_are_decompressed_once_and_let_go_when_closed(
    store, monkeypatch
):
    added = [add_latent_file(store, b"%d.latent" % seed, seed) for seed in range(3)]
    decoded = Counter[bytes]()
    decode = payload_codec.decode

    def counting(payload: bytes) -> Latent:
        decoded[payload] += 1
        return decode(payload)

    monkeypatch.setattr(payload_codec, "decode", counting)
    monkeypatch.setattr(open_files, "_PINNED_BYTES_MAX", 1)
    async with opened_store(store) as opened:
        handles = [await opened.open(ino, os.O_RDONLY) for ino, _ in added]
        for offset in range(0, len(added[0][1]) + 20, 20):
            for fh, (_, data) in zip(handles, added, strict=True):
                piece = await opened.files.read(fh, offset, 20)
                assert piece == data[offset : offset + 20]
        assert set(decoded.values()) == {1}
        assert opened.files.statistics().pinned_bytes == sum(len(data) for _, data in added)
        for fh in handles:
            await opened.files.close(fh)
        assert opened.files.statistics().pinned_bytes == 0
        assert opened.activity.statistics().reads["latent_file"].failed == 0


async def test_a_latent_file_is_written_into_as_any_other(store):
    ino, data = add_latent_file(store, b"cat.latent", 1)
    async with opened_store(store) as opened:
        reader, writer = await opened.open(ino, os.O_RDONLY), await opened.open(ino)
        assert await opened.files.read(reader, 0, 10) == data[:10]
        await opened.files.write(writer, 3, b"x")
        assert await opened.files.read(reader, 0, 1000) == written(3, b"x", data)
        for fh in (reader, writer):
            await opened.files.close(fh)
        assert opened.files.statistics().pinned_bytes == 0


async def test_a_handle_reads_what_another_has_written_since(store, autojump_clock):
    async with opened_store(store) as opened:
        opened.renditions.may_go.set()
        reader, writer = await opened.open(), await opened.open()
        assert await opened.files.read(reader, 200_000, 4) == PICTURE[200_000:200_004]
        await opened.files.write(writer, 2, b"data")
        assert await opened.files.read(reader, 0, 8) == written(2, b"data")[:8]
        await opened.files.resize(opened.ino, 3, READER)
        assert await opened.files.read(reader, 0, 8) == written(2, b"data")[:3]
        assert await opened.files.read(reader, 3, 8) == b""
        assert await opened.files.read(reader, 1 << 40, 8) == b""


async def test_opening_to_truncate_renders_nothing_and_takes_set_user_id_away(
    store, autojump_clock
):
    async with opened_store(store) as opened:
        await opened.live.may_change()
        with opened.live.change() as transaction:
            before = transaction.require(opened.ino)
            transaction.update(opened.ino, before, mode=stat.S_IFREG | 0o6755)
        await opened.open(flags=os.O_WRONLY | os.O_TRUNC)
        assert opened.content() == b""
        inode = opened.inode()
        assert inode is not None
        assert inode.mode == stat.S_IFREG | 0o755
        assert opened.renditions.asked == 0


async def test_a_file_is_finished_when_the_last_who_may_write_closes_it(store, autojump_clock):
    async with opened_store(store) as opened:
        ino = await opened.make(b"file")
        reader = await opened.open(ino, os.O_RDONLY)
        idle, writer = await opened.open(ino, os.O_WRONLY), await opened.open(ino)
        await opened.files.write(writer, 0, b"data")
        await opened.files.close(idle)
        assert opened.files.is_being_written(ino)
        assert opened.written == []
        await opened.files.close(writer)
        assert opened.written == [ino]
        assert not opened.files.is_being_written(ino)
        await opened.files.close(reader)
        assert opened.written == [ino]


async def test_a_file_is_finished_though_its_writer_is_not_the_last_to_close_it(
    store, autojump_clock
):
    async with opened_store(store) as opened:
        ino = await opened.make(b"file")
        idle, writer = await opened.open(ino), await opened.open(ino)
        await opened.files.write(writer, 0, b"data")
        await opened.files.close(writer)
        await opened.files.close(idle)
        assert opened.written == [ino]


async def test_a_file_that_is_cut_or_lengthened_is_finished_too(store, autojump_clock):
    async with opened_store(store) as opened:
        ino = await opened.make(b"file")
        await opened.files.resize(ino, 100, READER)
        assert opened.written == [ino]
        await opened.files.resize(ino, 0, READER)
        assert opened.written == [ino]
        handle = await opened.open(ino)
        await opened.files.resize(ino, 100, READER)
        assert opened.written == [ino]
        await opened.files.close(handle)
        assert opened.written == [ino, ino]


async def test_a_picture_is_finished_though_all_that_was_to_be_written_was_refused(
    store, autojump_clock
):
    """Its bytes are kept as such by then, which is to be looked at: they are those of a picture."""
    async with opened_store(store) as opened:
        opened.renditions.may_go.set()
        handle = await opened.open()
        with refused(errno.EFBIG):
            await opened.files.write(handle, FILE_BYTES_MAX, b"data")
        assert opened.content() == PICTURE
        assert opened.written == []
        await opened.files.close(handle)
        assert opened.written == [opened.ino]


async def test_a_picture_is_finished_though_it_can_not_be_that_long(store, autojump_clock):
    async with opened_store(store) as opened:
        opened.renditions.may_go.set()
        with refused(errno.EFBIG):
            await opened.files.resize(opened.ino, FILE_BYTES_MAX + 1, READER)
        assert opened.content() == PICTURE
        assert opened.written == [opened.ino]


# Removed while open


async def test_a_removed_file_goes_with_its_last_handle(store, autojump_clock):
    async with opened_store(store) as opened:
        ino = await opened.make(b"file")
        handles = [await opened.open(ino), await opened.open(ino)]
        await opened.files.write(handles[0], 0, b"data")
        await opened.unlink(b"file")
        await opened.files.close(handles[0])
        assert await opened.files.read(handles[1], 0, 10) == b"data"
        await opened.files.write(handles[1], 4, b" more")
        assert opened.content(ino) == b"data more"
        await opened.files.close(handles[1])
        assert opened.inode(ino) is None
        with refused(errno.ESTALE):
            await opened.open(ino)


async def test_a_file_whose_bytes_another_process_has_removed_is_stale_and_not_zeros(
    store, autojump_clock
):
    async with opened_store(store) as opened:
        ino = await opened.make(b"a.txt")
        fh = await opened.open(ino)
        await opened.files.write(fh, 0, b"text")
        await opened.live.sync()
        assert await opened.files.read(fh, 0, 10) == b"text"
        await trio.sleep(2)  # for the lock
        with store.write() as transaction:
            transaction.remove_file_by_command(ROOT_INO, b"a.txt")
        with refused(errno.ESTALE):
            await opened.files.read(fh, 0, 10)


async def test_a_file_with_a_link_left_outlives_its_handles(store, autojump_clock):
    async with opened_store(store) as opened:
        ino = await opened.make(b"one")
        await opened.live.may_change()
        with opened.live.change() as transaction:
            transaction.link(ino, ROOT_INO, b"two")
        handle = await opened.open(ino)
        await opened.unlink(b"one")
        await opened.files.close(handle)
        assert opened.inode(ino) is not None
        await opened.unlink(b"two")
        assert opened.inode(ino) is None


async def test_what_is_still_open_at_the_end_of_a_mount_is_discarded_then(store, autojump_clock):
    async with opened_store(store) as opened:
        ino = await opened.make(b"file")
        handle = await opened.open(ino)
        await opened.files.write(handle, 0, b"x" * 500_000)
        await opened.unlink(b"file")
        await opened.live.sync()
    with store.read() as snapshot:
        assert snapshot.inode(ino) is None
        assert_consistent(snapshot)


# Attributes


async def test_attributes_change_as_the_fields_say(store, autojump_clock):
    wanted = pyfuse3.EntryAttributes()
    wanted.st_mode, wanted.st_uid, wanted.st_gid = 0o100600, 7, 8
    wanted.st_atime_ns, wanted.st_mtime_ns, wanted.st_size = 1_000_000_001, 2_000_000_003, 5

    def fields(*names: str) -> pyfuse3.SetattrFields:
        known = ("atime", "mtime", "ctime", "mode", "uid", "gid", "size")
        flags = {f"update_{name}": name in names for name in known}
        return cast(pyfuse3.SetattrFields, SimpleNamespace(**flags))

    async with opened_store(store) as opened:
        opened.renditions.may_go.set()
        ino = await opened.make(b"file")
        entry = await opened.files.set_attributes(ino, wanted, fields("mode"), CTX)
        assert (entry.st_mode, entry.st_uid, entry.st_mtime_ns) == (0o100600, 1, 1)
        assert entry.st_ctime_ns > 1
        # The atime of an import is its mtime, until one of the two is set.
        entry = await opened.files.set_attributes(ino, wanted, fields("mtime"), CTX)
        assert (entry.st_mtime_ns, entry.st_atime_ns) == (2_000_000_003, 1)
        entry = await opened.files.set_attributes(ino, wanted, fields("atime", "uid", "gid"), CTX)
        assert (entry.st_atime_ns, entry.st_uid, entry.st_gid) == (1_000_000_001, 7, 8)
        entry = await opened.files.set_attributes(opened.ino, wanted, fields("size", "mtime"), CTX)
        assert (entry.st_size, entry.st_mtime_ns) == (5, 2_000_000_003)
        assert opened.content() == PICTURE[:5]


@pytest.mark.parametrize("year", [1601, 9999])
async def test_times_that_a_record_has_no_room_for_are_the_nearest_ones(
    store, autojump_clock, year
):
    """An archive from Windows may well have files of 1601."""
    wanted = pyfuse3.EntryAttributes()
    time_ns = (year - 1970) * 365 * 24 * 3600 * 10**9
    wanted.st_atime_ns = wanted.st_mtime_ns = time_ns
    nearest_ns = max(-(1 << 63), min(time_ns, (1 << 63) - 1))
    fields = ("atime", "mtime", "ctime", "mode", "uid", "gid", "size")
    flags = {f"update_{name}": name in ("atime", "mtime") for name in fields}
    async with opened_store(store) as opened:
        ino = await opened.make(b"file")
        entry = await opened.files.set_attributes(
            ino, wanted, cast(pyfuse3.SetattrFields, SimpleNamespace(**flags)), CTX
        )
        assert (entry.st_mtime_ns, entry.st_atime_ns) == (nearest_ns, nearest_ns)


# Rendering ahead


async def test_what_is_rendered_ahead_fits_into_what_there_is_for_it_now(store):
    with store.write() as transaction:
        names = [b"b%d.png" % number for number in range(9)]
        latent = picture_latent(2)
        inos = [
            add_picture(transaction, ROOT_INO, name, latent, size_bytes=SIZE_BYTES)
            for name in names
        ]
    async with opened_store(store) as opened:
        opened.renditions.may_go.set()
        opened.detector.limit(8)
        for ino, name in zip(inos, names, strict=True):
            opened.detector.saw_name(ino, ROOT_INO, name)

        async def read(ino: int) -> list[int]:
            opened.renditions.ahead.clear()
            handle = await opened.open(ino, os.O_RDONLY)
            await opened.files.read(handle, SIZE_BYTES - 10, 10)
            await opened.files.close(handle)
            return opened.renditions.ahead

        for ino in inos[:2]:
            await read(ino)
        opened.ahead_bytes = SIZE_BYTES
        assert await read(inos[2]) == inos[3:4]
        opened.ahead_bytes = 8 * SIZE_BYTES
        assert await read(inos[3]) == inos[5:8]
