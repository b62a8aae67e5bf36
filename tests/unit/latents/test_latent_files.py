"""Files of both tools are read as they mean them; any other bytes are refused, with the reason."""

import json
import os
import pickle
import struct
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentfs.errors import RefusedLatentError
from latentfs.latents.safetensors_file import MAX_HEADER_BYTES
from latentfs.latents.scaling import Space
from latentfs.latents.source import read_latent_file

ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "F8_E4M3": 1, "I64": 8, "U8": 1}


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: object, shape: object, begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors(metadata=None, **tensors) -> bytes:
    """A file of tensors given as (dtype, shape) of zeros, or as (dtype, shape, bytes)."""
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (dtype, shape, *given_bytes) in tensors.items():
        size = int(np.prod(shape, dtype=object)) * ITEM_BYTES[dtype]
        block = given_bytes[0] if given_bytes else bytes(size)
        header[name] = entry(dtype, shape, len(data), len(data) + len(block))
        data += block
    return raw(header, data)


@pytest.fixture
def read(tmp_path):
    def write_and_read(content, **options):
        path = tmp_path / "a.latent"
        path.write_bytes(content)
        return read_latent_file(path, **options)

    return write_and_read


MARKER = ("F32", [0])
NUMBERS = np.arange(2 * 4 * 3 * 5, dtype=np.float32)


def test_comfyui(read):
    content = safetensors(
        {"zoo": "z", "workflow": '{"w": "\u00e4\\n"}', "artist": "", "prompt": "{}"},
        latent_format_version_0=MARKER,
        latent_tensor=("F32", [2, 4, 3, 5], NUMBERS.tobytes()),
    )
    file = read(content)
    assert (file.kind, file.space, file.source_metadata) == ("comfyui", Space.NATIVE, {})
    assert file.text == (
        ("prompt", "{}"),
        ("workflow", '{"w": "\u00e4\\n"}'),
        ("artist", ""),
        ("zoo", "z"),
    )
    found = np.stack([latent.to_float32() for latent in file.latents])
    assert np.array_equal(found, NUMBERS.reshape(2, 4, 3, 5))


def test_comfyui_without_the_marker_and_batch(read):
    file = read(safetensors(latent_tensor=("F16", [4, 3, 5])))
    assert (file.space, file.text) == (Space.NATIVE_SD1_SCALED, ())
    assert [(latent.shape, latent.dtype) for latent in file.latents] == [((4, 3, 5), "float16")]


@pytest.mark.parametrize("name", ["latents", "latent"])
def test_diffusers(read, name):
    file = read(safetensors({"prompt": "a cat"}, **{name: ("BF16", [3, 16, 2, 4])}))
    assert (file.kind, file.space, file.text) == ("diffusers", Space.SCALED, ())
    assert file.source_metadata == {"prompt": "a cat"}
    assert [latent.shape for latent in file.latents] == [(16, 2, 4)] * 3


def unpack(packed: Any, height: int, width: int) -> Any:
    """diffusers' ``FluxPipeline._unpack_latents``, restated: its module needs transformers."""
    import torch

    count, _, channels = packed.shape
    height, width = 2 * (height // 16), 2 * (width // 16)
    cells = torch.from_numpy(packed).view(count, height // 2, width // 2, channels // 4, 2, 2)
    cells = cells.permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(count, channels // 4, height, width).numpy()


@pytest.mark.parametrize(("height", "width"), [(32, 48), (47, 63), (16, 16)])
def test_flux1_is_unpacked(read, height, width):
    tokens = (height // 16) * (width // 16)
    packed = np.random.default_rng(0).normal(size=(2, tokens, 64)).astype(np.float32)
    size = {"height": str(height), "width": str(width)}
    file = read(safetensors(size, latents=("F32", list(packed.shape), packed.tobytes())))
    assert (file.kind, file.space) == ("diffusers-packed", Space.SCALED)
    assert file.source_metadata == size
    found = np.stack([latent.to_float32() for latent in file.latents])
    assert np.array_equal(found, unpack(packed, height, width))


GOOD = entry("F32", [1, 4, 2, 2], 0, 64)
SIZE = {"height": "32", "width": "32"}
NAN = np.full(16, np.nan, np.float32).tobytes()
INF = np.array([0] * 31 + [-np.inf], np.float32).tobytes()
LATER = b',"latents":{"dtype":"F32","shape":[1,4,2,2],"data_offsets":[0,64]}}'


class Dangerous:
    def __reduce__(self):
        return os.abort, ()


REFUSED = {
    "empty": (b"", "is empty"),
    "few bytes": (b"abc", "3 bytes are too few"),
    "eight bytes": (struct.pack("<Q", 2), "too few"),
    "zip": (b"PK\x03\x04\x14\0\0\0\0\0rest", r"zip.*torch\.save.*never read.*as safetensors"),
    "pickle": (pickle.dumps(Dangerous(), protocol=2), "pickle files are never read.*safetensors"),
    "pickle 5": (pickle.dumps(list(range(99)), protocol=5), "pickle files are never read"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(40), "a PNG picture"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(40), "a JPEG picture"),
    "webp": (b"RIFF\n\0\0\0WEBPVP8 ", "a WebP picture"),
    "numpy": (b"\x93NUMPY\1\0" + bytes(40), "a numpy file"),
    "text": (b"hello, this is some text", "not a safetensors file"),
    "header too long": (raw({"latents": GOOD})[:-1][:40], "only 32 follow; truncated"),
    "header absurd": (struct.pack("<Q", 2**63) + b"{}", "damaged"),
    "truncated": (raw({"latents": GOOD}, bytes(63)), "truncated: it has .* needs"),
    "extra": (raw({"latents": GOOD}, bytes(65)), "1 bytes at its end belong to no tensor"),
    "not json": (raw(b'{"latents": '), "isn't JSON"),
    "two objects": (raw(b"{}{}"), "isn't JSON"),
    "nan": (raw(b'{"a": NaN}'), "isn't JSON.*NaN"),
    "not utf-8": (raw(b'{"__metadata__":{"a":"\xff"}}'), "isn't UTF-8"),
    "surrogate": (raw(b'{"__metadata__":{"a":"\\ud800"}}'), "isn't Unicode"),
    "nested": (raw(b'{"a":' + b"[" * 60_000), "nested too deeply"),
    "structure": (raw(b'{"a":' + b"[" * 70_000), "outside of strings"),
    "many keys": (raw(b'{"__metadata__":{' + b'"a":"",' * 99_999 + b"}}"), "outside of strings"),
    "digits": (raw(b'{"a":' + b"9" * 5000 + b"}"), "isn't JSON"),
    "duplicate": (raw(b'{"latents":{}' + LATER, bytes(64)), "'latents' twice"),
    "duplicate in tensor": (raw(b'{"a":{"dtype":"F32","dtype":"F16"}}'), "'dtype' twice"),
    "duplicate text": (raw(b'{"__metadata__":{"a":"1","a":"2"}}'), "'a' twice"),
    "metadata": (raw({"__metadata__": ["a"]}), "isn't an object"),
    "metadata null": (raw({"__metadata__": None}), "isn't an object"),
    "metadata value": (raw({"__metadata__": {"height": 64}}), "'height'.*isn't a string"),
    "entry": (raw({"latents": 1}), "doesn't have exactly dtype"),
    "entry fields": (raw({"latents": GOOD | {"x": 1}}, bytes(64)), "doesn't have exactly dtype"),
    "dtype": (raw({"a": entry("F33", [1], 0, 4)}, bytes(4)), "unknown dtype 'F33'"),
    "dtype list": (raw({"a": entry(["F32"], [1], 0, 4)}, bytes(4)), "unknown dtype"),
    "shape": (raw({"a": entry("F32", "1", 0, 4)}, bytes(4)), "impossible shape '1'"),
    "shape bool": (raw({"a": entry("F32", [True], 0, 4)}, bytes(4)), "impossible shape"),
    "shape float": (raw({"a": entry("F32", [1.0], 0, 4)}, bytes(4)), "impossible shape"),
    "shape negative": (raw({"a": entry("F32", [-1, -1], 0, 4)}, bytes(4)), "impossible shape"),
    "shape huge": (raw({"a": entry("F32", [2**64], 0, 4)}, bytes(4)), "impossible shape"),
    "shape long": (raw({"a": entry("F32", [1] * 9, 0, 4)}, bytes(4)), "impossible shape"),
    "shape product": (raw({"a": entry("U8", [2**40] * 8, 0, 0)}), "aren't the size of U8"),
    "offsets back": (raw({"a": entry("F32", [1], 4, 0)}, bytes(4)), "aren't the size"),
    "offsets": (raw({"a": GOOD | {"data_offsets": [0]}}, bytes(64)), "impossible offsets"),
    "offsets wrong": (raw({"a": entry("F32", [1], 0, 8)}, bytes(8)), "aren't the size"),
    "offsets far": (raw({"a": entry("U8", [2**47], 0, 2**47)}, bytes(64)), "truncated"),
    "overlap": (raw({"latents": GOOD, "b": entry("U8", [64], 0, 64)}, bytes(64)), "overlaps"),
    "overlap later": (raw({"latents": GOOD, "b": entry("U8", [8], 60, 68)}, bytes(68)), "overlaps"),
    "gap": (raw({"latents": GOOD, "b": entry("U8", [1], 65, 66)}, bytes(66)), "leaves a gap"),
    "gap before": (raw({"b": entry("U8", [1], 1, 2)}, bytes(2)), "leaves a gap"),
    "no tensors": (raw(b"{}"), "no latents in it: it has no tensors"),
    "others": (safetensors(**{f"w{i}\n": ("U8", [1]) for i in range(9)}), r"'w4\\n' and 4 more"),
    "video": (safetensors(latent_tensor=("F32", [1, 16, 2, 2, 2])), "video latents aren't taken"),
    "video diffusers": (safetensors(latents=("F32", [1, 16, 2, 2, 2])), "video latents"),
    "two dimensions": (safetensors(latents=("F32", [4, 4])), "has 2 dimensions"),
    "no dimensions": (safetensors(latents=("F32", [])), "has 0 dimensions"),
    "no batch": (safetensors(latents=("F32", [0, 4, 4, 4])), "batch of 0"),
    "large batch": (safetensors(latents=("F32", [1025, 1, 1, 1])), "batch of 1025.*1024"),
    "no height": (safetensors(latents=("F32", [1, 4, 0, 4])), "no numbers"),
    "channels": (safetensors(latents=("F32", [1, 257, 1, 1])), "257 channels"),
    "wide": (safetensors(latents=("F16", [1, 1, 1, 8193])), "1x8193 latent cells"),
    "nans": (safetensors(latents=("F32", [1, 4, 2, 2], NAN)), "latent 1 of 1 has NaN or inf"),
    "infinity": (safetensors(latents=("F32", [2, 4, 2, 2], INF)), "latent 2 of 2 has NaN or inf"),
    "F64": (safetensors(latents=("F64", [1, 4, 2, 2])), "is F64.*F16, BF16, F32"),
    "I64": (safetensors(latent_tensor=("I64", [1, 4, 2, 2])), "is I64"),
    "fp8": (safetensors(latents=("F8_E4M3", [1, 4, 2, 2])), "is F8_E4M3"),
    "packed, no size": (safetensors(latents=("F32", [1, 4, 64])), "need their height.*metadata"),
    "packed, no width": (safetensors({"height": "32"}, latents=("F32", [1, 4, 64])), "their width"),
    "packed, tokens": (safetensors(SIZE, latents=("F32", [1, 5, 64])), "2x2 tokens, .* has 5"),
    "packed, channels": (safetensors(SIZE, latents=("F32", [1, 4, 128])), "FLUX.1.*unpacked"),
    "packed, nan": (
        safetensors({"height": "16", "width": "16"}, latents=("F32", [1, 1, 64], NAN * 4)),
        "NaN",
    ),
    "packed, batch": (safetensors(SIZE, latents=("F32", [0, 4, 64])), "batch of 0"),
    "packed, dtype": (safetensors(SIZE, latents=("I64", [1, 4, 64])), "is I64"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(read, content, reason):
    with pytest.raises(RefusedLatentError, match=reason) as caught:
        read(content)
    message = str(caught.value)
    assert message.startswith("/")
    assert "a.latent: " in message
    assert message.isprintable()
    assert len(message) < 500


@pytest.mark.parametrize("text", ["", "0", "15", "-32", "32.0", "1e3", " 32", "٣٢", "9" * 9999])
def test_packed_sizes_are_plain_numbers(read, text):
    content = safetensors({"height": text, "width": "32"}, latents=("F32", [1, 4, 64]))
    with pytest.raises(RefusedLatentError, match=r"height '.*isn't a number of pixels"):
        read(content)


def test_a_header_that_has_the_bytes_of_a_pickle(read):
    # 0x0280 bytes of header: the file starts like a pickle of protocol 2.
    header = json.dumps({"latents": GOOD}).encode().ljust(0x280)
    content = raw(header, bytes(64))
    assert content[:2] == b"\x80\x02"
    assert len(read(content).latents) == 1


def test_header_over_the_limit(read):
    header = json.dumps({"latents": GOOD}).encode().ljust(MAX_HEADER_BYTES + 1)
    with pytest.raises(RefusedLatentError, match="damaged"):
        read(raw(header, bytes(64)))


def test_a_workflow_of_megabytes(read):
    workflow = json.dumps({"nodes": ['say "hi" \\ \u00e4'] * 200_000})
    content = safetensors({"workflow": workflow}, latent_tensor=("F32", [1, 4, 2, 2]))
    assert read(content).text == (("workflow", workflow),)


def test_hostile_headers_take_no_time(read):
    millions = MAX_HEADER_BYTES - 100
    hostile = [
        b'{"' + b'\\"' * (millions // 2),
        b'{"' + b'\\"' * (millions // 2) + b"\\",
        b"{" + b'""' * (millions // 2),
        b'{"a":' + b"[" * millions,
    ]
    for header in hostile:
        start = time.process_time()
        with pytest.raises(RefusedLatentError):
            read(raw(header))
        assert time.process_time() - start < 5


def test_too_large(read):
    content = safetensors(latents=("F32", [1, 4, 2, 2]))
    assert read(content, max_bytes=len(content))
    with pytest.raises(RefusedLatentError, match=rf"{len(content)} bytes are more than the 9 "):
        read(content, max_bytes=9)


def test_the_file_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for path, reason in [
        (tmp_path / "fifo", "not a regular file"),
        (tmp_path, "not a regular file"),
        ("/dev/null", "not a regular file"),
        (tmp_path / "none", "can't be opened: No such file"),
        (tmp_path / "loop", "can't be opened: Too many levels"),
        ("a\0b", "can't be opened: embedded null"),
        (tmp_path / "new\nline", r"new\\nline': can't be opened"),
    ]:
        with pytest.raises(RefusedLatentError, match=reason):
            read_latent_file(path)


def test_a_link_to_a_file_is_read(tmp_path):
    (tmp_path / "a").write_bytes(safetensors(latents=("F32", [1, 4, 2, 2])))
    (tmp_path / "b").symlink_to("a")
    assert len(read_latent_file(tmp_path / "b").latents) == 1


def test_nothing_stays_open(read):
    before = len(os.listdir("/proc/self/fd"))
    read(safetensors(latents=("F32", [1, 4, 2, 2])))
    with pytest.raises(RefusedLatentError):
        read(b"nothing")
    assert len(os.listdir("/proc/self/fd")) == before


VALID = [
    safetensors(
        {"prompt": '{"a": 1}'}, latent_format_version_0=MARKER, latent_tensor=("F32", [1, 4, 2, 2])
    ),
    safetensors(SIZE, latents=("BF16", [1, 4, 64])),
]


@given(st.data())
@settings(
    deadline=2000, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_files_are_read_or_refused(read, data):
    content = bytearray(data.draw(st.sampled_from(VALID)))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, min(len(content), 200) - 1))
        content[at] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123456789[]{}",:\\'))
    cut = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    try:
        file = read(bytes(content[:cut]))
    except RefusedLatentError:
        return
    assert all(latent.is_finite() for latent in file.latents)


def test_latents_of_a_batch_are_apart(read):
    file = read(safetensors(latents=("F32", [2, 4, 3, 5], NUMBERS.tobytes())))
    for left, right in pairwise(file.latents):
        assert not np.shares_memory(left.bits, right.bits)
