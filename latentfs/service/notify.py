"""What the daemon tells systemd of itself: the protocol of sd_notify(3)."""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import MutableMapping

__all__ = ["Notifier"]

log = logging.getLogger(__name__)

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
# Being ready, reloading and stopping replace each other.
_STATE = "state"
# The receiver is slow, not gone: what could not be sent goes with the next message.
_LATER_ERRORS = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)


class Notifier:
    """Sends the daemon's state to the service manager; does nothing where there is none.

    No method blocks or raises.  What the manager has no room for at the moment is sent with the
    next message, or by :meth:`send_again`; what can't be sent at all is logged once.  To be used by
    one thread.

    Attributes:
        watchdog_interval_s: within which :meth:`watchdog` must be called, or the manager ends the
            daemon; None where it does not watch.
    """

    def __init__(self, address: str | None, *, watchdog_interval_s: float | None = None) -> None:
        """Send to *address*: the path of a socket, or ``@`` and the name of an abstract one."""
        self.watchdog_interval_s = watchdog_interval_s if address else None
        self._address = address or ""
        self._unsent: dict[str, str] = {}
        self._failure_logged = False

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> Notifier:
        """Take the manager's variables out of *environment*: they are not meant for children."""
        address, interval, pid = (environment.pop(name, "") for name in _VARIABLES)
        watched = interval.isdecimal() and int(interval) and pid in ("", str(os.getpid()))
        return cls(
            address if address[:1] in ("/", "@") else None,
            watchdog_interval_s=int(interval) / 1e6 if watched else None,
        )

    @property
    def is_listened_to(self) -> bool:
        """Whether there is a manager to tell anything."""
        return bool(self._address)

    def ready(self) -> None:
        """The mount answers, or has finished rereading its settings."""
        self._send(_STATE, "READY=1")

    def reloading(self) -> None:
        """The settings are being reread; :meth:`ready` follows."""
        self._send(_STATE, f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The daemon is ending."""
        self._send(_STATE, "STOPPING=1")

    def status(self, text: str) -> None:
        """Show *text*, made one line, in ``systemctl status``."""
        self._send("status", f"STATUS={' '.join(text.split())}")

    def watchdog(self) -> None:
        """The daemon is well."""
        self._send("watchdog", "WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Starting, or ending, may take *seconds* more from now."""
        self._send("timeout", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def send_again(self) -> None:
        """Send what there was no room for, if anything."""
        if self._unsent:
            self._send_unsent()

    def _send(self, topic: str, lines: str) -> None:
        if not self._address:
            return
        self._unsent.pop(topic, None)
        self._unsent[topic] = lines
        self._send_unsent()

    def _send_unsent(self) -> None:
        try:
            self._send_once("\n".join(self._unsent.values()).encode("utf-8", "replace"))
        except OSError as error:
            if error.errno in _LATER_ERRORS:
                return
            if not self._failure_logged:
                log.warning("can't tell the service manager about the mount: %s", error)
                self._failure_logged = True
        self._unsent.clear()

    def _send_once(self, message: bytes) -> None:
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sending:
            sending.connect(address)
            sending.send(message)
