"""Telling the kernel what other processes changed in the store under a live mount."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import pyfuse3
import trio

from latentfs.errors import StoreError
from latentfs.store.records import Change
from latentfs.store.store import Store

__all__ = ["follow_changes"]

log = logging.getLogger(__name__)

_INTERVAL_S = 0.5
# At the end, for what the kernel is just being told, which mostly takes microseconds.
_LAST_S = 0.5


async def follow_changes(store: Store, let_go: Callable[[int], Awaitable[None]]) -> None:
    """Drop from the kernel's caches what has changed; runs until cancelled, and a moment longer.

    The kernel may keep names and attributes for an hour, so that a lookup costs nothing; what
    another process replaces or removes shows here within a second all the same.

    Args:
        let_go: called with each inode that has lost a name, when the kernel has been told; and at
            first with all that have none, which others may have made so while the mount began.
    """
    removed, to_let_go = trio.open_memory_channel[int](math.inf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_let_go_one_by_one, to_let_go, let_go)
        await _follow(store, removed)


async def _let_go_one_by_one(
    inos: trio.MemoryReceiveChannel[int], let_go: Callable[[int], Awaitable[None]]
) -> None:
    """A task of its own, as each may wait for its turn to change the store."""
    async for ino in inos:
        await let_go(ino)


async def _follow(store: Store, removed: trio.MemorySendChannel[int]) -> None:
    seen: int | None = None
    next_change: int | None = None
    while True:
        if store.changes() != seen:
            seen = store.changes()
            before = next_change
            changes, next_change = _changes_since(store, before)
            inos = {ino for change in changes for _, _, ino in change.removed}
            if before is None:
                inos |= _orphans(store)
            try:
                await _Announcement(changes).make()
            except RuntimeError as error:  # no thread could be started
                log.error("the kernel can't be told of %d changes yet: %s", len(changes), error)
                seen, next_change = None, before
            else:
                for ino in inos:
                    removed.send_nowait(ino)
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


def _orphans(store: Store) -> set[int]:
    try:
        with store.read() as snapshot:
            return set(snapshot.orphans())
    except StoreError as error:
        log.error("files without links are left to the next mount: %s", error)
        return set()


class _Announcement:
    """Telling the kernel of changes, in a thread.

    There, the kernel may block the caller until a request of ours is answered, which at the end
    nobody does.  So it is not waited for for ever then; but the session that it uses is destroyed
    next, so it is for a moment, and nothing more is told.
    """

    def __init__(self, changes: list[Change]) -> None:
        self._changes = changes
        self._is_ending = threading.Event()
        self._has_begun = threading.Event()
        self._ended = trio.Event()

    async def make(self) -> None:
        """Tell all; if cancelled, wait at most :data:`_LAST_S` for what is being told.

        Raises:
            RuntimeError: no thread could be started.
        """
        token = trio.lowlevel.current_trio_token()
        try:
            await trio.to_thread.run_sync(self._run, token, abandon_on_cancel=True)
        except trio.Cancelled:
            self._is_ending.set()
            if self._has_begun.is_set():
                with trio.move_on_after(_LAST_S, shield=True):
                    await self._ended.wait()
            raise

    def _run(self, token: trio.lowlevel.TrioToken) -> None:
        self._has_begun.set()
        try:
            for tell in _invalidations(self._changes):
                if self._is_ending.is_set():
                    return
                _quietly(tell)
        finally:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._ended.set)


def _invalidations(changes: list[Change]) -> Iterator[Callable[[], None]]:
    for change in changes:
        for parent_ino, name, _ in change.removed:
            yield partial(pyfuse3.invalidate_entry, parent_ino, name)
        for ino in change.directories:
            yield partial(pyfuse3.invalidate_inode, ino, attr_only=True)


def _quietly(invalidate: Callable[[], None]) -> None:
    try:
        invalidate()
    except FileNotFoundError:
        pass  # the kernel does not know it
    except OSError as error:
        log.warning("can't tell the kernel of a change: %s", error)
