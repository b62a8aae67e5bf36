"""Whether the mount answers, found out by reading it, and told to systemd's watchdog.

The daemon must never wait for its own mount.  A thread of it that does can't be killed while the
daemon has its request, and it keeps /dev/fuse open: a daemon that hangs could not even be ended by
SIGKILL.  So the self-read is made by a process of its own.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from latentfs.errors import MountError
from latentfs.service.notify import Notifier

__all__ = ["Health", "SelfRead", "feed_watchdog"]

log = logging.getLogger(__name__)

# Asks statfs(2), which the kernel never answers from its caches.  A small program: where memory is
# scarce, that of another Python may be what is too much.
_COMMAND = ("stat", "-f", "-c", "", "--")
_SELF_READ_EVERY_S = 10.0
# Of a silence, as far as nothing could be asked: a machine short of memory should not have a mount
# ended that may be well, but nobody knows that for ever.
_EXCUSED_MAX_S = 300.0
_STATUS_EVERY_S = 5.0
# Times in the watchdog's interval, so that a message that is late does no harm.
_FEEDS = 4
_SEND_AGAIN_S = 1.0


class SelfRead:
    """Asks the mount something through the kernel, one question at a time."""

    def __init__(self, mountpoint: Path, *, timeout_s: float = 10.0) -> None:
        self._command = [*_COMMAND, str(mountpoint)]
        self._mountpoint = mountpoint
        self._timeout_s = timeout_s
        self._asking: trio.Process | None = None

    async def __call__(self) -> None:
        """Return when the mount has answered.  Cancelled, the question is given up.

        Raises:
            MountError: it has not within the timeout, or with an error, or the last question is
                still not answered.
            OSError: it could not be asked.
        """
        if self._asking is not None and self._asking.poll() is None:
            raise MountError(f"{self._mountpoint} still does not answer")
        self._asking = asking = await trio.lowlevel.open_process(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with trio.move_on_after(self._timeout_s):
                await asking.wait()
        finally:
            if asking.poll() is None:
                asking.kill()  # it ends when the daemon answers, or has ended
        if asking.returncode is None:
            raise MountError(f"{self._mountpoint} does not answer within {self._timeout_s:g} s")
        if asking.returncode != 0:
            raise MountError(f"{self._mountpoint} can't be read")


class Health:
    """Whether the mount has answered lately.

    It has when a self-read has come back, or when the daemon has answered others meanwhile: with
    more readers waiting for renders than it takes on at once, a self-read waits as they do.
    """

    def __init__(
        self,
        self_read: Callable[[], Awaitable[None]],
        *,
        late_after_s: Callable[[], float],
        answered_total: Callable[[], int] = lambda: 0,
        is_mounted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Watch the mount that *self_read* asks.

        It raises MountError where there is no answer, and OSError, RuntimeError or MemoryError
        where it could not ask, as for want of memory or threads.  That says nothing of the mount:
        it is no answer, and the silence does not count, up to five minutes of it.

        *late_after_s*, seconds, without an answer are an illness; it must be more than a render may
        take.
        *answered_total* counts what the daemon has answered to anybody.  *is_mounted* tells whether
        the mount is still where others look for it, and not unmounted with files open, or hidden.
        """
        self._self_read = self_read
        self._late_after_s = late_after_s
        self._answered_total = answered_total
        self._is_mounted = is_mounted
        self._asked_s = trio.current_time()
        self._can_be_asked = True
        self.note_answer()
        self._error = "it has not been asked yet"

    @property
    def is_healthy(self) -> bool:
        """Whether the mount has answered lately."""
        return self.problem() is None

    def problem(self) -> str | None:
        """Say what is wrong with the mount; None if it is well."""
        silent_s = trio.current_time() - self._answered_s
        if silent_s - self._excused_s <= self._late_after_s():
            return None
        return f"no answer for {silent_s:.0f} s: {self._error}"

    def note_answer(self) -> None:
        """The mount has answered, or nothing is known against it yet; silence begins now."""
        self._answered_before = self._answered_total()
        self._answered_s = trio.current_time()
        self._excused_s = 0.0

    async def run(self) -> None:
        """Ask the mount every ten seconds, the first time after as long, until cancelled."""
        while True:
            await trio.sleep(_SELF_READ_EVERY_S)
            await self._ask()

    async def _ask(self) -> None:
        has_answered, can_be_asked = False, True
        asked_before_s, self._asked_s = self._asked_s, trio.current_time()
        try:
            if not self._is_mounted():
                self._error = "it is not mounted there any more, or another mount hides it"
                return
            await self._self_read()
            has_answered = True
        except MountError as error:
            self._error = str(error)
        except (OSError, RuntimeError, MemoryError) as error:  # a thread that can't be started, too
            can_be_asked = False
            self._excuse(error, self._asked_s - asked_before_s)
        self._can_be_asked = can_be_asked
        if has_answered or self._answered_total() != self._answered_before:
            self.note_answer()

    def _excuse(self, error: Exception, silent_s: float) -> None:
        if self._can_be_asked:
            log.warning("the mount can't be asked whether it is well: %s", error)
        self._error = f"it can't be asked: {error}"
        self._excused_s = min(self._excused_s + silent_s, _EXCUSED_MAX_S)


async def feed_watchdog(
    notifier: Notifier, health: Health, *, status_text: Callable[[], str]
) -> None:
    """Keep the service manager told of the mount, until cancelled.

    *status_text* is sent when it has changed, every five seconds at most.  The watchdog is fed
    four times in its interval, and only while the mount is healthy.  What the manager had no room
    for is sent again within a second.
    """
    if not notifier.is_listened_to:
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send_status, notifier, health, status_text)
        nursery.start_soon(_send_again, notifier)
        if notifier.watchdog_interval_s is not None:
            nursery.start_soon(_feed, notifier, health, notifier.watchdog_interval_s / _FEEDS)


async def _feed(notifier: Notifier, health: Health, every_s: float) -> None:
    while True:
        if health.is_healthy:
            notifier.watchdog()
        await trio.sleep(every_s)


async def _send_again(notifier: Notifier) -> None:
    while True:
        await trio.sleep(_SEND_AGAIN_S)
        notifier.send_again()


async def _send_status(notifier: Notifier, health: Health, status_text: Callable[[], str]) -> None:
    sent = None
    while True:
        text = health.problem() or status_text()
        if text != sent:
            notifier.status(text)
            sent = text
        await trio.sleep(_STATUS_EVERY_S)
