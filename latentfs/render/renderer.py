"""The renderer process: from (recipe, payload, framing) to finished file bytes.

Started by the daemon as ``python -m latentfs.render.renderer FD DEVICE`` with one end of a socket
pair; it ends when the socket does.  Nothing it is sent can make it wrong for the next request: what
fails is answered with ``Failed``.

Three stages overlap, each in threads of its own:

* **intake** receives requests and decompresses their latents;
* **decode**, the main thread, decodes one group after the other;
* **finish** encodes, frames and sends.

The finishing threads have a bounded queue, so that no more than a few pictures are held; how many
requests there are at all is the daemon's to decide.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import math
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import torch

from latentfs.errors import InvalidArgumentError, LatentfsError
from latentfs.images.framing import Fitted, encode_to_size, frame_first
from latentfs.images.parts import take_picture_apart
from latentfs.latents import payload as payload_codec
from latentfs.render import protocol
from latentfs.render.decode import DeviceLostError, OutOfMemoryError
from latentfs.render.decoder import Decoder, Picture, Task
from latentfs.render.device_memory import free_memory
from latentfs.render.devices import choose_devices
from latentfs.render.protocol import (
    Alive,
    CancelRequest,
    CannotStart,
    Dropped,
    Failed,
    Ready,
    Rendered,
    RenderRequest,
)
from latentfs.telemetry.logs import configure_logging

log = logging.getLogger(__name__)

_IDLE_S = 10.0
_FINISHERS_MAX = 8
_DEVICE_LOST_STATUS = 3
# The daemon and those who read what it has are to run at once, though each core has a thread that
# decodes.  With 5 the 99th percentile of cached reads was a third longer, without any twice as
# long; with 15 it was hardly shorter, and any busy process would take 28 times a renderer's share.
_CPU_NICENESS = 10


class Renderer:
    """Serves requests from one socket until it is closed."""

    def __init__(self, connection: socket.socket, device: torch.device) -> None:
        self._connection = connection
        self._decoder = Decoder(device)
        # A GPU is faster than one encoder; on a CPU the encoder takes the decoder's cores.
        cores = len(os.sched_getaffinity(0))
        self._finishers = 1 if device.type == "cpu" else max(1, min(cores - 1, _FINISHERS_MAX))
        self._groups: queue.Queue[list[Task]] = queue.Queue()
        self._pictures: queue.Queue[tuple[Task, Picture]] = queue.Queue(2 * self._finishers)
        # Both are shared by all threads; single operations on them are atomic.
        self._unanswered: set[int] = set()
        self._cancelled: set[int] = set()

    def serve(self) -> None:
        """Decode until the process ends.  Called once, in the main thread."""
        for run in (self._receive, self._keep_alive, *[self._finish] * self._finishers):
            threading.Thread(target=_ending_the_process(run), daemon=True).start()
        while True:
            self._decode(self._next_group())

    # Intake

    def _receive(self) -> None:
        group: list[Task] = []
        while True:
            packet, ancillary, _, _ = self._connection.recvmsg(
                protocol.PACKET_BYTES_MAX, protocol.ANCILLARY_BYTES
            )
            if not packet:
                return
            message, fd = protocol.decode_packet(packet, ancillary)
            if isinstance(message, CancelRequest):
                if message.number in self._unanswered:
                    self._cancelled.add(message.number)
                continue
            if not isinstance(message, RenderRequest) or fd is None:
                raise RuntimeError(f"unexpected message {type(message).__name__}")
            self._unanswered.add(message.number)
            task = self._take(message, fd)
            if task is not None:
                group.append(task)
            if message.follows == 0 and group:
                self._groups.put(group)
                group = []

    def _take(self, request: RenderRequest, fd: int) -> Task | None:
        """Return the request with its latent decompressed; None if it has been answered."""
        received_s = time.monotonic()
        try:
            payload, reference, chunks = _split(request, memoryview(protocol.read_and_close(fd)))
            task = Task(
                request=request,
                latent=payload_codec.decode(payload),
                reference=bytes(reference),
                chunks=chunks,
                received_s=received_s,
            )
        except Exception as error:
            self._fail(request, error)
            return None
        task.stages_s["decompress"] = time.monotonic() - received_s
        return task

    # Decode

    def _next_group(self) -> list[Task]:
        try:
            return self._groups.get(timeout=_IDLE_S)
        except queue.Empty:
            _return_memory()
            return self._groups.get()

    def _decode(self, group: list[Task]) -> None:
        wanted = [task for task in group if not self._was_cancelled(task)]
        if not wanted:
            return
        for task in wanted:
            task.lap("wait")
        try:
            outcomes = self._decoder.decode(wanted)
        except DeviceLostError:
            raise
        except Exception as error:
            for task in wanted:
                self._fail(task.request, error)
            return
        for task, outcome in zip(wanted, outcomes, strict=True):
            if isinstance(outcome, Picture):
                self._pictures.put((task, outcome))
            else:
                self._fail(task.request, outcome)

    def _was_cancelled(self, task: Task) -> bool:
        number = task.request.number
        if number not in self._cancelled:
            return False
        self._answer(Dropped(number), number)
        return True

    # Finish

    def _finish(self) -> None:
        while True:
            task, picture = self._pictures.get()
            try:
                reply, data = _finished(task, picture)
            except Exception as error:
                self._fail(task.request, error)
                continue
            self._send_file(task, reply, data)
            del task, picture, reply, data  # not to be held while the next one is waited for

    def _send_file(self, task: Task, reply: Rendered, data: bytes) -> None:
        if not task.request.want_data:
            self._answer(reply, reply.number)
            return
        fd = protocol.memfd_with([data])
        try:
            self._answer(reply, reply.number, fd)
        finally:
            os.close(fd)

    # Answers

    def _fail(self, request: RenderRequest, error: Exception) -> None:
        if isinstance(error, LatentfsError):
            message = str(error)
        else:
            log.error("request %d failed unexpectedly", request.number, exc_info=error)
            message = f"{type(error).__name__}: {error}"[:2000]
        out_of_memory = isinstance(error, (OutOfMemoryError, MemoryError))
        self._answer(Failed(request.number, message, out_of_memory), request.number)

    def _answer(self, message: protocol.Message, number: int, fd: int | None = None) -> None:
        self._send(message, fd)
        self._unanswered.discard(number)
        self._cancelled.discard(number)

    def _send(self, message: protocol.Message, fd: int | None = None) -> None:
        self._connection.sendmsg([protocol.encode(message)], protocol.ancillary_for(fd))

    def _keep_alive(self) -> None:
        """A process that was stopped, or starves, is told from one that works on something long."""
        while True:
            time.sleep(protocol.ALIVE_INTERVAL_S)
            if self._unanswered:
                self._send(Alive(self._decoder.compiling))


def _ending_the_process(run: Callable[[], None]) -> Callable[[], None]:
    """Return *run* as a thread's target: when it returns or raises, the whole process ends.

    At once, as nobody is left to take what other threads are still at.
    """

    def target() -> None:
        status = 1
        try:
            run()
            status = 0
        except (BrokenPipeError, ConnectionResetError):  # the daemon is gone
            status = 0
        except BaseException:
            log.exception("the renderer ends")
        finally:
            os._exit(status)

    return target


def _return_memory() -> None:
    """Give back what malloc keeps for the next decode, now that none is in sight."""
    free_memory()
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _split(request: RenderRequest, bulk: memoryview) -> tuple[memoryview, memoryview, list[bytes]]:
    """Cut the bulk bytes into payload, reference and metadata chunks."""
    pieces, start = [], 0
    for length in (request.payload_bytes, request.reference_bytes, *request.chunk_bytes):
        pieces.append(bulk[start : start + length])
        start += length
    return pieces[0], pieces[1], [bytes(piece) for piece in pieces[2:]]


def _finished(task: Task, picture: Picture) -> tuple[Rendered, bytes]:
    """Return the finished file and the report of it."""
    task.lap("handover")
    fitted = _fitted(task, picture)
    task.lap("encode")
    digest = hashlib.sha256(fitted.data).digest()
    pixel_data = b""
    if task.request.size_bytes is None:
        pixel_data = take_picture_apart(fitted.data).pixel_data_sha256
    task.lap("frame")
    task.stages_s["encode"] -= fitted.pad_s
    task.stages_s["frame"] += fitted.pad_s
    psnr_db = None
    if picture.reference is not None:
        psnr_db = _psnr_db(picture.pixels, picture.reference)
    height, width, _ = picture.pixels.shape
    reply = Rendered(
        number=task.request.number,
        width=width,
        height=height,
        size_bytes=len(fitted.data),
        sha256=digest,
        encode_retries=fitted.retries,
        psnr_db=psnr_db,
        stages_s=task.stages_s,
        received_s=task.received_s,
        finished_s=time.monotonic(),
        pixel_data_sha256=pixel_data,
        recipe=picture.recipe,
    )
    return reply, fitted.data


def _fitted(task: Task, picture: Picture) -> Fitted:
    request = task.request
    if request.size_bytes is None:
        return frame_first(picture.pixels, request.framing, metadata=task.chunks)
    leading = len(task.chunks) - request.trailing_chunks
    return encode_to_size(
        picture.pixels,
        request.framing,
        metadata=task.chunks[:leading],
        trailing=task.chunks[leading:],
        size_bytes=request.size_bytes,
    )


def _psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    mean_square = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return math.inf if mean_square == 0 else 10 * math.log10(255**2 / mean_square)


def main() -> None:
    # Ctrl-C on a terminal reaches the whole process group; the daemon decides when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logging(level="warning", log_format="json", destination="stderr")
    connection = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the daemon is gone
        _serve(connection, sys.argv[2])


def _serve(connection: socket.socket, wanted: str) -> None:
    try:
        devices = choose_devices(wanted)
    except InvalidArgumentError as error:
        connection.sendmsg([protocol.encode(CannotStart(str(error)))])
        return
    if devices[0] == "cpu":
        os.nice(_CPU_NICENESS)
    ready = Ready(torch_version=str(torch.__version__), device=devices[0], devices=devices)
    connection.sendmsg([protocol.encode(ready)])
    try:
        Renderer(connection, torch.device(devices[0])).serve()
    except DeviceLostError as error:
        log.error("%s has failed: %s", devices[0], error)
        os._exit(_DEVICE_LOST_STATUS)


if __name__ == "__main__":
    main()
