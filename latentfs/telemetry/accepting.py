"""Taking connections, one after the other, for as long as the daemon lives."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

__all__ = ["serve_connections"]

log = logging.getLogger(__name__)

# Where files or memory have run out, each try would fail at once.
_RETRY_S = 1.0
_TOLD_EVERY_S = 60.0


async def serve_connections(
    listener: trio.abc.Listener[trio.SocketStream],
    handler: Callable[[trio.SocketStream], Awaitable[object]],
    *,
    pause_s: float = 0.0,
) -> None:
    """Run *handler* for each connection in a task of its own, until cancelled.

    The listener is closed then, and the handlers are cancelled.

    A connection that can't be taken, for want of files or memory, is tried again each second, and
    the log says so once a minute.  :func:`trio.serve_listeners` writes a traceback ten times a
    second.

    Args:
        pause_s: between two connections, so that those who connect all the time leave room for
            other work of the thread.
    """
    told_s = -_TOLD_EVERY_S
    async with listener, trio.open_nursery() as nursery:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if trio.current_time() - told_s >= _TOLD_EVERY_S:
                    log.error("a connection can't be accepted, and is tried again: %s", error)
                    told_s = trio.current_time()
                await trio.sleep(_RETRY_S)
                continue
            nursery.start_soon(handler, stream)
            await trio.sleep(pause_s)
