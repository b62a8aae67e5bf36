"""An HTTP/1.1 client that tells whole answers from those that were cut off."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

__all__ = ["Answer", "Exchange", "ask", "asked"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back until the server closed the connection.

    Attributes:
        status: 0 when the connection was closed before a status came.
        headers: by lower-case name.
        wait_s: from the connection to the end.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    wait_s: float

    @property
    def is_whole(self) -> bool:
        """Whether a client takes it for complete: it has as many bytes as it announced."""
        return len(self.body) == int(self.headers.get("content-length", -1))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


class Exchange:
    """A request that was sent, and what has come of its answer."""

    def __init__(self, connection: trio.socket.SocketType) -> None:
        self._connection = connection
        self._received = bytearray()
        self._begin_s = trio.current_time()

    async def receive(self, size: int) -> bool:
        """Wait for up to *size* more bytes; False where the server has closed the connection."""
        try:
            piece = await self._connection.recv(size)
        except ConnectionResetError:
            return False  # what has come until then says it
        self._received += piece
        return bool(piece)

    async def answer(self) -> Answer:
        """Wait until the server closes the connection."""
        while await self.receive(1 << 18):
            pass
        return _parsed(bytes(self._received), wait_s=trio.current_time() - self._begin_s)


@asynccontextmanager
async def asked(
    port: int,
    target: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    source: str = "127.0.0.1",
    is_slow: bool = False,
) -> AsyncIterator[Exchange]:
    """Ask the server on 127.0.0.1 for *target* over a connection of its own, from *source*.

    Little is on its way at a time to a client that *is_slow*: small packets, small buffers.
    """
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    with trio.socket.socket() as connection:
        if is_slow:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1024)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await connection.bind((source, 0))
        await connection.connect(("127.0.0.1", port))
        await connection.send("\r\n".join([*lines, "", ""]).encode())  # fits a buffer
        yield Exchange(connection)


async def ask(
    port: int,
    target: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    source: str = "127.0.0.1",
) -> Answer:
    """Return the whole answer to what ``asked`` asks."""
    async with asked(port, target, method=method, headers=headers, source=source) as exchange:
        return await exchange.answer()


def _parsed(received: bytes, *, wait_s: float) -> Answer:
    head, separator, body = received.partition(b"\r\n\r\n")
    if not separator:
        return Answer(0, {}, b"", wait_s)
    status, *fields = head.decode("latin-1").split("\r\n")
    pairs = (field.partition(":") for field in fields)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    return Answer(int(status.split()[1]), headers, body, wait_s)
