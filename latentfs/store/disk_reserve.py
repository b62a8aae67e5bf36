"""Room on the disk that only a mount may use, so that removing works when others have filled it."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

__all__ = ["DiskReserve"]

log = logging.getLogger(__name__)

_NAME = "reserve"
_PIECES = 8


class DiskReserve:
    """A file of a store that holds some space while the store is mounted.

    LMDB writes a removal to new pages before it frees the old ones, so on a disk without any room
    nothing could be removed.  Then the reserve is given up piece by piece, as others may take what
    is free at once.  It is made whole when there is room for twice as much.

    Args:
        store_path: folder of the store.
        size_bytes: to hold.

    Attributes:
        held_bytes: held now.
    """

    def __init__(self, store_path: Path, *, size_bytes: int) -> None:
        self._path = store_path / _NAME
        self._size_bytes = size_bytes
        self.held_bytes = 0

    def take(self) -> None:
        """Make the reserve whole, if the disk has twice as much to give."""
        if self.held_bytes == self._size_bytes:
            return
        try:
            status = os.statvfs(self._path.parent)
            if status.f_bavail * status.f_frsize < 2 * self._size_bytes:
                return
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._size_bytes)
            finally:
                os.close(fd)
        except OSError as error:  # the store works without it
            log.info("no space is reserved in %s: %s", self._path.parent, error)
            self.remove()
        else:
            self.held_bytes = self._size_bytes

    def give_piece(self) -> bool:
        """Give an eighth of the space back to the disk; return whether there was any left."""
        if not self.held_bytes:
            return False
        self.held_bytes = max(0, self.held_bytes - self._size_bytes // _PIECES)
        with contextlib.suppress(OSError):  # somebody has removed it: then it takes no space either
            os.truncate(self._path, self.held_bytes)
        return True

    def remove(self) -> None:
        """Give all of it back."""
        self.held_bytes = 0
        with contextlib.suppress(OSError):
            self._path.unlink()
