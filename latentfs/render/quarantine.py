"""Daemon side: contents that break renderers are refused for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import trio

__all__ = ["Quarantine"]

_LOSSES_MAX = 2
_REFUSED_FIRST_S = 60.0
_REFUSED_MAX_S = 3600.0
# A loss may have had another cause, such as a lack of memory: it is not held against a content
# for ever.
_REMEMBERED_S = 7200.0
_CONTENTS_MAX = 4096


@dataclass(slots=True)
class _Record:
    losses: int = 0
    last_loss_s: float = 0.0
    refused_s: float = 0.0
    refused_until_s: float = 0.0


class Quarantine:
    """Counts the renderers that were lost over each content.

    After the second a content is refused for a minute, and after each further one for twice as
    long as before, an hour at most.  A render of it clears it.
    """

    def __init__(self, *, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._records: OrderedDict[Hashable, _Record] = OrderedDict()

    def __len__(self) -> int:
        """Return how many contents are refused now."""
        now_s = self._clock()
        return sum(record.refused_until_s > now_s for record in self._records.values())

    def blame(self, content: Hashable, *, losses: int = 1) -> None:
        """Hold *losses* lost renderers against *content*."""
        now_s = self._clock()
        record = self._records.setdefault(content, _Record())
        if now_s - record.last_loss_s > _REMEMBERED_S:
            record.losses = 0
            record.refused_s = 0.0
        record.losses += losses
        record.last_loss_s = now_s
        if record.losses >= _LOSSES_MAX:
            record.refused_s = min(2 * record.refused_s or _REFUSED_FIRST_S, _REFUSED_MAX_S)
            record.refused_until_s = now_s + record.refused_s
        self._records.move_to_end(content)
        while len(self._records) > _CONTENTS_MAX:
            self._records.popitem(last=False)

    def clear(self, content: Hashable) -> None:
        """It was rendered, so it is well."""
        self._records.pop(content, None)

    def refused_for_s(self, content: Hashable) -> float:
        """Return for how many seconds *content* is still refused, 0 if it is not."""
        record = self._records.get(content)
        return 0.0 if record is None else max(0.0, record.refused_until_s - self._clock())
