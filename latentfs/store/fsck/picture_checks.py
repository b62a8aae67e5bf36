"""Checks of pictures: what their bytes are made of."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from math import prod

from latentfs.errors import LatentfsError
from latentfs.latents import payload as payload_codec
from latentfs.latents.latent import little_endian_type
from latentfs.store.fsck.facts import BLOB_ID_BYTES, Facts
from latentfs.store.records import Inode, LatentContent, LatentFileContent

__all__ = [
    "check_contents",
    "check_framing",
    "check_metadata",
    "check_missing_vaes",
    "check_payload_index",
    "check_payload_references",
    "check_payloads",
    "check_recipes",
    "check_renditions",
    "check_sizes",
]

# Signature, IHDR, IDAT and IEND without data; SOI, APP0, tables, EOI of a JPEG take more.
_PICTURE_BYTES_MIN = 57
_JPEG_SIDE_MAX = 65535


def check_contents(facts: Facts) -> Iterator[str]:
    """The payloads and metadata of every picture and every latent file are there."""
    for ino, inode in facts.inodes():
        for payload in inode.payloads:
            if payload not in facts.payload_bytes:
                yield f"{facts.path_of(ino)} needs payload {payload}, which is missing"
        for blob in inode.blobs:
            if not facts.snapshot.has_blob(blob):
                yield f"{facts.path_of(ino)} needs metadata blob {blob.hex()}, which is missing"


def check_recipes(facts: Facts) -> Iterator[str]:
    """Every picture's recipe is there, and recipes hash to the names that they are kept under."""
    for key, recipe in facts.recipes.items():
        if recipe.id != key:
            yield f"recipe {key.hex()} does not hash to its name"
    for ino, _, content in facts.pictures():
        if content.recipe not in facts.recipes:
            yield f"{facts.path_of(ino)} needs recipe {content.recipe.hex()}, which is missing"


def check_missing_vaes(facts: Facts) -> Iterator[str]:
    """Every picture's VAE is in the store."""
    for ino, _, content in facts.pictures():
        recipe = facts.recipes.get(content.recipe)
        if recipe is not None and recipe.vae not in facts.vaes_by_id:
            yield f"{facts.path_of(ino)} needs VAE {recipe.vae}, which is missing"


def check_framing(facts: Facts) -> Iterator[str]:
    """Every picture's metadata, and a picture of its format, fit into its size."""
    lengths: dict[bytes, int] = {}
    for ino, inode, content in facts.pictures():
        if content.framing.format == "jpeg" and max(content.width, content.height) > _JPEG_SIDE_MAX:
            yield f"{facts.path_of(ino)}, a JPEG, has a side of more than {_JPEG_SIDE_MAX} pixels"
        metadata_bytes = sum(_blob_bytes(facts, blob, lengths) for blob in content.chunks)
        if content.chunks and metadata_bytes + _PICTURE_BYTES_MIN > inode.size_bytes > 0:
            yield (
                f"{facts.path_of(ino)} has size {inode.size_bytes} and {metadata_bytes} bytes of "
                "metadata, which leaves no room for a picture"
            )


def _blob_bytes(facts: Facts, blob: bytes, known: dict[bytes, int]) -> int:
    """Return the length of a blob, 0 where it can't be read: check_metadata names it."""
    if blob not in known:
        try:
            known[blob] = len(facts.snapshot.blob(blob) or b"")
        except LatentfsError:
            known[blob] = 0
    return known[blob]


def check_sizes(facts: Facts) -> Iterator[str]:
    """Pictures have a size and the dimensions that their latent decodes to, links their target's.

    The rest of what has no bytes has size 0.
    """
    for ino, inode in facts.inodes():
        if inode.content is not None:
            if inode.size_bytes <= 0:
                yield f"{facts.path_of(ino)} has size {inode.size_bytes}"
            yield from _wrong_dimensions(facts, ino, inode.content)
        elif inode.latent_file is not None:
            yield from _wrong_length(facts, ino, inode, inode.latent_file)
        elif stat.S_ISLNK(inode.mode) and inode.size_bytes != len(inode.target):
            yield (
                f"{facts.path_of(ino)} has size {inode.size_bytes}, its target "
                f"{len(inode.target)} bytes"
            )
        elif not (inode.is_regular or inode.target) and inode.size_bytes:
            yield f"{facts.path_of(ino)} has size {inode.size_bytes} and is no file"


def _wrong_dimensions(facts: Facts, ino: int, content: LatentContent) -> Iterator[str]:
    recipe = facts.recipes.get(content.recipe)
    vae = None if recipe is None else facts.vaes_by_id.get(recipe.vae)
    try:
        header = facts.snapshot.payload_header(content.payload)
    except LatentfsError:
        return  # check_payloads names it
    if vae is None or header is None:
        return
    _, height, width = header.shape
    factor = vae.spatial_factor
    if (content.width, content.height) != (width * factor, height * factor):
        yield (
            f"{facts.path_of(ino)} is recorded as {content.width}x{content.height}, its latent "
            f"decodes to {width * factor}x{height * factor}"
        )


def _wrong_length(
    facts: Facts, ino: int, inode: Inode, content: LatentFileContent
) -> Iterator[str]:
    rest_bytes = _blob_bytes(facts, content.rest, {})
    found = rest_bytes
    try:
        headers = [facts.snapshot.payload_header(payload) for payload in content.payloads]
    except LatentfsError:
        return  # check_payloads names it
    if not rest_bytes or None in headers:
        return  # check_contents and check_metadata name it
    for header in headers:
        if header is not None:
            found += prod(header.shape) * little_endian_type(header.dtype).itemsize
    if found != inode.size_bytes or not 0 <= content.offset <= rest_bytes:
        yield f"{facts.path_of(ino)} has size {inode.size_bytes}, its parts come to {found} bytes"


def check_renditions(facts: Facts) -> Iterator[str]:
    """The bytes of every picture are known by their hash, and lead to such a picture."""
    known = set()
    for key, content in facts.renditions():
        known.add(key)
        if content is None:
            yield f"the rendition {key.hex()} leads to no picture with these bytes"
    for ino, _, content in facts.pictures():
        if content.rendition_sha256 not in known:
            yield f"{facts.path_of(ino)} is not known by its bytes"


def check_payloads(facts: Facts) -> Iterator[str]:
    """Every payload decompresses to the latent that it was made of."""
    users: dict[int, int] = {}
    for ino, inode in facts.inodes():
        for payload in inode.payloads:
            users.setdefault(payload, ino)
    for payload in facts.payload_bytes:
        try:
            payload_codec.decode(facts.snapshot.payload(payload) or b"")
        except LatentfsError as error:
            where = facts.path_of(users[payload]) if payload in users else "no file"
            yield f"payload {payload} of {where}: {error}"
        facts.progress()


def check_payload_references(facts: Facts) -> Iterator[str]:
    """Payloads are counted as often as files use them, and are all in the index."""
    used = facts.payload_uses
    indexed = set()
    for _, payload, count in facts.payload_index():
        indexed.add(payload)
        if not used[payload]:
            yield f"payload {payload} is stored, but no file uses it"
        elif used[payload] != count:
            yield f"payload {payload} has {count} references recorded, {used[payload]} found"
    for payload in facts.payload_bytes:
        if payload not in indexed:
            yield f"payload {payload} is not in the index"


def check_payload_index(facts: Facts) -> Iterator[str]:
    """The index names each payload by the digest in its header."""
    for digest, payload, _ in facts.payload_index():
        found = facts.digest_of(payload)
        if payload not in facts.payload_bytes:
            yield f"the index names payload {payload}, which is missing"
        elif found is not None and found != digest:
            yield f"payload {payload} is in the index under another digest than its own"


def check_metadata(facts: Facts) -> Iterator[str]:
    """Metadata blobs hash to their names and are counted as often as files use them."""
    used = facts.blob_uses
    recorded: dict[bytes, int] = {}
    stored: set[bytes] = set()
    for blob, is_count, value in facts.blobs():
        if is_count:
            recorded[blob] = int.from_bytes(value, "big") if len(value) == 8 else -1
        else:
            stored.add(blob)
    for blob in stored:
        yield from _damaged_blob(facts, blob)
    for blob in sorted(used.keys() | recorded.keys() | stored):
        if not used[blob]:
            yield f"metadata blob {blob.hex()} is stored, but no file uses it"
        elif recorded.get(blob, 0) != used[blob]:
            yield (
                f"metadata blob {blob.hex()} has {recorded.get(blob, 0)} references recorded, "
                f"{used[blob]} found"
            )


def _damaged_blob(facts: Facts, blob: bytes) -> Iterator[str]:
    assert len(blob) == BLOB_ID_BYTES
    try:
        facts.snapshot.blob(blob)
    except LatentfsError as error:
        yield str(error).removesuffix("; run latentfs fsck")
