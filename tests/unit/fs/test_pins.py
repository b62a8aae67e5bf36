"""Which handles keep their rendition where not all can."""

from __future__ import annotations

import trio

from latentfs.fs.open_file import OpenFile
from latentfs.fs.pins import Pins
from latentfs.render.job_queue import Reader
from latentfs.store.records import Inode

INODE = Inode(0o100644, 0, 0, 1, 100, 0, 0)


def open_file() -> OpenFile:
    return OpenFile(1, INODE, Reader(1, 1), 0)


async def test_who_has_just_come_takes_nothing_from_those_that_are_read(autojump_clock):
    """Else readers in turns would lose what they have at each read, and render it for the next."""
    pins = Pins(250)
    files = [open_file() for _ in range(3)]
    for _ in range(4):
        for fh, file in enumerate(files):
            pins.pin(fh, file, file.rendition or bytes(100), fh)
            await trio.sleep(0.1)
        assert [file.rendition is not None for file in files] == [True, True, False]
        assert pins.held_bytes == 200
    pins.unpin(0)
    pins.pin(2, files[2], bytes(100), 2)
    assert [file.rendition is not None for file in files] == [False, True, True]


async def test_who_has_not_read_for_a_while_gives_way(autojump_clock):
    pins = Pins(250)
    idle, busy, new = files = [open_file() for _ in range(3)]
    pins.pin(0, idle, bytes(100), 0)
    for _ in range(6):
        pins.pin(1, busy, busy.rendition or bytes(100), 1)
        await trio.sleep(1)
    pins.pin(2, new, bytes(100), 2)
    assert [file.rendition is not None for file in files] == [False, True, True]
    assert pins.held_bytes == 200


async def test_bytes_that_handles_share_count_once(autojump_clock):
    pins = Pins(250)
    files = [open_file() for _ in range(5)]
    shared = bytes(range(200))
    for fh, file in enumerate(files):
        pins.pin(fh, file, shared, "shared")
    assert all(file.rendition is shared for file in files)
    assert pins.held_bytes == 200
    for fh in range(4):
        pins.unpin(fh)
    assert pins.held_bytes == 200
    pins.unpin(4)
    pins.unpin(4)
    assert pins.held_bytes == 0


async def test_what_is_larger_than_the_budget_is_not_kept(autojump_clock):
    pins = Pins(99)
    file = open_file()
    pins.pin(0, file, bytes(100), 0)
    assert file.rendition is None
    assert pins.held_bytes == 0
