"""The form of log lines, where they go, and how a renderer's reach the daemon's log."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from latentfs.errors import InvalidArgumentError
from latentfs.render.renderer_process import _log_lines
from latentfs.telemetry import logs
from latentfs.telemetry.logs import LogOutput, configure_logging

log = logging.getLogger("latentfs.fs.test")
Configured = Callable[..., LogOutput]


@pytest.fixture
def configured() -> Iterator[Configured]:
    """``configure_logging``, undone in the end."""
    root, own = logging.getLogger(), logging.getLogger("latentfs")
    before = root.handlers[:], root.level, own.level, logging.raiseExceptions
    outputs: list[LogOutput] = []

    def configure(**options: Any) -> LogOutput:
        defaults = {"level": "info", "log_format": "text", "destination": "stderr"}
        outputs.append(configure_logging(**(defaults | options)))
        return outputs[-1]

    yield configure
    for output in outputs:
        output.close()
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])
    logging.raiseExceptions = before[3]


def fail() -> None:
    try:
        raise ValueError("a reason\nof two lines")
    except ValueError:
        log.exception("inode %d failed", 7)


def test_text_is_a_line_with_its_level(
    configured: Configured, capsys: pytest.CaptureFixture[str]
) -> None:
    configured()
    log.debug("too much")
    log.info("it is %s", "mounted")
    log.warning("two\nlines \x1b[31m and \x9b a colour, café")
    logging.getLogger("another.library").info("chatter")
    assert capsys.readouterr().err == (
        "latentfs: INFO: it is mounted\n"
        "latentfs: WARNING: two\\x0alines \\x1b[31m and \\x9b a colour, café\n"
    )
    fail()
    told = capsys.readouterr().err
    assert told.startswith(
        "latentfs: ERROR: inode 7 failed\n  Traceback (most recent call last):\n"
    )
    assert "\n  ValueError: a reason\n" in told


def test_what_an_exception_quotes_is_no_line_of_the_log(
    configured: Configured, capsys: pytest.CaptureFixture[str]
) -> None:
    configured()
    try:
        raise ValueError("a name\nlatentfs: CRITICAL: forged \x1b[31m")
    except ValueError:
        log.exception("it failed")
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if not line.startswith("  ")] == ["latentfs: ERROR: it failed"]
    assert told[-1] == "  latentfs: CRITICAL: forged \\x1b[31m"


def test_json_is_an_object_a_line_with_all_there_is(
    configured: Configured, capsys: pytest.CaptureFixture[str]
) -> None:
    configured(log_format="json")
    log.warning("slow: %d", 3, extra={"event": "slow_read", "stages_s": {"decode": 1.5}, "ts": 0})
    fail()
    slow, failed = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", slow.pop("ts"))
    assert slow == {
        "level": "WARNING",
        "logger": "latentfs.fs.test",
        "message": "slow: 3",
        "event": "slow_read",
        "stages_s": {"decode": 1.5},
    }
    assert failed["level"] == "ERROR"
    assert failed["exception"].endswith("of two lines")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_each_line_to_the_journal_begins_with_its_priority(
    configured: Configured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log_format: str,
) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        configured(level="debug", log_format=log_format)
        for level in ("debug", "info", "warning", "error", "critical"):
            getattr(log, level)("a line")
        fail()
        stream.seek(0)
        lines = stream.read().splitlines()
    assert [line[:3] for line in lines[:6]] == ["<7>", "<6>", "<4>", "<3>", "<2>", "<3>"]
    assert all(line.startswith("<3>") for line in lines[5:])


@pytest.mark.parametrize("value", ["", "1:2", "x", "8:"])
def test_another_stream_than_the_journals_has_no_priorities(
    configured: Configured,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    value: str,
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", value)
    configured()
    log.info("a line")
    assert capsys.readouterr().err == "latentfs: INFO: a line\n"


def test_a_file_has_times_and_is_opened_anew_when_it_was_moved(
    configured: Configured, tmp_path: Path
) -> None:
    path, moved = tmp_path / "daemon.log", tmp_path / "daemon.log.1"
    path.write_text("from before\n")
    output = configured(destination=path)
    log.info("one")
    path.rename(moved)
    log.info("two")
    output.reopen()
    log.info("three")
    first, one, two = moved.read_text().splitlines()
    assert first == "from before"
    assert re.fullmatch(r"[-0-9]{10}T[:0-9]{8}\.\d{3}Z latentfs: INFO: one", one)
    assert two.endswith("two")
    assert path.read_text().endswith("Z latentfs: INFO: three\n")
    assert path.stat().st_mode & 0o007 == 0


def test_a_file_that_can_not_be_opened_anew_goes_on_where_it_was(
    configured: Configured, tmp_path: Path
) -> None:
    folder, moved = tmp_path / "logs", tmp_path / "moved"
    folder.mkdir()
    output = configured(destination=folder / "daemon.log")
    folder.rename(moved)
    output.reopen()
    log.info("still here")
    refused, line = (moved / "daemon.log").read_text().splitlines()
    assert "can't log to" in refused
    assert line.endswith("still here")
    with pytest.raises(InvalidArgumentError, match="can't log to"):
        configured(destination=folder / "daemon.log")


def test_a_file_whose_disk_was_full_is_opened_anew(configured: Configured, tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "daemon.log", tmp_path / "elsewhere.log"
    path.symlink_to("/dev/full")
    output = configured(destination=path)
    log.warning("nobody will read this")
    path.unlink()
    path.symlink_to(elsewhere)
    output.reopen()
    log.warning("there is room again")
    (line,) = elsewhere.read_text().splitlines()
    assert line.endswith("there is room again")


def test_logging_ends_without_an_error_where_the_disk_is_full(configured: Configured) -> None:
    output = configured(destination=Path("/dev/full"))
    log.warning("nobody will read this")
    output.close()


def test_the_level_can_change(configured: Configured, capsys: pytest.CaptureFixture[str]) -> None:
    output = configured(level="error")
    log.warning("not yet")
    output.set_level("debug")
    log.debug("now")
    logging.getLogger("another.library").debug("never")
    assert capsys.readouterr().err == "latentfs: DEBUG: now\n"


def test_syslog_gets_lines_with_facility_and_severity_and_may_be_started_anew(
    configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    monkeypatch.setattr(logs, "_SYSLOG_SOCKET", str(path))
    with pytest.raises(InvalidArgumentError, match="can't log to syslog"):
        configured(destination="syslog")
    with listening(path) as syslog:
        configured(destination="syslog")
        log.warning("a line")
        assert syslog.recv(1000).decode() == (
            f"<28>latentfs[{os.getpid()}]: latentfs: WARNING: a line"
        )
    path.unlink()
    log.warning("into the void")
    with listening(path) as syslog:
        log.error("again")
        assert syslog.recv(1000).decode().startswith("<27>")


def test_a_syslog_that_hangs_is_waited_for_once_in_a_while(
    configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, waits = 0.0, 0

    class Syslog(socket.socket):
        def send(self, *data: Any) -> int:
            nonlocal waits
            try:
                return super().send(*data)
            except TimeoutError:
                waits += 1
                raise

    path = tmp_path / "log"
    monkeypatch.setattr(logs, "_SYSLOG_SOCKET", str(path))
    monkeypatch.setattr(logs, "_SYSLOG_WAIT_S", 0.01)
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: now_s))
    with listening(path) as syslog:
        monkeypatch.setattr("socket.socket", Syslog)
        configured(destination="syslog")
        now_s = 1000.0
        for expected in (1, 2):
            for _ in range(2000):  # more than the queue of a socket takes
                log.warning("a line")
            assert waits == expected
            now_s += 11
        while b"again" not in syslog.recv(1000):
            log.warning("again")
    assert waits == 2


def listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.settimeout(30)
    listener.bind(str(path))
    return listener


def test_what_a_renderer_prints_is_logged_with_its_level_and_process(
    configured: Configured, capsys: pytest.CaptureFixture[str]
) -> None:
    configured()
    error = {"level": "ERROR", "message": "request 3 failed", "exception": "Traceback\nValueError"}
    debug = {"level": "DEBUG", "message": "too much"}
    odd = {"level": ["WARNING"], "message": 7}
    printed = [json.dumps(error), json.dumps(debug), json.dumps(odd), "[W] \udcff chatter \x1b[0m"]
    data = "\n".join(printed).encode("utf-8", "surrogateescape")
    _log_lines(io.BytesIO(data), 12)
    assert capsys.readouterr().err.splitlines() == [
        "latentfs: ERROR: renderer 12: request 3 failed",
        "  Traceback",
        "  ValueError",
        f"latentfs: WARNING: renderer 12: {json.dumps(odd)}",
        "latentfs: WARNING: renderer 12: [W] \\xff chatter \\x1b[0m",
    ]
