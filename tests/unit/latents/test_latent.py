"""Bit patterns in, the same bit patterns out; rounding only where asked, and to nearest even."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from latentfs.errors import RefusedLatentError
from latentfs.latents.latent import MAX_CHANNELS, MAX_SIDE, Latent, check_shape


def of(*numbers: float) -> Latent:
    return Latent(bits=np.array([[numbers]], np.float32).view(np.uint32), dtype="float32")


@given(hnp.arrays(np.uint16, (2, 3, 4)))
def test_sixteen_bits_widen_exactly(bits):
    half = Latent(bits=bits, dtype="float16").to_float32()
    with np.errstate(invalid="ignore"):
        assert np.array_equal(half, bits.view(np.float16).astype(np.float32), equal_nan=True)
    brain = Latent(bits=bits, dtype="bfloat16").to_float32()
    assert np.array_equal(brain.view(np.uint32) >> 16, bits)
    assert brain.flags.writeable
    assert brain.dtype == np.float32


@settings(deadline=None)  # the first example imports torch
@given(hnp.arrays(np.float32, (1, 2, 5), elements=st.floats(-(2.0**126), 2.0**126, width=32)))
def test_bfloat16_rounds_like_torch(numbers):
    import torch

    ours = Latent(bits=numbers.view(np.uint32), dtype="float32").narrowed("bfloat16")
    theirs = torch.from_numpy(numbers).to(torch.bfloat16).view(torch.int16).numpy()
    assert np.array_equal(ours.bits, theirs.view(np.uint16))


@settings(deadline=None)  # the first example imports torch
@given(hnp.arrays(np.float32, (1, 2, 5), elements=st.floats(-65504, 65504, width=32)))
def test_float16_rounds_like_torch(numbers):
    import torch

    ours = Latent(bits=numbers.view(np.uint32), dtype="float32").narrowed("float16")
    theirs = torch.from_numpy(numbers).to(torch.float16).view(torch.int16).numpy()
    assert np.array_equal(ours.bits, theirs.view(np.uint16))


def test_ties_go_to_even():
    # Between 1 and the next bfloat16, 1 + 2**-7; and between that and the one after.
    rounded = of(1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)).narrowed("bfloat16")
    assert rounded.to_float32().tolist() == [[[1.0, 1 + 2**-6, -1.0]]]


def test_narrowing_refuses_overflow_and_names_the_value():
    with pytest.raises(RefusedLatentError, match=r"70000.*float16.*65504"):
        of(1.0, -70000.0).narrowed("float16")
    with pytest.raises(RefusedLatentError, match=r"3\.402.*bfloat16"):
        of(3.4028e38).narrowed("bfloat16")
    assert of(-70000.0).narrowed("bfloat16").is_finite()
    with pytest.raises(RefusedLatentError, match="NaN"):
        of(float("nan")).narrowed("bfloat16")


def test_narrowing_leaves_sixteen_bits_alone():
    latent = Latent(bits=np.zeros((1, 1, 1), np.uint16), dtype="bfloat16")
    assert latent.narrowed("float16") is latent


@pytest.mark.parametrize(
    ("dtype", "infinity", "largest"),
    [
        ("float16", 0x7C00, 0x7BFF),
        ("bfloat16", 0x7F80, 0x7F7F),
        ("float32", 0x7F800000, 0x7F7FFFFF),
    ],
)
def test_finite(dtype, infinity, largest):
    kind = np.uint32 if dtype == "float32" else np.uint16
    nan = infinity + 1
    assert Latent(bits=np.full((1, 1, 2), largest, kind), dtype=dtype).is_finite()
    assert not Latent(bits=np.array([[[0, infinity]]], kind), dtype=dtype).is_finite()
    assert not Latent(bits=np.array([[[0, nan]]], kind), dtype=dtype).is_finite()


def test_digest_is_of_dtype_shape_and_bits():
    bits = np.arange(8, dtype=np.uint16)
    variants = [
        Latent(bits=bits.reshape(2, 2, 2), dtype="float16"),
        Latent(bits=bits.reshape(2, 2, 2), dtype="bfloat16"),
        Latent(bits=bits.reshape(1, 4, 2), dtype="float16"),
        Latent(bits=bits.reshape(2, 2, 2) + np.uint16(1), dtype="float16"),
    ]
    assert len({latent.digest() for latent in variants}) == len(variants)
    assert len(variants[0].digest()) == 32
    # Stored payloads hold this value: it must never change.
    assert variants[0].digest().hex() == (
        "6fb5e4841badc701615893b8714628361afd75f03e24f028d85108e8605ad816"
    )


def test_from_bytes_checks_the_size():
    latent = Latent.from_bytes(b"\1\0\2\0", dtype="float16", shape=(1, 1, 2))
    assert latent.bits.tolist() == [[[1, 2]]]
    assert (latent.shape, latent.nbytes) == ((1, 1, 2), 4)
    with pytest.raises(RefusedLatentError, match="3 bytes"):
        Latent.from_bytes(b"abc", dtype="float16", shape=(1, 1, 2))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((0, 1, 1), "no numbers"),
        ((1, 1, -1), "no numbers"),
        ((MAX_CHANNELS + 1, 1, 1), "channels"),
        ((1, MAX_SIDE + 1, 1), "cells"),
        ((MAX_CHANNELS, MAX_SIDE, MAX_SIDE), "numbers, more than"),
    ],
)
def test_sizes_are_limited(shape, reason):
    with pytest.raises(RefusedLatentError, match=reason):
        check_shape(shape)
    with pytest.raises(RefusedLatentError, match=reason):
        Latent.from_bytes(b"", dtype="float32", shape=shape)


def test_wrong_arrays_are_mistakes_of_the_caller():
    with pytest.raises(ValueError, match="float32"):
        Latent(bits=np.zeros((1, 1, 1), np.uint16), dtype="float32")
    with pytest.raises(ValueError, match="contiguous"):
        Latent(bits=np.zeros((1, 2, 2), np.uint16).transpose(0, 2, 1)[:, :, ::-1], dtype="float16")
