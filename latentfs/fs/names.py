"""Names: looking them up, and making, linking, moving and removing what they stand for."""

from __future__ import annotations

import errno
import stat
import time
from collections import OrderedDict
from collections.abc import Callable

import pyfuse3
from pyfuse3 import EntryAttributes, FUSEError, RequestContext

from latentfs.fs import attributes
from latentfs.fs.open_inodes import OpenInodes, require
from latentfs.fs.prefetch import SequenceDetector
from latentfs.store.file_transaction import FileTransaction
from latentfs.store.live_store import LiveStore
from latentfs.store.records import Inode
from latentfs.store.tables import NAME_BYTES_MAX

__all__ = ["Names"]

_ENTRY_BYTES = 512
"""About what a new inode and its entry take on disk."""
_TARGET_BYTES_MAX = 4095
_NAMES_SEEN_MAX = 10_000


class Names:
    """The tree of names under a mount.  Permissions are the kernel's to check.

    Args:
        on_renamed: called with each inode that has got another name, and the one that lost its last
            name by that, if any.
    """

    def __init__(
        self,
        store: LiveStore,
        open_inodes: OpenInodes,
        detector: SequenceDetector,
        *,
        on_renamed: Callable[[int, int | None], None],
    ) -> None:
        self._store = store
        self._open_inodes = open_inodes
        self._detector = detector
        self._on_renamed = on_renamed
        self._seen: OrderedDict[int, tuple[int, bytes]] = OrderedDict()

    def name_of(self, ino: int) -> tuple[int, bytes] | None:
        """Return (parent ino, name) by which a file was last asked for, if it still has that."""
        seen = self._seen.get(ino)
        if seen is None:
            return None
        with self._store.read() as snapshot:
            return seen if snapshot.lookup(*seen) == ino else None

    def _saw(self, ino: int, parent_ino: int, name: bytes) -> None:
        self._seen[ino] = (parent_ino, name)
        self._seen.move_to_end(ino)
        if len(self._seen) > _NAMES_SEEN_MAX:
            self._seen.popitem(last=False)

    def lookup(self, parent_ino: int, name: bytes) -> EntryAttributes:
        if len(name) > NAME_BYTES_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        with self._store.read() as snapshot:
            ino = snapshot.lookup(parent_ino, name)
            if ino is None:
                raise FUSEError(errno.ENOENT)
            inode = require(snapshot, ino)
            if inode.content is not None:
                self._detector.saw_name(ino, parent_ino, name)
            if inode.is_regular:
                self._saw(ino, parent_ino, name)
            return attributes.entry(ino, inode)

    async def make(
        self,
        parent_ino: int,
        name: bytes,
        mode: int,
        ctx: RequestContext,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> EntryAttributes:
        """Make a file, folder, symbolic link or special file, as the type in *mode* says."""
        if len(target) > _TARGET_BYTES_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        await self._store.may_change()
        with self._store.change(adds_bytes=_ENTRY_BYTES) as transaction:
            inode = _new_inode(transaction, parent_ino, mode, ctx, rdev=rdev, target=target)
            ino = transaction.make(parent_ino, name, inode)
        if inode.is_regular:
            self._saw(ino, parent_ino, name)
        return attributes.entry(ino, inode)

    async def link(self, ino: int, parent_ino: int, name: bytes) -> EntryAttributes:
        await self._store.may_change()
        with self._store.change(adds_bytes=_ENTRY_BYTES) as transaction:
            inode = transaction.link(ino, parent_ino, name)
        return attributes.entry(ino, inode)

    async def remove(self, parent_ino: int, name: bytes, *, directory: bool) -> None:
        await self._store.may_change()
        with self._store.change() as transaction:
            ino, is_orphan = transaction.remove_entry(parent_ino, name, directory=directory)
        if is_orphan:
            self._open_inodes.orphaned(ino)

    async def rename(
        self, parent_ino: int, name: bytes, new_parent_ino: int, new_name: bytes, flags: int
    ) -> None:
        if flags & ~(pyfuse3.RENAME_EXCHANGE | pyfuse3.RENAME_NOREPLACE):
            raise FUSEError(errno.EINVAL)
        moved = [(new_parent_ino, new_name)]
        orphan = None
        await self._store.may_change()
        with self._store.change() as transaction:
            if flags & pyfuse3.RENAME_EXCHANGE:
                transaction.exchange(parent_ino, name, new_parent_ino, new_name)
                moved.append((parent_ino, name))
            else:
                orphan = transaction.rename(
                    parent_ino,
                    name,
                    new_parent_ino,
                    new_name,
                    may_replace=not flags & pyfuse3.RENAME_NOREPLACE,
                )
            inos = [transaction.lookup(*entry) for entry in moved]
        if orphan is not None:
            self._open_inodes.orphaned(orphan)
        for entry, ino in zip(moved, inos, strict=True):
            if ino is not None:
                self._saw(ino, *entry)
                self._on_renamed(ino, orphan)


def _new_inode(
    transaction: FileTransaction,
    parent_ino: int,
    mode: int,
    ctx: RequestContext,
    *,
    rdev: int,
    target: bytes,
) -> Inode:
    gid = ctx.gid
    parent = transaction.require(parent_ino)
    if parent.mode & stat.S_ISGID:
        gid = parent.gid
        if stat.S_ISDIR(mode):
            mode |= stat.S_ISGID
    now_ns = time.time_ns()
    is_directory = stat.S_ISDIR(mode)
    return Inode(
        mode=mode,
        uid=ctx.uid,
        gid=gid,
        nlink=2 if is_directory else 1,
        size_bytes=len(target),
        mtime_ns=now_ns,
        ctime_ns=now_ns,
        parent_ino=parent_ino if is_directory else 0,
        atime_ns=now_ns,
        rdev=rdev,
        target=target,
    )
