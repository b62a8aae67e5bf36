"""Daemon side: one device's renderer, replaced when it is lost, and the orders it has.

What a renderer does wrong stays here.  When one is lost, the orders it had are tried once more on a
fresh one, each alone, so that those which did no harm succeed and the one that did is known.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from math import inf

import msgspec
import trio

from latentfs.errors import RenderDroppedError, RendererLostError, RenderError, RenderFailedError
from latentfs.latents.recipe import DeviceClass, Recipe
from latentfs.render.hang_watch import HangWatch
from latentfs.render.job_queue import NOBODY, JobQueue, Order, Priority, RenderJob, Rendition
from latentfs.render.protocol import (
    Alive,
    CancelRequest,
    CannotStart,
    Dropped,
    Failed,
    Ready,
    Rendered,
)
from latentfs.render.quarantine import Quarantine
from latentfs.render.renderer_process import RendererProcess
from latentfs.telemetry.histogram import BATCH_SIZES, Histogram

__all__ = ["Lane", "LaneCounts", "OpenRenderer", "WarmUpJobs"]

log = logging.getLogger(__name__)

OpenRenderer = Callable[[str], AbstractAsyncContextManager[RendererProcess]]
WarmUpJobs = Callable[[], Iterable[RenderJob]]
"""What a renderer is to do before anybody asks, so that its VAEs are loaded then."""

# One group is decoded while the last one is encoded and the next one waits, decompressed.
_GROUPS_IN_FLIGHT_MAX = 3
_TRIES_MAX = 2
_START_TIMEOUT_S = 180.0
_FAILED_STARTS_MAX = 3
_BACKOFF_FIRST_S = 0.2
_BACKOFF_MAX_S = 30.0
# Readers can't wait for two timeouts.  The second try of what no reader asked for has this part of
# one while readers wait behind it; the rest is theirs.
_SECOND_TRY_SHARE = 0.5


@dataclass(slots=True)
class LaneCounts:
    """What all lanes of a scheduler count together, since the start."""

    renders: int = 0
    renders_failed: int = 0
    renders_widened: int = 0
    out_of_memory: int = 0
    restarts: int = 0
    warm_ups: int = 0
    batch_sizes: Histogram = field(default_factory=lambda: Histogram(BATCH_SIZES))
    queue_waits: dict[Priority, Histogram] = field(
        default_factory=lambda: {priority: Histogram() for priority in Priority}
    )


@dataclass(eq=False, slots=True)
class _Sent:
    """An order that the renderer has; those of one group are decoded together.

    ``sent_s`` is on the monotonic clock, as are the renderer's times: trio's has an offset.
    """

    order: Order
    group: int
    sent_s: float
    cancelled: bool = False


class Lane:
    """Runs orders from a queue on one device.

    Args:
        background_groups_max: groups of orders that no reader waits for, at most, in the renderer.
        warm_up_jobs: done one at a time by each renderer that has become ready, when it has nothing
            else to do.
        on_ready: called whenever a renderer has become ready.
        on_unavailable: called when none can be started.

    Attributes:
        unavailable: why none can be started, once that is certain; None before and otherwise.
        problem: why the last one could not be started; None once one is ready.
    """

    def __init__(
        self,
        device: str,
        queue: JobQueue,
        quarantine: Quarantine,
        counts: LaneCounts,
        *,
        render_timeout_s: float,
        background_groups_max: int,
        open_renderer: OpenRenderer,
        warm_up_jobs: WarmUpJobs,
        on_ready: Callable[[Ready], None],
        on_unavailable: Callable[[], None],
    ) -> None:
        self.device = device
        self.unavailable: str | None = None
        self.problem: str | None = None
        self._queue = queue
        self._quarantine = quarantine
        self._counts = counts
        self.render_timeout_s = render_timeout_s
        self._background_groups_max = background_groups_max
        self._open_renderer = open_renderer
        self._warm_up_jobs = warm_up_jobs
        self._on_ready = on_ready
        self._on_unavailable = on_unavailable
        self._in_flight: dict[int, _Sent] = {}
        self._numbers = itertools.count(1)
        self._ready: Ready | None = None
        self._failed_starts = 0
        self._renders = 0
        self._watch = HangWatch()
        self._warm_ups: deque[Order] = deque()
        # A renderer was lost over them: the next one is not to be, unless a reader asks for it.
        self._never_to_warm_up: set[object] = set()
        self._recipes_sent: set[Recipe] = set()

    @property
    def ready_device(self) -> str | None:
        """The device of the renderer that takes requests now, None while there is none."""
        return None if self._ready is None else self._ready.device

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def warming_up(self) -> int:
        """How many warm-ups the renderer has or will have."""
        return len(self._warm_ups) + sum(sent.order.is_warm_up for sent in self._in_flight.values())

    async def run(self) -> None:
        """Keep a renderer running until cancelled; restarts back off while they achieve nothing."""
        backoff_s = _BACKOFF_FIRST_S
        while True:
            renders_before = self._renders
            try:
                await self._run_renderer()
            except RendererLostError as error:
                log.error("%s; starting another", error)
                if self._failed_starts:
                    self.problem = str(error)
            except Exception:  # the mount outlives whatever a renderer does
                log.exception("a renderer failed unexpectedly; starting another")
            self._ready = None
            self._warm_ups.clear()
            self._counts.restarts += 1
            self._settle_lost()
            if self._failed_starts >= _FAILED_STARTS_MAX and self.unavailable is None:
                self.unavailable = (
                    f"no renderer could be started in {self._failed_starts} tries; what it "
                    "printed on standard error says why"
                )
            if self.unavailable is not None:
                self._on_unavailable()
            if self._renders > renders_before:
                backoff_s = _BACKOFF_FIRST_S
            await trio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S)

    def cancel(self, order: Order) -> None:
        """Tell the renderer, if it has *order*, that nobody waits for it."""
        for sent in self._in_flight.values():
            if sent.order is order:
                sent.cancelled = True
                self._queue.notify()

    # One renderer

    async def _run_renderer(self) -> None:
        lost: RendererLostError | None = None
        self._failed_starts += 1  # until it proves otherwise
        async with self._open_renderer(self.device) as renderer:
            try:
                await self._await_ready(renderer)
                self._watch = HangWatch()
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
                self._ready = message
                self._failed_starts = 0
                self.unavailable = self.problem = None
                self._plan_warm_ups()
                self._queue.notify()
                log.info(
                    "renderer %d is ready on %s, torch %s",
                    renderer.pid,
                    message.device,
                    message.torch_version,
                )
                self._on_ready(message)
                return
            if isinstance(message, CannotStart):
                self.unavailable = message.reason
                raise RendererLostError(message.reason)
        raise RendererLostError(f"renderer process {renderer.pid} did not become ready")

    def _plan_warm_ups(self) -> None:
        self._recipes_sent.clear()
        self._warm_ups = deque(
            Order(job, Priority.IMPORT, lambda: True, [NOBODY], time.monotonic(), is_warm_up=True)
            for job in self._warm_up_jobs()
            if job.content not in self._never_to_warm_up
            and not self._quarantine.refused_for_s(job.content)
        )

    # Sending

    async def _feed(self, renderer: RendererProcess) -> None:
        while True:
            # One thing at a time: while it is sent, there may be more to cancel or to send.
            number = self._next_cancelled()
            if number is not None:
                await renderer.send_message(CancelRequest(number))
            elif group := self._next_group():
                await self._send(renderer, group)
            else:
                await self._queue.changed()

    def _next_cancelled(self) -> int | None:
        for number, sent in self._in_flight.items():
            if sent.cancelled:
                sent.cancelled = False
                return number
        return None

    def _next_group(self) -> list[Order]:
        """Take what is to be sent now; nothing if the renderer has enough, or nothing waits."""
        while group := self._take():
            if wanted := self._wanted(group):
                return wanted
        return []

    def _take(self) -> list[Order]:
        if any(sent.order.alone for sent in self._in_flight.values()):
            return []
        if self._queue.alone_is_next:
            order = None if self._in_flight else self._queue.take_alone()
            return [] if order is None else [order]
        groups = {sent.group for sent in self._in_flight.values()}
        if len(groups) >= _GROUPS_IN_FLIGHT_MAX:
            return []
        background = groups - {
            sent.group
            for sent in self._in_flight.values()
            if sent.order.priority is Priority.FOREGROUND
        }
        room = len(background) < self._background_groups_max
        least = Priority.IMPORT if room else Priority.FOREGROUND
        group = self._queue.take(least_priority=least, batch_of=self._batch_of)
        return group if group or self._in_flight else self._next_warm_up()

    def _next_warm_up(self) -> list[Order]:
        """Take a warm-up; nothing where the renderer has been asked for all of their recipes."""
        while self._warm_ups:
            order = self._warm_ups.popleft()
            if order.job.recipe not in self._recipes_sent:
                return [order]
        return []

    def _batch_of(self, recipe: Recipe) -> int:
        assert self._ready is not None
        device: DeviceClass = "cuda" if self._ready.device.startswith("cuda") else "cpu"
        return recipe.adapted_to(device).batch

    def _wanted(self, group: list[Order]) -> list[Order]:
        wanted = [order for order in group if order.is_wanted()]
        for order in group:
            if order not in wanted:
                order.finish(RenderDroppedError("nobody waits for it any more"))
        return wanted

    async def _send(self, renderer: RendererProcess, group: list[Order]) -> None:
        numbers = [next(self._numbers) for _ in group]
        if not self._in_flight:
            self._watch.begin()
        sent_s = time.monotonic()
        for number, order in zip(numbers, group, strict=True):
            self._in_flight[number] = _Sent(order, numbers[0], sent_s)
            self._recipes_sent.add(order.job.recipe)
            order.sent_s = sent_s
        self._count_sent(group, sent_s)
        self._push_deadline()
        requests = [
            (msgspec.structs.replace(order.job.request, number=number), order.job.bulk)
            for number, order in zip(numbers, group, strict=True)
        ]
        self._settle_unsent(await renderer.send(requests))

    def _count_sent(self, group: list[Order], sent_s: float) -> None:
        if group[0].is_warm_up:
            return
        self._counts.batch_sizes.observe(len(group))
        for order in group:
            if not order.tries:  # its first wait is over long ago otherwise
                waited_s = order.parked_s + sent_s - order.queued_s
                self._counts.queue_waits[order.priority].observe(waited_s)

    # Receiving

    async def _collect(self, renderer: RendererProcess) -> None:
        while True:
            with trio.CancelScope() as self._watch.scope:
                self._push_deadline()
                message, data = await renderer.receive()
            if self._watch.scope.cancelled_caught:
                await trio.lowlevel.checkpoint()  # another device may take what a reader waits for
                if self._deadline_s() > trio.current_time():
                    continue
                reason = self._watch.reason(
                    render_timeout_s=self.render_timeout_s, picture_max_s=self._picture_max_s
                )
                raise RendererLostError(f"renderer process {renderer.pid} hangs: {reason}")
            self._watch.hear(message)
            if not isinstance(message, Alive):
                self._settle(message, data)
                self._queue.notify()

    def _push_deadline(self) -> None:
        self._watch.scope.deadline = self._deadline_s()

    def _deadline_s(self) -> float:
        """A renderer hangs if it has work and is silent, or finishes nothing for too long."""
        if not self._in_flight:
            return inf
        return self._watch.deadline_s(
            render_timeout_s=self.render_timeout_s, picture_max_s=self._picture_max_s
        )

    @property
    def _picture_max_s(self) -> float:
        keeps_readers_waiting = self._queue.queued(Priority.FOREGROUND) > 0 and any(
            sent.order.alone and sent.order.priority is not Priority.FOREGROUND
            for sent in self._in_flight.values()
        )
        return self.render_timeout_s * (_SECOND_TRY_SHARE if keeps_readers_waiting else 1)

    def _settle(self, message: object, data: bytes | None) -> None:
        if not isinstance(message, (Rendered, Failed, Dropped)):
            raise RendererLostError(f"unexpected {type(message).__name__} from a renderer")
        sent = self._in_flight.pop(message.number, None)
        if sent is None:
            raise RendererLostError(f"a renderer answered request {message.number}, unasked")
        order = sent.order
        if order.is_warm_up:
            self._counts.warm_ups += isinstance(message, Rendered)
            log.debug("a warm-up ended with %s", message)
        elif isinstance(message, Dropped):
            order.finish(RenderDroppedError("nobody waits for it any more"))
        elif isinstance(message, Failed):
            self._counts.out_of_memory += message.out_of_memory
            self._fail(order, RenderFailedError(message.message))
        else:
            self._counts.renders += 1
            self._renders += 1
            used, asked = message.recipe, order.job.recipe
            widened = used is not None and used.widened_from != asked.widened_from
            self._counts.renders_widened += widened
            self._quarantine.clear(order.job.content)
            order.finish(Rendition(message, data or b"", _stages(sent, message)))

    def _settle_unsent(self, unsent: Mapping[int, RenderFailedError]) -> None:
        """Fail the orders that the renderer never had: neither it nor their content is blamed."""
        for number, error in unsent.items():
            order = self._in_flight.pop(number).order
            if order.is_warm_up:
                log.debug("a warm-up can't be sent: %s", error)
            else:
                self._fail(order, error)
        self._push_deadline()

    def _fail(self, order: Order, error: RenderError) -> None:
        self._counts.renders_failed += 1
        order.finish(error)

    def _settle_lost(self) -> None:
        """Put the orders that the lost renderer had back, or fail those it was not the first of."""
        lost = [sent.order for sent in self._in_flight.values()]
        self._in_flight.clear()
        for order in lost:
            if order.is_warm_up:
                # Nobody asked for it, so it is not refused to whoever does.
                self._never_to_warm_up.add(order.job.content)
                continue
            order.tries += 1
            order.sent_s = None
            if len(lost) == 1:
                # That it was in an earlier loss too, among others, now counts against it.
                self._quarantine.blame(order.job.content, losses=order.tries - order.blamed)
                order.blamed = order.tries
            if order.tries >= _TRIES_MAX:
                self._fail(order, RendererLostError(f"{order.tries} renderers were lost over it"))
            else:
                order.alone = True
                self._queue.push(order)


def _stages(sent: _Sent, report: Rendered) -> dict[str, float]:
    """Seconds by stage, from the queue to the bytes in the daemon."""
    return {
        "queue": sent.sent_s - sent.order.queued_s,
        "send": max(0.0, report.received_s - sent.sent_s),
        **report.stages_s,
        "transfer": max(0.0, time.monotonic() - report.finished_s),
    }


def _first_lost(group: BaseExceptionGroup[RendererLostError]) -> RendererLostError:
    first = group.exceptions[0]
    return _first_lost(first) if isinstance(first, BaseExceptionGroup) else first
