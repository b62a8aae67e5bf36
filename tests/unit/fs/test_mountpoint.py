"""Mount points as /proc/self/mountinfo names them, and settings that can't be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from latentfs.errors import MountError
from latentfs.fs import mountpoint, tuning
from latentfs.fs.mountpoint import check_mountpoint, check_outside, find_mount, unmount

MOUNTINFO = """22 1 0:20 / / rw - ext4 /dev/vda rw
30 22 0:44 / /mnt/two\\040words rw,nosuid shared:7 - fuse.latentfs /srv/art\\134b.lfs ro
33 22 0:47 / /mnt/odd\u2028name\\043 rw - fuse.sshfs host: ro
31 22 0:45 / /mnt/twice rw - fuse.latentfs /first ro
32 22 0:46 / /mnt/twice rw - fuse.sshfs host: ro
"""


@pytest.fixture
def mountinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: MOUNTINFO)


@pytest.mark.usefixtures("mountinfo")
def test_find_mount_unescapes_and_takes_the_topmost() -> None:
    entry = find_mount(Path("/mnt/two words"))
    assert entry is not None
    assert (entry.device, entry.type, entry.source) == ("0:44", "fuse.latentfs", "/srv/art\\b.lfs")
    topmost = find_mount(Path("/mnt/twice/"))
    assert topmost is not None
    assert topmost.type == "fuse.sshfs"
    assert find_mount(Path("/mnt")) is None
    assert find_mount(Path("/mnt/odd\u2028name#")) is not None


@pytest.mark.usefixtures("mountinfo")
def test_only_latentfs_is_unmounted() -> None:
    with pytest.raises(MountError, match=r"fuse\.sshfs is mounted on /mnt/twice"):
        unmount(Path("/mnt/twice"))
    with pytest.raises(MountError, match="nothing is mounted on /mnt/other"):
        unmount(Path("/mnt/other"))
    with pytest.raises(MountError, match="already"):
        check_mountpoint(Path("/mnt/twice"), store_path=Path("/srv/art.lfs"))


def test_a_store_is_not_hidden_by_its_own_mount(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "art.lfs"):
        with pytest.raises(MountError, match="would be hidden"):
            check_mountpoint(place, store_path=tmp_path / "art.lfs")


def test_what_the_daemon_uses_is_not_in_its_mount_point(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "log").symlink_to(real / "deep" / "log")
    inside = (real / "log", tmp_path / "link" / "log", tmp_path / "log", tmp_path / "a/../real/b")
    for path in inside:
        for place in (real, tmp_path / "link"):
            with pytest.raises(MountError, match="the log file"):
                check_outside(path, "log file", mountpoint=place)
    for path in (tmp_path / "real.log", tmp_path, Path(os.devnull)):
        check_outside(path, "log file", mountpoint=real)


def test_a_linked_mount_point_is_found_by_its_real_path(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    assert mountpoint.resolve_mountpoint(tmp_path / "link") == real
    assert mountpoint.resolve_mountpoint(tmp_path / "link" / "below") == real / "below"


def test_a_linked_mount_point_is_unmounted_by_its_real_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    mounts = [mountpoint.MountEntry("0:44", str(real), "fuse.latentfs", "/srv/art.lfs")]
    unmounted: list[Path] = []

    def fusermount(path: Path, *, lazy: bool) -> None:
        unmounted.append(path)
        mounts.clear()

    monkeypatch.setattr(mountpoint, "_mounts", lambda: iter(mounts))
    monkeypatch.setattr(mountpoint, "_fusermount", fusermount)
    unmount(tmp_path / "link")
    assert unmounted == [real]


@pytest.mark.parametrize(
    ("type_", "group", "is_by_systemd"),
    [("autofs", 1, True), ("autofs", 77, False), (None, 1, False), ("fuse.latentfs", 1, False)],
)
def test_systemd_mounts_at_first_use_what_its_process_group_sees_an_autofs_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    type_: str | None,
    group: int,
    is_by_systemd: bool,
) -> None:
    mounts = [mountpoint.MountEntry("0:44", str(tmp_path), type_, "systemd-1")] if type_ else []
    monkeypatch.setattr(mountpoint, "_mounts", lambda: iter(mounts))
    monkeypatch.setattr(os, "getpgrp", lambda: group)
    assert mountpoint.is_mounted_by_systemd_now(tmp_path) == is_by_systemd


def test_settings_that_can_not_be_written_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entry = mountpoint.MountEntry("0:44", "/mnt/art", "fuse.latentfs", "/srv/art.lfs")
    monkeypatch.setattr(tuning, "find_mount", lambda _: entry)
    # Missing, so that nothing is mounted there.
    monkeypatch.setattr(tuning, "_CONNECTIONS", tmp_path / "connections")
    monkeypatch.setattr(tuning, "_BDI", tmp_path / "bdi")
    problems = tuning.tune(Path("/mnt/art"))
    assert len(problems) == 3
    assert "max_background to 512" in problems[0]
    assert caplog.text.count("the mount works") == 3
