"""LRU: the least recently used object goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from cachesim.policies.policy import OnEvicted

__all__ = ["Lru"]


class Lru:
    """A `cachesim.policies.policy.Policy`; costs are ignored."""

    __slots__ = ("_on_evicted", "_sizes", "budget_bytes", "held_bytes")

    def __init__(self, budget_bytes: int, *, on_evicted: OnEvicted | None = None) -> None:
        self.budget_bytes = budget_bytes
        self.held_bytes = 0
        self._sizes: OrderedDict[Hashable, int] = OrderedDict()  # the least recently used first
        self._on_evicted = on_evicted

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._sizes

    def get(self, key: Hashable) -> bool:
        if key not in self._sizes:
            return False
        self._sizes.move_to_end(key)
        return True

    def put(self, key: Hashable, size_bytes: int, cost_s: float) -> bool:
        old_bytes = self._sizes.pop(key, 0)
        self.held_bytes -= old_bytes
        if size_bytes > self.budget_bytes:
            if old_bytes and self._on_evicted is not None:
                self._on_evicted(key, old_bytes)
            return False
        self._evict_to(self.budget_bytes - size_bytes)
        self._sizes[key] = size_bytes
        self.held_bytes += size_bytes
        return True

    def resize(self, budget_bytes: int) -> None:
        self._evict_to(budget_bytes)
        self.budget_bytes = budget_bytes

    def discard(self, key: Hashable) -> None:
        self.held_bytes -= self._sizes.pop(key, 0)

    def _evict_to(self, limit_bytes: int) -> None:
        while self.held_bytes > limit_bytes:
            key, size_bytes = self._sizes.popitem(last=False)
            self.held_bytes -= size_bytes
            if self._on_evicted is not None:
                self._on_evicted(key, size_bytes)
