"""Under which name the picture of a latent file appears that was written into a mount."""

from __future__ import annotations

from dataclasses import dataclass

from latentfs.ingest.addition import Owner
from latentfs.ingest.conflicts import resolve
from latentfs.ingest.preparation import Picture
from latentfs.store.file_transaction import FileTransaction
from latentfs.store.records import Inode

__all__ = ["FreeName", "free_name"]


@dataclass(frozen=True, slots=True)
class FreeName:
    """A name for a picture.

    Attributes:
        orphan_ino: what made room for it, if that has no name left.  Somebody may have it open.
    """

    name: bytes
    orphan_ino: int | None = None


def free_name(
    transaction: FileTransaction, folder_ino: int, picture: Picture, owner: Owner
) -> FreeName | None:
    """Return the name to give a picture; None where it is there already.

    The picture of an earlier version of the same latent file makes room for it.

    Raises:
        PathError: a folder has that name, or no longer name can be made of it.
        StoreCorruptError: the picture of that name is damaged.
    """
    there = transaction.lookup(folder_ino, picture.name)
    inode = None if there is None else transaction.inode(there)
    conflict = resolve(transaction, folder_ino, picture.name, picture.identity, "rename")
    if conflict.action == "same":
        return None
    if inode is not None and inode.uid == owner.uid and _is_earlier(inode, picture):
        ino, is_orphan = transaction.remove_entry(folder_ino, picture.name, directory=False)
        return FreeName(picture.name, ino if is_orphan else None)
    return FreeName(conflict.name)


def _is_earlier(inode: Inode, picture: Picture) -> bool:
    """Whether a mount made it of a latent file of that name in that folder, as it is now.

    What was imported, copied, moved there or changed is somebody's own and stays.
    """
    if inode.content is None:
        return False
    made, making = inode.content.source, picture.source
    return (made.name, made.developed_in) == (making.name, making.developed_in)
