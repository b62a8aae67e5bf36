"""S3-FIFO (Yang et al., SOSP 2023): a small queue sorts out what nobody asks for again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from cachesim.policies.policy import OnEvicted

__all__ = ["S3Fifo"]

_SMALL_SHARE = 0.1
_MAXIMUM_USES = 3


class _Entry:
    __slots__ = ("size_bytes", "uses")

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.uses = 0  # since it came into its queue, at most _MAXIMUM_USES


class S3Fifo:
    """A `cachesim.policies.policy.Policy`; costs are ignored.

    New objects go to the small queue (10% of the bytes, more as long as there is room).  Who was
    used more than once there moves to the main queue; the others are evicted, and remembered by a
    ghost queue: who comes back from it goes to the main queue at once.  The main queue gives each
    use a round.  The ghosts stand for as many bytes as the main queue may hold, which is as many
    entries where all have one size.
    """

    __slots__ = (
        "_ghost",
        "_ghost_bytes",
        "_main",
        "_main_budget_bytes",
        "_main_bytes",
        "_on_evicted",
        "_small",
        "_small_budget_bytes",
        "budget_bytes",
        "held_bytes",
    )

    def __init__(self, budget_bytes: int, *, on_evicted: OnEvicted | None = None) -> None:
        self._set_parts(budget_bytes)
        self.budget_bytes = budget_bytes
        self.held_bytes = 0
        # The oldest first, all three.
        self._small: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._main: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._ghost: OrderedDict[Hashable, int] = OrderedDict()
        self._main_bytes = 0
        self._ghost_bytes = 0
        self._on_evicted = on_evicted

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._main or key in self._small

    def get(self, key: Hashable) -> bool:
        entry = self._main.get(key) or self._small.get(key)
        if entry is None:
            return False
        if entry.uses < _MAXIMUM_USES:
            entry.uses += 1
        return True

    def put(self, key: Hashable, size_bytes: int, cost_s: float) -> bool:
        if key in self._main or key in self._small:
            return self._put_again(key, size_bytes)
        if size_bytes > self.budget_bytes:
            return False
        ghost_bytes = self._ghost.pop(key, 0)
        self._ghost_bytes -= ghost_bytes
        if self.held_bytes + size_bytes > self.budget_bytes:
            self._evict_to(self.budget_bytes - size_bytes)
        self._insert(key, _Entry(size_bytes), to_main=ghost_bytes > 0)
        return True

    def resize(self, budget_bytes: int) -> None:
        self._set_parts(budget_bytes)
        self._evict_to(budget_bytes)
        self.budget_bytes = budget_bytes
        self._trim_ghost()

    def discard(self, key: Hashable) -> None:
        self._remove(key)

    def _set_parts(self, budget_bytes: int) -> None:
        self._small_budget_bytes = int(budget_bytes * _SMALL_SHARE)
        self._main_budget_bytes = budget_bytes - self._small_budget_bytes

    def _put_again(self, key: Hashable, size_bytes: int) -> bool:
        in_main = key in self._main
        entry = self._remove(key)
        assert entry is not None
        if size_bytes > self.budget_bytes:
            if self._on_evicted is not None:
                self._on_evicted(key, entry.size_bytes)
            return False
        self._evict_to(self.budget_bytes - size_bytes)
        entry.size_bytes = size_bytes
        entry.uses = min(entry.uses + 1, _MAXIMUM_USES)
        self._insert(key, entry, to_main=in_main)
        return True

    def _insert(self, key: Hashable, entry: _Entry, *, to_main: bool) -> None:
        self.held_bytes += entry.size_bytes
        if to_main:
            self._main[key] = entry
            self._main_bytes += entry.size_bytes
        else:
            self._small[key] = entry

    def _remove(self, key: Hashable) -> _Entry | None:
        entry = self._main.pop(key, None)
        if entry is not None:
            self._main_bytes -= entry.size_bytes
        else:
            entry = self._small.pop(key, None)
        if entry is not None:
            self.held_bytes -= entry.size_bytes
        return entry

    def _evict_to(self, limit_bytes: int) -> None:
        while self.held_bytes > limit_bytes:
            small_bytes = self.held_bytes - self._main_bytes
            if self._small and (small_bytes >= self._small_budget_bytes or not self._main):
                self._evict_from_small()
            else:
                self._evict_from_main()

    def _evict_from_small(self) -> None:
        """Evict one object, or leave none in the small queue."""
        while self._small:
            key, entry = self._small.popitem(last=False)
            if entry.uses <= 1:
                self.held_bytes -= entry.size_bytes
                self._ghost[key] = entry.size_bytes
                self._ghost_bytes += entry.size_bytes
                self._trim_ghost()
                if self._on_evicted is not None:
                    self._on_evicted(key, entry.size_bytes)
                return
            entry.uses = 0
            self._main[key] = entry
            self._main_bytes += entry.size_bytes
            if self._main_bytes > self._main_budget_bytes:
                self._evict_from_main()
                return

    def _evict_from_main(self) -> None:
        while True:
            key, entry = self._main.popitem(last=False)
            if not entry.uses:
                break
            entry.uses -= 1
            self._main[key] = entry
        self._main_bytes -= entry.size_bytes
        self.held_bytes -= entry.size_bytes
        if self._on_evicted is not None:
            self._on_evicted(key, entry.size_bytes)

    def _trim_ghost(self) -> None:
        while self._ghost_bytes > self._main_budget_bytes:
            self._ghost_bytes -= self._ghost.popitem(last=False)[1]
