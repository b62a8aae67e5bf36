"""Mounting, unmounting, what is told of files, and what other processes change meanwhile."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from latent_files import latent_array, write_comfyui_latent
from mounts import Mount, latentfs, mounted, stop_process, wait_until

from latentfs.fs.mountpoint import find_mount
from latentfs.fs.tuning import CONGESTION_THRESHOLD, MAX_BACKGROUND, READ_AHEAD_KIB
from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.store import Store
from latentfs.store.writer_lock import WriterLock


def test_extended_attributes(mount: Mount) -> None:
    path = mount.path / "pictures" / "000.png"
    values = {
        "kind": "latent",
        "vae": "tiny",
        "dtype": "float32",
        "latent_shape": "4x16x16",
        "latent_dtype": "float32",
        "codec": "pco",
        "source": "000.latent",
    }
    for name, value in values.items():
        assert os.getxattr(path, f"user.latentfs.{name}").decode() == value
    assert len(os.getxattr(path, "user.latentfs.recipe")) == 32
    assert 500 < int(os.getxattr(path, "user.latentfs.stored_bytes")) < 5000
    with pytest.raises(OSError, match="No data") as unknown:
        os.getxattr(path, "user.other")
    assert unknown.value.errno == errno.ENODATA
    with pytest.raises(OSError, match="not supported"):
        os.getxattr(path, "security.selinux")
    for listed in (path, mount.path / "pictures"):
        assert os.listxattr(listed) == []
    assert mount.status()["renders_total"] == 0


def test_with_ro_nothing_can_be_changed(pictures_store: Path, tmp_path: Path) -> None:
    with mounted(pictures_store, tmp_path / "mnt", "-o", "ro") as mount:
        path = mount.path / "pictures" / "000.png"
        for change in (
            lambda: path.write_bytes(b""),
            lambda: path.unlink(),
            lambda: path.rename(mount.path / "other"),
            lambda: (mount.path / "new").mkdir(),
            lambda: path.chmod(0o600),
            lambda: os.setxattr(path, "user.x", b"1"),
        ):
            with pytest.raises(OSError, match="Read-only") as error:
                change()
            assert error.value.errno == errno.EROFS
        assert path.read_bytes().startswith(b"\x89PNG")


def test_names_that_are_not_there(mount: Mount) -> None:
    for name in ("nothing", "pictures/nothing.png", "pictures/" + "n" * 255):
        assert not (mount.path / name).exists()
    with pytest.raises(OSError, match="too long"):
        (mount.path / ("n" * 256)).stat()
    with pytest.raises(NotADirectoryError):
        (mount.path / "pictures" / "000.png" / "x").stat()
    with pytest.raises(IsADirectoryError):
        (mount.path / "pictures").read_bytes()


def test_dot_entries_and_link_counts(mount: Mount) -> None:
    listing = subprocess.run(
        ["ls", "-ai", mount.path / "pictures"], capture_output=True, text=True, check=True
    ).stdout.split()
    entries = dict(zip(listing[1::2], map(int, listing[::2]), strict=True))
    assert entries["."] == (mount.path / "pictures").stat().st_ino
    assert mount.path.stat().st_nlink == 4


def test_statfs(mount: Mount) -> None:
    of_mount, of_disk = os.statvfs(mount.path), os.statvfs(mount.store)
    assert of_mount.f_files - of_mount.f_ffree == 102 + 3
    assert of_mount.f_ffree > 1000
    assert of_mount.f_namemax == 255
    assert of_mount.f_frsize * of_mount.f_blocks == of_disk.f_frsize * of_disk.f_blocks


def test_a_size_limit_is_a_quota(store: Path, tmp_path: Path) -> None:
    with mounted(store, tmp_path / "mnt", "--size-limit", "4M") as mount:
        space = os.statvfs(mount.path)
        assert space.f_frsize * space.f_blocks == 4 << 20
        with pytest.raises(OSError, match="quota") as error:
            (mount.path / "large").write_bytes(os.urandom(5 << 20))
        assert error.value.errno == errno.EDQUOT
        assert (mount.path / "pictures" / "000.png").read_bytes()
        (mount.path / "large").unlink()
        os.fsync(os.open(mount.path, os.O_RDONLY))

        def fits() -> bool:
            try:
                (mount.path / "small").write_bytes(os.urandom(1 << 20))
            except OSError:
                return False
            return True

        wait_until(fits, "what was removed makes room")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may tune a mount")
def test_the_kernel_is_tuned(mount: Mount) -> None:
    entry = find_mount(mount.path)
    assert entry is not None
    connection = Path("/sys/fs/fuse/connections") / entry.device.partition(":")[2]
    assert int((connection / "max_background").read_text()) == MAX_BACKGROUND
    assert int((connection / "congestion_threshold").read_text()) == CONGESTION_THRESHOLD
    read_ahead = Path("/sys/class/bdi") / entry.device / "read_ahead_kb"
    assert int(read_ahead.read_text()) == READ_AHEAD_KIB


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_other_users_may_read(store: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    with mounted(store, tmp_path / "mnt") as mount:
        path = mount.path / "pictures" / "000.png"
        done = subprocess.run(["cat", path], capture_output=True, user=65534, check=True)
        assert len(done.stdout) == path.stat().st_size
    with mounted(store, tmp_path / "own", "-o", "noallow_other") as mount:
        path = mount.path / "pictures" / "000.png"
        assert subprocess.run(["cat", path], capture_output=True, user=65534).returncode != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(mount: Mount, number: signal.Signals) -> None:
    (mount.path / "pictures" / "000.png").read_bytes()
    assert mount.end(number) == 0, mount.log
    assert find_mount(mount.path) is None
    assert not (mount.store / "control.sock").exists()


def test_a_signal_ends_it_while_a_read_waits(mount: Mount) -> None:
    stop_process(mount.wait_for_renderer())
    errors: list[OSError] = []

    def read() -> None:
        try:
            (mount.path / "pictures" / "000.png").read_bytes()
        except OSError as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: mount.status()["renders_in_flight"] == 1, "the read waits")
    assert mount.end() == 0, mount.log
    reader.join(timeout=30)
    # The kernel asks again when its readahead fails, and may then find nobody there.
    assert len(errors) == 1
    assert errors[0].errno in (errno.EIO, errno.ENOTCONN)


def test_a_signal_leaves_a_renderer_time_to_finish_what_it_has(mount: Mount) -> None:
    path = mount.path / "pictures" / "000.png"
    size_bytes = path.stat().st_size
    renderer = mount.wait_for_renderer()
    stop_process(renderer)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    wait_until(lambda: mount.status()["renders_in_flight"] == 1, "the renderer has it")
    mount.process.terminate()
    wait_until(lambda: "unmounting" in mount.log, "the daemon has seen the signal")
    os.kill(renderer, signal.SIGCONT)
    assert mount.process.wait(timeout=30) == 0, mount.log
    reader.join(timeout=30)
    assert [len(data) for data in read] == [size_bytes]


def test_a_second_signal_ends_it_at_once(mount: Mount) -> None:
    stop_process(mount.wait_for_renderer())
    reader = threading.Thread(target=_read_anyway, args=[mount.path / "pictures" / "000.png"])
    reader.start()
    wait_until(lambda: mount.status()["renders_in_flight"] == 1, "the renderer has it")
    signalled_s = time.monotonic()
    mount.process.terminate()
    wait_until(lambda: "unmounting" in mount.log, "the daemon has seen the signal")
    assert mount.end() == 0, mount.log
    assert time.monotonic() - signalled_s < 2
    reader.join(timeout=30)


def _read_anyway(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.read_bytes()


def test_a_signal_ends_it_while_another_process_changes_the_store(mount: Mount) -> None:
    orphan = os.open(mount.path / "orphan", os.O_RDWR | os.O_CREAT)
    (mount.path / "orphan").unlink()
    os.fsync(orphan)
    refused: list[int | None] = []

    def write() -> None:
        try:
            (mount.path / "new").write_bytes(b"x")
        except OSError as error:
            refused.append(error.errno)

    writer = threading.Thread(target=write)
    with _changed_elsewhere(mount.store):
        writer.start()
        time.sleep(0.5)
        signalled_s = time.monotonic()
        assert mount.end() == 0, mount.log
        assert time.monotonic() - signalled_s < 5
        writer.join(timeout=30)
    assert refused == [errno.ESHUTDOWN]
    assert "left to the next mount" in mount.log
    with contextlib.suppress(OSError):
        os.close(orphan)


def test_a_signal_ends_a_mount_that_is_still_opening_its_store(store: Path, tmp_path: Path) -> None:
    with mounted(store, tmp_path / "killed") as killed:
        orphan = os.open(killed.path / "orphan", os.O_RDWR | os.O_CREAT)
        (killed.path / "orphan").unlink()
        os.fsync(orphan)
        killed.process.kill()
        killed.process.wait()
        with contextlib.suppress(OSError):
            os.close(orphan)
    (tmp_path / "mnt").mkdir()
    with _changed_elsewhere(store):
        process = subprocess.Popen(
            [sys.executable, "-m", "latentfs", "mount", store, tmp_path / "mnt"]
        )
        wait_until(DaemonLock(store).held_elsewhere, "it opens the store")
        time.sleep(1)
        process.terminate()
        assert process.wait(timeout=5) == 0
    assert find_mount(tmp_path / "mnt") is None


@contextlib.contextmanager
def _changed_elsewhere(store: Path) -> Iterator[None]:
    """Another process changes the store while the block runs."""
    lock = WriterLock(store)
    wait_until(lock.try_acquire, "the mount has given the lock back")
    try:
        yield
    finally:
        lock.release()


def test_umount_returns_when_the_daemon_has_ended(mount: Mount) -> None:
    latentfs("umount", mount.path)
    assert mount.process.wait(timeout=5) == 0, mount.log
    assert "nothing is mounted" in latentfs("umount", mount.path, check=False).stderr


def test_umount_of_a_mount_in_use_says_so(mount: Mount) -> None:
    with (mount.path / "pictures" / "000.png").open("rb"):
        done = latentfs("umount", mount.path, check=False)
        assert done.returncode == 1
        assert "busy" in done.stderr
    assert mount.process.poll() is None


def test_a_stale_mount_is_replaced(store: Path, tmp_path: Path) -> None:
    with mounted(store, tmp_path / "mnt") as killed:
        killed.process.kill()
        killed.process.wait()
        with pytest.raises(OSError, match="not connected"):
            (tmp_path / "mnt" / "pictures").stat()
        with mounted(store, tmp_path / "mnt") as mount:
            assert len(os.listdir(mount.path / "pictures")) == 100
            assert len((mount.path / "pictures" / "000.png").read_bytes()) > 1000


def test_a_mount_that_is_aborted_is_taken_away_and_the_daemon_fails(mount: Mount) -> None:
    """As by ``umount -f``, which leaves it dead, and in place while a file is open."""
    if os.geteuid() != 0:
        pytest.skip("only root may abort a connection")
    connection = os.minor(mount.path.stat().st_dev)
    fd = os.open(mount.path / "pictures" / "000.png", os.O_RDONLY)
    Path(f"/sys/fs/fuse/connections/{connection}/abort").write_text("1")
    assert mount.process.wait(timeout=30) == 1
    assert f"the connection to {mount.path} was aborted" in mount.log
    assert os.listdir(mount.path) == []
    with contextlib.suppress(OSError):
        os.close(fd)


def test_a_store_and_a_mount_point_may_have_any_name(pictures_store: Path, tmp_path: Path) -> None:
    names = ("josé, ❄ 雪.lfs", "blanks\n\udcff # and more")
    store, path = (tmp_path / name for name in names)
    shutil.copytree(pictures_store, store, ignore=shutil.ignore_patterns("*.sock", "lock.mdb"))
    with mounted(store, path) as mount:
        assert len(os.listdir(mount.path / "pictures")) == 100
        mountpoint = mount.full_status()["mountpoint"]
        assert mountpoint == str(path)
        assert latentfs("umount", path).returncode == 0
        assert mount.process.wait(timeout=30) == 0


def test_a_store_is_mounted_once(mount: Mount, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    done = latentfs("mount", mount.store, tmp_path / "second", check=False)
    assert done.returncode == 1
    assert f"mounted on {mount.path}" in done.stderr
    assert len(os.listdir(mount.path / "pictures")) == 100


@pytest.mark.parametrize(
    ("place", "message"), [("missing", "does not exist"), ("file", "is not a directory")]
)
def test_bad_mount_points(store: Path, tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    done = latentfs("mount", store, tmp_path / place, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr


@pytest.mark.parametrize(
    ("flag", "value"), [("--log", "{}/log"), ("--metrics", "unix:{}/metrics"), ("--config", "{}/c")]
)
def test_what_the_daemon_uses_may_not_be_in_the_mount(
    store: Path, tmp_path: Path, flag: str, value: str
) -> None:
    path = tmp_path / "mnt"
    path.mkdir()
    (path / "c").write_text("prefetch = 0\n")
    done = latentfs("mount", store, path, flag, value.format(path), check=False)
    assert done.returncode == 1
    assert "would be hidden by the mount" in done.stderr
    assert os.listdir(path) == ["c"]


def test_no_command_waits_for_a_daemon_that_hangs(
    mount: Mount, pictures_store: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "art.toml"
    settings.write_text(f'mountpoint = "{mount.path}"\n')
    stop_process(mount.process.pid)
    try:
        commands: dict[tuple[object, ...], str] = {
            ("umount", "--stale", mount.path): "",
            ("umount", "--stale", "--config", settings): "",
            ("status", mount.path): "",
            ("top", mount.path): "does not answer",
            ("mount", pictures_store, mount.path): "is mounted on",
            (pictures_store, mount.path): "is mounted on",
        }
        for arguments, said in commands.items():
            command = [sys.executable, "-m", "latentfs", *map(str, arguments)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            assert said in done.stderr, arguments
        assert find_mount(mount.path) is not None
    finally:
        mount.process.send_signal(signal.SIGCONT)
    assert len(os.listdir(mount.path / "pictures")) == 100


def test_a_live_mount_point_is_not_taken_over(mount: Mount, pictures_store: Path) -> None:
    done = latentfs("mount", pictures_store, mount.path, check=False)
    assert done.returncode == 1
    assert "already" in done.stderr
    assert len(os.listdir(mount.path / "pictures")) == 100


def test_unknown_mount_options(store: Path, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    done = latentfs("mount", store, tmp_path / "mnt", "-o", "ro,colour=blue", check=False)
    assert done.returncode == 1
    assert "colour=blue" in done.stderr


def answer_of_following(link: Path) -> int | None:
    try:
        link.read_bytes()
    except OSError as error:
        return error.errno
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may have the kernel refuse links")
def test_with_nosymfollow_links_can_be_read_but_lead_nowhere(store: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("outside")
    for option, answer in (("symfollow", None), ("nosymfollow", errno.ELOOP)):
        with mounted(store, tmp_path / "mnt", "-o", option) as mount:
            link, folder = mount.path / option, mount.path / f"{option}-folder"
            link.symlink_to(tmp_path / "text")
            folder.symlink_to("pictures")
            assert answer_of_following(link) == answer
            assert answer_of_following(folder / "000.png") == answer
            assert link.readlink() == tmp_path / "text"
            assert {option, folder.name} < set(os.listdir(mount.path))
            assert (mount.path / "pictures" / "000.png").read_bytes()


def test_an_import_beside_the_mount_shows(mount: Mount, tmp_path: Path) -> None:
    path = mount.path / "pictures" / "000.png"
    before = path.read_bytes()
    inode = path.stat().st_ino
    latent = write_comfyui_latent(tmp_path / "000.latent", latent_array(1, 4, 24, 24, seed=500))
    latentfs("import", mount.store, latent, "--vae", "tiny", "--to", "/new/folder")
    wait_until((mount.path / "new" / "folder" / "000.png").exists, "it shows", timeout_s=2)

    command = ["import", mount.store, latent, "--vae", "tiny", "--to", "/pictures"]
    latentfs(*command, "--on-conflict", "replace")
    wait_until(lambda: path.stat().st_ino != inode, "the replaced one shows", timeout_s=2)
    after = path.read_bytes()
    assert len(after) == path.stat().st_size
    assert after == (mount.path / "new" / "folder" / "000.png").read_bytes()
    assert after != before


def test_whoever_has_a_picture_open_reads_it_to_its_end_though_an_import_replaces_it(
    mount: Mount, tmp_path: Path
) -> None:
    path = mount.path / "pictures" / "001.png"
    latent = write_comfyui_latent(tmp_path / "001.latent", latent_array(1, 4, 24, 24, seed=501))
    command = ["import", mount.store, latent, "--vae", "tiny", "--to", "/pictures"]
    with Store.open(mount.store) as store:
        with store.read() as snapshot:
            found = snapshot.resolve("/pictures/001.png")
            assert found is not None
            ino, inode = found
            assert inode.content is not None
        with path.open("rb") as file:
            latentfs(*command, "--on-conflict", "replace")
            wait_until(lambda: path.stat().st_ino != ino, "the replaced one shows", timeout_s=2)
            with store.read() as snapshot:
                assert list(snapshot.orphans()) == [ino]
            digest = hashlib.sha256(file.read()).digest()
        assert digest == inode.content.rendition_sha256

        def is_gone() -> bool:
            with store.read() as snapshot:
                return snapshot.inode(ino) is None and not list(snapshot.orphans())

        wait_until(is_gone, "nothing of it is left in the store", timeout_s=10)


def test_what_is_replaced_beside_a_read_only_mount_can_be_read_and_is_left_to_gc(
    store: Path, tmp_path: Path
) -> None:
    latent = write_comfyui_latent(tmp_path / "002.latent", latent_array(1, 4, 24, 24, seed=502))
    command = ["import", store, latent, "--vae", "tiny", "--to", "/pictures"]
    with mounted(store, tmp_path / "mnt", "-o", "ro") as mount:
        path = mount.path / "pictures" / "002.png"
        size, ino = path.stat().st_size, path.stat().st_ino
        with path.open("rb") as file:
            latentfs(*command, "--on-conflict", "replace")
            wait_until(lambda: path.stat().st_ino != ino, "the replaced one shows", timeout_s=2)
            assert len(file.read()) == size
    assert "1 file that was removed while open" in latentfs("fsck", store).stderr
    latentfs("gc", store)
    done = latentfs("fsck", store)
    assert (done.stdout, "removed" in done.stderr) == (f"{store}: no problems\n", False)


def test_status_of_a_mount_and_of_its_store_are_one(mount: Mount) -> None:
    (mount.path / "pictures" / "000.png").read_bytes()
    of_mount = mount.full_status()
    assert of_mount["mounted"]
    assert of_mount["renders_total"] == 1
    assert of_mount["reads_total"] >= 1
    assert of_mount["files"] == 102
    assert of_mount["store_bytes"] >= of_mount["payload_bytes"] > 0
    screen = latentfs("status", mount.store).stdout
    assert "1 render," in screen
    latentfs("umount", mount.path)
    assert "not mounted" in latentfs("status", mount.store).stdout
