"""A file has one content: its bytes don't depend on what else is read, in which order, or when."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mounts import Mount, mounted

FILES = 100
NAMES = [f"{number:03}.png" for number in range(FILES)]

Hashes = dict[str, str]

# Every read costs a render, and nothing else is rendered.
KEEPS_NOTHING = ("--cache", "0", "--prefetch", "0")


def read_cold(mount: Mount, name: str) -> str:
    """Hash of the file's bytes; the kernel is asked to forget them, before and after."""
    fd = os.open(mount.path / "pictures" / name, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        sha256 = hashlib.sha256()
        while data := os.read(fd, 1 << 20):
            sha256.update(data)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    return sha256.hexdigest()


def read_all(mount: Mount, names: Sequence[str], *, together: int = 1) -> Hashes:
    """Read each file once, so many at a time; each costs a render, or it would show nothing."""
    before = mount.status()["renders_total"]
    with ThreadPoolExecutor(together) as pool:
        hashes = dict(zip(names, pool.map(lambda name: read_cold(mount, name), names), strict=True))
    assert mount.status()["renders_total"] - before == len(names)
    return hashes


@pytest.fixture(scope="module")
def cold_mount(pictures_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """Keeps nothing that it has rendered."""
    path = tmp_path_factory.mktemp("same") / "mnt"
    with mounted(pictures_store, path, *KEEPS_NOTHING) as mount:
        yield mount


@pytest.fixture(scope="module")
def one_by_one(cold_mount: Mount) -> Hashes:
    return read_all(cold_mount, NAMES)


def test_different_files_have_different_bytes(one_by_one: Hashes) -> None:
    assert len(set(one_by_one.values())) == FILES


def test_read_one_by_one_again(cold_mount: Mount, one_by_one: Hashes) -> None:
    assert read_all(cold_mount, NAMES) == one_by_one


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_read_in_another_order(cold_mount: Mount, one_by_one: Hashes, seed: int) -> None:
    assert read_all(cold_mount, random.Random(seed).sample(NAMES, FILES)) == one_by_one


@pytest.mark.parametrize(("together", "seed"), [(2, 4), (5, 5), (64, 6), (64, 7)])
def test_read_many_at_once(cold_mount: Mount, one_by_one: Hashes, together: int, seed: int) -> None:
    names = random.Random(seed).sample(NAMES, FILES)
    assert read_all(cold_mount, names, together=together) == one_by_one


def test_read_while_and_after_the_renderer_was_killed(
    cold_mount: Mount, one_by_one: Hashes
) -> None:
    renderer = cold_mount.wait_for_renderer()
    killer = threading.Timer(0.1, os.kill, (renderer, signal.SIGKILL))
    killer.start()
    try:
        assert read_all(cold_mount, NAMES, together=16) == one_by_one
    finally:
        killer.join()
    assert read_all(cold_mount, NAMES) == one_by_one
    assert cold_mount.status()["renderer_restarts_total"] == 1
    assert cold_mount.renderer_pids() != [renderer]


def test_read_after_a_remount(store: Path, tmp_path: Path, one_by_one: Hashes) -> None:
    for together in (1, 64):
        with mounted(store, tmp_path / "mnt", *KEEPS_NOTHING) as mount:
            assert read_all(mount, NAMES, together=together) == one_by_one
            assert mount.status()["hash_mismatches_total"] == 0
            assert mount.end() == 0


def test_read_in_the_order_of_names_with_others_rendered_ahead(
    store: Path, tmp_path: Path, one_by_one: Hashes
) -> None:
    # With a cache, which is where what was rendered ahead waits for its reader.
    with mounted(store, tmp_path / "mnt", "--prefetch", "8") as mount:
        assert read_all(mount, NAMES) == one_by_one
        status = mount.status()
        assert status["renders_prefetched_total"] > 0
        assert status["hash_mismatches_total"] == 0
