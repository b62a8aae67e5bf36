"""Latent files as ComfyUI and diffusers users have them, written without either."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Floats", "latent_array", "write_comfyui_latent", "write_diffusers_latent"]

Floats = npt.NDArray[np.float32]
Dtype = Literal["float32", "float16", "bfloat16"]

_SAFETENSORS_DTYPES: dict[Dtype, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def latent_array(*shape: int, seed: int = 0) -> Floats:
    """Numbers that are spread as those of latents are."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write_comfyui_latent(
    path: Path,
    array: Floats,
    *,
    versioned: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write [B, C, h, w] as ComfyUI's SaveLatent does; without the marker as it once did."""
    marker = {"latent_format_version_0": ("float32", np.zeros(0, np.float32))} if versioned else {}
    return _write(path, {**marker, "latent_tensor": ("float32", array)}, metadata)


def write_diffusers_latent(
    path: Path,
    array: Floats,
    *,
    dtype: Dtype = "float32",
    name: str = "latents",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write scaled latents, [B, C, h, w] or packed [B, tokens, C], as users save pipeline output.

    Packed ones need *metadata* with ``height`` and ``width``.
    """
    return _write(path, {name: (dtype, array)}, metadata)


def _write(
    path: Path, tensors: Mapping[str, tuple[Any, Floats]], metadata: Mapping[str, str] | None
) -> Path:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    data = b""
    for name, (dtype, array) in tensors.items():
        block = _stored(array, dtype)
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[dtype],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(block)],
        }
        data += block
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def _stored(array: Floats, dtype: Dtype) -> bytes:
    if dtype == "float16":
        return array.astype("<f2").tobytes()
    if dtype == "float32":
        return array.astype("<f4").tobytes()
    bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
    to_even = 0x7FFF + (bits >> np.uint64(16) & np.uint64(1))
    return (bits + to_even >> np.uint64(16)).astype("<u2").tobytes()
