"""export copies out a picture or a folder, whole or not at all."""

import shutil

import pytest
from e2e.support import Batch, call, files_in, import_all, picture, shown_error, spawn
from latent_files import latent_array, write_comfyui_latent
from store_damage import NOISE, Damage, fill

from latentfs.store import tables
from latentfs.store.store import Store


@pytest.fixture(scope="module")
def filled(_tiny_store, tmp_path_factory):
    """A store of /a.png, /2026/b.png and /2026/deep/c.png, to be read only."""
    tmp_path = tmp_path_factory.mktemp("filled")
    store = shutil.copytree(_tiny_store, tmp_path / "store")
    (tmp_path / "in" / "2026" / "deep").mkdir(parents=True)
    for seed, name in enumerate(("a", "2026/b", "2026/deep/c")):
        path = tmp_path / "in" / f"{name}.latent"
        write_comfyui_latent(path, latent_array(1, 4, 4, 4 + seed, seed=seed))
    import_all(store, [Batch([tmp_path / "in"], "tiny", "/")])
    return store


def test_export(filled, tmp_path):
    whole, existing, single = tmp_path / "whole" / "new", tmp_path / "existing", tmp_path / "x.png"
    result = spawn("export", filled, "/", whole).checked()
    assert (result.out, result.err) == (f"3 exported to {whole}, 0 failed\n", "")
    sizes = {path: inode.size_bytes for path, inode in files_in(filled).items()}
    found = sorted(path for path in whole.rglob("*") if path.is_file())
    assert {f"/{path.relative_to(whole)}": path.stat().st_size for path in found} == sizes
    assert {path.stat().st_mode & 0o777 for path in found} == {0o644}
    assert picture(whole / "2026" / "deep" / "c.png").pixels.shape == (32, 48, 3)

    # A picture goes to a new name, or into a folder; what is there is replaced.
    spawn("export", filled, "/2026/b.png", single).checked()
    assert single.read_bytes() == (whole / "2026" / "b.png").read_bytes()
    existing.mkdir()
    (existing / "a.png").write_text("old")
    (existing / "other").write_text("kept")
    spawn("export", filled, "/a.png/", existing).checked()
    assert (existing / "a.png").read_bytes() == (whole / "a.png").read_bytes()
    assert sorted(path.name for path in existing.iterdir()) == ["a.png", "other"]


def test_what_can_not_be_exported(filled, tmp_path):
    out = tmp_path / "out"
    for wrong, reason in (("/none", "has no /none"), ("a.png", "must start with '/'")):
        assert reason in shown_error(call("export", filled, wrong, out))
    assert not out.exists()
    # One of three can be written.
    (out / "2026").mkdir(parents=True)
    (out / "2026" / "deep").write_text("a file")
    (out / "2026").chmod(0o555)
    result = spawn("export", filled, "/", out, unprivileged=True)
    assert (result.status, result.out) == (1, f"1 exported to {out}, 2 failed\n")
    assert len(result.err.splitlines()) == 2
    refused = result.refused("not exported")
    assert refused["b.png"] == f"can't write {out / '2026' / 'b.png'}: Permission denied"
    assert "can't write" in refused["c.png"]
    assert sorted(path.name for path in out.rglob("*")) == ["2026", "a.png", "deep"]


def test_files_that_are_no_pictures(store, tmp_path):
    """They need no renderer, and what has no bytes is no failure."""
    with Store.open(store, writable=True) as opened:
        fill(opened)
    out = tmp_path / "out"
    result = call("export", store, "/notes", out, "--device", "cuda:99").checked()
    assert result.out == f"4 exported to {out}, 2 skipped, 0 failed\n"
    assert result.refused("skipped") == {"fifo": "it is a FIFO", "device": "it is a device"}
    assert (out / "noise").read_bytes() == NOISE
    assert (out / "link").is_symlink()
    latent = files_in(store)["/notes/cat.latent"]
    assert (out / "cat.latent").stat().st_size == latent.size_bytes


def test_a_damaged_entry_keeps_no_other_from_being_exported(store, tmp_path):
    with Store.open(store, writable=True) as opened:
        fill(opened)
        damage = Damage(opened)
        damage.put("inodes", tables.ino_key(damage.ino("/notes/cat.latent")), b"nonsense")
    out = tmp_path / "out"
    result = call("export", store, "/notes", out)
    assert result.status == 1
    assert result.out == f"3 exported to {out}, 2 skipped, 1 failed\n"
    assert "run latentfs fsck" in result.refused("not exported")["cat.latent"]
    assert sorted(path.name for path in out.iterdir()) == ["again", "link", "noise"]


def test_an_empty_folder(store, tmp_path):
    result = spawn("export", store, "/", tmp_path / "out").checked()
    assert result.out == f"0 exported to {tmp_path / 'out'}, 0 failed\n"
