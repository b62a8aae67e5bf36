"""Makes the kernel's mount: what libfuse is told of it, and what libfuse has no words for."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pyfuse3

from latentfs.errors import MountError
from latentfs.fs.mountpoint import (
    FILESYSTEM_TYPE,
    MountEntry,
    find_mount,
    may_allow_other,
    unmount_if_stale,
)
from latentfs.settings.kernel_options import NOSYMFOLLOW, chosen_options
from latentfs.settings.mount_settings import MountSettings

__all__ = ["mount"]

# Linux has the same numbers everywhere for calls that are as new as these; C libraries came later.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_NOSYMFOLLOW = 0x00200000
_MNT_DETACH = 2
_LIBC = ctypes.CDLL(None, use_errno=True)


class _FuseOption(str):
    """An option for pyfuse3, which takes only ASCII, with a path that may be of any bytes."""

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return os.fsencode(str.__str__(self))


class _MountAttributes(ctypes.Structure):
    """``struct mount_attr`` of mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount(
    operations: pyfuse3.Operations, mountpoint: Path, *, source: Path, settings: MountSettings
) -> MountEntry | None:
    """Mount *operations* in place of a dead daemon's mount, if one is there.

    The mount answers nobody until ``pyfuse3.main`` runs, so nobody follows a link before that.

    Returns:
        The mount as the kernel lists it; None if somebody has unmounted it already.

    Raises:
        MountError: it can't be mounted there, or not with its options.
    """
    chosen = chosen_options(settings.mount_options, may_allow_other=may_allow_other())
    # As late as this: until then programs get errors of a dead mount, and not an empty folder.
    unmount_if_stale(mountpoint)
    try:
        pyfuse3.init(operations, str(mountpoint), _fuse_options(chosen, source, settings))
    except RuntimeError as error:
        raise MountError(
            f"can't mount on {mountpoint} with options {','.join(sorted(chosen))}: "
            f"{error}; is /dev/fuse there and permitted, and user_allow_other set in "
            "/etc/fuse.conf where it is needed?"
        ) from error
    if NOSYMFOLLOW in chosen:
        try:
            _follow_no_symbolic_links(mountpoint)
        except OSError as error:
            left = find_mount(mountpoint)
            pyfuse3.close(unmount=left is not None and left.type == FILESYSTEM_TYPE)
            raise MountError(
                f"can't mount on {mountpoint} with the option {NOSYMFOLLOW}: {error.strerror}; "
                "it needs Linux 5.14 and a daemon that runs as root: leave it out, or mount as "
                "root and without setuid="
            ) from error
    return find_mount(mountpoint)


def _fuse_options(chosen: frozenset[str], source: Path, settings: MountSettings) -> set[str]:
    escaped = str(source).replace("\\", "\\\\").replace(",", "\\,")
    subtype = FILESYSTEM_TYPE.removeprefix("fuse.")
    options = {f"fsname={escaped}", f"subtype={subtype}", *chosen - {NOSYMFOLLOW}}
    if settings.read_only:
        options.add("ro")
    return {*map(_FuseOption, options)}


def _follow_no_symbolic_links(mountpoint: Path) -> None:
    """Have the kernel answer ELOOP to whoever would follow a link; readlink(2) goes on.

    A flag that is set on a mount does not reach its copies, which other mount namespaces, as of
    services and containers, have had from the moment it was there.  So it is set on a copy that is
    nowhere yet, which then takes the mount's place, there too.

    Raises:
        OSError: the kernel is too old, or does not permit it.
    """
    path = os.fsencode(mountpoint)
    copy = _call(_OPEN_TREE, _AT_FDCWD, path, ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC))
    try:
        wanted = _MountAttributes(attr_set=_MOUNT_ATTR_NOSYMFOLLOW)
        size = ctypes.c_size_t(ctypes.sizeof(wanted))
        flags = ctypes.c_uint(_AT_EMPTY_PATH)
        _call(_MOUNT_SETATTR, copy, b"", flags, ctypes.byref(wanted), size)
        _checked(_LIBC.umount2(path, _MNT_DETACH))
        flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
        _call(_MOVE_MOUNT, copy, b"", _AT_FDCWD, path, flags)
    finally:
        os.close(copy)


def _call(number: int, *arguments: object) -> int:
    return _checked(_LIBC.syscall(ctypes.c_long(number), *arguments))


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
