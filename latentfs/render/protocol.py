"""What daemon and renderer say to each other, and how.

One message is one packet of a Unix ``SOCK_SEQPACKET`` socket: a tagged msgpack struct, and with it
at most one file descriptor of a memfd that holds the bulk bytes.  Bulk bytes are thus written once
and read once, whatever their size, and are freed by the kernel when either side dies.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from latentfs.images.framing import Framing
from latentfs.latents.recipe import Recipe
from latentfs.store.records import VaeFile

__all__ = [
    "ALIVE_INTERVAL_S",
    "Alive",
    "CancelRequest",
    "CannotStart",
    "Dropped",
    "Failed",
    "Message",
    "Ready",
    "RenderRequest",
    "Rendered",
    "ancillary_for",
    "decode_packet",
    "encode",
    "memfd_with",
    "read_and_close",
    "PACKET_BYTES_MAX",
]

ALIVE_INTERVAL_S = 1.0
PACKET_BYTES_MAX = 96 * 1024
ANCILLARY_BYTES = socket.CMSG_SPACE(array.array("i", [0]).itemsize)


class RenderRequest(msgspec.Struct, frozen=True, kw_only=True, tag="render"):
    """Render one latent.  The memfd holds payload, reference and chunks, one after the other.

    Attributes:
        number: names the request in the reply.
        follows: how many of the requests that come next are to be decoded together with this one;
            they have the same VAE, dtype, batch and latent shape.
        vae_folder, vae_files: the VAE and the hashes to verify when it is loaded.
        size_bytes: frame to exactly this size; None at import, where the size is found.
        payload_bytes: length of the payload.
        reference_bytes: length of a second payload, 0 for none: rendered only to measure the
            PSNR of the first against it.
        chunk_bytes: lengths of the metadata chunks kept in the file.
        trailing_chunks: how many of them, the last ones, are kept behind the pixel data.
        want_data: whether the file's bytes are to be sent back.
    """

    number: int
    follows: int = 0
    vae_folder: str
    vae_files: tuple[VaeFile, ...]
    recipe: Recipe
    framing: Framing
    size_bytes: int | None
    payload_bytes: int
    reference_bytes: int
    chunk_bytes: tuple[int, ...]
    trailing_chunks: int = 0
    want_data: bool


class CancelRequest(msgspec.Struct, frozen=True, tag="cancel"):
    """Nobody waits for that request any more: skip it if its decoding has not begun."""

    number: int


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The renderer has imported what it needs and takes requests.

    Attributes:
        device: the one it decodes on, such as ``cpu`` or ``cuda:0``.
        devices: all that the device it was asked for stands for, its own first: where there are
            several GPUs, each is to get a renderer.
    """

    torch_version: str
    device: str
    devices: tuple[str, ...]


class CannotStart(msgspec.Struct, frozen=True, tag="cannot-start"):
    """It can't render on the device that it was asked for, and ends."""

    reason: str


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """It is still working.  Sent every ``ALIVE_INTERVAL_S`` while it has requests.

    Attributes:
        compiling: that it compiles a VAE, which can take longer than a render may.
    """

    compiling: bool = False


class Rendered(msgspec.Struct, frozen=True, kw_only=True, tag="rendered"):
    """A finished file; its bytes, if wanted, are in the memfd.

    Attributes:
        encode_retries: how often it had to be encoded harder to fit its size.
        psnr_db: against the reference; None without one, infinite where equal.
        stages_s: seconds by stage, in the order they ran.
        received_s, finished_s: when the request was received and this was sent, on the monotonic
            clock that all processes of a machine share.
        pixel_data_sha256: of the part of the file that decides the pixels; only at import.
        recipe: the one it took, where the one asked for would not do; None otherwise.
    """

    number: int
    width: int
    height: int
    size_bytes: int
    sha256: bytes
    encode_retries: int
    psnr_db: float | None
    stages_s: dict[str, float]
    received_s: float = 0.0
    finished_s: float = 0.0
    pixel_data_sha256: bytes = b""
    recipe: Recipe | None = None


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The renderer can't render this content; it is well otherwise."""

    number: int
    message: str
    out_of_memory: bool = False


class Dropped(msgspec.Struct, frozen=True, tag="dropped"):
    """A request was cancelled before its decoding began."""

    number: int


Message = RenderRequest | CancelRequest | Ready | CannotStart | Alive | Rendered | Failed | Dropped
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    return msgspec.msgpack.encode(message)


def ancillary_for(fd: int | None) -> list[tuple[int, int, Any]]:
    """The ancillary data that carries *fd* in ``sendmsg``."""
    if fd is None:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]


def decode_packet(
    packet: bytes, ancillary: Iterable[tuple[int, int, bytes]]
) -> tuple[Message, int | None]:
    """Return the message and the file descriptor that came with it, now ours to close."""
    fd = None
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds = array.array("i")
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
            fd = fds[0]
    try:
        return _decoder.decode(packet), fd
    except msgspec.MsgspecError:
        if fd is not None:
            os.close(fd)
        raise


def memfd_with(parts: Sequence[bytes | memoryview]) -> int:
    """Return a memfd that holds *parts* one after the other."""
    fd = os.memfd_create("latentfs", os.MFD_CLOEXEC)
    try:
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[os.write(fd, view) :]
    except OSError:
        os.close(fd)
        raise
    return fd


def read_and_close(fd: int) -> bytes:
    """Return all bytes of a memfd and close it."""
    try:
        size_bytes = os.fstat(fd).st_size
        data = os.pread(fd, size_bytes, 0)
    finally:
        os.close(fd)
    return data
