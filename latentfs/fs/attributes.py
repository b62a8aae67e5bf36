"""What is told of files without rendering them: attributes, extended attributes, statfs."""

from __future__ import annotations

import stat
from collections.abc import Callable

import pyfuse3

from latentfs.latents.recipe import Recipe
from latentfs.store.live_store import Space
from latentfs.store.records import Inode, LatentContent, Totals
from latentfs.store.snapshot import Snapshot
from latentfs.store.tables import CHUNK_BYTES, NAME_BYTES_MAX

__all__ = ["XATTR_PREFIX", "damaged_entry", "entry", "filesystem", "xattr"]

XATTR_PREFIX = b"user.latentfs."

# Changes go through the kernel, and those made by other processes are announced to it, so
# attributes may be kept for long.
_TIMEOUT_S = 3600
_BLOCK_BYTES = 512
_PAGE_BYTES = 4096
_INODE_BYTES = 256
_IO_BYTES = 128 * 1024
# Python's files, and C's, read that much for the first byte that is wanted of them; so those who
# only look at what a picture is ask for no more than its head.
_PICTURE_IO_BYTES = 4096


def entry(ino: int, inode: Inode) -> pyfuse3.EntryAttributes:
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = ino
    attributes.st_mode = inode.mode
    attributes.st_nlink = inode.nlink
    attributes.st_uid = inode.uid
    attributes.st_gid = inode.gid
    attributes.st_size = inode.size_bytes
    attributes.st_rdev = inode.rdev
    attributes.st_blksize = _IO_BYTES if inode.content is None else _PICTURE_IO_BYTES
    attributes.st_blocks = _blocks(inode)
    attributes.st_atime_ns = inode.mtime_ns if inode.atime_ns is None else inode.atime_ns
    attributes.st_mtime_ns = inode.mtime_ns
    attributes.st_ctime_ns = inode.ctime_ns
    attributes.entry_timeout = _TIMEOUT_S
    attributes.attr_timeout = _TIMEOUT_S
    return attributes


def damaged_entry(ino: int) -> pyfuse3.EntryAttributes:
    """As a directory lists a file whose record can't be read.

    The kernel keeps none of it, so that whoever asks for the file itself is told.
    """
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = ino
    attributes.st_mode = stat.S_IFREG
    attributes.entry_timeout = 0
    attributes.attr_timeout = 0
    return attributes


def _blocks(inode: Inode) -> int:
    """As if stored plainly: fewer blocks would make tar and cp take a file for a sparse one.

    Holes take none.
    """
    plain = -(-inode.size_bytes // _BLOCK_BYTES)
    if inode.content is not None or not inode.is_regular:
        return plain
    return min(plain, inode.chunks * CHUNK_BYTES // _BLOCK_BYTES)


def filesystem(space: Space, totals: Totals) -> pyfuse3.StatvfsData:
    """The space there is, and the store's own number of files; there is no limit on that."""
    data = pyfuse3.StatvfsData()
    data.f_bsize = data.f_frsize = _PAGE_BYTES
    data.f_blocks = space.total_bytes // _PAGE_BYTES
    data.f_bfree = data.f_bavail = space.free_bytes // _PAGE_BYTES
    data.f_ffree = data.f_favail = space.free_bytes // _INODE_BYTES
    data.f_files = totals.files + totals.directories + data.f_ffree
    data.f_namemax = NAME_BYTES_MAX
    return data


def _recipe(snapshot: Snapshot, content: LatentContent) -> Recipe | None:
    return snapshot.recipe(content.recipe)


def _vae_name(snapshot: Snapshot, content: LatentContent) -> str | None:
    recipe = _recipe(snapshot, content)
    return None if recipe is None else snapshot.vae_name(recipe.vae, dtype=recipe.dtype)


def _dtype(snapshot: Snapshot, content: LatentContent) -> str | None:
    recipe = _recipe(snapshot, content)
    return None if recipe is None else recipe.dtype


def _latent_shape(snapshot: Snapshot, content: LatentContent) -> str | None:
    header = snapshot.payload_header(content.payload)
    return None if header is None else "x".join(str(side) for side in header.shape)


def _latent_dtype(snapshot: Snapshot, content: LatentContent) -> str | None:
    header = snapshot.payload_header(content.payload)
    return None if header is None else header.dtype


def _codec(snapshot: Snapshot, content: LatentContent) -> str | None:
    header = snapshot.payload_header(content.payload)
    return None if header is None else header.codec


def _stored_bytes(snapshot: Snapshot, content: LatentContent) -> str:
    return str(snapshot.payload_bytes(content.payload))


_XATTRS: dict[bytes, Callable[[Snapshot, LatentContent], str | None]] = {
    b"vae": _vae_name,
    b"recipe": lambda snapshot, content: content.recipe.hex(),
    b"dtype": _dtype,
    b"latent_shape": _latent_shape,
    b"latent_dtype": _latent_dtype,
    b"stored_bytes": _stored_bytes,
    b"codec": _codec,
    b"source": lambda snapshot, content: content.source.name,
}


def xattr(snapshot: Snapshot, inode: Inode, name: bytes) -> bytes | None:
    """Return the value of ``user.latentfs.*`` *name*, None where the file has no such."""
    key = name.removeprefix(XATTR_PREFIX)
    if not inode.is_regular or key == name:
        return None
    if key == b"kind":
        value: str | None = _kind(inode)
    elif key == b"stored_bytes" and inode.latent_file is not None:
        value = str(sum(snapshot.payload_bytes(payload) for payload in inode.payloads))
    else:
        value_of = _XATTRS.get(key)
        if inode.content is None or value_of is None:
            return None
        value = value_of(snapshot, inode.content)
    return None if value is None else value.encode("utf-8", "surrogateescape")


def _kind(inode: Inode) -> str:
    if inode.content is not None:
        return "latent"
    return "blob" if inode.latent_file is None else "latent-file"
