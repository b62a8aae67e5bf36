"""A request whose caller was killed before the daemon has read it stops nobody."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from mounts import latentfs, wait_until

from latentfs.fs.control import ask_daemon

# The daemon, with an asker that is killed in the very moment between being told that there is a
# request, and reading it.
DAEMON = """
import os, select, signal, subprocess, sys
import trio
from latentfs.cli import main

store, mountpoint, armed = sys.argv[1:]

class KillsTheAsker(trio.abc.Instrument):
    asker = None
    def before_io_wait(self, timeout):
        is_over = self.asker is None or self.asker.returncode is not None
        if is_over and os.path.exists(armed):
            self.asker = subprocess.Popen(["stat", mountpoint + "/nothing-of-this-name"])
    def after_io_wait(self, timeout):
        if self.asker is None or self.asker.returncode is not None:
            return
        fuse = [fd for fd in map(int, os.listdir("/proc/self/fd")) if is_fuse(fd)]
        if select.select(fuse, [], [], 0)[0]:
            self.asker.kill()
            self.asker.wait()
            assert not select.select(fuse, [], [], 0)[0]
            os.remove(armed)

def is_fuse(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "/dev/fuse"
    except OSError:
        return False

run = trio.run
trio.run = lambda *arguments: run(*arguments, instruments=[KillsTheAsker()])
sys.argv = ["latentfs", "mount", store, mountpoint, "--verbose"]
main()
"""


def test_a_request_that_is_withdrawn_before_it_is_read_holds_nothing_up(tmp_path: Path) -> None:
    store, mountpoint, armed = tmp_path / "art.lfs", tmp_path / "mnt", tmp_path / "armed"
    latentfs("init", store)
    mountpoint.mkdir()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", DAEMON, str(store), str(mountpoint), str(armed)], stderr=log
        )
    try:
        wait_until(lambda: "is mounted on" in (tmp_path / "log").read_text(), "it is mounted")
        for _ in range(3):
            armed.touch()
            wait_until(lambda: not armed.exists(), "the request has vanished")
            assert ask_daemon(store, "status") is not None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        subprocess.run(["fusermount3", "-uz", str(mountpoint)], capture_output=True, check=False)
