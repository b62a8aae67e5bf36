"""Who may change a store: one process at a time, for as long as it holds changes of its own."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from latentfs.store.owned_files import open_file

__all__ = ["WriterLock"]

_NAME = "writer.lock"


class WriterLock:
    """An exclusive lock on a store's ``writer.lock``, freed by the kernel when the holder dies.

    LMDB's own lock lasts for a transaction.  A mount keeps changes in memory before they become
    one, and nobody else may give away the same inode numbers meanwhile.
    """

    def __init__(self, store_path: Path) -> None:
        self._path = store_path / _NAME
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        return self._fd is not None

    def try_acquire(self) -> bool:
        """Take the lock without waiting; return whether that was possible.

        Raises:
            OSError: the file can't be opened or made.
        """
        return self._acquire(fcntl.LOCK_EX | fcntl.LOCK_NB)

    def acquire(self) -> None:
        """Take the lock; waits for as long as another process has it."""
        self._acquire(fcntl.LOCK_EX)

    def _acquire(self, operation: int) -> bool:
        fd = open_file(self._path)
        try:
            fcntl.flock(fd, operation)
        except BlockingIOError:
            os.close(fd)
            return False
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return True

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
