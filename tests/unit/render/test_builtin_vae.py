"""The VAE that ships with latentfs keeps what is promised of it."""

from importlib import resources
from pathlib import Path

import pytest
import torch
from train_builtin_vae import load_pictures, psnr_db

from latentfs.render.vae_models import load
from latentfs.store.vae_files import open_vae_folder

FOLDER = Path(str(resources.files("latentfs.render"))) / "builtin_vae"
PICTURES = Path(__file__).parents[4] / "shared" / "images"


def test_it_is_small_and_loads_as_any_other() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_000_000
    source = open_vae_folder(FOLDER)
    vae = load(FOLDER, class_name=source.class_name, dtype="float32")
    assert vae.config.latent_channels == 16
    with torch.inference_mode():
        assert vae.decode(torch.zeros(1, 16, 5, 3)).sample.shape == (1, 3, 40, 24)


@pytest.mark.skipif(not PICTURES.is_dir(), reason="needs the pictures of ../shared/images")
def test_pictures_it_never_saw_come_back_at_28_db() -> None:
    _, held_out = load_pictures([PICTURES])
    assert len(held_out) >= 8
    vae = load(FOLDER, class_name="AutoencoderTiny", dtype="float32")
    assert psnr_db(vae, held_out, torch.device("cpu")) >= 28
