"""A render that comes out longer or shorter than the first one still has exactly its size."""

import hashlib
import io

import pytest
from e2e.support import Batch, files_in, import_all, picture, spawn
from latent_files import latent_array, write_comfyui_latent
from PIL import Image

from latentfs.images import png
from latentfs.images.drift import ENVIRONMENT_VARIABLE
from latentfs.images.framing import Framing


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drift")
    # Coarse numbers make smooth pictures.
    coarse = latent_array(1, 4, 4, 6).repeat(6, axis=2).repeat(6, axis=3)
    write_comfyui_latent(folder / "smooth.latent", coarse, metadata={"prompt": "{}"})
    write_comfyui_latent(folder / "noise.latent", latent_array(1, 4, 20, 20))
    return folder


def test_drift(store, latents, tmp_path):
    import_all(
        store,
        [
            Batch([latents], "tiny", "/png"),
            Batch([latents], "tiny", "/jpeg", framing=Framing.jpeg(quality=90)),
        ],
    )
    for drift in ("noise:0.001", "flat:0.3"):
        out = tmp_path / drift
        environment = {ENVIRONMENT_VARIABLE: drift}
        result = spawn("export", store, "/", out, environment=environment).checked()
        assert result.out == f"4 exported to {out}, 4 of them with other bytes, 0 failed\n"
        assert set(result.refused("changed")) == {
            f"{name}.{suffix}" for name in ("smooth", "noise") for suffix in ("png", "jpg")
        }
        for path, inode in files_in(store).items():
            data = (out / path[1:]).read_bytes()
            assert len(data) == inode.size_bytes, (drift, path)
            assert inode.content is not None
            assert hashlib.sha256(data).digest() != inode.content.rendition_sha256, "no drift"
            if path.endswith(".png"):
                assert list(png.chunks(data))[-1][0] == b"IEND"
            with Image.open(io.BytesIO(data)) as image:
                image.verify()
            found = picture(out / path[1:])
            height, width, _ = found.pixels.shape
            assert (height, width) == (inode.content.height, inode.content.width)
            if path == "/png/smooth.png":
                assert found.text == (("prompt", "{}"),)

    # More than any encoding makes up for is an error, never another size.
    out = tmp_path / "too much"
    noisy = {ENVIRONMENT_VARIABLE: "noise:0.9"}
    result = spawn("export", store, "/png/smooth.png", out, environment=noisy)
    assert result.status == 1
    assert "doesn't fit the" in result.refused("not exported")["smooth.png"]
    assert not out.exists()
