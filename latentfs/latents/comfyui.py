"""ComfyUI's ``.latent`` files, as its SaveLatent node writes them.

Invariant: the marker decides the space exactly as in ComfyUI's own LoadLatent, and the workflow is
kept verbatim, in the order in which SaveImage would write it into a PNG.

Source: ``SaveLatent`` and ``LoadLatent`` in ComfyUI's ``nodes.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from latentfs.latents.batch import read_batch
from latentfs.latents.latent_file import LatentFile
from latentfs.latents.safetensors_file import SafetensorsFile
from latentfs.latents.scaling import Space

__all__ = ["TENSOR", "read_comfyui"]

TENSOR: Final = "latent_tensor"
_MARKER: Final = "latent_format_version_0"
_FIRST_KEYWORDS: Final = ("prompt", "workflow")


def read_comfyui(file: SafetensorsFile) -> LatentFile:
    """Read a file that has :data:`TENSOR`.

    Raises:
        RefusedLatentError: the tensor isn't the latents of pictures.
    """
    return LatentFile(
        latents=read_batch(file, TENSOR),
        space=Space.NATIVE if _MARKER in file.tensors else Space.NATIVE_SD1_SCALED,
        kind="comfyui",
        text=_text(file.metadata),
        source_metadata={},
    )


def _text(metadata: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    first = [keyword for keyword in _FIRST_KEYWORDS if keyword in metadata]
    others = sorted(metadata.keys() - set(first))
    return tuple((keyword, metadata[keyword]) for keyword in (*first, *others))
