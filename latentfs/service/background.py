"""A daemon that outlives the command that starts it, which returns once the mount is usable.

The daemon is a process of its own from its first instruction, never a fork.  It keeps standard
error until it is ready, so that whoever waits reads why it can't mount; what it has to say later
goes to its log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from latentfs.errors import InvalidArgumentError
from latentfs.telemetry.logs import is_journal

__all__ = ["READY_FD_FLAG", "log_destination", "start_daemon", "waited_for"]

log = logging.getLogger(__name__)

READY_FD_FLAG = "--ready-fd"
"""Of ``latentfs mount``: the file descriptor on which it tells that it is ready."""

_READY = b"1"
_SYSLOG_SOCKET = Path("/dev/log")
# A service manager's, to be answered by the process that it started alone.
_MANAGER_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
# They name folders of the user that starts the daemon, not of the one that it runs as.
_USER_VARIABLES = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "XDG_DATA_HOME")


def start_daemon(
    arguments: Sequence[str], *, user: str | None = None, stays_in_group: bool = False
) -> int:
    """Run ``latentfs mount`` with *arguments* in a session of its own, until the mount is usable.

    Interrupted by Ctrl-C, it ends the daemon, waits until it has unmounted, and raises
    KeyboardInterrupt.

    Args:
        user: whom the daemon runs as; None for the user of this process.
        stays_in_group: whether it is in the process group, and the session, of this process.

    Returns:
        0 when the mount is usable, else the exit status of a daemon that has ended, which has said
        why on standard error; 1 where it was told to end before, or killed.

    Raises:
        InvalidArgumentError: there is no such user, or this user may not run something as another.
        OSError: the daemon can't be started.
    """
    read_fd, write_fd = os.pipe()
    with open(read_fd, "rb", buffering=0) as told:
        try:
            daemon = _started(arguments, write_fd, user, stays_in_group=stays_in_group)
        finally:
            os.close(write_fd)
        try:
            if told.read(len(_READY)) == _READY:
                daemon.returncode = 0  # it is let go: nobody waits for its end
                return 0
            return _failure(daemon.wait())
        except BaseException:
            _end(daemon)
            raise


def _failure(returncode: int) -> int:
    """Return the exit status that stands for the end of a daemon before it could be used."""
    if returncode < 0:
        name = signal.strsignal(-returncode) or f"signal {-returncode}"
        print(f"latentfs: the daemon was ended before it could be used: {name}", file=sys.stderr)
    return returncode if returncode > 0 else 1


def _started(
    arguments: Sequence[str], ready_fd: int, user: str | None, *, stays_in_group: bool
) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if k not in _MANAGER_VARIABLES}
    identity: dict[str, Any] = {}
    if user is not None:
        account = _account(user)
        home = {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
        environment = {k: v for k, v in environment.items() if k not in _USER_VARIABLES} | home
        if os.geteuid() == 0:  # others are that user already
            identity = {
                "user": account.pw_uid,
                "group": account.pw_gid,
                "extra_groups": os.getgrouplist(account.pw_name, account.pw_gid),
            }
    # -P: what lies in the caller's folder is not imported.
    command = [sys.executable, "-P", "-m", "latentfs", "mount", READY_FD_FLAG, str(ready_fd)]
    return subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None if sys.stderr is not None else subprocess.DEVNULL,
        env=environment,
        pass_fds=[ready_fd],
        start_new_session=not stays_in_group,
        **identity,
    )


def _account(user: str) -> pwd.struct_passwd:
    try:
        account = pwd.getpwnam(user)
    except KeyError as error:
        raise InvalidArgumentError(f"there is no user {user!r} to run the daemon as") from error
    if os.geteuid() not in (0, account.pw_uid):
        raise InvalidArgumentError(f"only root can run the daemon as the user {user!r}")
    return account


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait()
    except BaseException:
        daemon.kill()
        daemon.wait()
        raise


@contextlib.contextmanager
def waited_for(ready_fd: int) -> Iterator[Callable[[], None]]:
    """The daemon's part: yields what it calls, in any thread, when it is ready.

    That lets go of standard error, unless it is the journal's, and of the command that waits.  An
    error that ends the block afterwards is logged, as nobody reads standard error any more; one
    before that is only raised.
    """
    os.set_inheritable(ready_fd, False)
    os.chdir("/")  # no folder is kept in use
    is_let_go = False

    def ready() -> None:
        nonlocal is_let_go
        if not is_journal(sys.stderr):
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), sys.stderr.fileno())
        is_let_go = True
        try:
            with contextlib.suppress(BrokenPipeError):  # whoever waited was killed
                os.write(ready_fd, _READY)
        finally:
            os.close(ready_fd)

    try:
        yield ready
    except Exception:
        if is_let_go:
            log.critical("the daemon ends with an error", exc_info=True)
        raise


def log_destination(
    chosen: Literal["stderr", "syslog"] | Path, *, syslog: Path = _SYSLOG_SOCKET
) -> Literal["stderr", "syslog"] | Path:
    """Return where a daemon in the background logs to.

    Standard error stays what it is where it is the journal's.  Elsewhere it is the caller's, which
    the daemon gives back: syslog, if there is one, takes its place.  If there is none, lines are
    lost once the mount is usable, and standard error says so.
    """
    if chosen != "stderr" or is_journal(sys.stderr):
        return chosen
    try:
        if stat.S_ISSOCK(syslog.stat().st_mode):
            return "syslog"
    except OSError:
        pass
    print(
        f"latentfs: there is no syslog ({syslog}), so nothing is logged once the mount is usable; "
        "name a file with the setting log",
        file=sys.stderr,
    )
    return "stderr"
