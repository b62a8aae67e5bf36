"""Sharing, deadlines, turns and cancellation of reads, under a clock that jumps."""

from __future__ import annotations

import hashlib
import math
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import trio
import trio.testing
from fetches import fetch_at_once
from latent_files import latent_array
from scripted_renderer import RECIPE, Answer, Behaviour, Scripted

from latentfs.cache.tiered_cache import TieredCache
from latentfs.errors import RendererLostError, RenderError, RenderFailedError, RenderTimeoutError
from latentfs.fs.fetching import Fetch
from latentfs.fs.renditions import PictureCache, Renditions, open_renditions
from latentfs.images.framing import Framing
from latentfs.latents import payload as payload_codec
from latentfs.latents.latent import Latent
from latentfs.latents.recipe import Recipe
from latentfs.render.job_queue import Reader, RenderJob
from latentfs.render.protocol import Failed, RenderRequest
from latentfs.render.scheduler import Scheduler
from latentfs.store.records import Inode, LatentContent, Source, VaeRecord
from latentfs.store.store import Store
from latentfs.store.transaction import pack_blob

TIMEOUT_S = 10.0
QUEUED_MAX = 64
DATA = b"a finished file"
ROOT_INO = 1
HOG, OTHER = Reader(1, 10), Reader(1, 11)
BATCHED = msgspec.structs.replace(RECIPE, batch=4)
WIDENED = msgspec.structs.replace(BATCHED, widened_from="float16")


class Picture(NamedTuple):
    ino: int
    inode: Inode


def add_picture(store: Store, name: str, *, recipe: Recipe = RECIPE) -> Picture:
    """Add a picture of DATA's size and hash, whose metadata chunk is *name*."""
    latent = Latent.from_bytes(latent_array(4, 1, 1).tobytes(), dtype="float32", shape=(4, 1, 1))
    with store.write() as transaction:
        content = LatentContent(
            payload=transaction.add_payload(latent.digest(), payload_codec.encode(latent)),
            recipe=transaction.put_recipe(recipe),
            framing=Framing.png(),
            chunks=(transaction.add_blob(pack_blob(name.encode())),),
            rendition_sha256=hashlib.sha256(DATA).digest(),
            width=8,
            height=8,
            source=Source("a.latent", "comfyui", 0, None),
        )
        inode = Inode(stat.S_IFREG | 0o644, 0, 0, 1, len(DATA), 0, 0, content)
        return Picture(transaction.add_file(ROOT_INO, name.encode(), inode), inode)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    vae = VaeRecord("id", "AutoencoderTiny", "float32", 4, 8, 1.0, 0.0, True, None, 1, (), "")
    with Store.create(tmp_path / "art.lfs") as store:
        with store.write() as transaction:
            transaction.put_vae("tiny", vae)
        yield store


@pytest.fixture
def picture(store: Store) -> Picture:
    return add_picture(store, "picture")


class World:
    """Renditions on a real scheduler whose renderers follow a script."""

    def __init__(self, renditions: Renditions, scheduler: Scheduler, scripted: Scripted) -> None:
        self.renditions = renditions
        self.scheduler = scheduler
        self.scripted = scripted

    async def read(self, picture: Picture, reader: Reader = HOG) -> bytes:
        return await self.renditions.get(*picture, reader)


def rendering_data(
    script: dict[str, object] | None = None, *, seconds: dict[str, float] | None = None
) -> Scripted:
    """Renderers that render everything to DATA, but for what is in *script*."""
    behaviours = {name: _always(answer) for name, answer in (script or {}).items()}
    return Scripted(behaviours, seconds=seconds, data=lambda name: DATA)


def _always(answer: object) -> Behaviour:
    def behave(request: RenderRequest) -> object:
        return Failed(request.number, "no") if answer == "fail" else answer

    return behave


@asynccontextmanager
async def opened(
    store: Store,
    scripted: Scripted | None = None,
    *,
    cache_bytes: int = 1 << 20,
    cache: PictureCache | None = None,
    fetch: Fetch | None = None,
) -> AsyncIterator[World]:
    scripted = scripted or rendering_data()
    scheduler = Scheduler(
        device="auto",
        render_timeout_s=1000,
        background_groups_max=1,
        open_renderer=scripted.open_renderer,
    )
    cache = cache or TieredCache(budget_bytes=cache_bytes)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        async with open_renditions(
            fetch or fetch_at_once(store), scheduler, cache, render_timeout_s=TIMEOUT_S
        ) as renditions:
            yield World(renditions, scheduler, scripted)
        nursery.cancel_scope.cancel()


async def park(
    world: World, pictures: list[Picture], nursery: trio.Nursery, reader: Reader = HOG
) -> None:
    """Have *pictures* asked for one after the other; those after the 64th are parked."""
    for picture in pictures:
        nursery.start_soon(world.read, picture, reader)
        await trio.testing.wait_all_tasks_blocked()


# One render for all


async def test_many_readers_share_one_render(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    results: list[bytes] = []

    async with opened(store) as world:

        async def read(reader: Reader) -> None:
            results.append(await world.read(picture, reader))

        async with trio.open_nursery() as nursery:
            for n in range(64):
                nursery.start_soon(read, Reader(n % 3, n % 5))
        assert await world.read(picture) == DATA
        assert world.renditions.statistics().shared_total == 63
        assert world.renditions.statistics().in_flight == 0
    assert results == [DATA] * 64
    assert world.scripted.worked_on == ["picture"]


async def test_what_the_cache_does_not_keep_is_rendered_again(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(store, cache_bytes=0) as world:
        for _ in range(3):
            assert await world.read(picture) == DATA
    assert len(world.scripted.begun) == 3


async def test_flown_tells_the_stages_of_finished_renders(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    good, bad = add_picture(store, "good"), add_picture(store, "bad")
    async with opened(store, rendering_data({"bad": "fail"})) as world:
        assert world.renditions.flown() == []
        await world.read(good)
        await world.read(good)
        with pytest.raises(RenderFailedError):
            await world.read(bad)
        (flown,) = world.renditions.flown()
    assert flown.ino == good.ino
    assert list(flown.stages_s) == [
        "parked",
        "fetch",
        "queue",
        "send",
        "wait",
        "load",
        "decode",
        "transfer",
    ]
    assert flown.total_s == pytest.approx(1)


async def test_flown_keeps_the_last_1024(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    other = add_picture(store, "other")
    async with opened(store, cache_bytes=0) as world:
        await world.read(other)
        for _ in range(1024):
            await world.read(picture)
        assert [flown.ino for flown in world.renditions.flown()] == [picture.ino] * 1024


# Deadlines and cancellation


async def test_a_read_ends_at_its_deadline_and_the_render_goes_on(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    scripted = rendering_data(seconds={"picture": TIMEOUT_S + 5})
    async with opened(store, scripted) as world:
        start_s = trio.current_time()
        with pytest.raises(RenderTimeoutError, match="10 s"):
            await world.read(picture)
        assert trio.current_time() - start_s == pytest.approx(TIMEOUT_S)
        assert world.renditions.statistics().timeouts_total == 1
        assert await world.read(picture) == DATA
    assert scripted.worked_on == ["picture"]


async def test_a_cancelled_reader_leaves_the_render_to_others(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    scripted = rendering_data(seconds={"picture": 3})
    async with opened(store, scripted) as world:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.read, picture, OTHER)
            with trio.move_on_after(1):
                await world.read(picture)
        assert world.renditions.statistics().given_up_total == 0
        assert await world.read(picture) == DATA
    assert scripted.worked_on == ["picture"]
    assert scripted.cancelled == []


async def test_a_render_that_is_being_decoded_goes_on_for_whoever_asks_next(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    scripted = rendering_data(seconds={"picture": 3})
    async with opened(store, scripted) as world:
        with trio.move_on_after(1):
            await world.read(picture)
        assert world.renditions.statistics().given_up_total == 1
        await trio.sleep(5)
        with trio.fail_after(0.5):  # it is in the cache
            assert await world.read(picture) == DATA
    assert scripted.worked_on == ["picture"]


async def test_a_render_is_given_up_when_its_last_reader_has_gone(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    pictures = [add_picture(store, f"{n}") for n in range(6)]
    scripted = rendering_data(seconds={"0": 5})
    async with opened(store, scripted) as world:
        async with trio.open_nursery() as stays:
            await park(world, pictures[:1], stays)
            async with trio.open_nursery() as gone:
                await park(world, pictures[1:], gone)
                stays.start_soon(world.read, pictures[5], OTHER)
                await trio.testing.wait_all_tasks_blocked()
                gone.cancel_scope.cancel()
        statistics = world.renditions.statistics()
        assert (statistics.in_flight, statistics.given_up_total) == (0, 4)
        assert world.scheduler.statistics().queued == 0
        await trio.sleep(10)
    assert scripted.worked_on == ["0", "5"]
    assert set(scripted.cancelled) <= {"1", "2"}  # the renderer had no others


async def test_a_reader_that_joins_a_flight_as_it_is_dropped_starts_another(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    first, second = add_picture(store, "first"), add_picture(store, "second")
    scripted = rendering_data(seconds={"first": 3})
    async with opened(store, scripted) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.read, first)
        await scripted.until_begun("first")
        with trio.move_on_after(1):
            await world.read(second)
        assert world.renditions.statistics().given_up_total == 1
        assert world.renditions.statistics().in_flight == 2
        assert await world.read(second) == DATA
    assert scripted.worked_on == ["first", "second"]
    assert scripted.cancelled == ["second"]


async def test_abort_answers_those_who_wait_and_nothing_else(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    names = [f"{n}" for n in range(QUEUED_MAX + 2)]
    pictures = [add_picture(store, name) for name in names]
    failed = 0

    async with opened(store, rendering_data(seconds=dict.fromkeys(names, 5))) as world:

        async def read(picture: Picture) -> None:
            nonlocal failed
            with pytest.raises(RenderError, match="being unmounted"):
                await world.read(picture)
            failed += 1

        async with trio.open_nursery() as nursery:
            for picture in pictures:
                nursery.start_soon(read, picture)
            await trio.sleep(1)
            world.renditions.abort()
        assert failed == len(pictures)
        with pytest.raises(RenderError, match="being unmounted"):
            await world.read(pictures[0])
        world.renditions.prefetch(*pictures[0], lambda: True)
        assert world.renditions.statistics().in_flight == 0
        await trio.sleep(1)  # the block itself is not cancelled
        assert trio.current_effective_deadline() == math.inf


# Turns


async def test_a_group_has_64_renders_queued_and_the_others_parked_in_order(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    names = [f"{n}" for n in range(QUEUED_MAX + 30)]
    pictures = [add_picture(store, name) for name in names]
    async with opened(store, rendering_data(seconds=dict.fromkeys(names, 0.05))) as world:
        most = 0

        async def read(picture: Picture) -> None:
            nonlocal most
            assert await world.read(picture) == DATA
            statistics = world.scheduler.statistics()
            most = max(most, statistics.queued + statistics.in_flight)

        async with trio.open_nursery() as nursery:
            for picture in pictures:
                nursery.start_soon(read, picture)
                await trio.testing.wait_all_tasks_blocked()
            statistics = world.scheduler.statistics()
            assert statistics.queued + statistics.in_flight == QUEUED_MAX
            assert world.renditions.statistics().in_flight == len(pictures)
        assert most <= QUEUED_MAX
        assert world.renditions.statistics().in_flight == 0
        # Nothing is kept of a reader that has all it asked for.
        assert not world.renditions._limits._limiters
    assert world.scripted.worked_on == names


async def test_a_reader_of_another_group_takes_a_parked_render_to_its_own_turn(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    names = [f"{n}" for n in range(QUEUED_MAX + 10)]
    pictures = [add_picture(store, name) for name in names]
    scripted = rendering_data(seconds=dict.fromkeys(names, 0.1))
    async with opened(store, scripted) as world, trio.open_nursery() as nursery:
        await park(world, pictures, nursery)
        assert await world.read(pictures[-1], OTHER) == DATA
        assert len(world.scripted.begun) <= 6
    assert sorted(world.scripted.worked_on) == sorted(names)  # each once
    assert world.scripted.worked_on[-1] == names[-2]


async def test_a_reader_of_another_group_takes_a_queued_render_to_its_own_turn(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    names = [f"{n}" for n in range(40)]
    pictures = [add_picture(store, name) for name in names]
    scripted = rendering_data(seconds=dict.fromkeys(names, 0.1))
    async with opened(store, scripted) as world, trio.open_nursery() as nursery:
        await park(world, pictures, nursery)
        assert await world.read(pictures[-1], OTHER) == DATA
        assert len(world.scripted.begun) <= 6
    assert sorted(world.scripted.worked_on) == sorted(names)


async def test_a_parked_render_stays_parked_for_its_own_group(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    names = [f"{n}" for n in range(QUEUED_MAX + 10)]
    pictures = [add_picture(store, name) for name in names]
    scripted = rendering_data(seconds=dict.fromkeys(names, 0.1))
    async with opened(store, scripted) as world, trio.open_nursery() as nursery:
        await park(world, pictures, nursery)
        assert await world.read(pictures[-1]) == DATA
    assert world.scripted.worked_on == names


async def test_parked_renders_whose_readers_have_gone_are_never_rendered(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    names = [f"{n}" for n in range(QUEUED_MAX + 10)]
    pictures = [add_picture(store, name) for name in names]
    async with opened(store, rendering_data(seconds={"0": 5})) as world:
        async with trio.open_nursery() as nursery:
            await park(world, pictures, nursery)
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert world.renditions.statistics().in_flight <= 3  # what the renderer has
        await trio.sleep(20)
        assert world.renditions.statistics().in_flight == 0
        assert not world.renditions._limits._limiters
        assert await world.read(pictures[-1]) == DATA
    assert world.scripted.worked_on == ["0", names[-1]]


async def test_a_parked_read_has_its_deadline_too(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    names = [f"{n}" for n in range(QUEUED_MAX + 1)]
    pictures = [add_picture(store, name) for name in names]
    timeouts = 0
    async with opened(store) as world:

        async def read(picture: Picture) -> None:
            nonlocal timeouts
            try:
                await world.read(picture)
            except RenderTimeoutError:
                timeouts += 1

        start_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for picture in pictures:
                nursery.start_soon(read, picture)
        assert trio.current_time() - start_s == pytest.approx(TIMEOUT_S)
        await trio.sleep(5)
        assert world.renditions.statistics().in_flight == 0
    assert timeouts >= len(pictures) - 11


# Ahead of reads


class Ahead:
    """Whether a file is still expected to be read."""

    def __init__(self) -> None:
        self.is_ahead = True

    def __call__(self) -> bool:
        return self.is_ahead


async def test_a_file_that_was_rendered_ahead_is_read_at_once(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(store) as world:
        world.renditions.prefetch(*picture, Ahead())
        await trio.sleep(2)
        with trio.fail_after(0.5):
            assert await world.read(picture) == DATA
        assert world.renditions.statistics().prefetched_total == 1
        assert world.renditions.statistics().shared_total == 0
        assert [flown.ino for flown in world.renditions.flown()] == [picture.ino]


async def test_nothing_is_rendered_ahead_that_is_there_or_on_its_way(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    cached, flying, ahead = (add_picture(store, name) for name in ("cached", "flying", "ahead"))
    async with opened(store) as world:
        await world.read(cached)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.read, flying)
            await world.scripted.until_begun("flying")
            for picture in (cached, flying, ahead, ahead):
                world.renditions.prefetch(*picture, Ahead())
            assert world.renditions.statistics().prefetched_total == 1
        await trio.sleep(5)
    assert world.scripted.worked_on == ["cached", "flying", "ahead"]


async def test_what_is_rendered_ahead_waits_for_reads(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    names = [f"{n}" for n in range(5)]
    pictures = [add_picture(store, name) for name in names]
    ahead = add_picture(store, "ahead")
    async with opened(store) as world:
        async with trio.open_nursery() as nursery:
            await park(world, pictures[:3], nursery)
            world.renditions.prefetch(*ahead, Ahead())
            await trio.testing.wait_all_tasks_blocked()
            await park(world, pictures[3:], nursery)
        await trio.sleep(5)
    assert world.scripted.worked_on == [*names, "ahead"]


@pytest.mark.parametrize("when", ["at once", "queued"])
async def test_what_is_not_ahead_any_more_is_dropped(
    when: str, store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    names = [f"{n}" for n in range(3)]
    others = [add_picture(store, name) for name in names]
    ahead = Ahead()
    async with opened(store) as world:
        async with trio.open_nursery() as nursery:
            await park(world, others, nursery)
            world.renditions.prefetch(*picture, ahead)
            if when == "queued":
                await trio.testing.wait_all_tasks_blocked()
                assert world.scheduler.statistics().queued_background == 1
            ahead.is_ahead = False
        await trio.sleep(5)
        assert world.renditions.statistics().in_flight == 0
        assert world.scripted.worked_on == names
        assert await world.read(picture) == DATA


@pytest.mark.parametrize("when", ["at once", "queued", "in flight"])
async def test_a_read_joins_what_is_rendered_ahead_and_needs_it_then(
    when: str, store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    before = [add_picture(store, f"before {n}") for n in range(4)]
    others = [add_picture(store, f"other {n}") for n in range(4)]
    ahead = Ahead()
    async with opened(store) as world:
        async with trio.open_nursery() as nursery:
            if when != "in flight":
                await park(world, before, nursery, OTHER)
            world.renditions.prefetch(*picture, ahead)
            if when == "queued":
                await trio.testing.wait_all_tasks_blocked()
                assert world.scheduler.statistics().queued_background == 1
            elif when == "in flight":
                await world.scripted.until_begun("picture")
            for other in others:
                nursery.start_soon(world.read, other, OTHER)
            nursery.start_soon(world.read, picture, HOG)
            await trio.testing.wait_all_tasks_blocked()
            ahead.is_ahead = False
        statistics = world.renditions.statistics()
        assert (statistics.prefetched_total, statistics.shared_total) == (1, 1)
    assert world.scripted.worked_on.index("picture") <= 4
    assert world.scripted.worked_on.count("picture") == 1
    assert world.scripted.cancelled == []


async def test_a_read_that_leaves_what_is_still_ahead_does_not_give_it_up(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    first, picture = add_picture(store, "first"), add_picture(store, "picture")
    scripted = rendering_data(seconds={"first": 5})
    async with opened(store, scripted) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.read, first)
        await scripted.until_begun("first")
        world.renditions.prefetch(*picture, Ahead())
        with trio.move_on_after(1):
            await world.read(picture)
        await trio.sleep(8)
        assert world.renditions.statistics().given_up_total == 0
    assert scripted.worked_on == ["first", "picture"]


async def test_a_read_that_leaves_what_is_not_ahead_any_more_gives_it_up(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    first, picture = add_picture(store, "first"), add_picture(store, "picture")
    scripted = rendering_data(seconds={"first": 5})
    ahead = Ahead()
    async with opened(store, scripted) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.read, first)
        await scripted.until_begun("first")
        world.renditions.prefetch(*picture, ahead)
        with trio.move_on_after(1):
            await world.read(picture)
            ahead.is_ahead = False
        ahead.is_ahead = False
        with trio.move_on_after(1):
            await world.read(picture)
        assert world.renditions.statistics().given_up_total == 1
        await trio.sleep(8)
    assert scripted.worked_on == ["first"]


async def test_a_failure_ahead_of_a_read_is_nobodys_and_the_read_tries_again(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(store, rendering_data({"picture": "fail"})) as world:
        world.renditions.prefetch(*picture, Ahead())
        await trio.sleep(2)
        assert world.renditions.statistics().in_flight == 0
        with pytest.raises(RenderFailedError, match="no"):
            await world.read(picture)
    assert world.scripted.worked_on == ["picture"] * 2


# Failures


async def test_a_failure_goes_to_all_who_wait_and_is_tried_again_later(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    failures = 0

    async with opened(store, rendering_data({"picture": "fail"})) as world:

        async def read() -> None:
            nonlocal failures
            with pytest.raises(RenderFailedError, match="no"):
                await world.read(picture)
            failures += 1

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(read)
    assert failures == 6
    assert world.scripted.worked_on == ["picture"] * 2


async def test_what_breaks_renderers_is_refused_at_once_for_a_while(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(store, rendering_data({"picture": "die"})) as world:
        with pytest.raises(RendererLostError):
            await world.read(picture)
        with pytest.raises(RenderFailedError, match="it is refused for another 60 s"):
            await world.read(picture)
        world.renditions.prefetch(*picture, Ahead())
        await trio.sleep(1)
        assert world.renditions.statistics().in_flight == 0
    assert world.scripted.worked_on == ["picture"] * 2


async def test_a_file_that_was_removed_since_it_was_opened_is_an_error(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    with store.write() as transaction:
        transaction.remove_file_by_command(ROOT_INO, b"picture")
    async with opened(store) as world:
        with pytest.raises(RenderFailedError, match="was removed while it was open"):
            await world.read(picture)
        assert world.renditions.statistics().in_flight == 0


async def test_a_bug_is_an_error_of_that_read(
    store: Store,
    picture: Picture,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def bug(*args: object, **options: object) -> None:
        raise ZeroDivisionError("oops")

    async with opened(store) as world:
        with monkeypatch.context() as patch:
            patch.setattr(world.scheduler, "submit", bug)
            with pytest.raises(RenderError, match="ZeroDivisionError: oops"):
                await world.read(picture)
        assert "failed unexpectedly" in caplog.text
        assert await world.read(picture) == DATA


async def test_a_render_of_the_wrong_length_is_an_error_never_a_file(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(store, rendering_data({"picture": Answer(DATA + b"!")})) as world:
        with pytest.raises(RenderFailedError, match="16 bytes, not to its size of 15"):
            await world.read(picture)


# Other bytes

OTHER_DATA = DATA.replace(b"a", b"b")


async def test_other_bytes_of_the_right_length_are_counted(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(store, rendering_data({"picture": Answer(OTHER_DATA)})) as world:
        assert await world.read(picture) == OTHER_DATA
        assert world.renditions.statistics().hash_mismatches_total == 1


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        (BATCHED, RECIPE),
        (WIDENED, msgspec.structs.replace(WIDENED, batch=1)),
    ],
)
async def test_a_smaller_batch_may_not_change_a_file(
    asked: Recipe, taken: Recipe, store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    same = add_picture(store, "same", recipe=asked)
    different = add_picture(store, "different", recipe=asked)
    script = {"same": Answer(DATA, taken), "different": Answer(OTHER_DATA, taken)}
    async with opened(store, rendering_data(dict(script))) as world:
        assert await world.read(same) == DATA
        with pytest.raises(RenderFailedError, match="smaller batch"):
            await world.read(different)
        assert world.renditions.statistics().hash_mismatches_total == 0


async def test_a_picture_that_had_to_be_widened_since_is_served_and_counted(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    picture = add_picture(store, "picture", recipe=BATCHED)
    async with opened(store, rendering_data({"picture": Answer(OTHER_DATA, WIDENED)})) as world:
        assert await world.read(picture) == OTHER_DATA
        assert world.renditions.statistics().hash_mismatches_total == 1
        assert world.scheduler.statistics().renders_widened_total == 1


# Fetches


class CountedFetch:
    """A store that takes its time."""

    def __init__(self, store: Store, *, delay_s: float) -> None:
        self.count = 0
        self._fetch = fetch_at_once(store, delay_s=delay_s)

    async def __call__(self, ino: int, inode: Inode) -> RenderJob:
        self.count += 1
        return await self._fetch(ino, inode)


@pytest.mark.parametrize("delay_s", [0.001, 0.01, 0.1])
async def test_a_latent_that_is_held_saves_the_fetch(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock, delay_s: float
) -> None:
    fetch = CountedFetch(store, delay_s=delay_s)
    cache: PictureCache = TieredCache(budget_bytes=1 << 20, pixel_share=0.0)
    async with opened(store, cache=cache, fetch=fetch) as world:
        for renders in (1, 2, 3):
            assert await world.read(picture) == DATA
            assert world.scheduler.statistics().renders_total == renders
    assert fetch.count == 1
    statistics = cache.statistics()
    assert (statistics.misses, statistics.latent_hits, statistics.pixel_hits) == (1, 2, 0)
    assert statistics.fetch_s == pytest.approx(delay_s)


async def test_a_render_costs_what_it_takes_without_waiting_for_others(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    cache: PictureCache = TieredCache(budget_bytes=1 << 20)
    async with opened(store, cache=cache) as world:
        await world.read(picture)
    ((_, render_s),) = cache.statistics().render_s.items()
    megapixels = 8 * 8 / 1e6
    assert render_s * megapixels == pytest.approx(1.0, abs=0.1)


async def test_many_readers_share_one_fetch(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    fetch = CountedFetch(store, delay_s=0.1)
    async with opened(store, fetch=fetch) as world, trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(world.read, picture, Reader(number, number))
    assert fetch.count == 1


async def test_what_is_held_is_read_while_another_picture_is_fetched(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    other = add_picture(store, "other")
    async with opened(store, fetch=CountedFetch(store, delay_s=0.1)) as world:
        assert await world.read(picture) == DATA
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.read, other)
            await trio.testing.wait_all_tasks_blocked()
            start_s = trio.current_time()
            assert await world.read(picture) == DATA
            assert trio.current_time() == start_s


async def test_a_fetch_that_never_ends_is_given_up_at_the_deadline(
    store: Store, picture: Picture, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(store, fetch=CountedFetch(store, delay_s=math.inf)) as world:
        start_s = trio.current_time()
        with pytest.raises(RenderTimeoutError):
            await world.read(picture)
        assert trio.current_time() == start_s + TIMEOUT_S
