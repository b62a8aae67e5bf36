"""bench measures a store on a mount of its own, and leaves nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from e2e.support import Batch, call, import_all, shown_error, spawn
from latent_files import latent_array, write_comfyui_latent

from latentfs.bench.stages import STAGES
from latentfs.fs.mountpoint import find_mount
from latentfs.store.daemon_lock import DaemonLock

FILES = 5

needs_fuse = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse is missing or not permitted"
)


@pytest.fixture(scope="module")
def filled(_tiny_store, tmp_path_factory):
    """A store of /pictures with five of one shape and one of another."""
    folder = tmp_path_factory.mktemp("bench")
    store = shutil.copytree(_tiny_store, folder / "store")
    (folder / "in").mkdir()
    for seed in range(FILES):
        write_comfyui_latent(
            folder / "in" / f"{seed}.latent", latent_array(1, 4, 32, 32, seed=seed)
        )
    write_comfyui_latent(folder / "in" / "small.latent", latent_array(1, 4, 4, 4, seed=0))
    import_all(store, [Batch([folder / "in"], "tiny", "/pictures")])
    return store


def left_behind(store: Path, temporary: Path) -> list[Path]:
    assert not DaemonLock(store).held_elsewhere()
    return list(temporary.iterdir())


@needs_fuse
def test_all_is_measured_by_stage(filled, tmp_path):
    options = ("--files", 4, "--readers", 2, "--rounds", 1, "--plain-environment", "--json")
    result = spawn("bench", filled, *options, environment={"TMPDIR": str(tmp_path)}).checked()
    assert left_behind(filled, tmp_path) == []
    found = json.loads(result.out)
    assert (found["pictures"], found["files"], found["rounds"]) == (FILES, 4, 1)
    assert (found["latent_shape"], found["dtype"]) == ([4, 32, 32], "float32")

    for bare in (found["bare_decode"], found["bare_decode_plain"]):
        assert 0 < bare["seconds"]["median"] <= bare["seconds"]["p95"]
        assert 0 < bare["files_per_s"]["median"] <= bare["files_per_s"]["best"]
    for reads in (found["one_reader"], found["many_readers"]):
        assert reads["files"] == 4
        assert 0 < reads["seconds"]["median"] <= reads["seconds"]["p95"]
        stages = reads["stages"]
        assert list(stages) == [*(stage for stage in STAGES if stage in stages), "total"]
        assert {"fetch", "queue", "decode", "encode", "reply"} <= set(stages)
        shares = [stages[stage]["share"] for stage in stages if stage != "total"]
        assert sum(shares) == pytest.approx(1)
        # The stages of a read add up to what its reader saw.
        assert stages["total"]["median_ms"] == pytest.approx(1000 * reads["seconds"]["median"])
        assert all(stages[stage]["median_ms"] > -1 for stage in stages)
    assert found["many_readers"]["of_bare"]["best"] > 0

    hits = found["hits_while_saturated"]
    assert hits["reads"] > 0
    assert hits["cold_renders"] > 0
    assert 0 < hits["p50_ms"] <= hits["p99_ms"] <= hits["max_ms"]
    # What goes on is told, a line each, in the order it does.
    assert result.err.splitlines()[0].startswith("4 pictures of the 5 below / with recipe ")
    assert "round 1 of 1" in result.err.splitlines()


@needs_fuse
def test_an_interrupt_leaves_nothing_mounted(filled, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "latentfs", "bench", str(filled), "--files", "2"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        end_s = time.monotonic() + 60
        while not any(find_mount(path) for path in tmp_path.iterdir()):
            assert time.monotonic() < end_s
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, err.splitlines()[-1]) == (130, "latentfs: interrupted")
    assert left_behind(filled, tmp_path) == []


@needs_fuse
def test_a_picture_that_can_not_be_rendered_ends_it(filled, tmp_path):
    store = shutil.copytree(filled, tmp_path / "store", ignore=shutil.ignore_patterns("*.sock"))
    (weights,) = store.glob("vae/*/*.safetensors")
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (tmp_path / "tmp").mkdir()
    result = spawn("bench", store, environment={"TMPDIR": str(tmp_path / "tmp")})
    assert (result.status, result.out) == (1, "")
    assert "a picture can't be read through the mount" in result.err.splitlines()[-1]
    assert weights.name in result.err.splitlines()[-1]
    assert left_behind(store, tmp_path / "tmp") == []


@needs_fuse
def test_a_mounted_store_is_not_measured(store, tmp_path):
    import_one(store, tmp_path)
    lock = DaemonLock(store)
    lock.acquire(mountpoint=tmp_path / "mnt")
    try:
        message = shown_error(call("bench", store))
    finally:
        lock.release()
    assert "is mounted already" in message
    assert "latentfs umount" in message


def test_without_pictures_there_is_nothing_to_measure(store):
    assert "has no pictures below / to measure" in shown_error(call("bench", store))
    assert "has no /none" in shown_error(call("bench", store, "--path", "/none"))


def import_one(store: Path, folder: Path) -> None:
    write_comfyui_latent(folder / "a.latent", latent_array(1, 4, 4, 4))
    import_all(store, [Batch([folder / "a.latent"], "tiny", "/")])
