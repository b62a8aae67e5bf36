"""latentfs config, and settings files given to the other commands."""

import json
import os
import pty
import signal
import subprocess
import sys
import tomllib

import pytest
from e2e.support import call
from mounts import latentfs, mounted, wait_until

from latentfs.fs.mountpoint import find_mount


def test_show_says_where_each_value_comes_from(tmp_path):
    file = tmp_path / "art.toml"
    file.write_text('store = "/var/lib/art.lfs"\ncache = "1G"\n')
    shown = call(
        "config", "show", "--config", file, "-o", "ro,prefetch=3", "--device", "cpu"
    ).checked()
    lines = dict(line.split("  # ") for line in map(str.strip, shown.out.splitlines()))
    origins = {assignment.split(" = ")[0].strip(): origin for assignment, origin in lines.items()}
    assert origins["store"] == origins["cache"] == str(file)
    assert origins["read_only"] == origins["prefetch"] == "-o"
    assert origins["device"] == "--device"
    assert origins["slow_read"] == "default"


def test_what_show_prints_is_a_settings_file_of_the_same_settings(tmp_path):
    shown = (
        call("config", "show", tmp_path / 'a "b"', tmp_path / "m", "--cache", "3M").checked().out
    )
    file = tmp_path / "again.toml"
    file.write_text(shown)
    assert tomllib.loads(shown)["store"] == str(tmp_path / 'a "b"')
    again = call("config", "show", "--config", file, "--json").checked().out
    before = call("config", "show", tmp_path / 'a "b"', tmp_path / "m", "--cache", "3M", "--json")
    values = {name: each["value"] for name, each in json.loads(again).items()}
    assert values == {
        name: each["value"] for name, each in json.loads(before.checked().out).items()
    }


def test_what_show_prints_is_toml_whatever_a_path_has_in_it(tmp_path):
    strange = tmp_path / "a\x7f\n\u2028\u00e9"
    shown = call("config", "show", strange, tmp_path / os.fsdecode(b"\xff")).checked().out
    settings = tomllib.loads(shown)
    assert settings["store"] == str(strange)
    assert "mountpoint" not in settings
    assert "# mountpoint can't be written in TOML, which is UTF-8: " in shown


def test_mount_and_umount_by_a_settings_file(tmp_path):
    store = tmp_path / "art.lfs"
    latentfs("init", store)
    file = tmp_path / "art.toml"
    file.write_text(f'store = "{store}"\nmountpoint = "{tmp_path / "mnt"}"\nread_only = true\n')
    (tmp_path / "mnt").mkdir()
    daemon = subprocess.Popen([sys.executable, "-m", "latentfs", "mount", "--config", file])
    try:
        wait_until(lambda: find_mount(tmp_path / "mnt") is not None, "it is mounted")
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "mnt" / "a").write_bytes(b"")
        latentfs("umount", "--stale", "--config", file)
        assert find_mount(tmp_path / "mnt") is not None, "it is alive"
        other = tmp_path / "other.toml"
        other.write_text(file.read_text().replace("art.lfs", "other.lfs"))
        done = latentfs("umount", "--config", other, check=False)
        assert f"{store} is mounted on {tmp_path / 'mnt'}, and not" in done.stderr
        assert find_mount(tmp_path / "mnt") is not None, "it is another's"
        done = latentfs("umount", store, check=False)
        assert f"is a store; run latentfs umount {tmp_path / 'mnt'}" in done.stderr
        latentfs("umount", "--config", file)
        assert daemon.wait(timeout=30) == 0
        latentfs("umount", "--stale", "--config", file)
    finally:
        daemon.kill()
        daemon.wait()


def test_umount_stale_clears_what_a_killed_daemon_has_left(tmp_path):
    store = tmp_path / "art.lfs"
    latentfs("init", store)
    with mounted(store, tmp_path / "mnt") as mount:
        mount.end(signal.SIGKILL)
        assert find_mount(mount.path) is not None
        latentfs("umount", "--stale", mount.path)
        assert find_mount(mount.path) is None


def test_a_place_that_is_missing_is_said():
    refused = call("mount", "--config", "/dev/null")
    assert refused.status == 2
    assert "STORE is missing; give it as an argument, or store in a settings file" in refused.err
    refused = call("umount", "--config", "/dev/null")
    assert refused.status == 2
    assert "MOUNTPOINT is missing" in refused.err


def test_umount_takes_one_mount_point(tmp_path):
    refused = call("umount", tmp_path, "--config", "/dev/null")
    assert refused.status == 2
    assert "give MOUNTPOINT or --config, not both" in refused.err


def test_a_terminal_that_is_closed_ends_the_mount(tmp_path):
    store = tmp_path / "art.lfs"
    latentfs("init", store)
    (tmp_path / "mnt").mkdir()
    terminal, its_side = pty.openpty()
    daemon = subprocess.Popen(
        [sys.executable, "-m", "latentfs", "mount", store, tmp_path / "mnt"], stdin=its_side
    )
    os.close(its_side)
    try:
        wait_until(lambda: (store / "control.sock").exists(), "it is mounted")
        daemon.send_signal(signal.SIGHUP)
        assert daemon.wait(timeout=30) == 0
        assert find_mount(tmp_path / "mnt") is None
    finally:
        os.close(terminal)
        daemon.kill()
        daemon.wait()
