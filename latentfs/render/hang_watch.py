"""Daemon side: whether a renderer that has work still gets on with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

import trio

from latentfs.render.protocol import Alive

__all__ = ["HangWatch"]

# A renderer says once a second that it works.  One that was stopped is found out long before the
# deadline of the reads that wait for it.
_SILENT_MAX_S = 10.0
# Compiling a large VAE takes minutes.  It is no hang as long as it is no longer than this.
_COMPILING_MAX_S = 600.0


@dataclass(slots=True)
class HangWatch:
    """When a renderer was last heard of, and when it last finished something.

    Times are on trio's clock.  ``scope`` is that of the wait for its next message.
    """

    heard_s: float = inf
    progress_s: float = inf
    compiling_since_s: float | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def begin(self) -> None:
        """Note that it has been idle until now."""
        self.heard_s = self.progress_s = trio.current_time()

    def hear(self, message: object) -> None:
        """Note a message: an answer is progress, and so is compiling, for a while."""
        self.heard_s = trio.current_time()
        if not isinstance(message, Alive):
            self.progress_s = self.heard_s
        if not (isinstance(message, Alive) and message.compiling):
            self.compiling_since_s = None
            return
        if self.compiling_since_s is None:
            self.compiling_since_s = self.heard_s
        if self.heard_s - self.compiling_since_s <= _COMPILING_MAX_S:
            self.progress_s = self.heard_s

    def deadline_s(self, *, render_timeout_s: float, picture_max_s: float) -> float:
        """Return when it hangs, as it has been silent or has finished nothing for too long.

        Args:
            render_timeout_s: bounds how long it may be silent.
            picture_max_s: how long it may take for a picture.
        """
        return min(self.heard_s + _silent_max_s(render_timeout_s), self.progress_s + picture_max_s)

    def reason(self, *, render_timeout_s: float, picture_max_s: float) -> str:
        """Return what it failed to do until :meth:`deadline_s`, which has come."""
        silent_s = trio.current_time() - self.heard_s
        if silent_s >= _silent_max_s(render_timeout_s):
            return f"no sign of life in {silent_s:.1f} s"
        return f"no picture in {picture_max_s:g} s"


def _silent_max_s(render_timeout_s: float) -> float:
    return min(_SILENT_MAX_S, render_timeout_s / 2)
