"""The way of a read, above the renderer: cache, then one render for all who want it.

Concurrency: everything here runs on the trio thread.  A flight is the one render of a content that
is going on; readers wait for it, each with its own deadline.  It outlives them once a renderer
works on it; if it is still queued when the last of them has gone, it is dropped.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from latentfs.cache.pixel_cache import PixelCache
from latentfs.errors import (
    LatentfsError,
    RenderDroppedError,
    RenderError,
    RenderFailedError,
    RenderTimeoutError,
)
from latentfs.render.jobs import job_for_inode
from latentfs.render.scheduler import Rendition, Scheduler
from latentfs.store.records import Inode
from latentfs.store.store import Store

__all__ = ["RenditionStatistics", "Renditions", "content_key", "open_renditions"]

log = logging.getLogger(__name__)

_UNMOUNTING = "the file system is being unmounted"


@dataclass(frozen=True, slots=True)
class RenditionStatistics:
    """Counters since the start.

    Attributes:
        in_flight: contents that are being rendered or wait for it.
        shared_total: reads that waited for a render another read had started.
        timeouts_total: reads that ended at the deadline.
        hash_mismatches_total: renders whose bytes differ from the first ones; their size does not.
    """

    in_flight: int
    shared_total: int
    timeouts_total: int
    hash_mismatches_total: int


@dataclass(eq=False, slots=True)
class _Flight:
    done: trio.Event = field(default_factory=trio.Event)
    outcome: bytes | LatentfsError | None = None
    waiting: int = 0


def content_key(inode: Inode) -> Hashable:
    """What decides a file's bytes: files with equal keys share one render and one cache entry."""
    content = inode.content
    assert content is not None
    return (content.payload, content.recipe, content.framing, content.chunks, inode.size_bytes)


class Renditions:
    """Gives finished file bytes.  Made by :func:`open_renditions`."""

    def __init__(
        self,
        store: Store,
        scheduler: Scheduler,
        cache: PixelCache,
        *,
        render_timeout_s: float,
        nursery: trio.Nursery,
    ) -> None:
        self._store = store
        self._scheduler = scheduler
        self._cache = cache
        self._render_timeout_s = render_timeout_s
        self._nursery = nursery
        self._flights: dict[Hashable, _Flight] = {}
        self._aborted = False
        self._shared_total = 0
        self._timeouts_total = 0
        self._hash_mismatches_total = 0

    def statistics(self) -> RenditionStatistics:
        return RenditionStatistics(
            in_flight=len(self._flights),
            shared_total=self._shared_total,
            timeouts_total=self._timeouts_total,
            hash_mismatches_total=self._hash_mismatches_total,
        )

    def abort(self) -> None:
        """Fail all reads that wait, now and later: the file system is being unmounted."""
        self._aborted = True
        self._nursery.cancel_scope.cancel()

    async def get(self, ino: int, inode: Inode) -> bytes:
        """Return the file's bytes, exactly ``inode.size_bytes`` of them.

        If cancelled, a render that a renderer has begun goes on for whoever asks next.

        Raises:
            RenderTimeoutError: the deadline passed.
            RenderError, StoreError, LatentError: it can't be rendered.
        """
        if self._aborted:
            raise RenderError(_UNMOUNTING)
        key = content_key(inode)
        data = self._cache.get(key)
        if data is not None:
            return data
        outcome = None
        with trio.move_on_after(self._render_timeout_s):
            outcome = await self._outcome(key, ino, inode)
            while isinstance(outcome, RenderDroppedError):  # joined just as it was dropped
                outcome = await self._outcome(key, ino, inode)
        if outcome is None:
            self._timeouts_total += 1
            raise RenderTimeoutError(
                f"inode {ino} was not rendered within {self._render_timeout_s:g} s; "
                "the renderer is overloaded or hangs: see latentfs status, or raise "
                "--render-timeout"
            )
        if isinstance(outcome, LatentfsError):
            raise outcome
        return outcome

    async def _outcome(self, key: Hashable, ino: int, inode: Inode) -> bytes | LatentfsError | None:
        """Join the flight of *key*, or start it, and wait for how it ends."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            self._nursery.start_soon(self._fly, key, ino, inode, flight)
        else:
            self._shared_total += 1
        flight.waiting += 1
        try:
            await flight.done.wait()
        finally:
            flight.waiting -= 1
        return flight.outcome

    async def _fly(self, key: Hashable, ino: int, inode: Inode, flight: _Flight) -> None:
        try:
            flight.outcome = await self._render(ino, inode, flight)
            self._cache.put(key, flight.outcome)
        except LatentfsError as error:
            flight.outcome = error
        except Exception as error:
            log.exception("rendering inode %d failed unexpectedly", ino)
            flight.outcome = RenderError(f"inode {ino}: {type(error).__name__}: {error}")
        finally:
            if flight.outcome is None:
                flight.outcome = RenderError(_UNMOUNTING)
            del self._flights[key]
            flight.done.set()

    async def _render(self, ino: int, inode: Inode, flight: _Flight) -> bytes:
        with self._store.read() as snapshot:
            if snapshot.inode(ino) is None:
                raise RenderFailedError(f"inode {ino} was removed while it was open")
            job = job_for_inode(snapshot, self._store.path, inode)
        rendition = await self._scheduler.render(job, is_wanted=lambda: flight.waiting > 0)
        self._check(ino, inode, rendition)
        return rendition.data

    def _check(self, ino: int, inode: Inode, rendition: Rendition) -> None:
        if len(rendition.data) != inode.size_bytes:
            raise RenderFailedError(
                f"inode {ino} was rendered to {len(rendition.data)} bytes, not to its size of "
                f"{inode.size_bytes}"
            )
        assert inode.content is not None
        if rendition.report.sha256 != inode.content.rendition_sha256:
            self._hash_mismatches_total += 1
            log.warning(
                "inode %d was rendered to other bytes than at import: another device or library "
                "version decodes or encodes differently; its size is the same",
                ino,
            )


@asynccontextmanager
async def open_renditions(
    store: Store, scheduler: Scheduler, cache: PixelCache, *, render_timeout_s: float
) -> AsyncIterator[Renditions]:
    """A :class:`Renditions` whose renders are cancelled, and readers answered, at the end.

    Its flights live in a nursery of their own, so that :meth:`Renditions.abort` ends them and
    leaves the block running that has to answer the readers.
    """

    async def host(*, task_status: trio.TaskStatus[Renditions]) -> None:
        async with trio.open_nursery() as flights:
            task_status.started(
                Renditions(
                    store, scheduler, cache, render_timeout_s=render_timeout_s, nursery=flights
                )
            )
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        yield await nursery.start(host)
        nursery.cancel_scope.cancel()
