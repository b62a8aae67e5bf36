"""Where log lines go, and in what form: text or JSON, to standard error, syslog or a file.

What is logged names files by their inode numbers: names, and prompts in them, stay out of logs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from latentfs.errors import InvalidArgumentError

__all__ = ["LogFormat", "LogOutput", "configure_logging", "is_journal"]

LogFormat = Literal["text", "json"]

_OWN_LOGGER = "latentfs"
_SYSLOG_SOCKET = "/dev/log"
# The mount waits as well.
_SYSLOG_WAIT_S = 0.1
_SYSLOG_PATIENT_AGAIN_S = 10.0
_FILE_MODE = 0o640
# As syslog(3) numbers them.
_DAEMON_FACILITY = 3 << 3
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG_PRIORITY = 7
_STANDARD_FIELDS = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
# So that what a message quotes can't pass for another line, or move the cursor of a terminal.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


class LogOutput:
    """The one place that all log lines go to.  Made by :func:`configure_logging`."""

    def __init__(self, handler: logging.Handler, path: Path | None) -> None:
        self._handler = handler
        self._path = path

    def set_level(self, level: str) -> None:
        """Let lines of *level* and above through: ``debug``, ``info``, ``warning`` or ``error``.

        Of other libraries only warnings and errors are.
        """
        number = logging.getLevelNamesMapping()[level.upper()]
        logging.getLogger(_OWN_LOGGER).setLevel(number)
        logging.getLogger().setLevel(max(number, logging.WARNING))

    def reopen(self) -> None:
        """Open the file by its name again, as whoever rotates logs has moved it away.

        If that fails, lines go on to the file that is open, the reason among them.
        """
        if self._path is None:
            return
        handler = self._handler
        assert isinstance(handler, logging.StreamHandler)
        try:
            opened = _opened(self._path)
        except InvalidArgumentError as error:
            logging.getLogger(__name__).error("%s", error)
            return
        # Not by setStream, which would fail, and go on with the old one, where its disk is full.
        handler.acquire()
        try:
            before, handler.stream = handler.stream, opened
        finally:
            handler.release()
        _close(before)

    def close(self) -> None:
        """Log no more; what was there before is not brought back."""
        logging.getLogger().removeHandler(self._handler)
        if self._path is not None:
            assert isinstance(self._handler, logging.StreamHandler)
            _close(self._handler.stream)
        self._handler.close()


def configure_logging(
    *, level: str, log_format: LogFormat, destination: Literal["stderr", "syslog"] | Path
) -> LogOutput:
    """Send all log lines of this process to *destination*, in place of where they went before.

    Where standard error is the journal's, each line begins with its priority, ``<4>`` for a
    warning, which the journal takes off.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        log_format: ``text`` is ``latentfs: WARNING: message``, behind the time where it goes to a
            file; ``json`` an object a line: ``ts`` (RFC 3339), ``level``, ``logger``, ``message``,
            fields of the event, ``exception``.
        destination: ``stderr``, ``syslog`` (the socket /dev/log), or a file to append to.

    Raises:
        InvalidArgumentError: the file can't be opened, or there is no syslog.
    """
    path = destination if isinstance(destination, Path) else None
    handler = _handler(destination)
    formatter: logging.Formatter = (
        _JsonFormatter() if log_format == "json" else _TextFormatter(has_times=path is not None)
    )
    if destination == "stderr" and is_journal(sys.stderr):
        formatter = _PriorityFormatter(formatter)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for known in root.handlers[:]:
        root.removeHandler(known)
    root.addHandler(handler)
    # A full disk, or a syslog that is gone, is no reason for a traceback for each line.
    logging.raiseExceptions = False
    output = LogOutput(handler, path)
    output.set_level(level)
    return output


def _handler(destination: Literal["stderr", "syslog"] | Path) -> logging.Handler:
    if isinstance(destination, Path):
        return logging.StreamHandler(_opened(destination))
    if destination == "stderr":
        return logging.StreamHandler(sys.stderr)
    try:
        return _SyslogHandler()
    except OSError as error:
        raise InvalidArgumentError(
            f"can't log to syslog: {_SYSLOG_SOCKET}: {error.strerror}; log to stderr or a file"
        ) from error


def _opened(path: Path) -> TextIO:
    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CLOEXEC, _FILE_MODE)

    try:
        return open(path, "a", encoding="utf-8", errors="backslashreplace", opener=opener)
    except OSError as error:
        raise InvalidArgumentError(f"can't log to {path}: {error.strerror}") from error


def _close(stream: TextIO) -> None:
    with contextlib.suppress(OSError):  # its disk is full: the last lines are lost
        stream.close()


def is_journal(stream: TextIO) -> bool:
    """Whether *stream* is the one that systemd says it reads: a shell may have redirected it."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stream.fileno())
        return (status.st_dev, status.st_ino) == (int(device), int(inode))
    except (OSError, ValueError):
        return False


class _TextFormatter(logging.Formatter):
    """``latentfs: WARNING: message``, and below it the traceback if there is one.

    Args:
        has_times: whether a line begins with its time, for where nobody else adds it.
    """

    def __init__(self, *, has_times: bool) -> None:
        super().__init__()
        self._has_times = has_times

    def format(self, record: logging.LogRecord) -> str:
        start = f"{_time(record)} " if self._has_times else ""
        message = record.getMessage().translate(_ESCAPES)
        line = f"{start}latentfs: {record.levelname}: {message}"
        # Indented, so that no line of what an exception quotes can pass for one of the log.
        details = _exception(record).splitlines()
        return "\n".join([line, *(f"  {detail.translate(_ESCAPES)}" for detail in details)])


class _JsonFormatter(logging.Formatter):
    """One object, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "ts": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        extra = {name: value for name, value in vars(record).items() if _is_extra(name)}
        if details := _exception(record):
            extra["exception"] = details
        return json.dumps({**extra, **fields}, default=str)


class _PriorityFormatter(logging.Formatter):
    """Begins each line of *inner* with its priority."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_priority(record.levelno)}>"
        return "\n".join(prefix + line for line in self._inner.format(record).split("\n"))


class _SyslogHandler(logging.Handler):
    """To the socket of the machine's syslog.

    A line that it does not take soon is dropped, and for a while others are not waited for at all.
    """

    def __init__(self) -> None:
        super().__init__()
        self._socket = _syslog_socket()
        self._patient_from_s = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        priority = _DAEMON_FACILITY | _priority(record.levelno)
        line = f"<{priority}>latentfs[{os.getpid()}]: {self.format(record)}"
        data = line.encode("utf-8", "backslashreplace")
        is_patient = time.monotonic() >= self._patient_from_s
        self._socket.settimeout(_SYSLOG_WAIT_S if is_patient else 0)
        try:
            self._socket.send(data)
        except TimeoutError:
            self._patient_from_s = time.monotonic() + _SYSLOG_PATIENT_AGAIN_S
        except BlockingIOError:
            pass
        except OSError:  # it was started anew, or is gone
            with contextlib.suppress(OSError):
                reconnected = _syslog_socket()
                self._socket.close()
                self._socket = reconnected
                self._socket.send(data)

    def close(self) -> None:
        self._socket.close()
        super().close()


def _syslog_socket() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        connection.settimeout(_SYSLOG_WAIT_S)
        connection.connect(_SYSLOG_SOCKET)
    except OSError:
        connection.close()
        raise
    return connection


def _time(record: logging.LogRecord) -> str:
    when = datetime.fromtimestamp(record.created, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _priority(level: int) -> int:
    return next((number for least, number in _PRIORITIES if level >= least), _DEBUG_PRIORITY)


def _is_extra(name: str) -> bool:
    return name not in _STANDARD_FIELDS and not name.startswith("_")


def _exception(record: logging.LogRecord) -> str:
    if record.exc_text:  # of another process
        return record.exc_text
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    return "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
