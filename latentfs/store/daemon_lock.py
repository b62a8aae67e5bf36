"""One daemon per store: the lock that a mount holds for as long as it lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from latentfs.errors import StoreLockedError
from latentfs.store.owned_files import open_file

__all__ = ["DaemonLock"]

_LOOK_S = 0.2
_POLL_S = 0.005


class DaemonLock:
    """An exclusive lock on a store's ``daemon.lock``, freed by the kernel when the holder dies.

    The file says who holds it (process id and mount point), for messages only.
    """

    def __init__(self, store_path: Path) -> None:
        self._path = store_path / "daemon.lock"
        self._fd: int | None = None

    def acquire(self, *, mountpoint: Path) -> None:
        """Take the lock, as the daemon of *mountpoint*; waits for no other daemon.

        Raises:
            StoreLockedError: another daemon has the store mounted, or a command keeps it unmounted.
        """
        self._acquire(f"mounted on {mountpoint}")

    @contextlib.contextmanager
    def held_by(self, command: str) -> Iterator[None]:
        """Keep the store unmounted while *command* works on it.

        Raises:
            StoreLockedError: as :meth:`acquire`.
        """
        self._acquire(f"latentfs {command}")
        try:
            yield
        finally:
            self.release()

    def _acquire(self, use: str) -> None:
        fd = open_file(self._path)
        if not _taken_soon(fd):
            holder = os.read(fd, 4096).decode("utf-8", "replace").strip() or "another process"
            os.close(fd)
            raise StoreLockedError(self._refusal(holder))
        self._fd = fd
        holder = f"process {os.getpid()}, {use}\n"
        with contextlib.suppress(OSError):  # a full disk: only messages are poorer for it
            os.ftruncate(fd, 0)
            os.pwrite(fd, holder.encode("utf-8", "backslashreplace"), 0)

    def _refusal(self, holder: str) -> str:
        if ", latentfs " in holder:
            return f"the store {self._path.parent} is in use ({holder}); let that end first"
        return (
            f"the store {self._path.parent} is mounted already ({holder}); unmount it with "
            "latentfs umount first"
        )

    def held_elsewhere(self) -> bool:
        """Whether a daemon, in this or another process, holds the lock now."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def release(self) -> None:
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None


def _taken_soon(fd: int) -> bool:
    """Take the lock; try for longer than others hold it who only look whether it is taken."""
    end_s = time.monotonic() + _LOOK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end_s:
                return False
            time.sleep(_POLL_S)
        else:
            return True
