"""Nothing but an errno leaves a handler."""

from __future__ import annotations

import errno

import pytest
import trio
from pyfuse3 import FUSEError

from latentfs.errors import LatentfsError, RefusedChangeError, StoreCorruptError
from latentfs.fs.guard import guarded


class Handlers:
    def __init__(self) -> None:
        self.errors = 0
        self.done: list[tuple[str, int]] = []

    def operation_done(self, name: str, number: int, elapsed_s: float) -> None:
        assert elapsed_s >= 0
        self.done.append((name, number))

    def count_error(self) -> None:
        self.errors += 1

    @guarded
    async def handle(self, outcome: object) -> object:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


async def test_an_answer_goes_through():
    handlers = Handlers()
    assert await handlers.handle(b"answer") == b"answer"
    assert handlers.done == [("handle", 0)]


@pytest.mark.parametrize(
    ("error", "number", "counted"),
    [
        (FUSEError(errno.ENOENT), errno.ENOENT, 0),
        (RefusedChangeError(errno.ENOTEMPTY, "not empty"), errno.ENOTEMPTY, 0),
        (RefusedChangeError(errno.ENOSPC, "full"), errno.ENOSPC, 0),
        (StoreCorruptError("damaged"), errno.EIO, 1),
        (LatentfsError("anything"), errno.EIO, 1),
        (KeyError(7), errno.EIO, 1),
        (ExceptionGroup("several", [ValueError()]), errno.EIO, 1),
    ],
)
async def test_every_error_becomes_an_errno(error, number, counted):
    handlers = Handlers()
    with pytest.raises(FUSEError) as caught:
        await handlers.handle(error)
    assert caught.value.errno == number
    assert handlers.errors == counted
    assert handlers.done == [("handle", number)]


async def test_a_handler_that_is_cancelled_ends_so(autojump_clock):
    handlers = Handlers()

    @guarded
    async def waits(self: Handlers) -> None:
        await trio.sleep_forever()

    with trio.move_on_after(1) as scope:
        await waits(handlers)
    assert scope.cancelled_caught
    assert handlers.errors == 0
    assert handlers.done == []
