"""Requests that the daemon can't send: they fail alone, and the renderer is not at fault."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from scripted_renderer import READY, RECIPE, job

from latentfs.errors import RenderFailedError
from latentfs.render import protocol
from latentfs.render.job_queue import RenderJob
from latentfs.render.protocol import CancelRequest, Rendered, RenderRequest
from latentfs.render.renderer_process import RendererProcess
from latentfs.render.scheduler import Scheduler

BATCHED = msgspec.structs.replace(RECIPE, batch=4)


class Peer:
    """The other end of real sockets: answers a group once it is there, with the latents' names."""

    def __init__(self) -> None:
        self.opened = 0
        self.groups: list[list[str]] = []
        self.follows: list[int] = []

    @asynccontextmanager
    async def open_renderer(self, device: str) -> AsyncIterator[RendererProcess]:
        self.opened += 1
        ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process: Any = SimpleNamespace(pid=self.opened)
        with ours, theirs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve, theirs)
                yield RendererProcess(process, ours)
                nursery.cancel_scope.cancel()

    async def _serve(self, connection: trio.socket.SocketType) -> None:
        await connection.sendmsg([protocol.encode(READY)])
        group: list[tuple[int, str]] = []
        while True:
            packet, ancillary, _, _ = await connection.recvmsg(
                protocol.PACKET_BYTES_MAX, protocol.ANCILLARY_BYTES
            )
            if not packet:
                return
            message, fd = protocol.decode_packet(packet, ancillary)
            assert not isinstance(message, CancelRequest)
            assert isinstance(message, RenderRequest)
            assert fd is not None
            group.append((message.number, protocol.read_and_close(fd)[1:].decode()))
            self.follows.append(message.follows)
            if message.follows == 0:
                self.groups.append([name for _, name in group])
                for number, _ in group:
                    await connection.sendmsg([protocol.encode(rendered(number))])
                group = []


def rendered(number: int) -> Rendered:
    return Rendered(
        number=number,
        width=1,
        height=1,
        size_bytes=0,
        sha256=b"",
        encode_retries=0,
        psnr_db=None,
        stages_s={},
    )


@asynccontextmanager
async def running(peer: Peer, *, warm_ups: Iterable[RenderJob] = ()) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(
        device="auto",
        render_timeout_s=60,
        background_groups_max=1,
        open_renderer=peer.open_renderer,
        warm_up_jobs=lambda: warm_ups,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        yield scheduler
        nursery.cancel_scope.cancel()


async def outcomes_of(scheduler: Scheduler, jobs: Iterable[RenderJob]) -> list[str]:
    orders = [scheduler.submit(each) for each in jobs]
    outcomes = []
    with trio.fail_after(30):
        for order in orders:
            try:
                await scheduler.finished(order)
                outcomes.append("rendered")
            except RenderFailedError as error:
                outcomes.append(str(error))
    return outcomes


def with_chunks(name: str, chunks: int) -> RenderJob:
    """A job whose request names the lengths of so many metadata chunks."""
    whole = job(name, recipe=BATCHED)
    lengths = (len(name), *[0] * (chunks - 1))
    request = msgspec.structs.replace(whole.request, chunk_bytes=lengths)
    return RenderJob(request, whole.bulk, whole.shape, whole.content)


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, int]:
    """The errno with which no memory file can be made for some bulk bytes."""
    refused: dict[bytes, int] = {}
    memfd_with = protocol.memfd_with

    def failing(parts: list[bytes]) -> int:
        number = refused.get(b"".join(parts))
        if number is not None:
            raise OSError(number, os.strerror(number))
        return memfd_with(parts)

    monkeypatch.setattr(protocol, "memfd_with", failing)
    return refused


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("place", [0, 1, 3])
async def test_without_a_memory_file_one_of_a_batch_fails_and_the_renderer_stays(
    place: int, number: int, without_memory: dict[bytes, int]
) -> None:
    names = ["a", "b", "c", "d"]
    without_memory[b"x" + names[place].encode()] = number
    others = [name for name in names if name != names[place]]
    peer = Peer()
    async with running(peer) as scheduler:
        outcomes = await outcomes_of(scheduler, [job(name, recipe=BATCHED) for name in names])
        statistics = scheduler.statistics()
        without_memory.clear()
        assert await outcomes_of(scheduler, [job(names[place])]) == ["rendered"]
    reason = outcomes.pop(place)
    assert os.strerror(number) in reason
    assert f"errno {number}" in reason
    assert outcomes == ["rendered"] * 3
    assert (peer.opened, peer.groups[0], peer.follows[:3]) == (1, others, [2, 1, 0])
    assert (statistics.renders_failed_total, statistics.in_flight) == (1, 0)
    assert (statistics.renderer_restarts_total, statistics.quarantined) == (0, 0)


async def test_a_request_that_no_packet_holds_fails_alone() -> None:
    peer = Peer()
    # Each length takes a byte: the first request is as large as may be, or all but.
    most = protocol.PACKET_BYTES_MAX - 1000
    jobs = [with_chunks("most", most), with_chunks("more", 100_000), job("c", recipe=BATCHED)]
    async with running(peer) as scheduler:
        outcomes = await outcomes_of(scheduler, jobs)
        statistics = scheduler.statistics()
    assert "100000 metadata chunks" in outcomes[1]
    assert [outcomes[0], outcomes[2]] == ["rendered", "rendered"]
    assert (peer.opened, peer.groups, peer.follows) == (1, [["most", "c"]], [1, 0])
    assert (statistics.renderer_restarts_total, statistics.quarantined) == (0, 0)


async def test_when_nothing_of_a_group_can_be_sent_the_next_one_is(
    without_memory: dict[bytes, int],
) -> None:
    without_memory[b"xa"] = errno.EMFILE
    peer = Peer()
    async with running(peer) as scheduler:
        outcomes = await outcomes_of(scheduler, [job("a"), job("b")])
    assert (outcomes[0] != "rendered", outcomes[1]) == (True, "rendered")
    assert (peer.opened, peer.groups) == (1, [["b"]])


async def test_a_warm_up_that_can_not_be_sent_is_nobodys_failure(
    without_memory: dict[bytes, int],
) -> None:
    without_memory[b"xw"] = errno.ENOMEM
    peer = Peer()
    async with running(peer, warm_ups=[job("w")]) as scheduler:
        assert await outcomes_of(scheduler, [job("a", recipe=BATCHED)]) == ["rendered"]
        await trio.testing.wait_all_tasks_blocked(cushion=0.05)
        assert scheduler.statistics().warming_up == 0
        assert await outcomes_of(scheduler, [job("b")]) == ["rendered"]
        statistics = scheduler.statistics()
    assert (statistics.renders_failed_total, statistics.warm_ups_total) == (0, 0)
    assert (peer.opened, peer.groups) == (1, [["a"], ["b"]])


async def test_no_descriptor_stays_open_for_what_was_not_sent(
    without_memory: dict[bytes, int],
) -> None:
    without_memory[b"xb"] = errno.EMFILE
    async with running(Peer()) as scheduler:
        await outcomes_of(scheduler, [job("first")])
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            await outcomes_of(scheduler, [job(name, recipe=BATCHED) for name in "abc"])
        assert len(os.listdir("/proc/self/fd")) == before
