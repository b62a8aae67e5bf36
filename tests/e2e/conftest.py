"""Small VAEs of each kind, with seeded random weights."""

import importlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e.support import made_store

from latentfs.render import OPENMP_ENVIRONMENT

# Before the first test loads torch, which is used in this process too.
for _variable, _value in OPENMP_ENVIRONMENT.items():
    os.environ.setdefault(_variable, _value)

SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real latents and models beside the repository."""
    if not (SHARED / "latents").is_dir():
        pytest.skip("no ../shared/latents here")
    return SHARED


@pytest.fixture(scope="session")
def everything() -> bool:
    """Whether to take every file of ../shared at full size: minutes, not seconds."""
    return bool(os.environ.get("LATENTFS_TEST_ALL"))


def _saved(folder: Path, make: Callable[[Any], Any]) -> Path:
    torch = importlib.import_module("torch")
    diffusers = importlib.import_module("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        make(diffusers).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def kl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AutoencoderKL as of SDXL: 4 channels, scaling_factor 0.13025; 4 pixels a cell."""
    return _saved(
        tmp_path_factory.mktemp("kl") / "vae",
        lambda diffusers: diffusers.AutoencoderKL(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.13025,
        ),
    )


@pytest.fixture(scope="session")
def kl_shift_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AutoencoderKL as of FLUX.1: 16 channels, scaling and shift; 8 pixels a cell."""
    return _saved(
        tmp_path_factory.mktemp("kl_shift") / "vae",
        lambda diffusers: diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        ),
    )


@pytest.fixture(scope="session")
def dc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AutoencoderDC as of Sana: 8 channels, one stage with linear attention; 4 pixels a cell."""
    blocks = ("ResBlock", "ResBlock", "EfficientViTBlock")
    return _saved(
        tmp_path_factory.mktemp("dc") / "vae",
        lambda diffusers: diffusers.AutoencoderDC(
            latent_channels=8,
            attention_head_dim=8,
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            encoder_block_out_channels=(8, 16, 16),
            decoder_block_out_channels=(8, 16, 16),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), (5,)),
            decoder_qkv_multiscales=((), (), (5,)),
            scaling_factor=0.41407,
        ),
    )


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE of a video model, which decodes 5-D latents only."""
    return _saved(
        tmp_path_factory.mktemp("video") / "vae",
        lambda diffusers: diffusers.AutoencoderKLCogVideoX(
            block_out_channels=(8, 8),
            down_block_types=("CogVideoXDownBlock3D",) * 2,
            up_block_types=("CogVideoXUpBlock3D",) * 2,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
        ),
    )


@pytest.fixture(scope="session")
def _tiny_store(tmp_path_factory: pytest.TempPathFactory, tiny_vae_folder: Path) -> Path:
    return made_store(
        tmp_path_factory.mktemp("stores") / "tiny",
        tiny=(tiny_vae_folder, "--dtype", "float32", "--latent-format", "sdxl"),
    )


@pytest.fixture
def store(_tiny_store: Path, tmp_path: Path) -> Path:
    """A store of one's own with a small VAE called ``tiny``: 4 channels, 8 pixels a cell."""
    return shutil.copytree(_tiny_store, tmp_path / "store")
