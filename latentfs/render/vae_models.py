"""Torch side: VAEs loaded from verified folders.

Every VAE, the built-in one too, is loaded by :func:`load`, from safetensors only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from latentfs.errors import VaeError
from latentfs.latents.latent import Dtype
from latentfs.latents.recipe import Layout, Recipe
from latentfs.render.compiled import CompiledVae
from latentfs.render.device_memory import free_memory, is_out_of_memory
from latentfs.store.records import VaeFile
from latentfs.store.vae_files import verify

__all__ = ["VaeModels", "load", "memory_format", "torch_dtype"]

CPU = torch.device("cpu")
_MODELS_MAX = 4


def torch_dtype(dtype: Dtype) -> torch.dtype:
    return {
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
        "float32": torch.float32,
    }[dtype]


def memory_format(layout: Layout) -> torch.memory_format:
    return {
        "contiguous": torch.contiguous_format,
        "channels_last": torch.channels_last,
    }[layout]


def load(
    folder: Path,
    *,
    class_name: str,
    dtype: Dtype,
    layout: Layout = "contiguous",
    device: torch.device = CPU,
) -> Any:
    """Load a diffusers autoencoder for decoding, in evaluation mode.

    Raises:
        VaeError: diffusers has no such autoencoder, or its files don't fit it.
        RuntimeError, MemoryError: there is not enough memory, of the device or the host.
    """
    import diffusers.models.autoencoders as autoencoders
    from diffusers.models.modeling_utils import ModelMixin
    from diffusers.utils import logging as diffusers_logging

    # What matters of its warnings is an error here, and the rest is noise.
    diffusers_logging.set_verbosity_error()

    model_class = getattr(autoencoders, class_name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, ModelMixin)):
        raise VaeError(f"{folder} is a {class_name!r}, which is no diffusers autoencoder")
    try:
        loaded: Any = model_class.from_pretrained(
            folder,
            torch_dtype=torch_dtype(dtype),
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # whatever a hostile config or weights file makes diffusers raise
        if is_out_of_memory(error):
            raise
        raise VaeError(f"{folder} can't be loaded as {class_name}: {_one_line(error)}") from error
    model, found = loaded
    if found["missing_keys"]:
        # diffusers has filled them with random numbers, other ones at each load.
        names = sorted(found["missing_keys"])
        raise VaeError(
            f"{folder} can't be loaded as {class_name}: its weights are missing {len(names)} "
            f"tensors, {names[0]} for one; give the whole VAE"
        )
    model = model.eval().requires_grad_(False)
    return model.to(device=device, memory_format=memory_format(layout))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


class VaeModels:
    """The VAEs a renderer has loaded on its device, at most a few; the oldest in use goes first.

    All go where the memory does not suffice for one that is asked for.

    Attributes:
        compiling: whether one of them is being compiled, at its first decode of a shape.
    """

    def __init__(self, device: torch.device) -> None:
        self.compiling = False
        self._device = device
        self._models: OrderedDict[tuple[object, ...], Any] = OrderedDict()

    def get(self, folder: str, files: tuple[VaeFile, ...], recipe: Recipe) -> Any:
        """Return the model that *recipe* decodes with, loading it after its files were verified.

        Raises:
            VaeCorruptError: a file is missing or was changed since the VAE was added.
            VaeError: it can't be loaded.
            RuntimeError, MemoryError: there is not enough memory, even without the other VAEs.
        """
        compiled = recipe.compiled and not recipe.tiled
        key = (folder, recipe.vae_class, recipe.dtype, recipe.layout, compiled)
        if key not in self._models:
            verify(Path(folder), files)
            while len(self._models) >= _MODELS_MAX:
                self._models.popitem(last=False)
            model = self._loaded(Path(folder), recipe)
            if compiled:
                model = CompiledVae(model, while_compiling=self._while_compiling)
            self._models[key] = model
        self._models.move_to_end(key)
        return self._models[key]

    def drop_others(self) -> bool:
        """Let go of all but the one that was asked for last; return whether there were any."""
        had = len(self._models)
        while len(self._models) > 1:
            self._models.popitem(last=False)
        return had > 1

    def _loaded(self, folder: Path, recipe: Recipe) -> Any:
        try:
            return self._load(folder, recipe)
        except Exception as error:
            if not (self._models and is_out_of_memory(error)):
                raise
        self._models.clear()
        free_memory()
        return self._load(folder, recipe)

    def _load(self, folder: Path, recipe: Recipe) -> Any:
        return load(
            folder,
            class_name=recipe.vae_class,
            dtype=recipe.dtype,
            layout=recipe.layout,
            device=self._device,
        )

    @contextmanager
    def _while_compiling(self) -> Iterator[None]:
        self.compiling = True
        try:
            yield
        finally:
            self.compiling = False
