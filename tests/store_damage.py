"""A store with a file of every kind, and changes to its rows past all that keeps them in order."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import msgspec
from store_contents import add_picture, picture_latent

from latentfs.store import tables
from latentfs.store.file_transaction import FileTransaction
from latentfs.store.records import Inode, LatentFileContent
from latentfs.store.snapshot import Decoders
from latentfs.store.store import Store
from latentfs.store.transaction import pack_blob

__all__ = ["LATENT_A", "LATENT_B", "NOISE", "Damage", "copied_rows", "fill"]

LATENT_A, LATENT_B = picture_latent(1), picture_latent(2, height=40, width=40)
NOISE = bytes(range(256)) * 1200
"""Bytes of the file /notes/noise: three chunks."""


def fill(store: Store) -> Store:
    """Add pictures that share a latent, metadata, and files of every other kind."""
    with store.write() as transaction:
        folder = transaction.make_directories("/folder", uid=0, gid=0)
        transaction.make_directories("/folder/below", uid=0, gid=0)
        add_picture(transaction, tables.ROOT_INO, b"a.png", LATENT_A, chunks=(b"prompt",))
        add_picture(transaction, folder, b"b.png", LATENT_B, metadata=b"{}")
        add_picture(transaction, folder, b"c.png", LATENT_A)
    with store.write_rows() as rows:
        files = FileTransaction(rows)
        notes = files.make(tables.ROOT_INO, b"notes", _new(stat.S_IFDIR, parent=tables.ROOT_INO))
        noise = files.make(notes, b"noise", _new(stat.S_IFREG))
        files.write_bytes(noise, files.require(noise), offset=0, data=NOISE)
        files.link(noise, notes, b"again")
        files.set_xattr(noise, b"user.note", b"x")
        files.make(notes, b"link", _new(stat.S_IFLNK, target=b"noise"))
        files.make(notes, b"fifo", _new(stat.S_IFIFO))
        files.make(notes, b"device", _new(stat.S_IFCHR, rdev=259))
        latent = files.make(notes, b"cat.latent", _new(stat.S_IFREG))
        payload = files.payload_of_digest(LATENT_A.digest())
        assert payload is not None
        files.truncate(latent, files.require(latent), size_bytes=4 + LATENT_A.nbytes)
        parts = LatentFileContent((payload,), files.add_blob(pack_blob(b"rest")), 2, False)
        files.make_latent(latent, files.require(latent), parts)
        files.finish()
    return store


def copied_rows(store: Store) -> dict[str, list[tuple[bytes, bytes]]]:
    """Return all rows of a store by table."""
    with store.stored_rows() as rows:
        return {
            table: [(bytes(key), bytes(value)) for key, value in rows.items(table)]
            for table in tables.TABLES
        }


def _new(kind: int, *, parent: int = 0, target: bytes = b"", rdev: int = 0) -> Inode:
    return Inode(
        kind | 0o644,
        0,
        0,
        2 if kind == stat.S_IFDIR else 1,
        len(target),
        0,
        0,
        parent_ino=parent,
        target=target,
        rdev=rdev,
    )


class Damage:
    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def path(self) -> Path:
        return self._store.path

    def put(self, table: str, key: bytes, value: bytes) -> None:
        with self._store.write_rows() as rows:
            rows.put(table, key, value)

    def delete(self, table: str, key: bytes) -> None:
        with self._store.write_rows() as rows:
            assert rows.delete(table, key)

    def get(self, table: str, key: bytes) -> bytes | None:
        with self._store.stored_rows() as rows:
            value = rows.get(table, key)
            return None if value is None else bytes(value)

    def keys(self, table: str) -> list[bytes]:
        with self._store.stored_rows() as rows:
            return [bytes(key) for key in rows.keys(table)]

    def ino(self, path: str) -> int:
        with self._store.read() as snapshot:
            found = snapshot.resolve(path)
        assert found is not None, path
        return found[0]

    def inode(self, path: str) -> Inode:
        return Decoders.inode.decode(self.get("inodes", tables.ino_key(self.ino(path))) or b"")

    def payload(self, path: str) -> int:
        content = self.inode(path).content
        assert content is not None
        return content.payload

    def change_inode(self, path: str, **fields: Any) -> None:
        inode = msgspec.structs.replace(self.inode(path), **fields)
        self.put("inodes", tables.ino_key(self.ino(path)), msgspec.msgpack.encode(inode))

    def change_content(self, path: str, **fields: Any) -> None:
        content = self.inode(path).content
        assert content is not None
        self.change_inode(path, content=msgspec.structs.replace(content, **fields))

    def change_totals(self, **changes: int) -> None:
        totals = Decoders.totals.decode(self.get("catalog", b"totals") or b"")
        self.put("catalog", b"totals", msgspec.msgpack.encode(totals.plus(**changes)))

    def put_counter(self, key: bytes, number: int) -> None:
        self.put("catalog", key, msgspec.msgpack.encode(number))
