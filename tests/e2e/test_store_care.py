"""fsck --repair, gc, backup and scrub, as their users see them."""

import os
import re

import pytest
from e2e.support import Batch, call, files_in, import_all, shown_error, spawn
from latent_files import latent_array, write_comfyui_latent
from store_damage import Damage

from latentfs.images.drift import ENVIRONMENT_VARIABLE
from latentfs.store import tables
from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.store import Store
from latentfs.store.transaction import pack_blob

PICTURES = 3


@pytest.fixture
def filled(store, tmp_path):
    """A store of /0.png, /1.png and /2.png."""
    folder = tmp_path / "latents"
    folder.mkdir()
    for number in range(PICTURES):
        array = latent_array(1, 4, 4, 4 + number, seed=number)
        write_comfyui_latent(folder / f"{number}.latent", array)
    import_all(store, [Batch([folder], "tiny", "/")])
    return store


def damaged(store_path, change):
    with Store.open(store_path, writable=True) as store:
        change(Damage(store))


# fsck --repair


def test_repair(filled):
    def lose_a_name(damage):
        damage.delete("dentries", tables.dentry_key(tables.ROOT_INO, b"0.png"))
        damage.change_inode("/1.png", nlink=5)

    damaged(filled, lose_a_name)
    found = call("fsck", filled)
    assert found.status == 1
    assert found.out == f"{filled}: 2 problems\n"
    assert "orphan-inodes: inode" in found.err

    repaired = call("fsck", filled, "--repair").checked()
    assert "repaired orphan-inodes: inode" in repaired.err
    assert re.fullmatch(rf"{filled}: \d repairs, no problems left\n", repaired.out)
    assert call("fsck", filled).checked().out == f"{filled}: no problems\n"
    assert sum(path.startswith("/lost+found/inode-") for path in files_in(filled)) == 1
    assert call("fsck", filled, "--repair").checked().out == f"{filled}: no repairs\n"


def test_repair_of_what_cannot_be(filled):
    def lose_the_vae(damage):
        damage.delete("catalog", b"vae:tiny")

    damaged(filled, lose_the_vae)
    result = call("fsck", filled, "--repair")
    assert result.status == 1
    assert result.out == f"{filled}: no repairs, {PICTURES} problems left\n"
    assert result.err.count("missing-vaes: ") == PICTURES


@pytest.mark.parametrize("command", [("fsck", "--repair"), ("gc",)])
def test_not_while_it_is_mounted(filled, tmp_path, command):
    lock = DaemonLock(filled)
    lock.acquire(mountpoint=tmp_path / "mnt")
    try:
        message = shown_error(spawn(command[0], filled, *command[1:]))
        assert "is mounted already" in message
        assert f"mounted on {tmp_path / 'mnt'}" in message
    finally:
        lock.release()


def test_a_mount_waits_for_no_repair(filled, tmp_path):
    with DaemonLock(filled).held_by("gc"):
        message = shown_error(spawn("fsck", filled, "--repair"))
    assert f"is in use (process {os.getpid()}, latentfs gc); let that end first" in message


# gc


def test_gc(filled):
    with Store.open(filled, writable=True) as store:
        for _ in range(3):
            with store.write() as transaction:
                transaction.add_blob(pack_blob(os.urandom(1_000_000)))
        assert call("fsck", filled).status == 1
    call("fsck", filled, "--repair").checked()
    (filled / "vae" / "stranger").mkdir()
    result = call("gc", filled).checked()
    assert result.out.splitlines()[0] == f"removed {filled / 'vae' / 'stranger'}"
    assert re.search(r"the database shrank from [23]\.\d MiB to \d+\.\d KiB", result.out)
    assert call("fsck", filled).checked()
    assert len(files_in(filled)) == PICTURES


def test_gc_while_another_has_it_open(filled):
    with Store.open(filled):
        message = shown_error(spawn("gc", filled))
    assert message.endswith("such as an import; let it end and try again")


# backup


def test_backup(filled, tmp_path):
    target = tmp_path / "backups" / "art.lfs"
    result = call("backup", filled, target).checked()
    assert result.out.startswith(f"{PICTURES} files copied to {target}, ")
    assert result.err == ""
    assert call("fsck", target).checked().out == f"{target}: no problems\n"
    assert files_in(target) == files_in(filled)
    spawn("export", target, "/0.png", tmp_path / "0.png").checked()
    assert (tmp_path / "0.png").stat().st_size == files_in(filled)["/0.png"].size_bytes
    assert "something at" in shown_error(call("backup", filled, target))


def test_backup_names_damaged_vaes(filled, tmp_path):
    ((vae),) = (filled / "vae").iterdir()
    (vae / "config.json").write_bytes(b"{}")
    result = call("backup", filled, tmp_path / "copy").checked()
    assert result.err.startswith("note: damaged in the store and in the copy: VAE 'tiny'")


# scrub


def test_scrub(filled):
    result = spawn("scrub", filled).checked()
    assert result.out == (
        f"{PICTURES} payloads and 0 chunks decoded, {PICTURES} pictures rendered; all unchanged\n"
    )
    assert result.err == ""


def test_scrub_of_a_share(filled):
    result = spawn("scrub", filled, "--max-files", "1").checked()
    assert f"{PICTURES} payloads and 0 chunks decoded, 1 picture rendered" in result.out


def test_scrub_without_a_render_starts_none(filled):
    result = spawn("scrub", filled, "--max-files", "0", "--device", "cuda:99").checked()
    assert "0 pictures rendered" in result.out


def test_scrub_names_pictures_that_come_out_otherwise(filled):
    result = spawn("scrub", filled, environment={ENVIRONMENT_VARIABLE: "noise:0.001"})
    assert result.status == 1
    assert set(result.refused("scrub")) == {f"{number}.png" for number in range(PICTURES)}
    assert "was rendered to other bytes" in result.err


def test_scrub_names_what_is_damaged(filled):
    payloads = []

    def damage_rows(damage):
        payloads.append(damage.payload("/1.png"))
        key = tables.payload_key(payloads[0], 0)
        row = bytearray(damage.get("payloads", key) or b"")
        row[-1] ^= 1
        damage.put("payloads", key, bytes(row))
        damage.put("chunks", tables.chunk_key(50, 0), b"\x07")

    damaged(filled, damage_rows)
    result = spawn("scrub", filled)
    assert result.status == 1
    found = result.refused("scrub")
    assert {f"payload {payloads[0]}", "inode 50", "1.png"} == set(found)
    assert "chunk 0 of inode 50 can't be read" in found["inode 50"]
    assert result.out.endswith("; 3 not as added\n")


def test_scrub_passes_no_picture_over_for_an_inode_that_can_not_be_read(filled):
    def damage_rows(damage):
        damage.put("inodes", tables.ino_key(damage.ino("/0.png")), b"nonsense")
        damage.delete("inodes", tables.ino_key(damage.ino("/1.png")))

    damaged(filled, damage_rows)
    result = spawn("scrub", filled)
    assert result.status == 1
    found = result.refused("scrub")
    assert set(found) == {"0.png", "1.png"}
    assert "can't be read" in found["0.png"]
    assert found["1.png"] == "it leads nowhere; run latentfs fsck"
    assert result.out.endswith("1 picture rendered; 2 not as added\n")
