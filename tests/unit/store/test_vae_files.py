"""Only safetensors VAEs come in, whole; a damaged copy is found, and made good by adding again."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile

import pytest

from latentfs.errors import StoreError, StoreFullError, VaeCorruptError, VaeError
from latentfs.store import vae_files
from latentfs.store.records import VaeFile
from latentfs.store.store import Store
from latentfs.store.vae_files import copied_into_store, open_vae_folder, vae_folder, verify

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = WEIGHTS + ".index.json"
CONFIG = {"_class_name": "AutoencoderKL", "latent_channels": 4}


@pytest.fixture
def folder(tmp_path):
    """A folder as open_vae_folder takes it; nothing here looks into the weights."""
    folder = tmp_path / "vae"
    folder.mkdir()
    write_config(folder, CONFIG)
    (folder / WEIGHTS).write_bytes(b"weights" * 500_000)
    return folder


@pytest.fixture
def store_path(tmp_path):
    Store.create(tmp_path / "art.lfs").close()
    return tmp_path / "art.lfs"


def write_config(folder, config):
    (folder / "config.json").write_text(json.dumps(config))


def shard(folder, weight_map):
    (folder / WEIGHTS).unlink()
    for name in ("one.safetensors", "two.safetensors"):
        (folder / name).write_bytes(name.encode())
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def copy_into_store(source, store_path):
    with copied_into_store(source, store_path) as copied:
        return copied


def copies(store_path):
    return sorted(path.name for path in (store_path / "vae").iterdir())


# Folders


def test_a_folder(folder):
    source = open_vae_folder(folder)
    assert (source.class_name, source.config) == ("AutoencoderKL", CONFIG)
    assert source.weight_paths == [folder / WEIGHTS]


def test_a_variant_counts_as_the_plain_weights(folder, store_path):
    plain = copy_into_store(open_vae_folder(folder), store_path)
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    assert copy_into_store(open_vae_folder(folder), store_path) == plain


def test_shards(folder, store_path):
    shard(folder, {"a": "two.safetensors", "b": "one.safetensors", "c": "two.safetensors"})
    source = open_vae_folder(folder)
    names = [INDEX, "one.safetensors", "two.safetensors"]
    assert [path.name for path in source.weight_paths] == names
    vae_id, files = copy_into_store(source, store_path)
    assert [file.name for file in files] == ["config.json", *names]
    verify(store_path / "vae" / vae_id, files)


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"a": "../../etc/shadow.safetensors"}, "names '../../etc/shadow.safetensors'"),
        ({"a": "/etc/shadow.safetensors"}, "which is no safetensors file"),
        ({"a": "one.bin"}, "which is no safetensors file"),
        ({"a": 7}, "which is no safetensors file"),
        ({"a": "three.safetensors"}, "which is missing"),
        ({"a": "\0.safetensors"}, "which is missing"),
        ({}, "names no files"),
        ([], "can't be read"),
        ({"a": []}, "can't be read"),
        (None, "can't be read"),
    ],
)
def test_lying_shard_indexes(folder, weight_map, reason):
    shard(folder, weight_map)
    with pytest.raises(VaeError, match=reason):
        open_vae_folder(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": ' + "[" * 100_000])
def test_shard_indexes_that_cannot_be_read(folder, text):
    shard(folder, {})
    (folder / INDEX).write_text(text)
    with pytest.raises(VaeError, match="can't be read"):
        open_vae_folder(folder)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "a.pt", "a.pth", "a.ckpt"])
def test_pickled_weights_are_refused(folder, name):
    (folder / WEIGHTS).rename(folder / name)
    with pytest.raises(VaeError, match=f"only pickled weights .{name}.*convert"):
        open_vae_folder(folder)


def test_what_is_no_vae_folder(folder, tmp_path):
    with pytest.raises(VaeError, match="not a folder"):
        open_vae_folder(tmp_path / "missing")
    with pytest.raises(VaeError, match="not a folder"):
        open_vae_folder(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    with pytest.raises(VaeError, match=f"has no {WEIGHTS}"):
        open_vae_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(VaeError, match=r"has no config\.json"):
        open_vae_folder(folder)


def test_a_pipeline_is_pointed_to_its_vae(folder):
    (folder / "model_index.json").write_text("{}")
    with pytest.raises(VaeError, match=f"whole pipeline; give its VAE folder, {folder}/vae"):
        open_vae_folder(folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "can't be read"),
        ("{", "can't be read"),
        ("[" * 100_000, "can't be read"),
        ("\udcff", "can't be read"),
        ("[]", "names no _class_name"),
        ("{}", "names no _class_name"),
        ('{"_class_name": 7}', "names no _class_name"),
        (" " * (1 << 20) + "{}", "larger than"),
    ],
)
def test_configs_that_cannot_be_used(folder, text, reason):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(VaeError, match=reason):
        open_vae_folder(folder)


# Copies


def test_a_copy_is_named_by_what_it_is(folder, store_path):
    vae_id, files = copy_into_store(open_vae_folder(folder), store_path)
    assert copies(store_path) == [vae_id]
    copied = store_path / "vae" / vae_id
    assert sorted(path.name for path in copied.iterdir()) == ["config.json", WEIGHTS]
    assert (copied / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert json.loads((copied / "config.json").read_text()) == CONFIG
    assert copied.stat().st_mode & 0o777 == 0o755

    write_config(folder, {"_diffusers_version": "9", "_name_or_path": "/x", **CONFIG})
    assert copy_into_store(open_vae_folder(folder), store_path) == (vae_id, files)
    assert copies(store_path) == [vae_id]

    write_config(folder, {**CONFIG, "scaling_factor": 0.5})
    assert copy_into_store(open_vae_folder(folder), store_path)[0] != vae_id
    assert len(copies(store_path)) == 2


@pytest.mark.parametrize(
    "damage",
    ["flipped bit", "truncated", "missing", "no folder", "a folder for a file", "a stray folder"],
)
def test_a_damaged_copy_is_found_and_made_good_by_adding_again(folder, store_path, damage):
    source = open_vae_folder(folder)
    vae_id, files = copy_into_store(source, store_path)
    copied = store_path / "vae" / vae_id
    weights = copied / WEIGHTS
    if damage == "flipped bit":
        data = bytearray(weights.read_bytes())
        data[12345] ^= 1
        weights.write_bytes(data)
    elif damage == "truncated":
        os.truncate(weights, 1000)
    elif damage == "missing":
        weights.unlink()
    elif damage == "a folder for a file":
        weights.unlink()
        (weights / "inner").mkdir(parents=True)
    elif damage == "a stray folder":
        (copied / "stray" / "inner").mkdir(parents=True)
    else:
        copied.rename(store_path / "elsewhere")
    with pytest.raises(VaeCorruptError, match=r"add the VAE again|remove it"):
        verify(copied, files)
    assert copy_into_store(source, store_path) == (vae_id, files)
    verify(copied, files)
    assert copies(store_path) == [vae_id]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StoreFullError),
        (OSError(errno.EIO, "Input/output error"), StoreError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("step", ["_copy_file", "_write_config", "sync_directory", "mkdtemp"])
def test_an_interrupted_copy_leaves_nothing(
    folder, store_path, monkeypatch, failure, expected, step
):
    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr(tempfile if step == "mkdtemp" else vae_files, step, fail)
    with pytest.raises(expected) as raised:
        copy_into_store(open_vae_folder(folder), store_path)
    assert (raised.type is StoreFullError) == (expected is StoreFullError)
    assert copies(store_path) == []


def test_what_a_killed_copy_left_is_removed_by_the_next(folder, store_path):
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from latentfs.store import vae_files\n"
        "vae_files._copy_file = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\n"
        "source = vae_files.open_vae_folder(Path(sys.argv[1]))\n"
        "vae_files.copied_into_store(source, Path(sys.argv[2])).__enter__()\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, folder, store_path], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = copies(store_path)
    vae_id, _ = copy_into_store(open_vae_folder(folder), store_path)
    assert left != vae_id
    assert copies(store_path) == [vae_id]


def test_mending_a_copy_can_be_killed_at_any_time(folder, store_path):
    """What was good of it stays, or the only copy of a file that pictures need would be gone."""
    source = open_vae_folder(folder)
    vae_id, files = copy_into_store(source, store_path)
    copied = store_path / "vae" / vae_id
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from latentfs.store import vae_files\n"
        "left = int(sys.argv[3])\n"
        "def kill(event, arguments):\n"
        "    global left\n"
        "    if event in ('os.rename', 'os.remove', 'os.rmdir'):\n"
        "        left -= 1\n"
        "        if left < 0:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "source = vae_files.open_vae_folder(Path(sys.argv[1]))\n"
        "sys.addaudithook(kill)\n"
        "vae_files.copied_into_store(source, Path(sys.argv[2])).__enter__()\n"
    )
    status, steps = -signal.SIGKILL, 0
    while status == -signal.SIGKILL:
        (copied / ".DS_Store").write_bytes(b"")  # for which it counts as damaged
        command = [sys.executable, "-c", script, folder, store_path, str(steps)]
        status = subprocess.run(command, check=False).returncode
        (copied / ".DS_Store").unlink(missing_ok=True)
        verify(copied, files)
        steps += 1
    assert (status, copies(store_path)) == (0, [vae_id])
    assert steps > 3


def test_a_link_in_the_place_of_a_copy_is_replaced_and_not_followed(folder, store_path, tmp_path):
    source = open_vae_folder(folder)
    vae_id, files = copy_into_store(source, store_path)
    copied = store_path / "vae" / vae_id
    copied.rename(store_path / "elsewhere")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    copied.symlink_to(tmp_path / "mine")
    assert copy_into_store(source, store_path) == (vae_id, files)
    verify(copied, files)
    assert not copied.is_symlink()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_sources_that_cannot_be_read_are_not_a_full_disk(folder, store_path):
    source = open_vae_folder(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(StoreError, match="No such file") as raised:
        copy_into_store(source, store_path)
    assert raised.type is StoreError
    assert copies(store_path) == []


def test_a_file_that_was_not_added_is_refused(folder, store_path):
    vae_id, files = copy_into_store(open_vae_folder(folder), store_path)
    copy = store_path / "vae" / vae_id
    verify(copy, files)
    (copy / INDEX).write_text("{}")
    with pytest.raises(VaeCorruptError, match="was not there when the VAE was added"):
        verify(copy, files)
    (copy / INDEX).unlink()
    verify(copy, files)


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "..", "", "n\0l", "x" * 256])
def test_what_a_record_names_can_not_lead_outside(tmp_path, name):
    """The file would hash to what the record says."""
    (tmp_path / "vae" / "id").mkdir(parents=True)
    (tmp_path / "outside").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with pytest.raises(VaeCorruptError, match="is no name of a file"):
        verify(tmp_path / "vae" / "id", (VaeFile(name, 0, empty),))
    with pytest.raises(VaeCorruptError, match="is no name of a file"):
        vae_folder(tmp_path, name)
