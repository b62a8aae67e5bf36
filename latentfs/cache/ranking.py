"""Which pictures are worth their memory, and in which form.

A picture can be held as **pixels** (its finished file bytes), which saves a render, and as its
**latent** (what a renderer is given), which saves a fetch from the store.  Both forms of all
pictures compete for the same bytes, by what each of their bytes saves:

    requests expected x seconds saved / bytes

Nothing else decides, so the line between the two forms is wherever the values on both sides of it
are equal, and moves with them.

How often a picture will be asked for is judged by how often it was: each request counts as one, and
as half of one after a *half-life*.  Sums of such counts fall all at the same rate, so their order
stays as it is until the next request, and a heap can keep it.  They are kept as base-2 logarithms
of what they would be at time 0, so that nothing has to be updated as time goes by; time is counted
in half-lives.  This is LRFU (Lee et al., 2001), with costs and sizes.

An exponential is a poor guide to what nobody has asked for in many half-lives, which is what the
last latents are: so where the two forms are compared, the demand for latents may be taken to fall
slower.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from heapq import heapify, heappop, heappush, heapreplace
from math import inf, log, log2
from typing import Any, Generic, Protocol, TypeVar, cast

__all__ = ["Costs", "Decay", "Form", "Ranking"]

_HALF_LIFE_MIN = 64.0
_GHOSTS_MIN = 512
_DROPPED_MIN = 64
_FETCH_WEIGHT = 1.0

Pixels = TypeVar("Pixels")
Latent = TypeVar("Latent")


class Form(IntEnum):
    """What of a picture is held; of two, the more finished one."""

    NOTHING = 0
    LATENT = 1
    PIXELS = 2


@dataclass(frozen=True, slots=True)
class Decay:
    """How requests of the past tell of those to come.

    Attributes:
        half_life: after which a request counts half, in requests per picture that is held.
        latent_slowness: how much slower than that the demand for a latent is taken to fall.  Among
            what was not asked for in a long time the demand for new pictures falls ever slower,
            and that is where the last latents are.
    """

    half_life: float
    latent_slowness: float = 1.0


class Costs(Protocol):
    """What is saved: base-2 logarithms of seconds."""

    @property
    def fetch_log2_s(self) -> float: ...

    def render_log2_s(self, kind: Hashable) -> float:
        """Of a render of weight 1."""
        ...


class _Held(float):
    """One form of a picture that is held; as a number, its rank when it was put into a heap.

    Ranks only grow, so one that comes up first may have to go back; one that does not, is lowest.
    A number with attributes takes half the memory of a tuple with a record in it.

    Attributes:
        demand: log2 of the decayed number of requests, as it would be at time 0.
        size_bytes: 0 once it was dropped.
        weight: of what it saves.
    """

    __slots__ = ("demand", "key", "size_bytes", "value", "weight")

    key: Hashable
    value: Any
    demand: float
    size_bytes: int
    weight: float


_Heap = list[_Held]


class _Tier:
    """What is held of all pictures in one form.

    Args:
        cost_log2_s: that is saved by one of weight 1, by its kind; may change at any time.

    Attributes:
        held: by key.
        size_bytes: of all that.
        slowness: how much slower than a request loses weight the demand is taken to fall.
    """

    def __init__(self, cost_log2_s: Callable[[Hashable], float]) -> None:
        self.held: dict[Hashable, _Held] = {}
        self.size_bytes = 0
        self._cost_log2_s = cost_log2_s
        self._heaps: dict[Hashable, _Heap] = {}
        self._dropped = 0  # that are still in a heap
        self.slowness = 1.0

    def put(
        self,
        key: Hashable,
        value: object,
        *,
        demand: float,
        size_bytes: int,
        kind: Hashable,
        weight: float,
    ) -> None:
        self.drop(key)
        self.size_bytes += size_bytes
        heap = self._heaps.setdefault(kind, [])
        heappush(heap, self._ranked(key, value, demand, size_bytes, weight))

    def drop(self, key: Hashable) -> None:
        held = self.held.pop(key, None)
        if held is None:
            return
        self.size_bytes -= held.size_bytes
        held.size_bytes = 0
        held.value = None
        self._dropped += 1
        if self._dropped > len(self.held) + _DROPPED_MIN:
            self._sweep()

    def lowest(self, now: float) -> tuple[float, _Heap]:
        """Return what a byte saves where it saves least, and the heap that is the first of.

        As the rank it would have *now* with costs counted; infinite if there is nothing.
        """
        lowest, lowest_heap = inf, []
        for kind, heap in self._heaps.items():
            while heap:
                held = heap[0]
                if not held.size_bytes:
                    heappop(heap)
                    self._dropped -= 1
                elif held.demand + log2(held.weight / held.size_bytes) > held:
                    heapreplace(heap, self._ranked_anew(held))
                else:
                    slowed = (held.demand - now) * (1.0 - 1.0 / self.slowness)
                    rank = held - slowed + self._cost_log2_s(kind)
                    if rank < lowest:
                        lowest, lowest_heap = rank, heap
                    break
        return lowest, lowest_heap

    def pop(self, heap: _Heap) -> _Held:
        """Take out the first of a heap, as :meth:`lowest` left it."""
        held = heappop(heap)
        del self.held[held.key]
        self.size_bytes -= held.size_bytes
        return held

    def _ranked_anew(self, held: _Held) -> _Held:
        return self._ranked(held.key, held.value, held.demand, held.size_bytes, held.weight)

    def _ranked(
        self, key: Hashable, value: object, demand: float, size_bytes: int, weight: float
    ) -> _Held:
        self.held[key] = held = _Held(demand + log2(weight / size_bytes))
        held.key = key
        held.value = value
        held.demand = demand
        held.size_bytes = size_bytes
        held.weight = weight
        return held

    def _sweep(self) -> None:
        for heap in self._heaps.values():
            heap[:] = [held for held in heap if held.size_bytes]
            heapify(heap)
        self._dropped = 0


class _Ghosts:
    """The demand for pictures that are not held, as long as there is room: the latest ones."""

    def __init__(self) -> None:
        self._young: dict[Hashable, float] = {}
        self._old: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._young or key in self._old

    def pop(self, key: Hashable) -> float:
        """Return the demand for a picture and forget it; -inf if none is known."""
        demand = self._young.pop(key, None)
        return self._old.pop(key, -inf) if demand is None else demand

    def put(self, key: Hashable, demand: float, *, room: int) -> None:
        if len(self._young) >= room // 2:
            self._old, self._young = self._young, {}
        self._young[key] = demand


class Ranking(Generic[Pixels, Latent]):
    """Holds what is worth it within a budget of bytes.  All sizes and weights are above 0.

    Args:
        budget_bytes: never exceeded.
        pixel_share: of the budget for pixels, from 0 to 1, the rest being for latents; None for
            wherever they save most.
        costs: may change at any time.
        decay: may be set at any time.
        on_evicted: called with the key of each picture and the form that is no longer held; not for
            what is discarded.
    """

    def __init__(
        self,
        *,
        budget_bytes: int,
        pixel_share: float | None,
        costs: Costs,
        decay: Decay,
        on_evicted: Callable[[Hashable, Form], None],
    ) -> None:
        self._budget_bytes = budget_bytes
        self._pixel_share = pixel_share
        self._on_evicted = on_evicted
        self._decay = decay
        self._now = 0.0
        self._pictures = 0
        self._ghosts = _Ghosts()
        self._pixels = _Tier(costs.render_log2_s)
        self._latents = _Tier(lambda kind: costs.fetch_log2_s)
        self._latents.slowness = decay.latent_slowness

    @property
    def pixel_bytes(self) -> int:
        return self._pixels.size_bytes

    @property
    def latent_bytes(self) -> int:
        return self._latents.size_bytes

    @property
    def pixel_entries(self) -> int:
        return len(self._pixels.held)

    @property
    def latent_entries(self) -> int:
        return len(self._latents.held)

    @property
    def decay(self) -> Decay:
        return self._decay

    @decay.setter
    def decay(self, decay: Decay) -> None:
        # At a steady rate the decayed number of requests is in proportion to the half-life, so what
        # was counted with a longer one is made comparable to what will be.
        self._now += max(0.0, log2(self._decay.half_life / decay.half_life))
        self._decay = decay
        self._latents.slowness = decay.latent_slowness

    def half_life_requests(self) -> float:
        """Requests after which one counts half."""
        return max(_HALF_LIFE_MIN, self._decay.half_life * self._pictures)

    def __len__(self) -> int:
        """Pictures of which something is held."""
        return self._pictures

    def __iter__(self) -> Iterator[Hashable]:
        yield from self._pixels.held
        yield from (key for key in self._latents.held if key not in self._pixels.held)

    def knows(self, key: Hashable) -> bool:
        """Whether the picture is held, or was lately asked for."""
        return self.form(key) is not Form.NOTHING or key in self._ghosts

    def form(self, key: Hashable) -> Form:
        """Return what is held of a picture, without counting that as a request."""
        if key in self._pixels.held:
            return Form.PIXELS
        return Form.LATENT if key in self._latents.held else Form.NOTHING

    def pixels(self, key: Hashable) -> Pixels | None:
        """Return the pixels of a picture if they are held; not a request."""
        held = self._pixels.held.get(key)
        return None if held is None else cast(Pixels, held.value)

    def latent(self, key: Hashable) -> Latent | None:
        """Return the latent of a picture if it is held; not a request."""
        held = self._latents.held.get(key)
        return None if held is None else cast(Latent, held.value)

    def request(self, key: Hashable) -> Form:
        """Count a request; return what is held of the picture."""
        self._now = now = self._now + 1.0 / self.half_life_requests()
        pixels = self._pixels.held.get(key)
        latent = self._latents.held.get(key)
        if pixels is not None:
            pixels.demand = demand = _one_more(pixels.demand, now)
            if latent is not None:
                latent.demand = demand
            return Form.PIXELS
        if latent is not None:
            latent.demand = _one_more(latent.demand, now)
            return Form.LATENT
        self._remember(key, _one_more(self._ghosts.pop(key), now))
        return Form.NOTHING

    def hold_latent(self, key: Hashable, latent: Latent, *, size_bytes: int) -> bool:
        """Hold a latent; if each of its bytes saves less than all others, it is evicted at once.

        One that was held before is replaced.

        Returns:
            False if it is larger than the budget, and nothing was done.
        """
        if size_bytes > self._latent_budget_bytes():
            return False
        demand = self._demand_to_hold(key)
        self._latents.put(
            key, latent, demand=demand, size_bytes=size_bytes, kind=None, weight=_FETCH_WEIGHT
        )
        self._fit()
        return True

    def hold_pixels(
        self, key: Hashable, pixels: Pixels, *, size_bytes: int, kind: Hashable, weight: float
    ) -> bool:
        """Hold the pixels of a picture, as :meth:`hold_latent` does its latent.

        Args:
            kind: of its render.
            weight: of its render; one of weight 1 costs what is known of its kind.

        Returns:
            False if they are larger than the budget, and nothing was done.
        """
        if size_bytes > self._pixel_budget_bytes():
            return False
        demand = self._demand_to_hold(key)
        self._pixels.put(
            key, pixels, demand=demand, size_bytes=size_bytes, kind=kind, weight=weight
        )
        self._fit()
        return True

    def discard(self, key: Hashable) -> None:
        """Forget a picture, in all its forms."""
        self._ghosts.pop(key)
        if self.form(key) is not Form.NOTHING:
            self._pictures -= 1
            self._pixels.drop(key)
            self._latents.drop(key)

    def divide(self, pixel_share: float | None) -> None:
        """Set the share of the budget for pixels; what no longer fits is evicted at once."""
        self._pixel_share = pixel_share
        self._fit()

    def resize(self, budget_bytes: int) -> None:
        """Set the budget; what no longer fits is evicted."""
        self._budget_bytes = budget_bytes
        self._fit()

    def edges(self) -> tuple[float, float]:
        """Return what the least valuable byte of pixels and of latents saves.

        In seconds for each request of any picture; infinite where there are none.
        """
        scale = log2(self.half_life_requests() / log(2)) + self._now
        pixels, latent = self._pixels.lowest(self._now)[0], self._latents.lowest(self._now)[0]
        return _seconds(pixels - scale), _seconds(latent - scale)

    def _demand_to_hold(self, key: Hashable) -> float:
        """Return the demand for a picture of which something is about to be held."""
        held = self._pixels.held.get(key, self._latents.held.get(key))
        if held is not None:
            return held.demand
        self._pictures += 1
        demand = self._ghosts.pop(key)
        return self._now if demand == -inf else demand

    def _remember(self, key: Hashable, demand: float) -> None:
        self._ghosts.put(key, demand, room=max(_GHOSTS_MIN, self._pictures // 4))

    def _fit(self) -> None:
        pixels, latents = self._pixels, self._latents
        if self._pixel_share is None:
            if pixels.size_bytes + latents.size_bytes > self._budget_bytes:
                self._evict_what_saves_least()
            return
        while pixels.size_bytes > self._pixel_budget_bytes():
            self._evict(Form.PIXELS, pixels.lowest(self._now)[1])
        while latents.size_bytes > self._latent_budget_bytes():
            self._evict(Form.LATENT, latents.lowest(self._now)[1])

    def _evict_what_saves_least(self) -> None:
        pixels, latents = self._pixels, self._latents
        pixels_rank, pixels_heap = pixels.lowest(self._now)
        latent_rank, latents_heap = latents.lowest(self._now)
        while pixels.size_bytes + latents.size_bytes > self._budget_bytes:
            if pixels_rank <= latent_rank:
                self._evict(Form.PIXELS, pixels_heap)
                pixels_rank, pixels_heap = pixels.lowest(self._now)
            else:
                self._evict(Form.LATENT, latents_heap)
                latent_rank, latents_heap = latents.lowest(self._now)

    def _pixel_budget_bytes(self) -> int:
        share = 1.0 if self._pixel_share is None else self._pixel_share
        return int(self._budget_bytes * share)

    def _latent_budget_bytes(self) -> int:
        share = 0.0 if self._pixel_share is None else self._pixel_share
        return self._budget_bytes - int(self._budget_bytes * share)

    def _evict(self, form: Form, heap: _Heap) -> None:
        held = (self._pixels if form is Form.PIXELS else self._latents).pop(heap)
        if self.form(held.key) is Form.NOTHING:
            self._pictures -= 1
            self._remember(held.key, held.demand)
        self._on_evicted(held.key, form)


def _one_more(demand: float, now: float) -> float:
    """Return the demand with a request made *now* added."""
    return now + log2(1.0 + 2.0 ** (demand - now))


def _seconds(log2_s: float) -> float:
    return inf if log2_s == inf else 2.0**log2_s
