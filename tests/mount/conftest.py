"""Stores to mount, made once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import Mount, mounted

from latentfs.store.store import Store


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        return
    reason = pytest.mark.skip(reason="/dev/fuse is missing or not permitted")
    for item in items:
        if "tests/mount" in str(item.path):
            item.add_marker(reason)


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
