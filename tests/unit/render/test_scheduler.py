"""The scheduler against renderers that die, hang and lie, under a clock that jumps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.testing
from scripted_renderer import READY, RECIPE, Answer, Behaviour, Scripted, job

from latentfs.errors import (
    NoRendererError,
    RenderDroppedError,
    RendererLostError,
    RenderError,
    RenderFailedError,
)
from latentfs.render.job_queue import NOBODY, Order, Priority, Reader
from latentfs.render.protocol import CannotStart, Dropped, Failed, Message, Ready, RenderRequest
from latentfs.render.scheduler import Scheduler

TIMEOUT_S = 10.0
BATCHED = msgspec.structs.replace(RECIPE, batch=4)
FOREGROUND, PREFETCH, IMPORT = Priority.FOREGROUND, Priority.PREFETCH, Priority.IMPORT


@asynccontextmanager
async def running(
    scripted: Scripted, *, render_timeout_s: float = TIMEOUT_S, background_groups_max: int = 1
) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(
        device="auto",
        render_timeout_s=render_timeout_s,
        background_groups_max=background_groups_max,
        open_renderer=scripted.open_renderer,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        yield scheduler
        nursery.cancel_scope.cancel()


async def render_all(scheduler: Scheduler, names: Iterable[str]) -> dict[str, object]:
    orders = {name: scheduler.submit(job(name)) for name in names}
    return {name: await outcome_of(scheduler, order) for name, order in orders.items()}


async def outcome_of(scheduler: Scheduler, order: Order) -> bytes | type[RenderError]:
    try:
        return (await scheduler.finished(order)).data
    except RenderError as error:
        return type(error)


def times(answer: str, count: int) -> Behaviour:
    """Give *answer* so many times, then render."""
    answers = iter([answer] * count)
    return lambda request: next(answers, None)


def always(answer: object) -> Behaviour:
    return lambda request: answer


def fails(message: str, *, out_of_memory: bool = False) -> Behaviour:
    return lambda request: Failed(request.number, message, out_of_memory)


# In order


async def test_jobs_are_worked_on_in_order(autojump_clock: trio.testing.MockClock) -> None:
    scripted = Scripted()
    names = [f"{n}" for n in range(8)]
    async with running(scripted) as scheduler:
        outcomes = await render_all(scheduler, names)
        statistics = scheduler.statistics()
    assert outcomes == {name: name.encode() for name in names}
    assert scripted.worked_on == names
    assert statistics.renders_total == 8
    assert (statistics.queued, statistics.in_flight) == (0, 0)


async def test_an_import_comes_last_and_prefetch_before_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted()
    async with running(scripted) as scheduler:
        orders = [
            scheduler.submit(job(name), priority=priority)
            for name, priority in [
                ("import 1", IMPORT),
                ("import 2", IMPORT),
                ("ahead 1", PREFETCH),
                ("ahead 2", PREFETCH),
                ("read 1", FOREGROUND),
                ("read 2", FOREGROUND),
            ]
        ]
        for order in orders:
            await scheduler.finished(order)
    assert scripted.worked_on == ["read 1", "read 2", "ahead 1", "ahead 2", "import 1", "import 2"]


@pytest.mark.parametrize("priority", [PREFETCH, IMPORT])
async def test_what_no_reader_waits_for_delays_a_read_by_one_render(
    priority: Priority, autojump_clock: trio.testing.MockClock
) -> None:
    scripted = Scripted()
    async with running(scripted) as scheduler:
        for n in range(20):
            scheduler.submit(job(f"background {n}"), priority=priority)
        for n in range(5):
            await trio.sleep(2.3)
            begun = len(scripted.begun)
            asked_s = trio.current_time()
            await scheduler.render(job(f"read {n}"))
            assert trio.current_time() - asked_s <= 2
            assert scripted.worked_on.index(f"read {n}") - begun <= 1
        assert scheduler.statistics().queued_background > 0


async def test_a_group_that_asks_for_much_does_not_keep_another_from_its_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted()
    async with running(scripted) as scheduler:
        for n in range(50):
            scheduler.submit(job(f"{n}"), reader=Reader(1, 10))
        await trio.sleep(0.5)
        order = scheduler.submit(job("the one"), reader=Reader(1, 11))
        await scheduler.finished(order)
    # Three are with the renderer when it is asked for, and the other group's turn may be next.
    assert scripted.worked_on.index("the one") <= 4


async def test_a_reader_that_joins_brings_a_background_order_forward(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted()
    async with running(scripted) as scheduler:
        orders = [scheduler.submit(job(f"{n}"), priority=PREFETCH) for n in range(6)]
        await scripted.until_begun("0")
        scheduler.join(orders[5], Reader(1, 10))
        scheduler.join(orders[0], Reader(1, 10))
        for order in orders:
            await scheduler.finished(order)
    assert scripted.worked_on == ["0", "5", "1", "2", "3", "4"]


# Batches


async def test_a_batch_goes_to_the_renderer_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted()
    async with running(scripted) as scheduler:
        orders = [scheduler.submit(job(f"{n}", recipe=BATCHED)) for n in range(6)]
        outcomes = [await outcome_of(scheduler, order) for order in orders]
    assert outcomes == [f"{n}".encode() for n in range(6)]
    assert scripted.begun == [["0", "1", "2", "3"], ["4", "5"]]


async def test_a_recipe_is_batched_only_on_the_class_of_device_that_it_was_made_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted()
    for_gpus = msgspec.structs.replace(BATCHED, device="cuda")
    async with running(scripted) as scheduler:
        orders = [scheduler.submit(job(f"{n}", recipe=for_gpus)) for n in range(3)]
        for order in orders:
            await scheduler.finished(order)
    assert scripted.begun == [["0"], ["1"], ["2"]]


async def test_of_a_batch_only_what_is_wanted_is_sent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted()
    async with running(scripted) as scheduler:
        orders = [
            scheduler.submit(job(f"{n}", recipe=BATCHED), is_wanted=lambda n=n: n % 2 == 1)  # type: ignore[misc]
            for n in range(4)
        ]
        outcomes = [await outcome_of(scheduler, order) for order in orders]
    assert outcomes == [RenderDroppedError, b"1", RenderDroppedError, b"3"]
    assert scripted.begun == [["1", "3"]]


async def test_one_that_fails_or_is_cancelled_in_a_batch_leaves_the_others_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted({"bad": fails("no")}, seconds={"before": 3})
    async with running(scripted) as scheduler:
        before = scheduler.submit(job("before"))
        orders = [scheduler.submit(job(name, recipe=BATCHED)) for name in ("a", "bad", "left", "b")]
        await scripted.until_begun("before")
        scheduler.give_up(orders[2])
        outcomes = [await outcome_of(scheduler, order) for order in (before, *orders)]
    assert outcomes == [b"before", b"a", RenderFailedError, RenderDroppedError, b"b"]
    assert scripted.begun == [["before"], ["a", "bad", "b"]]


async def test_a_background_order_that_fills_a_readers_batch_does_not_use_up_the_room_for_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted(seconds={"read": 5})
    async with running(scripted) as scheduler:
        scheduler.submit(job("filler", recipe=BATCHED), priority=PREFETCH)
        scheduler.submit(job("read", recipe=BATCHED))
        scheduler.submit(job("ahead"), priority=PREFETCH)
        await scripted.until_begun("read")
        statistics = scheduler.statistics()
        assert (statistics.in_flight, statistics.queued_background) == (3, 0)
    assert scripted.begun == [["read", "filler"]]


# Giving up


async def test_a_queued_order_is_given_up_at_once(autojump_clock: trio.testing.MockClock) -> None:
    scripted = Scripted()
    async with running(scripted) as scheduler:
        orders = [scheduler.submit(job(f"{n}")) for n in range(6)]
        await scripted.until_begun("0")
        scheduler.give_up(orders[5])
        assert orders[5].done.is_set()
        assert await outcome_of(scheduler, orders[5]) is RenderDroppedError
        assert [await outcome_of(scheduler, order) for order in orders[:5]] == list(
            map(str.encode, "01234")
        )
        scheduler.give_up(orders[0])  # long finished
    assert scripted.worked_on == list("01234")
    assert scripted.cancelled == []


async def test_an_order_with_the_renderer_is_dropped_unless_it_is_being_decoded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted()
    async with running(scripted) as scheduler:
        orders = [scheduler.submit(job(f"{n}")) for n in range(3)]
        await scripted.until_begun("0")
        assert scheduler.statistics().in_flight == 3
        for order in orders:
            scheduler.give_up(order)
        outcomes = [await outcome_of(scheduler, order) for order in orders]
        assert scheduler.statistics().in_flight == 0
    assert outcomes == [b"0", RenderDroppedError, RenderDroppedError]
    assert scripted.worked_on == ["0"]
    assert sorted(scripted.cancelled) == ["0", "1", "2"]


@pytest.mark.parametrize("ticks", range(6))
async def test_orders_that_are_given_up_while_another_is_being_cancelled_are_cancelled_too(
    ticks: int, autojump_clock: trio.testing.MockClock
) -> None:
    scripted = Scripted(seconds={"0": 5})
    async with running(scripted) as scheduler:
        orders = [scheduler.submit(job(f"{n}")) for n in range(3)]
        await scripted.until_begun("0")
        scheduler.give_up(orders[2])
        for _ in range(ticks):  # one of these is while it is sent
            await trio.lowlevel.checkpoint()
        scheduler.give_up(orders[1])
        await trio.testing.wait_all_tasks_blocked()
        assert set(scripted.cancelled) == {"1", "2"}


async def test_a_cancelled_waiter_gives_its_order_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted(seconds={"0": 5})
    async with running(scripted) as scheduler:
        orders = [scheduler.submit(job(f"{n}")) for n in range(5)]
        async with trio.open_nursery() as waiting:
            for order in orders[1:]:
                waiting.start_soon(scheduler.finished, order)
            await scripted.until_begun("0")
            waiting.cancel_scope.cancel()
        await scheduler.finished(orders[0])
        await scheduler.render(job("after"))
    assert scripted.worked_on == ["0", "after"]


async def test_what_nobody_wants_when_its_turn_comes_is_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wanted = {"0", "1", "2", "4"}
    scripted = Scripted()
    async with running(scripted) as scheduler:
        orders = [
            scheduler.submit(job(name), is_wanted=lambda name=name: name in wanted)  # type: ignore[misc]
            for name in "012345"
        ]
        await scripted.until_begun("0")
        wanted -= {"1", "4"}  # too late for one that is with the renderer
        wanted |= {"5"}
        outcomes = [await outcome_of(scheduler, order) for order in orders]
    assert outcomes == [b"0", b"1", b"2", RenderDroppedError, RenderDroppedError, b"5"]


# Failures


async def test_a_refused_job_fails_alone(autojump_clock: trio.testing.MockClock) -> None:
    scripted = Scripted({"bad": fails("no"), "big": fails("too big", out_of_memory=True)})
    async with running(scripted) as scheduler:
        outcomes = await render_all(scheduler, ["a", "bad", "big", "b"])
        statistics = scheduler.statistics()
    assert outcomes == {"a": b"a", "bad": RenderFailedError, "big": RenderFailedError, "b": b"b"}
    assert scripted.opened == ["auto"]
    assert (statistics.renders_failed_total, statistics.out_of_memory_total) == (2, 1)


async def test_a_renderer_that_dies_once_is_replaced(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted({"b": times("die", 1)})
    async with running(scripted) as scheduler:
        outcomes = await render_all(scheduler, "abc")
        assert scheduler.statistics().renderer_restarts_total == 1
    assert outcomes == {"a": b"a", "b": b"b", "c": b"c"}
    assert scripted.worked_on == ["a", "b", "b", "c"]


async def test_a_job_that_kills_two_renderers_fails_and_spares_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted({"deadly": always("die")})
    async with running(scripted) as scheduler:
        outcomes = await render_all(scheduler, ["a", "deadly", "b", "c"])
    assert outcomes == {"a": b"a", "deadly": RendererLostError, "b": b"b", "c": b"c"}
    assert len(scripted.opened) == 3


async def test_what_a_lost_renderer_had_is_tried_alone_so_that_the_innocent_succeed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted({"deadly": always("die")})
    names = ["a", "deadly", "b", "c"]
    async with running(scripted) as scheduler:
        orders = [scheduler.submit(job(name, recipe=BATCHED)) for name in [*names, "late"]]
        outcomes = [await outcome_of(scheduler, order) for order in orders]
        assert scheduler.statistics().quarantined == 1
        for name in ("a", "b", "c", "late"):
            await scheduler.render(job(name))
    assert outcomes == [b"a", RendererLostError, b"b", b"c", b"late"]
    assert scripted.begun[:6] == [names, ["a"], ["deadly"], ["b"], ["c"], ["late"]]


async def test_a_content_that_breaks_renderers_is_refused_for_a_minute(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted({"deadly": times("die", 2)})
    async with running(scripted) as scheduler:
        outcomes = await render_all(scheduler, ["before", "deadly", "after"])
        assert outcomes["deadly"] is RendererLostError
        assert scheduler.statistics().quarantined == 1
        with pytest.raises(RenderFailedError, match=r"refused for another \d\d s"):
            scheduler.submit(job("deadly"))
        with pytest.raises(RenderFailedError):
            await scheduler.render(job("deadly"))
        assert scripted.worked_on.count("deadly") == 2
        await trio.sleep(60)
        assert (await scheduler.render(job("deadly"))).data == b"deadly"
        assert scheduler.statistics().quarantined == 0


async def test_innocents_are_not_held_guilty_when_two_killers_strike_in_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted({"x": always("die"), "y": always("die")})
    async with running(scripted) as scheduler:
        outcomes = await render_all(scheduler, ["x", "a", "y", "b", "c"])
        assert scheduler.statistics().quarantined == 2
    lost = RendererLostError
    assert outcomes == {"x": lost, "a": b"a", "y": lost, "b": b"b", "c": b"c"}


async def test_what_nobody_wants_any_more_is_not_tried_again_and_keeps_nothing_waiting(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wanted = {"deadly"}
    scripted = Scripted({"deadly": always("die")})
    async with running(scripted) as scheduler:
        deadly = scheduler.submit(job("deadly"), is_wanted=lambda: "deadly" in wanted)
        await scripted.until_begun("deadly")
        waiting = [scheduler.submit(job(name)) for name in "abcd"]
        wanted.clear()
        assert await outcome_of(scheduler, deadly) is RenderDroppedError
        with trio.fail_after(10):
            assert [await outcome_of(scheduler, order) for order in waiting] == [
                b"a",
                b"b",
                b"c",
                b"d",
            ]
    assert scripted.worked_on.count("deadly") == 1


async def test_readers_do_not_wait_for_the_retry_of_what_was_rendered_ahead(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted({"ahead": always("die")})
    async with running(scripted) as scheduler:
        ahead = scheduler.submit(job("ahead"), priority=PREFETCH)
        await scripted.until_begun("ahead")
        await trio.sleep(1)
        reads = [scheduler.submit(job(name)) for name in "abcde"]
        for order in reads:
            await scheduler.finished(order)
        assert await outcome_of(scheduler, ahead) is RendererLostError
    assert scripted.worked_on == ["ahead", *"abcde", "ahead"]


async def test_restarts_back_off(autojump_clock: trio.testing.MockClock) -> None:
    names = [f"{n}" for n in range(100)]
    scripted = Scripted(dict.fromkeys(names, always("die")))
    async with running(scripted) as scheduler:
        for name in names:
            scheduler.submit(job(name))
        await trio.sleep(120)
    assert 6 <= len(scripted.opened) <= 14


async def test_nonsense_from_a_renderer_is_the_renderers_end_not_ours(
    autojump_clock: trio.testing.MockClock,
) -> None:
    answers: Iterator[Message] = iter([Failed(4711, "unasked"), READY])
    scripted = Scripted({"a": lambda request: next(answers, None)})
    async with running(scripted) as scheduler:
        outcomes = await render_all(scheduler, ["a"])
    assert outcomes == {"a": RendererLostError}
    assert len(scripted.opened) == 2


async def test_what_a_renderer_drops_unasked_ends_as_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted({"a": lambda request: Dropped(request.number)})
    async with running(scripted) as scheduler:
        assert await render_all(scheduler, "ab") == {"a": RenderDroppedError, "b": b"b"}


async def test_a_bug_in_the_connection_does_not_end_the_scheduler(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(request: RenderRequest) -> object:
        raise ZeroDivisionError

    scripted = Scripted({"a": bug})
    async with running(scripted) as scheduler:
        outcomes = await render_all(scheduler, ["a", "b"])
    assert outcomes == {"a": RendererLostError, "b": b"b"}
    assert "failed unexpectedly" in caplog.text


# Hangs


async def test_compiling_is_no_hang_for_ten_minutes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    seconds = {"a": 400.0, "b": 400.0}
    async with running(Scripted(seconds=seconds, compiled="ab")) as scheduler:
        assert await render_all(scheduler, "ab") == {"a": b"a", "b": b"b"}
        assert scheduler.statistics().renderer_restarts_total == 0


async def test_compiling_for_ever_is_a_hang(autojump_clock: trio.testing.MockClock) -> None:
    async with running(Scripted(seconds={"a": math.inf}, compiled="a")) as scheduler:
        start_s = trio.current_time()
        assert await render_all(scheduler, "a") == {"a": RendererLostError}
        assert 2 * 600 < trio.current_time() - start_s < 2 * (600 + TIMEOUT_S + 5)
        assert await render_all(scheduler, "b") == {"b": b"b"}


async def test_a_renderer_that_hangs_is_replaced(autojump_clock: trio.testing.MockClock) -> None:
    scripted = Scripted({"slow": times("hang", 1)})
    async with running(scripted) as scheduler:
        outcomes = await render_all(scheduler, ["slow", "after"])
    assert outcomes == {"slow": b"slow", "after": b"after"}
    assert len(scripted.opened) == 2


@pytest.mark.parametrize(("render_timeout_s", "found_out_s"), [(10, 5), (30, 10), (600, 10)])
async def test_a_silent_renderer_is_found_out_long_before_the_deadline(
    render_timeout_s: float, found_out_s: float, autojump_clock: trio.testing.MockClock
) -> None:
    scripted = Scripted({"silent": always("hang")})
    async with running(scripted, render_timeout_s=render_timeout_s) as scheduler:
        await trio.sleep(1000)  # an idle renderer may be silent
        scheduler.submit(job("silent"))
        await trio.sleep(found_out_s - 0.1)
        assert len(scripted.opened) == 1
        await trio.sleep(0.4)
        assert len(scripted.opened) == 2


async def test_a_renderer_that_says_it_works_may_work_until_the_deadline(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    scripted = Scripted(seconds={"long": TIMEOUT_S - 1, "too long": TIMEOUT_S + 1})
    async with running(scripted) as scheduler:
        outcomes = await render_all(scheduler, ["long", "too long", "other"])
        assert outcomes == {"long": b"long", "too long": RendererLostError, "other": b"other"}
    assert "no picture in 10 s" in caplog.text
    assert len(scripted.opened) == 3


async def test_the_deadline_is_for_one_render_however_many_are_with_the_renderer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    names = ["a", "b", "c", "d"]
    scripted = Scripted(seconds=dict.fromkeys(names, TIMEOUT_S - 1))
    async with running(scripted) as scheduler:
        await render_all(scheduler, names)
    assert len(scripted.opened) == 1


@asynccontextmanager
async def alone_again(
    scripted: Scripted, *, priority: Priority
) -> AsyncIterator[tuple[Scheduler, Order]]:
    """A render that has cost one renderer and is now alone in the next; it may take a minute."""
    async with running(scripted, render_timeout_s=60) as scheduler:
        order = scheduler.submit(job("long"), priority=priority)
        await scripted.until_begun("long")
        scripted.begun.clear()
        await scripted.until_begun("long")
        yield scheduler, order


@pytest.mark.parametrize("priority", [PREFETCH, IMPORT])
@pytest.mark.parametrize("asked_after_s", [0, 20, 29, 31, 55])
async def test_readers_do_not_wait_long_for_what_no_reader_asked_for_and_hangs_again(
    asked_after_s: float, priority: Priority, autojump_clock: trio.testing.MockClock
) -> None:
    scripted = Scripted(seconds={"long": math.inf})
    async with alone_again(scripted, priority=priority) as (scheduler, order):
        await trio.sleep(asked_after_s)
        asked_s = trio.current_time()
        assert await render_all(scheduler, "ab") == {"a": b"a", "b": b"b"}
        # Half of the timeout less what is over, a pause before the restart, and two renders.
        assert trio.current_time() - asked_s < max(0, 30 - asked_after_s) + 5
        assert await outcome_of(scheduler, order) is RendererLostError
        assert scheduler.statistics().quarantined == 1
    assert len(scripted.opened) == 3


@pytest.mark.parametrize("priority", [PREFETCH, IMPORT])
async def test_what_is_done_in_half_the_timeout_is_done_though_readers_wait(
    priority: Priority, autojump_clock: trio.testing.MockClock
) -> None:
    scripted = Scripted({"long": times("hang", 1)}, seconds={"long": 29})
    async with alone_again(scripted, priority=priority) as (scheduler, order):
        assert await render_all(scheduler, "ab") == {"a": b"a", "b": b"b"}
        assert await outcome_of(scheduler, order) == b"long"
    assert len(scripted.opened) == 2


@pytest.mark.parametrize("priority", [FOREGROUND, PREFETCH, IMPORT])
async def test_what_is_alone_has_the_whole_timeout_while_no_reader_waits(
    priority: Priority, autojump_clock: trio.testing.MockClock
) -> None:
    scripted = Scripted({"long": times("hang", 1)}, seconds={"long": 59})
    async with alone_again(scripted, priority=priority) as (scheduler, order):
        others = [scheduler.submit(job(name), priority=IMPORT) for name in "ab"]
        assert await outcome_of(scheduler, order) == b"long"
        assert [await outcome_of(scheduler, other) for other in others] == [b"a", b"b"]
    assert len(scripted.opened) == 2


@pytest.mark.parametrize("joins", [False, True])
async def test_what_a_reader_waits_for_has_the_whole_timeout_though_others_wait(
    joins: bool, autojump_clock: trio.testing.MockClock
) -> None:
    scripted = Scripted({"long": times("hang", 1)}, seconds={"long": 59})
    async with alone_again(scripted, priority=IMPORT if joins else FOREGROUND) as (
        scheduler,
        order,
    ):
        if joins:
            scheduler.join(order, Reader(1, 10))
        assert await render_all(scheduler, "a") == {"a": b"a"}
        assert await outcome_of(scheduler, order) == b"long"
    assert len(scripted.opened) == 2


async def test_what_was_with_the_one_that_hangs_is_made_though_readers_come_all_the_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted(seconds={"long": math.inf})
    async with running(scripted, render_timeout_s=60, background_groups_max=3) as scheduler:
        names = ["a", "long", "b"]
        orders = [scheduler.submit(job(name), priority=IMPORT) for name in names]
        await scripted.until_begun("long")
        slowest_s = 0.0
        await trio.sleep(60)
        for n in range(40):
            asked_s = trio.current_time()
            assert (await scheduler.render(job(f"read {n}"))).data == f"read {n}".encode()
            slowest_s = max(slowest_s, trio.current_time() - asked_s)
            await trio.sleep(2)
        assert all(order.done.is_set() for order in orders)
        outcomes = [await outcome_of(scheduler, order) for order in orders]
    assert outcomes == [b"a", RendererLostError, b"b"]
    assert slowest_s < 35


async def test_readers_whom_another_device_serves_leave_what_is_alone_its_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted({"long": times("hang", 1)}, seconds={"long": 59}, greet=two_gpus)
    async with alone_again(scripted, priority=IMPORT) as (scheduler, order):
        await trio.sleep(40)
        for n in range(30):
            assert (await scheduler.render(job(f"{n}"))).data == f"{n}".encode()
        assert await outcome_of(scheduler, order) == b"long"
    assert len(scripted.opened) == 3


async def test_an_idle_renderer_is_left_alone(autojump_clock: trio.testing.MockClock) -> None:
    scripted = Scripted()
    async with running(scripted) as scheduler:
        await trio.sleep(100 * TIMEOUT_S)
        assert (await scheduler.render(job("late"))).data == b"late"
        await trio.sleep(100 * TIMEOUT_S)
    assert len(scripted.opened) == 1


# Starting


async def test_jobs_fail_when_no_renderer_can_be_started(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def end(device: str) -> Message:
        raise RendererLostError("it ended at once")

    scripted = Scripted(greet=end)
    async with running(scripted) as scheduler:
        for _ in range(2):
            with pytest.raises(NoRendererError, match="no renderer could be started in 3 tries"):
                await scheduler.render(job("any"))
        assert scheduler.statistics().devices == ()
    assert len(scripted.opened) == 4


async def test_a_renderer_that_can_not_start_says_why_and_what_comes_later_is_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    greetings: list[Message] = [CannotStart("no such device"), CannotStart("still none"), READY]
    scripted = Scripted(greet=lambda device: greetings.pop(0))
    async with running(scripted) as scheduler:
        assert scheduler.statistics().problem is None
        assert scheduler.statistics().renderers == "starting"
        orders = [scheduler.submit(job("a")), scheduler.submit(job("b"), priority=IMPORT)]
        for order in orders:
            with pytest.raises(NoRendererError, match="no such device"):
                await scheduler.finished(order)
        assert len(scripted.opened) == 1
        assert scheduler.statistics().problem == "no such device"
        assert scheduler.statistics().renderers == "can't be started: no such device"
        with pytest.raises(NoRendererError, match=r"no such device|still none"):
            await scheduler.render(job("c"))
        assert (await scheduler.render(job("d"))).data == b"d"
        assert scheduler.statistics().problem is None
        assert scheduler.statistics().renderers == "ready on cpu"
        assert scheduler.statistics().renders_failed_total == 3
    assert len(scripted.opened) == 3


async def test_a_renderer_that_does_not_become_ready_is_replaced(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted()
    slow = iter([True, False])

    class SlowToGreet:
        pid = 2

        async def receive(self) -> tuple[Message, bytes | None]:
            await trio.sleep_forever()

    opened = scripted.open_renderer

    @asynccontextmanager
    async def open_renderer(device: str) -> AsyncIterator[object]:
        if next(slow):
            yield SlowToGreet()
        else:
            async with opened(device) as renderer:
                yield renderer

    scheduler = Scheduler(
        device="auto",
        render_timeout_s=TIMEOUT_S,
        background_groups_max=1,
        open_renderer=open_renderer,  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        start_s = trio.current_time()
        nursery.start_soon(scheduler.run)
        assert (await scheduler.render(job("a"))).data == b"a"
        assert 180 < trio.current_time() - start_s < 190
        nursery.cancel_scope.cancel()


# Several devices


def two_gpus(device: str) -> Message:
    first = "cuda:0" if device == "auto" else device
    devices = ("cuda:0", "cuda:1") if device == "auto" else (device,)
    return Ready(torch_version="0", device=first, devices=devices)


async def test_two_devices_share_one_queue(autojump_clock: trio.testing.MockClock) -> None:
    scripted = Scripted(greet=two_gpus)
    names = [f"{n}" for n in range(20)]
    async with running(scripted) as scheduler:
        start_s = trio.current_time()
        outcomes = await render_all(scheduler, names)
        assert trio.current_time() - start_s < 11  # each takes a second
        assert scheduler.statistics().devices == ("cuda:0", "cuda:1")
    assert outcomes == {name: name.encode() for name in names}
    assert scripted.opened == ["auto", "cuda:1"]
    assert Counter(scripted.worked_on) == Counter(names)
    assert all(len(begun) == 10 for begun in scripted.begun_on.values())


async def test_a_lost_device_does_not_stop_the_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    broken = False

    def greet(device: str) -> Message:
        return CannotStart("it fell off the bus") if broken else two_gpus(device)

    scripted = Scripted({"deadly": times("die", 1)}, greet=greet, start_s=3)
    async with running(scripted) as scheduler:
        await render_all(scheduler, "abcdef")
        broken = True
        names = ["deadly", *map(str, range(20))]
        outcomes = await render_all(scheduler, names)
        assert outcomes == {name: name.encode() for name in names}
        assert len(scheduler.statistics().devices) == 1
        assert scheduler.statistics().renderers.endswith(
            "; another can't be started: it fell off the bus"
        )
        await trio.sleep(600)
        assert (await scheduler.render(job("last"))).data == b"last"
        # It backs off although the other one renders.
        opened = len(scripted.opened)
        for n in range(120):
            await scheduler.render(job(f"{n}"))
        assert len(scripted.opened) - opened <= 5
        broken = False
        await trio.sleep(60)
        assert scheduler.statistics().devices == ("cuda:0", "cuda:1")
    assert set(scripted.opened) == {"auto", "cuda:1"}


async def test_with_two_devices_queued_jobs_fail_when_neither_starts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    broken = False

    def greet(device: str) -> Message:
        return CannotStart(f"{device} is gone") if broken else two_gpus(device)

    scripted = Scripted({name: always("die") for name in "xy"}, greet=greet)
    async with running(scripted) as scheduler:
        await render_all(scheduler, "ab")
        broken = True
        # Either may be lost twice before both devices are gone: which has which is left to chance.
        ended = await render_all(scheduler, "xy")
        assert set(ended.values()) <= {RendererLostError, NoRendererError}
        assert await render_all(scheduler, "z") == {"z": NoRendererError}


# Statistics


async def test_statistics_count_what_waits_where(autojump_clock: trio.testing.MockClock) -> None:
    widened = msgspec.structs.replace(RECIPE, widened_from="float16")
    script: Mapping[str, Behaviour] = {
        "wide": always(Answer(recipe=widened)),
        "small batch": always(Answer(recipe=RECIPE)),
    }
    scripted = Scripted(script)
    async with running(scripted) as scheduler:
        assert scheduler.statistics().devices == ()
        for n in range(5):
            scheduler.submit(job(f"{n}"))
        scheduler.submit(job("ahead"), priority=PREFETCH)
        scheduler.submit(job("imported"), priority=IMPORT)
        await scripted.until_begun("0")
        statistics = scheduler.statistics()
        assert statistics.devices == ("cpu",)
        assert statistics.in_flight == 3
        assert (statistics.queued, statistics.queued_background) == (2, 2)
        await render_all(scheduler, ["wide", "small batch"])
        await scheduler.render(job("wide", recipe=widened))  # as it was asked for
        assert scheduler.statistics().renders_widened_total == 1


async def test_a_rendition_tells_how_long_each_stage_took(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running(Scripted()) as scheduler:
        rendition = await scheduler.render(job("a"))
    stages = ["queue", "send", "wait", "load", "decode", "transfer"]
    assert list(rendition.stages_s) == stages
    assert rendition.stages_s["decode"] == 1
    assert all(seconds >= 0 for seconds in rendition.stages_s.values())


async def test_an_order_without_a_reader_is_nobodys(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running(Scripted()) as scheduler:
        assert scheduler.submit(job("a")).readers == [NOBODY]
