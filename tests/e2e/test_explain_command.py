"""explain tells of pictures whose recipes have scaling steps, as those of most models do."""

import json
import shutil

from e2e.support import Batch, call, import_all, made_store
from latent_files import latent_array, write_comfyui_latent


def scaling_of(file):
    (facts,) = json.loads(call("explain", file, "--json").checked().out)
    return facts["recipe"]["scaling"]


def test_scaling_steps_are_shown(store, tmp_path):
    import_all(
        store,
        [
            Batch(
                [write_comfyui_latent(tmp_path / "a.latent", latent_array(1, 4, 4, 4))], "tiny", "/"
            )
        ],
    )
    shown = call("explain", f"{store}:/a.png").checked()
    assert "scaling multiply 0.13025 in float32" in shown.out
    assert scaling_of(f"{store}:/a.png") == [{"op": "multiply", "value": 0.13025}]


def test_scaling_steps_of_a_real_latent_are_shown(shared, tmp_path):
    source = next(iter(sorted((shared / "latents" / "comfyui-sd15").iterdir())))
    store = made_store(
        tmp_path / "art.lfs", taesd=(shared / "models" / "taesd", "--dtype", "float32")
    )
    shutil.copy(source, tmp_path / "a.latent")
    import_all(store, [Batch([tmp_path / "a.latent"], "taesd", "/")])
    shown = call("explain", f"{store}:/a.png").checked()
    assert "scaling multiply 0.18215 in" in shown.out
    assert scaling_of(f"{store}:/a.png") == [{"op": "multiply", "value": 0.18215}]
