"""One daemon a store, for as long as it lives and no longer."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from latentfs.errors import StoreLockedError
from latentfs.store import daemon_lock
from latentfs.store.daemon_lock import DaemonLock

HOLD = """
import sys
from pathlib import Path
from latentfs.store.daemon_lock import DaemonLock
DaemonLock(Path(sys.argv[1])).acquire(mountpoint=Path("/mnt/art"))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_another_process_is_named(tmp_path, holder):
    lock = DaemonLock(tmp_path)
    assert lock.held_elsewhere()
    with pytest.raises(StoreLockedError, match=f"process {holder.pid}, mounted on /mnt/art"):
        lock.acquire(mountpoint=Path("/mnt/other"))
    assert lock.held_elsewhere()


def test_a_killed_holder_holds_nothing(tmp_path, holder):
    holder.kill()
    holder.wait()
    lock = DaemonLock(tmp_path)
    assert not lock.held_elsewhere()
    lock.acquire(mountpoint=Path("/mnt/other"))
    assert (tmp_path / "daemon.lock").read_text() == (
        f"process {os.getpid()}, mounted on /mnt/other\n"
    )
    lock.release()


def test_release(tmp_path):
    first, second = DaemonLock(tmp_path), DaemonLock(tmp_path)
    assert not first.held_elsewhere()
    first.acquire(mountpoint=Path("/a"))
    assert second.held_elsewhere()
    with pytest.raises(StoreLockedError, match="mounted on /a"):
        second.acquire(mountpoint=Path("/b"))
    first.release()
    first.release()
    assert not second.held_elsewhere()
    second.acquire(mountpoint=Path("/b"))
    second.release()


def test_a_command_that_holds_it_is_told_from_a_daemon(tmp_path, holder):
    daemons, commands = DaemonLock(tmp_path), DaemonLock(tmp_path / "other")
    assert daemons.is_mounted()
    assert daemons.used_by() is None
    (tmp_path / "other").mkdir()
    assert commands.used_by() is None
    with DaemonLock(tmp_path / "other").held_by("fsck --repair"):
        assert commands.used_by() == f"latentfs fsck --repair (process {os.getpid()})"
        assert commands.held_elsewhere()
        assert not commands.is_mounted()
    assert commands.used_by() is None


def test_a_mount_point_is_not_taken_for_a_command(tmp_path):
    lock = DaemonLock(tmp_path)
    lock.acquire(mountpoint=Path("/a, latentfs b"))
    assert DaemonLock(tmp_path).is_mounted()
    lock.release()


def test_a_look_at_the_lock_keeps_no_daemon_from_taking_it(tmp_path):
    """As of latentfs status, which holds it for a moment."""
    lock = DaemonLock(tmp_path)
    lock.acquire(mountpoint=Path("/a"))
    lock.release()
    fd = os.open(tmp_path / "daemon.lock", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    look = threading.Timer(0.05, os.close, [fd])
    look.start()
    lock.acquire(mountpoint=Path("/b"))
    look.join()
    lock.release()


def test_who_holds_it_is_told_though_it_took_the_lock_only_just_now(tmp_path):
    """It may not have said who it is yet."""
    first, second = DaemonLock(tmp_path), DaemonLock(tmp_path)
    first.acquire(mountpoint=Path("/a"))
    text = (tmp_path / "daemon.lock").read_text()
    (tmp_path / "daemon.lock").write_text("")
    said = threading.Timer(0.05, (tmp_path / "daemon.lock").write_text, [text])
    said.start()
    with pytest.raises(StoreLockedError, match="mounted on /a"):
        second.acquire(mountpoint=Path("/b"))
    said.join()
    first.release()


def test_a_full_disk_does_not_keep_the_lock_from_being_taken(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    lock = DaemonLock(tmp_path)
    lock.acquire(mountpoint=Path("/a"))
    assert DaemonLock(tmp_path).held_elsewhere()
    lock.release()


@pytest.mark.parametrize("there", [False, True])
def test_a_medium_that_can_not_be_written_needs_no_file(tmp_path, monkeypatch, there):
    """Where there is one, it excludes others that see the store as one that can be written."""

    def refuse(path):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(daemon_lock, "open_file", refuse)
    if there:
        (tmp_path / "daemon.lock").write_text("left")
    first, second = DaemonLock(tmp_path), DaemonLock(tmp_path)
    first.acquire(mountpoint=Path("/a"))
    assert second.held_elsewhere() == there
    if there:
        with pytest.raises(StoreLockedError, match="mounted already"):
            second.acquire(mountpoint=Path("/b"))
    first.release()
    assert not second.held_elsewhere()
    assert [path.read_text() for path in tmp_path.iterdir()] == (["left"] if there else [])


def test_where_it_can_not_be_made_otherwise_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        DaemonLock(tmp_path / "missing").acquire(mountpoint=Path("/a"))
