"""Which inodes are in use: one that was removed goes only when nobody has it any more."""

from __future__ import annotations

import errno
from collections import Counter

import trio
from pyfuse3 import FUSEError

from latentfs.store.live_store import LiveStore
from latentfs.store.records import Inode
from latentfs.store.snapshot import Snapshot

__all__ = ["OpenInodes", "require"]

_CHUNKS_AT_ONCE = 1024
"""Removing as many, 128 MiB, takes some 15 ms."""


class OpenInodes:
    """Counts the handles of each inode, files and directories alike, and keeps the orphans.

    An inode without a link may still be somebody's: open, or known by other means such as being a
    working directory, of which only the kernel knows.  When it has forgotten it, and the last
    handle is closed, the orphan is discarded.
    """

    def __init__(self, store: LiveStore) -> None:
        self._store = store
        self._handles: Counter[int] = Counter()
        self._orphans: set[int] = set()
        self._forgotten: set[int] = set()

    def opened(self, ino: int) -> None:
        self._handles[ino] += 1

    def is_open(self, ino: int) -> bool:
        return ino in self._handles

    async def closed(self, ino: int) -> None:
        """Count a handle less."""
        self._handles[ino] -= 1
        if self._handles[ino] > 0:
            return
        del self._handles[ino]
        if ino in self._forgotten:
            await self._discard(ino)

    def orphaned(self, ino: int) -> None:
        """Keep an inode that has lost its last link, until nobody knows it any more."""
        self._orphans.add(ino)

    def keeps(self, ino: int) -> bool:
        """Whether it is an orphan that waits for its time to be discarded."""
        return ino in self._orphans

    async def forgotten(self, ino: int) -> None:
        """Take note that the kernel doesn't know an inode any more."""
        if ino not in self._orphans:
            return
        if ino in self._handles:
            self._forgotten.add(ino)
        else:
            await self._discard(ino)

    async def _discard(self, ino: int) -> None:
        """Remove an orphan.

        A large one goes in pieces, so that others have their turn in between.  If cancelled, what
        is left of it is removed by the next mount.
        """
        self._orphans.discard(ino)
        self._forgotten.discard(ino)
        first = 0
        while True:
            await self._store.may_change()
            with self._store.change() as transaction:
                inode = transaction.inode(ino)
                if inode is None or inode.nlink > 0:
                    return
                if inode.chunks <= _CHUNKS_AT_ONCE:
                    transaction.discard(ino)
                    return
                first = transaction.drop_some_chunks(ino, inode, first=first, count=_CHUNKS_AT_ONCE)
            await trio.lowlevel.checkpoint()


def require(snapshot: Snapshot, ino: int) -> Inode:
    """Return the inode; ESTALE where another process has removed it, as the kernel still knew it.

    ESTALE makes the kernel look the name up again, which ENOENT would not.
    """
    inode = snapshot.inode(ino)
    if inode is None:
        raise FUSEError(errno.ESTALE)
    return inode
