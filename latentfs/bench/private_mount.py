"""A mount of one's own to measure on: in a temporary folder, with a daemon that ends with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from latentfs.errors import MountError, StoreLockedError
from latentfs.fs.control import ask_daemon
from latentfs.fs.mountpoint import find_mount, unmount
from latentfs.store.daemon_lock import DaemonLock

__all__ = ["READ_TIMEOUT_S", "PrivateMount", "check_unmounted", "private_mount"]

READ_TIMEOUT_S = 600.0
"""Deadline of one read: many readers wait for one another here."""

_DEVICE = Path("/dev/fuse")
_READY_TIMEOUT_S = 600.0
_END_TIMEOUT_S = 30.0
_POLL_S = 0.02
_LOG_BYTES_MAX = 1 << 20


def check_unmounted(store_path: Path) -> None:
    """Raise now what :func:`private_mount` would raise at once.

    Raises:
        StoreLockedError: it is mounted already.
        MountError: nothing can be mounted here.
    """
    if not _DEVICE.exists():
        raise MountError(f"there is no {_DEVICE} here, which a mount needs")
    if DaemonLock(store_path).held_elsewhere():
        raise StoreLockedError(
            f"the store {store_path} is mounted already, and is measured on a mount of its own; "
            "unmount it with latentfs umount first"
        )


class PrivateMount:
    """A live mount.  Made by :func:`private_mount`."""

    def __init__(
        self, store_path: Path, path: Path, process: subprocess.Popen[bytes], log: IO[bytes]
    ) -> None:
        self.path = path
        self._store_path = store_path
        self._process = process
        self._log = log

    def renders_total(self) -> int:
        return int(self._ask("status")["renders_total"])

    def last_renders(self, count: int) -> list[dict[str, Any]]:
        """Return the last *count* renders that the daemon remembers, oldest first."""
        renders: list[dict[str, Any]] = self._ask("renders")["renders"]
        return renders[-count:] if count else []

    def wait_until_ready(self) -> None:
        """Wait until it is mounted and its renderer is warm.

        Raises:
            MountError: the daemon ended, with the reason it gave, or took too long.
        """
        deadline_s = time.monotonic() + _READY_TIMEOUT_S
        while not _is_warm(ask_daemon(self._store_path, "status") or {}):
            if self._process.poll() is not None:
                raise MountError(self.last_words() or "the daemon ended as it was mounting")
            if time.monotonic() > deadline_s:
                raise MountError(
                    f"no renderer became ready within {_READY_TIMEOUT_S:g} s: {self.last_words()}"
                )
            time.sleep(_POLL_S)

    def last_words(self) -> str:
        """Return the last line that the daemon logged, empty if none."""
        log = os.pread(self._log.fileno(), _LOG_BYTES_MAX, 0).decode("utf-8", "replace")
        lines = log.strip().splitlines()
        return lines[-1].removeprefix("latentfs: ") if lines else ""

    def end(self) -> None:
        """Unmount and end the daemon."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._process.kill()
            self._process.wait()
            if find_mount(self.path) is not None:
                unmount(self.path, lazy=True)

    def _ask(self, command: str) -> dict[str, Any]:
        answer = ask_daemon(self._store_path, command)
        if answer is None or "error" in answer:
            reason = "it does not answer" if answer is None else answer["error"]
            raise MountError(f"the daemon can't tell its {command}: {reason} {self.last_words()}")
        return answer


def _is_warm(status: dict[str, Any]) -> bool:
    return bool(status.get("renderer_ready")) and not status["renders_warming_up"]


@contextlib.contextmanager
def private_mount(store_path: Path, *, cache_bytes: int, device: str) -> Iterator[PrivateMount]:
    """The store mounted in a temporary folder, ready to render on *device*, nothing ahead of reads.

    Unmounted and its daemon ended when the block is left, however that is.

    Raises:
        StoreLockedError: it is mounted already.
        MountError: it can't be mounted.
    """
    check_unmounted(store_path)
    with tempfile.TemporaryFile() as log:
        path = Path(tempfile.mkdtemp(prefix="latentfs-bench-"))
        try:
            options = ["--cache", str(cache_bytes), "--device", device]
            mount = PrivateMount(store_path, path, _start(store_path, path, options, log), log)
            try:
                mount.wait_until_ready()
                yield mount
            finally:
                mount.end()
        finally:
            path.rmdir()


def _start(
    store_path: Path, path: Path, options: list[str], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    mount = [sys.executable, "-m", "latentfs", "mount", str(store_path), str(path)]
    # Nothing of what the user's own mounts are set to, least of all an address that one has.
    always = ["--config", os.devnull, "--metrics", "none"]
    always += ["--render-timeout", str(READ_TIMEOUT_S), "--prefetch", "0", "-o", "noallow_other"]
    return subprocess.Popen(
        [*mount, *always, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=log,
        start_new_session=True,  # Ctrl-C is for the command, which ends it
    )
