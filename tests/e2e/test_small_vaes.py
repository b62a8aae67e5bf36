"""Pixels are diffusers' own, for every kind of VAE, dtype, rounding and latent file."""

import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e.support import (
    Batch,
    call,
    files_in,
    import_all,
    made_store,
    picture,
    postprocessed,
    sample_of,
    spawn,
    tensors_of,
    truncated,
    unpacked,
)
from latent_files import latent_array, write_comfyui_latent, write_diffusers_latent

from latentfs.latents.recipe import Rounding
from latentfs.store.store import Store

DTYPES = ("float32", "bfloat16")
ROUNDINGS: tuple[Rounding, ...] = ("round", "truncate")
TEXT = {"workflow": '{"nodes": []}', "prompt": '{"3": "a \\u732b"}', "extra": "more"}
MTIME_NS = 1_700_000_001_123_456_789
SDXL_SCALING = 0.13025


@dataclass(frozen=True)
class Kind:
    """A VAE of these tests.

    ``native_scaling``: what ComfyUI multiplies native numbers by for it, as it does for a TAESD.
    """

    folder: str
    class_name: str
    channels: int
    scaling: float = 1.0
    shift: float = 0.0
    native_scaling: float | None = None
    add: tuple[str, ...] = ()


KINDS = {
    "tiny": Kind(
        "tiny_vae_folder",
        "AutoencoderTiny",
        4,
        native_scaling=SDXL_SCALING,
        add=("--latent-format", "sdxl"),
    ),
    "kl": Kind("kl_folder", "AutoencoderKL", 4, scaling=SDXL_SCALING),
    "klshift": Kind("kl_shift_folder", "AutoencoderKL", 16, scaling=0.3611, shift=0.1159),
    "dc": Kind("dc_folder", "AutoencoderDC", 8, scaling=0.41407),
}
FILES: dict[Rounding, tuple[str, ...]] = {
    "round": ("batch_1", "batch_2", "old", "scaled32", "scaled16"),
    "truncate": ("old", "scaled16"),
}


@dataclass(frozen=True)
class World:
    store: Path
    latents: Path
    exported: Path
    vaes: dict[tuple[str, str], Any]


def write_latents(folder: Path, channels: int) -> None:
    folder.mkdir()

    def numbers(*shape: int) -> Any:
        return latent_array(*shape, seed=channels + sum(shape))

    c = channels
    write_comfyui_latent(folder / "batch.latent", numbers(2, c, 6, 10), metadata=TEXT)
    write_comfyui_latent(folder / "old.latent", numbers(1, c, 8, 8), versioned=False)
    write_diffusers_latent(folder / "scaled32.safetensors", numbers(1, c, 10, 6))
    scaled16 = folder / "scaled16.safetensors"
    write_diffusers_latent(scaled16, numbers(1, c, 8, 12), dtype="bfloat16")
    if channels == 16:
        size = {"height": "96", "width": "64"}
        packed = numbers(1, 24, 64)
        packed_path = folder / "packed.safetensors"
        write_diffusers_latent(packed_path, packed, dtype="bfloat16", metadata=size)
    for path in folder.iterdir():
        os.utime(path, ns=(MTIME_NS, MTIME_NS))


@pytest.fixture(scope="module")
def world(request, tmp_path_factory):
    import diffusers
    import torch

    folder = tmp_path_factory.mktemp("small")
    (folder / "latents").mkdir()
    store, vaes, batches = made_store(folder / "store"), {}, []
    for name, kind in KINDS.items():
        origin = request.getfixturevalue(kind.folder)
        write_latents(folder / "latents" / name, kind.channels)
        for dtype in DTYPES:
            vae = f"{name}-{dtype}"
            call("vae", "add", store, vae, origin, "--dtype", dtype, *kind.add).checked()
            vaes[name, dtype] = getattr(diffusers, kind.class_name).from_pretrained(
                origin, torch_dtype=getattr(torch, dtype), low_cpu_mem_usage=False
            )
            sources = sorted((folder / "latents" / name).iterdir())
            truncated_ones = [path for path in sources if path.stem in FILES["truncate"]]
            batches += [
                Batch(sources, vae, f"/{name}/{dtype}/round"),
                Batch(truncated_ones, vae, f"/{name}/{dtype}/truncate", "truncate"),
            ]
    added = import_all(store, batches)
    exported = folder / "out"
    result = spawn("export", store, "/", exported).checked()
    assert result.out == f"{len(added)} exported to {exported}, 0 failed\n"
    return World(store, folder / "latents", exported, vaes)


def vae_input(world: World, name: str, file: str, dtype: Any) -> Any:
    """[1, C, h, w] as diffusers' pipelines, or ComfyUI, hand it to ``decode``."""
    kind, folder = KINDS[name], world.latents / name
    if file in ("batch_1", "batch_2", "old"):
        z = tensors_of(folder / f"{file.split('_')[0]}.latent")["latent_tensor"].float()
        if file == "old":
            z = z * (1.0 / 0.18215)
        if kind.native_scaling is not None:
            z = z * kind.native_scaling
        index = 1 if file == "batch_2" else 0
        return z[index : index + 1].to(dtype)
    latents = tensors_of(folder / f"{file}.safetensors")["latents"]
    if file == "packed":
        latents = unpacked(latents, 96, 64)
    return latents.to(dtype) / kind.scaling + kind.shift


@pytest.mark.parametrize(
    ("name", "dtype", "rounding"),
    list(product(KINDS, DTYPES, ROUNDINGS)),
)
def test_pixels(world, name, dtype, rounding):
    import torch

    with Store.open(world.store) as store, store.read() as snapshot:
        record = snapshot.vae(f"{name}-{dtype}")
    assert (record.dtype, record.latent_channels) == (dtype, KINDS[name].channels)
    finish = postprocessed if rounding == "round" else truncated
    packed = ["packed"] if name == "klshift" and rounding == "round" else []
    for file in [*FILES[rounding], *packed]:
        z = vae_input(world, name, file, getattr(torch, dtype))
        sample = sample_of(world.vaes[name, dtype], z, threads=record.cpu_threads)
        found = picture(world.exported / name / dtype / rounding / f"{file}.png")
        assert found.format == "PNG"
        assert np.array_equal(found.pixels, finish(sample)), (file, sample.shape)
        assert found.pixels.std() > 5, "too flat to tell anything"


def test_text_is_written_as_comfyui_writes_it(world):
    found = picture(world.exported / "kl" / "float32" / "round" / "batch_2.png")
    assert found.text == tuple((k, TEXT[k]) for k in ("prompt", "workflow", "extra"))
    assert picture(world.exported / "kl" / "float32" / "round" / "old.png").text == ()


def test_times_and_sizes(world):
    found = files_in(world.store)
    assert len(found) == sum(1 for p in world.exported.rglob("*.png"))
    for path, inode in found.items():
        status = (world.exported / path[1:]).stat()
        assert status.st_size == inode.size_bytes
        assert status.st_mtime_ns == inode.mtime_ns == MTIME_NS


def test_fsck(world):
    result = call("fsck", world.store).checked()
    assert result.out == f"{world.store}: no problems\n"
