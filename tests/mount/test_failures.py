"""A bad file or a broken renderer is an error on that file, within a deadline, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import pytest
from mounts import Mount, latentfs, mounted, stop_process, wait_until

from latentfs.store import tables


def corrupt_payload(store: Path, payload: int) -> None:
    """Flip a bit in the middle of a payload."""
    with lmdb.open(str(store / "lmdb"), max_dbs=8, map_size=1 << 40) as env:
        payloads = env.open_db(b"payloads")
        with env.begin(write=True, db=payloads) as txn:
            key = tables.payload_key(payload, 0)
            data = bytearray(txn.get(key) or b"")
            data[len(data) // 2] ^= 0x10
            txn.put(key, bytes(data))


def test_a_corrupt_payload_is_eio_on_its_file_alone(store: Path, tmp_path: Path) -> None:
    corrupt_payload(store, 1)
    with mounted(store, tmp_path / "mnt") as mount:
        failed = []
        for path in sorted((mount.path / "pictures").iterdir()):
            try:
                assert len(path.read_bytes()) == path.stat().st_size
            except OSError as error:
                failed.append((path.name, error.errno))
        assert [number for _, number in failed] == [errno.EIO]
        assert "payload" in mount.log
        assert mount.status()["errors_total"] >= 1
    done = latentfs("fsck", store, check=False)
    assert done.returncode == 1
    assert failed[0][0] in done.stderr


def test_weights_that_changed_are_refused(store: Path, tmp_path: Path) -> None:
    (weights,) = (store / "vae").glob("*/*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with mounted(store, tmp_path / "mnt") as mount:
        with pytest.raises(OSError, match="Input/output"):
            (mount.path / "pictures" / "000.png").read_bytes()
        assert "is not what was added" in mount.log
        assert len(os.listdir(mount.path / "pictures")) == 100


def test_no_vae_folder_at_all(store: Path, tmp_path: Path) -> None:
    shutil.rmtree(store / "vae")
    with mounted(store, tmp_path / "mnt") as mount:
        with pytest.raises(OSError, match="Input/output"):
            (mount.path / "pictures" / "000.png").read_bytes()
        assert (mount.path / "pictures" / "000.png").stat().st_size > 0


def test_a_killed_renderer_is_replaced_and_the_read_succeeds(mount: Mount) -> None:
    renderer = mount.wait_for_renderer()
    stop_process(renderer)
    with ThreadPoolExecutor(4) as pool:
        paths = [mount.path / "pictures" / f"{n:03}.png" for n in range(4)]
        reads = [pool.submit(path.read_bytes) for path in paths]
        wait_until(lambda: mount.status()["renders_in_flight"] == 4, "reads wait")
        os.kill(renderer, signal.SIGKILL)
        assert [len(read.result()) for read in reads] == [path.stat().st_size for path in paths]
    assert mount.status()["renderer_restarts_total"] == 1


@contextlib.contextmanager
def all_renderers_hung(mount: Mount) -> Iterator[None]:
    """Stop the renderer, and those that replace it as soon as they are there."""
    for pid in mount.renderer_pids():
        stop_process(pid)
    is_over = threading.Event()

    def stop_renderers() -> None:
        while not is_over.wait(0.02):
            for pid in mount.renderer_pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)

    stopping = threading.Thread(target=stop_renderers)
    stopping.start()
    try:
        yield
    finally:
        is_over.set()
        stopping.join()
        for pid in mount.renderer_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_hung_renderers_cost_a_deadline_not_the_mount(store: Path, tmp_path: Path) -> None:
    with mounted(store, tmp_path / "mnt", "--render-timeout", "6") as mount:
        renderer = mount.wait_for_renderer()
        cached = mount.path / "pictures" / "001.png"
        size_bytes = len(cached.read_bytes())
        with all_renderers_hung(mount):
            start_s = time.monotonic()
            with pytest.raises(OSError, match="Input/output") as error:
                (mount.path / "pictures" / "000.png").read_bytes()
            assert error.value.errno == errno.EIO
            assert 5.5 < time.monotonic() - start_s < 11, "one deadline, not two"
            assert len(cached.read_bytes()) == size_bytes
            assert len(os.listdir(mount.path / "pictures")) == 100
            wait_until(lambda: renderer not in mount.renderer_pids(), "the hung one is killed")
        mount.wait_for_renderer()
        assert len((mount.path / "pictures" / "002.png").read_bytes()) > 1000
        status = mount.status()
        assert status["render_timeouts_total"] >= 1
        assert status["renderer_restarts_total"] >= 1


def test_a_hung_renderer_is_replaced_and_the_read_succeeds(store: Path, tmp_path: Path) -> None:
    with mounted(store, tmp_path / "mnt", "--render-timeout", "120") as mount:
        renderer = mount.wait_for_renderer()
        stop_process(renderer)
        path = mount.path / "pictures" / "000.png"
        assert len(path.read_bytes()) == path.stat().st_size
        assert renderer not in mount.renderer_pids()
        assert mount.status()["renderer_restarts_total"] == 1


def test_a_reader_that_goes_away_leaves_the_render_to_others(mount: Mount) -> None:
    renderer = mount.wait_for_renderer()
    stop_process(renderer)
    path = mount.path / "pictures" / "000.png"
    child = os.fork()
    if child == 0:
        path.read_bytes()
        os._exit(0)
    wait_until(lambda: mount.status()["renders_in_flight"] == 1, "the child reads")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.kill(renderer, signal.SIGCONT)
    assert len(path.read_bytes()) == path.stat().st_size
    assert mount.status()["renders_total"] == 1


def test_garbage_on_the_control_socket_is_harmless(mount: Mount) -> None:
    import socket

    for garbage in (b"\xff\x00", b"[1]", b'{"command": 7}', b""):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(mount.store / "control.sock"))
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(100)
    assert mount.full_status()["mounted"]
