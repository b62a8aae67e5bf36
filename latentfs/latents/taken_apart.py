"""A latent file taken apart into its latents and all the rest, and put together again.

Invariant: what :func:`take_apart` returns gives exactly the bytes of the file again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from latentfs.errors import RefusedLatentError
from latentfs.latents.diffusers import packed_bytes
from latentfs.latents.latent import Latent, little_endian_type
from latentfs.latents.latent_file import LatentFile
from latentfs.latents.safetensors_file import open_safetensors
from latentfs.latents.source import latent_tensor, read_latent_file

__all__ = ["TakenApart", "put_together", "take_apart", "tensor_bytes"]


@dataclass(frozen=True, slots=True)
class TakenApart:
    """A latent file in two parts.

    Attributes:
        file: its latents, and what it says about them.
        rest: the bytes of the file without those of the latents.
        offset: where in *rest* they belong.
        packed: whether they are packed as FLUX.1's are.
    """

    file: LatentFile
    rest: bytes
    offset: int
    packed: bool


def take_apart(data: bytes) -> TakenApart:
    """Take the bytes of a latent file apart.

    Raises:
        RefusedLatentError: it isn't one that can be imported, or would not be the same again.
    """
    fd = os.memfd_create("latent", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        path = f"/proc/self/fd/{fd}"
        with open_safetensors(path, max_bytes=len(data)) as opened:
            tensor = opened.tensors[latent_tensor(opened)]
        found = _read(path, len(data))
    finally:
        os.close(fd)
    end = tensor.start + tensor.nbytes
    rest = data[: tensor.start] + data[end:]
    apart = TakenApart(found, rest, tensor.start, found.kind == "diffusers-packed")
    tensor_again = tensor_bytes(found.latents, packed=apart.packed)
    if put_together(tensor_again, rest, offset=apart.offset) != data:
        raise RefusedLatentError("its latents can't be told from the rest without loss")
    return apart


def _read(path: str, size_bytes: int) -> LatentFile:
    try:
        return read_latent_file(path, max_bytes=size_bytes)
    except RefusedLatentError as error:
        raise RefusedLatentError(str(error).removeprefix(f"{path}: ")) from error


def put_together(tensor: bytes, rest: bytes, *, offset: int) -> bytes:
    """Return the bytes of the file that was taken apart."""
    return b"".join((rest[:offset], tensor, rest[offset:]))


def tensor_bytes(latents: Sequence[Latent], *, packed: bool) -> bytes:
    """Return what latents that follow each other are in the file.

    Raises:
        ValueError: they have a shape that can't be packed.
    """
    return b"".join(packed_bytes(x) if packed else _plain_bytes(x) for x in latents)


def _plain_bytes(latent: Latent) -> bytes:
    return latent.bits.astype(little_endian_type(latent.dtype), copy=False).tobytes()
