"""Torch side: how long the decoder alone takes, in a loop without anything else.

Run as ``python -m latentfs.bench.bare_decode``, by :mod:`latentfs.bench.bare_decode_process`.  JSON
comes on standard input and goes to standard output::

    {"store": path, "inos": [...], "device": wanted, "warm_ups": n}
    {"seconds": [...], "total_s": seconds, "device": name}

``seconds`` are those of the decode that each inode's latent was in, in the order of ``inos``;
``total_s`` is the sum over all decodes, of which there are fewer where the recipe has batches.  It
loads what the renderer loads; latents are decompressed and scaled before the clock starts.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from latentfs.errors import LatentfsError, StoreCorruptError
from latentfs.latents import payload as payload_codec
from latentfs.render.decode import scaled_batch
from latentfs.render.devices import choose_devices
from latentfs.render.job_queue import RenderJob
from latentfs.render.jobs import job_for_inode
from latentfs.render.vae_models import VaeModels
from latentfs.store.store import Store

__all__ = ["time_decodes"]


def time_decodes(
    store_path: Path, inos: list[int], *, device: torch.device, warm_ups: int
) -> dict[str, Any]:
    """Decode each inode's latent once, all of one recipe, after *warm_ups* more.

    Returns what is printed, see above.

    Raises:
        StoreCorruptError: an inode or a record of it is missing.
        VaeError, CorruptPayloadError: as in a render.
    """
    jobs = _jobs(store_path, inos)
    vae, batches = _prepared(jobs, device)
    batch = len(batches[0])
    for index in range(warm_ups):
        _decode_seconds(vae, batches[index % len(batches)])
    calls_s = [_decode_seconds(vae, z) for z in batches]
    return {
        "seconds": [calls_s[index // batch] for index in range(len(jobs))],
        "total_s": sum(calls_s),
        "device": str(device),
    }


def _decode_seconds(vae: Any, z: torch.Tensor) -> float:
    with torch.inference_mode():
        start_s = time.perf_counter()
        vae.decode(z, return_dict=False)[0]
        if z.is_cuda:  # kernels run on after they were started
            torch.cuda.synchronize(z.device)
        return time.perf_counter() - start_s


def _jobs(store_path: Path, inos: list[int]) -> list[RenderJob]:
    jobs = []
    with Store.open(store_path) as store, store.read() as snapshot:
        for ino in inos:
            inode = snapshot.inode(ino)
            if inode is None:
                raise StoreCorruptError(f"inode {ino} was removed while it was measured")
            jobs.append(job_for_inode(snapshot, store_path, inode))
    return jobs


def _prepared(jobs: list[RenderJob], device: torch.device) -> tuple[Any, list[torch.Tensor]]:
    """The VAE and the batches it is given, as a renderer on *device* makes them."""
    request = jobs[0].request
    recipe = request.recipe.adapted_to("cuda" if device.type == "cuda" else "cpu")
    torch.set_num_threads(recipe.cpu_threads)
    vae = VaeModels(device).get(request.vae_folder, request.vae_files, recipe)
    if recipe.tiled:
        vae.enable_tiling()
    latents = [payload_codec.decode(job.bulk[0]) for job in jobs]
    groups = [latents[at : at + recipe.batch] for at in range(0, len(latents), recipe.batch)]
    with torch.inference_mode():
        batches = [scaled_batch(group, [recipe] * len(group), device=device) for group in groups]
    return vae, batches


def main() -> None:
    asked = json.load(sys.stdin)
    try:
        timed = time_decodes(
            Path(asked["store"]),
            asked["inos"],
            device=torch.device(choose_devices(asked["device"])[0]),
            warm_ups=asked["warm_ups"],
        )
    except LatentfsError as error:
        sys.exit(str(error))
    json.dump(timed, sys.stdout)


if __name__ == "__main__":
    main()
