"""Which pictures of a store are measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from latentfs.errors import PathError, StoreCorruptError
from latentfs.latents.recipe import Recipe
from latentfs.store.records import Inode
from latentfs.store.snapshot import Snapshot, check_name
from latentfs.store.store import Store

__all__ = ["Picture", "Sample", "choose_sample"]

_HIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in the store: its path there, without the leading ``/``."""

    path: str
    ino: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Pictures of one recipe and latent shape, each of another latent.

    Attributes:
        recipe: that all have.
        latent_shape: (C, h, w) that all have.
        found: how many different pictures of that recipe and shape there are below the path.
        pictures: those to read, spread evenly over those found.
        hit: of all pictures of that recipe, of any shape, the one closest to 1 MiB.
    """

    recipe: Recipe
    latent_shape: tuple[int, int, int]
    found: int
    pictures: list[Picture]
    hit: Picture


def choose_sample(store: Store, path: str, *, files: int) -> Sample:
    """Choose up to *files* pictures below *path*, of the most common recipe and latent shape.

    Raises:
        PathError: the store has no such path, or no picture below it.
        StoreCorruptError: a record is missing.
    """
    groups: dict[tuple[bytes, tuple[int, int, int]], dict[int, Picture]] = defaultdict(dict)
    with store.read() as snapshot:
        found = snapshot.resolve(path)
        if found is None:
            raise PathError(f"the store {store.path} has no {path}")
        for picture_path, ino, inode in _walk(snapshot, path.strip("/"), *found):
            content = inode.content
            header = None if content is None else snapshot.payload_header(content.payload)
            if content is None or header is None:
                raise StoreCorruptError(f"/{picture_path} has no payload; run latentfs fsck")
            group = groups[content.recipe, header.shape]
            # One picture a latent: files of one content share a render.
            group.setdefault(content.payload, Picture(picture_path, ino, inode.size_bytes))
        if not groups:
            raise PathError(f"the store {store.path} has no pictures below {path} to measure")
        (recipe_id, shape), most = max(groups.items(), key=lambda item: len(item[1]))
        recipe = snapshot.recipe(recipe_id)
    if recipe is None:
        raise StoreCorruptError(f"recipe {recipe_id.hex()} is missing; run latentfs fsck")
    alike = [
        picture
        for (other, _), group in groups.items()
        if other == recipe_id
        for picture in group.values()
    ]
    return Sample(
        recipe=recipe,
        latent_shape=shape,
        found=len(most),
        pictures=_spread(list(most.values()), files),
        hit=min(alike, key=lambda picture: abs(picture.size_bytes - _HIT_BYTES)),
    )


def _walk(
    snapshot: Snapshot, path: str, ino: int, inode: Inode
) -> Iterator[tuple[str, int, Inode]]:
    if not inode.is_directory:
        yield path, ino, inode
        return
    for name_bytes, child_ino in snapshot.entries(ino):
        name = name_bytes.decode("utf-8", "backslashreplace")
        check_name(name)  # a hostile store must not lead outside of the mount
        child = snapshot.inode(child_ino)
        if child is None:
            raise StoreCorruptError(f"/{path}/{name} leads nowhere; run latentfs fsck")
        yield from _walk(snapshot, f"{path}/{name}".lstrip("/"), child_ino, child)


def _spread(pictures: list[Picture], count: int) -> list[Picture]:
    count = min(count, len(pictures))
    return [pictures[index * len(pictures) // count] for index in range(count)]
