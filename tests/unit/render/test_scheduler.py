"""The scheduler against renderers that die, hang and lie, under a clock that jumps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from latentfs.errors import RenderDroppedError, RendererLostError, RenderFailedError
from latentfs.images.framing import Framing
from latentfs.latents.recipe import Recipe
from latentfs.render.protocol import (
    Alive,
    CancelRequest,
    CannotStart,
    Dropped,
    Failed,
    Message,
    Ready,
    Rendered,
    RenderRequest,
)
from latentfs.render.job_queue import RenderJob
from latentfs.render.scheduler import Scheduler

TIMEOUT_S = 10.0
READY = Ready(torch_version="0", device="cpu", devices=("cpu",))

Behaviour = Callable[["ScriptedRenderer", RenderRequest], object]


def job(name: str) -> RenderJob:
    """A job whose VAE folder is *name*, by which scripted renderers know it."""
    recipe = Recipe(
        vae="v",
        vae_class="AutoencoderTiny",
        dtype="float32",
        scaling=(),
        scaling_dtype="recipe",
        rounding="round",
        batch=1,
        cpu_threads=1,
    )
    request = RenderRequest(
        number=0,
        vae_folder=name,
        vae_files=(),
        recipe=recipe,
        framing=Framing.png(),
        size_bytes=3,
        payload_bytes=1,
        reference_bytes=0,
        chunk_bytes=(),
        want_data=True,
    )
    return RenderJob(request, [b"x"], (4, 1, 1), name)


def rendered(number: int) -> Rendered:
    return Rendered(
        number=number,
        width=1,
        height=1,
        size_bytes=3,
        sha256=b"",
        encode_retries=0,
        psnr_db=None,
        stages_s={},
    )


class ScriptedRenderer:
    """Answers in order, a second each, unless the script says otherwise for a job."""

    pid = 1

    def __init__(self, script: dict[str, Behaviour], log: list[str]) -> None:
        self._script = script
        self._log = log
        self._requests, self._received = trio.open_memory_channel[RenderRequest](100)

    async def send(self, request: RenderRequest, bulk: list[bytes]) -> None:
        await self._requests.send(request)

    async def receive(self) -> tuple[Message, bytes | None]:
        if not hasattr(self, "_greeted"):
            self._greeted = True
            return READY, None
        request = await self._received.receive()
        self._log.append(request.vae_folder)
        await trio.sleep(1)
        behave = self._script.get(request.vae_folder)
        answer = None if behave is None else behave(self, request)
        if answer == "die":
            raise RendererLostError("it died")
        if answer == "hang":
            await trio.sleep_forever()
        if isinstance(answer, (Failed, Ready)):
            return answer, None
        return rendered(request.number), request.vae_folder.encode()


class Scripted:
    """Opens scripted renderers; counts them and the order of what they worked on."""

    def __init__(self, script: dict[str, Behaviour]) -> None:
        self.script = script
        self.opened = 0
        self.worked_on: list[str] = []

    @asynccontextmanager
    async def open(self, device: str) -> AsyncIterator[ScriptedRenderer]:
        self.opened += 1
        yield ScriptedRenderer(self.script, self.worked_on)


@asynccontextmanager
async def running(scripted: Scripted) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(
        device="auto",
        render_timeout_s=TIMEOUT_S,
        background_groups_max=1,
        open_renderer=scripted.open,  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        yield scheduler
        nursery.cancel_scope.cancel()


async def render_all(scheduler: Scheduler, names: list[str]) -> dict[str, object]:
    outcomes: dict[str, object] = {}

    async def one(name: str) -> None:
        try:
            outcomes[name] = (await scheduler.render(job(name))).data
        except (RenderFailedError, RendererLostError) as error:
            outcomes[name] = type(error)

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(one, name)
            await trio.testing.wait_all_tasks_blocked()
    return outcomes


async def test_jobs_are_worked_on_in_order(autojump_clock: trio.testing.MockClock) -> None:
    scripted = Scripted({})
    names = [f"{n}" for n in range(8)]
    async with running(scripted) as scheduler:
        outcomes = await render_all(scheduler, names)
        statistics = scheduler.statistics()
    assert outcomes == {name: name.encode() for name in names}
    assert scripted.worked_on == names
    assert statistics.renders_total == 8
    assert (statistics.queued, statistics.in_flight) == (0, 0)


async def test_a_refused_job_fails_alone(autojump_clock: trio.testing.MockClock) -> None:
    scripted = Scripted({"bad": lambda _, request: Failed(request.number, "no")})
    async with running(scripted) as scheduler:
        outcomes = await render_all(scheduler, ["a", "bad", "b"])
        assert scheduler.statistics().renders_failed_total == 1
    assert outcomes == {"a": b"a", "bad": RenderFailedError, "b": b"b"}
    assert scripted.opened == 1


async def test_a_renderer_that_dies_once_is_replaced(
    autojump_clock: trio.testing.MockClock,
) -> None:
    deaths = iter(["die"])
    scripted = Scripted({"b": lambda *_: next(deaths, None)})
    async with running(scripted) as scheduler:
        outcomes = await render_all(scheduler, ["a", "b", "c"])
        assert scheduler.statistics().renderer_restarts_total == 1
    assert outcomes == {"a": b"a", "b": b"b", "c": b"c"}
    assert scripted.worked_on == ["a", "b", "b", "c"]


async def test_a_job_that_kills_two_renderers_fails_and_spares_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted = Scripted({"deadly": lambda *_: "die"})
    async with running(scripted) as scheduler:
        outcomes = await render_all(scheduler, ["a", "deadly", "b", "c"])
    assert outcomes == {"a": b"a", "deadly": RendererLostError, "b": b"b", "c": b"c"}
    assert scripted.opened == 3


async def test_a_renderer_that_hangs_is_replaced(autojump_clock: trio.testing.MockClock) -> None:
    hangs = iter(["hang"])
    scripted = Scripted({"slow": lambda *_: next(hangs, None)})
    async with running(scripted) as scheduler:
        outcomes = await render_all(scheduler, ["slow", "after"])
    assert outcomes == {"slow": b"slow", "after": b"after"}
    assert scripted.opened == 2


async def test_an_idle_renderer_is_left_alone(autojump_clock: trio.testing.MockClock) -> None:
    scripted = Scripted({})
    async with running(scripted) as scheduler:
        await trio.sleep(100 * TIMEOUT_S)
        assert (await scheduler.render(job("late"))).data == b"late"
        await trio.sleep(100 * TIMEOUT_S)
    assert scripted.opened == 1


async def test_restarts_back_off(autojump_clock: trio.testing.MockClock) -> None:
    scripted = Scripted({f"{n}": lambda *_: "die" for n in range(100)})
    async with running(scripted) as scheduler, trio.open_nursery() as nursery:
        for n in range(100):
            nursery.start_soon(_swallow, scheduler, f"{n}")
        await trio.sleep(120)
        nursery.cancel_scope.cancel()
    assert 6 <= scripted.opened <= 14


async def _swallow(scheduler: Scheduler, name: str) -> None:
    with pytest.raises(RendererLostError):
        await scheduler.render(job(name))


async def test_jobs_fail_when_no_renderer_can_be_started(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class NeverReady(ScriptedRenderer):
        async def receive(self) -> tuple[Message, bytes | None]:
            raise RendererLostError("it ended at once")

    class Broken(Scripted):
        @asynccontextmanager
        async def open(self, device: str) -> AsyncIterator[ScriptedRenderer]:
            self.opened += 1
            yield NeverReady({}, [])

    broken = Broken({})
    scheduler = Scheduler(
        device="auto",
        render_timeout_s=TIMEOUT_S,
        background_groups_max=1,
        open_renderer=broken.open,  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        for _ in range(2):
            with pytest.raises(RendererLostError, match="no renderer could be started"):
                await scheduler.render(job("any"))
        nursery.cancel_scope.cancel()
    assert broken.opened == 4


async def test_nonsense_from_a_renderer_is_the_renderers_end_not_ours(
    autojump_clock: trio.testing.MockClock,
) -> None:
    answers = iter([Failed(4711, "unasked"), READY])

    def nonsense(renderer: ScriptedRenderer, request: RenderRequest) -> object:
        return next(answers, None)

    scripted = Scripted({"a": nonsense})
    async with running(scripted) as scheduler:
        outcomes = await render_all(scheduler, ["a"])
    assert outcomes == {"a": RendererLostError}
    assert scripted.opened == 2


async def test_a_bug_in_the_connection_does_not_end_the_scheduler(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(renderer: ScriptedRenderer, request: RenderRequest) -> object:
        raise ZeroDivisionError

    scripted = Scripted({"a": bug})
    async with running(scripted) as scheduler:
        outcomes = await render_all(scheduler, ["a", "b"])
    assert outcomes == {"a": RendererLostError, "b": b"b"}
    assert "failed unexpectedly" in caplog.text


