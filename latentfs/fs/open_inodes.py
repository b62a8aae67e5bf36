"""Which inodes are open: one that was removed goes only when nobody has it open any more."""

from __future__ import annotations

import errno
from collections import Counter

import trio
from pyfuse3 import FUSEError

from latentfs.store.file_transaction import FileTransaction
from latentfs.store.live_store import LiveStore
from latentfs.store.records import Inode
from latentfs.store.snapshot import Snapshot

__all__ = ["OpenInodes", "require"]

_CHUNKS_AT_ONCE = 1024
"""Removing as many, 128 MiB, takes some 15 ms."""


class OpenInodes:
    """Counts the handles of each inode, files and directories alike."""

    def __init__(self, store: LiveStore) -> None:
        self._store = store
        self._handles: Counter[int] = Counter()

    def opened(self, ino: int) -> None:
        self._handles[ino] += 1

    def is_open(self, ino: int) -> bool:
        return ino in self._handles

    async def closed(self, ino: int) -> None:
        """Count a handle less; with the last one an orphan is discarded."""
        self._handles[ino] -= 1
        if self._handles[ino] > 0:
            return
        del self._handles[ino]
        await self.discard_orphan(ino)

    def discard_unless_open(self, transaction: FileTransaction, ino: int) -> None:
        """Remove the orphan *ino* in the change that made it one, unless it is open or large."""
        inode = transaction.inode(ino)
        if inode is not None and ino not in self._handles and inode.chunks <= _CHUNKS_AT_ONCE:
            transaction.discard(ino)

    async def discard_orphan(self, ino: int) -> None:
        """Remove *ino* if it is an orphan that nobody has open.

        A large one goes in pieces, so that others have their turn in between.  If cancelled, what
        is left of it is removed by the next mount.
        """
        first = 0
        while True:
            with self._store.read() as snapshot:
                inode = snapshot.inode(ino)
            if inode is None or inode.nlink > 0 or ino in self._handles:
                return
            await self._store.may_change()
            with self._store.change() as transaction:
                inode = transaction.inode(ino)
                if inode is not None and inode.nlink == 0 and ino not in self._handles:
                    if inode.chunks > _CHUNKS_AT_ONCE:
                        first = transaction.drop_some_chunks(
                            ino, inode, first=first, count=_CHUNKS_AT_ONCE
                        )
                    else:
                        transaction.discard(ino)
            await trio.lowlevel.checkpoint()


def require(snapshot: Snapshot, ino: int) -> Inode:
    """Return the inode; ESTALE where another process has removed it, as the kernel still knew it.

    ESTALE makes the kernel look the name up again, which ENOENT would not.
    """
    inode = snapshot.inode(ino)
    if inode is None:
        raise FUSEError(errno.ESTALE)
    return inode
