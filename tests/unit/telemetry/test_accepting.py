"""A daemon that is out of files says so now and then, and goes on when there are some."""

from __future__ import annotations

import errno
import itertools
import logging
import os

import pytest
import trio
import trio.testing

from latentfs.telemetry.accepting import serve_connections


class ScarceListener(trio.abc.Listener[trio.SocketStream]):
    """Has no file for a connection until told."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        self.has_files = False

    async def accept(self) -> trio.SocketStream:
        if not self.has_files:
            await trio.lowlevel.checkpoint()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return await self._listener.accept()

    async def aclose(self) -> None:
        await self._listener.aclose()


async def scarce_listener() -> tuple[ScarceListener, int]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    return ScarceListener(listener), listener.socket.getsockname()[1]


async def greet(stream: trio.SocketStream) -> None:
    async with stream:
        await stream.send_all(b"hello")


async def test_a_connection_is_taken_when_there_are_files_again(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    listener, port = await scarce_listener()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connections, listener, greet)
        await trio.sleep(59.5)
        assert [record.message for record in caplog.records] == [
            "a connection can't be accepted, and is tried again: [Errno 24] Too many open files"
        ]
        await trio.sleep(60)
        assert len(caplog.records) == 2
        listener.has_files = True
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            assert await stream.receive_some() == b"hello"
        nursery.cancel_scope.cancel()


async def test_there_is_a_pause_between_two_connections(
    autojump_clock: trio.testing.MockClock,
) -> None:
    listener, port = await scarce_listener()
    listener.has_files = True
    taken_s: list[float] = []

    async def note(stream: trio.SocketStream) -> None:
        async with stream:
            taken_s.append(trio.current_time())

    async def serve() -> None:
        await serve_connections(listener, note, pause_s=5)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
        nursery.start_soon(serve)
        await trio.sleep(14)
        nursery.cancel_scope.cancel()
    assert [later - before for before, later in itertools.pairwise(taken_s)] == [5, 5]
