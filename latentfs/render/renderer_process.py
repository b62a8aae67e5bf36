"""Daemon side: one renderer process and the socket to it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from typing import BinaryIO

import msgspec
import trio

from latentfs.errors import RendererLostError, RenderFailedError
from latentfs.render import QUIET_ENVIRONMENT, TORCH_ENVIRONMENT, protocol
from latentfs.render.protocol import Message, RenderRequest

__all__ = ["RendererProcess", "open_renderer"]

log = logging.getLogger(__name__)

_KILL_WAIT_S = 10.0
_LINE_BYTES_MAX = 64 * 1024


class RendererProcess:
    """A live renderer.  Sending and receiving may go on at the same time, in one task each."""

    def __init__(self, process: trio.Process, connection: trio.socket.SocketType) -> None:
        self._process = process
        self._connection = connection

    @property
    def pid(self) -> int:
        return self._process.pid

    async def send(
        self, group: Sequence[tuple[RenderRequest, list[bytes]]]
    ) -> dict[int, RenderFailedError]:
        """Send requests, each with its bulk bytes, that are to be decoded together.

        How many follow is set here: the renderer waits for none of those that can't be sent.  If
        cancelled, each has either been sent whole or not at all.

        Returns:
            By their numbers, why requests were not sent although the renderer is well.

        Raises:
            RendererLostError: the process is gone.
        """
        unsent: dict[int, RenderFailedError] = {}
        sendable: list[tuple[RenderRequest, int]] = []
        with contextlib.ExitStack() as opened:
            # All first: the last one sent has to say that it is the last.
            for request, bulk in group:
                try:
                    fd = _memfd_for(request, bulk, follows_max=len(group) - 1)
                except RenderFailedError as error:
                    unsent[request.number] = error
                    continue
                opened.callback(os.close, fd)
                sendable.append((request, fd))
            for index, (request, fd) in enumerate(sendable):
                follows = len(sendable) - index - 1
                await self.send_message(msgspec.structs.replace(request, follows=follows), fd)
        if not sendable:
            await trio.lowlevel.checkpoint()
        return unsent

    async def send_message(self, message: Message, fd: int | None = None) -> None:
        """Send a message without bulk bytes, or with those of *fd*.

        If cancelled, it has either been sent whole or not at all.

        Raises:
            RendererLostError: the process is gone.
        """
        packet = protocol.encode(message)
        try:
            await self._connection.sendmsg([packet], protocol.ancillary_for(fd))
        except OSError as error:
            raise self._lost(error.strerror) from error

    async def receive(self) -> tuple[Message, bytes | None]:
        """Return the next message and its bulk bytes.

        Raises:
            RendererLostError: the process is gone or talks nonsense.
        """
        try:
            packet, ancillary, _, _ = await self._connection.recvmsg(
                protocol.PACKET_BYTES_MAX, protocol.ANCILLARY_BYTES
            )
            if not packet:
                raise self._lost("it closed its socket")
            message, fd = protocol.decode_packet(packet, ancillary)
            return message, None if fd is None else protocol.read_and_close(fd)
        except OSError as error:
            raise self._lost(error.strerror) from error
        except msgspec.MsgspecError as error:
            raise self._lost(f"it sent {error}") from error

    def _lost(self, reason: str | None) -> RendererLostError:
        return RendererLostError(f"renderer process {self.pid} was lost: {reason}")


def _memfd_for(request: RenderRequest, bulk: list[bytes], *, follows_max: int) -> int:
    """Return a memfd with the bulk bytes of a request that a packet has room for.

    Raises:
        RenderFailedError: it has none, or the daemon lacks what a memfd takes.
    """
    packet_bytes = len(protocol.encode(msgspec.structs.replace(request, follows=follows_max)))
    if packet_bytes > protocol.PACKET_BYTES_MAX:
        raise RenderFailedError(
            f"it has {len(request.chunk_bytes)} metadata chunks, which makes a request of "
            f"{packet_bytes} bytes to the renderer, and {protocol.PACKET_BYTES_MAX} are possible; "
            "import it with fewer"
        )
    try:
        return protocol.memfd_with(bulk)
    except OSError as error:
        raise RenderFailedError(
            f"it could not be handed to the renderer: {error.strerror}, errno {error.errno}; "
            "free memory, or raise the limit of open files"
        ) from error


@contextlib.asynccontextmanager
async def open_renderer(device: str) -> AsyncIterator[RendererProcess]:
    """Start a renderer for *device*; kill it, and wait until it is gone, when the block is left.

    Raises:
        RendererLostError: the process can't be started.
    """
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise RendererLostError(f"no socket for a renderer: {error.strerror}") from error
    with contextlib.closing(trio.socket.from_stdlib_socket(ours)) as connection:
        with theirs:
            process = await _start(theirs.fileno(), device)
        try:
            yield RendererProcess(process, connection)
        finally:
            process.kill()
            with trio.move_on_after(_KILL_WAIT_S, shield=True) as wait:
                await process.wait()
            if wait.cancelled_caught:  # stuck in the kernel, for instance in a device driver
                log.error("renderer process %d does not end; left alone", process.pid)


async def _start(fd: int, device: str) -> trio.Process:
    read_fd, write_fd = os.pipe()
    printed = os.fdopen(read_fd, "rb")
    try:
        process = await _started(fd, device, stderr_fd=write_fd)
    except BaseException:
        printed.close()
        raise
    finally:
        os.close(write_fd)
    # A thread: whatever the loop does, a renderer never waits for its line to be taken.  It ends
    # with the renderer, and what that has started.
    try:
        threading.Thread(target=_log_lines, args=(printed, process.pid), daemon=True).start()
    except RuntimeError as error:
        printed.close()
        process.kill()
        raise RendererLostError(f"no renderer can be started: {error}") from error
    return process


async def _started(fd: int, device: str, *, stderr_fd: int) -> trio.Process:
    try:
        return await trio.lowlevel.open_process(
            [sys.executable, "-m", "latentfs.render.renderer", str(fd), device],
            stdin=subprocess.DEVNULL,
            stderr=stderr_fd,
            pass_fds=[fd],
            env={**TORCH_ENVIRONMENT, **os.environ, **QUIET_ENVIRONMENT},
        )
    except (OSError, RuntimeError) as error:  # for want of processes, or of threads
        raise RendererLostError(f"no renderer can be started: {error}") from error


def _log_lines(printed: BinaryIO, pid: int) -> None:
    """Log what a renderer prints on standard error, as lines of this process."""
    with printed:
        while line := printed.readline(_LINE_BYTES_MAX):
            level, message, traceback = _parsed(line)
            if log.isEnabledFor(level):
                place = (__file__, 0)
                record = log.makeRecord(
                    log.name, level, *place, "renderer %d: %s", (pid, message), None
                )
                record.exc_text = traceback
                log.handle(record)


def _parsed(line: bytes) -> tuple[int, str, str | None]:
    """Return level, message and traceback of what may be a log line of a renderer.

    What is none, such as a library's chatter, counts as a warning.
    """
    try:
        fields = json.loads(line)
        level = logging.getLevelNamesMapping()[fields["level"]]
        return level, fields["message"], fields.get("exception")
    except (ValueError, RecursionError, TypeError, LookupError):
        return logging.WARNING, line.decode("utf-8", "backslashreplace").rstrip(), None
