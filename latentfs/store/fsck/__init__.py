"""Checking and repairing a store: one named check per invariant.

Each check is a function that yields the problems it finds; ``CHECKS`` is the list of them all.
They read one snapshot and change nothing.  :mod:`latentfs.store.fsck.repair` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lmdb

from latentfs.errors import LatentfsError
from latentfs.store.fsck import picture_checks, row_checks, tree_checks
from latentfs.store.fsck.facts import Facts
from latentfs.store.snapshot import Snapshot

__all__ = ["CHECKS", "Problem", "check_store", "orphans_to_discard", "steps"]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, found by the check of that name."""

    check: str
    message: str


CHECKS: dict[str, Callable[[Facts], Iterator[str]]] = {
    "records": row_checks.check_records,
    "inodes": row_checks.check_inodes,
    "dangling-entries": tree_checks.check_dangling_entries,
    "orphan-inodes": tree_checks.check_orphan_inodes,
    "parents": tree_checks.check_parents,
    "link-counts": tree_checks.check_link_counts,
    "contents": picture_checks.check_contents,
    "recipes": picture_checks.check_recipes,
    "missing-vaes": picture_checks.check_missing_vaes,
    "framing": picture_checks.check_framing,
    "sizes": picture_checks.check_sizes,
    "payloads": picture_checks.check_payloads,
    "payload-references": picture_checks.check_payload_references,
    "payload-index": picture_checks.check_payload_index,
    "metadata": picture_checks.check_metadata,
    "renditions": picture_checks.check_renditions,
    "chunks": row_checks.check_chunks,
    "xattrs": row_checks.check_xattrs,
    "vaes": row_checks.check_vaes,
    "counters": row_checks.check_counters,
    "totals": row_checks.check_totals,
}


def check_store(
    store_path: Path, snapshot: Snapshot, *, progress: Callable[[], None] = lambda: None
) -> Iterator[Problem]:
    """Run all checks and yield what they find; *progress* is called :func:`steps` times.

    A check that can't go on, because LMDB finds its pages damaged, is a problem too.
    """
    facts = Facts(store_path, snapshot.rows, progress)
    for name, check in CHECKS.items():
        try:
            for message in check(facts):
                yield Problem(name, message)
        except (LatentfsError, lmdb.Error) as error:
            yield Problem(name, str(error))


def steps(snapshot: Snapshot) -> int:
    """Return how many payloads and chunks a check of the store decodes, about."""
    return sum(1 for table in ("payload_index", "chunks") for _ in snapshot.rows.keys(table))


def orphans_to_discard(snapshot: Snapshot) -> int:
    """Return how many files were removed while a mount had them open, and are still kept."""
    return sum(1 for _ in snapshot.orphans())
