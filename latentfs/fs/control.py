"""The daemon's control socket: one JSON request a connection, one JSON answer.

The socket lies in the store, so the command line finds it from the store or from the mount's
source.  It belongs to the daemon's user, with mode 0600.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import trio

__all__ = ["ask_daemon", "serve_control"]

log = logging.getLogger(__name__)

_SOCKET_NAME = "control.sock"
_REQUEST_BYTES_MAX = 4096
_TIMEOUT_S = 5.0
_ANSWER_BYTES_MAX = 1 << 20


@contextlib.contextmanager
def _short_path(store_path: Path) -> Iterator[str]:
    """A path to the socket that fits sun_path's 107 bytes, however long the store's is."""
    fd = os.open(store_path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{_SOCKET_NAME}"
    finally:
        os.close(fd)


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.asynccontextmanager
async def serve_control(
    store_path: Path, commands: Mapping[str, Callable[[], dict[str, Any]]]
) -> AsyncIterator[None]:
    """Answer the *commands* while the block runs."""
    (store_path / _SOCKET_NAME).unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _short_path(store_path) as path, _umask(0o177):
        listening.bind(path)
    listening.listen(16)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))

    def reply_to(request: bytes | bytearray) -> dict[str, Any]:
        command = commands.get(str(_command(request)))
        if command is None:
            return {"error": "unknown command"}
        try:
            return command()
        except Exception as error:  # asking how it does must never end it
            log.exception("a command on the control socket failed")
            return {"error": f"{type(error).__name__}: {error}"}

    async def answer(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(_TIMEOUT_S):
            request = await stream.receive_some(_REQUEST_BYTES_MAX)
            await stream.send_all(json.dumps(reply_to(request)).encode())
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
            (store_path / _SOCKET_NAME).unlink(missing_ok=True)


def _command(request: bytes | bytearray) -> object:
    try:
        parsed = json.loads(request)
    except (ValueError, RecursionError):
        return None
    return parsed.get("command") if isinstance(parsed, dict) else None


def ask_daemon(store_path: Path, command: str) -> dict[str, Any] | None:
    """Return the answer of the daemon that has the store mounted, None where there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_TIMEOUT_S)
        try:
            with _short_path(store_path) as path:
                connection.connect(path)
            connection.sendall(json.dumps({"command": command}).encode())
            parts = []
            while part := connection.recv(_ANSWER_BYTES_MAX):
                parts.append(part)
        except OSError:
            return None
    try:
        answer = json.loads(b"".join(parts))
    except ValueError:  # it ended before it answered
        return None
    return answer if isinstance(answer, dict) else None
