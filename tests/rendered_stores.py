"""Stores of pictures that a tiny VAE decodes, made by the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from latent_files import Floats, write_comfyui_latent
from mounts import latentfs

__all__ = ["rendered_store"]


def rendered_store(folder: Path, vae_folder: Path, latents: Sequence[Floats], *, to: str) -> Path:
    """Make a store in *folder*; its pictures, in *to*, are called 000.png, 001.png, ..."""
    sources = folder / "latents"
    sources.mkdir()
    for number, array in enumerate(latents):
        write_comfyui_latent(sources / f"{number:03}.latent", array)
    store = folder / "art.lfs"
    latentfs("init", store)
    latentfs("vae", "add", store, "tiny", vae_folder, "--dtype", "float32")
    latentfs("import", store, sources, "--vae", "tiny", "--to", to)
    return store
