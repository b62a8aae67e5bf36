"""From a tensor of a batch to its latents, with the checks that all kinds of file share.

Invariant: dtype, dimensions and sizes are checked before a tensor is read, and no latent with a
value that isn't finite gets through.
"""

from __future__ import annotations

from typing import Final

from latentfs.errors import RefusedLatentError
from latentfs.latents.latent import Dtype, Latent, check_shape
from latentfs.latents.safetensors_file import SafetensorsFile, TensorInfo

__all__ = ["MAX_BATCH", "check_batch", "check_finite", "dtype_of", "read_batch"]

MAX_BATCH: Final = 1024
"""Pictures in one file; far above any batch that a GPU makes at once."""

_DTYPES: Final[dict[str, Dtype]] = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def read_batch(file: SafetensorsFile, name: str) -> tuple[Latent, ...]:
    """The items of a [B, C, h, w] tensor, or the one of a [C, h, w] tensor.

    Raises:
        RefusedLatentError: dtype, dimensions, sizes or values that aren't taken.
    """
    tensor = file.tensors[name]
    dtype = dtype_of(name, tensor)
    count, shape = _sizes(name, tensor)
    check_batch(count)
    check_shape(shape)
    data = memoryview(file.read(name))
    size = len(data) // count
    latents = tuple(
        Latent.from_bytes(data[start : start + size], dtype=dtype, shape=shape)
        for start in range(0, len(data), size)
    )
    check_finite(latents)
    return latents


def dtype_of(name: str, tensor: TensorInfo) -> Dtype:
    """The latent dtype of a tensor.

    Raises:
        RefusedLatentError: latents aren't taken in it.
    """
    if tensor.dtype not in _DTYPES:
        raise RefusedLatentError(
            f"{name!r} is {tensor.dtype}; latents are taken as {', '.join(_DTYPES)}, so save it "
            "as one of those"
        )
    return _DTYPES[tensor.dtype]


def check_batch(count: int) -> None:
    """Refuse a batch of none or too many.

    Raises:
        RefusedLatentError: with the count.
    """
    if not 1 <= count <= MAX_BATCH:
        raise RefusedLatentError(f"a batch of {count} latents isn't taken; 1 to {MAX_BATCH} are")


def check_finite(latents: tuple[Latent, ...]) -> None:
    """Refuse latents that no VAE makes a picture of.

    Raises:
        RefusedLatentError: with the batch index of the first such.
    """
    for index, latent in enumerate(latents):
        if not latent.is_finite():
            raise RefusedLatentError(
                f"latent {index + 1} of {len(latents)} has NaN or infinite values: its generation "
                "failed and there is no picture in it; generate it again"
            )


def _sizes(name: str, tensor: TensorInfo) -> tuple[int, tuple[int, int, int]]:
    match tensor.shape:
        case (count, channels, height, width):
            return count, (channels, height, width)
        case (channels, height, width):
            return 1, (channels, height, width)
        case (_, _, _, _, _):
            raise RefusedLatentError(
                f"{name!r} has shape {list(tensor.shape)}: video latents aren't taken, only "
                "pictures, [batch, channels, height, width]"
            )
        case _:
            raise RefusedLatentError(
                f"{name!r} has {len(tensor.shape)} dimensions; a latent has 4, [batch, channels, "
                "height, width]"
            )
