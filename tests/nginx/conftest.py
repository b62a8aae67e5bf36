"""A real nginx with the documented configuration, on a real mount."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from example_nginx import ExampleNginx, find_nginx, running_nginx
from mounts import Mount, mounted

from latentfs.store.store import Store

# Names that a careless page, server or configuration takes for something else.
ODD_NAMES = (
    "two  blanks.png",
    "50% #1?&x=1;+.png",
    "'single' \"double\" back\\slash.png",
    "<b>bold<img src=x onerror=alert(1)>.png",
    "snow ❄ 雪 é.png",
    "$uri {a} %2e%2e.png",
    "line\nbreak.png",
    "carriage\rreturn; }.png",
    "\n.png",
)
# Ends as a picture's name but for a line break, which "$" in a regular expression passes over.
ALMOST_A_PICTURE = "two  blanks.png\n"
ODD_FOLDER = 'odd <i>names & "more" %41 é'


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = None
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing = "/dev/fuse is missing or not permitted"
    elif find_nginx() is None:
        missing = "nginx is not installed"
    for item in items:
        if missing and "tests/nginx" in str(item.path):
            item.add_marker(pytest.mark.skip(reason=missing))


@dataclass(frozen=True, slots=True)
class Served:
    """A mount, the nginx in front of it, and what its pictures' bytes are.

    Attributes:
        right: SHA-256 of each file below /pictures and /jpeg, by target.
    """

    mount: Mount
    nginx: ExampleNginx
    right: dict[str, str]

    @property
    def port(self) -> int:
        return self.nginx.port

    def make_cold(self, target: str) -> None:
        """Have the kernel forget a file's pages."""
        fd = os.open(self.mount.path / target.removeprefix("/art/"), os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


@pytest.fixture(scope="session")
def web_store(pictures_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures, and some of them once more under odd names, with a text beside them."""
    path = tmp_path_factory.mktemp("web") / "art.lfs"
    shutil.copytree(pictures_store, path, ignore=shutil.ignore_patterns("*.sock", "lock.mdb"))
    with Store.open(path, writable=True) as store, store.write() as transaction:
        folder = transaction.make_directories(f"/{ODD_FOLDER}", uid=0, gid=0)
        for number, name in enumerate(ODD_NAMES):
            found = transaction.resolve(f"/pictures/{number:03}.png")
            assert found is not None
            transaction.add_file(folder, name.encode(), found[1])
        found = transaction.resolve("/pictures/099.png")
        assert found is not None
        transaction.add_file(folder, ALMOST_A_PICTURE.encode(), found[1])
    return path


def rendition_hashes(store_path: Path, *folders: str) -> dict[str, str]:
    """What the bytes of pictures were at import, by target, so nothing need be rendered to know."""
    hashes = {}
    with Store.open(store_path) as store, store.read() as snapshot:
        for folder in folders:
            found = snapshot.resolve(f"/{folder}")
            assert found is not None
            for name, ino in snapshot.entries(found[0]):
                inode = snapshot.inode(ino)
                assert inode is not None
                assert inode.content is not None
                hashes[f"/art/{folder}/{name.decode()}"] = inode.content.rendition_sha256.hex()
    return hashes


@pytest.fixture(scope="session")
def right(web_store: Path) -> dict[str, str]:
    """SHA-256 of the pictures in /pictures and /jpeg, by target."""
    hashes = rendition_hashes(web_store, "pictures", "jpeg")
    assert len(hashes) == 102
    return hashes


@pytest.fixture(scope="module")
def own_store(web_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that is not mounted, for the tests of one module."""
    path = tmp_path_factory.mktemp("own") / "art.lfs"
    shutil.copytree(web_store, path, ignore=shutil.ignore_patterns("*.sock", "lock.mdb"))
    return path


@contextlib.contextmanager
def serving(store: Path, folder: Path, right: dict[str, str], *arguments: str) -> Iterator[Served]:
    """A mount with a warm renderer, which renders nothing ahead, and nginx in front of it.

    With the option that the service's drop-in gives it, where that is permitted.
    """
    options = ("-o", "nosymfollow") if os.geteuid() == 0 else ()
    with (
        mounted(store, folder / "mnt", "--prefetch", "0", *options, *arguments) as mount,
        running_nginx(folder / "nginx", mount.path) as nginx,
    ):
        mount.wait_for_renderer()
        yield Served(mount, nginx, right)


@pytest.fixture(scope="session")
def served(
    web_store: Path, right: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """For tests that do not mind what others have read."""
    with serving(web_store, tmp_path_factory.mktemp("served"), right) as served:
        yield served
