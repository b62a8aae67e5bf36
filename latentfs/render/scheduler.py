"""Daemon side: requests go to a renderer in order; a lost renderer is replaced.

What a renderer does wrong stays here.  Requests that were in flight when it died or hung are tried
once more on a fresh one, then fail.  Only the oldest request in flight counts a try: the renderer
works in order, so the younger ones can't have been the cause.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import trio

from latentfs.errors import (
    NoRendererError,
    RenderDroppedError,
    RendererLostError,
    RenderError,
    RenderFailedError,
)
from latentfs.render.protocol import Failed, Ready, Rendered, RenderRequest
from latentfs.render.renderer_process import RendererProcess, open_renderer

__all__ = ["RenderJob", "Rendition", "Scheduler", "SchedulerStatistics", "open_scheduler"]

log = logging.getLogger(__name__)

# One request is worked on while the next waits in the renderer's socket, so that it is never idle.
_WINDOW = 2
_TRIES_MAX = 2
_START_TIMEOUT_S = 180.0
_FAILED_STARTS_MAX = 3
_BACKOFF_FIRST_S = 0.2
_BACKOFF_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class RenderJob:
    """A request without its number, and its bulk bytes: payload, reference, chunks."""

    request: RenderRequest
    bulk: list[bytes]


@dataclass(frozen=True, slots=True)
class Rendition:
    """What a renderer made: its report and, if asked for, the finished file's bytes."""

    report: Rendered
    data: bytes


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """Counters since the start.

    Attributes:
        renders_total: renders that a renderer finished.
        renders_failed_total: renders that ended with an error.
        queued: jobs waiting for the renderer.
        in_flight: jobs sent to the renderer and not answered.
        renderer_restarts_total: renderers that were lost and replaced.
        renderer_ready: whether a renderer takes requests now.
    """

    renders_total: int
    renders_failed_total: int
    queued: int
    in_flight: int
    renderer_restarts_total: int
    renderer_ready: bool


@dataclass(eq=False, slots=True)
class _Pending:
    job: RenderJob
    is_wanted: Callable[[], bool]
    done: trio.Event = field(default_factory=trio.Event)
    tries: int = 0
    outcome: Rendition | RenderError | None = None

    def finish(self, outcome: Rendition | RenderError) -> None:
        self.outcome = outcome
        self.done.set()


class Scheduler:
    """Runs jobs on one renderer process.  Made by :func:`open_scheduler`.

    All of its methods belong to the trio thread.
    """

    def __init__(
        self,
        *,
        render_timeout_s: float,
        open_renderer: Callable[[], AbstractAsyncContextManager[RendererProcess]],
    ) -> None:
        self._render_timeout_s = render_timeout_s
        self._open_renderer = open_renderer
        self._queue: deque[_Pending] = deque()
        self._in_flight: dict[int, _Pending] = {}
        self._numbers = itertools.count(1)
        self._changed = trio.Event()
        self._deadline = trio.CancelScope()
        self._ready = False
        self._failed_starts = 0
        self._renders_total = 0
        self._renders_failed_total = 0
        self._restarts_total = 0

    def statistics(self) -> SchedulerStatistics:
        return SchedulerStatistics(
            renders_total=self._renders_total,
            renders_failed_total=self._renders_failed_total,
            queued=len(self._queue),
            in_flight=len(self._in_flight),
            renderer_restarts_total=self._restarts_total,
            renderer_ready=self._ready,
        )

    async def render(
        self, job: RenderJob, *, is_wanted: Callable[[], bool] = lambda: True
    ) -> Rendition:
        """Queue *job* and wait for its rendition.  If cancelled, a job not yet sent is dropped.

        *is_wanted* is asked once, when the job's turn has come.

        Raises:
            RenderFailedError: the renderer refused it.
            RenderDroppedError: nobody wanted it any more.
            RendererLostError: two renderers died over it, or none can be started.
        """
        pending = _Pending(job, is_wanted)
        self._queue.append(pending)
        self._notify()
        try:
            await pending.done.wait()
        finally:
            if pending in self._queue:
                self._queue.remove(pending)
        if isinstance(pending.outcome, Rendition):
            return pending.outcome
        assert pending.outcome is not None
        raise pending.outcome

    async def run(self) -> None:
        """Keep a renderer running until cancelled; restarts back off while they achieve nothing."""
        backoff_s = _BACKOFF_FIRST_S
        while True:
            renders_before = self._renders_total
            try:
                await self._run_renderer()
            except RendererLostError as error:
                log.error("%s; starting another", error)
            except Exception:  # the mount outlives whatever a renderer does
                log.exception("a renderer failed unexpectedly; starting another")
            self._ready = False
            self._restarts_total += 1
            self._put_back_in_flight()
            if self._failed_starts >= _FAILED_STARTS_MAX:
                self._fail_queued()
            if self._renders_total > renders_before:
                backoff_s = _BACKOFF_FIRST_S
            await trio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S)

    async def _run_renderer(self) -> None:
        lost: RendererLostError | None = None
        self._failed_starts += 1  # until it proves otherwise
        async with self._open_renderer() as renderer:
            try:
                await self._await_ready(renderer)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._feed, renderer)
                    nursery.start_soon(self._collect, renderer)
            except* RendererLostError as group:
                lost = _first_lost(group)
        if lost is not None:
            raise lost

    async def _await_ready(self, renderer: RendererProcess) -> None:
        with trio.move_on_after(_START_TIMEOUT_S):
            message, _ = await renderer.receive()
            if isinstance(message, Ready):
                self._ready = True
                self._failed_starts = 0
                self._notify()
                log.info("renderer %d is ready, torch %s", renderer.pid, message.torch_version)
                return
        raise RendererLostError(f"renderer process {renderer.pid} did not become ready")

    async def _feed(self, renderer: RendererProcess) -> None:
        while True:
            while not self._queue or len(self._in_flight) >= _WINDOW:
                self._changed = trio.Event()
                await self._changed.wait()
            pending = self._queue.popleft()
            if not pending.is_wanted():
                pending.finish(RenderDroppedError("nobody waits for it any more"))
                continue
            number = next(self._numbers)
            self._in_flight[number] = pending
            if len(self._in_flight) == 1:
                self._push_deadline()
            request = msgspec.structs.replace(pending.job.request, number=number)
            await renderer.send(request, pending.job.bulk)

    async def _collect(self, renderer: RendererProcess) -> None:
        while True:
            with trio.CancelScope() as self._deadline:
                self._push_deadline()
                message, data = await renderer.receive()
            if self._deadline.cancelled_caught:
                raise RendererLostError(
                    f"renderer process {renderer.pid} hangs: no answer in "
                    f"{self._render_timeout_s:g} s"
                )
            self._settle(message, data)
            self._notify()

    def _settle(self, message: object, data: bytes | None) -> None:
        if not isinstance(message, (Rendered, Failed)):
            raise RendererLostError(f"unexpected {type(message).__name__} from a renderer")
        pending = self._in_flight.pop(message.number, None)
        if pending is None:
            raise RendererLostError(f"a renderer answered request {message.number}, unasked")
        if isinstance(message, Rendered):
            self._renders_total += 1
            pending.finish(Rendition(message, data or b""))
        else:
            self._renders_failed_total += 1
            pending.finish(RenderFailedError(message.message))

    def _push_deadline(self) -> None:
        """A renderer hangs if it has work and gives no answer for as long as a read may take."""
        busy = bool(self._in_flight)
        self._deadline.deadline = (
            trio.current_time() + self._render_timeout_s if busy else float("inf")
        )

    def _put_back_in_flight(self) -> None:
        for index, pending in enumerate(self._in_flight.values()):
            pending.tries += index == 0
        lost = list(self._in_flight.values())
        self._in_flight.clear()
        for pending in reversed(lost):
            if pending.tries >= _TRIES_MAX:
                self._renders_failed_total += 1
                pending.finish(RendererLostError(f"{pending.tries} renderers were lost over it"))
            else:
                self._queue.appendleft(pending)

    def _fail_queued(self) -> None:
        """No renderer starts, so waiting for one is in vain: what comes later tries again."""
        while self._queue:
            self._renders_failed_total += 1
            self._queue.popleft().finish(
                NoRendererError(
                    f"no renderer could be started in {self._failed_starts} tries; what it printed "
                    "on standard error says why"
                )
            )

    def _notify(self) -> None:
        self._changed.set()


def _first_lost(group: BaseExceptionGroup[RendererLostError]) -> RendererLostError:
    first = group.exceptions[0]
    return _first_lost(first) if isinstance(first, BaseExceptionGroup) else first


@asynccontextmanager
async def open_scheduler(*, render_timeout_s: float) -> AsyncIterator[Scheduler]:
    """A running scheduler; its renderer starts at once and is killed when the block is left."""
    scheduler = Scheduler(render_timeout_s=render_timeout_s, open_renderer=open_renderer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        yield scheduler
        nursery.cancel_scope.cancel()
