"""The renderer process: from (recipe, payload, framing) to finished file bytes.

Started by the daemon as ``python -m latentfs.render.renderer FD`` with one end of a socket pair.
It works on one request after the other, in the order they come, and ends when the socket does.
Nothing it is sent can make it wrong for the next request: what fails is answered with ``Failed``.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import signal
import socket
import sys
import time

import numpy as np
import torch

from latentfs.errors import LatentfsError
from latentfs.images.framing import encode_to_size, frame_first
from latentfs.latents import payload as payload_codec
from latentfs.render import protocol
from latentfs.render.decode import decode_pixels
from latentfs.render.protocol import Failed, Ready, Rendered, RenderRequest
from latentfs.render.vae_models import VaeModels

log = logging.getLogger(__name__)


class Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.stages_s: dict[str, float] = {}
        self._last_s = time.perf_counter()

    def lap(self, stage: str) -> None:
        now_s = time.perf_counter()
        self.stages_s[stage] = now_s - self._last_s
        self._last_s = now_s


class Renderer:
    """Serves requests from one socket until it is closed."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._models = VaeModels()

    def serve(self) -> None:
        self._send(Ready(torch_version=str(torch.__version__)))
        while True:
            packet, ancillary, _, _ = self._connection.recvmsg(
                protocol.PACKET_BYTES_MAX, protocol.ANCILLARY_BYTES
            )
            if not packet:
                return
            request, fd = protocol.decode_packet(packet, ancillary)
            if not isinstance(request, RenderRequest) or fd is None:
                raise RuntimeError(f"unexpected message {type(request).__name__}")
            self._answer(request, protocol.read_and_close(fd))

    def _answer(self, request: RenderRequest, bulk: bytes) -> None:
        try:
            reply, data = self._render(request, memoryview(bulk))
        except LatentfsError as error:
            self._send(Failed(request.number, str(error)))
            return
        except Exception as error:
            log.exception("request %d failed unexpectedly", request.number)
            self._send(Failed(request.number, f"{type(error).__name__}: {error}"[:2000]))
            return
        if not request.want_data:
            self._send(reply)
            return
        fd = protocol.memfd_with([data])
        try:
            self._send(reply, fd)
        finally:
            os.close(fd)

    def _send(self, message: protocol.Message, fd: int | None = None) -> None:
        self._connection.sendmsg([protocol.encode(message)], protocol.ancillary_for(fd))

    def _render(self, request: RenderRequest, bulk: memoryview) -> tuple[Rendered, bytes]:
        watch = Stopwatch()
        payload, reference, chunks = _split(request, bulk)
        latent = payload_codec.decode(payload)
        watch.lap("decompress")
        vae = self._models.get(
            request.vae_folder,
            request.vae_files,
            class_name=request.recipe.vae_class,
            dtype=request.recipe.dtype,
        )
        watch.lap("load")
        pixels = decode_pixels(vae, latent, request.recipe)
        watch.lap("decode")
        psnr_db = None
        if reference:
            exact = decode_pixels(vae, payload_codec.decode(reference), request.recipe)
            psnr_db = _psnr_db(pixels, exact)
            watch.lap("compare")
        data, retries = _frame(request, pixels, chunks)
        watch.lap("encode")
        reply = Rendered(
            number=request.number,
            width=pixels.shape[1],
            height=pixels.shape[0],
            size_bytes=len(data),
            sha256=hashlib.sha256(data).digest(),
            encode_retries=retries,
            psnr_db=psnr_db,
            stages_s=watch.stages_s,
        )
        return reply, data


def _split(request: RenderRequest, bulk: memoryview) -> tuple[memoryview, memoryview, list[bytes]]:
    """Cut the bulk bytes into payload, reference and metadata chunks."""
    pieces, start = [], 0
    for length in (request.payload_bytes, request.reference_bytes, *request.chunk_bytes):
        pieces.append(bulk[start : start + length])
        start += length
    return pieces[0], pieces[1], [bytes(piece) for piece in pieces[2:]]


def _frame(request: RenderRequest, pixels: np.ndarray, chunks: list[bytes]) -> tuple[bytes, int]:
    if request.size_bytes is None:
        return frame_first(pixels, request.framing, metadata=chunks), 0
    fitted = encode_to_size(pixels, request.framing, metadata=chunks, size_bytes=request.size_bytes)
    return fitted.data, fitted.retries


def _psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    mean_square = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return math.inf if mean_square == 0 else 10 * math.log10(255**2 / mean_square)


def main() -> None:
    # Ctrl-C on a terminal reaches the whole process group; the daemon decides when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="renderer: %(message)s")
    connection = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the daemon is gone
        Renderer(connection).serve()


if __name__ == "__main__":
    main()
