"""Latent files written into a mount, and copies of its pictures."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from latent_files import latent_array, write_comfyui_latent, write_diffusers_latent
from mounts import Mount, latentfs, mounted, wait_until
from PIL import Image

from latentfs.images import jpeg, png
from latentfs.store import tables
from latentfs.store.snapshot import Decoders
from latentfs.store.store import Store

SHAPE = (1, 4, 16, 20)


def _latent(folder: Path, name: str = "cat.latent", *, seed: int = 1000, batch: int = 1) -> Path:
    path = folder / name
    array = latent_array(batch, *SHAPE[1:], seed=seed)
    write_comfyui_latent(path, array, metadata={"prompt": json.dumps({"seed": seed})})
    return path


def _settle(mount: Mount, *, developed: int = 0, undeveloped: int = 0, copies: int = 0) -> None:
    """Wait until the mount has dealt with that many files in all."""
    expected = (developed, undeveloped, copies)

    def is_settled() -> bool:
        status = mount.status()
        names = ("developed_total", "undeveloped_total", "copies_recognised_total")
        return tuple(status[name] for name in names) == expected and not status["developing"]

    wait_until(is_settled, f"{expected} files are dealt with")


def _xattr(path: Path, name: str) -> str:
    return os.getxattr(path, f"user.latentfs.{name}").decode()


def _size(data: bytes) -> tuple[int, int]:
    with Image.open(BytesIO(data)) as picture:
        picture.load()
        return picture.size


def test_a_written_latent_gets_its_picture(mount: Mount, tmp_path: Path) -> None:
    source = _latent(tmp_path)
    target = mount.path / "cat.latent"
    shutil.copy2(source, target)
    written = target.stat()
    _settle(mount, developed=1)
    assert target.read_bytes() == source.read_bytes()
    assert _xattr(target, "kind") == "latent-file"
    assert 500 < int(_xattr(target, "stored_bytes")) < 5000
    assert target.stat().st_mtime_ns == source.stat().st_mtime_ns
    assert target.stat().st_ctime_ns == written.st_ctime_ns
    picture = mount.path / "cat.png"
    assert _size(picture.read_bytes()) == (160, 128)
    assert _xattr(picture, "vae") == "tiny"
    with Image.open(picture) as opened:
        assert opened.info["prompt"] == '{"seed": 1000}'
    assert picture.stat().st_mtime_ns == source.stat().st_mtime_ns
    assert "cat.png" in os.listdir(mount.path)


def test_the_picture_is_the_one_that_an_import_makes(
    mount: Mount, store: Path, tmp_path: Path
) -> None:
    source = _latent(tmp_path)
    shutil.copy(source, mount.path / "cat.latent")
    _settle(mount, developed=1)
    latentfs("import", store, source, "--vae", "tiny", "--to", "/imported")
    imported = mount.path / "imported" / "cat.png"
    wait_until(imported.exists, "the imported picture shows")
    assert imported.read_bytes() == (mount.path / "cat.png").read_bytes()
    assert _xattr(imported, "stored_bytes") == _xattr(mount.path / "cat.png", "stored_bytes")


def test_both_are_there_after_a_restart(store: Path, tmp_path: Path) -> None:
    source = _latent(tmp_path, batch=2)
    with mounted(store, tmp_path / "first") as mount:
        shutil.copy(source, mount.path / "cat.latent")
        _settle(mount, developed=1)
        pictures = [(mount.path / f"cat_{n}.png").read_bytes() for n in (1, 2)]
        assert mount.end() == 0
    with mounted(store, tmp_path / "second", "-o", "ro") as mount:
        assert (mount.path / "cat.latent").read_bytes() == source.read_bytes()
        assert [(mount.path / f"cat_{n}.png").read_bytes() for n in (1, 2)] == pictures
        assert mount.end() == 0
    assert latentfs("fsck", store).returncode == 0


def _damage_metadata(store: Path) -> None:
    """Flip a bit in what the store has of each latent file besides its latents."""
    with Store.open(store, writable=True) as opened, opened.write_rows() as rows:
        inodes = [Decoders.inode.decode(value) for _, value in rows.items("inodes")]
        for file in (inode.latent_file for inode in inodes if inode.latent_file is not None):
            stored = bytearray(rows.get("metadata", tables.blob_key(file.rest)) or b"")
            stored[len(stored) // 2] ^= 2
            rows.put("metadata", tables.blob_key(file.rest), bytes(stored))


def _exchange_payloads(store: Path) -> None:
    """Let the index lead from the two newest latents to each other's payloads."""
    with Store.open(store, writable=True) as opened, opened.write_rows() as rows:
        entries = [(bytes(key), bytes(value)) for key, value in rows.items("payload_index")]
        (first, its_value), (second, value) = sorted(entries, key=lambda row: row[1])[-2:]
        rows.put("payload_index", first, value)
        rows.put("payload_index", second, its_value)


def test_a_latent_file_mends_what_is_damaged_of_another(store: Path, tmp_path: Path) -> None:
    source = _latent(tmp_path)
    with mounted(store, tmp_path / "first") as mount:
        shutil.copy(source, mount.path / "cat.latent")
        _settle(mount, developed=1)
        assert mount.end() == 0
    _damage_metadata(store)
    with mounted(store, tmp_path / "second") as mount:
        with pytest.raises(OSError, match="Input/output error"):
            (mount.path / "cat.latent").read_bytes()
        shutil.copy(source, mount.path / "again.latent")
        _settle(mount, developed=1)
        assert mount.end() == 0
    with mounted(store, tmp_path / "third") as mount:
        for name in ("cat.latent", "again.latent"):
            assert (mount.path / name).read_bytes() == source.read_bytes()


def test_a_latent_file_stays_as_it_is_where_the_store_would_give_other_bytes(
    store: Path, tmp_path: Path
) -> None:
    sources = [_latent(tmp_path, f"{seed}.latent", seed=seed) for seed in (1001, 1002)]
    with mounted(store, tmp_path / "first") as mount:
        for source in sources:
            shutil.copy(source, mount.path / source.name)
        _settle(mount, developed=2)
        assert mount.end() == 0
    _exchange_payloads(store)
    with mounted(store, tmp_path / "second") as mount:
        shutil.copy(sources[0], mount.path / "again.latent")
        _settle(mount, undeveloped=1)
        assert "run latentfs fsck" in _xattr(mount.path / "again.latent", "undeveloped")
        assert not (mount.path / "again.png").exists()
        assert mount.end() == 0
    with mounted(store, tmp_path / "third") as mount:
        assert (mount.path / "again.latent").read_bytes() == sources[0].read_bytes()


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_a_latent_moved_into_its_name_gets_its_picture(mount: Mount, tmp_path: Path) -> None:
    """As rsync does it, and browsers."""
    source = _latent(tmp_path)
    subprocess.run(["rsync", "-a", source, mount.path / "moved.latent"], check=True)
    _settle(mount, developed=1)
    assert (mount.path / "moved.latent").read_bytes() == source.read_bytes()
    assert _size((mount.path / "moved.png").read_bytes()) == (160, 128)
    again = subprocess.run(
        ["rsync", "-a", "--checksum", "--itemize-changes", source, mount.path / "moved.latent"],
        check=True,
        capture_output=True,
    )
    assert again.stdout == b""


def test_another_latent_under_the_name_replaces_the_picture(mount: Mount, tmp_path: Path) -> None:
    target = mount.path / "cat.latent"
    shutil.copy(_latent(tmp_path, seed=1), target)
    _settle(mount, developed=1)
    before = (mount.path / "cat.png").read_bytes()
    second = _latent(tmp_path, seed=2)
    shutil.copy(second, target)
    _settle(mount, developed=2)
    assert target.read_bytes() == second.read_bytes()
    wait_until(lambda: (mount.path / "cat.png").read_bytes() != before, "the new picture shows")
    assert sorted(name for name in os.listdir(mount.path) if "cat" in name) == [
        "cat.latent",
        "cat.png",
    ]


def test_a_picture_that_is_open_is_read_on_when_it_is_replaced(
    mount: Mount, tmp_path: Path
) -> None:
    shutil.copy(_latent(tmp_path, seed=1), mount.path / "cat.latent")
    _settle(mount, developed=1)
    with (mount.path / "cat.png").open("rb") as picture:
        before = os.fstat(picture.fileno())
        shutil.copy(_latent(tmp_path, seed=2), mount.path / "cat.latent")
        _settle(mount, developed=2)
        wait_until(
            lambda: (mount.path / "cat.png").stat().st_ino != before.st_ino, "the new picture shows"
        )
        wait_until(lambda: os.fstat(picture.fileno()).st_nlink == 0, "the old one has no name")
        data = picture.read()
    assert len(data) == before.st_size
    assert _size(data) == (160, 128)
    assert data != (mount.path / "cat.png").read_bytes()


def test_a_file_that_has_the_name_of_the_picture_stays(mount: Mount, tmp_path: Path) -> None:
    (mount.path / "cat.png").write_bytes(b"mine")
    shutil.copy(_latent(tmp_path), mount.path / "cat.latent")
    _settle(mount, developed=1)
    assert (mount.path / "cat.png").read_bytes() == b"mine"
    assert _size((mount.path / "cat (1).png").read_bytes()) == (160, 128)


def test_the_same_latent_again_leaves_its_picture_alone_and_one_with_a_tag(
    mount: Mount, tmp_path: Path
) -> None:
    source, target, picture = _latent(tmp_path), mount.path / "cat.latent", mount.path / "cat.png"
    shutil.copy(source, target)
    _settle(mount, developed=1)
    made = picture.stat()
    shutil.copy(source, target)
    _settle(mount, developed=2)
    assert picture.stat() == made
    rendered = picture.read_bytes()
    tagged = _with_chunks(rendered, before=[], after=[png.text_chunk("Artist", "someone")])
    (mount.path / "new").write_bytes(tagged)
    (mount.path / "new").rename(picture)
    _settle(mount, developed=2, copies=1)
    shutil.copy(source, target)
    _settle(mount, developed=3, copies=1)
    assert picture.read_bytes() == tagged
    assert _xattr(picture, "kind") == "latent"
    assert (mount.path / "cat (1).png").read_bytes() == rendered


def test_a_picture_that_was_not_made_there_for_that_user_stays(
    mount: Mount, store: Path, tmp_path: Path
) -> None:
    first, folders = _latent(tmp_path, seed=1), ["imported", "moved", "given"]
    latentfs("import", store, first, "--vae", "tiny", "--to", "/imported")
    wait_until((mount.path / "imported" / "cat.png").exists, "the imported picture shows")
    for folder in ("moved", "given"):
        (mount.path / folder).mkdir()
    shutil.copy(first, mount.path / "cat.latent")
    _settle(mount, developed=1)
    (mount.path / "cat.png").rename(mount.path / "moved" / "cat.png")
    shutil.copy(first, mount.path / "given" / "cat.latent")
    _settle(mount, developed=2)
    if os.geteuid() == 0:  # only root can give files away
        os.chown(mount.path / "given" / "cat.png", 1234, 1234)
    else:
        folders.remove("given")
    kept = {folder: (mount.path / folder / "cat.png").read_bytes() for folder in folders}
    second = _latent(tmp_path, seed=2)
    for number, folder in enumerate(folders, start=3):
        shutil.copy(second, mount.path / folder / "cat.latent")
        _settle(mount, developed=number)
    for folder in folders:
        assert (mount.path / folder / "cat.png").read_bytes() == kept[folder]
        made = (mount.path / folder / "cat (1).png").read_bytes()
        assert _size(made) == (160, 128)
        assert made != kept[folder]


def test_a_latent_that_is_written_into_again_is_an_ordinary_file(
    mount: Mount, tmp_path: Path
) -> None:
    source = _latent(tmp_path)
    target = mount.path / "cat.latent"
    shutil.copy(source, target)
    _settle(mount, developed=1)
    with target.open("r+b") as file:
        file.seek(source.stat().st_size)
        file.write(b"more")
    _settle(mount, developed=1, undeveloped=1)
    assert target.read_bytes() == source.read_bytes() + b"more"
    assert "belong to no tensor" in _xattr(target, "undeveloped")
    os.truncate(target, source.stat().st_size)
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("kind", ["other channels", "no latents", "broken", "NaN"])
def test_what_can_not_be_developed_says_why(mount: Mount, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.safetensors"
    if kind == "other channels":
        write_diffusers_latent(path, latent_array(1, 16, 8, 8, seed=1))
        reason = "which VAE decodes latents of 16 channels is not known (the store has: none)"
    elif kind == "no latents":
        from safetensors.numpy import save_file

        save_file({"weight": np.zeros((3, 3), np.float32)}, path)
        reason = "no latents in it"
    elif kind == "broken":
        path.write_bytes(b"\x10\0\0\0\0\0\0\0{")
        reason = "truncated"
    else:
        array = latent_array(1, 4, 8, 8, seed=1)
        array[0, 0, 0, 0] = np.nan
        write_diffusers_latent(path, array)
        reason = "NaN or infinite"
    target = mount.path / path.name
    shutil.copy(path, target)
    _settle(mount, undeveloped=1)
    assert reason in _xattr(target, "undeveloped")
    assert target.read_bytes() == path.read_bytes()
    assert not (mount.path / "bad.png").exists()


def test_a_folder_names_the_vae(store: Path, tiny_vae_folder: Path, tmp_path: Path) -> None:
    latentfs("vae", "add", store, "other", tiny_vae_folder, "--dtype", "bfloat16")
    with mounted(store, tmp_path / "mnt") as mount:
        (mount.path / "a" / "b").mkdir(parents=True)
        shutil.copy(_latent(tmp_path), mount.path / "cat.latent")
        _settle(mount, undeveloped=1)
        assert "the store has: other, tiny" in _xattr(mount.path / "cat.latent", "undeveloped")
        os.setxattr(mount.path / "a", "user.latentfs.vae", b"other")
        assert os.getxattr(mount.path / "a", "user.latentfs.vae") == b"other"
        _settle(mount, undeveloped=2)
        shutil.copy(_latent(tmp_path), mount.path / "a" / "b" / "cat.latent")
        _settle(mount, undeveloped=2, developed=1)
        assert _xattr(mount.path / "a" / "b" / "cat.png", "dtype") == "bfloat16"
        with pytest.raises(OSError, match="Invalid") as unknown:
            os.setxattr(mount.path / "a", "user.latentfs.vae", b"nothing")
        assert unknown.value.errno == errno.EINVAL
        with pytest.raises(PermissionError):
            os.setxattr(mount.path / "cat.latent", "user.latentfs.vae", b"tiny")
        os.removexattr(mount.path / "a", "user.latentfs.vae")


@pytest.mark.parametrize("when", ["named", "mounted"])
def test_a_latent_without_a_vae_waits_for_one(
    tiny_vae_folder: Path, tmp_path: Path, when: str
) -> None:
    store = tmp_path / "bare.lfs"
    latentfs("init", store)
    with mounted(store, tmp_path / "first") as mount:
        shutil.copy(_latent(tmp_path), mount.path / "cat.latent")
        (mount.path / "bad.latent").write_bytes(b"no latent")
        _settle(mount, undeveloped=2)
        assert _xattr(mount.path / "cat.latent", "undeveloped").startswith("not yet: which VAE")
        assert not _xattr(mount.path / "bad.latent", "undeveloped").startswith("not yet")
        latentfs("vae", "add", store, "tiny", tiny_vae_folder, "--dtype", "float32")
        if when == "named":
            os.setxattr(mount.path, "user.latentfs.vae", b"tiny")
            _settle(mount, undeveloped=2, developed=1)
        assert mount.end() == 0
    with mounted(store, tmp_path / "second") as mount:
        _settle(mount, developed=when == "mounted")
        assert _xattr(mount.path / "cat.png", "kind") == "latent"
        with pytest.raises(OSError, match="No data"):
            os.getxattr(mount.path / "cat.latent", "user.latentfs.undeveloped")


def test_with_develop_no_files_stay_as_they_are(store: Path, tmp_path: Path) -> None:
    with mounted(store, tmp_path / "mnt", "-o", "develop=no") as mount:
        shutil.copy(_latent(tmp_path), mount.path / "cat.latent")
        shutil.copy(mount.path / "pictures" / "000.png", mount.path / "copy.png")
        os.sync()
        assert mount.status()["developing"] == 0
        assert not (mount.path / "cat.png").exists()
        assert _xattr(mount.path / "copy.png", "kind") == "blob"


def test_a_latent_that_is_removed_with_its_folder_leaves_nothing(
    store: Path, tmp_path: Path
) -> None:
    source = _latent(tmp_path)
    with mounted(store, tmp_path / "mnt") as mount:
        for number in range(20):
            folder = mount.path / f"folder-{number}"
            folder.mkdir()
            shutil.copy(source, folder / "cat.latent")
            time.sleep(0.005 * number)
            shutil.rmtree(folder, ignore_errors=True)
            wait_until(lambda: not mount.status()["developing"], "the latent is dealt with")
        assert mount.status()["errors_total"] == 0
        assert mount.end() == 0
    assert latentfs("fsck", store).returncode == 0


def test_what_was_not_developed_is_so_by_the_next_mount(store: Path, tmp_path: Path) -> None:
    with mounted(store, tmp_path / "first", "-o", "develop=no") as mount:
        (mount.path / "deep").mkdir()
        shutil.copy(_latent(tmp_path), mount.path / "deep" / "cat.latent")
        assert mount.end() == 0
    with mounted(store, tmp_path / "second") as mount:
        _settle(mount, developed=1)
        assert _size((mount.path / "deep" / "cat.png").read_bytes()) == (160, 128)


@pytest.mark.parametrize("name", ["pictures/000.png", "jpeg/000.jpg"])
def test_a_copy_of_a_picture_shares_its_payload(mount: Mount, tmp_path: Path, name: str) -> None:
    original = mount.path / name
    data = original.read_bytes()
    copy = mount.path / f"copy{original.suffix}"
    subprocess.run(["cp", "-p", original, copy], check=True)
    _settle(mount, copies=1)
    assert copy.read_bytes() == data
    assert copy.stat().st_mtime_ns == original.stat().st_mtime_ns
    assert _xattr(copy, "stored_bytes") == _xattr(original, "stored_bytes")
    original.unlink()
    assert copy.read_bytes() == data


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_a_picture_restored_from_a_backup_is_one_again(mount: Mount, tmp_path: Path) -> None:
    folder = mount.path / "pictures"
    backup = tmp_path / "backup"
    subprocess.run(["rsync", "-a", f"{folder}/", f"{backup}/"], check=True)
    (mount.path / "restored").mkdir()
    subprocess.run(["rsync", "-a", f"{backup}/", f"{mount.path}/restored/"], check=True)
    _settle(mount, copies=100)
    restored = mount.path / "restored" / "042.png"
    assert restored.read_bytes() == (folder / "042.png").read_bytes()
    assert _xattr(restored, "kind") == "latent"


def _with_chunks(data: bytes, *, before: list[bytes], after: list[bytes]) -> bytes:
    """Put chunks in front of the first IDAT and of IEND, and drop all other texts."""
    kept = [png.SIGNATURE]
    for kind, body in png.chunks(data):
        if kind == b"IDAT" and before:
            kept += before
            before = []
        if kind == b"IEND":
            kept += after
        if kind not in (b"tEXt", b"iTXt"):
            kept.append(png.chunk(kind, body))
    return b"".join(kept)


@pytest.mark.parametrize("where", ["before", "after", "both", "none"])
def test_a_picture_with_other_metadata_shares_the_payload(mount: Mount, where: str) -> None:
    original = mount.path / "pictures" / "007.png"
    text = png.text_chunk("prompt", "something else " * 5000)
    note = png.text_chunk("Comment", "é" * 100)
    changed = _with_chunks(
        original.read_bytes(),
        before=[text] if where in ("before", "both") else [],
        after=[note, text] if where in ("after", "both") else [],
    )
    target = mount.path / "changed.png"
    target.write_bytes(changed)
    _settle(mount, copies=1)
    assert target.read_bytes() == changed
    assert _xattr(target, "kind") == "latent"
    assert _xattr(target, "stored_bytes") == _xattr(original, "stored_bytes")
    # A copy of the copy is one of its bytes.
    shutil.copy(target, mount.path / "again.png")
    _settle(mount, copies=2)
    assert (mount.path / "again.png").read_bytes() == changed


def test_a_jpeg_with_other_metadata_shares_the_payload(mount: Mount) -> None:
    original = mount.path / "jpeg" / "000.jpg"
    data = original.read_bytes()
    start_end, _, rest = jpeg.leading_metadata(data)
    segment = jpeg.exif_segment({0x010E: "another description"})
    assert segment is not None
    changed = data[:start_end] + segment + data[rest:]
    target = mount.path / "changed.jpg"
    target.write_bytes(changed)
    _settle(mount, copies=1)
    assert target.read_bytes() == changed
    assert _xattr(target, "kind") == "latent"


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("name", ["pictures/008.png", "jpeg/001.jpg"])
def test_exiftool_leaves_a_picture_a_latent(mount: Mount, name: str) -> None:
    path = mount.path / name
    before = _xattr(path, "stored_bytes")
    subprocess.run(["exiftool", "-q", "-overwrite_original", "-Artist=someone", path], check=True)
    _settle(mount, copies=1)
    assert _xattr(path, "kind") == "latent"
    assert _xattr(path, "stored_bytes") == before
    shown = subprocess.run(
        ["exiftool", "-s3", "-Artist", path], check=True, capture_output=True, text=True
    )
    assert shown.stdout.strip() == "someone"


def test_a_copy_with_another_pixel_is_kept_byte_for_byte(mount: Mount, tmp_path: Path) -> None:
    with Image.open(mount.path / "pictures" / "000.png") as picture:
        changed = picture.copy()
    red, green, blue = changed.getpixel((3, 3))  # type: ignore[misc]
    changed.putpixel((3, 3), (red, green, blue ^ 1))
    changed.save(tmp_path / "changed.png")
    target = mount.path / "changed.png"
    shutil.copy(tmp_path / "changed.png", target)
    shutil.copy(mount.path / "pictures" / "000.png", mount.path / "same.png")
    _settle(mount, copies=1)
    assert target.read_bytes() == (tmp_path / "changed.png").read_bytes()
    assert _xattr(target, "kind") == "blob"
