"""The protocol of sd_notify, with a real socket."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentfs.service.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        yield listening


@pytest.fixture
def notifier(manager: socket.socket) -> Notifier:
    return Notifier(manager.getsockname())


def _next(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def test_each_state_is_a_message_of_its_own(manager: socket.socket, notifier: Notifier) -> None:
    notifier.status("/srv/art: 12 renders")
    notifier.ready()
    notifier.watchdog()
    notifier.extend_timeout(2.5)
    notifier.stopping()
    assert [_next(manager) for _ in range(5)] == [
        ["STATUS=/srv/art: 12 renders"],
        ["READY=1"],
        ["WATCHDOG=1"],
        ["EXTEND_TIMEOUT_USEC=2500000"],
        ["STOPPING=1"],
    ]


def test_a_reload_says_when_it_began(manager: socket.socket, notifier: Notifier) -> None:
    before_us = time.monotonic_ns() // 1000
    notifier.reloading()
    reloading, began = _next(manager)
    assert reloading == "RELOADING=1"
    name, _, value = began.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before_us <= int(value) <= time.monotonic_ns() // 1000


def test_a_status_stays_one_line(manager: socket.socket, notifier: Notifier) -> None:
    notifier.status("two\nREADY=1  lines")
    assert _next(manager) == ["STATUS=two READY=1 lines"]


def test_an_abstract_socket_is_spoken_to() -> None:
    name = f"latentfs-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        Notifier(f"@{name}").ready()
        assert _next(listening) == ["READY=1"]


def test_without_a_manager_nothing_happens() -> None:
    notifier = Notifier.from_environment({})
    assert not notifier.is_listened_to
    assert notifier.watchdog_interval_s is None
    notifier.ready()


def test_what_the_manager_gave_is_taken_out_of_the_environment(manager: socket.socket) -> None:
    environment = {
        "NOTIFY_SOCKET": manager.getsockname(),
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/root",
    }
    notifier = Notifier.from_environment(environment)
    assert environment == {"HOME": "/root"}
    assert notifier.watchdog_interval_s == 30
    notifier.ready()
    assert _next(manager) == ["READY=1"]


@pytest.mark.parametrize(
    ("interval", "pid"), [("30000000", "1"), ("", ""), ("0", ""), ("soon", ""), ("-5", "")]
)
def test_a_watchdog_for_another_process_or_of_no_interval_is_none(interval: str, pid: str) -> None:
    environment = {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": interval, "WATCHDOG_PID": pid}
    assert Notifier.from_environment(environment).watchdog_interval_s is None


def test_an_address_of_another_kind_is_ignored() -> None:
    assert not Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1234"}).is_listened_to


def test_what_a_busy_manager_has_no_room_for_goes_with_the_next_message(
    manager: socket.socket, notifier: Notifier
) -> None:
    sent = _fill(notifier)
    notifier.status("old")
    notifier.reloading()
    notifier.ready()
    notifier.status("new")
    for _ in range(sent):
        assert _next(manager) == ["WATCHDOG=1"]
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(4096)
    notifier.send_again()
    assert sorted(_next(manager)) == ["READY=1", "STATUS=new", "WATCHDOG=1"]
    notifier.send_again()
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


def _fill(notifier: Notifier) -> int:
    """Send until there is no room for more; how many messages there was room for."""
    for sent in range(10_000):
        notifier.watchdog()
        if notifier._unsent:
            return sent
    raise AssertionError("there is always room")


def test_a_manager_that_has_gone_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(str(tmp_path / "none"))
    with caplog.at_level(logging.WARNING):
        notifier.ready()
        notifier.watchdog()
    assert len(caplog.records) == 1
    assert "service manager" in caplog.text


def test_a_manager_that_has_come_back_is_spoken_to_again(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    notifier = Notifier(address)
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
            listening.bind(address)
            notifier.ready()
            assert _next(listening) == ["READY=1"]
        os.unlink(address)
        notifier.status("nobody hears this")
