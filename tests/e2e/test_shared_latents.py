"""Every latent of ../shared gives the pixels that diffusers gives.

In float32 and bfloat16; the default dtype is one of them.  Without LATENTFS_TEST_ALL set, which
takes half an hour on 2 cores, one picture is taken whole, and of the others the upper left corners.
"""

import os
import shutil
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
    picture,
    postprocessed,
    sample_of,
    spawn,
    tensors_of,
    unpacked,
)

from latentfs.store.store import Store

DTYPES = ("float32", "bfloat16")
CORNER_CELLS = 16
WHOLE = "float32/comfyui-sd15/000.latent"


@dataclass(frozen=True)
class Kind:
    """A folder of latents.  ``scaling``: from the numbers of the file to those of its VAE."""

    model: str
    tensor: str
    scaling: float | None = None


SETS = {
    "comfyui-sd15": Kind("taesd", "latent_tensor", scaling=0.18215),
    "comfyui-sdxl": Kind("taesdxl", "latent_tensor", scaling=0.13025),
    "diffusers-sd3": Kind("taesd3", "latents"),
    "diffusers-flux1-packed": Kind("taef1", "latents"),
}


@dataclass(frozen=True)
class World:
    store: Path
    latents: Path
    exported: Path
    models: Path


def metadata_of(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def write_corner(source: Path, target: Path) -> None:
    """The upper left corner of the picture, as the same kind of file."""
    from safetensors.torch import save_file

    tensors, metadata = tensors_of(source), metadata_of(source)
    if "packed" in str(source):
        tokens_across, side = int(metadata["width"]) // 16, CORNER_CELLS // 2
        rows = tensors["latents"].reshape(1, -1, tokens_across, 64)
        tensors["latents"] = rows[:, :side, :side].reshape(1, -1, 64).contiguous()
        metadata |= {"height": str(side * 16), "width": str(side * 16)}
    else:
        name = "latents" if "latents" in tensors else "latent_tensor"
        tensors[name] = tensors[name][..., :CORNER_CELLS, :CORNER_CELLS].contiguous()
    save_file(tensors, target, metadata=metadata)
    status = source.stat()
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def chosen_latents(shared: Path, folder: Path, name: str, *, everything: bool) -> None:
    """Fill DTYPE/NAME in *folder* with what is to be imported in that dtype."""
    files = sorted((shared / "latents" / name).iterdir())
    assert files
    for dtype in DTYPES:
        target = folder / dtype / name
        target.mkdir(parents=True)
        for path in files:
            if everything or f"{dtype}/{name}/{path.name}" == WHOLE:
                shutil.copy2(path, target / path.name)
            else:
                write_corner(path, target / path.name)


@pytest.fixture(scope="module")
def world(shared, everything, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    store, latents, batches = folder / "store", folder / "latents", []
    call("init", store).checked()
    for name in SETS:
        chosen_latents(shared, latents, name, everything=everything)
    for dtype, (name, kind) in product(DTYPES, SETS.items()):
        vae, model = f"{kind.model}-{dtype}", shared / "models" / kind.model
        call("vae", "add", store, vae, model, "--dtype", dtype).checked()
        batches.append(Batch([latents / dtype / name], vae, f"/{dtype}/{name}"))
    import_all(store, batches)
    spawn("export", store, "/", folder / "out").checked()
    return World(store, latents, folder / "out", shared / "models")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("dtype", "name"), list(product(DTYPES, SETS)))
def test_pixels(world, dtype, name):
    import torch
    from diffusers import AutoencoderTiny

    kind = SETS[name]
    with Store.open(world.store) as store, store.read() as snapshot:
        record = snapshot.vae(f"{kind.model}-{dtype}")
    assert record.dtype == dtype
    torch_dtype = getattr(torch, dtype)
    vae: Any = AutoencoderTiny.from_pretrained(
        world.models / kind.model, torch_dtype=torch_dtype, low_cpu_mem_usage=False
    )
    for path in sorted((world.latents / dtype / name).iterdir()):
        z = tensors_of(path)[kind.tensor]
        if "packed" in name:
            size = metadata_of(path)
            z = unpacked(z, int(size["height"]), int(size["width"]))
        if kind.scaling is not None:
            z = z.float() * kind.scaling
        sample = sample_of(vae, z.to(torch_dtype), threads=record.cpu_threads)
        found = picture(world.exported / dtype / name / f"{path.stem}.png")
        assert np.array_equal(found.pixels, postprocessed(sample)), path


def test_text_and_times(world):
    texts = 0
    for path, inode in files_in(world.store).items():
        exported = world.exported / path[1:]
        (source,) = (world.latents / path[1:]).parent.glob(f"{exported.stem}.*")
        assert exported.stat().st_size == inode.size_bytes
        assert exported.stat().st_mtime_ns == source.stat().st_mtime_ns
        expected = metadata_of(source) if source.suffix == ".latent" else {}
        # ComfyUI writes the prompt first, then all else, which is the workflow here.
        text = tuple((key, expected[key]) for key in ("prompt", "workflow") if key in expected)
        assert picture(exported).text == text
        assert set(dict(text)) == set(expected)
        texts += len(text)
    assert texts >= 2
