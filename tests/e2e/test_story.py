"""What a user does, from nothing to a mount: its files are those that export gives."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from e2e.support import call, picture, spawn
from latent_files import latent_array, write_comfyui_latent, write_diffusers_latent
from mounts import mounted

pytestmark = [
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="no /dev/fuse here"),
    pytest.mark.skipif(shutil.which("fusermount3") is None, reason="no fusermount3 here"),
]


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_story(tmp_path, kl_folder):
    store, latents, mountpoint = (tmp_path / name for name in ("art.lfs", "latents", "art"))
    latents.mkdir()
    write_comfyui_latent(
        latents / "ComfyUI_00001_.latent", latent_array(2, 4, 8, 8), metadata={"prompt": "{}"}
    )
    write_diffusers_latent(latents / "b.safetensors", latent_array(1, 4, 8, 12), dtype="bfloat16")
    call("init", store).checked()
    call("vae", "add", store, "sdxl", kl_folder, "--dtype", "bfloat16").checked()
    spawn("import", store, latents, "--vae", "sdxl", "--to", "/2026").checked()
    spawn("export", store, "/", tmp_path / "out").checked()
    with mounted(store, mountpoint):
        expected = hashes(tmp_path / "out")
        assert hashes(mountpoint) == expected
        assert set(expected) == {
            "2026/ComfyUI_00001__1.png",
            "2026/ComfyUI_00001__2.png",
            "2026/b.png",
        }
        found = picture(mountpoint / "2026" / "ComfyUI_00001__2.png")
        assert (found.pixels.shape, found.text) == ((32, 32, 3), (("prompt", "{}"),))
        assert os.getxattr(mountpoint / "2026" / "b.png", "user.latentfs.dtype") == b"bfloat16"
        status = json.loads(call("status", mountpoint, "--json").checked().out)
        assert (status["files"], status["renders_total"]) == (3, 3)
        listed = subprocess.run(["ls", "-lR", mountpoint], capture_output=True, check=True)
        assert b"b.png" in listed.stdout
        spawn("umount", mountpoint).checked()
        assert list(mountpoint.iterdir()) == []
    assert "no problems" in call("fsck", store).checked().out
