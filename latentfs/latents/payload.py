"""The payload: a latent compressed without loss, which describes and checks itself.

Invariant: :func:`decode` returns exactly the bits that :func:`encode` was given, or raises.  The
format never changes under a version; a new one gets a new number, and old ones stay readable.

All numbers are little-endian::

    offset  size  field
    0       4     magic b"LFSP"
    4       1     version, 1
    5       1     codec: 0 raw, 1 pco
    6       1     dtype: 0 float16, 1 bfloat16, 2 float32
    7       1     0
    8       2     C, channels
    10      2     h, latent cells down
    12      2     w, latent cells across
    14      4     length of the body in bytes
    18      32    digest of the latent (Latent.digest)
    50      ...   body

A ``raw`` body is the numbers in C order.  A ``pco`` body is a pcodec standalone file of their bit
patterns as unsigned integers, in the same order.  Raw is used where pco wouldn't be smaller.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Final, Literal

import numpy as np
from pcodec import ChunkConfig, standalone

from latentfs.errors import CorruptPayloadError, RefusedLatentError
from latentfs.latents.latent import Dtype, Latent, check_shape, little_endian_type

__all__ = ["CODEC", "Codec", "PayloadHeader", "decode", "encode", "header"]

Codec = Literal["raw", "pco"]

CODEC: Final[Codec] = "pco"
"""Name of the codec that new payloads are written with, as shown to users."""

_MAGIC: Final = b"LFSP"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<4s4B3HI32s")
_CODECS: Final[tuple[Codec, ...]] = ("raw", "pco")
_DTYPES: Final[tuple[Dtype, ...]] = ("float16", "bfloat16", "float32")

# Measured with pcodec 1.1.0 on real latents, share of the raw bytes:
#                              level 8   level 12
#   SD 1.5, float32, 12 files   0.8301    0.8284
#   SDXL, float32, 8 files      0.8274    0.8251
#   SD 3, bfloat16, 12 files    0.5828    0.5790
#   FLUX.1, bfloat16, 8 files   0.6241    0.6199
# A payload is written once: 10 to 50 ms at level 12 are well spent. Given as floats instead of
# unsigned integers, float32 latents come to 0.8284 and 0.8249: no gain, so integers are used for
# all, which have no NaNs to worry about.
_LEVEL: Final = 12


@dataclass(frozen=True, slots=True)
class PayloadHeader:
    """What a payload says about itself.

    Attributes:
        codec: of the body.
        dtype: of the latent.
        shape: (C, h, w), within the limits of :mod:`latentfs.latents.latent`.
        digest: :meth:`Latent.digest` of the latent, 32 bytes.
    """

    codec: Codec
    dtype: Dtype
    shape: tuple[int, int, int]
    digest: bytes


def encode(latent: Latent) -> bytes:
    """The payload of ``latent``; equal latents give equal payloads under one pcodec version."""
    flat = latent.bits.reshape(-1)
    body: bytes = standalone.simple_compress(flat, ChunkConfig(compression_level=_LEVEL))
    codec: Codec = CODEC
    if len(body) >= latent.nbytes:
        codec, body = "raw", flat.astype(little_endian_type(latent.dtype), copy=False).tobytes()
    fields = _HEADER.pack(
        _MAGIC,
        _VERSION,
        _CODECS.index(codec),
        _DTYPES.index(latent.dtype),
        0,
        *latent.shape,
        len(body),
        latent.digest(),
    )
    return fields + body


def header(payload: bytes | memoryview) -> PayloadHeader:
    """What ``payload`` says about itself, without decompressing it.

    Raises:
        CorruptPayloadError: it doesn't start with a valid header.
    """
    return _parse(payload)[0]


def decode(payload: bytes | memoryview) -> Latent:
    """The latent that was encoded, checked against the digest in the header.

    No more is allocated than the shape in the header needs, and the shape is checked first.

    Raises:
        CorruptPayloadError: anything about the payload is wrong.
    """
    found, length = _parse(payload)
    view = memoryview(payload).cast("B")
    if len(view) - _HEADER.size != length:
        raise CorruptPayloadError(
            f"the payload's body has {len(view) - _HEADER.size} bytes and should have {length}"
        )
    body = bytes(view[_HEADER.size :])
    latent = _decode_raw(body, found) if found.codec == "raw" else _decode_pco(body, found)
    if latent.digest() != found.digest:
        raise CorruptPayloadError("the payload decompresses to numbers that aren't what was stored")
    return latent


def _parse(payload: bytes | memoryview) -> tuple[PayloadHeader, int]:
    view = memoryview(payload).cast("B")
    if len(view) < _HEADER.size:
        raise CorruptPayloadError(f"a payload of {len(view)} bytes is shorter than its header")
    magic, version, codec, dtype, zero, c, h, w, length, digest = _HEADER.unpack_from(view)
    if magic != _MAGIC:
        raise CorruptPayloadError(f"not a payload: it starts with {magic!r}, not {_MAGIC!r}")
    if version != _VERSION:
        raise CorruptPayloadError(
            f"payload version {version} isn't known to this latentfs, which reads {_VERSION}"
        )
    if codec >= len(_CODECS) or dtype >= len(_DTYPES) or zero != 0:
        raise CorruptPayloadError(
            f"the payload's header has codec {codec}, dtype {dtype}, reserved {zero}"
        )
    try:
        check_shape((c, h, w))
    except RefusedLatentError as error:
        raise CorruptPayloadError(
            f"the payload's header has an impossible shape: {error}"
        ) from None
    return PayloadHeader(_CODECS[codec], _DTYPES[dtype], (c, h, w), digest), length


def _decode_raw(body: bytes, found: PayloadHeader) -> Latent:
    try:
        return Latent.from_bytes(body, dtype=found.dtype, shape=found.shape)
    except RefusedLatentError as error:
        raise CorruptPayloadError(f"the payload's raw body is wrong: {error}") from None


def _decode_pco(body: bytes, found: PayloadHeader) -> Latent:
    native = little_endian_type(found.dtype).newbyteorder("=")
    # pcodec fills what it is given; a stream that claims more numbers can't allocate more. Zeros,
    # because one that has fewer leaves the rest of the array as it was.
    flat = np.zeros(prod(found.shape), dtype=native)
    try:
        progress = standalone.simple_decompress_into(body, flat)
    except BaseException as error:
        if isinstance(error, RuntimeError) or _is_rust_panic(error):
            raise CorruptPayloadError(f"the payload doesn't decompress: {error}") from error
        raise
    if progress.n_processed != flat.size or not progress.finished:
        raise CorruptPayloadError(
            f"the payload has {'more' if progress.n_processed == flat.size else 'fewer'} numbers "
            f"than the {flat.size} its header tells"
        )
    return Latent(bits=flat.reshape(found.shape), dtype=found.dtype)


def _is_rust_panic(error: BaseException) -> bool:
    # pyo3's PanicException derives from BaseException and can't be imported by name.
    kind = type(error)
    return kind.__module__ == "pyo3_runtime" and kind.__name__ == "PanicException"
