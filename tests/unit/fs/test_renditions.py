"""Sharing, deadlines and cancellation of reads, under a clock that jumps."""

from __future__ import annotations

import contextlib
import hashlib
import math
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from fetches import fetch_at_once
from latent_files import latent_array
from scripted_renderer import RECIPE

from latentfs.cache.tiered_cache import TieredCache
from latentfs.errors import (
    RenderDroppedError,
    RenderError,
    RenderFailedError,
    RenderTimeoutError,
)
from latentfs.fs.renditions import PictureCache, Renditions, open_renditions
from latentfs.images.framing import Framing
from latentfs.latents import payload as payload_codec
from latentfs.latents.latent import Latent
from latentfs.latents.recipe import Recipe
from latentfs.render.job_queue import Order, Priority, Reader, RenderJob, Rendition
from latentfs.render.protocol import Rendered
from latentfs.store.records import Inode, LatentContent, Source, VaeRecord
from latentfs.store.store import Store

TIMEOUT_S = 10.0
DATA = b"a finished file"
READER = Reader(1000, 1)
OTHER = Reader(1000, 2)


class SlowScheduler:
    """Renders everything to the same bytes, *seconds* after it was submitted, and counts."""

    def __init__(
        self,
        *,
        seconds: float = 1.0,
        outcome: bytes | RenderError = DATA,
        recipe: Recipe | None = None,
    ) -> None:
        self.seconds = seconds
        self.outcome = outcome
        self.recipe = recipe
        self.orders: list[Order] = []
        self.given_up: list[Order] = []
        self.joined: list[tuple[Order, Reader]] = []

    @property
    def renders(self) -> int:
        return len(self.orders)

    def submit(
        self,
        job: RenderJob,
        *,
        priority: Priority,
        reader: Reader,
        is_wanted: Callable[[], bool],
        parked_s: float,
    ) -> Order:
        order = Order(job, priority, is_wanted, [reader], 0.0, parked_s=parked_s)
        self.orders.append(order)
        return order

    async def finished(self, order: Order) -> Rendition:
        with trio.move_on_after(self.seconds):
            await order.done.wait()
            raise RenderDroppedError("nobody waits for it any more")
        if isinstance(self.outcome, RenderError):
            raise self.outcome
        report = Rendered(
            number=1,
            width=8,
            height=8,
            size_bytes=len(self.outcome),
            sha256=hashlib.sha256(self.outcome).digest(),
            encode_retries=0,
            psnr_db=None,
            stages_s={"decode": 1.0},
            recipe=self.recipe,
        )
        return Rendition(report, self.outcome, {"queue": 0.5, "decode": 1.0})

    def join(self, order: Order, reader: Reader) -> None:
        self.joined.append((order, reader))

    def give_up(self, order: Order) -> None:
        self.given_up.append(order)
        order.done.set()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "art.lfs") as store:
        yield store


@pytest.fixture
def inode(store: Store) -> Inode:
    """A picture of DATA's size and hash, with all that its job needs."""
    latent = Latent.from_bytes(latent_array(4, 1, 1).tobytes(), dtype="float32", shape=(4, 1, 1))
    vae = VaeRecord("id", "AutoencoderTiny", "float32", 4, 8, 1.0, 0.0, True, None, 1, (), "")
    with store.write() as transaction:
        transaction.put_vae("tiny", vae)
        content = LatentContent(
            payload=transaction.add_payload(latent.digest(), payload_codec.encode(latent)),
            recipe=transaction.put_recipe(RECIPE),
            framing=Framing.png(),
            chunks=(),
            rendition_sha256=hashlib.sha256(DATA).digest(),
            width=8,
            height=8,
            source=Source("a.latent", "comfyui", 0, None),
        )
        inode = Inode(stat.S_IFREG | 0o644, 0, 0, 1, len(DATA), 0, 0, content)
        transaction.add_file(1, b"a.png", inode)
    return inode


@asynccontextmanager
async def opened(
    store: Store,
    scheduler: SlowScheduler,
    *,
    cache_bytes: int = 1 << 20,
    cache: PictureCache | None = None,
) -> AsyncIterator[Renditions]:
    cache = TieredCache(budget_bytes=cache_bytes) if cache is None else cache
    async with open_renditions(
        fetch_at_once(store),
        scheduler,  # type: ignore[arg-type]
        cache,
        render_timeout_s=TIMEOUT_S,
    ) as renditions:
        yield renditions


async def test_many_readers_share_one_render(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    scheduler = SlowScheduler()
    results: list[bytes] = []

    async def read() -> None:
        results.append(await renditions.get(2, inode, READER))

    cache: PictureCache = TieredCache(budget_bytes=1 << 20)
    async with opened(store, scheduler, cache=cache) as renditions:
        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(read)
        assert await renditions.get(2, inode, READER) == DATA
        counted = cache.statistics()
        assert (counted.misses, counted.latent_hits, counted.pixel_hits) == (1, 0, 1)
        assert renditions.statistics().shared_total == 63
    assert results == [DATA] * 64
    assert scheduler.renders == 1


async def test_a_read_ends_at_its_deadline_and_gives_its_render_up(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    scheduler = SlowScheduler(seconds=TIMEOUT_S + 5)
    async with opened(store, scheduler) as renditions:
        start_s = trio.current_time()
        with pytest.raises(RenderTimeoutError, match="10 s"):
            await renditions.get(2, inode, READER)
        assert trio.current_time() - start_s == pytest.approx(TIMEOUT_S)
        statistics = renditions.statistics()
        assert (statistics.timeouts_total, statistics.given_up_total) == (1, 1)
    assert scheduler.given_up == scheduler.orders


async def test_a_reader_that_goes_away_leaves_the_render_to_others(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    scheduler = SlowScheduler(seconds=3)
    async with opened(store, scheduler) as renditions, trio.open_nursery() as nursery:

        async def give_up_early() -> None:
            with trio.move_on_after(1):
                await renditions.get(2, inode, READER)

        nursery.start_soon(give_up_early)
        assert await renditions.get(2, inode, OTHER) == DATA
    assert scheduler.renders == 1
    assert not scheduler.given_up
    assert [reader for _, reader in scheduler.joined] in ([OTHER], [READER], [])


async def test_the_last_reader_that_goes_away_takes_the_render_along(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    scheduler = SlowScheduler(seconds=3)
    async with opened(store, scheduler) as renditions:
        with trio.move_on_after(1):
            await renditions.get(2, inode, READER)
        assert scheduler.given_up == scheduler.orders
        assert await renditions.get(2, inode, READER) == DATA
    assert scheduler.renders == 2


async def test_a_further_reader_joins_what_is_queued(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    scheduler = SlowScheduler(seconds=3)
    async with opened(store, scheduler) as renditions, trio.open_nursery() as nursery:
        nursery.start_soon(renditions.get, 2, inode, READER)
        await trio.sleep(1)
        assert await renditions.get(2, inode, OTHER) == DATA
    assert scheduler.joined == [(scheduler.orders[0], OTHER)]


async def test_a_render_ahead_is_of_low_priority_and_a_read_joins_it(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    scheduler = SlowScheduler(seconds=3)
    async with opened(store, scheduler) as renditions:
        renditions.prefetch(2, inode, lambda: True)
        renditions.prefetch(2, inode, lambda: True)
        await trio.sleep(1)
        assert await renditions.get(2, inode, READER) == DATA
        renditions.prefetch(2, inode, lambda: True)
        await trio.sleep(5)
        assert renditions.statistics().prefetched_total == 1
    assert [order.priority for order in scheduler.orders] == [Priority.PREFETCH]
    assert [reader for _, reader in scheduler.joined] == [READER]


async def test_a_render_ahead_that_nobody_expects_any_more_is_not_wanted(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    ahead = True
    scheduler = SlowScheduler(seconds=3)
    async with opened(store, scheduler) as renditions:
        renditions.prefetch(2, inode, lambda: ahead)
        await trio.sleep(1)
        (order,) = scheduler.orders
        assert order.is_wanted()
        ahead = False
        assert not order.is_wanted()


async def test_a_process_group_has_only_so_many_renders_queued_and_others_are_not_held_up(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    scheduler = SlowScheduler(seconds=3)
    many = [msgspec.structs.replace(inode, size_bytes=1000 + n) for n in range(100)]

    async def read(one: Inode, reader: Reader) -> None:
        with contextlib.suppress(RenderFailedError):  # the bytes are not of that length
            await renditions.get(2, one, reader)

    async with opened(store, scheduler) as renditions:
        async with trio.open_nursery() as nursery:
            for one in many:
                nursery.start_soon(read, one, READER)
            await trio.sleep(1)
            assert scheduler.renders == 64
            assert renditions.statistics().parked == 36
            nursery.start_soon(read, inode, OTHER)
            await trio.sleep(0.5)
            assert scheduler.renders == 65
            parked = next(
                one
                for one in many
                if one.size_bytes not in {o.job.request.size_bytes for o in scheduler.orders}
            )
            nursery.start_soon(read, parked, OTHER)
            await trio.sleep(0.5)
            assert scheduler.orders[-1].job.request.size_bytes == parked.size_bytes
            assert scheduler.orders[-1].readers == [OTHER]
            assert scheduler.orders[-1].parked_s == pytest.approx(1.5)
        assert scheduler.renders == 101
        assert renditions.statistics().in_flight == 0


async def test_bytes_that_depend_on_how_much_memory_there_is_are_refused(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    other = DATA.replace(b"a", b"b")
    smaller = SlowScheduler(outcome=other, recipe=RECIPE)
    async with opened(store, smaller) as renditions:
        with pytest.raises(RenderFailedError, match="lack of memory"):
            await renditions.get(2, inode, READER)
    same = SlowScheduler(recipe=RECIPE)
    async with opened(store, same) as renditions:
        assert await renditions.get(2, inode, READER) == DATA
    widened = msgspec.structs.replace(RECIPE, widened_from="bfloat16")
    async with opened(store, SlowScheduler(outcome=other, recipe=widened)) as renditions:
        assert await renditions.get(2, inode, READER) == other
        assert renditions.statistics().hash_mismatches_total == 1


async def test_finished_renders_are_told_by_stage(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(store, SlowScheduler(seconds=3)) as renditions:
        await renditions.get(2, inode, READER)
        (flown,) = renditions.flown()
    assert list(flown.stages_s) == ["parked", "fetch", "queue", "decode"]
    assert flown.ino == 2
    assert flown.total_s == pytest.approx(3)


async def test_a_failure_goes_to_all_who_wait_and_is_tried_again_later(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    scheduler = SlowScheduler(outcome=RenderFailedError("no"))
    async with opened(store, scheduler) as renditions:
        for _ in range(2):
            with pytest.raises(RenderFailedError):
                await renditions.get(2, inode, READER)
    assert scheduler.renders == 2


async def test_a_render_of_the_wrong_length_is_an_error_never_a_file(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(store, SlowScheduler(outcome=DATA + b"!")) as renditions:
        with pytest.raises(RenderFailedError, match="16 bytes, not to its size of 15"):
            await renditions.get(2, inode, READER)


async def test_other_bytes_of_the_right_length_are_counted(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    other = DATA.replace(b"a", b"b")
    async with opened(store, SlowScheduler(outcome=other)) as renditions:
        assert await renditions.get(2, inode, READER) == other
        assert renditions.statistics().hash_mismatches_total == 1


async def test_what_the_cache_does_not_keep_is_rendered_again(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    scheduler = SlowScheduler()
    async with opened(store, scheduler, cache_bytes=0) as renditions:
        for _ in range(3):
            assert await renditions.get(2, inode, READER) == DATA
    assert scheduler.renders == 3


async def test_abort_answers_those_who_wait_and_nothing_else(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(store, SlowScheduler(seconds=5)) as renditions:
        async with trio.open_nursery() as nursery:

            async def abort_soon() -> None:
                await trio.sleep(1)
                renditions.abort()

            nursery.start_soon(abort_soon)
            with pytest.raises(RenderError, match="being unmounted"):
                await renditions.get(2, inode, READER)
        with pytest.raises(RenderError, match="being unmounted"):
            await renditions.get(2, inode, READER)
        await trio.sleep(1)  # the block itself is not cancelled
        assert trio.current_effective_deadline() == math.inf


async def test_at_the_end_readers_get_what_a_renderer_has_already_and_nothing_else_is_begun(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    scheduler = SlowScheduler(seconds=2)
    queued, ahead, new = (msgspec.structs.replace(inode, size_bytes=size) for size in (71, 72, 73))
    ended: dict[str, tuple[object, float]] = {}

    async def read(name: str, one: Inode) -> None:
        outcome: object
        try:
            outcome = await renditions.get(2, one, READER)
        except RenderError as error:
            outcome = str(error)
        ended[name] = outcome, trio.current_time() - start_s

    async def end() -> None:
        assert await renditions.drain(3.0) == 1
        await trio.sleep(0.5)
        renditions.abort()

    async with opened(store, scheduler) as renditions, trio.open_nursery() as nursery:
        start_s = trio.current_time()
        nursery.start_soon(read, "sent", inode)
        nursery.start_soon(read, "queued", queued)
        renditions.prefetch(2, ahead, lambda: True)
        await trio.sleep(1)
        for order in scheduler.orders:
            order.sent_s = None if order.job.request.size_bytes == 71 else 0.5
        nursery.start_soon(end)
        await trio.sleep(0.5)
        nursery.start_soon(read, "new", new)
        nursery.start_soon(read, "joins", inode)
        renditions.prefetch(2, new, lambda: True)
        await trio.sleep(0.6)
        await read("cached", inode)
    refused = "the file system is being unmounted"
    assert {name: (outcome, round(end_s, 1)) for name, (outcome, end_s) in ended.items()} == {
        "sent": (DATA, 2.0),
        "queued": (refused, 1.0),
        "new": (refused, 2.5),
        "joins": (DATA, 2.0),
        "cached": (DATA, 2.1),
    }
    assert scheduler.renders == 3


@pytest.mark.parametrize(("seconds", "ends_after_s"), [(1.0, 1.0), (9.0, 2.0)])
async def test_the_end_waits_for_renders_only_so_long(
    store: Store,
    inode: Inode,
    autojump_clock: trio.testing.MockClock,
    seconds: float,
    ends_after_s: float,
) -> None:
    scheduler = SlowScheduler(seconds=seconds)
    async with opened(store, scheduler) as renditions, trio.open_nursery() as nursery:

        async def read() -> None:
            with contextlib.suppress(RenderError):
                await renditions.get(2, inode, READER)

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        scheduler.orders[0].sent_s = 0.0
        start_s = trio.current_time()
        assert await renditions.drain(2.0) == (seconds < 2)
        assert trio.current_time() - start_s == pytest.approx(ends_after_s, abs=0.1)
        renditions.abort()


async def test_a_reader_that_joins_a_flight_as_it_is_dropped_starts_another(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    class DropsTheFirst(SlowScheduler):
        async def finished(self, order: Order) -> Rendition:
            rendition = await super().finished(order)
            if self.renders == 1:
                raise RenderDroppedError("nobody waits for it any more")
            return rendition

    scheduler = DropsTheFirst()
    async with opened(store, scheduler) as renditions:
        assert await renditions.get(2, inode, READER) == DATA
    assert scheduler.renders == 2
