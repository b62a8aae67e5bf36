"""Every way of reading a file agrees on its size and its bytes, and so does the next mount."""

from __future__ import annotations

import contextlib
import hashlib
import io
import mmap
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyfuse3
import pytest
import trio
from mounts import Mount, mounted, stop_process, wait_until
from PIL import Image

from latentfs.errors import StoreCorruptError
from latentfs.fs import open_files
from latentfs.fs.operations import LatentOperations
from latentfs.fs.prefetch import NextNames, SequenceDetector
from latentfs.fs.tuning import MAX_BACKGROUND
from latentfs.render.job_queue import Reader
from latentfs.store.live_store import LiveStore
from latentfs.store.records import Inode
from latentfs.store.store import Store
from latentfs.telemetry.activity import ReadTrail

# More than the kernel passes on at a time.
READERS = MAX_BACKGROUND + 100


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_way_of_reading_agrees(mount: Mount, tmp_path: Path) -> None:
    path = mount.path / "pictures" / "007.png"
    size_bytes = path.stat().st_size
    data = path.read_bytes()
    assert len(data) == size_bytes

    sent = tmp_path / "sent"
    with path.open("rb") as source, sent.open("wb") as target:
        while os.sendfile(target.fileno(), source.fileno(), None, 65536):
            pass
    assert sent.read_bytes() == data

    with path.open("rb") as file:
        for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
            with mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ) as mapped:
                assert mapped[:] == data
        for offset, length in ((0, 1), (1, 4095), (4097, 8191), (size_bytes - 3, 100)):
            assert os.pread(file.fileno(), length, offset) == data[offset : offset + length]
        assert os.pread(file.fileno(), 10, size_bytes) == b""
        assert os.pread(file.fileno(), 10, size_bytes + 100_000) == b""

    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", path, copy], check=True)
    assert copy.read_bytes() == data
    assert copy.stat().st_mtime_ns == path.stat().st_mtime_ns


@pytest.mark.parametrize(("block", "skip"), [(7, 3), (513, 1), (4099, 2), (100_003, 0)])
def test_dd_with_odd_offsets(mount: Mount, block: int, skip: int) -> None:
    path = mount.path / "pictures" / "001.png"
    command = ["dd", f"if={path}", f"bs={block}", f"skip={skip}", "status=none"]
    direct = ["iflag=skip_bytes,count_bytes", f"count={3 * block}"]
    data = subprocess.run([*command, *direct], capture_output=True, check=True).stdout
    assert data == path.read_bytes()[skip : skip + 3 * block]


def test_the_first_read_may_be_at_the_end(mount: Mount) -> None:
    path = mount.path / "pictures" / "050.png"
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        tail = os.pread(file.fileno(), 12, size_bytes - 12)
    assert tail == b"\0\0\0\0IEND\xaeB`\x82"


def test_bytes_are_the_same_after_a_remount(store: Path, tmp_path: Path) -> None:
    names = [f"pictures/{n:03}.png" for n in range(20)] + ["jpeg/000.jpg", "jpeg/001.jpg"]
    hashes, inodes = [], []
    for _ in range(2):
        with mounted(store, tmp_path / "mnt") as mount:
            hashes.append([sha256(mount.path / name) for name in names])
            inodes.append([(mount.path / name).stat().st_ino for name in names])
            assert mount.status()["hash_mismatches_total"] == 0
    assert hashes[0] == hashes[1]
    assert inodes[0] == inodes[1]


def test_bytes_are_the_same_in_any_order_and_company(store: Path, tmp_path: Path) -> None:
    names = [f"pictures/{n:03}.png" for n in range(100)]
    with mounted(store, tmp_path / "one") as mount:
        one_by_one = {name: sha256(mount.path / name) for name in names}
    shuffled = random.Random(0).sample(names, len(names))
    with mounted(store, tmp_path / "all") as mount, ThreadPoolExecutor(64) as pool:
        together = dict(
            zip(shuffled, pool.map(lambda name: sha256(mount.path / name), shuffled), strict=True)
        )
    assert together == one_by_one


def test_pictures_are_pictures_with_their_metadata(mount: Mount) -> None:
    with Image.open(mount.path / "pictures" / "042.png") as image:
        image.load()
        assert image.format == "PNG"
        assert image.size == (128, 128)
        assert image.info["prompt"] == '{"seed": 42}'
    with Image.open(mount.path / "jpeg" / "001.jpg") as image:
        image.load()
        assert image.format == "JPEG"


@pytest.mark.parametrize("drift", ["noise:0.002", "flat:0.05"])
def test_size_and_validity_survive_a_render_that_comes_out_different(
    store: Path, tmp_path: Path, drift: str
) -> None:
    environment = {"LATENTFS_TEST_DRIFT": drift}
    with mounted(store, tmp_path / "mnt", environment=environment) as mount:
        for name in ("pictures/003.png", "jpeg/000.jpg"):
            path = mount.path / name
            data = path.read_bytes()
            assert len(data) == path.stat().st_size
            with Image.open(io.BytesIO(data)) as image:
                image.load()
        status = mount.status()
        assert status["hash_mismatches_total"] == 2
        assert status["errors_total"] == 0


def test_64_readers_of_one_cold_file_cost_one_render(mount: Mount) -> None:
    path = mount.path / "pictures" / "010.png"
    with ThreadPoolExecutor(64) as pool:
        hashes = set(pool.map(lambda _: sha256(path), range(64)))
    assert len(hashes) == 1
    assert mount.status()["renders_total"] == 1


def test_64_cold_files_are_all_in_flight(mount: Mount) -> None:
    renderer = mount.wait_for_renderer()
    stop_process(renderer)  # so that none is done before all were asked for
    paths = [mount.path / "pictures" / f"{n:03}.png" for n in range(64)]
    with ThreadPoolExecutor(64) as pool:
        reads = [pool.submit(path.read_bytes) for path in paths]
        try:
            wait_until(lambda: mount.status()["renders_in_flight"] == 64, "64 are in flight")
        finally:
            os.kill(renderer, signal.SIGCONT)
        assert [len(read.result()) for read in reads] == [path.stat().st_size for path in paths]
    assert mount.status()["renders_total"] == 64


def test_hundreds_of_reads_that_wait_are_in_nobodys_way(mount: Mount) -> None:
    """As many as LMDB had places for readers, when each read kept one."""
    renderer = mount.wait_for_renderer()
    path = mount.path / "pictures" / "000.png"
    size_bytes = path.stat().st_size

    def read() -> int:
        # Each is a request of its own: readers of the page cache wait for one another.
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, 1 << 16) as buffer:
                return os.preadv(fd, [buffer], 0)
        finally:
            os.close(fd)

    stop_process(renderer)
    with ThreadPoolExecutor(READERS) as pool:
        reads = [pool.submit(read) for _ in range(READERS)]
        try:
            wait_until(
                lambda: mount.status()["render_waits_shared_total"] == MAX_BACKGROUND - 1,
                "as many wait as the kernel passes on",
            )
            os.statvfs(mount.path)
            assert len(os.listdir(mount.path / "pictures")) == 100
            assert os.getxattr(path, "user.latentfs.kind") == b"latent"
            (mount.path / "new").write_bytes(b"x")
        finally:
            with contextlib.suppress(ProcessLookupError):  # on a slow machine it was replaced
                os.kill(renderer, signal.SIGCONT)
        assert {read.result() for read in reads} == {size_bytes}
    assert mount.status()["renders_total"] == 1


def test_files_of_one_content_share_one_render(large_store: Path, tmp_path: Path) -> None:
    with mounted(large_store, tmp_path / "mnt") as mount:
        data = {(mount.path / "many" / str(n) / "0000.png").read_bytes() for n in range(10)}
        assert len(data) == 1
        assert mount.status()["renders_total"] == 1


def test_listing_10000_files_renders_nothing(large_store: Path, tmp_path: Path) -> None:
    with mounted(large_store, tmp_path / "mnt") as mount:
        listing = subprocess.run(
            ["ls", "-lR", mount.path], capture_output=True, text=True, check=True
        ).stdout
        assert listing.count(".png") == 10_100
        sizes = {
            os.stat(mount.path / "many" / str(folder) / f"{number:04}.png").st_size
            for folder in range(10)
            for number in range(1000)
        }
        assert len(sizes) == 1
        status = mount.full_status()
        assert (status["renders_total"], status["renders_in_flight"]) == (0, 0)
        assert status["reads_total"] == 0
        assert status["files"] == 10_102


def test_the_cache_stays_within_its_budget(store: Path, tmp_path: Path) -> None:
    with mounted(store, tmp_path / "mnt", "--cache", "300K") as mount:
        for number in range(20):
            (mount.path / "pictures" / f"{number:03}.png").read_bytes()
        cache = mount.status()["cache"]
        assert cache["pixel_bytes"] + cache["latent_bytes"] <= cache["budget_bytes"] == 300 * 1024
        assert cache["pixel_evictions"] > 0


def test_unmodified_programs(mount: Mount, tmp_path: Path) -> None:
    archive = tmp_path / "pictures.tar"
    subprocess.run(["tar", "-cf", archive, "-C", mount.path, "pictures"], check=True)
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="fully_trusted")
    copied = tmp_path / "unpacked" / "pictures"
    subprocess.run(["diff", "-r", mount.path / "pictures", copied], check=True)
    total = subprocess.run(
        ["du", "-sb", "--apparent-size", mount.path / "pictures"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    sizes = sum(path.stat().st_size for path in (mount.path / "pictures").iterdir())
    assert int(total.split()[0]) == sizes


def test_it_is_usable_before_any_model_is_loaded(store: Path, tmp_path: Path) -> None:
    with mounted(store, tmp_path / "mnt") as mount:
        start_s = time.monotonic()
        assert len(list((mount.path / "pictures").iterdir())) == 100
        assert not mount.status()["renderer_ready"] or time.monotonic() - start_s > 1
        modules = Path(f"/proc/{mount.process.pid}/maps").read_text()
        assert "libtorch" not in modules


class Rendered:
    """Renditions of zeros, at once."""

    async def get(self, ino: int, inode: Inode, reader: Reader, trail: ReadTrail) -> bytes:
        return bytes(inode.size_bytes)


def test_a_damaged_neighbour_does_not_keep_a_file_from_being_read(
    pictures_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Damaged(SequenceDetector):
        def opened(self, reader: Hashable, ino: int, next_names: NextNames) -> list[int]:
            raise StoreCorruptError("inode 7 can't be read")

    async def read_one() -> None:
        with Store.open(pictures_store) as store:
            with store.read() as snapshot:
                found = snapshot.resolve("/pictures/000.png")
            assert found is not None
            filesystem = LatentOperations(
                LiveStore(store),
                Rendered(),  # type: ignore[arg-type]
                Damaged(files_max=8),
                ahead_bytes=lambda: 0,
            )
            handle = (await filesystem.open(found[0], 0, pyfuse3.RequestContext())).fh
            assert len(await filesystem.read(handle, 0, 4096)) == 4096

    trio.run(read_one)
    assert "inode 7" in caplog.text


def test_handles_read_in_part_keep_a_bounded_amount(
    pictures_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "_PINNED_BYTES_MAX", 300_000)

    async def read_heads() -> None:
        with Store.open(pictures_store) as store:
            with store.read() as snapshot:
                found = snapshot.resolve("/pictures/000.png")
            assert found is not None
            filesystem = LatentOperations(
                LiveStore(store),
                Rendered(),  # type: ignore[arg-type]
                SequenceDetector(files_max=0),
                ahead_bytes=lambda: 0,
            )
            context = pyfuse3.RequestContext()
            handles = [(await filesystem.open(found[0], 0, context)).fh for _ in range(30)]
            for handle in handles:
                assert len(await filesystem.read(handle, 0, 100)) == 100
                assert filesystem.statistics().files.pinned_bytes <= 300_000
            assert filesystem.statistics().files.pinned_bytes > 200_000
            for handle in handles:
                assert len(await filesystem.read(handle, 100, 10_000_000)) > 1000
            assert filesystem.statistics().files.pinned_bytes == 0
            for handle in handles:
                await filesystem.release(handle)
            assert filesystem.statistics().files.open_files == 0

    trio.run(read_heads)
