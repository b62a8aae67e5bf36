"""Checks of the tree of folders: entries, links, what no folder leads to."""

from __future__ import annotations

from collections.abc import Iterator

from latentfs.store.fsck.facts import Facts
from latentfs.store.records import Inode
from latentfs.store.tables import ROOT_INO

__all__ = [
    "check_dangling_entries",
    "check_link_counts",
    "check_orphan_inodes",
    "check_parents",
    "expected_links",
    "expected_parent",
]


def check_dangling_entries(facts: Facts) -> Iterator[str]:
    """Every directory entry is in a directory, has a name, and leads to an inode."""
    if ROOT_INO not in facts.directory_inos:
        what = "is damaged or no folder" if ROOT_INO in facts.inos else "is missing"
        yield f"/ leads to inode {ROOT_INO}, which {what}"
    for entry in facts.entries():
        reason = facts.broken(entry)
        if reason is not None:
            yield f"{facts.path_of_entry(entry.parent_ino, entry.name)} {reason}"


def check_orphan_inodes(facts: Facts) -> Iterator[str]:
    """Every inode is reached from the root, or listed as an orphan that was removed while open."""
    listed = set(facts.orphan_rows())
    for ino, inode in facts.inodes():
        if facts.is_reached(ino):
            if ino in listed:
                yield f"{facts.path_of(ino)} (inode {ino}) is listed as an orphan"
        elif ino not in listed:
            yield f"inode {ino} is in no directory"
        elif inode.nlink:
            yield f"inode {ino} is listed as an orphan, but has {inode.nlink} links recorded"
    for ino in sorted(listed):
        if ino not in facts.inos:
            yield f"inode {ino} is listed as an orphan, but is missing"
        elif ino in facts.damaged_inos:
            yield f"inode {ino} is listed as an orphan, but can't be read"


def check_parents(facts: Facts) -> Iterator[str]:
    """Every directory is in one directory, and names it."""
    for entry, ino in facts.sound_entries():
        if entry.parent_ino in facts.tree and facts.is_extra(entry):
            path = facts.path_of_entry(entry.parent_ino, entry.name)
            yield f"{path} leads to the folder {facts.path_of(ino)} (inode {ino}) a second time"
    for ino, inode in facts.inodes():
        parent_ino = expected_parent(facts, ino, inode)
        if parent_ino is None or inode.parent_ino == parent_ino:
            continue
        where = f"it is in {parent_ino}" if parent_ino else "and it is no folder"
        yield f"{facts.path_of(ino)} names inode {inode.parent_ino} as its parent, {where}"


def expected_parent(facts: Facts, ino: int, inode: Inode) -> int | None:
    """Return the parent that an inode should name, None if that isn't known."""
    if not inode.is_directory:
        return 0
    return facts.tree[ino][0] if ino in facts.tree else None


def check_link_counts(facts: Facts) -> Iterator[str]:
    """A file has as many links as entries; a directory two and one for each subdirectory."""
    for ino, inode in facts.inodes():
        expected = expected_links(facts, ino, inode)
        if expected is not None and inode.nlink != expected:
            yield (
                f"{facts.path_of(ino)} (inode {ino}) has {inode.nlink} links recorded, "
                f"{expected} found"
            )


def expected_links(facts: Facts, ino: int, inode: Inode) -> int | None:
    """Return how many links an inode should have, None for what no folder leads to."""
    if not facts.is_reached(ino):
        return None
    return 2 + facts.subfolders[ino] if inode.is_directory else facts.links[ino]
