"""An import that is killed leaves whole pictures and nothing else; repeated, it completes."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from latent_files import latent_array, write_comfyui_latent
from store_contents import problems

from latentfs.latents.source import read_latent_file
from latentfs.store.store import Store

ROUNDS = 3  # unless --crash-rounds says otherwise
PICTURES = 500
POLL_S = 0.01
START_S = 60


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for number in range(PICTURES):
        array = latent_array(1, 4, 3, 3 + number % 3, seed=number)
        metadata = {"prompt": f'{{"seed": {number}}}', "workflow": "{}"}
        write_comfyui_latent(folder / f"{number:03}.latent", array, metadata=metadata)
    return folder


@pytest.fixture(scope="module")
def digests(sources):
    return {
        f"{path.stem}.png".encode(): read_latent_file(path).latents[0].digest()
        for path in sources.iterdir()
    }


@pytest.fixture
def start_import(sources):
    processes = []

    def start(store_path):
        command = [sys.executable, "-m", "latentfs", "import", store_path, sources, "--vae", "tiny"]
        process = subprocess.Popen(
            [*command, "--to", "/in"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_files(store_path, count, process):
    """Wait until the store has *count* files, or the import has ended."""
    with Store.open(store_path) as store:
        deadline_s = time.monotonic() + START_S
        while store.statistics().totals.files < count and process.poll() is None:
            assert time.monotonic() < deadline_s
            time.sleep(POLL_S)


def wait_for_the_end_of_all(process):
    """Wait until the import's renderer has gone too."""
    process.communicate(timeout=START_S)
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(POLL_S)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError("the renderer has outlived its import")


def check_whole(store_path, digests):
    """Check that every picture in the store is whole, and one of those imported."""
    with Store.open(store_path) as store, store.read() as snapshot:
        assert problems(store) == []
        folder = snapshot.resolve("/in")
        if folder is None:
            assert snapshot.totals().files == 0
            return 0
        names = [name for name, _ in snapshot.entries(folder[0])]
        assert snapshot.totals().files == snapshot.totals().payloads == len(names)
        for name, ino in snapshot.entries(folder[0]):
            inode = snapshot.inode(ino)
            assert inode is not None
            assert inode.content is not None
            assert inode.size_bytes > 0
            assert len(inode.content.chunks) == 2
            header = snapshot.payload_header(inode.content.payload)
            assert header is not None
            assert header.digest == digests[name]
        return len(names)


def test_killed_at_random_moments(new_store, tmp_path, start_import, digests, request):
    seed = random.randrange(1 << 32)
    print(f"random seed {seed}")
    chance = random.Random(seed)
    store_path, before = new_store(tmp_path / "0.lfs"), 0
    for number in range(1, (request.config.getoption("--crash-rounds") or ROUNDS) + 1):
        process = start_import(store_path)
        wait_for_files(store_path, chance.randint(before, PICTURES - 1), process)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        wait_for_the_end_of_all(process)
        whole = check_whole(store_path, digests)
        assert whole >= before
        before = whole
        if whole == PICTURES:
            store_path, before = new_store(tmp_path / f"{number}.lfs"), 0

    process = start_import(store_path)
    stdout, stderr = process.communicate(timeout=START_S * 2)
    assert process.returncode == 0, stderr
    assert stdout.startswith(f"{PICTURES - before} added")
    assert f"{before} already there, 0 refused" in stdout
    assert check_whole(store_path, digests) == PICTURES


def test_interrupted(new_store, tmp_path, start_import, digests):
    store_path = new_store(tmp_path / "art.lfs")
    process = start_import(store_path)
    wait_for_files(store_path, 1, process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=START_S)
    assert process.returncode == 130, stderr
    assert stderr.splitlines()[-1] == "latentfs: interrupted"
    assert "Traceback" not in stderr
    wait_for_the_end_of_all(process)
    whole = check_whole(store_path, digests)
    assert 1 <= whole < PICTURES
    assert stdout.startswith(f"{whole} added")
