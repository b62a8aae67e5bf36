"""The steps give diffusers' and ComfyUI's arithmetic, and none of them is idle."""

from typing import Any

import msgspec
import numpy as np
import pytest

from latentfs.errors import InvalidArgumentError
from latentfs.latents.scaling import LATENT_FORMATS, LatentFormat, Space, Step, steps_for

SD15, SDXL = LATENT_FORMATS["sd15"], LATENT_FORMATS["sdxl"]
SD3, FLUX1 = LATENT_FORMATS["sd3"], LATENT_FORMATS["flux1"]


def full(space: Space, scaling: float, shift: float) -> list[tuple[str, float]]:
    return steps(space, scaling, shift, False, None)


def tiny(space: Space, latent_format: LatentFormat | None) -> list[tuple[str, float]]:
    return steps(space, 1.0, 0.0, True, latent_format)


def steps(
    space: Space,
    scaling: float,
    shift: float,
    takes_scaled: bool,
    latent_format: LatentFormat | None,
) -> list[tuple[str, float]]:
    found = steps_for(
        space,
        vae_scaling_factor=scaling,
        vae_shift_factor=shift,
        vae_takes_scaled=takes_scaled,
        latent_format=latent_format,
    )
    return [(step.op, step.value) for step in found]


def test_a_full_vae():
    assert full(Space.SCALED, 0.18215, 0.0) == [("divide", 0.18215)]
    assert full(Space.SCALED, 0.3611, 0.1159) == [("divide", 0.3611), ("add", 0.1159)]
    assert full(Space.SCALED, 1.0, 0.0) == []
    assert full(Space.NATIVE, 0.3611, 0.1159) == []
    assert full(Space.NATIVE_SD1_SCALED, 0.13025, 0.0) == [("multiply", 1.0 / 0.18215)]


def test_a_vae_that_takes_scaled_numbers():
    assert tiny(Space.SCALED, SDXL) == []
    assert steps(Space.SCALED, 2.0, 0.5, True, SDXL) == [("divide", 2.0), ("add", 0.5)]
    assert tiny(Space.NATIVE, SD15) == [("multiply", 0.18215)]
    assert tiny(Space.NATIVE, SD3) == [("subtract", 0.0609), ("multiply", 1.5305)]
    assert tiny(Space.NATIVE_SD1_SCALED, SD15) == []
    assert tiny(Space.NATIVE_SD1_SCALED, SDXL) == [
        ("multiply", 1.0 / 0.18215),
        ("multiply", 0.13025),
    ]
    assert tiny(Space.NATIVE_SD1_SCALED, FLUX1) == [
        ("multiply", 1.0 / 0.18215),
        ("subtract", 0.1159),
        ("multiply", 0.3611),
    ]


@pytest.mark.parametrize("space", list(Space))
def test_without_a_format_numbers_are_taken_as_they_are(space):
    assert tiny(space, None) == []


@pytest.mark.parametrize("latent_format", LATENT_FORMATS.values(), ids=lambda found: found.name)
def test_there_and_back(latent_format):
    numbers = np.linspace(-4, 4, 101, dtype=np.float64)
    scaled = apply(tiny(Space.NATIVE, latent_format), numbers)
    back = full(Space.SCALED, latent_format.scaling_factor, latent_format.shift_factor)
    assert np.allclose(apply(back, scaled), numbers, rtol=0, atol=1e-12)


def apply(found: list[tuple[str, float]], numbers: Any) -> Any:
    operations = {
        "multiply": np.multiply,
        "divide": np.divide,
        "add": np.add,
        "subtract": np.subtract,
    }
    for op, value in found:
        numbers = operations[op](numbers, value)
    return numbers


@pytest.mark.parametrize(
    ("scaling", "shift"),
    [(0.0, 0.0), (float("nan"), 0.0), (float("inf"), 0.0), (1.0, float("inf"))],
)
def test_impossible_factors(scaling, shift):
    with pytest.raises(InvalidArgumentError, match="factor"):
        full(Space.SCALED, scaling, shift)


def test_steps_are_stored_as_they_are():
    step = Step("divide", 0.18215)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(step), type=Step) == step
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"op": "power", "value": 2}', type=Step)
