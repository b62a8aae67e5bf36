"""Who has a store open: many at a time, or one that replaces its database."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from latentfs.errors import StoreLockedError

__all__ = ["UseLock"]

_WAIT_S = 2.0
_POLL_S = 0.02


class UseLock:
    """A lock on a store's directory, held as long as the store is open, freed when a holder dies.

    A process that went on with a database that was replaced would write into a file that has no
    name any more.  So whoever replaces it must be alone.
    """

    def __init__(self, store_path: Path, *, alone: bool = False) -> None:
        """Take the lock, shared or *alone*, as to make a store there, without waiting.

        Raises:
            StoreLockedError: another process is replacing the database, or, with *alone*, uses
                the directory or has removed it meanwhile.
            OSError: the directory can't be opened.
        """
        self._path = store_path
        self._fd = os.open(store_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        taken = self._try(fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if not taken or (alone and not self._is_in_place()):
            os.close(self._fd)
            raise StoreLockedError(
                f"another process is making a store at {store_path}; let it end and try again"
                if alone
                else f"the store {store_path} is being compacted by latentfs gc; try again when "
                "that has ended"
            )

    def _is_in_place(self) -> bool:
        """Whether the directory is still what its path leads to."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def share(self) -> None:
        """Let others open the store, having taken the lock alone."""
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    def become_sole_user(self) -> None:
        """Wait a moment until no other has the store open; nobody can open it from then on.

        Raises:
            StoreLockedError: others keep it open.
        """
        end_s = time.monotonic() + _WAIT_S
        while not self._try(fcntl.LOCK_EX):
            if time.monotonic() > end_s:
                # A conversion that fails gives up what was held.
                fcntl.flock(self._fd, fcntl.LOCK_SH)
                raise StoreLockedError(
                    f"another process has the store {self._path} open, such as an import; let it "
                    "end and try again"
                )
            time.sleep(_POLL_S)

    def _try(self, operation: int) -> bool:
        try:
            fcntl.flock(self._fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        os.close(self._fd)
