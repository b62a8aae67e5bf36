"""What happens when an imported picture's name is taken."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from latentfs.errors import CorruptPayloadError, PathError, StoreCorruptError
from latentfs.images.framing import Framing
from latentfs.latents.latent import Latent
from latentfs.latents.recipe import Recipe
from latentfs.store.records import LatentContent
from latentfs.store.snapshot import Snapshot, blob_id, check_name

__all__ = ["Conflict", "Identity", "OnConflict", "resolve"]

OnConflict = Literal["skip", "rename", "replace"]


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes two pictures the same: known before either is rendered or stored."""

    digest: bytes
    intent: Recipe
    framing: Framing
    chunks: tuple[bytes, ...]

    @classmethod
    def of(cls, latent: Latent, recipe: Recipe, framing: Framing, chunks: list[bytes]) -> Identity:
        return cls(
            latent.digest(), recipe.intent, framing, tuple(blob_id(chunk) for chunk in chunks)
        )


@dataclass(frozen=True, slots=True)
class Conflict:
    """What to do, and under which name.

    ``same``: the picture is there already; ``refuse``: another is, and stays.
    """

    action: Literal["add", "same", "refuse", "replace"]
    name: bytes


def resolve(
    snapshot: Snapshot, folder_ino: int, name: bytes, identity: Identity, policy: OnConflict
) -> Conflict:
    """Decide how a picture of *identity* gets into a directory under *name*.

    Raises:
        PathError: a folder has that name, or no longer name can be made of it.
        StoreCorruptError: the picture of that name is damaged.
    """
    for candidate in _names(name):
        existing = snapshot.lookup(folder_ino, candidate)
        if existing is None:
            return Conflict("add", candidate)
        if _is_same_picture(snapshot, existing, identity):
            return Conflict("same", candidate)
        if policy == "skip":
            return Conflict("refuse", candidate)
        if policy == "replace":
            return Conflict("replace", candidate)
    raise AssertionError("names never run out")


def _names(name: bytes) -> itertools.chain[bytes]:
    """``cat.png``, then ``cat (1).png``, ``cat (2).png``, ..."""
    stem, dot, suffix = name.decode().rpartition(".")
    numbered = (check_name(f"{stem} ({n}){dot}{suffix}") for n in itertools.count(1))
    return itertools.chain([name], numbered)


def _is_same_picture(snapshot: Snapshot, ino: int, identity: Identity) -> bool:
    inode = snapshot.inode(ino)
    if inode is None or inode.is_directory:
        raise PathError("a folder has that name already; import to another folder")
    content = inode.content
    if content is None:
        return False
    try:
        header = snapshot.payload_header(content.payload)
    except CorruptPayloadError as error:
        raise StoreCorruptError(
            f"the picture of that name in the store is damaged ({error}); see latentfs fsck, and "
            "import to another folder"
        ) from error
    return (
        header is not None
        and header.digest == identity.digest
        and _intent(snapshot, content) == identity.intent
        and content.framing == identity.framing
        and content.chunks == identity.chunks
    )


def _intent(snapshot: Snapshot, content: LatentContent) -> Recipe | None:
    recipe = snapshot.recipe(content.recipe)
    return None if recipe is None else recipe.intent
