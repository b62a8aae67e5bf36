"""Sharing, deadlines and cancellation of reads, under a clock that jumps."""

from __future__ import annotations

import hashlib
import math
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from latent_files import latent_array

from latentfs.cache.pixel_cache import PixelCache
from latentfs.errors import (
    RenderDroppedError,
    RenderError,
    RenderFailedError,
    RenderTimeoutError,
)
from latentfs.fs.renditions import Renditions, open_renditions
from latentfs.images.framing import Framing
from latentfs.latents import payload as payload_codec
from latentfs.latents.latent import Latent
from latentfs.latents.recipe import Recipe
from latentfs.render.protocol import Rendered
from latentfs.render.scheduler import RenderJob, Rendition
from latentfs.store.records import Inode, LatentContent, Source, VaeRecord
from latentfs.store.store import Store

TIMEOUT_S = 10.0
DATA = b"a finished file"


class SlowScheduler:
    """Renders everything to the same bytes, in *seconds* each, and counts."""

    def __init__(self, *, seconds: float = 1.0, outcome: bytes | RenderError = DATA) -> None:
        self.seconds = seconds
        self.outcome = outcome
        self.renders = 0

    async def render(self, job: RenderJob, *, is_wanted: Callable[[], bool]) -> Rendition:
        assert is_wanted()
        self.renders += 1
        await trio.sleep(self.seconds)
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
            stages_s={},
        )
        return Rendition(report, self.outcome)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "art.lfs") as store:
        yield store


@pytest.fixture
def inode(store: Store) -> Inode:
    """A picture of DATA's size and hash, with all that its job needs."""
    latent = Latent.from_bytes(latent_array(4, 1, 1).tobytes(), dtype="float32", shape=(4, 1, 1))
    recipe = Recipe(
        vae="id",
        vae_class="AutoencoderTiny",
        dtype="float32",
        scaling=(),
        scaling_dtype="recipe",
        rounding="round",
        batch=1,
        cpu_threads=1,
    )
    vae = VaeRecord("id", "AutoencoderTiny", "float32", 4, 8, 1.0, 0.0, True, None, 1, (), "")
    with store.write() as transaction:
        transaction.put_vae("tiny", vae)
        content = LatentContent(
            payload=transaction.add_payload(latent.digest(), payload_codec.encode(latent)),
            recipe=transaction.put_recipe(recipe),
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
    store: Store, scheduler: SlowScheduler, *, cache_bytes: int = 1 << 20
) -> AsyncIterator[Renditions]:
    cache = PixelCache(budget_bytes=cache_bytes)
    async with open_renditions(
        store,
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
        results.append(await renditions.get(2, inode))

    async with opened(store, scheduler) as renditions:
        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(read)
        assert await renditions.get(2, inode) == DATA
        assert renditions.statistics().shared_total == 63
    assert results == [DATA] * 64
    assert scheduler.renders == 1


async def test_a_read_ends_at_its_deadline_and_the_render_goes_on(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    scheduler = SlowScheduler(seconds=TIMEOUT_S + 5)
    async with opened(store, scheduler) as renditions:
        with pytest.raises(RenderTimeoutError, match="10 s"):
            await renditions.get(2, inode)
        assert trio.current_time() == pytest.approx(autojump_clock.current_time())
        assert renditions.statistics().timeouts_total == 1
        assert await renditions.get(2, inode) == DATA
    assert scheduler.renders == 1


async def test_a_cancelled_reader_leaves_the_render_to_others(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    scheduler = SlowScheduler(seconds=3)
    async with opened(store, scheduler) as renditions:
        with trio.move_on_after(1):
            await renditions.get(2, inode)
        assert await renditions.get(2, inode) == DATA
    assert scheduler.renders == 1


async def test_a_failure_goes_to_all_who_wait_and_is_tried_again_later(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    scheduler = SlowScheduler(outcome=RenderFailedError("no"))
    async with opened(store, scheduler) as renditions:
        for _ in range(2):
            with pytest.raises(RenderFailedError):
                await renditions.get(2, inode)
    assert scheduler.renders == 2


async def test_a_render_of_the_wrong_length_is_an_error_never_a_file(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(store, SlowScheduler(outcome=DATA + b"!")) as renditions:
        with pytest.raises(RenderFailedError, match="16 bytes, not to its size of 15"):
            await renditions.get(2, inode)


async def test_other_bytes_of_the_right_length_are_counted(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    other = DATA.replace(b"a", b"b")
    async with opened(store, SlowScheduler(outcome=other)) as renditions:
        assert await renditions.get(2, inode) == other
        assert renditions.statistics().hash_mismatches_total == 1


async def test_what_the_cache_does_not_keep_is_rendered_again(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    scheduler = SlowScheduler()
    async with opened(store, scheduler, cache_bytes=0) as renditions:
        for _ in range(3):
            assert await renditions.get(2, inode) == DATA
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
                await renditions.get(2, inode)
        with pytest.raises(RenderError, match="being unmounted"):
            await renditions.get(2, inode)
        await trio.sleep(1)  # the block itself is not cancelled
        assert trio.current_effective_deadline() == math.inf


async def test_a_flight_knows_whether_anybody_waits(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    wanted: list[bool] = []

    class LateScheduler(SlowScheduler):
        async def render(self, job: RenderJob, *, is_wanted: Callable[[], bool]) -> Rendition:
            await trio.sleep(TIMEOUT_S - 1)
            wanted.append(is_wanted())
            await trio.sleep(2)
            wanted.append(is_wanted())
            raise RenderDroppedError("nobody waits for it any more")

    async with opened(store, LateScheduler()) as renditions:
        with pytest.raises(RenderTimeoutError):
            await renditions.get(2, inode)
        await trio.sleep(5)
    assert wanted == [True, False]


async def test_a_reader_that_joins_a_flight_as_it_is_dropped_starts_another(
    store: Store, inode: Inode, autojump_clock: trio.testing.MockClock
) -> None:
    class DropsTheFirst(SlowScheduler):
        async def render(self, job: RenderJob, *, is_wanted: Callable[[], bool]) -> Rendition:
            rendition = await super().render(job, is_wanted=is_wanted)
            if self.renders == 1:
                raise RenderDroppedError("nobody waits for it any more")
            return rendition

    scheduler = DropsTheFirst()
    async with opened(store, scheduler) as renditions:
        assert await renditions.get(2, inode) == DATA
    assert scheduler.renders == 2
