"""Safetensors files as a hostile boundary: the header is proven before any tensor is read.

Invariant: the tensors of a :class:`SafetensorsFile` lie inside the file, fill it without gaps or
overlaps, and have exactly the bytes that their dtype and shape need.  Memory is bounded by
:data:`MAX_HEADER_BYTES`, :data:`MAX_STRUCTURE_BYTES` and the size of the tensor that is read.

The ``safetensors`` library isn't used here: it takes a path (and would hang on a FIFO) or the whole
file in memory, has no numpy bfloat16, and allows headers of 100 MB.

Source: https://github.com/huggingface/safetensors#format.  The file is 8 bytes of header length,
little-endian; the header, a JSON object; and the bytes of the tensors.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from latentfs.errors import RefusedLatentError

__all__ = [
    "MAX_HEADER_BYTES",
    "MAX_STRUCTURE_BYTES",
    "SafetensorsFile",
    "TensorInfo",
    "open_safetensors",
]

MAX_HEADER_BYTES: Final = 16 * 1024 * 1024
"""ComfyUI keeps its workflow in the header; they have been seen at 1.7 MB."""

MAX_STRUCTURE_BYTES: Final = 64 * 1024
"""Header bytes outside of strings: some 1500 tensors. This bounds what parsing makes of it."""

_LENGTH_BYTES: Final = 8
_METADATA: Final = "__metadata__"
_MAX_DIMENSIONS: Final = 8
_MAX_INTEGER: Final = 1 << 48

_BITS_PER_VALUE: Final = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}

_PICKLE_ADVICE: Final = "pickle files are never read, because reading one runs code from it"
_OTHER_KINDS: Final = (
    (re.compile(rb"PK\x03\x04"), f"a zip archive, as torch.save writes; {_PICKLE_ADVICE}"),
    (re.compile(rb"\x80[\x00-\x05]"), f"a pickle; {_PICKLE_ADVICE}"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "a PNG picture, not its latent"),
    (re.compile(rb"\xff\xd8\xff"), "a JPEG picture, not its latent"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "a WebP picture, not its latent"),
    (re.compile(rb"\x93NUMPY"), "a numpy file"),
)
_SNIFFED_BYTES: Final = 16

# One pass whatever the bytes are: possessive, so that a long string isn't gone back into, and a
# string without an end runs to the end of the header instead of being tried again further on.
_JSON_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor is and what it holds.

    Attributes:
        dtype: as safetensors names it, such as ``F32``.
        shape: at most 8 sizes, any of which may be 0.
        start: of its bytes, counted from the start of the file.
        nbytes: how many they are.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """An open file with a proven header.

    Attributes:
        tensors: by name, in the order of the header.
        metadata: ``__metadata__``, empty where there is none.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    _fd: int

    def read(self, name: str) -> bytearray:
        """The bytes of tensor ``name``.

        Raises:
            KeyError: no such tensor.
            RefusedLatentError: the file shrank or can't be read.
        """
        tensor = self.tensors[name]
        return _read_exactly(self._fd, tensor.start, tensor.nbytes)


@contextmanager
def open_safetensors(path: str | os.PathLike[str], *, max_bytes: int) -> Iterator[SafetensorsFile]:
    """Open a file, prove its header, and close it at the end.

    Args:
        path: of a regular file, or a symbolic link to one.
        max_bytes: refuse a larger file.

    Raises:
        RefusedLatentError: it isn't a safetensors file that can be read.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for someone to write to it.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise RefusedLatentError(f"can't be opened: {_reason(error)}") from error
    try:
        yield _proven(fd, max_bytes)
    finally:
        os.close(fd)


def _proven(fd: int, max_bytes: int) -> SafetensorsFile:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise RefusedLatentError("not a regular file")
    size = status.st_size
    if size == 0:
        raise RefusedLatentError("the file is empty")
    if size > max_bytes:
        raise RefusedLatentError(f"{size} bytes are more than the {max_bytes} that are taken")
    length = _header_length(_read_exactly(fd, 0, min(size, _SNIFFED_BYTES)), size)
    header = _parse(_read_exactly(fd, _LENGTH_BYTES, length))
    metadata = _metadata(header.pop(_METADATA, {}))
    tensors = {name: _tensor(name, entry, _LENGTH_BYTES + length) for name, entry in header.items()}
    _check_layout(tensors, _LENGTH_BYTES + length, size)
    return SafetensorsFile(tensors=tensors, metadata=metadata, _fd=fd)


def _header_length(start: bytearray, size: int) -> int:
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    # A length may have the bytes of another kind's magic, so the brace is looked at first.
    if start[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{" or length > size - _LENGTH_BYTES:
        _refuse_other_kinds(start)
    if size <= _LENGTH_BYTES:
        raise RefusedLatentError(f"{size} bytes are too few for a safetensors file; truncated?")
    if start[_LENGTH_BYTES] != ord("{"):
        raise RefusedLatentError("not a safetensors file: there is no header at its start")
    if length > MAX_HEADER_BYTES:
        raise RefusedLatentError(
            f"its header would have {length} bytes, more than the {MAX_HEADER_BYTES} that are "
            "taken; damaged?"
        )
    if length > size - _LENGTH_BYTES:
        raise RefusedLatentError(
            f"its header would have {length} bytes, but only {size - _LENGTH_BYTES} follow; "
            "truncated?"
        )
    return length


def _refuse_other_kinds(start: bytearray) -> None:
    for magic, kind in _OTHER_KINDS:
        if magic.match(start):
            raise RefusedLatentError(f"{kind}; save the latent as safetensors")


def _parse(raw: bytearray) -> dict[str, Any]:
    _check_structure(raw)
    try:
        header = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise RefusedLatentError(f"its header isn't UTF-8: {error.reason}") from error
    except RecursionError as error:
        raise RefusedLatentError("its header is nested too deeply") from error
    except ValueError as error:
        raise RefusedLatentError(f"its header isn't JSON: {error}") from error
    if not isinstance(header, dict):
        raise RefusedLatentError("its header isn't a JSON object")
    return header


def _check_structure(raw: bytearray) -> None:
    outside = len(raw)
    for strings, found in enumerate(_JSON_STRING.finditer(raw)):
        outside -= found.end() - found.start()
        # In JSON a string has a colon or a comma beside it, so this many strings are too many.
        if strings > MAX_STRUCTURE_BYTES:
            break
    if outside > MAX_STRUCTURE_BYTES:
        raise RefusedLatentError(
            f"its header has more than {MAX_STRUCTURE_BYTES} bytes outside of strings; latents "
            "need a few hundred"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Readers differ in which of two equal keys they take, so a file with them has two meanings.
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise RefusedLatentError(f"its header has the key {_shown(key)} twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> None:
    raise RefusedLatentError(f"its header isn't JSON: it has {name}")


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict):
        raise RefusedLatentError(f"{_METADATA} in its header isn't an object")
    for key, value in found.items():
        if not isinstance(value, str):
            raise RefusedLatentError(f"{_shown(key)} in {_METADATA} isn't a string")
        _check_text(key)
        _check_text(value)
    return found


def _check_text(text: str) -> None:
    # JSON can escape half of a surrogate pair, which is no character and can't be written anywhere.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RefusedLatentError(
            f"{_METADATA} has text that isn't Unicode: {error.reason}"
        ) from error


def _tensor(name: str, entry: Any, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise RefusedLatentError(
            f"{_shown(name)} in its header doesn't have exactly dtype, shape and data_offsets"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS_PER_VALUE:
        raise RefusedLatentError(f"{_shown(name)} has the unknown dtype {_shown(dtype)}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise RefusedLatentError(f"{_shown(name)} has the impossible shape {_shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise RefusedLatentError(f"{_shown(name)} has impossible offsets {_shown(offsets)}")
    begin, end = offsets
    if (end - begin) * 8 != prod(shape) * _BITS_PER_VALUE[dtype]:
        raise RefusedLatentError(
            f"{_shown(name)} has offsets {_shown(offsets)}, which aren't the size of {dtype} "
            f"{_shown(shape)}"
        )
    return TensorInfo(dtype, tuple(shape), data_start + begin, end - begin)


def _are_sizes(found: Any) -> bool:
    # bool is an int in Python, and isn't one in JSON.
    return isinstance(found, list) and all(
        type(number) is int and 0 <= number < _MAX_INTEGER for number in found
    )


def _check_layout(tensors: Mapping[str, TensorInfo], data_start: int, size: int) -> None:
    end = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if tensor.start != end:
            kind = "overlaps another tensor" if tensor.start < end else "leaves a gap before it"
            raise RefusedLatentError(f"{_shown(name)} {kind} in the file")
        end = tensor.start + tensor.nbytes
    if end > size:
        raise RefusedLatentError(f"truncated: it has {size} bytes and needs {end}")
    if end < size:
        raise RefusedLatentError(f"{size - end} bytes at its end belong to no tensor")


def _read_exactly(fd: int, start: int, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    done = 0
    while done < count:
        try:
            got = os.preadv(fd, [view[done:]], start + done)
        except OSError as error:
            raise RefusedLatentError(f"can't be read: {_reason(error)}") from error
        if got == 0:
            raise RefusedLatentError("it was cut short while it was read; try again")
        done += got
    return data


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _shown(value: Any) -> str:
    # A value of the file, on one line, without control characters, and not at full length.
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
