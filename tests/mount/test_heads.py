"""Programs that only look at what pictures are start no render, and their files are whole."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from latent_files import latent_array, write_comfyui_latent
from mounts import Mount, latentfs, mounted
from PIL import Image

FILES = 12
LONG_TEXT = "".join(f"node {number}, " for number in range(140_000))  # 1.7 MB, as of a workflow
ONLY_LOOKS = (
    "import sys\n"
    "from PIL import Image\n"
    "for path in sys.argv[1:]:\n"
    "    with Image.open(path) as image:\n"
    "        print(image.size, len(image.info.get('workflow', '')))\n"
)


@pytest.fixture(scope="module")
def roomy_store(tmp_path_factory: pytest.TempPathFactory, tiny_vae_folder: Path) -> Path:
    """Pictures in /png and /jpeg with a room of 16 KiB, in /plain without; long texts in /long."""
    folder = tmp_path_factory.mktemp("heads")
    store = folder / "art.lfs"
    latentfs("init", store)
    latentfs("vae", "add", store, "tiny", tiny_vae_folder, "--dtype", "float32")
    short = folder / "short"
    short.mkdir()
    for number in range(FILES):
        array = latent_array(1, 4, 32, 24, seed=number)
        metadata = {"workflow": json.dumps("x" * 700 * number)}
        write_comfyui_latent(short / f"{number:02}.latent", array, metadata=metadata)
    long = folder / "long"
    long.mkdir()
    for number in range(3):
        array = latent_array(1, 4, 32, 24, seed=number)
        metadata = {"workflow": json.dumps(LONG_TEXT + str(number))}
        write_comfyui_latent(long / f"{number}.latent", array, metadata=metadata)
    room = ("--vae", "tiny", "--head-room", "16K")
    latentfs("import", store, short, "--to", "/png", *room)
    latentfs("import", store, short, "--to", "/jpeg", "--format", "jpeg", *room)
    latentfs("import", store, long, "--to", "/long", *room)
    latentfs("import", store, short, "--to", "/plain", "--vae", "tiny")
    return store


@pytest.fixture
def roomy(roomy_store: Path, tmp_path: Path) -> Iterator[Mount]:
    """With prefetch, as it is for users."""
    copy = tmp_path / "art.lfs"
    shutil.copytree(roomy_store, copy, ignore=shutil.ignore_patterns("*.sock", "lock.mdb"))
    with mounted(copy, tmp_path / "mnt") as mount:
        yield mount


def run(*command: object) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


def renders(mount: Mount) -> int:
    """All there were, and those that go on."""
    status = mount.status()
    assert status["renders_failed_total"] == 0
    return int(
        status["renders_total"] + status["renders_in_flight"] + status["renders_prefetched_total"]
    )


def assert_whole(folder: Path, suffix: str) -> None:
    """The files are what a reader from front to back gets, in any way of reading."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        assert len(data) == path.stat().st_size
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert image.size == (192, 256)
            assert image.format == {"png": "PNG", "jpg": "JPEG"}[suffix]
        with path.open("rb") as file:
            assert os.pread(file.fileno(), 5000, 3) == data[3:5003]


LOOKS = {
    "Pillow": [sys.executable, "-c", ONLY_LOOKS],
    "file": ["file", "-b", "-P", "bytes=16384"],
    "exiftool": ["exiftool", "-fast2", "-ImageSize"],
    "identify": ["identify", "-ping"],
    "head": ["head", "-q", "-c", "4096"],
}


def needed(program: str) -> None:
    if shutil.which(LOOKS[program][0]) is None:
        pytest.skip(f"there is no {program} here")


@pytest.mark.parametrize("program", LOOKS)
@pytest.mark.parametrize("folder", ["png", "jpeg"])
def test_a_look_at_a_folder_starts_no_render(roomy: Mount, folder: str, program: str) -> None:
    needed(program)
    paths = sorted((roomy.path / folder).iterdir())
    assert len(paths) == FILES
    command = [word.encode() for word in LOOKS[program]] + [os.fsencode(path) for path in paths]
    for _ in range(2):  # what the kernel has kept, and what it asks for with a page missing
        printed = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout
        assert program == "head" or printed.count(b"192") >= FILES
    assert renders(roomy) == 0
    assert roomy.status()["heads_shown_total"] >= 2 * FILES


def test_files_are_whole_after_a_look(roomy: Mount) -> None:
    for folder, suffix in (("png", "png"), ("jpeg", "jpg"), ("long", "png")):
        run(*LOOKS["Pillow"], *sorted((roomy.path / folder).iterdir()))
        assert renders(roomy) == 0 or folder != "png"
        assert_whole(roomy.path / folder, suffix)
    status = roomy.status()
    assert status["renders_total"] >= 2 * FILES + 3
    assert status["hash_mismatches_total"] == status["errors_total"] == 0


@pytest.mark.parametrize("program", ["Pillow", "exiftool", "identify"])
def test_long_metadata_are_read_without_a_render(roomy: Mount, program: str) -> None:
    needed(program)
    paths = sorted((roomy.path / "long").iterdir())
    printed = run(*LOOKS[program], *paths)
    assert printed.count("192") >= len(paths)
    if program == "Pillow":
        assert printed.count(str(len(json.dumps(LONG_TEXT + "0")))) == len(paths)
    assert renders(roomy) == 0


def test_many_at_once_look_at_the_same_pictures(roomy: Mount) -> None:
    paths = sorted((roomy.path / "png").iterdir())
    with ThreadPoolExecutor(8) as pool:
        outputs = set(pool.map(lambda _: run(*LOOKS["Pillow"], *paths), range(8)))
    assert len(outputs) == 1
    assert renders(roomy) == 0


def test_reads_that_end_in_front_of_the_pixels_need_no_room(roomy: Mount) -> None:
    """Past the kernel's page cache and its readahead, as little as is asked for is read."""
    path = roomy.path / "plain" / "11.png"
    command = ["dd", f"if={path}", "iflag=direct", "bs=4096", "count=1", "status=none"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(data) == 4096
    assert renders(roomy) == 0
    assert roomy.status()["head_reads_total"] == 1
    assert path.read_bytes()[:4096] == data


def test_a_look_while_another_reads_waits_for_nobody(roomy: Mount) -> None:
    """The page that a stopped renderer keeps a reader waiting for is not in the way of the head."""
    path = roomy.path / "png" / "03.png"
    renderer = roomy.wait_for_renderer()
    os.kill(renderer, 19)
    try:
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(path.read_bytes)
            for _ in range(5):
                assert "(192, 256)" in run(*LOOKS["Pillow"], path)
            os.kill(renderer, 18)
            assert len(reading.result(30)) == path.stat().st_size
    finally:
        os.kill(renderer, 18)


def test_copies_are_whole_after_a_look(roomy: Mount, tmp_path: Path) -> None:
    run(*LOOKS["Pillow"], *sorted((roomy.path / "png").iterdir()))
    run("cp", "-a", roomy.path / "png", tmp_path / "copied")
    if shutil.which("rsync") is not None:
        run("rsync", "-a", "--checksum", f"{roomy.path / 'png'}/", tmp_path / "copied")
    latentfs("export", roomy.store, "/png", tmp_path / "exported")
    for path in sorted((tmp_path / "copied").iterdir()):
        digests = {
            hashlib.sha256(other.read_bytes()).hexdigest()
            for other in (path, roomy.path / "png" / path.name)
        }
        assert len(digests) == 1
        assert path.stat().st_size == (roomy.path / "png" / path.name).stat().st_size


def test_the_head_of_a_picture_that_was_written_into_is_what_was_written(roomy: Mount) -> None:
    path = roomy.path / "png" / "05.png"
    data = bytearray(path.read_bytes())
    run(*LOOKS["Pillow"], path)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"written")
    data[100:107] = b"written"
    assert path.read_bytes() == bytes(data)
    with path.open("rb") as file:
        assert file.read(200) == bytes(data[:200])


def test_a_room_makes_another_picture_of_the_same_latent(roomy_store: Path, tmp_path: Path) -> None:
    latents = roomy_store.parent / "short"
    again = ("import", roomy_store, latents / "01.latent", "--vae", "tiny", "--to", "/png")
    assert "1 already there" in latentfs(*again, "--head-room", "16K").stdout
    assert "1 refused" in latentfs(*again, check=False).stdout
    wrong = latentfs(*again, "--head-room", "5000", check=False)
    assert wrong.returncode == 2
    assert "multiple of 4K" in wrong.stderr
