"""Daemon side: what is to be rendered goes to the devices that there are.

One queue, one lane a device.  All of it belongs to the trio thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from latentfs.errors import NoRendererError, RenderDroppedError, RenderFailedError
from latentfs.render.job_queue import (
    NOBODY,
    JobQueue,
    Order,
    Priority,
    Reader,
    RenderJob,
    Rendition,
)
from latentfs.render.lane import Lane, LaneCounts, OpenRenderer, WarmUpJobs
from latentfs.render.protocol import Ready
from latentfs.render.quarantine import Quarantine
from latentfs.render.renderer_process import open_renderer
from latentfs.telemetry.histogram import HistogramStatistics
from latentfs.telemetry.renderer_state import shown_renderers

__all__ = ["Scheduler", "SchedulerStatistics", "open_scheduler"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """Counters since the start, and the state now.

    Attributes:
        renders_total: renders that a renderer finished.
        renders_failed_total: renders that ended with an error.
        renders_widened_total: renders that gave NaN in a narrow dtype and were done in float32.
        out_of_memory_total: renders that failed for lack of memory.
        queued: orders that readers wait for and no renderer has.
        queued_background: orders that no reader waits for and no renderer has.
        in_flight: orders sent to a renderer and not answered.
        quarantined: contents refused for a while because they broke renderers.
        renderer_restarts_total: renderers that were lost and replaced.
        warm_ups_total: renders that were finished only to have VAEs loaded; not in renders_total.
        warming_up: warm-ups that renderers have or will have.
        devices: those whose renderers take requests now.
        problem: why a renderer could not be started when that was tried last; None where none is
            missing, or the first try goes on.
        batch_sizes: of the groups sent to renderers, in latents; without warm-ups.
        queue_waits_s: of orders until a renderer was first given them, by priority; with the time
            for which they were parked.
    """

    renders_total: int
    renders_failed_total: int
    renders_widened_total: int
    out_of_memory_total: int
    queued: int
    queued_background: int
    in_flight: int
    quarantined: int
    renderer_restarts_total: int
    warm_ups_total: int
    warming_up: int
    devices: tuple[str, ...]
    problem: str | None
    batch_sizes: HistogramStatistics
    queue_waits_s: dict[Priority, HistogramStatistics]

    @property
    def renderers(self) -> str:
        """In words, what goes behind "renderer"."""
        return shown_renderers(self.devices, self.problem)


class Scheduler:
    """Runs render jobs on the renderers of all devices.  Made by :func:`open_scheduler`.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``; the renderers find out what that means
            here, and a lane is added for each further GPU.
        background_groups_max: groups of orders that no reader waits for, at most, in a renderer.
            With 1, a read is never delayed by more than one of their renders.
        warm_up_jobs: for each renderer that has become ready.
    """

    def __init__(
        self,
        *,
        device: str,
        render_timeout_s: float,
        background_groups_max: int,
        open_renderer: OpenRenderer,
        warm_up_jobs: WarmUpJobs = tuple,
    ) -> None:
        self._render_timeout_s = render_timeout_s
        self._background_groups_max = background_groups_max
        self._open_renderer = open_renderer
        self._warm_up_jobs = warm_up_jobs
        self._queue = JobQueue()
        self._quarantine = Quarantine()
        self._counts = LaneCounts()
        self._lanes = [self._new_lane(device)]
        self._nursery: trio.Nursery | None = None

    def statistics(self) -> SchedulerStatistics:
        foreground = self._queue.queued(Priority.FOREGROUND)
        return SchedulerStatistics(
            renders_total=self._counts.renders,
            renders_failed_total=self._counts.renders_failed,
            renders_widened_total=self._counts.renders_widened,
            out_of_memory_total=self._counts.out_of_memory,
            queued=foreground,
            queued_background=len(self._queue) - foreground,
            in_flight=sum(lane.in_flight for lane in self._lanes),
            quarantined=len(self._quarantine),
            renderer_restarts_total=self._counts.restarts,
            warm_ups_total=self._counts.warm_ups,
            warming_up=sum(lane.warming_up for lane in self._lanes),
            devices=tuple(lane.ready_device for lane in self._lanes if lane.ready_device),
            problem=next((lane.problem for lane in self._lanes if lane.problem), None),
            batch_sizes=self._counts.batch_sizes.statistics(),
            queue_waits_s={
                priority: waits.statistics() for priority, waits in self._counts.queue_waits.items()
            },
        )

    @property
    def render_timeout_s(self) -> float:
        """After which a renderer that has finished nothing is taken to hang."""
        return self._render_timeout_s

    @render_timeout_s.setter
    def render_timeout_s(self, timeout_s: float) -> None:
        self._render_timeout_s = timeout_s
        for lane in self._lanes:
            lane.render_timeout_s = timeout_s

    def refused_for_s(self, content: Hashable) -> float:
        """Return for how long a content is refused, as renderers were lost over it; 0 if not."""
        return self._quarantine.refused_for_s(content)

    def submit(
        self,
        job: RenderJob,
        *,
        priority: Priority = Priority.FOREGROUND,
        reader: Reader = NOBODY,
        is_wanted: Callable[[], bool] = lambda: True,
        parked_s: float = 0.0,
    ) -> Order:
        """Queue *job*; *is_wanted* is asked when its turn has come.

        *parked_s*, seconds that its reader has waited for a place in the queue, count as a part of
        its wait.

        Raises:
            RenderFailedError: it has broken renderers and is refused for a while.
        """
        refused_s = self.refused_for_s(job.content)
        if refused_s > 0:
            raise RenderFailedError(
                f"renderers were lost over it again and again; it is refused for another "
                f"{refused_s:.0f} s"
            )
        order = Order(
            job, priority, is_wanted, [reader], queued_s=time.monotonic(), parked_s=parked_s
        )
        self._queue.push(order)
        return order

    async def finished(self, order: Order) -> Rendition:
        """Wait for the rendition of *order*.  If cancelled, it is given up.

        Raises:
            RenderFailedError: the renderer refused it.
            RenderDroppedError: nobody wanted it any more.
            RendererLostError: two renderers died over it, or none can be started.
        """
        try:
            await order.done.wait()
        finally:
            if not order.done.is_set():
                self.give_up(order)
        if isinstance(order.outcome, Rendition):
            return order.outcome
        assert order.outcome is not None
        raise order.outcome

    async def render(
        self,
        job: RenderJob,
        *,
        priority: Priority = Priority.FOREGROUND,
    ) -> Rendition:
        """:meth:`submit` and wait until :meth:`finished`, with the errors of both."""
        return await self.finished(self.submit(job, priority=priority))

    def join(self, order: Order, reader: Reader) -> None:
        """A further reader waits for *order*: it comes no later than that reader's own would."""
        self._queue.join(order, reader)

    def give_up(self, order: Order) -> None:
        """Nobody waits for *order* any more: it ends as dropped unless it is being decoded."""
        if self._queue.discard(order):
            order.finish(RenderDroppedError("nobody waits for it any more"))
        else:
            for lane in self._lanes:
                lane.cancel(order)

    async def run(self) -> None:
        """Keep renderers running until cancelled."""
        async with trio.open_nursery() as self._nursery:
            for lane in self._lanes:
                self._nursery.start_soon(lane.run)

    def _new_lane(self, device: str) -> Lane:
        return Lane(
            device,
            self._queue,
            self._quarantine,
            self._counts,
            render_timeout_s=self._render_timeout_s,
            background_groups_max=self._background_groups_max,
            open_renderer=self._open_renderer,
            warm_up_jobs=self._warm_up_jobs,
            on_ready=self._add_lanes,
            on_unavailable=self._fail_queued_if_hopeless,
        )

    def _add_lanes(self, ready: Ready) -> None:
        """Give each further device that the first lane's stands for a lane of its own."""
        assert self._nursery is not None
        known = {ready.devices[0], *(lane.device for lane in self._lanes)}
        for device in ready.devices:
            if device not in known:
                lane = self._new_lane(device)
                self._lanes.append(lane)
                self._nursery.start_soon(lane.run)

    def _fail_queued_if_hopeless(self) -> None:
        """No renderer starts, so waiting for one is in vain: what comes later tries again."""
        reasons = [lane.unavailable for lane in self._lanes]
        if any(reason is None for reason in reasons):
            return
        for order in self._queue.clear():
            self._counts.renders_failed += 1
            order.finish(NoRendererError(str(reasons[0])))


@asynccontextmanager
async def open_scheduler(
    *,
    render_timeout_s: float,
    device: str = "auto",
    background_groups_max: int = 3,
    warm_up_jobs: WarmUpJobs = tuple,
) -> AsyncIterator[Scheduler]:
    """A running scheduler; its renderers start at once and are killed when the block is left."""
    scheduler = Scheduler(
        device=device,
        render_timeout_s=render_timeout_s,
        background_groups_max=background_groups_max,
        open_renderer=open_renderer,
        warm_up_jobs=warm_up_jobs,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        yield scheduler
        nursery.cancel_scope.cancel()
