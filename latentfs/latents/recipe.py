"""The recipe: everything that decides the pixels of a latent, named by its hash.

Two renders under one recipe id are meant to be bit-identical on one class of device.  Whatever is
found to change bits (batch shape, thread count, dtype, memory layout) is a field here, never an
environment.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from latentfs.latents.latent import Dtype
from latentfs.latents.scaling import Step

__all__ = ["DECODE_PROCEDURE", "DeviceClass", "Layout", "Recipe", "Rounding"]

Rounding = Literal["round", "truncate"]
Layout = Literal["contiguous", "channels_last"]
DeviceClass = Literal["cpu", "cuda"]

DECODE_PROCEDURE = 1
"""Raised when the code that decodes changes pixels, so that old recipes are told apart from new."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How one latent becomes 8-bit RGB pixels.

    Attributes:
        vae: id of the VAE (hash of its config and weights) in the store's ``vae/`` folder.
        vae_class: diffusers class that decodes, such as ``AutoencoderKL``.
        dtype: of weights and activations.
        scaling: applied to the stored numbers before they go to the VAE.
        scaling_dtype: ``float32``, or ``recipe`` where the numbers are cast to *dtype* first, as
            diffusers pipelines do.
        rounding: ``round`` to nearest as diffusers does, ``truncate`` as ComfyUI and A1111 do.
        batch: latents decoded together, missing ones filled up with zeros; the bits of some VAEs
            depend on it.
        cpu_threads: threads of one decode; the bits of some VAEs depend on it.
        procedure: version of the decoding code.
        layout: memory layout of weights and activations; it decides which kernels run.
        device: class of device that the recipe was made for.  On another one *batch*, *layout* and
            *compiled* are chosen anew, as its kernels give other bits anyway.
        widened_from: dtype in which this latent decoded to NaN or infinity, so that *dtype* is
            float32; None for all others.
        tiled: decoded in overlapping tiles, because the whole did not fit into memory at import.
        compiled: decoded by kernels that torch.compile makes for each shape; tiles never are.
    """

    vae: str
    vae_class: str
    dtype: Dtype
    scaling: tuple[Step, ...]
    scaling_dtype: Literal["float32", "recipe"]
    rounding: Rounding
    batch: int
    cpu_threads: int
    procedure: int = DECODE_PROCEDURE
    layout: Layout = "contiguous"
    device: DeviceClass = "cpu"
    widened_from: Dtype | None = None
    tiled: bool = False
    compiled: bool = False

    @property
    def id(self) -> bytes:
        """16 bytes that name this recipe: a hash of all its fields.

        Fields that came later count only where they differ from what was done before there were
        such, so that recipes keep their names.
        """
        fields = msgspec.structs.asdict(self)
        for name, default in _LATER_FIELDS.items():
            if fields[name] == default:
                del fields[name]
        canonical = msgspec.json.encode(fields)
        return hashlib.blake2b(canonical, digest_size=16).digest()

    @property
    def intent(self) -> Recipe:
        """The same for all recipes that are meant to show the same picture, however computed."""
        return msgspec.structs.replace(
            self,
            dtype=self.widened_from or self.dtype,
            widened_from=None,
            batch=1,
            cpu_threads=1,
            layout="contiguous",
            device="cpu",
            tiled=False,
            compiled=False,
        )

    def adapted_to(self, device: DeviceClass) -> Recipe:
        """The recipe as it is carried out on a class of device that it may not be made for.

        The kernels of another device give other bits in any case, so what only costs time there is
        left out: float16, which CPUs have no fast convolutions for, batches, and compiling.
        """
        if device == self.device:
            return self
        slow = device == "cpu" and self.dtype == "float16"
        return msgspec.structs.replace(
            self,
            dtype="float32" if slow else self.dtype,
            batch=1,
            layout="channels_last",
            device=device,
            compiled=False,
        )


_LATER_FIELDS: dict[str, Any] = {
    "layout": "contiguous",
    "device": "cpu",
    "widened_from": None,
    "tiled": False,
    "compiled": False,
}
