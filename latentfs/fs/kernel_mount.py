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

_AT_FDCWD = -100
_MOUNT_ATTR_NOSYMFOLLOW = 0x00200000


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

    The mount answers nobody until ``pyfuse3.main`` runs, so nobody meets it without its flags.

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
            pyfuse3.close(unmount=True)
            raise MountError(
                f"can't mount on {mountpoint} with the option {NOSYMFOLLOW}: {error.strerror}; "
                "it needs Linux 5.14, glibc 2.36 and a daemon that runs as root: leave it out, or "
                "mount as root and without setuid="
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

    Raises:
        OSError: the kernel is too old, or does not permit it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    wanted = _MountAttributes(attr_set=_MOUNT_ATTR_NOSYMFOLLOW)
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    path = os.fsencode(mountpoint)
    try:
        failed = libc.mount_setattr(_AT_FDCWD, path, ctypes.c_uint(0), ctypes.byref(wanted), size)
    except AttributeError:
        raise OSError(None, "the C library has no mount_setattr") from None
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(mountpoint))
