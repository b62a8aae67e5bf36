"""When a service manager is told that a mount is ready, and what may keep it from that."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import wait_until

from latentfs.fs.mountpoint import find_mount


class Manager:
    """Hears what a daemon tells its service manager."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self.said: list[str] = []

    def has_heard(self, line: str) -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.said += self._listening.recv(4096).decode().split("\n")
        return line in self.said


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield Manager(listening)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """The only folder in which the daemon finds programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("fusermount3", "mount", "sh"):
        if (found := shutil.which(name)) is not None:
            (folder / name).symlink_to(found)
    return folder


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "daemon.log"


@pytest.fixture
def daemon(
    store: Path, tmp_path: Path, manager: Manager, programs: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """One that is mounting, and may not be ready yet."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    environment = {**os.environ, "PATH": str(programs), "NOTIFY_SOCKET": str(tmp_path / "notify")}
    command = [sys.executable, "-m", "latentfs", "mount", str(store), str(mountpoint)]
    command += ["--metrics", f"unix:{tmp_path}/metrics"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, env=environment, stderr=stderr, stdin=subprocess.DEVNULL
        )
    try:
        wait_until(lambda: find_mount(mountpoint) is not None, "it is mounted")
        yield process
    finally:
        process.kill()
        process.wait()
        subprocess.run(["fusermount3", "-uz", mountpoint], capture_output=True, check=False)


@pytest.fixture
def answered(tmp_path: Path, programs: Path) -> Path:
    """A file; until it is there, the daemon's question to itself fails."""
    path = tmp_path / "answered"
    stat = programs / "stat"
    stat.write_text(f'#!/bin/sh\n[ -e {path} ] && exec {shutil.which("stat")} "$@"\nexit 1\n')
    stat.chmod(0o755)
    return path


def asked(folder: Path, page: str) -> tuple[int, str]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(folder / "metrics"))
        connection.sendall(f"GET {page} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
        head, _, body = connection.makefile(newline="").read().partition("\r\n\r\n")
    return int(head.split()[1]), body.strip()


def test_it_is_ready_when_it_has_answered_itself_and_no_reload_says_so_before(
    answered: Path, daemon: subprocess.Popen[bytes], manager: Manager, log: Path
) -> None:
    wait_until(lambda: "can't be read" in log.read_text(), "it has asked itself in vain")
    daemon.send_signal(signal.SIGHUP)
    time.sleep(2)
    assert not manager.has_heard("READY=1")
    assert asked(log.parent, "/healthz") == (200, "the mount is not live yet")
    assert asked(log.parent, "/readyz") == (503, "the mount is not live yet")
    assert "RELOADING=1" not in manager.said
    assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in manager.said)
    answered.touch()
    wait_until(lambda: manager.has_heard("READY=1"), "it is ready")
    assert asked(log.parent, "/healthz") == (200, "the mount answers")
    manager.said.clear()
    daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: manager.has_heard("RELOADING=1"), "it reloads")
    wait_until(lambda: manager.has_heard("READY=1"), "it has reloaded")


@pytest.mark.usefixtures("daemon")
def test_it_is_ready_though_it_can_not_ask_itself(manager: Manager, log: Path) -> None:
    wait_until(lambda: manager.has_heard("READY=1"), "it is ready")
    assert "may not be ready yet" in log.read_text()
