"""SIEVE (Zhang et al., NSDI 2024): a queue, a visited bit, and a hand that sieves the queue."""

from __future__ import annotations

from collections.abc import Hashable

from cachesim.policies.policy import OnEvicted

__all__ = ["Sieve"]


class _Node:
    __slots__ = ("key", "newer", "older", "size_bytes", "visited")

    def __init__(self, key: Hashable, size_bytes: int, older: _Node | None) -> None:
        self.key = key
        self.size_bytes = size_bytes
        self.visited = False
        self.newer: _Node | None = None
        self.older = older


class Sieve:
    """A `cachesim.policies.policy.Policy`; costs are ignored.

    New objects go to the head.  The hand walks from the tail to the head and round again: it
    clears the bit of what was visited and evicts the first object that was not; there it waits.
    What is kept never moves, except that an object put again with more bytes becomes a new one.
    """

    __slots__ = ("_hand", "_head", "_nodes", "_on_evicted", "_tail", "budget_bytes", "held_bytes")

    def __init__(self, budget_bytes: int, *, on_evicted: OnEvicted | None = None) -> None:
        self.budget_bytes = budget_bytes
        self.held_bytes = 0
        self._nodes: dict[Hashable, _Node] = {}
        self._head: _Node | None = None
        self._tail: _Node | None = None
        self._hand: _Node | None = None  # None: at the tail
        self._on_evicted = on_evicted

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._nodes

    def get(self, key: Hashable) -> bool:
        node = self._nodes.get(key)
        if node is None:
            return False
        node.visited = True
        return True

    def put(self, key: Hashable, size_bytes: int, cost_s: float) -> bool:
        held = self._nodes.get(key)
        if held is not None:
            if size_bytes <= held.size_bytes:
                self.held_bytes -= held.size_bytes - size_bytes
                held.size_bytes = size_bytes
                held.visited = True
                return True
            self._remove(held)
        if size_bytes > self.budget_bytes:
            if held is not None and self._on_evicted is not None:
                self._on_evicted(key, held.size_bytes)
            return False
        self._evict_to(self.budget_bytes - size_bytes)
        self._insert(key, size_bytes)
        return True

    def resize(self, budget_bytes: int) -> None:
        self._evict_to(budget_bytes)
        self.budget_bytes = budget_bytes

    def discard(self, key: Hashable) -> None:
        node = self._nodes.get(key)
        if node is not None:
            self._remove(node)

    def _insert(self, key: Hashable, size_bytes: int) -> None:
        head = self._head
        node = _Node(key, size_bytes, head)
        if head is None:
            self._tail = node
        else:
            head.newer = node
        self._head = node
        self._nodes[key] = node
        self.held_bytes += size_bytes

    def _remove(self, node: _Node) -> None:
        newer, older = node.newer, node.older
        if newer is None:
            self._head = older
        else:
            newer.older = older
        if older is None:
            self._tail = newer
        else:
            older.newer = newer
        if self._hand is node:
            self._hand = newer
        del self._nodes[node.key]
        self.held_bytes -= node.size_bytes

    def _evict_to(self, limit_bytes: int) -> None:
        while self.held_bytes > limit_bytes:
            node = self._hand or self._tail
            assert node is not None
            while node.visited:
                node.visited = False
                node = node.newer or self._tail
                assert node is not None
            self._hand = node
            self._remove(node)
            if self._on_evicted is not None:
                self._on_evicted(node.key, node.size_bytes)
