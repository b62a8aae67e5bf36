"""What is damaged in a store is named, by export and by fsck, and all else goes on."""

import shutil
from pathlib import Path

import lmdb
import pytest
from e2e.support import Batch, call, files_in, import_all, made_store, spawn
from latent_files import latent_array, write_comfyui_latent

from latentfs.store import tables

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def latents(tmp_path):
    folder = tmp_path / "latents"
    folder.mkdir()
    for seed, name in enumerate(("body", "header", "sound", "short")):
        write_comfyui_latent(folder / f"{name}.latent", latent_array(1, 4, 8, 8, seed=seed))
    return folder


@pytest.fixture
def filled(tmp_path, latents, tiny_vae_folder, kl_folder, dc_folder):
    store = made_store(
        tmp_path / "store",
        tiny=(tiny_vae_folder, "--dtype", "float32"),
        changed=(kl_folder, "--dtype", "float32"),
        gone=(dc_folder, "--dtype", "float32"),
    )
    other = tmp_path / "other"
    other.mkdir()
    write_comfyui_latent(other / "other.latent", latent_array(1, 8, 4, 4, seed=9))
    batches = [
        Batch([latents], "tiny", "/tiny"),
        Batch([latents / "sound.latent"], "changed", "/changed"),
        Batch([other], "gone", "/gone"),
    ]
    import_all(store, batches)
    return store


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def damage(store: Path, path: str, *, at: int | None) -> None:
    """Flip a bit of a picture's payload, or cut off its end."""
    content = files_in(store)[path].content
    assert content is not None
    with (
        lmdb.open(str(store / "lmdb"), max_dbs=len(tables.TABLES)) as env,
        env.begin(write=True) as txn,
    ):
        payloads = env.open_db(b"payloads", txn)
        rows = [(bytes(key), bytes(row)) for key, row in txn.cursor(payloads)]
        rows = [
            (key, row) for key, row in rows if tables.parse_payload_key(key)[0] == content.payload
        ]
        key, row = rows[0]
        end = len(row) - 1
        changed = row[:end] if at is None else flipped(row, at)
        txn.put(key, changed, db=payloads)


def vae_folder(store: Path, name: str) -> Path:
    for line in call("vae", "list", store).out.splitlines():
        fields = line.split("\t")
        if fields[0] == name:
            (folder,) = (store / "vae").glob(f"{fields[-2]}*")
            return folder
    raise AssertionError(name)


def test_damage(filled, latents, kl_folder, tmp_path):
    assert "no problems" in call("fsck", filled).checked().out
    damage(filled, "/tiny/body.png", at=200)
    damage(filled, "/tiny/header.png", at=0)
    damage(filled, "/tiny/short.png", at=None)
    weights = vae_folder(filled, "changed") / WEIGHTS
    data = weights.read_bytes()
    weights.write_bytes(flipped(data, len(data) - 1))
    shutil.rmtree(vae_folder(filled, "gone"))

    exported = spawn("export", filled, "/", tmp_path / "out")
    assert exported.status == 1
    assert exported.out == f"1 exported to {tmp_path / 'out'}, 5 failed\n"
    reasons = exported.refused("not exported")
    assert "payload" in reasons["body.png"]
    assert "not a payload" in reasons["header.png"]
    assert "body has" in reasons["short.png"]
    assert f"VAE file {weights} is not what was added" in reasons["sound.png"]
    assert "can't be read (No such file or directory); add the VAE again" in reasons["other.png"]
    assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["sound.png"]

    checked = call("fsck", filled)
    assert checked.status == 1
    problems = checked.err.splitlines()
    for path in ("/tiny/body.png", "/tiny/header.png", "/tiny/short.png"):
        assert [line for line in problems if path in line and line.startswith("payloads: ")], path
    for vae in ("changed", "gone"):
        assert [line for line in problems if line.startswith(f"vaes: VAE '{vae}'")], vae
    assert not [line for line in problems if "sound" in line]

    # Adding a VAE again mends it, and an import goes past what is damaged.
    call("vae", "add", filled, "changed", kl_folder, "--dtype", "float32").checked()
    assert "VAE 'changed'" not in call("fsck", filled).err
    write_comfyui_latent(latents / "new.latent", latent_array(1, 4, 4, 4, seed=20))
    result = spawn("import", filled, latents, "--vae", "tiny", "--to", "/tiny")
    assert result.status == 1
    assert result.out.startswith("1 added")
    assert "the picture of that name in the store is damaged" in result.refused()["header.latent"]
    assert set(result.refused()) == {"header.latent"}
    gone = tmp_path / "other"
    result = spawn("import", filled, gone, "--vae", "gone", "--to", "/new")
    assert "add the VAE again" in result.refused()["other.latent"]


def test_lmdb_that_is_none(store):
    (store / "lmdb" / "data.mdb").write_bytes(b"no LMDB environment" * 1000)
    result = call("fsck", store)
    assert result.status == 1
    assert "can't be opened" in result.err
    assert result.err.count("\n") == 1
