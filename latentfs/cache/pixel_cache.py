"""The pixel cache: finished files by content, within a budget of bytes."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

__all__ = ["PixelCache", "PixelCacheStatistics"]


@dataclass(frozen=True, slots=True)
class PixelCacheStatistics:
    """Counters since the start, and what is held now.

    Attributes:
        hits, misses: lookups.
        evictions: entries dropped to keep within the budget.
        entries, bytes: held now.
        budget_bytes: never exceeded.
    """

    hits: int
    misses: int
    evictions: int
    entries: int
    bytes: int
    budget_bytes: int


class PixelCache:
    """Finished file bytes; the least recently used are evicted first.

    An evicted rendition that somebody still reads stays alive through their reference to it, and
    is no longer counted here.  All methods belong to one thread.
    """

    def __init__(self, *, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._entries: OrderedDict[Hashable, bytes] = OrderedDict()
        self._bytes = 0
        self._hits = 0
        self._misses = 0
        self._evictions = 0

    def get(self, key: Hashable) -> bytes | None:
        """Return the rendition of *key* and make it the most recently used."""
        data = self._entries.get(key)
        if data is None:
            self._misses += 1
            return None
        self._hits += 1
        self._entries.move_to_end(key)
        return data

    def holds(self, key: Hashable) -> bool:
        """Return whether *key* is here, without counting that as a use."""
        return key in self._entries

    def put(self, key: Hashable, data: bytes) -> None:
        """Keep *data*, evicting others for it; not kept if larger than the whole budget."""
        self.discard(key)
        cost_bytes = _cost_bytes(data)
        if cost_bytes > self._budget_bytes:
            return
        while self._bytes + cost_bytes > self._budget_bytes:
            _, evicted = self._entries.popitem(last=False)
            self._bytes -= _cost_bytes(evicted)
            self._evictions += 1
        self._entries[key] = data
        self._bytes += cost_bytes

    def discard(self, key: Hashable) -> None:
        data = self._entries.pop(key, None)
        if data is not None:
            self._bytes -= _cost_bytes(data)

    def statistics(self) -> PixelCacheStatistics:
        return PixelCacheStatistics(
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
            entries=len(self._entries),
            bytes=self._bytes,
            budget_bytes=self._budget_bytes,
        )


def _cost_bytes(data: bytes) -> int:
    return sys.getsizeof(data)
