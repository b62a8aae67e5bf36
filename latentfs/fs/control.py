"""The daemon's control socket: one JSON request a connection, one JSON answer.

A request is an object on one line: ``command``, and the arguments of that command by their names.
The socket lies in the store, so the command line finds it from the store or from the mount's
source.  It belongs to the daemon's user, with mode 0600, and only that user and root are answered.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import trio

from latentfs.errors import InvalidArgumentError, LatentfsError
from latentfs.telemetry.accepting import serve_connections

__all__ = ["Command", "ask_daemon", "serve_control"]

log = logging.getLogger(__name__)

Command = Callable[..., dict[str, Any]]
"""Answers at once, and is given the arguments of a request by their names."""

_SOCKET_NAME = "control.sock"
_REQUEST_BYTES_MAX = 4096
_ERROR_CHARACTERS_MAX = 1000
_TIMEOUT_S = 5.0
_NOT_PERMITTED = "only the user of the daemon and root are answered"
_ANSWER_BYTES_MAX = 1 << 20
_PEER_CREDENTIALS = struct.Struct("3i")


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
async def serve_control(store_path: Path, commands: Mapping[str, Command]) -> AsyncIterator[None]:
    """Answer the *commands* while the block runs.

    What can't be answered gets ``{"error": reason}``, and never ends the block.
    """
    listening = _bound_socket(store_path)
    if listening is None:
        yield
        return
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))

    async def answer(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(_TIMEOUT_S):
            request = await _request(stream)
            refused = {"error": _NOT_PERMITTED}
            reply = _reply(request, commands) if _is_permitted(stream) else refused
            await stream.send_all(json.dumps(reply).encode())
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connections, listener, answer)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
            (store_path / _SOCKET_NAME).unlink(missing_ok=True)


def _bound_socket(store_path: Path) -> socket.socket | None:
    """Return the socket, to which programs can connect; None on a medium that can't be written."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        (store_path / _SOCKET_NAME).unlink(missing_ok=True)
        with _short_path(store_path) as path, _umask(0o177):
            listening.bind(path)
    except OSError as error:
        listening.close()
        if error.errno != errno.EROFS:
            raise
        log.warning(
            "latentfs status and top can't ask this mount: no socket can be made in %s, which is "
            "on a read-only file system",
            store_path,
        )
        return None
    listening.listen(16)
    return listening


def _is_permitted(stream: trio.SocketStream) -> bool:
    """Whether the other end belongs to the daemon's user or root.

    The mode of the socket says the same, but whoever owns the store's folder can change it.
    """
    option = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    assert isinstance(option, bytes)
    _, uid, _ = _PEER_CREDENTIALS.unpack(option)
    return uid in (0, os.geteuid())


async def _request(stream: trio.SocketStream) -> bytes:
    """Return the first line, or what there is of it when the other end stops sending.

    All of it is taken, as the other end might not get the answer otherwise, but no more is kept
    than a request can have.
    """
    request = b""
    while piece := await stream.receive_some(_REQUEST_BYTES_MAX):
        line, newline, _ = bytes(piece).partition(b"\n")
        request = (request + line)[: _REQUEST_BYTES_MAX + 1]
        if newline:
            break
    return request


def _reply(request: bytes, commands: Mapping[str, Command]) -> dict[str, Any]:
    try:
        name, arguments = _parsed(request)
        command = commands.get(name)
        if command is None:
            raise InvalidArgumentError(f"unknown command; there are {', '.join(sorted(commands))}")
        _check_arguments(command, name, arguments)
        return command(**arguments)
    except LatentfsError as error:
        return {"error": str(error)[:_ERROR_CHARACTERS_MAX]}
    except Exception as error:  # asking how it does must never end it
        log.exception("a command on the control socket failed")
        return {"error": f"{type(error).__name__}: {error}"[:_ERROR_CHARACTERS_MAX]}


def _parsed(request: bytes) -> tuple[str, dict[str, Any]]:
    try:
        parsed = json.loads(request) if len(request) <= _REQUEST_BYTES_MAX else None
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("command"), str):
        raise InvalidArgumentError('a request is one line of JSON, such as {"command": "status"}')
    return parsed.pop("command"), parsed


def _check_arguments(command: Command, name: str, arguments: dict[str, Any]) -> None:
    signature = inspect.signature(command)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        names = ", ".join(signature.parameters) or "no arguments"
        raise InvalidArgumentError(f"{name} takes {names}: {error}") from error


def ask_daemon(store_path: Path, command: str, **arguments: object) -> dict[str, Any] | None:
    """Return the answer of the daemon that has the store mounted, None where there is none.

    None also where it does not answer within 5 s.  Where it, or the kernel for it, refuses to
    answer this user, that is the ``error`` of the answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_TIMEOUT_S)
        try:
            with _short_path(store_path) as path:
                connection.connect(path)
            request = json.dumps({"command": command, **arguments}) + "\n"
            connection.sendall(request.encode())
            parts = []
            while part := connection.recv(_ANSWER_BYTES_MAX):
                parts.append(part)
        except PermissionError:
            return {"error": _NOT_PERMITTED}
        except OSError:
            return None
    try:
        answer = json.loads(b"".join(parts))
    except ValueError:  # it ended before it answered
        return None
    return answer if isinstance(answer, dict) else None
