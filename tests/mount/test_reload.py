"""What a mount does when it is told to read its settings anew."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import Mount, mounted, wait_until


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "art.toml"
    path.write_text('cache = "64M"\npixel_share = 0.5\n')
    return path


@pytest.fixture
def mount(store: Path, tmp_path: Path, settings_file: Path) -> Iterator[Mount]:
    with mounted(store, tmp_path / "mnt", "--config", str(settings_file)) as mount:
        yield mount


def test_it_takes_what_can_change_while_it_is_mounted(mount: Mount, settings_file: Path) -> None:
    assert mount.status()["cache"]["budget_bytes"] == 64 << 20
    settings_file.write_text('cache = "32M"\nrender_timeout = "7s"\nprefetch = 0\nslow_read = 0\n')
    mount.process.send_signal(signal.SIGHUP)

    def is_taken() -> bool:
        cache = mount.status()["cache"]
        return bool(cache["budget_bytes"] == 32 << 20 and cache["pixel_share"] is None)

    wait_until(is_taken, "the cache has its new size")
    for line in (
        "cache is 33554432 now, and was 67108864",
        "pixel_share is None now, and was 0.5",
        "render_timeout is 7.0 now, and was 60.0",
        "prefetch is 0 now, and was 8",
        "slow_read is 0.0 now, and was 5.0",
    ):
        assert line in mount.log
    assert (mount.path / "pictures" / "000.png").read_bytes()[:4] == b"\x89PNG"


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
