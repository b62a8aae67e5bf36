"""Which inodes are open: one that was removed goes only when nobody has it open any more."""

from __future__ import annotations

import errno
from collections import Counter

from pyfuse3 import FUSEError

from latentfs.store.file_transaction import FileTransaction
from latentfs.store.live_store import LiveStore
from latentfs.store.records import Inode
from latentfs.store.snapshot import Snapshot

__all__ = ["OpenInodes", "require"]


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
        with self._store.read() as snapshot:
            inode = snapshot.inode(ino)
        if inode is None or inode.nlink > 0:
            return
        await self._store.may_change()
        with self._store.change() as transaction:
            self.discard_unless_open(transaction, ino)

    def discard_unless_open(self, transaction: FileTransaction, ino: int) -> None:
        """Remove the orphan *ino* now if nobody has it open, else leave that to the last close."""
        if ino not in self._handles and transaction.inode(ino) is not None:
            transaction.discard(ino)


def require(snapshot: Snapshot, ino: int) -> Inode:
    """Return the inode; ESTALE where another process has removed it, as the kernel still knew it.

    ESTALE makes the kernel look the name up again, which ENOENT would not.
    """
    inode = snapshot.inode(ino)
    if inode is None:
        raise FUSEError(errno.ESTALE)
    return inode
