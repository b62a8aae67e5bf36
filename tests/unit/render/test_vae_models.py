"""Which VAEs a renderer keeps, and which go where memory does not suffice for all."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from store_contents import RECIPE

from latentfs.errors import VaeError
from latentfs.render import vae_models
from latentfs.render.vae_models import VaeModels

NO_MEMORY = {
    "of a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "of the host": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    "of Python": MemoryError(),
}


class Model:
    """In the place of a VAE."""


class Device:
    """Has room for some models at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 4
        self.error: Exception = MemoryError()
        self.loaded: list[str] = []
        self._models: list[weakref.ref[Model]] = []
        monkeypatch.setattr(vae_models, "load", self._load)
        monkeypatch.setattr(vae_models, "verify", lambda *_: None)

    def held(self) -> int:
        return sum(model() is not None for model in self._models)

    def _load(self, folder: Path, **_: Any) -> Model:
        if self.held() >= self.room:
            raise self.error
        model = Model()
        self._models.append(weakref.ref(model))
        self.loaded.append(str(folder))
        return model


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


@pytest.fixture
def models() -> VaeModels:
    return VaeModels(torch.device("cpu"))


@pytest.mark.parametrize("kind", NO_MEMORY)
def test_one_that_does_not_fit_beside_others_takes_their_place(
    device: Device, models: VaeModels, kind: str
) -> None:
    device.room, device.error = 2, NO_MEMORY[kind]
    for folder in ("a", "b", "c"):
        models.get(folder, (), RECIPE)
    assert device.held() == 1
    models.get("c", (), RECIPE)
    assert device.loaded == ["a", "b", "c"]
    models.get("a", (), RECIPE)
    assert device.held() == 2


def test_the_oldest_goes_before_the_next_is_loaded(device: Device, models: VaeModels) -> None:
    for folder in ("a", "b", "c", "d", "a", "e", "a"):
        models.get(folder, (), RECIPE)
    assert device.loaded == ["a", "b", "c", "d", "e"]
    models.get("b", (), RECIPE)
    assert device.loaded[-1] == "b"


def test_one_that_fits_nowhere_is_an_error_and_tried_anew(
    device: Device, models: VaeModels
) -> None:
    device.room = 0
    with pytest.raises(MemoryError):
        models.get("a", (), RECIPE)
    device.room = 1
    assert models.get("a", (), RECIPE) is models.get("a", (), RECIPE)


def test_other_errors_cost_no_loaded_model(device: Device, models: VaeModels) -> None:
    models.get("a", (), RECIPE)
    device.room, device.error = 1, VaeError("it is no VAE: out of memory is not what it says")
    with pytest.raises(VaeError):
        models.get("b", (), RECIPE)
    models.get("a", (), RECIPE)
    assert device.loaded == ["a"]


def test_all_but_the_last_in_use_can_be_dropped(device: Device, models: VaeModels) -> None:
    assert not models.drop_others()
    for folder in ("a", "b", "a"):
        models.get(folder, (), RECIPE)
    assert models.drop_others()
    assert not models.drop_others()
    models.get("a", (), RECIPE)
    assert device.loaded == ["a", "b"]
    assert device.held() == 1
