"""W-TinyLFU (Einziger et al., 2017), admitting by size as its AV variant (2022)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from itertools import chain

from cachesim.policies.policy import OnEvicted

__all__ = ["FrequencySketch", "WTinyLfu"]

_WINDOW_SHARE = 0.01
_PROTECTED_SHARE = 0.8  # of what is not the window

_MAXIMUM_COUNT = 15
_HALVES = bytes(count // 2 for count in range(256))
_SMALLEST_WIDTH = 64
_COUNTERS_PER_ENTRY = 4  # in each row
_SAMPLE_PER_ENTRY = 10
_FIRST_FACTOR = 0x9E3779B97F4A7C15
_SECOND_FACTOR = 0xC2B2AE3D27D4EB4F


class FrequencySketch:
    """How often keys were seen lately: a count-min sketch of 4 rows of counters up to 15.

    After 10 keys seen for each entry of the cache all counters are halved.  A counter takes a
    byte here: in Python halving bytes is much faster than taking nibbles apart is worth.
    """

    __slots__ = ("_entries", "_mask", "_rows", "_seen")

    def __init__(self) -> None:
        self._mask = _SMALLEST_WIDTH - 1
        self._rows = tuple(bytearray(_SMALLEST_WIDTH) for _ in range(4))
        self._entries = _SMALLEST_WIDTH // _COUNTERS_PER_ENTRY
        self._seen = 0  # since the start or the last halving, halved with the counters

    def see(self, key: Hashable) -> None:
        """Count *key*."""
        mask = self._mask
        number = hash(key)
        first = number * _FIRST_FACTOR
        second = number * _SECOND_FACTOR
        row_0, row_1, row_2, row_3 = self._rows
        index = (first >> 36) & mask
        if row_0[index] < _MAXIMUM_COUNT:
            row_0[index] += 1
        index = (first >> 20) & mask
        if row_1[index] < _MAXIMUM_COUNT:
            row_1[index] += 1
        index = (second >> 36) & mask
        if row_2[index] < _MAXIMUM_COUNT:
            row_2[index] += 1
        index = (second >> 20) & mask
        if row_3[index] < _MAXIMUM_COUNT:
            row_3[index] += 1
        self._seen += 1
        if self._seen >= self._entries * _SAMPLE_PER_ENTRY:
            self._halve()

    def count(self, key: Hashable) -> int:
        """Return how often *key* was seen: at least that, as long as nothing was halved."""
        mask = self._mask
        number = hash(key)
        first = number * _FIRST_FACTOR
        second = number * _SECOND_FACTOR
        row_0, row_1, row_2, row_3 = self._rows
        return min(
            row_0[(first >> 36) & mask],
            row_1[(first >> 20) & mask],
            row_2[(second >> 36) & mask],
            row_3[(second >> 20) & mask],
        )

    def grow_for(self, entries: int) -> None:
        """Keep as precise as is due for *entries* in the cache; counts stay as they are."""
        if entries <= self._entries:
            return
        self._entries = entries
        while self._mask < entries * _COUNTERS_PER_ENTRY - 1:
            # A key falls on one of both copies of its old counter.
            self._rows = tuple(row * 2 for row in self._rows)
            self._mask = 2 * self._mask + 1

    def _halve(self) -> None:
        self._rows = tuple(row.translate(_HALVES) for row in self._rows)
        self._seen //= 2


class WTinyLfu:
    """A `cachesim.policies.policy.Policy`; costs are ignored.

    New objects pass a window, an LRU of 1% of the bytes; what is larger does without.  Who drops
    out of the window, or is too large for it, must be asked for more often than all those
    together that would go for it: the next in a segmented LRU, whose protected part of 80% takes
    what was used again.
    """

    __slots__ = (
        "_main_budget_bytes",
        "_main_bytes",
        "_on_evicted",
        "_probation",
        "_protected",
        "_protected_budget_bytes",
        "_protected_bytes",
        "_sketch",
        "_window",
        "_window_budget_bytes",
        "budget_bytes",
        "held_bytes",
    )

    def __init__(self, budget_bytes: int, *, on_evicted: OnEvicted | None = None) -> None:
        self._set_budgets(budget_bytes)
        self.held_bytes = 0
        # Sizes; the least recently used first, all three.
        self._window: OrderedDict[Hashable, int] = OrderedDict()
        self._probation: OrderedDict[Hashable, int] = OrderedDict()
        self._protected: OrderedDict[Hashable, int] = OrderedDict()
        self._main_bytes = 0
        self._protected_bytes = 0
        self._sketch = FrequencySketch()
        self._on_evicted = on_evicted

    def __len__(self) -> int:
        return len(self._window) + len(self._probation) + len(self._protected)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._protected or key in self._probation or key in self._window

    def get(self, key: Hashable) -> bool:
        self._sketch.see(key)
        if key in self._protected:
            self._protected.move_to_end(key)
        elif key in self._probation:
            self._protect(key, self._probation.pop(key))
        elif key in self._window:
            self._window.move_to_end(key)
        else:
            return False
        return True

    def put(self, key: Hashable, size_bytes: int, cost_s: float) -> bool:
        old_bytes = 0
        if key in self:
            if key not in self._window:
                return self._put_again_in_main(key, size_bytes)
            old_bytes = self._window.pop(key)
            self.held_bytes -= old_bytes
        if size_bytes <= self._window_budget_bytes:
            self._make_room_in_window(size_bytes)
            self._window[key] = size_bytes
            self.held_bytes += size_bytes
        elif not self._admitted_to_main(key, size_bytes):
            if old_bytes and self._on_evicted is not None:
                self._on_evicted(key, old_bytes)
            return False
        self._sketch.grow_for(len(self))
        return True

    def resize(self, budget_bytes: int) -> None:
        while self.held_bytes > budget_bytes:
            # The window is the last to go: it is small, and holds the newest.
            self._evict(next(chain(self._probation, self._protected, self._window)))
        self._set_budgets(budget_bytes)
        self._restore_parts()

    def discard(self, key: Hashable) -> None:
        self._remove(key)

    def _set_budgets(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._window_budget_bytes = int(budget_bytes * _WINDOW_SHARE)
        self._main_budget_bytes = budget_bytes - self._window_budget_bytes
        self._protected_budget_bytes = int(self._main_budget_bytes * _PROTECTED_SHARE)

    def _restore_parts(self) -> None:
        """Make window and main part keep to their own budgets, after those have changed."""
        while self.held_bytes - self._main_bytes > self._window_budget_bytes:
            key, size_bytes = self._window.popitem(last=False)
            self._probation[key] = size_bytes
            self._main_bytes += size_bytes
        while self._main_bytes > self._main_budget_bytes:
            self._evict(next(chain(self._probation, self._protected)))
        self._demote_to(self._protected_budget_bytes)

    def _put_again_in_main(self, key: Hashable, size_bytes: int) -> bool:
        protected = key in self._protected
        old_bytes = self._remove(key)
        if size_bytes > self._main_budget_bytes:
            if self._on_evicted is not None:
                self._on_evicted(key, old_bytes)
            return False
        while self._main_bytes + size_bytes > self._main_budget_bytes:
            self._evict(next(chain(self._probation, self._protected)))
        self._main_bytes += size_bytes
        self.held_bytes += size_bytes
        if protected:
            self._protect(key, size_bytes)
        else:
            self._probation[key] = size_bytes
        return True

    def _protect(self, key: Hashable, size_bytes: int) -> None:
        """Move an object, which the main part counts and neither half holds, to the protected."""
        if size_bytes > self._protected_budget_bytes:
            self._probation[key] = size_bytes
            return
        self._demote_to(self._protected_budget_bytes - size_bytes)
        self._protected[key] = size_bytes
        self._protected_bytes += size_bytes

    def _demote_to(self, limit_bytes: int) -> None:
        while self._protected_bytes > limit_bytes:
            key, size_bytes = self._protected.popitem(last=False)
            self._protected_bytes -= size_bytes
            self._probation[key] = size_bytes

    def _make_room_in_window(self, size_bytes: int) -> None:
        while self.held_bytes - self._main_bytes + size_bytes > self._window_budget_bytes:
            candidate, candidate_bytes = self._window.popitem(last=False)
            self.held_bytes -= candidate_bytes
            admitted = self._admitted_to_main(candidate, candidate_bytes)
            if not admitted and self._on_evicted is not None:
                self._on_evicted(candidate, candidate_bytes)

    def _admitted_to_main(self, key: Hashable, size_bytes: int) -> bool:
        """Take an object into probation, if it is worth more than what has to go for it."""
        if size_bytes > self._main_budget_bytes:
            return False
        needed_bytes = self._main_bytes + size_bytes - self._main_budget_bytes
        if needed_bytes > 0:
            victims = self._victims_for(key, needed_bytes)
            if victims is None:
                return False
            for victim in victims:
                self._evict(victim)
        self._probation[key] = size_bytes
        self._main_bytes += size_bytes
        self.held_bytes += size_bytes
        return True

    def _victims_for(self, key: Hashable, needed_bytes: int) -> list[Hashable] | None:
        """Return whom to evict for *key*, or None if they are worth as much as it together."""
        count = self._sketch.count
        left = count(key)
        victims = []
        for victim, victim_bytes in chain(self._probation.items(), self._protected.items()):
            left -= count(victim)
            if left <= 0:
                return None
            victims.append(victim)
            needed_bytes -= victim_bytes
            if needed_bytes <= 0:
                break
        return victims

    def _evict(self, key: Hashable) -> None:
        size_bytes = self._remove(key)
        if self._on_evicted is not None:
            self._on_evicted(key, size_bytes)

    def _remove(self, key: Hashable) -> int:
        """Return the bytes *key* was held with, or 0."""
        size_bytes = self._window.pop(key, 0)
        if not size_bytes:
            size_bytes = self._protected.pop(key, 0)
            self._protected_bytes -= size_bytes
            size_bytes = size_bytes or self._probation.pop(key, 0)
            self._main_bytes -= size_bytes
        self.held_bytes -= size_bytes
        return size_bytes
