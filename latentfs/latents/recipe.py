"""The recipe: everything that decides the pixels of a latent, named by its hash.

Two renders under one recipe id are meant to be bit-identical on one class of device.  Whatever is
found to change bits (batch shape, thread count, dtype) is a field here, never an environment.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from latentfs.latents.latent import Dtype
from latentfs.latents.scaling import Step

__all__ = ["Recipe", "Rounding", "DECODE_PROCEDURE"]

Rounding = Literal["round", "truncate"]

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
        batch: latents decoded together; the bits of some VAEs depend on it.
        cpu_threads: threads of one decode; the bits of some VAEs depend on it.
        procedure: version of the decoding code.
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

    @property
    def id(self) -> bytes:
        """16 bytes that name this recipe: a hash of all its fields."""
        canonical = msgspec.json.encode(self, order="deterministic")
        return hashlib.blake2b(canonical, digest_size=16).digest()
