"""What stores are filled with in tests, without a VAE or a render."""

import struct
from pathlib import Path

import numpy as np

from latentfs.images.framing import Framing
from latentfs.latents import payload as payload_codec
from latentfs.latents.latent import Latent
from latentfs.latents.recipe import Recipe
from latentfs.store.fsck import Problem, check_store
from latentfs.store.records import Inode, LatentContent, Source, VaeRecord
from latentfs.store.store import Store
from latentfs.store.transaction import Transaction, pack_blob

__all__ = [
    "FILE_MODE",
    "RECIPE",
    "VAE",
    "add_picture",
    "picture_latent",
    "problems",
    "sized_payload",
]

FILE_MODE = 0o100644
_FACTOR = 8
_HEADER = struct.Struct("<4s4B3HI32s")

VAE = VaeRecord("v" * 32, "AutoencoderTiny", "float32", 4, 8, 1.0, 0.0, True, None, 1, (), "test")
RECIPE = Recipe(
    vae=VAE.id,
    vae_class=VAE.class_name,
    dtype="float32",
    scaling=(),
    scaling_dtype="float32",
    rounding="round",
    batch=1,
    cpu_threads=1,
)


def picture_latent(seed: int, *, height: int = 2, width: int = 3) -> Latent:
    bits = np.random.default_rng(seed).normal(size=(4, height, width)).astype(np.float16)
    return Latent(bits=bits.view(np.uint16), dtype="float16")


def sized_payload(size_bytes: int, *, number: int = 0) -> tuple[bytes, bytes]:
    """Return (digest, payload) of exactly that size: a valid header and noise, not decodable."""
    digest = number.to_bytes(4, "big") + size_bytes.to_bytes(28, "big")
    noise = np.random.default_rng(number).bytes(size_bytes - _HEADER.size)
    return digest, _HEADER.pack(b"LFSP", 1, 0, 0, 0, 4, 2, 3, len(noise), digest) + noise


def add_picture(
    transaction: Transaction,
    parent_ino: int,
    name: bytes,
    latent: Latent,
    *,
    size_bytes: int = 1000,
    recipe: Recipe = RECIPE,
    chunks: tuple[bytes, ...] = (),
    metadata: bytes | None = None,
) -> int:
    """Add a picture as an import does; the VAE of RECIPE and *recipe* are added with it."""
    transaction.put_vae("tiny", VAE)
    _, height, width = latent.shape
    kept = None if metadata is None else transaction.add_blob(pack_blob(metadata))
    content = LatentContent(
        payload=transaction.add_payload(latent.digest(), payload_codec.encode(latent)),
        recipe=transaction.put_recipe(recipe),
        framing=Framing.png(),
        chunks=tuple(transaction.add_blob(pack_blob(chunk)) for chunk in chunks),
        rendition_sha256=bytes(32),
        width=width * _FACTOR,
        height=height * _FACTOR,
        source=Source("a.latent", "comfyui", 0, kept),
    )
    inode = Inode(FILE_MODE, 0, 0, 1, size_bytes, 0, 0, content)
    return transaction.add_file(parent_ino, name, inode)


def problems(store: Store, path: Path | None = None) -> list[Problem]:
    """Return what fsck finds."""
    with store.read() as snapshot:
        return list(check_store(path or store.path, snapshot))
