"""What a read learns of the way it went, and a lane of what it sent, under a clock that jumps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import trio
import trio.testing
from fetches import fetch_at_once
from scripted_renderer import Behaviour, Scripted
from store_contents import RECIPE, add_picture, picture_latent

from latentfs.cache.tiered_cache import TieredCache
from latentfs.errors import RenderFailedError, RenderTimeoutError
from latentfs.fs.renditions import PictureCache, Renditions, open_renditions
from latentfs.latents.recipe import Recipe
from latentfs.render.job_queue import Priority, Reader
from latentfs.render.protocol import Failed, RenderRequest
from latentfs.render.scheduler import Scheduler
from latentfs.store.records import Inode
from latentfs.store.store import Store
from latentfs.store.tables import ROOT_INO
from latentfs.telemetry.activity import ReadTrail, Tier

SIZE_BYTES = 1000
READER = Reader(1, 1)
OTHER = Reader(2, 2)


class Picture(NamedTuple):
    ino: int
    inode: Inode


class World(NamedTuple):
    """Renditions on a real scheduler whose renderers follow a script."""

    renditions: Renditions
    scheduler: Scheduler
    scripted: Scripted

    async def read(self, picture: Picture, reader: Reader = READER) -> ReadTrail:
        """Read the picture; a failure is not raised."""
        trail = ReadTrail()
        with suppress(RenderFailedError, RenderTimeoutError):
            await self.renditions.get(*picture, reader, trail)
        return trail


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "art.lfs") as store:
        yield store


def add(store: Store, name: str, *, recipe: Recipe = RECIPE) -> Picture:
    with store.write() as transaction:
        ino = add_picture(
            transaction,
            ROOT_INO,
            name.encode(),
            picture_latent(len(name)),
            size_bytes=SIZE_BYTES,
            recipe=recipe,
            chunks=(name.encode(),),
        )
    with store.read() as snapshot:
        inode = snapshot.inode(ino)
    assert inode is not None
    return Picture(ino, inode)


@asynccontextmanager
async def opened(
    store: Store,
    script: Mapping[str, Behaviour] | None = None,
    *,
    seconds: Mapping[str, float] | None = None,
    fetch_s: float = 0.0,
    start_s: float = 0.0,
) -> AsyncIterator[World]:
    scripted = Scripted(
        script, seconds=seconds, start_s=start_s, data=lambda name: SIZE_BYTES * b"x"
    )
    scheduler = Scheduler(
        device="auto",
        render_timeout_s=1000,
        background_groups_max=1,
        open_renderer=scripted.open_renderer,
    )
    cache: PictureCache = TieredCache(budget_bytes=1 << 20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        async with open_renditions(
            fetch_at_once(store, delay_s=fetch_s), scheduler, cache, render_timeout_s=10.0
        ) as renditions:
            yield World(renditions, scheduler, scripted)
        nursery.cancel_scope.cancel()


async def test_a_read_learns_what_answered_it(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    picture = add(store, "picture")
    async with opened(store) as world:
        first = await world.read(picture)
        second = await world.read(picture)
    assert (first.tier, first.joined, first.unfinished) == (Tier.MISS, "", "")
    assert list(first.stages_s) == [
        "parked",
        "fetch",
        "queue",
        "send",
        "wait",
        "load",
        "decode",
        "transfer",
    ]
    assert (second.tier, second.stages_s) == (Tier.PIXELS, {})


@pytest.mark.parametrize("begun_by", ["read", "prefetch"])
async def test_a_read_that_joins_a_render_learns_who_had_begun_it(
    store: Store, begun_by: str, autojump_clock: trio.testing.MockClock
) -> None:
    picture = add(store, "picture")
    trails: list[ReadTrail] = []

    async def join() -> None:
        trails.append(await world.read(picture, OTHER))

    async with opened(store) as world, trio.open_nursery() as nursery:
        if begun_by == "prefetch":
            world.renditions.prefetch(*picture, lambda: True)
        else:
            nursery.start_soon(world.read, picture)
        await world.scripted.until_begun("picture")
        nursery.start_soon(join)
        nursery.start_soon(join)
    assert [(trail.tier, trail.joined) for trail in trails] == 2 * [(Tier.SHARED, begun_by)]
    assert "decode" in trails[0].stages_s


@pytest.mark.parametrize(
    ("where", "fetch_s", "start_s", "render_s"),
    [("fetch", 60.0, 0.0, 1.0), ("queue", 0.0, 60.0, 1.0), ("renderer", 0.0, 0.0, 60.0)],
)
async def test_a_read_that_ends_at_its_deadline_learns_where_the_render_was(
    store: Store,
    where: str,
    fetch_s: float,
    start_s: float,
    render_s: float,
    autojump_clock: trio.testing.MockClock,
) -> None:
    picture = add(store, "picture")
    async with opened(
        store, seconds={"picture": render_s}, fetch_s=fetch_s, start_s=start_s
    ) as world:
        trail = await world.read(picture)
    assert (trail.tier, trail.unfinished) == (Tier.MISS, where)
    assert list(trail.stages_s) == (["parked"] if where == "fetch" else ["parked", "fetch"])


async def test_a_read_whose_turn_has_not_come_is_parked(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    pictures = [add(store, f"{number}") for number in range(65)]
    async with opened(store, start_s=60.0) as world, trio.open_nursery() as nursery:
        for picture in pictures[:64]:
            nursery.start_soon(world.read, picture)
        await trio.testing.wait_all_tasks_blocked()
        trail = await world.read(pictures[64])
    assert (trail.unfinished, trail.stages_s) == ("parked", {})


async def test_a_read_that_failed_has_ended(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    picture = add(store, "picture")

    def fail(request: RenderRequest) -> Failed:
        return Failed(request.number, "no")

    async with opened(store, {"picture": fail}) as world:
        trail = await world.read(picture)
    assert (trail.tier, trail.unfinished) == (Tier.MISS, "")
    assert list(trail.stages_s) == ["parked", "fetch"]


async def test_renders_are_timed_by_recipe_and_stage(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    picture = add(store, "picture")
    async with opened(store) as world:
        await world.read(picture)
        await world.read(picture)
        times = world.renditions.times
    name = RECIPE.id.hex()[:12]
    assert times.recipes == {name: RECIPE}
    assert {recipe: work.count for recipe, work in times.work_seconds().items()} == {name: 1}
    assert times.work_seconds()[name].total == pytest.approx(1.0)  # its waiting stages left out
    assert times.stage_seconds()["wait"].total == pytest.approx(5.0)


async def test_batches_and_waits_are_counted_as_they_are_sent(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    recipe = msgspec.structs.replace(RECIPE, batch=4)
    pictures = [add(store, str(number), recipe=recipe) for number in range(6)]
    async with opened(store, start_s=2.0) as world:
        world.renditions.prefetch(*pictures[5], lambda: True)
        async with trio.open_nursery() as nursery:
            for picture in pictures[:5]:
                nursery.start_soon(world.read, picture)
        statistics = world.scheduler.statistics()
    assert statistics.batch_sizes.total == 6
    assert statistics.batch_sizes.count == 2
    waits = statistics.queue_waits_s
    assert (waits[Priority.FOREGROUND].count, waits[Priority.PREFETCH].count) == (5, 1)
    assert waits[Priority.IMPORT].count == 0


async def test_an_order_whose_renderer_was_lost_counts_its_wait_once(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    picture = add(store, "picture")
    answers = iter(["die"])
    async with opened(store, {"picture": lambda request: next(answers, None)}) as world:
        await world.read(picture)
        statistics = world.scheduler.statistics()
    assert statistics.renderer_restarts_total == 1
    assert statistics.queue_waits_s[Priority.FOREGROUND].count == 1
    assert statistics.batch_sizes.count == 2
