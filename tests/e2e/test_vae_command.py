"""vae add takes any autoencoder for still images, and says in one line why it takes no other."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from e2e.support import Result, call, made_store, shown_error, spawn
from latent_files import latent_array, write_comfyui_latent

from latentfs.errors import VaeError
from latentfs.images.framing import Framing
from latentfs.ingest.discover import Candidate
from latentfs.ingest.preparation import ImportOptions, Preparation
from latentfs.store.records import VaeRecord
from latentfs.store.store import Store

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def empty_store(tmp_path):
    return made_store(tmp_path / "store")


@pytest.fixture
def vae(tiny_vae_folder, tmp_path):
    """A copy of a good VAE, to be spoiled."""
    return shutil.copytree(tiny_vae_folder, tmp_path / "vae")


def record_of(store: Path, name: str) -> VaeRecord:
    with Store.open(store) as opened, opened.read() as snapshot:
        return snapshot.vae(name)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(store: Path, *arguments: object) -> str:
    """The error of a vae add that leaves the store as it was."""
    before = sorted(path.name for path in (store / "vae").iterdir())
    listed = call("vae", "list", store).out
    message = shown_error(call("vae", "add", store, *arguments))
    assert sorted(path.name for path in (store / "vae").iterdir()) == before
    assert call("vae", "list", store).out == listed
    return message


def test_dtype(empty_store, tiny_vae_folder, kl_folder):
    added = call("vae", "add", empty_store, "a", tiny_vae_folder).checked()
    default = record_of(empty_store, "a")
    # Which of the two is faster depends on the machine.
    assert default.dtype in ("float32", "bfloat16")
    assert f", {default.dtype} contiguous on cpu (" in added.out
    added = call("vae", "add", empty_store, "a", tiny_vae_folder, "--dtype", "bfloat16").checked()
    assert "dB against float32)" in added.out
    assert record_of(empty_store, "a").dtype == "bfloat16"
    call("vae", "add", empty_store, "b", tiny_vae_folder, "--dtype", "float16").checked()
    assert record_of(empty_store, "b").dtype == "float16"
    assert record_of(empty_store, "b").id == default.id
    assert call("vae", "add", empty_store, "c", kl_folder, "--dtype", "int8").status == 2
    assert [line.split("\t")[3] for line in call("vae", "list", empty_store).out.splitlines()] == [
        "bfloat16",
        "float16",
    ]


@pytest.mark.parametrize(
    ("narrow_s", "psnr_db", "expected"),
    [
        (0.5, 45.0, "bfloat16"),
        (0.5, 44.9, "float32"),
        (0.5, float("nan"), "float32"),
        (0.95, 60.0, "float32"),  # no gain worth the error
    ],
)
def test_default_dtype_is_the_fastest_that_is_near_enough(
    monkeypatch, tiny_vae_folder, narrow_s, psnr_db, expected
):
    from latentfs.render import fastest, inspection

    monkeypatch.setattr(fastest, "_race", lambda *_: [narrow_s, 1.0])
    monkeypatch.setattr(fastest, "_psnr_db", lambda *_: psnr_db)
    found = inspection.inspect_vae(
        tiny_vae_folder,
        class_name="AutoencoderTiny",
        origin="x",
        device="cpu",
        wishes=fastest.Wishes(dtype=None, layout=None, batch=None, compiled=False),
    )
    assert (found.manner.dtype, found.manner.layout, found.manner.batch) == (
        expected,
        "contiguous",
        1,
    )


def test_what_is_recorded(empty_store, kl_shift_folder, dc_folder):
    call("vae", "add", empty_store, "kl", kl_shift_folder, "--dtype", "float32").checked()
    call("vae", "add", empty_store, "dc", dc_folder, "--dtype", "float32").checked()
    kl, dc = record_of(empty_store, "kl"), record_of(empty_store, "dc")
    assert (kl.class_name, kl.latent_channels, kl.spatial_factor) == ("AutoencoderKL", 16, 8)
    assert (kl.scaling_factor, kl.shift_factor, kl.takes_scaled) == (0.3611, 0.1159, False)
    assert (dc.class_name, dc.latent_channels, dc.spatial_factor) == ("AutoencoderDC", 8, 4)
    assert (dc.scaling_factor, dc.shift_factor, dc.takes_scaled) == (0.41407, 0.0, False)


def test_builtin(empty_store):
    call("vae", "add", empty_store, "mini", "builtin", "--dtype", "float32").checked()
    record = record_of(empty_store, "mini")
    assert (record.class_name, record.latent_channels) == ("AutoencoderTiny", 16)
    assert sum(file.size_bytes for file in record.files) < 2_000_000


@pytest.mark.parametrize(
    "class_name", ["NoSuchAutoencoder", "UNet2DConditionModel", "autoencoder_kl"]
)
def test_unknown_class(empty_store, vae, class_name):
    change_config(vae, _class_name=class_name)
    assert f"{class_name!r}, which is no diffusers autoencoder" in refused(empty_store, "x", vae)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{", "config.json can't be read"),
        ("\xff", "config.json can't be read"),
        ("[]", "names no _class_name"),
        ("{}", "names no _class_name"),
        ('{"_class_name": 3}', "names no _class_name"),
        ("[" * 100_000, "config.json can't be read"),
        (None, "has no config.json"),
    ],
)
def test_bad_config(empty_store, vae, config, reason):
    (vae / "config.json").unlink()
    if config is not None:
        (vae / "config.json").write_text(config, "latin-1")
    assert reason in refused(empty_store, "x", vae)


@pytest.mark.parametrize(
    "changes",
    [
        {"scaling_factor": "large"},
        {"scaling_factor": float("nan")},
        {"scaling_factor": 0},
        {"shift_factor": [1, 2]},
        {"shift_factor": float("inf")},
    ],
)
def test_impossible_scaling(empty_store, kl_folder, tmp_path, changes):
    folder = shutil.copytree(kl_folder, tmp_path / "vae")
    change_config(folder, **changes)
    assert next(iter(changes)) in refused(empty_store, "x", folder)


def test_scaling_of_each_channel(empty_store, kl_folder, tmp_path):
    folder = shutil.copytree(kl_folder, tmp_path / "vae")
    change_config(folder, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    assert "latents_mean" in refused(empty_store, "x", folder)


def test_sizes_that_do_not_fit_the_weights(empty_store, vae):
    change_config(vae, latent_channels=8)
    assert "can't be loaded as AutoencoderTiny" in refused(empty_store, "x", vae)


def test_truncated_weights(empty_store, vae):
    data = (vae / WEIGHTS).read_bytes()
    (vae / WEIGHTS).write_bytes(data[: len(data) // 2])
    assert "can't be loaded as AutoencoderTiny" in refused(empty_store, "x", vae)


def test_weights_that_lack_a_tensor(empty_store, vae):
    from safetensors.torch import load_file, save_file

    tensors = load_file(vae / WEIGHTS)
    del tensors["decoder.layers.0.weight"]
    save_file(tensors, vae / WEIGHTS)
    # Diffusers would fill it with random numbers, other ones at each load.
    message = refused(empty_store, "x", vae)
    assert "decoder.layers.0.weight" in message
    assert "missing" in message


def test_weights_of_another_class(empty_store, vae, kl_folder):
    shutil.copy(kl_folder / WEIGHTS, vae / WEIGHTS)
    assert str(vae) in refused(empty_store, "x", vae)


def test_no_weights(empty_store, vae):
    (vae / WEIGHTS).unlink()
    assert f"has no {WEIGHTS}" in refused(empty_store, "x", vae)
    (vae / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "pickled weights" in refused(empty_store, "x", vae)


def test_video_vae(empty_store, video_folder):
    assert str(video_folder) in refused(empty_store, "x", video_folder)


def test_whole_pipeline(empty_store, vae):
    (vae / "model_index.json").write_text("{}")
    assert f"give its VAE folder, {vae / 'vae'}" in refused(empty_store, "x", vae)


def test_name_of_another_vae(empty_store, tiny_vae_folder, dc_folder):
    arguments = ("vae", "add", empty_store, "one", tiny_vae_folder, "--dtype", "float32")
    call(*arguments).checked()
    message = refused(empty_store, "one", dc_folder, "--dtype", "float32")
    assert "another VAE is called 'one' already" in message
    call(*arguments).checked()
    assert len(list((empty_store / "vae").iterdir())) == 1


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "naïve", "n" * 65, "a b", "a\n"])
def test_bad_name(empty_store, vae, name):
    assert "can't be used" in refused(empty_store, "--", name, vae)


def test_missing_folder(empty_store, tmp_path):
    assert "does not exist" in refused(empty_store, "x", tmp_path / "nothing")
    assert "is not a folder" in refused(empty_store, "x", empty_store / "latentfs.toml")


def test_latent_format_of_other_channels(empty_store, vae):
    message = refused(empty_store, "x", vae, "--latent-format", "flux1")
    assert "'flux1' has 16 channels, this VAE takes 4" in message


def test_hub_id_without_a_network(empty_store):
    start_s = time.monotonic()
    arguments = ("vae", "add", empty_store, "x", "nobody/no-such-vae")
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(empty_store.parent / "hub")}
    result = spawn(*arguments, environment=offline)
    message = shown_error(result)
    assert "nobody/no-such-vae" in message
    assert "downloaded" in message
    assert time.monotonic() - start_s < 20


def test_store_that_is_none(tmp_path, vae):
    message = shown_error(call("vae", "add", tmp_path / "none", "x", vae))
    assert "there is no latentfs store" in message
    result: Result = call("vae", "list", tmp_path / "none")
    assert "make one with latentfs init" in shown_error(result)


def test_batch_statistics_are_refused() -> None:
    from latentfs.render.inspection import _refuse_vector_scaling

    with pytest.raises(VaeError, match="batch statistics"):
        _refuse_vector_scaling({"batch_norm_eps": 1e-4}, Path("flux2"))


def test_an_import_ends_at_once_where_no_renderer_starts(
    empty_store, tiny_vae_folder, tmp_path, monkeypatch
):
    call("vae", "add", empty_store, "tiny", tiny_vae_folder, "--dtype", "float32").checked()
    for number in range(20):
        write_comfyui_latent(tmp_path / f"{number}.latent", latent_array(1, 4, 2, 2, seed=number))
    broken = tmp_path / "broken"
    (broken / "torch").mkdir(parents=True)
    (broken / "torch" / "__init__.py").write_text("raise ImportError('broken on purpose')")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    latents = sorted(tmp_path.glob("*.latent"))
    done = spawn("import", empty_store, *latents, "--vae", "tiny")
    assert done.status == 1
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("latentfs: no renderer could be started in 3 tries")


def test_compiled(empty_store, tiny_vae_folder, tmp_path, monkeypatch):
    from latentfs.render import fastest

    class Compiled:
        """Gives slightly other pixels, as compiled kernels do."""

        def __init__(self, vae: Any) -> None:
            self._vae = vae

        def decode(self, z: Any, *, return_dict: bool) -> tuple[Any]:
            return (self._vae.decode(z, return_dict=return_dict)[0] + 1e-4,)

    monkeypatch.setattr(fastest, "CompiledVae", Compiled)
    arguments = ("vae", "add", empty_store, "a", tiny_vae_folder, "--dtype", "float32")
    added = call(*arguments, "--compile").checked()
    assert ", float32 contiguous, compiled on cpu (" in added.out
    assert "dB against float32)" in added.out
    record = record_of(empty_store, "a")
    assert record.compiled
    options = ImportOptions(
        vae="a",
        to="/",
        precision="source",
        framing=Framing.png(),
        rounding="round",
        on_conflict="skip",
    )
    path = tmp_path / "x.latent"
    write_comfyui_latent(path, latent_array(1, 4, 2, 2))
    (picture,) = Preparation(options, record).prepare(Candidate(path, "/", "x"))
    assert picture.recipe.compiled

    added = call(*arguments).checked()
    assert "compiled" not in added.out
    assert "(exact against float32)" in added.out
    assert not record_of(empty_store, "a").compiled


def test_compiled_without_a_compiler(empty_store, tiny_vae_folder, tmp_path):
    result = spawn(
        *("vae", "add", empty_store, "x", tiny_vae_folder, "--compile"),
        environment={"CXX": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
    )
    message = shown_error(result)
    assert "can't compile AutoencoderTiny" in message
    assert "install a C++ compiler" in message
    assert list((empty_store / "vae").iterdir()) == []
