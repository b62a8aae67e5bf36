"""What the store knows of a file: what it is, what it is made of, how much that takes.

Nothing is rendered and no file's bytes are read, so it works on a store that is not mounted, and
costs a mount nothing.  What only the daemon knows is in :mod:`latentfs.fs.status`.
"""

from __future__ import annotations

import os
import stat
from typing import Any

import msgspec

from latentfs.latents.payload import PayloadHeader
from latentfs.store import tables
from latentfs.store.records import Inode, LatentContent
from latentfs.store.rows import Rows
from latentfs.store.snapshot import Snapshot

__all__ = ["find_ino", "path_of", "stored_facts"]

# A damaged store may have folders that are in each other.
_FOLDERS_DEEP_MAX = 10_000


def find_ino(snapshot: Snapshot, path: bytes) -> int | None:
    """Return the number that *path*, below the root of the store, leads to; None for nowhere.

    Links are not followed.  Unlike an import, a mount takes names that are no UTF-8.
    """
    ino = tables.ROOT_INO
    for name in path.split(b"/"):
        if name in (b"", b"."):
            continue
        found = snapshot.lookup(ino, name)
        if found is None:
            return None
        ino = found
    return ino


def path_of(snapshot: Snapshot, parent_ino: int, name: bytes) -> bytes | None:
    """Return the path of an entry below the root of the store, None where it is in no folder.

    Looks through the entries of each folder above the entry's own.
    """
    names = [name]
    ino = parent_ino
    for _ in range(_FOLDERS_DEEP_MAX):
        if ino == tables.ROOT_INO:
            return b"/" + b"/".join(reversed(names))
        folder = snapshot.inode(ino)
        if folder is None:
            return None
        above = snapshot.entries(folder.parent_ino)
        found = next((entry for entry, child_ino in above if child_ino == ino), None)
        if found is None:
            return None
        names.append(found)
        ino = folder.parent_ino
    return None


def stored_facts(snapshot: Snapshot, ino: int, inode: Inode) -> dict[str, Any]:
    """Return what the store knows of a file, for people and as JSON; parts that it lacks are None.

    Raises:
        StoreCorruptError, CorruptPayloadError: a record, or the header of a payload, can't be true.
    """
    facts: dict[str, Any] = {
        "ino": ino,
        "kind": _kind(inode),
        "size_bytes": inode.size_bytes,
        "links": inode.nlink,
    }
    if stat.S_ISLNK(inode.mode):
        return facts | {"target": os.fsdecode(inode.target)}
    if inode.content is not None:
        return facts | _picture(snapshot, inode.content)
    if inode.latent_file is not None:
        payloads = [_payload(snapshot, payload) for payload in inode.latent_file.payloads]
        metadata_bytes = _blob_bytes(snapshot.rows, inode.latent_file.rest)
        return facts | {"payloads": payloads, **_stored(payloads, metadata_bytes)}
    if inode.is_regular:
        return facts | {"stored_bytes": _chunk_bytes(snapshot.rows, ino)}
    return facts


def _kind(inode: Inode) -> str:
    if inode.is_regular:
        if inode.content is not None:
            return "latent picture"
        return "bytes kept" if inode.latent_file is None else "latent file"
    if inode.is_directory:
        return "folder"
    return "symbolic link" if stat.S_ISLNK(inode.mode) else "special file"


def _picture(snapshot: Snapshot, content: LatentContent) -> dict[str, Any]:
    payloads = [_payload(snapshot, content.payload)]
    metadata_bytes = sum(_blob_bytes(snapshot.rows, blob) for blob in content.blobs)
    return {
        "width": content.width,
        "height": content.height,
        "source": {
            "name": content.source.name,
            "kind": content.source.kind,
            "index": content.source.index,
        },
        "vae": _vae(snapshot, content),
        "recipe": _recipe(snapshot, content),
        "framing": msgspec.structs.asdict(content.framing),
        "rendition_sha256": content.rendition_sha256.hex(),
        "payloads": payloads,
        **_stored(payloads, metadata_bytes),
    }


def _vae(snapshot: Snapshot, content: LatentContent) -> dict[str, Any] | None:
    recipe = snapshot.recipe(content.recipe)
    if recipe is None:
        return None
    name = snapshot.vae_name(recipe.vae, dtype=recipe.dtype)
    return {"name": name, "class": recipe.vae_class, "id": recipe.vae}


def _recipe(snapshot: Snapshot, content: LatentContent) -> dict[str, Any] | None:
    recipe = snapshot.recipe(content.recipe)
    if recipe is None:
        return None
    fields = msgspec.to_builtins(recipe)
    del fields["vae"], fields["vae_class"]
    return {"id": content.recipe.hex(), **fields}


def _payload(snapshot: Snapshot, payload: int) -> dict[str, Any] | None:
    header = snapshot.payload_header(payload)
    if header is None:
        return None
    return {
        "digest": header.digest.hex(),
        "shape": list(header.shape),
        "dtype": header.dtype,
        "codec": header.codec,
        "bytes": snapshot.payload_bytes(payload),
        "files": _files_of(snapshot.rows, header),
    }


def _files_of(rows: Rows, header: PayloadHeader) -> int | None:
    """Return how many files need a payload; one that holds it twice counts twice."""
    value = rows.get("payload_index", header.digest)
    return None if value is None else int.from_bytes(value[8:], "big")


def _blob_bytes(rows: Rows, blob: bytes) -> int:
    value = rows.get("metadata", tables.blob_key(blob))
    return 0 if value is None else len(value)


def _stored(payloads: list[dict[str, Any] | None], metadata_bytes: int) -> dict[str, Any]:
    payload_bytes = sum(payload["bytes"] for payload in payloads if payload is not None)
    return {"metadata_bytes": metadata_bytes, "stored_bytes": payload_bytes + metadata_bytes}


def _chunk_bytes(rows: Rows, ino: int) -> int:
    """Return what the chunks of a file take, compressed."""
    prefix = tables.ino_key(ino)
    stored_bytes = 0
    for key, value in rows.items("chunks", tables.chunk_key(ino, 0)):
        if key[:8] != prefix:
            break
        stored_bytes += len(value)
    return stored_bytes
