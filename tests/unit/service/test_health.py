"""When the mount counts as well, and what systemd is told of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from latentfs.errors import MountError
from latentfs.service.health import Health, SelfRead, feed_watchdog
from latentfs.service.notify import Notifier

_open_process = trio.lowlevel.open_process


class ScriptedRead:
    """A self-read that goes as it is told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hangs = False
        self.asked = 0

    async def __call__(self) -> None:
        self.asked += 1
        if self.hangs:
            await trio.sleep(10)
            raise MountError("/srv/art does not answer within 10 s")
        if self.error is not None:
            raise self.error


class Manager:
    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening

    def said(self, name: str) -> list[str]:
        """What of that name has been said since the last time."""
        found: list[str] = []
        while True:
            try:
                text = self._listening.recv(4096).decode()
            except BlockingIOError:
                return found
            found += [line for line in text.split("\n") if line.startswith(f"{name}=")]


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "notify")


@pytest.fixture
def manager(address: str) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.setblocking(False)
        yield Manager(listening)


async def test_a_mount_that_answers_is_well(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    read = ScriptedRead()
    health = Health(read, late_after_s=lambda: 90.0)
    nursery.start_soon(health.run)
    await trio.sleep(1005)
    assert health.is_healthy
    assert health.problem() is None
    # The mock clock goes on with the real one, too.
    assert 95 <= read.asked <= 100


async def test_a_mount_that_has_not_answered_for_long_is_ill_until_it_does(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    read = ScriptedRead()
    health = Health(read, late_after_s=lambda: 90.0)
    nursery.start_soon(health.run)
    await trio.sleep(35)
    read.hangs = True
    await trio.sleep(80)
    assert health.is_healthy
    await trio.sleep(20)
    assert health.problem() == "no answer for 105 s: /srv/art does not answer within 10 s"
    read.hangs = False
    await trio.sleep(30)
    assert health.is_healthy


async def test_a_mount_that_took_long_to_answer_first_is_well_when_it_has(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    health = Health(ScriptedRead(), late_after_s=lambda: 90.0)
    await trio.sleep(200)
    assert health.problem() is not None
    health.note_answer()
    assert health.problem() is None
    nursery.start_soon(health.run)
    await trio.sleep(500)
    assert health.problem() is None


async def test_a_mount_that_answers_others_is_well_though_the_self_read_waits(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    read, answered = ScriptedRead(), [0]
    read.hangs = True
    health = Health(read, late_after_s=lambda: 90.0, answered_total=lambda: answered[0])
    nursery.start_soon(health.run)
    for _ in range(20):
        await trio.sleep(60)
        answered[0] += 1
        assert health.is_healthy
    await trio.sleep(130)
    assert not health.is_healthy


async def test_answers_before_the_last_that_came_back_do_not_count(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    read, answered = ScriptedRead(), [0]
    health = Health(read, late_after_s=lambda: 90.0, answered_total=lambda: answered[0])
    nursery.start_soon(health.run)
    await trio.sleep(5)
    answered[0] += 1
    await trio.sleep(10)
    read.hangs = True
    await trio.sleep(105)
    assert not health.is_healthy


async def test_a_mount_that_is_not_there_any_more_is_ill_whatever_it_answers(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    answered, is_mounted = itertools.count(), [True]
    health = Health(
        ScriptedRead(),
        late_after_s=lambda: 90.0,
        answered_total=lambda: next(answered),
        is_mounted=lambda: is_mounted[0],
    )
    nursery.start_soon(health.run)
    await trio.sleep(100)
    is_mounted[0] = False
    await trio.sleep(80)
    assert health.is_healthy
    await trio.sleep(20)
    problem = health.problem()
    assert problem is not None
    assert "not mounted there any more" in problem
    is_mounted[0] = True
    await trio.sleep(20)
    assert health.is_healthy


@pytest.mark.parametrize(
    "error", [OSError("no memory for another process"), RuntimeError("can't start new thread")]
)
async def test_a_question_that_could_not_be_asked_says_nothing_of_the_mount_for_five_minutes(
    nursery: trio.Nursery,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    read = ScriptedRead()
    read.error = error
    health = Health(read, late_after_s=lambda: 90.0)
    nursery.start_soon(health.run)
    await trio.sleep(380)
    assert health.is_healthy
    await trio.sleep(40)
    assert health.problem() == f"no answer for 420 s: it can't be asked: {error}"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    read.error = None
    await trio.sleep(20)
    assert health.is_healthy


async def test_a_silence_does_not_count_as_far_as_nothing_could_be_asked(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    read = ScriptedRead()
    health = Health(read, late_after_s=lambda: 90.0)
    nursery.start_soon(health.run)
    await trio.sleep(15)
    read.error = OSError("no memory for another process")
    await trio.sleep(200)
    read.error, read.hangs = None, True
    await trio.sleep(70)
    assert health.is_healthy
    await trio.sleep(40)
    assert not health.is_healthy


async def test_what_could_not_be_asked_may_have_answered_others(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    read, answered = ScriptedRead(), itertools.count()
    read.error = OSError("no memory for another process")
    health = Health(read, late_after_s=lambda: 90.0, answered_total=lambda: next(answered))
    nursery.start_soon(health.run)
    await trio.sleep(1000)
    assert health.is_healthy


async def test_the_watchdog_is_fed_four_times_in_its_interval_while_the_mount_is_well(
    nursery: trio.Nursery, autojump_clock: MockClock, manager: Manager, address: str
) -> None:
    read = ScriptedRead()
    health = Health(read, late_after_s=lambda: 90.0)
    notifier = Notifier(address, watchdog_interval_s=60)
    nursery.start_soon(health.run)
    nursery.start_soon(partial(feed_watchdog, notifier, health, status_text=lambda: "well"))
    await trio.sleep(121)
    assert len(manager.said("WATCHDOG")) == 9
    read.hangs = True
    await trio.sleep(120)
    manager.said("WATCHDOG")
    await trio.sleep(600)
    assert manager.said("WATCHDOG") == []
    read.hangs = False
    await trio.sleep(60)
    assert manager.said("WATCHDOG") != []


async def test_what_a_busy_manager_had_no_room_for_is_sent_again_soon(
    nursery: trio.Nursery, autojump_clock: MockClock, manager: Manager, address: str
) -> None:
    health = Health(ScriptedRead(), late_after_s=lambda: 90.0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others:
        others.setblocking(False)
        others.connect(address)
        with contextlib.suppress(BlockingIOError):
            while True:
                others.send(b"OTHERS=1")
    nursery.start_soon(health.run)
    notifier = Notifier(address, watchdog_interval_s=60)
    nursery.start_soon(partial(feed_watchdog, notifier, health, status_text=lambda: "well"))
    await trio.sleep(5)
    assert manager.said("WATCHDOG") == []
    await trio.sleep(2)
    assert manager.said("WATCHDOG") == ["WATCHDOG=1"]


async def test_a_status_is_sent_when_it_has_changed_and_says_what_is_wrong(
    nursery: trio.Nursery, autojump_clock: MockClock, manager: Manager, address: str
) -> None:
    read, texts = ScriptedRead(), ["12 renders"]
    health = Health(read, late_after_s=lambda: 90.0)
    nursery.start_soon(health.run)
    nursery.start_soon(
        partial(feed_watchdog, Notifier(address), health, status_text=lambda: texts[0])
    )
    await trio.sleep(301)
    assert manager.said("STATUS") == ["STATUS=12 renders"]
    texts[0] = "13 renders"
    await trio.sleep(6)
    assert manager.said("STATUS") == ["STATUS=13 renders"]
    read.hangs = True
    await trio.sleep(200)
    assert "does not answer" in manager.said("STATUS")[-1]


async def test_without_a_manager_there_is_nothing_to_do(autojump_clock: MockClock) -> None:
    health = Health(ScriptedRead(), late_after_s=lambda: 90.0)
    await feed_watchdog(Notifier(None), health, status_text=lambda: "")


async def test_a_folder_that_can_be_read_answers(tmp_path: Path) -> None:
    await SelfRead(tmp_path)()


async def test_a_folder_that_can_not_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="can't be read"):
        await SelfRead(tmp_path / "none")()


async def test_a_question_that_hangs_is_given_up_and_no_second_one_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[trio.Process] = []
    _ask_by(["sleep", "100"], asked, monkeypatch)
    # As for one that waits for a daemon that has its request.
    monkeypatch.setattr(trio.Process, "kill", lambda process: None)
    read = SelfRead(tmp_path, timeout_s=0.05)
    with pytest.raises(MountError, match=r"does not answer within 0\.05 s"):
        await read()
    with pytest.raises(MountError, match="still does not answer"):
        await read()
    assert len(asked) == 1
    os.kill(asked[0].pid, signal.SIGKILL)
    await asked[0].wait()
    _ask_by(["true"], asked, monkeypatch)
    await read()


async def test_a_cancelled_question_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[trio.Process] = []
    _ask_by(["sleep", "100"], asked, monkeypatch)
    with trio.move_on_after(0.2):
        await SelfRead(tmp_path)()
    with trio.fail_after(10):
        assert await asked[0].wait() == -signal.SIGKILL


def _ask_by(command: list[str], asked: list[trio.Process], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let self-reads run *command*, and note their processes in *asked*."""

    async def open_process(_command: object, **options: Any) -> trio.Process:
        process = await _open_process(command, **options)
        asked.append(process)
        return process

    monkeypatch.setattr(trio.lowlevel, "open_process", open_process)
