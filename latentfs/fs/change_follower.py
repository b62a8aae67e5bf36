"""Telling the kernel what other processes changed in the store under a live mount."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import pyfuse3
import trio

from latentfs.errors import StoreError
from latentfs.store.records import Change
from latentfs.store.store import Store

__all__ = ["follow_changes"]

log = logging.getLogger(__name__)

_INTERVAL_S = 0.5


async def follow_changes(store: Store) -> None:
    """Drop from the kernel's caches what has changed; runs until cancelled.

    The kernel may keep names and attributes for an hour, so that a lookup costs nothing; what
    another process replaces or removes shows here within a second all the same.
    """
    seen: int | None = None
    next_change: int | None = None
    while True:
        if store.changes() != seen:
            seen = store.changes()
            before = next_change
            changes, next_change = _changes_since(store, before)
            # In a thread: the kernel may block the caller until a request of ours is answered,
            # which at the end nobody does.
            try:
                await trio.to_thread.run_sync(_announce, changes, abandon_on_cancel=True)
            except RuntimeError as error:  # no thread could be started
                log.error("the kernel can't be told of %d changes yet: %s", len(changes), error)
                seen, next_change = None, before
        await trio.sleep(_INTERVAL_S)


def _changes_since(store: Store, number: int | None) -> tuple[list[Change], int | None]:
    """Return the changes since *number*, none if that is not known yet, and the next number."""
    try:
        with store.read() as snapshot:
            changes = [] if number is None else snapshot.changes_since(number)
            return changes, snapshot.next_change()
    except StoreError as error:
        log.error("changes of other processes can't be read: %s", error)
        return [], number


def _announce(changes: list[Change]) -> None:
    for change in changes:
        for parent_ino, name, _ in change.removed:
            _quietly(partial(pyfuse3.invalidate_entry, parent_ino, name))
        for ino in change.directories:
            _quietly(partial(pyfuse3.invalidate_inode, ino, attr_only=True))


def _quietly(invalidate: Callable[[], None]) -> None:
    try:
        invalidate()
    except FileNotFoundError:
        pass  # the kernel does not know it
    except OSError as error:
        log.warning("can't tell the kernel of a change: %s", error)
