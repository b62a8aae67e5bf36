"""GDSF (Cherkasova, 1998): greedy dual with size and frequency."""

from __future__ import annotations

import heapq
from collections.abc import Hashable

from cachesim.policies.policy import OnEvicted

__all__ = ["Gdsf"]

_SPARE_QUEUE_ITEMS = 64


class _Entry:
    __slots__ = ("cost_s", "key", "priority", "queued_priority", "size_bytes", "uses")

    def __init__(self, key: Hashable, size_bytes: int, cost_s: float) -> None:
        self.key = key
        self.size_bytes = size_bytes
        self.cost_s = cost_s
        self.uses = 1
        self.priority = 0.0
        self.queued_priority = -1.0  # of its valid item in the queue; -1: it has none


class Gdsf:
    """A `cachesim.policies.policy.Policy` which weighs bytes by what they save.

    The priority of an object is ``clock + uses * cost_s / size_bytes`` as of its last use; the
    lowest goes first, and the clock is set to it, so that what nobody uses ages.

    A use only raises the priority, so the queue may hold the old one: an item which comes to its
    front and is out of date goes back with the priority of now.
    """

    __slots__ = (
        "_clock",
        "_entries",
        "_on_evicted",
        "_queue",
        "_serial",
        "budget_bytes",
        "held_bytes",
    )

    def __init__(self, budget_bytes: int, *, on_evicted: OnEvicted | None = None) -> None:
        self.budget_bytes = budget_bytes
        self.held_bytes = 0
        self._entries: dict[Hashable, _Entry] = {}
        self._queue: list[tuple[float, int, _Entry]] = []  # a heap; of equals the oldest first
        self._serial = 0
        self._clock = 0.0
        self._on_evicted = on_evicted

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def get(self, key: Hashable) -> bool:
        entry = self._entries.get(key)
        if entry is None:
            return False
        entry.uses += 1
        entry.priority = self._clock + entry.uses * entry.cost_s / entry.size_bytes
        return True

    def put(self, key: Hashable, size_bytes: int, cost_s: float) -> bool:
        entry = self._remove(key)
        if size_bytes > self.budget_bytes:
            if entry is not None and self._on_evicted is not None:
                self._on_evicted(key, entry.size_bytes)
            return False
        if self.held_bytes + size_bytes > self.budget_bytes:
            self._evict_to(self.budget_bytes - size_bytes)
        if entry is None:
            entry = _Entry(key, size_bytes, cost_s)
        else:
            entry.uses, entry.size_bytes, entry.cost_s = entry.uses + 1, size_bytes, cost_s
        entry.priority = self._clock + entry.uses * cost_s / size_bytes
        self._entries[key] = entry
        self.held_bytes += size_bytes
        self._enqueue(entry)
        return True

    def resize(self, budget_bytes: int) -> None:
        self._evict_to(budget_bytes)
        self.budget_bytes = budget_bytes

    def discard(self, key: Hashable) -> None:
        self._remove(key)

    def _remove(self, key: Hashable) -> _Entry | None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.held_bytes -= entry.size_bytes
            entry.queued_priority = -1.0
        return entry

    def _enqueue(self, entry: _Entry) -> None:
        entry.queued_priority = entry.priority
        self._serial += 1
        heapq.heappush(self._queue, (entry.priority, self._serial, entry))
        if len(self._queue) > 2 * len(self._entries) + _SPARE_QUEUE_ITEMS:
            self._drop_invalid_items()

    def _drop_invalid_items(self) -> None:
        self._queue = [item for item in self._queue if item[2].queued_priority == item[0]]
        heapq.heapify(self._queue)

    def _evict_to(self, limit_bytes: int) -> None:
        while self.held_bytes > limit_bytes:
            priority, _, entry = self._queue[0]
            if entry.queued_priority != priority:
                heapq.heappop(self._queue)
            elif entry.priority != priority:
                self._serial += 1
                entry.queued_priority = entry.priority
                heapq.heapreplace(self._queue, (entry.priority, self._serial, entry))
            else:
                heapq.heappop(self._queue)
                self._clock = priority
                self._remove(entry.key)
                if self._on_evicted is not None:
                    self._on_evicted(entry.key, entry.size_bytes)
