"""Names as the kernel asks for them, and listings of directories that change."""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
from pyfuse3 import FUSEError
from store_damage import Damage
from store_invariants import assert_consistent

from latentfs.errors import RefusedChangeError, StoreCorruptError
from latentfs.fs import open_inodes
from latentfs.fs.directories import Directories
from latentfs.fs.extended_attributes import ExtendedAttributes
from latentfs.fs.names import Names
from latentfs.fs.open_inodes import OpenInodes
from latentfs.fs.prefetch import SequenceDetector
from latentfs.store import tables
from latentfs.store.live_store import LiveStore, open_live_store
from latentfs.store.records import Inode
from latentfs.store.store import Store
from latentfs.store.tables import CHUNK_BYTES, ROOT_INO

CTX = cast(pyfuse3.RequestContext, SimpleNamespace(uid=1, gid=2, pid=3, umask=0))
FILE, FOLDER = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


class Tree:
    """The names and directories of a mount."""

    def __init__(self, live: LiveStore, replies: Replies) -> None:
        self.live = live
        self.replies = replies
        detector = SequenceDetector(files_max=0)
        self.inodes = OpenInodes(live)
        self.renamed: list[int] = []
        self.names = Names(
            live, self.inodes, detector, on_renamed=lambda ino, _: self.renamed.append(ino)
        )
        self.directories = Directories(live, self.inodes, detector, itertools.count(1))

    async def make(self, name: bytes, mode: int = FILE, parent_ino: int = ROOT_INO) -> int:
        return (await self.names.make(parent_ino, name, mode, CTX)).st_ino

    async def remove(self, name: bytes, *, directory: bool = False) -> None:
        await self.names.remove(ROOT_INO, name, directory=directory)

    def inode(self, ino: int) -> Inode | None:
        with self.live.read() as snapshot:
            assert_consistent(snapshot)
            return snapshot.inode(ino)

    def list_some(self, handle: int, start_id: int, count: int = 3) -> tuple[list[bytes], int]:
        """Return up to *count* names from a position on, and the position behind them."""
        self.replies.count = count
        self.replies.entries = []
        self.directories.list(handle, start_id, cast(pyfuse3.ReaddirToken, None))
        entries = self.replies.entries
        return [name for name, _ in entries], entries[-1][1] if entries else start_id

    def list_all(self, handle: int, start_id: int = 0) -> list[bytes]:
        names: list[bytes] = []
        while True:
            more, start_id = self.list_some(handle, start_id)
            if not more:
                return names
            names += more


class Replies:
    """Takes as many entries of a listing as the kernel has room for."""

    def __init__(self) -> None:
        self.count = 0
        self.entries: list[tuple[bytes, int]] = []

    def __call__(self, token: object, name: bytes, attr: object, next_id: int) -> bool:
        if len(self.entries) == self.count:
            return False
        self.entries.append((name, next_id))
        return True


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> Replies:
    replies = Replies()
    monkeypatch.setattr(pyfuse3, "readdir_reply", replies)
    return replies


@asynccontextmanager
async def opened_tree(tmp_path: Path, replies: Replies) -> AsyncIterator[Tree]:
    with Store.create(tmp_path / "art.lfs") as store:
        async with open_live_store(store, writable=True) as live:
            yield Tree(live, replies)
        with store.read() as snapshot:
            assert_consistent(snapshot)


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises((RefusedChangeError, FUSEError)) as caught:
        yield
    assert errno.errorcode[cast(Any, caught.value).errno] == errno.errorcode[number]


# Names


async def test_a_removed_file_that_is_open_stays_until_it_is_closed(
    tmp_path, replies, autojump_clock
):
    async with opened_tree(tmp_path, replies) as tree:
        ino = await tree.make(b"file")
        tree.inodes.opened(ino)
        await tree.remove(b"file")
        inode = tree.inode(ino)
        assert inode is not None
        assert inode.nlink == 0
        await tree.inodes.forgotten(ino)
        assert tree.inode(ino) is not None
        await tree.inodes.closed(ino)
        assert tree.inode(ino) is None


async def test_a_file_that_is_replaced_while_open_stays_until_it_is_closed(
    tmp_path, replies, autojump_clock
):
    async with opened_tree(tmp_path, replies) as tree:
        old, new = await tree.make(b"old"), await tree.make(b"new")
        tree.inodes.opened(old)
        await tree.names.rename(ROOT_INO, b"new", ROOT_INO, b"old", 0)
        assert tree.names.lookup(ROOT_INO, b"old").st_ino == new
        await tree.inodes.closed(old)
        assert tree.inode(old) is not None
        await tree.inodes.forgotten(old)
        assert tree.inode(old) is None
        assert tree.renamed == [new]


async def test_a_file_that_was_replaced_goes_when_the_kernel_has_forgotten_it(
    tmp_path, replies, autojump_clock
):
    async with opened_tree(tmp_path, replies) as tree:
        old, _ = await tree.make(b"old"), await tree.make(b"new")
        await tree.inodes.forgotten(old)  # and has asked for it again since
        await tree.names.rename(ROOT_INO, b"new", ROOT_INO, b"old", 0)
        assert tree.inode(old) is not None
        await tree.inodes.forgotten(old)
        assert tree.inode(old) is None


async def test_renaming_minds_its_flags(tmp_path, replies, autojump_clock):
    async with opened_tree(tmp_path, replies) as tree:
        a, b = await tree.make(b"a"), await tree.make(b"b", FOLDER)
        with refused(errno.EEXIST):
            await tree.names.rename(ROOT_INO, b"a", ROOT_INO, b"b", pyfuse3.RENAME_NOREPLACE)
        with refused(errno.EINVAL):
            await tree.names.rename(ROOT_INO, b"a", ROOT_INO, b"b", 1 << 10)
        await tree.names.rename(ROOT_INO, b"a", ROOT_INO, b"b", pyfuse3.RENAME_EXCHANGE)
        assert tree.names.lookup(ROOT_INO, b"a").st_ino == b
        assert tree.names.lookup(ROOT_INO, b"b").st_ino == a
        assert sorted(tree.renamed) == [a, b]
        assert tree.names.name_of(a) == (ROOT_INO, b"b")


async def test_names_too_long_or_missing_are_told_apart(tmp_path, replies, autojump_clock):
    async with opened_tree(tmp_path, replies) as tree:
        await tree.make(b"n" * 255)
        assert tree.names.lookup(ROOT_INO, b"n" * 255)
        with refused(errno.ENAMETOOLONG):
            tree.names.lookup(ROOT_INO, b"n" * 256)
        with refused(errno.ENOENT):
            tree.names.lookup(ROOT_INO, b"")
        with refused(errno.ENOENT):
            await tree.make(b"")
        with refused(errno.ENAMETOOLONG):
            await tree.names.make(ROOT_INO, b"l", stat.S_IFLNK, CTX, target=b"t" * 4096)


async def test_what_is_made_in_a_folder_with_the_set_group_bit_has_its_group(
    tmp_path, replies, autojump_clock
):
    shared = cast(pyfuse3.RequestContext, SimpleNamespace(uid=1, gid=77, pid=3, umask=0))
    async with opened_tree(tmp_path, replies) as tree:
        folder = await tree.names.make(ROOT_INO, b"shared", FOLDER | stat.S_ISGID, shared)
        file = await tree.names.make(folder.st_ino, b"file", FILE, CTX)
        below = await tree.names.make(folder.st_ino, b"below", FOLDER, CTX)
        assert (file.st_gid, file.st_mode) == (77, FILE)
        assert (below.st_gid, below.st_mode) == (77, FOLDER | stat.S_ISGID)


# Listings


async def test_a_listing_in_pieces_has_every_entry_once(tmp_path, replies, autojump_clock):
    async with opened_tree(tmp_path, replies) as tree:
        expected = [b"%02d" % number for number in range(20)]
        for name in expected:
            await tree.make(name)
        handle = tree.directories.open(ROOT_INO)
        for _ in range(2):
            assert tree.list_all(handle) == [b".", b"..", *expected]


@pytest.mark.parametrize("seed", range(5))
async def test_entries_that_stay_are_listed_once_whatever_comes_and_goes(
    tmp_path, replies, autojump_clock, seed
):
    chance = random.Random(seed)
    async with opened_tree(tmp_path, replies) as tree:
        staying = {b"%03d" % number for number in range(0, 100, 3)}
        passing: set[bytes] = set()
        for name in staying:
            await tree.make(name)
        handle = tree.directories.open(ROOT_INO)
        listed: list[bytes] = []
        position = 0
        while True:
            names, position = tree.list_some(handle, position, chance.randrange(1, 6))
            if not names:
                break
            listed += names
            for name in {b"%03d" % chance.randrange(100) for _ in range(6)} - staying:
                if name in passing:
                    await tree.remove(name)
                    passing.remove(name)
                else:
                    await tree.make(name)
                    passing.add(name)
        assert len(listed) == len(set(listed))
        assert staying < set(listed)
        assert listed[2:] == sorted(listed[2:])


async def test_a_reader_that_goes_back_may_return_to_where_it_was(
    tmp_path, replies, autojump_clock
):
    async with opened_tree(tmp_path, replies) as tree:
        expected = [b".", b"..", *(b"%02d" % number for number in range(20))]
        for name in expected[2:]:
            await tree.make(name)
        handle = tree.directories.open(ROOT_INO)
        assert tree.list_all(handle) == expected
        for position in (15, 0, 1, 2, 3, 10, 21, 22, 7):
            assert tree.list_some(handle, position)[0] == expected[position : position + 3]
        assert tree.list_all(handle, 15) == expected[15:]


async def test_a_listing_from_the_start_again_shows_what_has_changed(
    tmp_path, replies, autojump_clock
):
    async with opened_tree(tmp_path, replies) as tree:
        for name in (b"b", b"c", b"d", b"e"):
            await tree.make(name)
        handle = tree.directories.open(ROOT_INO)
        assert tree.list_all(handle) == [b".", b"..", b"b", b"c", b"d", b"e"]
        await tree.remove(b"b")
        await tree.remove(b"e")
        await tree.make(b"a")
        assert tree.list_all(handle) == [b".", b"..", b"a", b"c", b"d"]


async def test_a_directory_that_is_removed_while_listed_goes_when_it_is_forgotten(
    tmp_path, replies, autojump_clock
):
    async with opened_tree(tmp_path, replies) as tree:
        folder = await tree.make(b"folder", FOLDER)
        handles = [tree.directories.open(folder), tree.directories.open(folder)]
        await tree.remove(b"folder", directory=True)
        assert tree.list_all(handles[0]) == [b".", b".."]
        with refused(errno.ENOENT):
            await tree.make(b"file", parent_ino=folder)
        await tree.directories.close(handles[0])
        assert tree.inode(folder) is not None
        await tree.directories.close(handles[1])
        assert tree.inode(folder) is not None
        await tree.inodes.forgotten(folder)
        assert tree.inode(folder) is None
        await tree.directories.close(handles[1])


async def test_a_damaged_record_costs_its_own_file_and_no_listing(
    tmp_path, replies, autojump_clock, caplog
):
    with Store.create(tmp_path / "art.lfs") as store:
        async with open_live_store(store, writable=True) as live:
            tree = Tree(live, replies)
            inos = [await tree.make(name) for name in (b"a", b"b", b"c")]
        whole = Damage(store).get("inodes", tables.ino_key(inos[1]))
        assert whole is not None
        Damage(store).put("inodes", tables.ino_key(inos[1]), b"no record")
        async with open_live_store(store, writable=True) as live:
            tree = Tree(live, replies)
            handle = tree.directories.open(ROOT_INO)
            assert tree.list_all(handle) == [b".", b"..", b"a", b"b", b"c"]
            with pytest.raises(StoreCorruptError):
                tree.names.lookup(ROOT_INO, b"b")
    assert f"inode {inos[1]} is listed without its attributes" in caplog.text


async def test_only_directories_are_listed(tmp_path, replies, autojump_clock):
    async with opened_tree(tmp_path, replies) as tree:
        file = await tree.make(b"file")
        with refused(errno.ENOTDIR):
            tree.directories.open(file)
        with refused(errno.ESTALE):
            tree.directories.open(999)


# Extended attributes


async def test_programs_set_attributes_of_the_kept_kinds_only(tmp_path, replies, autojump_clock):
    async with opened_tree(tmp_path, replies) as tree:
        file = await tree.make(b"file")
        xattrs = ExtendedAttributes(tree.live, on_vae_named=lambda: None)
        for name in (b"user.a", b"trusted.a", b"user." + b"n" * 250):
            with refused(errno.ENODATA):
                xattrs.get(file, name)
            await xattrs.set(file, name, b"value")
            assert xattrs.get(file, name) == b"value"
        assert len(xattrs.names(file)) == 3
        for name in (b"security.selinux", b"system.posix_acl_access"):
            with refused(errno.ENOTSUP):
                xattrs.get(file, name)
            with refused(errno.ENOTSUP):
                await xattrs.set(file, name, b"value")
        with refused(errno.EPERM):
            await xattrs.set(file, b"user.latentfs.kind", b"latent")
        with refused(errno.ERANGE):
            await xattrs.set(file, b"user." + b"n" * 251, b"")
        await xattrs.remove(file, b"user.a")
        with refused(errno.ENODATA):
            await xattrs.remove(file, b"user.a")


async def test_a_large_file_is_discarded_in_pieces(tmp_path, replies, monkeypatch):
    monkeypatch.setattr(open_inodes, "_CHUNKS_AT_ONCE", 3)
    async with opened_tree(tmp_path, replies) as tree:
        ino = await tree.make(b"large")
        await tree.live.may_change()
        with tree.live.change() as transaction:
            inode = transaction.require(ino)
            for index in (0, 1, 2, 5, 6, 9, 100, 101):
                inode = transaction.write_bytes(
                    ino, inode, offset=index * CHUNK_BYTES, data=b"data"
                )
        before = tree.live.live_statistics().changes_total
        await tree.remove(b"large")
        await tree.inodes.forgotten(ino)
        assert tree.inode(ino) is None
        assert tree.live.live_statistics().changes_total - before == 4
        with tree.live.read() as snapshot:
            assert list(snapshot.chunk_indices(ino)) == []
            assert list(snapshot.orphans()) == []
