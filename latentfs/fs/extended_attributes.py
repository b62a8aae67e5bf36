"""Extended attributes: those that programs set, and those that tell of pictures."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import pyfuse3
from pyfuse3 import FUSEError

from latentfs.fs import attributes
from latentfs.fs.attributes import XATTR_PREFIX
from latentfs.fs.open_inodes import require
from latentfs.ingest.developer import VAE_XATTR
from latentfs.store.live_store import LiveStore
from latentfs.store.tables import NAME_BYTES_MAX

__all__ = ["ExtendedAttributes"]

_KEPT = (b"user.", b"trusted.")


class ExtendedAttributes:
    """The extended attributes of all files of a mount.

    Args:
        on_vae_named: called when a folder has got another VAE.
    """

    def __init__(self, store: LiveStore, *, on_vae_named: Callable[[], None]) -> None:
        self._store = store
        self._on_vae_named = on_vae_named

    def get(self, ino: int, name: bytes) -> bytes:
        _require_kept(name)
        with self._store.read() as snapshot:
            inode = require(snapshot, ino)
            value = attributes.xattr(snapshot, inode, name)
            if value is None:
                value = snapshot.xattr(ino, name)
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR)
        return value

    def names(self, ino: int) -> Sequence[bytes]:
        """Return those that may be copied.

        Those that tell of a file are not among them: ``cp -a`` and ``rsync -X`` would want to set
        them on the copy.
        """
        with self._store.read() as snapshot:
            require(snapshot, ino)
            names = list(snapshot.xattr_names(ino))
        return [name for name in names if name == VAE_XATTR or not name.startswith(XATTR_PREFIX)]

    async def set(self, ino: int, name: bytes, value: bytes) -> None:
        if name == VAE_XATTR:
            self._require_vae(ino, value)
        else:
            _require_settable(name)
        if len(name) > NAME_BYTES_MAX:
            raise FUSEError(errno.ERANGE)
        await self._store.may_change()
        with self._store.change(adds_bytes=len(name) + len(value)) as transaction:
            transaction.set_xattr(ino, name, value)
        if name == VAE_XATTR:
            self._on_vae_named()

    async def remove(self, ino: int, name: bytes) -> None:
        if name != VAE_XATTR:
            _require_settable(name)
        await self._store.may_change()
        with self._store.change() as transaction:
            transaction.remove_xattr(ino, name)

    def _require_vae(self, ino: int, name: bytes) -> None:
        """Only a folder has one to choose, and only of those in the store."""
        with self._store.read() as snapshot:
            if not require(snapshot, ino).is_directory:
                raise FUSEError(errno.EPERM)
            if name.decode("utf-8", "replace") not in dict(snapshot.vaes()):
                raise FUSEError(errno.EINVAL)


def _require_kept(name: bytes) -> None:
    if not name.startswith(_KEPT):
        # Not "no such attribute" but "not supported": ls then asks for labels and ACLs once a file
        # system instead of twice a file.
        raise FUSEError(errno.ENOTSUP)
    if name in _KEPT:
        raise FUSEError(errno.EINVAL)


def _require_settable(name: bytes) -> None:
    _require_kept(name)
    if name.startswith(XATTR_PREFIX):
        raise FUSEError(errno.EPERM)
