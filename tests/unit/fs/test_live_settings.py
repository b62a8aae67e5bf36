"""Which settings of a running mount change when they are read anew, and what is said of it."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from latentfs.errors import InvalidArgumentError
from latentfs.fs.live_settings import LiveSettings
from latentfs.settings.mount_settings import MountSettings
from latentfs.settings.sources import SettingSources

BEFORE = (
    SettingSources(file=Path("/dev/null"), given={}, given_as={}, environment={}).resolve().settings
)


class Told:
    """What is called with new values, by the names of the settings."""

    def __init__(self, reread: Callable[[], MountSettings]) -> None:
        self.values: list[tuple[str, Any]] = []
        self.live = LiveSettings(
            BEFORE,
            reread=reread,
            on_change={name: self._taker(name) for name in ("prefetch", "slow_read", "device")},
        )

    def _taker(self, name: str) -> Callable[[Any], None]:
        return lambda value: self.values.append((name, value))


async def test_only_what_can_change_does_and_whoever_needs_it_is_told(caplog):
    caplog.set_level(logging.INFO)
    wanted = dataclasses.replace(BEFORE, cache_bytes=5, prefetch_files=3, device="cuda")
    told = Told(lambda: wanted)
    await told.live.reload()
    assert told.live.now == dataclasses.replace(wanted, device="auto")
    assert told.values == [("prefetch", 3)]
    assert "prefetch is 3 now, and was 8" in caplog.text
    assert "device stays auto" in caplog.text
    caplog.clear()
    await told.live.reload()
    assert [record.message[:12] for record in caplog.records] == ["device stays"]


@pytest.mark.parametrize(
    "error", [InvalidArgumentError("no such setting"), RecursionError("too deep"), OSError("gone")]
)
async def test_a_reload_survives_whatever_reading_ends_with(caplog, error):
    def reread() -> MountSettings:
        raise error

    told = Told(reread)
    await told.live.reload()
    assert told.live.now == BEFORE
    assert told.values == []
    assert "the settings stay as they are" in caplog.text
    assert str(error) in caplog.text


async def test_a_file_that_can_not_be_read_within_a_minute_changes_nothing(autojump_clock, caplog):
    may_go = threading.Event()

    def reread() -> MountSettings:
        assert may_go.wait(30)
        return dataclasses.replace(BEFORE, cache_bytes=5)

    told = Told(reread)
    start_s = trio.current_time()
    for _ in range(2):
        await told.live.reload()
    assert 120 <= trio.current_time() - start_s < 125
    assert caplog.text.count("takes over 60 s") == 2
    with trio.move_on_after(1) as ending:
        await told.live.reload()
    assert ending.cancelled_caught
    may_go.set()
    assert told.live.now == BEFORE
