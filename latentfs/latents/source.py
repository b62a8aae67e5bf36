"""The door for files that users bring: a latent file is read whole and right, or refused.

Invariant: whatever the bytes are, :func:`read_latent_file` returns latents or raises
:class:`RefusedLatentError` with the reason.  Nothing pickled is ever read.
"""

from __future__ import annotations

import os
from itertools import islice
from typing import Final

from latentfs.errors import RefusedLatentError
from latentfs.latents import comfyui, diffusers
from latentfs.latents.latent_file import LatentFile
from latentfs.latents.safetensors_file import SafetensorsFile, open_safetensors

__all__ = ["MAX_FILE_BYTES", "LatentFile", "latent_tensor", "read_latent_file"]

MAX_FILE_BYTES: Final = 1024 * 1024 * 1024
"""1 GiB: 256 float32 latents of 16 channels of 2048x2048 pixels. A file is read into memory."""

_NAMES_SHOWN: Final = 5


def read_latent_file(
    path: str | os.PathLike[str], *, max_bytes: int = MAX_FILE_BYTES
) -> LatentFile:
    """Read a ComfyUI ``.latent`` or a safetensors file of diffusers latents.

    The name of the file doesn't matter, only its content.

    Args:
        path: of a regular file, or a symbolic link to one.
        max_bytes: refuse a larger file before reading it.

    Raises:
        RefusedLatentError: it can't be read as latents; the message names the file and the reason.
    """
    try:
        with open_safetensors(path, max_bytes=max_bytes) as file:
            return _read(file)
    except RefusedLatentError as error:
        raise RefusedLatentError(f"{_printable(path)}: {error}") from error


def latent_tensor(file: SafetensorsFile) -> str:
    """Return the name of the tensor that holds a file's latents.

    Raises:
        RefusedLatentError: it has none.
    """
    for name in (comfyui.TENSOR, *diffusers.TENSORS):
        if name in file.tensors:
            return name
    found = ", ".join(f"{name[:40]!a}" for name in islice(file.tensors, _NAMES_SHOWN))
    more = len(file.tensors) - _NAMES_SHOWN
    raise RefusedLatentError(
        f"no latents in it: it has {found or 'no tensors'}{f' and {more} more' if more > 0 else ''}"
        f"; ComfyUI saves {comfyui.TENSOR!r}, and latents of diffusers are taken as "
        f"{diffusers.TENSORS[0]!r}"
    )


def _read(file: SafetensorsFile) -> LatentFile:
    name = latent_tensor(file)
    if name == comfyui.TENSOR:
        return comfyui.read_comfyui(file)
    return diffusers.read_diffusers(file, name)


def _printable(path: str | os.PathLike[str]) -> str:
    # A name may have newlines, terminal escapes or bytes that aren't text.
    name = os.fspath(path)
    return name if name.isprintable() else ascii(name)
