"""A full disk is an error with a name; the store is as it was before."""

import os
import subprocess

import pytest
from latent_files import latent_array, write_comfyui_latent
from store_contents import add_picture, picture_latent, problems

from latentfs.errors import StoreFullError
from latentfs.store import tables
from latentfs.store.store import Store

GROUP_FILES = 5


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount the small disk that this needs")
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk can't be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


def fill(disk, *, but_bytes=0):
    """Use up the disk, but for some whole pages."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            pass
        file.truncate(file.tell() - but_bytes)
    status = os.statvfs(disk)
    assert status.f_bavail * status.f_bsize == but_bytes


def add_group(store, group):
    with store.write() as transaction:
        for number in range(group * GROUP_FILES, (group + 1) * GROUP_FILES):
            add_picture(transaction, tables.ROOT_INO, b"%d.png" % number, latent(number))


def latent(number):
    return picture_latent(number, height=64, width=64)


def test_a_store_that_is_filled_stays_as_it_was(disk):
    with Store.create(disk / "art.lfs") as store:
        seen = []

        def add_groups():
            while True:
                seen.append(store.statistics())
                add_group(store, len(seen) - 1)

        with pytest.raises(StoreFullError, match="free some space"):
            add_groups()
        before = seen[-1]
        assert store.statistics() == before
        assert before.totals.files == (len(seen) - 1) * GROUP_FILES > 0
        assert problems(store) == []
    for writable in (False, True):
        with Store.open(disk / "art.lfs", writable=writable) as store:
            assert store.statistics() == before
            assert problems(store) == []


def test_a_store_goes_on_once_there_is_space_again(disk):
    with Store.create(disk / "art.lfs") as store:
        fill(disk)
        with pytest.raises(StoreFullError), store.write() as transaction:
            add_picture(transaction, tables.ROOT_INO, b"a.png", latent(1))
        (disk / "filler").unlink()
        with store.write() as transaction:
            add_picture(transaction, tables.ROOT_INO, b"a.png", latent(1))
        assert problems(store) == []
        assert store.statistics().totals.files == 1


@pytest.mark.parametrize("but_bytes", [0, 1 << 12, 1 << 14, 40 << 10, 44 << 10, 60 << 10])
def test_making_a_store_leaves_nothing_half_made(disk, latentfs, but_bytes):
    fill(disk, but_bytes=but_bytes)
    done = latentfs("init", disk / "art.lfs")
    assert done.returncode == 1, done
    assert "no space left" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(disk) == ["filler"]


def test_opening_a_store_that_has_no_lock_file(disk):
    Store.create(disk / "art.lfs").close()
    (disk / "art.lfs" / "lmdb" / "lock.mdb").unlink()
    fill(disk)
    with pytest.raises(StoreFullError):
        Store.open(disk / "art.lfs")


@pytest.mark.parametrize("but_bytes", [0, 1 << 15])
def test_adding_a_vae_leaves_nothing_half_made(disk, latentfs, tiny_vae_folder, but_bytes):
    Store.create(disk / "art.lfs").close()
    fill(disk, but_bytes=but_bytes)
    done = latentfs("vae", "add", disk / "art.lfs", "tiny", tiny_vae_folder, "--dtype", "float32")
    assert done.returncode == 1, done
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((disk / "art.lfs" / "vae").iterdir()) == []
    with Store.open(disk / "art.lfs") as store:
        with store.read() as snapshot:
            assert list(snapshot.vaes()) == []
        assert problems(store) == []


def test_an_import_ends_with_what_fits(disk, latentfs, new_store, tmp_path):
    store_path = new_store(disk / "art.lfs")
    sources = []
    for number in range(5):
        path = tmp_path / f"{number}.latent"
        sources.append(write_comfyui_latent(path, latent_array(1, 4, 24, 24, seed=number)))
    done = latentfs("import", store_path, sources[0], "--vae", "tiny")
    assert done.returncode == 0, done.stderr
    with Store.open(store_path) as store:
        before = store.statistics()
    fill(disk, but_bytes=20 << 10)

    done = latentfs("import", store_path, *sources, "--vae", "tiny")
    assert done.returncode == 1
    assert done.stderr.startswith(f"latentfs: no space left for the store {store_path}")
    assert "free some space and import the same again" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout.startswith("0 added")
    assert "1 already there, 0 refused" in done.stdout
    with Store.open(store_path) as store:
        assert store.statistics() == before
        assert problems(store) == []

    (disk / "filler").unlink()
    done = latentfs("import", store_path, *sources, "--vae", "tiny")
    assert done.returncode == 0, done.stderr
    assert "4 added" in done.stdout
    with Store.open(store_path) as store, store.read() as snapshot:
        names = [name for name, _ in snapshot.entries(tables.ROOT_INO)]
        assert names == [b"%d.png" % number for number in range(5)]
        assert problems(store) == []
