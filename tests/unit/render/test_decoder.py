"""Groups of latents to pixels, and what is tried when memory or a narrow dtype does not suffice."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from latent_files import latent_array

from latentfs.errors import InvalidArgumentError, RenderFailedError
from latentfs.images.framing import Framing
from latentfs.latents import payload as payload_codec
from latentfs.latents.latent import Latent
from latentfs.latents.recipe import Recipe
from latentfs.render import decode, devices
from latentfs.render.decode import DeviceLostError, OutOfMemoryError, decode_samples
from latentfs.render.decoder import Decoder, Picture, Task
from latentfs.render.protocol import RenderRequest
from latentfs.render.vae_models import VaeModels
from latentfs.store.records import VaeFile

CPU = torch.device("cpu")
Fits = Callable[[torch.Tensor, bool], bool]
"""Whether what is to be decoded, in tiles or not, has room in memory."""
NO_MEMORY = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"


@pytest.fixture(scope="module")
def kl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        vae: Any = AutoencoderKL(
            block_out_channels=(16, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=8,
            latent_channels=4,
        )
    folder = tmp_path_factory.mktemp("vaes") / "kl"
    vae.save_pretrained(folder, safe_serialization=True)
    return folder


def recipe_of(vae_class: str = "AutoencoderTiny", **fields: Any) -> Recipe:
    recipe = Recipe(
        vae="id",
        vae_class=vae_class,
        dtype="float32",
        scaling=(),
        scaling_dtype="recipe",
        rounding="round",
        batch=1,
        cpu_threads=2,
    )
    return msgspec.structs.replace(recipe, **fields)


def task(folder: Path, recipe: Recipe, seed: int, *, importing: bool = False) -> Task:
    array = latent_array(4, 8, 6, seed=seed)
    request = RenderRequest(
        number=seed,
        vae_folder=str(folder),
        vae_files=tuple(
            VaeFile(path.name, path.stat().st_size, sha256(path.read_bytes()).hexdigest())
            for path in sorted(folder.iterdir())
        ),
        recipe=recipe,
        framing=Framing.png(),
        size_bytes=None if importing else 1000,
        payload_bytes=0,
        reference_bytes=0,
        chunk_bytes=(),
        want_data=True,
    )
    latent = Latent.from_bytes(array.tobytes(), dtype="float32", shape=(4, 8, 6))
    return Task(request=request, latent=latent, reference=b"", chunks=[], received_s=0.0)


def pixels_of(outcome: object) -> np.ndarray:
    assert isinstance(outcome, Picture), outcome
    return outcome.pixels


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_company_and_place_in_a_batch_change_nothing(
    kl_folder: Path, dtype: str, layout: str
) -> None:
    recipe = recipe_of("AutoencoderKL", dtype=dtype, layout=layout, batch=4)
    decoder = Decoder(CPU)
    alone = [pixels_of(decoder.decode([task(kl_folder, recipe, n)])[0]) for n in range(6)]
    together = decoder.decode([task(kl_folder, recipe, n) for n in (5, 3, 0, 4, 1, 2)])
    for n, outcome in zip((5, 3, 0, 4, 1, 2), together, strict=True):
        assert np.array_equal(pixels_of(outcome), alone[n])


def test_channels_last_is_diffusers_own_in_channels_last(tiny_vae_folder: Path) -> None:
    recipe = recipe_of(dtype="bfloat16", layout="channels_last")
    (outcome,) = Decoder(CPU).decode([task(tiny_vae_folder, recipe, 1)])
    vae: Any = AutoencoderTiny.from_pretrained(
        tiny_vae_folder, torch_dtype=torch.bfloat16, low_cpu_mem_usage=False
    ).to(memory_format=torch.channels_last)
    z = torch.from_numpy(latent_array(4, 8, 6, seed=1))[None].to(torch.bfloat16)
    with torch.inference_mode():
        sample = vae.decode(z.contiguous(memory_format=torch.channels_last)).sample
        unit = (sample * 0.5 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).float()
        expected = (unit * 255).round().to(torch.uint8).numpy()
    assert np.array_equal(pixels_of(outcome), expected)


def test_a_recipe_for_gpus_is_adapted_to_a_cpu(tiny_vae_folder: Path) -> None:
    recipe = recipe_of(dtype="float16", layout="channels_last", device="cuda", batch=8)
    (outcome,) = Decoder(CPU).decode([task(tiny_vae_folder, recipe, 1)])
    adapted = recipe_of(dtype="float32", layout="channels_last")
    (expected,) = Decoder(CPU).decode([task(tiny_vae_folder, adapted, 1)])
    assert np.array_equal(pixels_of(outcome), pixels_of(expected))
    assert isinstance(outcome, Picture)
    assert outcome.recipe is None


def test_what_overflows_in_a_narrow_dtype_is_done_in_float32_and_told(
    tiny_vae_folder: Path, tmp_path: Path
) -> None:
    vae: Any = AutoencoderTiny.from_pretrained(tiny_vae_folder, low_cpu_mem_usage=False)
    with torch.no_grad():
        vae.decoder.layers[0].weight.mul_(1e5)  # the numbers in between pass 65504, float16's limit
    vae.save_pretrained(tmp_path / "hot", safe_serialization=True)
    narrow = recipe_of(dtype="float16")
    (outcome,) = Decoder(CPU).decode([task(tmp_path / "hot", narrow, 1)])
    (expected,) = Decoder(CPU).decode([task(tmp_path / "hot", recipe_of(), 1)])
    assert np.array_equal(pixels_of(outcome), pixels_of(expected))
    assert isinstance(outcome, Picture)
    assert outcome.recipe == recipe_of(dtype="float32", widened_from="float16")
    assert outcome.recipe.intent == narrow.intent


def test_what_is_not_finite_in_float32_either_is_refused(tiny_vae_folder: Path) -> None:
    bad = task(tiny_vae_folder, recipe_of(dtype="bfloat16"), 1)
    nans = np.full((4, 8, 6), np.nan, np.float32)
    bad.latent = Latent.from_bytes(nans.tobytes(), dtype="float32", shape=(4, 8, 6))
    good = task(tiny_vae_folder, recipe_of(dtype="bfloat16"), 2)
    outcomes = Decoder(CPU).decode([bad, good])
    assert isinstance(outcomes[0], RenderFailedError)
    assert "NaN or infinite" in str(outcomes[0])
    assert isinstance(outcomes[1], Picture)


class ScarceVae:
    """Decodes with a real VAE as long as *fits* allows it."""

    def __init__(self, vae: Any, fits: Fits) -> None:
        self._vae = vae
        self._fits = fits
        self._tiled = False

    def enable_tiling(self) -> None:
        self._tiled = True

    def disable_tiling(self) -> None:
        self._tiled = False

    def decode(self, z: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        if not self._fits(z, self._tiled):
            raise RuntimeError(NO_MEMORY)
        result: tuple[torch.Tensor] = self._vae.decode(z, return_dict=return_dict)
        return result


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fits], None]:
    get = VaeModels.get

    def install(fits: Fits) -> None:
        def scarce_get(
            self: VaeModels, folder: str, files: tuple[VaeFile, ...], recipe: Recipe
        ) -> Any:
            return ScarceVae(get(self, folder, files, recipe), fits)

        monkeypatch.setattr(VaeModels, "get", scarce_get)

    return install


def test_a_batch_too_large_for_memory_is_done_one_by_one_and_told(
    tiny_vae_folder: Path, scarce: Any
) -> None:
    scarce(lambda z, tiled: len(z) == 1)
    recipe = recipe_of(batch=4)
    outcomes = Decoder(CPU).decode([task(tiny_vae_folder, recipe, n) for n in range(4)])
    assert [isinstance(o, Picture) and o.recipe for o in outcomes] == [recipe_of(batch=1)] * 4


def test_tiles_are_only_for_an_import(tiny_vae_folder: Path, scarce: Any) -> None:
    scarce(lambda z, tiled: tiled)
    (read,) = Decoder(CPU).decode([task(tiny_vae_folder, recipe_of(), 1)])
    assert isinstance(read, OutOfMemoryError)
    assert "not enough memory" in str(read)
    (imported,) = Decoder(CPU).decode([task(tiny_vae_folder, recipe_of(), 1, importing=True)])
    assert isinstance(imported, Picture)
    assert imported.recipe == recipe_of(tiled=True)
    (again,) = Decoder(CPU).decode([task(tiny_vae_folder, recipe_of(tiled=True), 1)])
    assert np.array_equal(pixels_of(again), imported.pixels)


def test_no_memory_at_all_fails_the_picture(tiny_vae_folder: Path, scarce: Any) -> None:
    scarce(lambda z, tiled: False)
    (outcome,) = Decoder(CPU).decode([task(tiny_vae_folder, recipe_of(), 1, importing=True)])
    assert isinstance(outcome, OutOfMemoryError)


def test_other_vaes_go_before_anything_else_is_tried(
    tiny_vae_folder: Path, kl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are those that were asked for, and no other recipe is told."""
    decoder = Decoder(CPU)

    def scarce(vae: Any, z: torch.Tensor, recipe: Recipe) -> torch.Tensor:
        if len(decoder._models._models) > 1:
            raise OutOfMemoryError(NO_MEMORY)
        return decode_samples(vae, z, recipe)

    monkeypatch.setattr("latentfs.render.decoder.decode_samples", scarce)
    kl = recipe_of("AutoencoderKL", batch=2)
    for folder, recipe in ((tiny_vae_folder, recipe_of(batch=2)), (kl_folder, kl)) * 2:
        outcomes = decoder.decode([task(folder, recipe, n) for n in range(2)])
        assert [isinstance(o, Picture) and o.recipe is None for o in outcomes] == [True, True]


def test_what_a_failed_decode_held_is_free_when_less_is_tried(
    tiny_vae_folder: Path, scarce: Any
) -> None:
    tried: list[weakref.ref[torch.Tensor]] = []

    def fits(z: torch.Tensor, tiled: bool) -> bool:
        held = [z for z in tried if z() is not None]
        tried.append(weakref.ref(z))
        return len(z) == 1 and not held

    scarce(fits)
    outcomes = Decoder(CPU).decode([task(tiny_vae_folder, recipe_of(batch=4), n) for n in range(4)])
    assert all(isinstance(outcome, Picture) for outcome in outcomes)


@pytest.mark.parametrize("step", ["scaled_batch", "to_pixels"])
def test_no_memory_for_the_exact_latent_fails_only_its_picture(
    tiny_vae_folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    narrowed, other = (task(tiny_vae_folder, recipe_of(batch=2), n, importing=True) for n in (1, 2))
    narrowed.reference = payload_codec.encode(narrowed.latent)
    calls = 0
    real = getattr(decode, step)

    def scarce(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(*arguments, **options)

    monkeypatch.setattr(f"latentfs.render.decoder.{step}", scarce)
    first, second = Decoder(CPU).decode([narrowed, other])
    assert isinstance(first, OutOfMemoryError)
    assert "not enough memory" in str(first)
    assert isinstance(second, Picture)


def test_a_lost_device_is_no_fault_of_the_picture(
    tiny_vae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LostVae:
        def decode(self, z: torch.Tensor, return_dict: bool) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(VaeModels, "get", lambda *_: LostVae())
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        Decoder(CPU).decode([task(tiny_vae_folder, recipe_of(), 1)])


@pytest.mark.parametrize(
    ("wanted", "gpus", "found"),
    [
        ("auto", 0, ("cpu",)),
        ("auto", 2, ("cuda:0", "cuda:1")),
        ("cuda", 2, ("cuda:0", "cuda:1")),
        ("cuda:1", 2, ("cuda:1",)),
        ("cpu", 2, ("cpu",)),
        ("cuda", 0, None),
        ("cuda:2", 2, None),
    ],
)
def test_devices(
    monkeypatch: pytest.MonkeyPatch, wanted: str, gpus: int, found: tuple[str, ...] | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if found is not None:
        assert devices.choose_devices(wanted) == found
        return
    with pytest.raises(InvalidArgumentError, match=f"finds {gpus} GPUs"):
        devices.choose_devices(wanted)
