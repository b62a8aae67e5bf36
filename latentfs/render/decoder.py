"""Torch side: groups of requests to pixels on one device, and what is tried when that fails.

What is tried, in this order:

* **Out of memory** with other VAEs loaded: without those.
* **Out of memory** with more than one latent in the batch: each alone.
* **Out of memory** with one, at import: in tiles.  The picture's recipe says so from then on.
* **NaN or infinity** in a narrow dtype: float32.  At import the picture's recipe says so.

A render that needed any of it reports the recipe that it took, so that the daemon can tell.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import torch

from latentfs.errors import LatentfsError
from latentfs.images.pixels import Pixels
from latentfs.latents import payload as payload_codec
from latentfs.latents.latent import Latent
from latentfs.latents.recipe import DeviceClass, Recipe
from latentfs.render.decode import (
    NotFiniteError,
    OutOfMemoryError,
    decode_samples,
    scaled_batch,
    to_pixels,
    understood,
)
from latentfs.render.device_memory import free_memory
from latentfs.render.protocol import RenderRequest
from latentfs.render.vae_models import VaeModels

__all__ = ["Decoder", "Picture", "Task"]


@dataclass(slots=True)
class Task:
    """A request on its way through the renderer.

    Attributes:
        latent: what is to be decoded.
        reference: payload to compare with, empty for none.
        chunks: metadata to keep in the file.
        received_s: on the monotonic clock.
        stages_s: seconds by stage so far.
    """

    request: RenderRequest
    latent: Latent
    reference: bytes
    chunks: list[bytes]
    received_s: float
    stages_s: dict[str, float] = field(default_factory=dict)
    _last_s: float = field(default_factory=time.monotonic)

    def lap(self, stage: str) -> None:
        """Count the time since the last lap for *stage*."""
        now_s = time.monotonic()
        self.stages_s[stage] = self.stages_s.get(stage, 0.0) + now_s - self._last_s
        self._last_s = now_s


@dataclass(frozen=True, slots=True)
class Picture:
    """Pixels, uint8 [H, W, 3]; those of the reference; the recipe if not the one asked for."""

    pixels: Pixels
    reference: Pixels | None
    recipe: Recipe | None


class Decoder:
    """Decodes on one device.  Belongs to one thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._device_class: DeviceClass = "cuda" if device.type == "cuda" else "cpu"
        self._models = VaeModels(device)

    @property
    def compiling(self) -> bool:
        """Whether a VAE is being compiled.  May be asked from any thread."""
        return self._models.compiling

    def decode(self, group: Sequence[Task]) -> list[Picture | LatentfsError]:
        """Return for each task its picture, or why there is none.

        The tasks have the same VAE, dtype and latent shape.

        Raises:
            DeviceLostError: the device has failed.
        """
        batch = self._adapted(group[0]).batch
        outcomes: list[Picture | LatentfsError] = []
        for start in range(0, len(group), batch):
            outcomes += self._decode_batch(group[start : start + batch])
        return outcomes

    def _adapted(self, task: Task) -> Recipe:
        return task.request.recipe.adapted_to(self._device_class)

    def _decode_batch(self, group: Sequence[Task]) -> list[Picture | LatentfsError]:
        recipes = [self._adapted(task) for task in group]
        try:
            samples = self._samples(group, recipes)
        except OutOfMemoryError as error:
            # Another one, as what it came from keeps the tensors of the decode alive.
            too_little = OutOfMemoryError(str(error))
        except LatentfsError as error:
            return [error] * len(group)
        else:
            return [
                self._picture(task, recipe, sample)
                for task, recipe, sample in zip(group, recipes, samples, strict=False)
            ]
        return [self._with_less_memory(task, too_little) for task in group]

    def _samples(self, group: Sequence[Task], recipes: Sequence[Recipe]) -> torch.Tensor:
        """Return [B, 3, H, W], B at least the number of tasks; without other VAEs if need be."""
        try:
            return self._decoded(group, recipes)
        except OutOfMemoryError:
            if not self._models.drop_others():
                raise
        free_memory()
        return self._decoded(group, recipes)

    def _decoded(self, group: Sequence[Task], recipes: Sequence[Recipe]) -> torch.Tensor:
        request = group[0].request
        with understood(recipes[0], group[0].latent.shape):
            vae = self._models.get(request.vae_folder, request.vae_files, recipes[0])
            _lap(group, "load")
            z = scaled_batch([task.latent for task in group], recipes, device=self._device)
        samples = decode_samples(vae, z, recipes[0])
        _lap(group, "decode")
        return samples

    def _picture(self, task: Task, recipe: Recipe, sample: torch.Tensor) -> Picture | LatentfsError:
        try:
            with understood(recipe, task.latent.shape):
                pixels = to_pixels(sample, recipe)
            task.lap("quantise")
        except NotFiniteError as error:
            return self._widened(task, recipe, error)
        except LatentfsError as error:
            return error
        return self._with_reference(task, recipe, pixels, None)

    def _with_less_memory(self, task: Task, error: OutOfMemoryError) -> Picture | LatentfsError:
        asked = self._adapted(task)
        free_memory()
        tries: list[dict[str, object]] = []
        if asked.batch > 1:
            tries.append({"batch": 1})
        if task.request.size_bytes is None and not asked.tiled:
            tries.append({"batch": 1, "tiled": True})
        outcome: Picture | LatentfsError = error
        for changes in tries:
            outcome = self._alone(task, changes)
            if not isinstance(outcome, OutOfMemoryError):
                break
            free_memory()
        return outcome

    def _widened(
        self, task: Task, recipe: Recipe, error: NotFiniteError
    ) -> Picture | LatentfsError:
        if recipe.dtype == "float32":
            return error
        return self._alone(task, {"dtype": "float32", "widened_from": recipe.dtype})

    def _alone(self, task: Task, changes: Mapping[str, object]) -> Picture | LatentfsError:
        """Decode one task by a recipe with *changes*."""
        recipe = _replaced(self._adapted(task), changes)
        try:
            sample = self._samples([task], [recipe])[0]
            with understood(recipe, task.latent.shape):
                pixels = to_pixels(sample, recipe)
        except LatentfsError as error:
            return error
        task.lap("quantise")
        return self._with_reference(task, recipe, pixels, _replaced(task.request.recipe, changes))

    def _with_reference(
        self, task: Task, recipe: Recipe, pixels: Pixels, taken: Recipe | None
    ) -> Picture | LatentfsError:
        reference = None
        if task.reference:
            try:
                reference = self._reference(task, recipe)
            except LatentfsError as error:
                return error
            task.lap("compare")
        return Picture(pixels, reference, taken)

    def _reference(self, task: Task, recipe: Recipe) -> Pixels:
        exact = payload_codec.decode(task.reference)
        with understood(recipe, exact.shape):
            vae = self._models.get(task.request.vae_folder, task.request.vae_files, recipe)
            z = scaled_batch([exact], [recipe], device=self._device)
            return to_pixels(decode_samples(vae, z, recipe)[0], recipe)


def _lap(group: Sequence[Task], stage: str) -> None:
    for task in group:
        task.lap(stage)


def _replaced(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    return msgspec.structs.replace(recipe, **changes)
