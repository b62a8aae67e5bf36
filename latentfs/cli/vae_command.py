"""latentfs vae add, latentfs vae list"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from latentfs.cli.arguments import device_option, shown_bytes, store_argument
from latentfs.cli.output import one_line
from latentfs.latents.latent import Dtype
from latentfs.latents.recipe import Layout
from latentfs.latents.scaling import LATENT_FORMATS

if TYPE_CHECKING:
    from latentfs.store.records import VaeRecord

__all__ = ["command"]


@click.group("vae", epilog="Example: latentfs vae add ~/art.lfs sdxl /models/sdxl/vae")
def command() -> None:
    """Add VAEs to a store, and list them."""


@command.command(
    "add",
    epilog="Examples: latentfs vae add ~/art.lfs sdxl /models/sdxl/vae | "
    "latentfs vae add ~/art.lfs preview madebyollin/taesdxl | "
    "latentfs vae add ~/art.lfs mini builtin",
)
@store_argument
@click.argument("name")
@click.argument("vae", metavar="PATH_OR_ID")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Type to compute in.  Default: the fastest on this machine with at least 45 dB PSNR "
    "against float32.",
)
@click.option(
    "--layout",
    type=click.Choice(["contiguous", "channels_last"]),
    help="Memory layout.  channels_last is faster and changes some pixels slightly.  Default: "
    "contiguous on a CPU, as diffusers decodes, and channels_last on a GPU.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 64),
    help="Number of latents to decode together; short batches are padded.  Default: the fastest on "
    "a GPU, 1 on a CPU.",
)
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Decode through torch.compile: faster, with slightly different pixels.  The first picture "
    "of each size can take minutes.  Needs a C++ compiler.",
)
@device_option
@click.option(
    "--latent-format",
    type=click.Choice(sorted(LATENT_FORMATS)),
    help="Model whose latents a TAESD takes, if its weights and name do not show it.",
)
def add(
    store: Path,
    name: str,
    vae: str,
    dtype: Dtype | None,
    layout: Layout | None,
    batch: int | None,
    compiled: bool,
    device: str,
    latent_format: Literal["sd15", "sdxl", "sd3", "flux1"] | None,
) -> None:
    """Copy a VAE into STORE under NAME.

    PATH_OR_ID is a diffusers VAE folder, a Hugging Face id, or "builtin" for the VAE that comes
    with latentfs.  Only safetensors weights are accepted.
    """
    from latentfs.ingest.vaes import add_vae
    from latentfs.store.store import Store

    with Store.open(store, writable=True) as opened:
        added = add_vae(
            opened,
            name,
            vae,
            dtype=dtype,
            layout=layout,
            batch=batch,
            compiled=compiled,
            device=device,
            latent_format=latent_format,
        )
    record = added.record
    quality = "exact" if math.isinf(added.dtype_psnr_db) else f"{added.dtype_psnr_db:.1f} dB"
    batched = f", batches of {record.batch}" if record.batch > 1 else ""
    compiled_too = ", compiled" if record.compiled else ""
    click.echo(
        f"added {name}: {record.class_name}, {record.latent_channels} channels, "
        f"1/{record.spatial_factor} of each side, {record.dtype} {record.layout}{batched}"
        f"{compiled_too} on {record.device} ({quality} against float32)"
    )
    if record.takes_scaled and record.latent_format is None and vae != "builtin":
        click.echo(
            f"note: it is not known which model's latents {name} takes, so ComfyUI latents are "
            "used unscaled; set --latent-format if their pictures look wrong",
            err=True,
        )


@command.command("list", epilog="Example: latentfs vae list ~/art.lfs")
@store_argument
@click.option("--json", "as_json", is_flag=True, help="As a JSON list, for programs.")
def list_vaes(store: Path, as_json: bool) -> None:
    """List the VAEs of STORE."""
    from latentfs.store.store import Store

    with Store.open(store) as opened, opened.read() as snapshot:
        vaes = list(snapshot.vaes())
    if as_json:
        click.echo(json.dumps([_facts(name, vae) for name, vae in vaes], indent=2))
        return
    if not vaes:
        click.echo(f"the store {store} has no VAE; add one with latentfs vae add", err=True)
    for name, vae in vaes:
        size = shown_bytes(_size_bytes(vae))
        click.echo(
            f"{name}\t{vae.class_name}\t{vae.latent_channels} channels\t{vae.dtype}\t"
            f"{vae.latent_format or '-'}\t{size}\t{vae.id[:12]}\t{one_line(vae.origin)}"
        )


def _size_bytes(vae: VaeRecord) -> int:
    return sum(file.size_bytes for file in vae.files)


def _facts(name: str, vae: VaeRecord) -> dict[str, object]:
    return {
        "name": name,
        "class": vae.class_name,
        "id": vae.id,
        "origin": vae.origin,
        "bytes": _size_bytes(vae),
        "latent_channels": vae.latent_channels,
        "spatial_factor": vae.spatial_factor,
        "latent_format": vae.latent_format,
        "dtype": vae.dtype,
        "layout": vae.layout,
        "batch": vae.batch,
        "compiled": vae.compiled,
        "device": vae.device,
    }
