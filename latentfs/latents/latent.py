"""One latent in memory: exact bit patterns, never numbers that were rounded on the way.

Invariant: a :class:`Latent` has a shape within the limits below, and its bits are those that were
given.  Nothing rounds them except :meth:`Latent.narrowed`, which is asked for by name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import prod
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from latentfs.errors import RefusedLatentError

__all__ = [
    "MAX_CHANNELS",
    "MAX_ELEMENTS",
    "MAX_SIDE",
    "Bits",
    "Dtype",
    "Latent",
    "check_shape",
    "little_endian_type",
]

Dtype = Literal["float16", "bfloat16", "float32"]
Bits = npt.NDArray[np.unsignedinteger[Any]]

MAX_CHANNELS: Final = 256
"""Several times what any image VAE has (FLUX.2: 128 when packed, 32 when not)."""

MAX_SIDE: Final = 8192
"""Latent cells a side: 65536 pixels with the usual factor of 8, more than a JPEG can have."""

MAX_ELEMENTS: Final = 32 * 1024 * 1024
"""Numbers in one latent: 32 channels (FLUX.2) of an 8192x8192 picture, 128 MiB as float32.

Channels and sides at their limits together would be 64 GiB, so the product needs its own.
"""

_BITS_TYPE: Final[dict[Dtype, type[np.unsignedinteger[Any]]]] = {
    "float16": np.uint16,
    "bfloat16": np.uint16,
    "float32": np.uint32,
}
# A number is NaN or infinite exactly when all bits of its exponent are set.
_EXPONENT_MASK: Final[dict[Dtype, int]] = {
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
    "float32": 0x7F80_0000,
}
_LARGEST: Final = {"float16": "65504", "bfloat16": "3.39e38"}


@dataclass(frozen=True, slots=True, eq=False)
class Latent:
    """A latent of one picture.

    Attributes:
        bits: bit patterns of the numbers, [C, h, w], C-contiguous; uint16 for ``float16`` and
            ``bfloat16`` (which numpy doesn't have), uint32 for ``float32``. Not to be written to.
        dtype: what the bits mean.

    Raises:
        RefusedLatentError: a size is 0 or above the limits.
        ValueError: ``bits`` isn't an array as described.
    """

    bits: Bits
    dtype: Dtype

    def __post_init__(self) -> None:
        if self.bits.dtype != _BITS_TYPE[self.dtype]:
            raise ValueError(f"bits of a {self.dtype} latent can't be {self.bits.dtype}")
        if self.bits.ndim != 3 or not self.bits.flags.c_contiguous:
            raise ValueError(f"bits must be contiguous [C, h, w], not {self.bits.shape}")
        check_shape(self.shape)

    @classmethod
    def from_bytes(
        cls,
        data: bytes | bytearray | memoryview,
        *,
        dtype: Dtype,
        shape: tuple[int, int, int],
    ) -> Latent:
        """A latent over ``data``, which isn't copied on a little-endian machine.

        Args:
            data: little-endian numbers in C order, as safetensors keeps them.
            dtype: of the numbers.
            shape: (C, h, w).

        Raises:
            RefusedLatentError: a size is out of bounds or ``data`` has another length.
        """
        check_shape(shape)
        stored = little_endian_type(dtype)
        size = memoryview(data).nbytes
        if size != prod(shape) * stored.itemsize:
            raise RefusedLatentError(
                f"{size} bytes can't be a {dtype} latent of shape {shape}, which has "
                f"{prod(shape) * stored.itemsize}"
            )
        bits = np.frombuffer(data, dtype=stored).reshape(shape)
        return cls(bits=bits.astype(_BITS_TYPE[dtype], copy=False), dtype=dtype)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w): channels, and latent cells down and across."""
        channels, height, width = self.bits.shape
        return channels, height, width

    @property
    def nbytes(self) -> int:
        """Size of the numbers in bytes, uncompressed."""
        return self.bits.nbytes

    def to_float32(self) -> npt.NDArray[np.float32]:
        """The numbers as float32 [C, h, w]: exact, and a new array that may be written to."""
        if self.dtype == "float32":
            return self.bits.view(np.float32).copy()
        if self.dtype == "bfloat16":
            widened = self.bits.astype(np.uint32)
            widened <<= 16
            return widened.view(np.float32)
        with np.errstate(invalid="ignore"):  # signalling NaNs become quiet ones
            return self.bits.view(np.float16).astype(np.float32)

    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        mask = self.bits.dtype.type(_EXPONENT_MASK[self.dtype])
        return bool(((self.bits & mask) != mask).all())

    def narrowed(self, dtype: Literal["float16", "bfloat16"]) -> Latent:
        """This latent rounded to nearest, ties to even; itself where it has 16 bits already.

        Raises:
            RefusedLatentError: a number is too large for ``dtype``, or NaN or infinite.
        """
        if self.dtype != "float32":
            return self
        if not self.is_finite():
            raise RefusedLatentError(
                f"NaN or infinite values can't be rounded to {dtype}; keep the latent as float32"
            )
        bits = self._as_float16() if dtype == "float16" else self._as_bfloat16()
        rounded = Latent(bits=bits, dtype=dtype)
        if not rounded.is_finite():
            largest = float(np.abs(self.bits.view(np.float32)).max())
            raise RefusedLatentError(
                f"the latent's largest value, {largest:g}, doesn't fit {dtype}, whose largest is "
                f"{_LARGEST[dtype]}; keep it as float32"
            )
        return rounded

    def digest(self) -> bytes:
        """32-byte blake2b of dtype, shape and bits: equal exactly for equal latents."""
        channels, height, width = self.shape
        state = hashlib.blake2b(digest_size=32, person=b"latentfs.latent")
        state.update(f"{self.dtype} {channels} {height} {width}\n".encode("ascii"))
        stored = self.bits.reshape(-1).astype(little_endian_type(self.dtype), copy=False)
        state.update(stored.data)
        return state.digest()

    def _as_float16(self) -> Bits:
        with np.errstate(over="ignore", under="ignore"):  # overflow is found and refused later
            return self.bits.view(np.float32).astype(np.float16).view(np.uint16)

    def _as_bfloat16(self) -> Bits:
        # Adding half of the last place that is kept, less one when that place is even, and cutting
        # off the rest rounds to nearest even; the carry into the exponent is the right one, and
        # finite numbers can't wrap around.
        odd = (self.bits >> 16) & 1
        return ((self.bits + 0x7FFF + odd) >> 16).astype(np.uint16)


def check_shape(shape: tuple[int, int, int]) -> None:
    """Refuse sizes that no latent has, before anything of that size is allocated.

    Raises:
        RefusedLatentError: with the size and the limit.
    """
    channels, height, width = shape
    if min(shape) < 1:
        raise RefusedLatentError(f"a latent of shape {shape} has no numbers")
    if channels > MAX_CHANNELS:
        raise RefusedLatentError(f"{channels} channels are more than the {MAX_CHANNELS} taken")
    if max(height, width) > MAX_SIDE:
        raise RefusedLatentError(
            f"{height}x{width} latent cells are more than the {MAX_SIDE} a side that are taken"
        )
    if prod(shape) > MAX_ELEMENTS:
        raise RefusedLatentError(
            f"a latent of shape {shape} has {prod(shape)} numbers, more than the {MAX_ELEMENTS} "
            "that are taken"
        )


def little_endian_type(dtype: Dtype) -> np.dtype[np.unsignedinteger[Any]]:
    """The numpy type of ``dtype``'s bits wherever they are kept as bytes."""
    return np.dtype(_BITS_TYPE[dtype]).newbyteorder("<")
