"""What a latent file holds, whichever tool wrote it.

Invariant: every latent of a :class:`LatentFile` is finite and within the limits of
:mod:`latentfs.latents.latent`, and has the bits of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from latentfs.latents.latent import Latent
from latentfs.latents.scaling import Space

__all__ = ["LatentFile"]


@dataclass(frozen=True, slots=True)
class LatentFile:
    """The latents of one file and what it says about them.

    Attributes:
        latents: one of each batch item, [C, h, w].
        space: what their numbers mean.
        kind: the tool and layout the file was recognised as.
        text: PNG text chunks that ComfyUI would write, as (keyword, text): ``prompt`` first, then
            ``workflow``, then all others sorted. Empty for diffusers.
        source_metadata: ``__metadata__`` of a diffusers file, verbatim. Empty for ComfyUI.
    """

    latents: tuple[Latent, ...]
    space: Space
    kind: Literal["comfyui", "diffusers", "diffusers-packed"]
    text: tuple[tuple[str, str], ...]
    source_metadata: Mapping[str, str]
