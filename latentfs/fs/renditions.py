"""The way of a read, above the renderer: cache, then one render for all who want it.

Concurrency: everything here runs on the trio thread.  A flight is the one render of a content that
is going on; readers wait for it, each with its own deadline.  When the last of them has gone it is
given up, unless a renderer is decoding it already: then it goes on for whoever asks next.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from latentfs.cache.ranking import Form
from latentfs.cache.tiered_cache import CachedPicture, TieredCache
from latentfs.errors import (
    LatentfsError,
    RenderDroppedError,
    RenderError,
    RenderTimeoutError,
)
from latentfs.fs.fetching import Fetch, held_bytes
from latentfs.render.job_queue import NOBODY, Order, Priority, Reader, RenderJob, Rendition
from latentfs.render.jobs import check_rendition, content_key
from latentfs.render.scheduler import Scheduler
from latentfs.store.records import Inode
from latentfs.telemetry.activity import ReadTrail, Tier
from latentfs.telemetry.render_times import RenderTimes

__all__ = ["Flown", "PictureCache", "RenditionStatistics", "Renditions", "open_renditions"]

log = logging.getLogger(__name__)

_UNMOUNTING = "the file system is being unmounted"
# More of one process group's reads than this wait outside of the scheduler, without their payloads
# in memory; its turns are the same.
_QUEUED_PER_READER_MAX = 64
_FLOWN_KEPT = 1024
# Stages in a renderer that are not due to the picture.
_WAITING_STAGES = ("wait", "load")
_TIERS = {Form.PIXELS: Tier.PIXELS, Form.LATENT: Tier.LATENT, Form.NOTHING: Tier.MISS}

PictureCache = TieredCache[bytes, RenderJob]
"""Finished files, and what renderers are given to make them."""


@dataclass(frozen=True, slots=True)
class RenditionStatistics:
    """Counters since the start.

    Attributes:
        in_flight: contents that are being rendered or wait for it.
        parked: of these, those that wait until fewer of their reader's are queued.
        shared_total: reads that waited for a render another read had started.
        given_up_total: renders given up because their last reader had gone.
        prefetched_total: renders started ahead of any read.
        timeouts_total: reads that ended at the deadline.
        hash_mismatches_total: renders whose bytes differ from the first ones; their size does not.
    """

    in_flight: int
    parked: int
    shared_total: int
    given_up_total: int
    prefetched_total: int
    timeouts_total: int
    hash_mismatches_total: int


@dataclass(frozen=True, slots=True)
class Flown:
    """A finished render: seconds by stage, in order, and in total from the first read's arrival.

    ``ended_at`` is in seconds since 1970.
    """

    ended_at: float
    ino: int
    stages_s: dict[str, float]
    total_s: float


@dataclass(eq=False, slots=True)
class _Flight:
    """The render of a content that is going on.

    Attributes:
        reader: who asked first; None for a render ahead of any read.
        is_ahead: for a render ahead: whether it is still expected to be read.
        waiting: reads that wait for it.
        order: once it is queued with the scheduler.
        parked: entered while the first reader has too many renders queued.
        scope: entered while it goes on; cancelled, it ends as the file system does.
        begun_by: ``read`` or ``prefetch``.
        stages_s: seconds by stage, as far as it has come.
    """

    reader: Reader | None
    is_ahead: Callable[[], bool] = lambda: False
    waiting: int = 0
    done: trio.Event = field(default_factory=trio.Event)
    outcome: bytes | LatentfsError | None = None
    order: Order | None = None
    parked: trio.CancelScope = field(default_factory=trio.CancelScope)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    begun_by: str = "read"
    stages_s: dict[str, float] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        """Where it is: ``parked``, ``fetch``, ``queue`` or ``renderer``; empty if it has ended."""
        if self.done.is_set():
            return ""
        if self.order is not None:
            return "queue" if self.order.sent_s is None else "renderer"
        return "fetch" if "parked" in self.stages_s else "parked"

    def is_wanted(self) -> bool:
        return self.waiting > 0 or self.is_ahead()

    def is_due(self) -> bool:
        """Whether a renderer has it, and readers wait for it."""
        return self.stage == "renderer" and self.waiting > 0


class _ReaderLimits:
    """How many renders of each process group are queued."""

    def __init__(self) -> None:
        self._limiters: dict[Reader, trio.CapacityLimiter] = {}

    @asynccontextmanager
    async def place_for(self, flight: _Flight) -> AsyncIterator[None]:
        """Wait until the flight's reader may have another render queued, or it is un-parked."""
        reader = flight.reader
        if reader is None:
            yield
            return
        limiter = self._limiters.setdefault(reader, trio.CapacityLimiter(_QUEUED_PER_READER_MAX))
        with flight.parked:
            await limiter.acquire_on_behalf_of(flight)
        try:
            yield
        finally:
            if not flight.parked.cancelled_caught:
                limiter.release_on_behalf_of(flight)
            idle = not limiter.borrowed_tokens and not limiter.statistics().tasks_waiting
            if idle and self._limiters.get(reader) is limiter:
                del self._limiters[reader]


class Renditions:
    """Gives finished file bytes.  Made by :func:`open_renditions`.

    Attributes:
        render_timeout_s: after which a read ends with an error; may be set at any time.
        times: of the renders for readers, and of those ahead of them.
    """

    def __init__(
        self,
        fetch: Fetch,
        scheduler: Scheduler,
        cache: PictureCache,
        *,
        render_timeout_s: float,
        nursery: trio.Nursery,
    ) -> None:
        self._fetch = fetch
        self._scheduler = scheduler
        self._cache = cache
        self.render_timeout_s = render_timeout_s
        self._nursery = nursery
        self.times = RenderTimes()
        self._flights: dict[Hashable, _Flight] = {}
        self._limits = _ReaderLimits()
        self._flown: deque[Flown] = deque(maxlen=_FLOWN_KEPT)
        self._is_ending = False
        self._aborted = trio.Event()
        self._shared_total = 0
        self._given_up_total = 0
        self._prefetched_total = 0
        self._timeouts_total = 0
        self._hash_mismatches_total = 0

    def statistics(self) -> RenditionStatistics:
        return RenditionStatistics(
            in_flight=len(self._flights),
            parked=sum(flight.stage == "parked" for flight in self._flights.values()),
            shared_total=self._shared_total,
            given_up_total=self._given_up_total,
            prefetched_total=self._prefetched_total,
            timeouts_total=self._timeouts_total,
            hash_mismatches_total=self._hash_mismatches_total,
        )

    def flown(self) -> list[Flown]:
        """Return the last 1024 finished renders, oldest first."""
        return list(self._flown)

    async def drain(self, wait_s: float) -> int:
        """Let renders that a renderer has finish, for *wait_s* at most; :meth:`abort` is to follow.

        Only what readers wait for; all else ends now, and no more is begun.  Readers that come
        meanwhile may join, and have what is in the cache.  Others are kept waiting for the end:
        who tries again at once would take the time of what is still rendered.

        Returns:
            the number of renders that have finished.
        """
        self._is_ending = True
        due = []
        for flight in self._flights.values():
            if flight.is_due():
                due.append(flight)
            else:
                flight.scope.cancel()
        with trio.move_on_after(wait_s):
            for flight in due:
                await flight.done.wait()
        return sum(flight.done.is_set() for flight in due)

    def abort(self) -> None:
        """Fail all reads that wait for a render, now and later: the mount ends."""
        self._is_ending = True
        self._aborted.set()
        self._nursery.cancel_scope.cancel()

    async def get(
        self, ino: int, inode: Inode, reader: Reader, trail: ReadTrail | None = None
    ) -> bytes:
        """Return the file's bytes, exactly ``inode.size_bytes`` of them; *trail* learns how.

        If cancelled, a render that is being decoded goes on for whoever asks next.

        Raises:
            RenderTimeoutError: the deadline passed.
            RenderError, StoreError, LatentError: it can't be rendered.
        """
        trail = ReadTrail() if trail is None else trail
        picture = _cached(inode)
        joins_render = picture.key in self._flights
        trail.tier = _TIERS[self._cache.request(picture, joins_render=joins_render)]
        data = self._cache.pixels(picture.key)
        if data is not None:
            return data
        outcome = None
        with trio.move_on_after(self.render_timeout_s):
            outcome = await self._outcome(picture, ino, inode, reader, trail)
            while isinstance(outcome, RenderDroppedError):  # joined just as it was dropped
                outcome = await self._outcome(picture, ino, inode, reader, trail)
        if outcome is None:
            self._timeouts_total += 1
            raise RenderTimeoutError(
                f"inode {ino} was not rendered within {self.render_timeout_s:g} s; "
                "the renderer is overloaded or hangs: see latentfs status, or raise "
                "--render-timeout"
            )
        if isinstance(outcome, LatentfsError):
            raise outcome
        return outcome

    def is_rendering(self, key: Hashable) -> bool:
        """Whether a render of a content is going on, or queued."""
        return key in self._flights

    def kernel_hit(self, inode: Inode) -> None:
        """Count a read that the kernel has answered alone."""
        self._cache.kernel_hit(_cached(inode))

    def prefetch(self, ino: int, inode: Inode, is_ahead: Callable[[], bool]) -> None:
        """Render a file ahead of any read, when nothing else is to be done, while *is_ahead*."""
        picture = _cached(inode)
        is_held = self._cache.pixels(picture.key) is not None
        if self._is_ending or picture.key in self._flights or is_held:
            return
        self._prefetched_total += 1
        self._start(picture, ino, inode, _Flight(None, is_ahead, begun_by="prefetch"))

    async def _outcome(
        self, picture: CachedPicture, ino: int, inode: Inode, reader: Reader, trail: ReadTrail
    ) -> bytes | LatentfsError | None:
        """Join the flight of *picture*, or start it, and wait for how it ends."""
        flight = self._flights.get(picture.key)
        if flight is None:
            if self._is_ending:
                await self._aborted.wait()
                raise RenderError(_UNMOUNTING)
            flight = self._start(picture, ino, inode, _Flight(reader))
        else:
            self._join(flight, reader)
            trail.tier, trail.joined = Tier.SHARED, flight.begun_by
        flight.waiting += 1
        try:
            await flight.done.wait()
        finally:
            flight.waiting -= 1
            trail.stages_s, trail.unfinished = flight.stages_s, flight.stage
            self._give_up_if_unwanted(flight)
        return flight.outcome

    def _start(self, picture: CachedPicture, ino: int, inode: Inode, flight: _Flight) -> _Flight:
        self._flights[picture.key] = flight
        self._nursery.start_soon(self._fly, picture, ino, inode, flight)
        return flight

    def _join(self, flight: _Flight, reader: Reader) -> None:
        self._shared_total += 1
        if flight.order is not None:
            self._scheduler.join(flight.order, reader)
        elif reader != flight.reader:
            flight.parked.cancel()
            flight.reader = reader

    def _give_up_if_unwanted(self, flight: _Flight) -> None:
        if flight.is_wanted() or flight.done.is_set() or flight.order is None:
            return
        self._given_up_total += 1
        self._scheduler.give_up(flight.order)

    async def _fly(self, picture: CachedPicture, ino: int, inode: Inode, flight: _Flight) -> None:
        try:
            with flight.scope:
                flight.outcome = data = await self._render(picture, ino, inode, flight)
                self._cache.keep_pixels(picture, data, held_bytes=sys.getsizeof(data))
        except LatentfsError as error:
            flight.outcome = error
        except Exception as error:
            log.exception("rendering inode %d failed unexpectedly", ino)
            flight.outcome = RenderError(f"inode {ino}: {type(error).__name__}: {error}")
        finally:
            if flight.outcome is None:
                flight.outcome = RenderError(_UNMOUNTING)
            del self._flights[picture.key]
            flight.done.set()

    async def _render(
        self, picture: CachedPicture, ino: int, inode: Inode, flight: _Flight
    ) -> bytes:
        start_s = trio.current_time()
        async with self._limits.place_for(flight):
            if not flight.is_wanted():
                raise RenderDroppedError("nobody waits for it any more")
            fetch_s = trio.current_time()
            flight.stages_s["parked"] = fetch_s - start_s
            job = await self._job(picture, ino, inode)
            flight.stages_s["fetch"] = trio.current_time() - fetch_s
            flight.order = self._scheduler.submit(
                job,
                priority=Priority.PREFETCH if flight.reader is None else Priority.FOREGROUND,
                reader=flight.reader or NOBODY,
                is_wanted=flight.is_wanted,
                parked_s=flight.stages_s["parked"],
            )
            rendition = await self._scheduler.finished(flight.order)
        work_s = _work_s(rendition)
        self._cache.costs.rendered(picture.kind, work_s, weight=picture.weight)
        if not check_rendition(inode, job.recipe, rendition):
            self._hash_mismatches_total += 1
            log.warning(
                "inode %d was rendered to other bytes than at import: another device or library "
                "version decodes or encodes differently; its size is the same",
                ino,
            )
        flight.stages_s |= rendition.stages_s
        self.times.rendered(str(picture.kind), job.recipe, work_s=work_s, stages_s=flight.stages_s)
        self._flown.append(Flown(time.time(), ino, flight.stages_s, trio.current_time() - start_s))
        return rendition.data

    async def _job(self, picture: CachedPicture, ino: int, inode: Inode) -> RenderJob:
        """Return what a renderer needs, from the cache or the store."""
        job = self._cache.latent(picture.key)
        if job is None:
            start_s = trio.current_time()
            job = await self._fetch(ino, inode)
            self._cache.costs.fetched(trio.current_time() - start_s)
            self._cache.keep_latent(picture, job, held_bytes=held_bytes(job))
        return job


def _cached(inode: Inode) -> CachedPicture:
    content = inode.content
    assert content is not None
    megapixels = content.width * content.height / 1e6
    recipe = content.recipe.hex()[:12]
    return CachedPicture(content_key(inode), inode.size_bytes, recipe, megapixels)


def _work_s(rendition: Rendition) -> float:
    """Return the seconds that a renderer worked for it."""
    stages_s = rendition.report.stages_s.items()
    return sum(elapsed_s for stage, elapsed_s in stages_s if stage not in _WAITING_STAGES)


@asynccontextmanager
async def open_renditions(
    fetch: Fetch, scheduler: Scheduler, cache: PictureCache, *, render_timeout_s: float
) -> AsyncIterator[Renditions]:
    """A :class:`Renditions` whose renders are cancelled, and readers answered, at the end.

    Its flights live in a nursery of their own, so that :meth:`Renditions.abort` ends them and
    leaves the block running that has to answer the readers.
    """

    async def host(*, task_status: trio.TaskStatus[Renditions]) -> None:
        async with trio.open_nursery() as flights:
            task_status.started(
                Renditions(
                    fetch, scheduler, cache, render_timeout_s=render_timeout_s, nursery=flights
                )
            )
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        yield await nursery.start(host)
        nursery.cancel_scope.cancel()
