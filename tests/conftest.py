"""What tests of several rooms share."""

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from latent_files import latent_array, write_comfyui_latent
from mounts import latentfs
from xdist.scheduler import LoadScopeScheduling

_PICTURES = 100
_UNIT_TESTS = "tests/unit/"

# Whatever settings file the user who runs the tests has.
os.environ["LATENTFS_CONFIG"] = os.devnull


class UnitTestsBeside(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Gives one process all tests but unit tests, as they have the machine to themselves otherwise.

    Groups do the same by marks, but pytest-xdist 3.8 ignores them with pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.startswith(_UNIT_TESTS) else "machine"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Let unit tests run beside all others."""
    return UnitTestsBeside(config, log)


@pytest.fixture(scope="session")
def tiny_vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers AutoencoderTiny with random weights: 4 channels, 8 pixels a cell, fast."""
    torch = importlib.import_module("torch")
    diffusers: Any = importlib.import_module("diffusers")
    widths, blocks = (8, 8, 8, 8), (1, 1, 1, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = diffusers.AutoencoderTiny(
            latent_channels=4,
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            num_encoder_blocks=blocks,
            num_decoder_blocks=blocks,
        )
    folder = tmp_path_factory.mktemp("vaes") / "tiny"
    vae.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def pictures_store(tmp_path_factory: pytest.TempPathFactory, tiny_vae_folder: Path) -> Path:
    """A store of 100 small, different pictures in /pictures, and two JPEGs in /jpeg."""
    folder = tmp_path_factory.mktemp("pictures")
    latents = folder / "latents"
    latents.mkdir()
    for number in range(_PICTURES):
        array = latent_array(1, 4, 16 + number % 3 * 4, 16, seed=number)
        metadata = {"prompt": json.dumps({"seed": number})}
        write_comfyui_latent(latents / f"{number:03}.latent", array, metadata=metadata)
    store = folder / "art.lfs"
    latentfs("init", store)
    latentfs("vae", "add", store, "tiny", tiny_vae_folder, "--dtype", "float32")
    latentfs("import", store, latents, "--vae", "tiny", "--to", "/pictures")
    jpegs = [latents / "000.latent", latents / "001.latent"]
    latentfs("import", store, *jpegs, "--vae", "tiny", "--to", "/jpeg", "--format", "jpeg")
    return store


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--crash-rounds",
        type=int,
        default=None,
        metavar="N",
        help="How often tests in tests/crash kill an import (3 times) or a mount (10 times).",
    )
    parser.addoption(
        "--model-operations",
        type=int,
        default=12_000,
        metavar="N",
        help="How many random operations a mount and a plain directory are compared by, at least.",
    )
    parser.addoption(
        "--chaos-seconds",
        type=float,
        default=12.0,
        metavar="SECONDS",
        help="How long tests/crash does things to the renderers of a mount.",
    )
    parser.addoption(
        "--nginx-requests",
        type=int,
        default=600,
        metavar="N",
        help="How many requests tests/nginx makes while renderers are killed.",
    )
