"""An HTTP/1.1 client that tells whole answers from those that were cut off."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import trio

__all__ = ["Answer", "ask"]


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


async def ask(
    port: int,
    target: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    source: str = "127.0.0.1",
) -> Answer:
    """Ask the server on 127.0.0.1 for *target* over a connection of its own, from *source*."""
    begin_s = trio.current_time()
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    received = bytearray()
    with trio.socket.socket() as connection:
        await connection.bind((source, 0))
        await connection.connect(("127.0.0.1", port))
        await connection.send("\r\n".join([*lines, "", ""]).encode())  # fits a buffer
        try:
            while piece := await connection.recv(1 << 18):
                received += piece
        except ConnectionResetError:
            pass  # what has come until then says it
    return _parsed(bytes(received), wait_s=trio.current_time() - begin_s)


def _parsed(received: bytes, *, wait_s: float) -> Answer:
    head, separator, body = received.partition(b"\r\n\r\n")
    if not separator:
        return Answer(0, {}, b"", wait_s)
    status, *fields = head.decode("latin-1").split("\r\n")
    pairs = (field.partition(":") for field in fields)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    return Answer(int(status.split()[1]), headers, body, wait_s)
