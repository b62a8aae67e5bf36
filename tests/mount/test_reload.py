"""What a mount does when it is told to read its settings anew."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from mounts import Mount, mounted, stop_process, wait_until

from latentfs.fs.control import ask_daemon


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "art.toml"
    path.write_text('cache = "64M"\npixel_share = 0.5\n')
    return path


@pytest.fixture
def mount(store: Path, tmp_path: Path, settings_file: Path) -> Iterator[Mount]:
    with mounted(store, tmp_path / "mnt", "--config", str(settings_file)) as mount:
        yield mount


BEFORE = """
cache = "64M"
pixel_share = 0.5
slow_read = "1ms"
log_level = "debug"
mount_options = ["noexec"]
"""
AFTER = """
cache = "32M"
render_timeout = "70s"
prefetch = 0
slow_read = 0
log_level = "warning"
mount_options = ["noexec"]
"""


def test_it_takes_what_can_change_while_it_is_mounted(
    store: Path, tmp_path: Path, settings_file: Path
) -> None:
    settings_file.write_text(BEFORE)
    arguments = ("--config", str(settings_file), "-o", "dev")
    with mounted(store, tmp_path / "mnt", *arguments, flags=()) as mount:
        assert mount.status()["cache"]["budget_bytes"] == 64 << 20
        assert {"noexec", "nosuid"} <= options_of(mount)
        assert ("nodev" in options_of(mount)) == (os.geteuid() != 0)
        mount.wait_for_renderer()
        first = did(mount, from_number=10)
        assert first.prefetched > 0
        assert first.slow_read_lines > 0
        assert first.debug_lines > 0

        settings_file.write_text(AFTER)
        mount.process.send_signal(signal.SIGHUP)

        def is_taken() -> bool:
            cache = mount.status()["cache"]
            return bool(cache["budget_bytes"] == 32 << 20 and cache["pixel_share"] is None)

        wait_until(is_taken, "the cache has its new size")
        for line in (
            "cache is 33554432 now, and was 67108864",
            "pixel_share is None now, and was 0.5",
            "render_timeout is 70.0 now, and was 60.0",
            "prefetch is 0 now, and was 8",
            "slow_read is 0.0 now, and was 0.001",
        ):
            assert line in mount.log
        assert did(mount, from_number=40) == Did(0, 0, 0)

        shorter = AFTER.replace("70s", "100ms").replace("warning", "info")
        settings_file.write_text(shorter)
        mount.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "log_level is info now" in mount.log, "the file is read")
        stop_process(mount.wait_for_renderer())  # the daemon replaces it then
        with pytest.raises(OSError, match="Input/output error"):
            (mount.path / "pictures/060.png").read_bytes()
        assert mount.status()["render_timeouts_total"] > 0
        wait_until(lambda: mount.status()["renderer_restarts_total"] > 0, "it is replaced")


class Did(NamedTuple):
    """What reading in order, and a change that is refused, made a mount do."""

    prefetched: int
    slow_read_lines: int
    debug_lines: int


def did(mount: Mount, *, from_number: int) -> Did:
    def now() -> Did:
        log = mount.log
        prefetched = mount.status()["renders_prefetched_total"]
        return Did(prefetched, log.count("slow read: "), log.count(": DEBUG: "))

    wait_until(lambda: mount.status()["renders_in_flight"] == 0, "nothing is rendered")
    before = now()
    for number in range(from_number, from_number + 5):
        (mount.path / f"pictures/{number:03}.png").read_bytes()
    with pytest.raises(OSError, match="not empty"):
        (mount.path / "pictures").rmdir()
    return Did(*(after - value for after, value in zip(now(), before, strict=True)))


def options_of(mount: Mount) -> set[str]:
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    (line,) = (line for line in mounts if line.split()[4] == str(mount.path))
    return set(line.split()[5].split(","))


def test_what_can_not_change_stays_and_the_log_says_so(mount: Mount, settings_file: Path) -> None:
    settings_file.write_text('cache = "64M"\npixel_share = 0.5\ndevice = "cuda"\n')
    mount.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "device stays auto" in mount.log, "it is said")
    assert "now, and was" not in mount.log


@pytest.mark.parametrize("text", ['cahce = "1G"', 'cache = "many"', "cache = "])
def test_a_wrong_file_changes_nothing(mount: Mount, settings_file: Path, text: str) -> None:
    settings_file.write_text(text)
    mount.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "the settings stay as they are" in mount.log, "it is said")
    assert mount.status()["cache"]["budget_bytes"] == 64 << 20


def test_the_command_line_goes_before_the_file_after_a_reload_too(
    store: Path, tmp_path: Path, settings_file: Path
) -> None:
    arguments = ("--config", str(settings_file), "--cache", "16M")
    with mounted(store, tmp_path / "mnt", *arguments) as mount:
        settings_file.write_text('cache = "32M"\nprefetch = 2\n')
        mount.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "prefetch is 2 now" in mount.log, "the file is read")
        assert mount.status()["cache"]["budget_bytes"] == 16 << 20


@pytest.mark.parametrize("name", ["art.toml", "art.log"])
def test_a_file_that_hangs_holds_up_neither_the_mount_nor_its_end(
    store: Path, tmp_path: Path, settings_file: Path, name: str
) -> None:
    options = ("--config", str(settings_file), "--log", str(tmp_path / "art.log"))
    with started(store, tmp_path / "mnt", *options) as process:
        hanging = tmp_path / name
        hanging.rename(tmp_path / "before")
        os.mkfifo(hanging)
        process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert ask_daemon(store, "status") is not None
        process.terminate()
        assert process.wait(timeout=10) == 0


@contextlib.contextmanager
def started(store: Path, path: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon that logs elsewhere than to standard error, on a mount that is ready."""
    path.mkdir()
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-m", "latentfs", "mount", "--ready-fd", str(write_fd)]
    process = subprocess.Popen([*command, str(store), str(path), *arguments], pass_fds=[write_fd])
    os.close(write_fd)
    try:
        with open(read_fd, "rb", buffering=0) as told:
            assert told.read(1) == b"1"
        yield process
    finally:
        process.kill()
        process.wait()
        subprocess.run(["fusermount3", "-uz", str(path)], capture_output=True, check=False)
