"""Renderers that are given something to do before anybody asks, under a clock that jumps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.testing
from scripted_renderer import READY, RECIPE, Scripted, job

from latentfs.errors import RendererLostError
from latentfs.render.job_queue import RenderJob
from latentfs.render.protocol import Dropped, Failed, Message, Ready
from latentfs.render.scheduler import Scheduler

TIMEOUT_S = 10.0
OTHER = msgspec.structs.replace(RECIPE, dtype="bfloat16")
THIRD = msgspec.structs.replace(RECIPE, dtype="float16")
WARM_UPS = (job("w", recipe=RECIPE), job("x", recipe=OTHER), job("y", recipe=THIRD))


@asynccontextmanager
async def warming_up(
    scripted: Scripted, jobs: Sequence[RenderJob] = WARM_UPS
) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(
        device="auto",
        render_timeout_s=TIMEOUT_S,
        background_groups_max=1,
        open_renderer=scripted.open_renderer,
        warm_up_jobs=lambda: jobs,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        yield scheduler
        nursery.cancel_scope.cancel()


async def test_they_are_done_one_at_a_time_and_are_no_renders(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted()
    async with warming_up(scripted) as scheduler:
        await scripted.until_begun("w")
        statistics = scheduler.statistics()
        assert (statistics.warming_up, statistics.warm_ups_total) == (3, 0)
        assert (statistics.in_flight, statistics.queued_background) == (1, 0)
        await trio.sleep(100)
        statistics = scheduler.statistics()
        assert (statistics.warming_up, statistics.warm_ups_total) == (0, 3)
        assert (statistics.renders_total, statistics.in_flight) == (0, 0)
    assert scripted.begun == [["w"], ["x"], ["y"]]


async def test_what_is_asked_for_waits_for_one_of_them_at_most(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted()
    async with warming_up(scripted) as scheduler:
        await scripted.until_begun("w")
        orders = [scheduler.submit(job(name)) for name in "abc"]
        await trio.sleep(100)
        assert all(order.done.is_set() for order in orders)
    assert scripted.worked_on == ["w", "a", "b", "c", "x", "y"]


async def test_what_was_asked_for_before_goes_first_and_spares_its_recipes_warm_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted(start_s=5)
    async with warming_up(scripted) as scheduler:
        await scheduler.render(job("a", recipe=OTHER))
        await trio.sleep(100)
        assert scheduler.statistics().warming_up == 0
    assert scripted.worked_on == ["a", "w", "y"]


async def test_each_renderer_does_them_anew(autojump_clock: trio.testing.MockClock) -> None:
    dies = iter(["die", None])
    scripted = Scripted({"deadly": lambda request: next(dies)})
    async with warming_up(scripted) as scheduler:
        await trio.sleep(100)
        await scheduler.render(job("deadly"))
        await trio.sleep(100)
        assert scheduler.statistics().warm_ups_total == 5  # that of deadly's recipe was spared
    assert scripted.worked_on == ["w", "x", "y", "deadly", "deadly", "x", "y"]


@pytest.mark.parametrize("way", ["die", "hang"])
async def test_one_that_loses_the_renderer_is_not_done_again_nor_refused_to_a_reader(
    autojump_clock: trio.testing.MockClock, way: str
) -> None:
    deadly = iter([way, None, None, None])
    scripted = Scripted({"x": lambda request: next(deadly)})
    async with warming_up(scripted) as scheduler:
        await trio.sleep(100)
        assert scripted.worked_on == ["w", "x", "w", "y"]
        statistics = scheduler.statistics()
        assert (statistics.renderer_restarts_total, statistics.renders_failed_total) == (1, 0)
        assert (statistics.quarantined, statistics.warming_up) == (0, 0)
        for _ in range(3):
            assert (await scheduler.render(job("x"))).data == b"x"


async def test_a_read_that_was_behind_a_deadly_one_is_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted({"w": lambda request: "die"})
    async with warming_up(scripted) as scheduler:
        await scripted.until_begun("w")
        assert (await scheduler.render(job("a"))).data == b"a"
        assert scheduler.statistics().renders_total == 1
        await trio.sleep(100)
    assert scripted.worked_on == ["w", "a", "x", "y"]


async def test_one_that_fails_is_left_at_that(autojump_clock: trio.testing.MockClock) -> None:
    scripted = Scripted(
        {
            "w": lambda request: Failed(request.number, "no", True),
            "x": lambda request: Dropped(request.number),
        }
    )
    async with warming_up(scripted) as scheduler:
        await trio.sleep(100)
        statistics = scheduler.statistics()
        assert (statistics.warm_ups_total, statistics.renderer_restarts_total) == (1, 0)
        assert (statistics.renders_failed_total, statistics.out_of_memory_total) == (0, 0)
    assert scripted.worked_on == ["w", "x", "y"]


async def test_what_is_refused_is_not_warmed_up_with(
    autojump_clock: trio.testing.MockClock,
) -> None:
    dies = iter(["die", None])
    scripted = Scripted({"w": lambda request: "die", "other": lambda request: next(dies)})
    jobs: list[RenderJob] = []
    async with warming_up(scripted, jobs) as scheduler:
        with pytest.raises(RendererLostError):
            await scheduler.render(job("w"))
        assert scheduler.statistics().quarantined == 1
        jobs += WARM_UPS
        await scheduler.render(job("other", recipe=OTHER))
        await trio.sleep(30)
        assert scheduler.statistics().quarantined == 1
    assert scripted.worked_on == ["w", "w", "other", "other", "y"]


async def test_each_device_is_warmed_up(autojump_clock: trio.testing.MockClock) -> None:
    def greet(device: str) -> Message:
        if device == "auto":
            return Ready(torch_version="0", device="cuda:0", devices=("cuda:0", "cuda:1"))
        return Ready(torch_version="0", device=device, devices=(device,))

    scripted = Scripted(greet=greet)
    async with warming_up(scripted) as scheduler:
        await trio.sleep(100)
        assert scheduler.statistics().warm_ups_total == 6
    assert scripted.begun_on == {"auto": ["w", "x", "y"], "cuda:1": ["w", "x", "y"]}


async def test_nothing_is_done_where_there_is_nothing_to_do(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted(greet=lambda device: READY)
    async with warming_up(scripted, ()) as scheduler:
        await trio.sleep(100)
        assert scheduler.statistics().warming_up == 0
    assert scripted.worked_on == []
