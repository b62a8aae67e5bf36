"""Renderers that do as a script says, for tests of what talks to renderers."""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Container, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
import trio.testing

from latentfs.errors import RendererLostError, RenderFailedError
from latentfs.images.framing import Framing
from latentfs.latents.recipe import Recipe
from latentfs.render.job_queue import RenderJob
from latentfs.render.lane import OpenRenderer
from latentfs.render.protocol import (
    ALIVE_INTERVAL_S,
    Alive,
    CancelRequest,
    Dropped,
    Failed,
    Message,
    Ready,
    Rendered,
    RenderRequest,
)

READY = Ready(torch_version="0", device="cpu", devices=("cpu",))
RECIPE = Recipe(
    vae="id",
    vae_class="AutoencoderTiny",
    dtype="float32",
    scaling=(),
    scaling_dtype="recipe",
    rounding="round",
    batch=1,
    cpu_threads=1,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A render with other bytes than usual, or by another recipe than asked for."""

    data: bytes | None = None
    recipe: Recipe | None = None


Behaviour = Callable[[RenderRequest], object]
"""Returns None for a render as usual, ``die``, ``hang``, a message to be sent, or an Answer."""


def job(
    name: str,
    *,
    recipe: Recipe = RECIPE,
    shape: tuple[int, int, int] = (4, 1, 1),
    vae_folder: str = "vae",
) -> RenderJob:
    """A job whose only metadata chunk is *name*, by which scripted renderers know it."""
    request = RenderRequest(
        number=0,
        vae_folder=vae_folder,
        vae_files=(),
        recipe=recipe,
        framing=Framing.png(),
        size_bytes=3,
        payload_bytes=1,
        reference_bytes=0,
        chunk_bytes=(len(name),),
        want_data=True,
    )
    return RenderJob(request, [b"x", name.encode()], shape, name)


class ScriptedRenderer:
    """Works on one group after the other, a second each unless its script says otherwise."""

    pid = 1

    def __init__(self, scripted: Scripted, device: str) -> None:
        self._scripted = scripted
        self._device = device
        self._greeted = False
        self._groups, self._received = trio.open_memory_channel[list[RenderRequest]](1000)
        self._names: dict[int, str] = {}
        self._cancelled: set[int] = set()
        self._working_on: list[RenderRequest] = []
        self._left_s = 0.0
        self._answers: deque[tuple[Message, bytes | None]] = deque()

    async def send(
        self, group: Sequence[tuple[RenderRequest, list[bytes]]]
    ) -> dict[int, RenderFailedError]:
        for request, bulk in group:
            await trio.lowlevel.checkpoint()
            self._names[request.number] = bulk[-1].decode()
        self._groups.send_nowait([request for request, _ in group])
        return {}

    async def send_message(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        assert isinstance(message, CancelRequest)
        self._scripted.cancelled.append(self._names[message.number])
        self._cancelled.add(message.number)

    async def receive(self) -> tuple[Message, bytes | None]:
        if not self._greeted:
            self._greeted = True
            await trio.sleep(self._scripted.start_s)
            return self._scripted.greet(self._device), None
        while not self._answers:
            if not self._working_on:
                self._begin(await self._received.receive())
                continue
            await trio.sleep(min(self._left_s, ALIVE_INTERVAL_S))
            self._left_s -= ALIVE_INTERVAL_S
            if self._left_s > 0:
                return Alive(any(map(self._is_compiled, self._working_on))), None
            await self._finish()
        return self._answers.popleft()

    def _begin(self, group: list[RenderRequest]) -> None:
        dropped = [request for request in group if request.number in self._cancelled]
        self._answers.extend((Dropped(request.number), None) for request in dropped)
        self._working_on = [request for request in group if request not in dropped]
        names = [self._names[request.number] for request in self._working_on]
        if names:
            self._scripted.begun.append(names)
            self._scripted.begun_on[self._device] += names
            self._scripted.on_begun()
            self._left_s = max(self._scripted.seconds.get(name, 1.0) for name in names)

    def _is_compiled(self, request: RenderRequest) -> bool:
        return self._names[request.number] in self._scripted.compiled

    async def _finish(self) -> None:
        group, self._working_on = self._working_on, []
        for request in group:
            name = self._names[request.number]
            behave = self._scripted.script.get(name)
            answer = None if behave is None else behave(request)
            if answer == "die":
                raise RendererLostError("it died")
            if answer == "hang":
                await trio.sleep_forever()
            self._answers.append(self._answer(name, request, answer))

    def _answer(
        self, name: str, request: RenderRequest, answer: object
    ) -> tuple[Message, bytes | None]:
        if isinstance(answer, (Failed, Ready, Dropped)):
            return answer, None
        told = answer if isinstance(answer, Answer) else Answer()
        data = self._scripted.data(name) if told.data is None else told.data
        report = Rendered(
            number=request.number,
            width=1,
            height=1,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).digest(),
            encode_retries=0,
            psnr_db=None,
            stages_s={"wait": 5.0, "load": 7.0, "decode": 1.0},
            recipe=told.recipe,
        )
        return report, data


class Scripted:
    """Opens scripted renderers, and remembers what they were asked.

    Args:
        script: what to do at the end of a job, by its name.
        seconds: how long a job takes, by its name; 1 for others.
        compiled: names of the jobs whose time goes into compiling.
        greet: the first message of a renderer for a device.
        start_s: how long it takes until that comes.
        data: the bytes that a job is rendered to, by its name.

    Attributes:
        opened: devices for which a renderer was opened, in order.
        begun: names of the jobs whose decoding was begun, those decoded together in one list.
        begun_on: the same by the device that was asked for, without the groups.
        cancelled: names of the jobs that were cancelled.
    """

    def __init__(
        self,
        script: Mapping[str, Behaviour] | None = None,
        *,
        seconds: Mapping[str, float] | None = None,
        compiled: Container[str] = (),
        greet: Callable[[str], Message] = lambda device: READY,
        start_s: float = 0.0,
        data: Callable[[str], bytes] = str.encode,
    ) -> None:
        self.script = script or {}
        self.seconds = seconds or {}
        self.compiled = compiled
        self.greet = greet
        self.start_s = start_s
        self.data = data
        self.opened: list[str] = []
        self.begun: list[list[str]] = []
        self.begun_on: dict[str, list[str]] = defaultdict(list)
        self.cancelled: list[str] = []
        self._has_begun = trio.Event()

    async def until_begun(self, name: str) -> None:
        """Wait until the job has been begun, and all that follows from that has been done."""
        while name not in self.worked_on:
            await self._has_begun.wait()
        await trio.testing.wait_all_tasks_blocked()

    def on_begun(self) -> None:
        self._has_begun.set()
        self._has_begun = trio.Event()

    @property
    def worked_on(self) -> list[str]:
        return [name for names in self.begun for name in names]

    @property
    def open_renderer(self) -> OpenRenderer:
        """What a scheduler is to be given."""
        opens: Any = self._open
        return opens  # type: ignore[no-any-return]

    @asynccontextmanager
    async def _open(self, device: str) -> AsyncIterator[ScriptedRenderer]:
        self.opened.append(device)
        yield ScriptedRenderer(self, device)
