"""A real systemd as the first process of a machine of its own, for tests.

The machine has its own processes, mounts, /etc, /usr/sbin, /run, /tmp and control groups, and
none of the services that the real one has: its unit folder holds nothing but targets that do
nothing.  So nothing of a real boot runs in it; the clean-up of temporary files would empty the
real /tmp.
"""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["Machine", "systemd_machine", "why_there_is_no_machine"]

_CHECKOUT = Path(__file__).resolve().parent.parent
_SYSTEMD = Path("/usr/lib/systemd/systemd")
_UNITS = Path("/usr/lib/systemd/system")
_GENERATORS = Path("/usr/lib/systemd/system-generators")
_TARGET = "machine.target"
# Units of any service are ordered by these.
_TARGETS = (
    _TARGET,
    "basic.target",
    "local-fs.target",
    "remote-fs.target",
    "shutdown.target",
    "sysinit.target",
)
_SERVICE_LOG = "/run/services.log"
_NAMESPACES = ("--pid", "--mount", "--uts", "--ipc", "--cgroup")
_START_WAIT_S = 60.0


def why_there_is_no_machine() -> str | None:
    """Say what this computer lacks to run one; None if it can."""
    if os.geteuid() != 0:
        return "only root can start a systemd"
    tools = [str(_SYSTEMD), "systemctl", "unshare", "nsenter"]
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or not permitted"
    if _cgroup_root() is None:
        return "no version 2 control groups are mounted"
    tried = subprocess.run(["unshare", *_NAMESPACES, "--fork", "true"], capture_output=True)
    return None if tried.returncode == 0 else "namespaces are not permitted"


class Machine:
    """What runs in it, and how to get at it."""

    def __init__(self, pid: int, console: Path) -> None:
        self.pid = pid
        self._console = console

    def path(self, path: str | Path) -> Path:
        """A path of the machine as the tests' own process reaches it."""
        return Path(f"/proc/{self.pid}/root") / str(path).lstrip("/")

    def run(self, *command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in it, outside any unit."""
        done = subprocess.run(
            self.entered(*command), capture_output=True, text=True, check=False, timeout=120
        )
        assert not check or done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.log}"
        return done

    def entered(self, *command: object) -> list[str]:
        """The command line that runs *command* in it."""
        enter = ["nsenter", "-t", str(self.pid), *_NAMESPACES, "--wd=/", "--"]
        return [*enter, *map(str, command)]

    def systemctl(self, *arguments: object, check: bool = True) -> str:
        return self.run("systemctl", "--no-pager", *arguments, check=check).stdout.strip()

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "-P", name, unit)

    @property
    def log(self) -> str:
        """What systemd said, and what the services wrote."""
        services = self.path(_SERVICE_LOG)
        said = services.read_text("utf-8", "replace") if services.exists() else ""
        return self._console.read_text("utf-8", "replace") + said


@contextlib.contextmanager
def systemd_machine(folder: Path) -> Iterator[Machine]:
    """Start one that sees *folder* at its own path; gone with all its processes at the end."""
    console = folder / "console.log"
    with _cgroup() as cgroup, _console(console) as terminal:

        def enter_cgroup() -> None:
            (cgroup / "cgroup.procs").write_text("0")

        command = ["unshare", *_NAMESPACES, "--fork", "--kill-child", "--mount-proc"]
        process = subprocess.Popen(
            [*command, sys.executable, __file__, str(folder), terminal],
            preexec_fn=enter_cgroup,
            stdin=subprocess.DEVNULL,
        )
        try:
            machine = _started(process, console)
            # What is left of unshare would be a process without a number in the machine.
            (cgroup.parent / "cgroup.procs").write_text(str(process.pid))
            yield machine
        finally:
            process.kill()  # and with it the first process, which takes all others along
            process.wait()


def _started(process: subprocess.Popen[bytes], console: Path) -> Machine:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    _wait(lambda: children.read_text() != "", process)
    machine = Machine(int(children.read_text().split()[0]), console)
    # Before it is systemd, the first process may still have the mounts of the real computer.
    name = Path(f"/proc/{machine.pid}/comm")
    _wait(lambda: name.read_text() == "systemd\n", process)
    _wait(lambda: machine.systemctl("is-system-running", check=False) == "running", process)
    return machine


def _wait(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + _START_WAIT_S
    while not condition():
        assert process.poll() is None, "the machine has ended; see what it wrote above"
        assert time.monotonic() < end_s, "the machine does not start"
        time.sleep(0.02)


def _cgroup_root() -> Path | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, path, kind, options, *_ = line.split(" ")
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(path)
    return None


@contextlib.contextmanager
def _cgroup() -> Iterator[Path]:
    """A control group of its own, removed with those that systemd has made in it."""
    root = _cgroup_root()
    assert root is not None
    # There may be several machines at a time.
    path = Path(tempfile.mkdtemp(prefix="latentfs-test-", dir=root))
    try:
        yield path
    finally:
        end_s = time.monotonic() + _START_WAIT_S
        while path.exists() and time.monotonic() < end_s:
            for folder, _, _ in os.walk(path, topdown=False):
                with contextlib.suppress(OSError):  # its processes are still ending
                    os.rmdir(folder)
            time.sleep(0.02)


@contextlib.contextmanager
def _console(log: Path) -> Iterator[str]:
    """A terminal for systemd to write to, copied to *log*; the terminal's name."""
    ours, theirs = pty.openpty()

    def copy() -> None:
        with log.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while written := os.read(ours, 65536):
                file.write(written)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield os.ttyname(theirs)
    finally:
        os.close(theirs)
        thread.join(timeout=10)
        os.close(ours)


def _become_the_machine(folder: Path, terminal: str) -> None:
    """Runs as the first process of the new namespaces: arranges them, and becomes systemd."""
    _drop_mounts_of_others(folder)
    _mount("-t", "tmpfs", "tmpfs", "/run")
    # The outer one first, if one is in the other.
    hidden = sorted(path for path in {folder, _CHECKOUT} if path.is_relative_to("/tmp"))
    for number, path in enumerate(hidden):
        kept = Path(f"/run/kept{number}")
        kept.mkdir()
        _mount("--bind", path, kept)
    _mount("-t", "tmpfs", "tmpfs", "/tmp")
    for number, path in enumerate(hidden):
        path.mkdir(parents=True, exist_ok=True)
        _mount("--move", f"/run/kept{number}", path)
        Path(f"/run/kept{number}").rmdir()
    for number, written in enumerate(("/etc", "/usr/sbin")):
        copy = f"/run/copy{number}"
        subprocess.run(["cp", "-a", written, copy], check=True)
        _mount("--bind", copy, written)
    for emptied in (_UNITS, _GENERATORS):
        _mount("-t", "tmpfs", "tmpfs", emptied)
    for name in _TARGETS:
        (_UNITS / name).write_text(f"[Unit]\nDescription={name}\nDefaultDependencies=no\n")
    # This one is reached when what it wants has started.
    (_UNITS / "multi-user.target").write_text("[Unit]\nDescription=multi-user.target\n")
    shutil.rmtree("/etc/systemd/system", ignore_errors=True)
    drop_ins = Path("/etc/systemd/system/service.d")
    drop_ins.mkdir(parents=True)
    output = "".join(f"Standard{name}=append:{_SERVICE_LOG}\n" for name in ("Output", "Error"))
    (drop_ins / "output.conf").write_text(f"[Service]\n{output}")
    subprocess.run(["umount", "-R", "/sys/fs/cgroup"], check=True)
    _mount("-t", "cgroup2", "cgroup2", "/sys/fs/cgroup")
    # systemd sets what is the whole computer's otherwise.
    _mount("--bind", "/proc/sys", "/proc/sys")
    _mount("-o", "remount,ro,bind", "/proc/sys")
    _mount("--bind", terminal, "/dev/console")
    os.execve(
        _SYSTEMD,
        [str(_SYSTEMD), "--system", f"--unit={_TARGET}", "--log-target=console"],
        # With this it leaves alone what the real computer has set up.
        {"container": "latentfs-test", "PATH": os.environ["PATH"]},
    )


def _drop_mounts_of_others(folder: Path) -> None:
    """The namespace has copies of mounts that other tests want to see gone when they unmount."""
    mounts = [line.split(" ") for line in Path("/proc/self/mounts").read_text().splitlines()]
    for _, path, kind, *_ in reversed(mounts):
        path = path.encode().decode("unicode_escape")
        others = path.startswith("/tmp/") and not folder.is_relative_to(path)
        if others or kind.startswith("fuse."):
            subprocess.run(["umount", "-l", path], check=True)


def _mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _become_the_machine(Path(sys.argv[1]), sys.argv[2])
