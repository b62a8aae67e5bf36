"""What a diffusers pipeline returns for ``output_type="latent"``, saved with safetensors.

Invariant: packed latents are unpacked as FLUX.1's own pipeline does, and only with the height and
width they were made with, which can't be told from the tensor.

Source: ``FluxPipeline._unpack_latents`` of diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from latentfs.errors import RefusedLatentError
from latentfs.latents.batch import check_batch, check_finite, dtype_of, read_batch
from latentfs.latents.latent import MAX_SIDE, Dtype, Latent, check_shape, little_endian_type
from latentfs.latents.latent_file import LatentFile
from latentfs.latents.safetensors_file import SafetensorsFile
from latentfs.latents.scaling import Space

__all__ = ["TENSORS", "packed_bytes", "read_diffusers"]

TENSORS: Final = ("latents", "latent")
"""Names people save them under; the first that is there is read."""

_PACKED_CHANNELS: Final = 64
_CHANNELS: Final = 16
_PIXELS_PER_CELL: Final = 8
_PIXELS_PER_TOKEN: Final = 16  # a token holds 2x2 cells
_MAX_PIXELS: Final = MAX_SIDE * _PIXELS_PER_CELL


def read_diffusers(file: SafetensorsFile, name: str) -> LatentFile:
    """Read tensor ``name``, one of :data:`TENSORS`: [B, C, h, w], or packed [B, N, 64].

    Raises:
        RefusedLatentError: the tensor isn't the latents of pictures.
    """
    packed = len(file.tensors[name].shape) == 3
    return LatentFile(
        latents=_read_packed(file, name) if packed else read_batch(file, name),
        space=Space.SCALED,
        kind="diffusers-packed" if packed else "diffusers",
        text=(),
        source_metadata=file.metadata,
    )


def _read_packed(file: SafetensorsFile, name: str) -> tuple[Latent, ...]:
    tensor = file.tensors[name]
    dtype = dtype_of(name, tensor)
    count, tokens, channels = tensor.shape
    if channels != _PACKED_CHANNELS:
        raise RefusedLatentError(
            f"{name!r} has shape {list(tensor.shape)}: three dimensions are taken as packed FLUX.1 "
            f"latents, [batch, tokens, {_PACKED_CHANNELS}]; save others unpacked, [batch, "
            "channels, height, width]"
        )
    down, across = (_tokens(file.metadata, side) for side in ("height", "width"))
    if down * across != tokens:
        raise RefusedLatentError(
            f"height {file.metadata['height']} and width {file.metadata['width']} make "
            f"{down}x{across} tokens, but {name!r} has {tokens}; save the height and width that "
            "the pipeline was called with"
        )
    check_batch(count)
    check_shape((_CHANNELS, 2 * down, 2 * across))
    latents = tuple(_unpacked(memoryview(file.read(name)), count, dtype, (down, across)))
    check_finite(latents)
    return latents


def packed_bytes(latent: Latent) -> bytes:
    """Return a latent's numbers as they are in a packed tensor: the reverse of unpacking."""
    channels, height, width = latent.shape
    cells = latent.bits.reshape(channels, height // 2, 2, width // 2, 2).transpose(1, 3, 0, 2, 4)
    return cells.astype(little_endian_type(latent.dtype)).tobytes()


def _tokens(metadata: Mapping[str, str], side: str) -> int:
    if side not in metadata:
        raise RefusedLatentError(
            f"packed latents need their {side} in pixels, which can't be told from the tensor; "
            'save it in the metadata: save_file(tensors, path, metadata={"height": "1024", '
            '"width": "1024"})'
        )
    text = metadata[side]
    # Length first: int() of a long string is slow.
    pixels = int(text) if len(text) <= 9 and text.isascii() and text.isdigit() else 0
    if not _PIXELS_PER_TOKEN <= pixels <= _MAX_PIXELS:
        raise RefusedLatentError(
            f"{side} {text[:20]!a} in the metadata isn't a number of pixels from "
            f"{_PIXELS_PER_TOKEN} to {_MAX_PIXELS}"
        )
    return pixels // _PIXELS_PER_TOKEN


def _unpacked(
    data: memoryview, count: int, dtype: Dtype, tokens: tuple[int, int]
) -> Iterator[Latent]:
    down, across = tokens
    stored = little_endian_type(dtype)
    batch = np.frombuffer(data, dtype=stored).reshape(count, down, across, _CHANNELS, 2, 2)
    for item in batch:
        cells = item.transpose(2, 0, 3, 1, 4).reshape(_CHANNELS, 2 * down, 2 * across)
        yield Latent(bits=cells.astype(stored.newbyteorder("="), copy=False), dtype=dtype)
