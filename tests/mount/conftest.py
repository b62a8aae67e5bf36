"""Stores to mount, made once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from latent_files import latent_array, write_comfyui_latent
from mounts import Mount, latentfs, mounted

from latentfs.store.store import Store

FILES = 100


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        return
    reason = pytest.mark.skip(reason="/dev/fuse is missing or not permitted")
    for item in items:
        if "tests/mount" in str(item.path):
            item.add_marker(reason)


@pytest.fixture(scope="session")
def pictures_store(tmp_path_factory: pytest.TempPathFactory, tiny_vae_folder: Path) -> Path:
    """A store of 100 small, different pictures in /pictures, and two JPEGs in /jpeg."""
    folder = tmp_path_factory.mktemp("pictures")
    latents = folder / "latents"
    latents.mkdir()
    for number in range(FILES):
        array = latent_array(1, 4, 16 + number % 3 * 4, 16, seed=number)
        metadata = {"prompt": json.dumps({"seed": number})}
        write_comfyui_latent(latents / f"{number:03}.latent", array, metadata=metadata)
    store = folder / "art.lfs"
    latentfs("init", store)
    latentfs("vae", "add", store, "tiny", tiny_vae_folder, "--dtype", "float32")
    latentfs("import", store, latents, "--vae", "tiny", "--to", "/pictures")
    jpegs = [latents / "000.latent", latents / "001.latent"]
    latentfs("import", store, *jpegs, "--vae", "tiny", "--to", "/jpeg", "--format", "jpeg")
    return store


@pytest.fixture
def store(pictures_store: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    copy = tmp_path / "art.lfs"
    shutil.copytree(pictures_store, copy, ignore=shutil.ignore_patterns("*.sock", "lock.mdb"))
    return copy


@pytest.fixture
def mount(store: Path, tmp_path: Path) -> Iterator[Mount]:
    """Without rendering ahead, so that tests can count renders."""
    with mounted(store, tmp_path / "mnt", "--prefetch", "0") as mount:
        yield mount


@pytest.fixture(scope="session")
def large_store(pictures_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 10,000 files more, all of one content."""
    path = tmp_path_factory.mktemp("large") / "art.lfs"
    shutil.copytree(pictures_store, path, ignore=shutil.ignore_patterns("*.sock", "lock.mdb"))
    with Store.open(path, writable=True) as store, store.write() as transaction:
        found = transaction.resolve("/pictures/000.png")
        assert found is not None
        for folder in range(10):
            ino = transaction.make_directories(f"/many/{folder}", uid=0, gid=0)
            for number in range(1000):
                transaction.add_file(ino, b"%04d.png" % number, found[1])
    return path
