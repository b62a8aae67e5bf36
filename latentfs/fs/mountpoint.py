"""Mount points as the kernel sees them: which are live, which are stale, how to unmount one."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latentfs.errors import MountError

__all__ = [
    "FILESYSTEM_TYPE",
    "MountEntry",
    "check_mountpoint",
    "check_outside",
    "find_mount",
    "is_mounted_by_systemd_now",
    "may_allow_other",
    "mounts_of",
    "resolve_mountpoint",
    "unmount",
    "unmount_if_stale",
]

FILESYSTEM_TYPE = "fuse.latentfs"
_AUTOMOUNT_TYPE = "autofs"
_SYSTEMD_GROUP = 1
_FUSE_CONFIGURATION = Path("/etc/fuse.conf")
_UNMOUNT_WAIT_S = 10.0
_BUSY_WAIT_S = 0.5
# A dead daemon's mount answers at once; a machine that is short of everything starts Python late.
_ANSWER_WAIT_S = 5.0
_ASKS = """
import os, sys
try:
    os.statvfs(sys.argv[1])
except OSError as error:
    sys.exit(error.errno)
"""
_ESCAPED = (("040", " "), ("011", "\t"), ("012", "\n"), ("043", "#"), ("134", "\\"))


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of ``/proc/self/mountinfo``.

    Attributes:
        device: ``major:minor``; the minor number names the FUSE connection.
        mountpoint: where it is mounted.
        type: such as ``fuse.latentfs``.
        source: what is mounted; for latentfs the store's path.
    """

    device: str
    mountpoint: str
    type: str
    source: str


def _mounts() -> Iterator[MountEntry]:
    # Not splitlines: paths may have characters that it takes for line ends.
    lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").split("\n")
    for line in filter(None, lines):
        left, _, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        yield MountEntry(fields[2], _unescape(fields[4]), rest[0], _unescape(rest[1]))


def _unescape(text: str) -> str:
    """Undo mountinfo's octal escapes of blanks and backslashes."""
    for code, character in _ESCAPED:
        text = text.replace(f"\\{code}", character)
    return text


def resolve_mountpoint(path: Path) -> Path:
    """Return *path* as the kernel names it, links resolved.

    What is mounted there is not asked anything: its daemon may be dead, or be who calls this.
    """
    absolute = Path(os.path.abspath(path))
    in_its_folder = Path(os.path.realpath(absolute.parent)) / absolute.name
    if any(mount.mountpoint == str(in_its_folder) for mount in _mounts()):
        return in_its_folder
    return Path(os.path.realpath(absolute)) if os.path.islink(absolute) else in_its_folder


def may_allow_other() -> bool:
    """Whether this user may let others use a mount: root, and all where the machine permits it."""
    if os.geteuid() == 0:
        return True
    try:
        configuration = _FUSE_CONFIGURATION.read_text("utf-8", "replace")
    except OSError:
        return False
    return re.search(r"^\s*user_allow_other\b", configuration, re.MULTILINE) is not None


def find_mount(path: Path) -> MountEntry | None:
    """Return what is mounted on *path* itself, without touching a file system that may hang."""
    wanted = str(resolve_mountpoint(path))
    return next((m for m in reversed(list(_mounts())) if m.mountpoint == wanted), None)


def mounts_of(store: Path) -> list[MountEntry]:
    """Return the mounts of the store at *store*, whoever is behind them; nothing is touched."""
    source = os.path.realpath(store)
    return [m for m in _mounts() if m.type == FILESYSTEM_TYPE and m.source == source]


def is_mounted_by_systemd_now(path: Path) -> bool:
    """Whether systemd has this process mount *path*, as somebody looks into it the first time.

    systemd runs mount(8) in its own process group.  The kernel has every other process that looks
    at such a folder wait until the mount is there: a daemon of another group, for itself.  Of that
    group are the processes of many a container, too, but they have no autofs there.
    """
    mount = find_mount(path)
    is_automount = mount is not None and mount.type == _AUTOMOUNT_TYPE
    return is_automount and os.getpgrp() == _SYSTEMD_GROUP


def check_mountpoint(path: Path, *, store_path: Path) -> None:
    """Make sure that *path* is a directory to mount on, or that a killed daemon's mount is there.

    Raises:
        MountError: it is no directory, or something alive is mounted there, or the store is in it:
            the daemon would wait for itself.
    """
    check_outside(store_path, "store", mountpoint=path)
    mount = find_mount(path)
    if mount is not None and not is_mounted_by_systemd_now(path):
        if mount.type != FILESYSTEM_TYPE or not _is_stale(path):
            raise MountError(
                f"{mount.source} ({mount.type}) is mounted on {path} already; "
                "unmount it first or choose another mount point"
            )
        return
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist; make it with mkdir"
        raise MountError(f"the mount point {path} {what}")


def check_outside(path: Path, what: str, *, mountpoint: Path) -> None:
    """Make sure that *path*, which the daemon uses as its *what*, is not in its mount point.

    Raises:
        MountError: it is, and the daemon would wait for itself.
    """
    # As it is written first: finding out what links in it lead to asks a daemon that may hang.
    places = (os.path.abspath(path), os.path.realpath(path))
    folders = (os.path.abspath(mountpoint), resolve_mountpoint(mountpoint))
    if any(Path(place).is_relative_to(folder) for place in places for folder in folders):
        raise MountError(
            f"the {what} {path} is in the mount point {mountpoint} and would be hidden by the "
            "mount; choose another mount point"
        )


def unmount_if_stale(path: Path) -> bool:
    """Unmount *path* if a dead daemon of ours is behind it; return whether one was.

    Raises:
        MountError: it can't be unmounted.
    """
    mount = find_mount(path)
    if mount is None or mount.type != FILESYSTEM_TYPE or not _is_stale(path):
        return False
    unmount(path, lazy=True)
    return True


def _is_stale(path: Path) -> bool:
    """Whether the daemon behind a mount is gone; one that does not answer is not.

    Asked by statvfs, which the kernel never answers from its caches as it does stat.  In a process
    of its own: whoever asks a daemon that hangs may have to wait, and not even be killed.
    """
    asking = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _ASKS, os.fspath(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        return asking.wait(_ANSWER_WAIT_S) in (errno.ENOTCONN, errno.ECONNABORTED)
    except subprocess.TimeoutExpired:
        asking.kill()
        asking.returncode = -signal.SIGKILL  # it is let go: it may end only as the daemon does
        return False


def unmount(path: Path, *, lazy: bool = False) -> None:
    """Unmount *path*, which may be a link to a mount point, and wait until it is gone.

    Raises:
        MountError: nothing of ours is mounted there, or it is in use.
    """
    path = resolve_mountpoint(path)  # umount(2) follows no links, nor does fusermount3
    mount = find_mount(path)
    if mount is None:
        raise MountError(f"nothing is mounted on {path}")
    if mount.type != FILESYSTEM_TYPE:
        raise MountError(f"{mount.type} is mounted on {path}, not latentfs; use umount")
    # The daemon's question to itself, and whoever looks at every mount, use it for a moment.
    busy_until_s = time.monotonic() + _BUSY_WAIT_S
    while (reason := _fusermount(path, lazy=lazy)) is not None:
        if "busy" not in reason:
            raise MountError(f"can't unmount {path}: {reason}")
        if time.monotonic() > busy_until_s:
            raise MountError(
                f"can't unmount {path}: {reason}; close the programs that use it (fuser -m lists "
                "them)"
            )
        time.sleep(0.05)
    deadline_s = time.monotonic() + _UNMOUNT_WAIT_S
    while find_mount(path) == mount:
        if time.monotonic() > deadline_s:
            raise MountError(f"{path} is still mounted after {_UNMOUNT_WAIT_S:g} s; try again")
        time.sleep(0.02)


def _fusermount(path: Path, *, lazy: bool) -> str | None:
    """Unmount *path*; return why it could not be done, if so."""
    tool = shutil.which("fusermount3")
    if tool is None:
        raise MountError("fusermount3 is not installed; install the package fuse3")
    flags = ["-u", "-z"] if lazy else ["-u"]
    done = subprocess.run(
        [tool, *flags, "--", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return None
    return done.stderr.strip() or f"fusermount3 ended with {done.returncode}"
