"""The interface of a policy: which objects of a tier stay within a budget of bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol, TypeAlias

__all__ = ["OnEvicted", "Policy", "PolicyFactory"]

# Called with the key and the bytes it was held with; must not call the policy.
OnEvicted: TypeAlias = Callable[[Hashable, int], None]


class Policy(Protocol):
    """Decides what is held; it holds keys and sizes, no data.

    All sizes are in bytes.  ``held_bytes`` never exceeds ``budget_bytes``, not even while
    ``on_evicted`` runs.  ``on_evicted`` is called once for every object that was held and no
    longer is, whatever the reason, except for ``discard``; an object that was never admitted is
    not evicted.
    """

    @property
    def held_bytes(self) -> int: ...

    @property
    def budget_bytes(self) -> int: ...

    def __len__(self) -> int: ...

    def __contains__(self, key: Hashable, /) -> bool:
        """Whether *key* is held; not a use."""
        ...

    def get(self, key: Hashable) -> bool:
        """Return whether *key* is held; counts as a use, also where it is not."""
        ...

    def put(self, key: Hashable, size_bytes: int, cost_s: float) -> bool:
        """Return whether *key* is held now; what has to go for it is evicted.

        For a key that is held already this changes size and cost, and is a use.

        Args:
            size_bytes: more than 0; what is larger than the budget is not held.
            cost_s: what getting the object again would take.
        """
        ...

    def resize(self, budget_bytes: int) -> None:
        """Change the budget, and evict until within it."""
        ...

    def discard(self, key: Hashable) -> None:
        """Forget *key* if it is held, without ``on_evicted``."""
        ...


class PolicyFactory(Protocol):
    """What makes a policy: each of the classes here."""

    def __call__(self, budget_bytes: int, *, on_evicted: OnEvicted | None = None) -> Policy: ...
