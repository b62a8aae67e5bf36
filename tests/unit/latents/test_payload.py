"""What goes in comes out, bit for bit; anything else is CorruptPayloadError."""

import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pcodec import standalone

from latentfs.errors import CorruptPayloadError
from latentfs.latents import payload as codec
from latentfs.latents.latent import MAX_CHANNELS, MAX_SIDE, Latent

HEADER_BYTES = 50


@st.composite
def latents(draw):
    dtype = draw(st.sampled_from(["float16", "bfloat16", "float32"]))
    kind = np.uint32 if dtype == "float32" else np.uint16
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(1, 20)))
    special = [0, 0x7C00, 0x7F80, 0x7FC1, 0x8000, 0xFFFF]
    elements = st.integers(0, np.iinfo(kind).max) | st.sampled_from(special)
    bits = draw(hnp.arrays(kind, shape, elements=elements))
    return Latent(bits=bits, dtype=dtype)


def same(left: Latent, right: Latent) -> bool:
    return left.dtype == right.dtype and np.array_equal(left.bits, right.bits)


def normal(shape: tuple[int, int, int]) -> Latent:
    numbers = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return Latent(bits=numbers.view(np.uint32), dtype="float32").narrowed("bfloat16")


@given(latents())
@settings(deadline=None)
def test_round_trip(latent):
    payload = codec.encode(latent)
    assert same(codec.decode(payload), latent)
    assert same(codec.decode(memoryview(payload)), latent)
    header = codec.header(payload)
    assert (header.dtype, header.shape) == (latent.dtype, latent.shape)
    assert header.digest == latent.digest()
    assert len(payload) <= HEADER_BYTES + latent.nbytes


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 255), (1, 1, 256), (1, 1, 257), (1, 512, 512), (3, 29, 3013), (1, 8191, 33)],
    ids=str,
)
def test_round_trip_across_batches_and_chunks_of_pcodec(shape):
    # pcodec works on batches of 256 numbers and chunks of 2**18; 3 * 29 * 3013 is one less,
    # 8191 * 33 more.
    latent = normal(shape)
    assert same(codec.decode(codec.encode(latent)), latent)


@pytest.mark.parametrize("value", [0, 0x7FC00000, 0xFFFFFFFF])
def test_all_equal_is_tiny(value):
    latent = Latent(bits=np.full((16, 128, 128), value, np.uint32), dtype="float32")
    payload = codec.encode(latent)
    assert len(payload) < 200
    assert codec.header(payload).codec == codec.CODEC == "pco"
    assert same(codec.decode(payload), latent)


def test_raw_where_compression_does_not_shrink():
    latent = Latent(bits=np.array([[[7]]], np.uint16), dtype="float16")
    payload = codec.encode(latent)
    assert codec.header(payload).codec == "raw"
    assert payload[HEADER_BYTES:] == b"\7\0"


def test_compression_of_noise_as_a_latent_is():
    latent = normal((16, 128, 128))
    assert len(codec.encode(latent)) < 0.7 * latent.nbytes


def test_the_format_does_not_change():
    # A payload written by the first version. It must be readable for ever.
    latent = Latent(
        bits=np.arange(0x3F80, 0x3F80 + 64, dtype=np.uint16).reshape(1, 8, 8), dtype="bfloat16"
    )
    payload = bytes.fromhex(
        "4c46535001010100010008000800180000006bb6866ddbfe23becfa695d95456fdc300aa2f696cd3"
        "61f991889b6f2b95579a70636f21030006100401073f000010010180004000803f00"
    )
    assert same(codec.decode(payload), latent)


@given(st.data())
@settings(deadline=2000, max_examples=300)
def test_damage_is_found(data):
    latent = normal((4, 12, 12))
    payload = bytearray(codec.encode(latent))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(payload) - 1) | st.integers(0, HEADER_BYTES + 20))
        payload[at] = data.draw(st.integers(0, 255))
    damaged = bytes(payload[: data.draw(st.just(len(payload)) | st.integers(0, len(payload)))])
    try:
        found = codec.decode(damaged)
    except CorruptPayloadError:
        return
    assert same(found, latent)


@given(st.binary(max_size=300))
def test_anything_else_is_refused(data):
    with pytest.raises(CorruptPayloadError):
        codec.decode(data)


def header(**changes: int) -> bytes:
    fields = {"version": 1, "codec": 1, "dtype": 1, "zero": 0, "c": 4, "h": 8, "w": 8, "n": 0}
    return struct.pack("<4s4B3HI32s", b"LFSP", *(fields | changes).values(), b"\0" * 32)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "shorter than its header"),
        (header()[:-1], "shorter than its header"),
        (b"\x89PNG" + header()[4:], "not a payload"),
        (header(version=2), "version 2"),
        (header(codec=2), "codec 2"),
        (header(dtype=3), "dtype 3"),
        (header(zero=1), "reserved 1"),
        (header(c=0), "impossible shape"),
        (header(c=MAX_CHANNELS + 1), "impossible shape"),
        (header(h=MAX_SIDE + 1), "impossible shape"),
        (header(c=MAX_CHANNELS, h=MAX_SIDE, w=MAX_SIDE), "impossible shape"),
        (header() + b"x", "body has 1 bytes and should have 0"),
        (header(n=1), "body has 0 bytes and should have 1"),
        (header(codec=0, n=1) + b"x", "raw body"),
        (header(n=1) + b"x", "doesn't decompress"),
    ],
)
def test_the_reason_is_told(payload, reason):
    with pytest.raises(CorruptPayloadError, match=reason):
        codec.decode(payload)


def with_header_of(latent: Latent, body_of: Latent) -> bytes:
    body = codec.encode(body_of)[HEADER_BYTES:]
    head = bytearray(codec.encode(latent)[:HEADER_BYTES])
    head[14:18] = len(body).to_bytes(4, "little")
    return bytes(head) + body


def test_a_stream_that_lies_about_its_count():
    little, much = normal((4, 16, 16)), normal((4, 32, 32))
    with pytest.raises(CorruptPayloadError, match="more numbers than the 1024"):
        codec.decode(with_header_of(little, much))
    with pytest.raises(CorruptPayloadError, match="fewer numbers than the 4096"):
        codec.decode(with_header_of(much, little))


def test_other_numbers_than_were_stored():
    zeros = Latent(bits=np.zeros((4, 16, 16), np.uint16), dtype="bfloat16")
    with pytest.raises(CorruptPayloadError, match="aren't what was stored"):
        codec.decode(with_header_of(normal((4, 16, 16)), zeros))


def test_a_panic_of_pcodec_is_a_corrupt_payload(monkeypatch):
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})

    def raising(error: BaseException) -> Callable[[bytes, object], None]:
        def decompress(body: bytes, into: object) -> None:
            raise error

        return decompress

    payload = codec.encode(normal((4, 16, 16)))
    monkeypatch.setattr(standalone, "simple_decompress_into", raising(panic("index")))
    with pytest.raises(CorruptPayloadError, match="index"):
        codec.decode(payload)
    for other in (KeyboardInterrupt, SystemExit, MemoryError):
        monkeypatch.setattr(standalone, "simple_decompress_into", raising(other()))
        with pytest.raises(other):
            codec.decode(payload)
