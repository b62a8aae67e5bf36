"""Adding a VAE to a store: find it, examine it, copy it, record it."""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path

import msgspec

from latentfs.errors import InvalidArgumentError, VaeError
from latentfs.latents.latent import Dtype
from latentfs.latents.recipe import Layout
from latentfs.latents.scaling import LATENT_FORMATS
from latentfs.render import OPENMP_ENVIRONMENT
from latentfs.store.records import VaeRecord
from latentfs.store.store import Store
from latentfs.store.vae_files import copied_into_store, open_vae_folder

__all__ = ["BUILTIN", "AddedVae", "add_vae"]

BUILTIN = "builtin"
_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HUB_ID_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json"]


class AddedVae:
    """The record as stored, and the PSNR in dB that dtype and layout have against float32."""

    def __init__(self, record: VaeRecord, dtype_psnr_db: float) -> None:
        self.record = record
        self.dtype_psnr_db = dtype_psnr_db


def add_vae(
    store: Store,
    name: str,
    origin: str,
    *,
    dtype: Dtype | None = None,
    layout: Layout | None = None,
    batch: int | None = None,
    compiled: bool = False,
    device: str = "cpu",
    latent_format: str | None = None,
) -> AddedVae:
    """Add the VAE at *origin* (a diffusers folder, a hub id, or ``builtin``) under *name*.

    What is None of dtype, layout and batch is chosen by what is fastest on *device*.  With
    *compiled* it is decoded through torch.compile.

    Adding the same VAE under the same name again replaces what is recorded of it, all but its
    thread count, and a damaged copy of its files.

    Raises:
        InvalidArgumentError: *name*, *latent_format* or *device* can't be used.
        VaeError: *origin* is no VAE, it can't be compiled here, or another VAE has that name.
        StoreFullError: the disk is full; the store is as it was.
    """
    if not _NAME_PATTERN.fullmatch(name):
        raise InvalidArgumentError(
            f"VAE name {name!r} can't be used; use up to 64 letters, digits, '.', '_' and '-'"
        )
    source = open_vae_folder(_folder_of(origin))

    for variable, value in OPENMP_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from latentfs.render.fastest import Wishes  # imports torch
    from latentfs.render.inspection import inspect_vae

    found = inspect_vae(
        source.path,
        class_name=source.class_name,
        origin=origin,
        device=device,
        wishes=Wishes(dtype=dtype, layout=layout, batch=batch, compiled=compiled),
    )
    _check_latent_format(latent_format, found.latent_channels)
    with copied_into_store(source, store.path) as (vae_id, files):
        record = VaeRecord(
            id=vae_id,
            class_name=source.class_name,
            dtype=found.manner.dtype,
            latent_channels=found.latent_channels,
            spatial_factor=found.spatial_factor,
            scaling_factor=found.scaling_factor,
            shift_factor=found.shift_factor,
            takes_scaled=found.takes_scaled,
            latent_format=latent_format or found.latent_format,
            cpu_threads=found.cpu_threads,
            files=files,
            origin=origin,
            layout=found.manner.layout,
            device=found.device,
            batch=found.manner.batch,
            compiled=found.manner.compiled,
        )
        _record(store, name, record)
    return AddedVae(record, found.manner.psnr_db)


def _record(store: Store, name: str, record: VaeRecord) -> None:
    with store.write() as transaction:
        for known_name, known in transaction.vaes():
            if known_name == name and known.id != record.id:
                raise VaeError(
                    f"another VAE is called {name!r} already (added from {known.origin}); "
                    "choose another name"
                )
            if known.id == record.id:
                # Part of the recipe: what is imported again must come out as the same picture.
                record = msgspec.structs.replace(record, cpu_threads=known.cpu_threads)
        transaction.put_vae(name, record)


def _check_latent_format(latent_format: str | None, channels: int) -> None:
    if latent_format is None:
        return
    expected = LATENT_FORMATS[latent_format].channels
    if expected != channels:
        raise InvalidArgumentError(
            f"latent format {latent_format!r} has {expected} channels, this VAE takes {channels}"
        )


def _folder_of(origin: str) -> Path:
    if origin == BUILTIN:
        return Path(str(resources.files("latentfs.render") / "builtin_vae"))
    path = Path(origin)
    if path.exists() or not _HUB_ID_PATTERN.fullmatch(origin):
        if not path.exists():
            raise VaeError(f"{origin} does not exist; give a diffusers VAE folder or a hub id")
        return path
    return _download(origin)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except Exception as error:  # network, authentication, no such model: all end here
        reason = " ".join(str(error).split())[:200]
        raise VaeError(
            f"no folder {hub_id}, and no model of that id could be downloaded: {reason}"
        ) from error
