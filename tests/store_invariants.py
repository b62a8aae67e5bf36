"""What must be true of every store, computed from its rows alone and not by the code under test."""

from __future__ import annotations

from collections import Counter

from latentfs.store import tables
from latentfs.store.records import Totals
from latentfs.store.snapshot import Snapshot

__all__ = ["assert_consistent"]


def assert_consistent(snapshot: Snapshot) -> None:
    """Links, parents, totals, orphans, chunks, attributes and references are all as counted."""
    inodes = dict(snapshot.inodes())
    links: Counter[int] = Counter({tables.ROOT_INO: 2})
    parents = {tables.ROOT_INO: tables.ROOT_INO}
    for ino, inode in inodes.items():
        for name, child in snapshot.entries(ino):
            assert inode.is_directory, (ino, name)
            assert inode.nlink, (ino, name, "an entry in a removed folder")
            assert name
            links[child] += 1
            if inodes[child].is_directory:
                assert child not in parents, (child, "two parents")
                parents[child] = ino
                links[child] += 1
                links[ino] += 1
    for ino, inode in inodes.items():
        assert inode.nlink == links[ino], (ino, inode.nlink, links[ino])
        if inode.is_directory:
            assert not inode.nlink or inode.parent_ino == parents[ino], ino
        else:
            assert inode.parent_ino == 0
    for ino in parents:
        _assert_below_root(ino, parents)
    assert sorted(snapshot.orphans()) == sorted(ino for ino in inodes if not links[ino])
    assert not inodes or max(inodes) < snapshot.next_ids()[0]
    _assert_totals(snapshot)
    _assert_held(snapshot)


def _assert_below_root(ino: int, parents: dict[int, int]) -> None:
    for _ in parents:
        if ino == tables.ROOT_INO:
            return
        ino = parents[ino]
    raise AssertionError(f"inode {ino} is in a circle of folders")


def _assert_totals(snapshot: Snapshot) -> None:
    inodes = [inode for _, inode in snapshot.inodes()]
    files = [inode for inode in inodes if not inode.is_directory]
    payloads = list(snapshot.payload_ids())
    assert snapshot.totals() == Totals(
        files=len(files),
        directories=len(inodes) - len(files),
        size_bytes=sum(inode.size_bytes for inode in files),
        payloads=len(payloads),
        payload_bytes=sum(map(snapshot.payload_bytes, payloads)),
    )


def _assert_held(snapshot: Snapshot) -> None:
    """Nothing is held for what is not there, and each is counted as often as it is used."""
    inodes = dict(snapshot.inodes())
    chunks: Counter[int] = Counter()
    for key in snapshot._rows.keys("chunks"):
        chunks[int.from_bytes(key[:8], "big")] += 1
        index = tables.chunk_index(key)
        size_bytes = inodes[int.from_bytes(key[:8], "big")].size_bytes
        assert index * tables.CHUNK_BYTES < size_bytes
    assert chunks == Counter({ino: i.chunks for ino, i in inodes.items() if i.chunks})
    for key in snapshot._rows.keys("xattrs"):
        assert int.from_bytes(key[:8], "big") in inodes
    payloads: Counter[int] = Counter()
    blobs: Counter[bytes] = Counter()
    for inode in inodes.values():
        if inode.content is not None:
            payloads[inode.content.payload] += 1
            blobs.update(inode.content.chunks)
            metadata = inode.content.source.metadata
            blobs.update([] if metadata is None else [metadata])
        if inode.latent_file is not None:
            payloads.update(inode.latent_file.payloads)
            blobs.update([inode.latent_file.rest])
    assert {payload: count for _, payload, count in snapshot.payload_index()} == payloads
    assert dict(snapshot.blobs()) == blobs
