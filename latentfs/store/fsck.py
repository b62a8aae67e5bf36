"""Checking a store: one named check per invariant.

Each check is a function that yields the problems it finds; ``CHECKS`` is the list of them all.
They read one snapshot and change nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lmdb

from latentfs.errors import LatentfsError
from latentfs.latents import payload as payload_codec
from latentfs.store import tables
from latentfs.store.records import Totals
from latentfs.store.snapshot import Snapshot, blob_id
from latentfs.store.vae_files import verify

__all__ = ["CHECKS", "Problem", "check_store"]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, found by the check of that name."""

    check: str
    message: str


@dataclass(frozen=True, slots=True)
class _Context:
    store_path: Path
    snapshot: Snapshot
    progress: Callable[[], None]

    def paths(self) -> Iterator[tuple[str, int]]:
        """Yield (path, ino) of every entry reachable from the root, the root first."""
        yield "/", tables.ROOT_INO
        pending = [("", tables.ROOT_INO)]
        seen = {tables.ROOT_INO}
        while pending:
            folder, folder_ino = pending.pop()
            for name, ino in self.snapshot.entries(folder_ino):
                path = f"{folder}/{name.decode('utf-8', 'backslashreplace')}"
                yield path, ino
                inode = self.snapshot.inode(ino)
                if inode is not None and inode.is_directory and ino not in seen:
                    seen.add(ino)
                    pending.append((path, ino))

    def paths_by_payload(self) -> dict[int, str]:
        by_payload: dict[int, str] = {}
        for path, ino in self.paths():
            inode = self.snapshot.inode(ino)
            if inode is not None and inode.content is not None:
                by_payload.setdefault(inode.content.payload, path)
        return by_payload


def check_dangling_entries(context: _Context) -> Iterator[str]:
    """Every directory entry leads to an inode."""
    for path, ino in context.paths():
        if context.snapshot.inode(ino) is None:
            yield f"{path} leads to inode {ino}, which is missing"


def check_orphan_inodes(context: _Context) -> Iterator[str]:
    """Every inode is reached from the root."""
    reached = {ino for _, ino in context.paths()}
    for ino, _ in context.snapshot.inodes():
        if ino not in reached:
            yield f"inode {ino} is in no directory"


def check_parents(context: _Context) -> Iterator[str]:
    """Every directory names the directory it is in."""
    parents = {tables.ROOT_INO: tables.ROOT_INO}
    for path, ino in context.paths():
        inode = context.snapshot.inode(ino)
        if inode is None or not inode.is_directory:
            continue
        if ino not in parents:
            parent = context.snapshot.resolve(path.rsplit("/", 1)[0] or "/")
            parents[ino] = parent[0] if parent else 0
        if inode.parent_ino != parents[ino]:
            yield f"{path} names inode {inode.parent_ino} as its parent, it is in {parents[ino]}"


def check_link_counts(context: _Context) -> Iterator[str]:
    """A file has as many links as entries; a directory two and one for each subdirectory."""
    links: Counter[int] = Counter()
    links[tables.ROOT_INO] += 1
    folders_below: Counter[int] = Counter()
    for path, ino in context.paths():
        inode = context.snapshot.inode(ino)
        if path == "/" or inode is None:
            continue
        links[ino] += 1
        if inode.is_directory:
            parent = context.snapshot.resolve(path.rsplit("/", 1)[0] or "/")
            folders_below[parent[0] if parent else 0] += 1
    for ino, inode in context.snapshot.inodes():
        expected = 2 + folders_below[ino] if inode.is_directory else links[ino]
        if links[ino] and inode.nlink != expected:
            yield f"inode {ino} has {inode.nlink} links recorded, {expected} found"


def check_contents(context: _Context) -> Iterator[str]:
    """Every file has a content whose payload, recipe, VAE and metadata are there."""
    snapshot = context.snapshot
    for path, ino in context.paths():
        inode = snapshot.inode(ino)
        if inode is None or inode.is_directory:
            continue
        content = inode.content
        if content is None:
            yield f"{path} has no content"
            continue
        if not snapshot.payload_bytes(content.payload):
            yield f"{path} needs payload {content.payload}, which is missing"
        recipe = snapshot.recipe(content.recipe)
        if recipe is None:
            yield f"{path} needs recipe {content.recipe.hex()}, which is missing"
        elif snapshot.vae_of_id(recipe.vae) is None:
            yield f"{path} needs VAE {recipe.vae}, which is missing"
        for blob in (*content.chunks, content.source.metadata):
            if blob is not None and not snapshot.has_blob(blob):
                yield f"{path} needs metadata blob {blob.hex()}, which is missing"


def check_sizes(context: _Context) -> Iterator[str]:
    """Files have a size, and pictures the dimensions that their latent decodes to."""
    snapshot = context.snapshot
    for path, ino in context.paths():
        inode = snapshot.inode(ino)
        content = None if inode is None else inode.content
        if inode is None or content is None:
            continue
        if inode.size_bytes <= 0:
            yield f"{path} has size {inode.size_bytes}"
        recipe = snapshot.recipe(content.recipe)
        found = None if recipe is None else snapshot.vae_of_id(recipe.vae)
        try:
            header = snapshot.payload_header(content.payload)
        except LatentfsError:
            continue  # check_payloads names it
        if found is None or header is None:
            continue
        _, height, width = header.shape
        factor = found[1].spatial_factor
        if (content.width, content.height) != (width * factor, height * factor):
            yield (
                f"{path} is recorded as {content.width}x{content.height}, its latent decodes to "
                f"{width * factor}x{height * factor}"
            )


def check_payloads(context: _Context) -> Iterator[str]:
    """Every payload decompresses to the latent that it was made of."""
    paths = context.paths_by_payload()
    for payload in context.snapshot.payload_ids():
        where = paths.get(payload, "no file")
        data = context.snapshot.payload(payload)
        try:
            payload_codec.decode(data or b"")
        except LatentfsError as error:
            yield f"payload {payload} of {where}: {error}"
        context.progress()


def check_payload_references(context: _Context) -> Iterator[str]:
    """Payloads are counted as often as files use them, and are all in the index."""
    used: Counter[int] = Counter()
    for _, inode in context.snapshot.inodes():
        if inode.content is not None:
            used[inode.content.payload] += 1
    indexed = {payload: count for _, payload, count in context.snapshot.payload_index()}
    for payload, count in indexed.items():
        if not used[payload]:
            yield f"payload {payload} is stored, but no file uses it"
        elif used[payload] != count:
            yield f"payload {payload} has {count} references recorded, {used[payload]} found"
    for payload in context.snapshot.payload_ids():
        if payload not in indexed:
            yield f"payload {payload} is not in the index"


def check_payload_index(context: _Context) -> Iterator[str]:
    """The index names each payload by the digest in its header."""
    for digest, payload, _ in context.snapshot.payload_index():
        try:
            header = context.snapshot.payload_header(payload)
        except LatentfsError:
            continue  # check_payloads names it
        if header is None:
            yield f"the index names payload {payload}, which is missing"
        elif header.digest != digest:
            yield f"payload {payload} is in the index under another digest than its own"


def check_metadata(context: _Context) -> Iterator[str]:
    """Metadata blobs hash to their names and are counted as often as files use them."""
    used: Counter[bytes] = Counter()
    for _, inode in context.snapshot.inodes():
        if inode.content is not None:
            used.update(inode.content.chunks)
            if inode.content.source.metadata is not None:
                used[inode.content.source.metadata] += 1
    recorded = dict(context.snapshot.blobs())
    for blob in used.keys() - recorded.keys():
        yield f"metadata blob {blob.hex()} has 0 references recorded, {used[blob]} found"
    for blob, references in recorded.items():
        try:
            data = context.snapshot.blob(blob)
        except LatentfsError as error:
            yield str(error)
            continue
        if data is None or blob_id(data) != blob:
            yield f"metadata blob {blob.hex()} is missing or does not hash to its name"
        if not used[blob]:
            yield f"metadata blob {blob.hex()} is stored, but no file uses it"
        elif used[blob] != references:
            yield (
                f"metadata blob {blob.hex()} has {references} references recorded, "
                f"{used[blob]} found"
            )


def check_vaes(context: _Context) -> Iterator[str]:
    """Every VAE's files have the hashes they were added with."""
    for name, vae in context.snapshot.vaes():
        try:
            verify(context.store_path / "vae" / vae.id, vae.files)
        except LatentfsError as error:
            yield f"VAE {name!r}: {error}"


def check_counters(context: _Context) -> Iterator[str]:
    """The next free ids are above all that were given, so that none is given again."""
    largest_ino = max((ino for ino, _ in context.snapshot.inodes()), default=0)
    largest_payload = max(context.snapshot.payload_ids(), default=0)
    next_ino, next_payload = context.snapshot.next_ids()
    if next_ino <= largest_ino:
        yield f"next_ino is {next_ino}, but there is an inode {largest_ino}"
    if next_payload <= largest_payload:
        yield f"next_payload is {next_payload}, but there is a payload {largest_payload}"


def check_totals(context: _Context) -> Iterator[str]:
    """The recorded totals are the sums over the tables."""
    found = Totals()
    for _, inode in context.snapshot.inodes():
        if inode.is_directory:
            found = found.plus(directories=1)
        else:
            found = found.plus(files=1, size_bytes=inode.size_bytes)
    for payload in context.snapshot.payload_ids():
        payload_bytes = context.snapshot.payload_bytes(payload)
        found = found.plus(payloads=1, payload_bytes=payload_bytes)
    recorded = context.snapshot.totals()
    if recorded != found:
        yield f"recorded {recorded}, found {found}"


CHECKS: dict[str, Callable[[_Context], Iterator[str]]] = {
    "dangling-entries": check_dangling_entries,
    "orphan-inodes": check_orphan_inodes,
    "parents": check_parents,
    "link-counts": check_link_counts,
    "contents": check_contents,
    "sizes": check_sizes,
    "payloads": check_payloads,
    "payload-references": check_payload_references,
    "payload-index": check_payload_index,
    "metadata": check_metadata,
    "vaes": check_vaes,
    "counters": check_counters,
    "totals": check_totals,
}


def check_store(
    store_path: Path, snapshot: Snapshot, *, progress: Callable[[], None] = lambda: None
) -> Iterator[Problem]:
    """Run all checks and yield what they find; *progress* is called after each payload.

    A check that can't go on, because a record can't be read, is a problem too.
    """
    context = _Context(store_path, snapshot, progress)
    for name, check in CHECKS.items():
        try:
            for message in check(context):
                yield Problem(name, message)
        except (LatentfsError, lmdb.Error) as error:
            yield Problem(name, str(error))
