"""A pixel tier and a latent tier under one budget, with a line between them, fixed or moving."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Literal, TypeAlias

from cachesim.policies.lru import Lru
from cachesim.policies.policy import Policy, PolicyFactory

__all__ = ["Edge", "MovingLine", "Outcome", "ShadowedTwoTiers", "TwoTiers"]

Outcome: TypeAlias = Literal["pixel", "latent", "miss"]

_SMALLEST_STEP_SHARE = 0.001
_NEW_COST_WEIGHT = 0.02


class Edge:
    """What lies just outside of a tier, and what its next bytes would have saved.

    A ghost list holds the keys that left the tier last, as deep as *far* times *near_bytes*.

    Attributes:
        near_s, far_s: what the objects of the first *near_bytes*, and of the whole ghost, would
            have saved had they been held; old savings fade.
        full: whether the tier had to evict or refuse something since the line last moved its way.
    """

    __slots__ = (
        "_far",
        "_far_squares",
        "_ghost",
        "_ghost_bytes",
        "_left_bytes",
        "_near_bytes",
        "_near_squares",
        "far_s",
        "full",
        "near_s",
    )

    def __init__(self, near_bytes: int, *, far: int) -> None:
        # Bytes, and what had left in all by then; the latest to leave is last.
        self._ghost: OrderedDict[Hashable, tuple[int, int]] = OrderedDict()
        self._ghost_bytes = 0
        self._left_bytes = 0
        self._near_bytes = near_bytes
        self._far = far
        self._near_squares = 0.0
        self._far_squares = 0.0
        self.near_s = 0.0
        self.far_s = 0.0
        self.full = False

    def left(self, key: Hashable, size_bytes: int) -> None:
        """Note that the tier has evicted or refused *key*."""
        self.full = True
        ghost = self._ghost
        if key in ghost:
            self._ghost_bytes -= ghost.pop(key)[0]
        self._left_bytes += size_bytes
        self._ghost_bytes += size_bytes
        ghost[key] = (size_bytes, self._left_bytes)
        # One is kept even if it is larger than the ghost: no tier is blind.
        while self._ghost_bytes > self._far * self._near_bytes and len(ghost) > 1:
            self._ghost_bytes -= ghost.popitem(last=False)[1][0]

    def could_save(self, key: Hashable, cost_s: float) -> None:
        """Count *cost_s*, if the tier would have saved that by holding *key* longer."""
        ghost = self._ghost.get(key)
        if ghost is None:
            return
        self.far_s += cost_s
        self._far_squares += cost_s * cost_s
        if self._left_bytes - ghost[1] < self._near_bytes:
            self.near_s += cost_s
            self._near_squares += cost_s * cost_s

    def came_back(self, key: Hashable) -> None:
        """Forget that *key* has left."""
        if key in self._ghost:
            self._ghost_bytes -= self._ghost.pop(key)[0]

    def value_s(self) -> tuple[float, float]:
        """Return what *near_bytes* more would have saved, and the variance of that.

        Where only many bytes more save something, that is their savings, spread evenly: else no
        line would ever get through what lies before.
        """
        spread_s = self.far_s / self._far
        if spread_s > self.near_s:
            return spread_s, self._far_squares / self._far**2
        return self.near_s, self._near_squares

    def fade(self, factor: float) -> None:
        self.near_s *= factor
        self.far_s *= factor
        self._near_squares *= factor
        self._far_squares *= factor


class MovingLine:
    """Where the pixel tier ends and the latent tier begins, moved to where bytes save more.

    Each tier has a ghost of what left it last.  Who comes back from one shows what more bytes
    would have saved: a render, or a fetch, or both if it comes back as pixels and no latent is
    held.  Every *interval_requests* what *ghost_share* of the budget would have saved here and
    there is compared.  The line moves towards the greater, the faster the more they differ, by at
    most *step_share* of the budget and *tier_step_share* of the tier that shrinks, and only

    - if they differ by more than *confidence* standard deviations of chance, and
    - if the tier that would grow has filled what it was given before: it had to evict or refuse
      something since, or has less than a step left.

    Attributes:
        pixel_share: of the budget, 0 to 1.
        pixel_edge, latent_edge: what the line goes by.
    """

    def __init__(
        self,
        *,
        pixel_share: float = 0.5,
        ghost_share: float = 0.02,
        far: int = 8,
        interval_requests: int = 100,
        step_share: float = 0.02,
        tier_step_share: float = 0.05,
        half_life_requests: int = 1000,
        confidence: float = 1.0,
    ) -> None:
        """
        Args:
            far: how many times deeper than *ghost_share* the ghosts are.
            half_life_requests: after that many requests a saving counts half.
        """
        self.pixel_share = pixel_share
        self.interval_requests = interval_requests
        self.pixel_edge = Edge(0, far=far)
        self.latent_edge = Edge(0, far=far)
        self._ghost_share = ghost_share
        self._far = far
        self._step_share = step_share
        self._tier_step_share = tier_step_share
        self._confidence = confidence
        self._fading = 0.5 ** (interval_requests / half_life_requests)

    def begin(self, budget_bytes: int) -> None:
        """Start anew at the edges of a cache."""
        near_bytes = int(budget_bytes * self._ghost_share)
        self.pixel_edge = Edge(near_bytes, far=self._far)
        self.latent_edge = Edge(near_bytes, far=self._far)

    def move(self, *, free_pixel_share: float, free_latent_share: float) -> None:
        """Set the share anew; to be called every *interval_requests*.

        Args:
            free_pixel_share, free_latent_share: of the budget, what the tiers have not filled.
        """
        pixels, latents = self.pixel_edge, self.latent_edge
        pixel_s, pixel_variance = pixels.value_s()
        latent_s, latent_variance = latents.value_s()
        difference_s = pixel_s - latent_s
        growing, free_share = (
            (pixels, free_pixel_share) if difference_s > 0 else (latents, free_latent_share)
        )
        filled = growing.full or free_share < self._step_share
        chance_s = math.sqrt(pixel_variance + latent_variance)
        if filled and abs(difference_s) > self._confidence * chance_s:
            shrinking_share = 1 - self.pixel_share if growing is pixels else self.pixel_share
            largest = min(
                self._step_share,
                max(self._tier_step_share * shrinking_share, _SMALLEST_STEP_SHARE),
            )
            step = largest * difference_s / (pixel_s + latent_s)
            self.pixel_share = min(max(self.pixel_share + step, 0.0), 1.0)
            growing.full = False
        pixels.fade(self._fading)
        latents.fade(self._fading)


class TwoTiers:
    """Finished files and compressed latents, each kept by a policy of its own.

    Every request but a hit of pixels is followed by `rendered`, and a miss by `fetched` before
    that; other requests may come between.  Pixels that are evicted leave their latent where it
    is.

    Attributes:
        pixels, latents: the tiers; their budgets add up to ``budget_bytes``.
        line: what moves the line, or None where it is fixed.
    """

    def __init__(
        self, budget_bytes: int, *, policy: PolicyFactory, pixel_share: float | MovingLine
    ) -> None:
        """
        Args:
            budget_bytes: more than 0.
            pixel_share: of the budget, 0 to 1; or what finds it, made for this cache alone.
        """
        self.budget_bytes = budget_bytes
        self.line: MovingLine | None = None
        self._requests_until_move = 0
        if isinstance(pixel_share, MovingLine):
            self.line = pixel_share
            self.line.begin(budget_bytes)
            self._requests_until_move = self.line.interval_requests
            pixel_bytes = int(budget_bytes * pixel_share.pixel_share)
            self.pixels: Policy = policy(pixel_bytes, on_evicted=self.line.pixel_edge.left)
            self.latents: Policy = policy(
                budget_bytes - pixel_bytes, on_evicted=self.line.latent_edge.left
            )
        else:
            pixel_bytes = int(budget_bytes * pixel_share)
            self.pixels = policy(pixel_bytes)
            self.latents = policy(budget_bytes - pixel_bytes)

    @property
    def pixel_share(self) -> float:
        """Of the budget, as it is now."""
        return self.pixels.budget_bytes / self.budget_bytes

    def set_pixel_bytes(self, pixel_bytes: int) -> None:
        """Give pixels that much of the budget; what is too much then is evicted."""
        latent_bytes = self.budget_bytes - pixel_bytes
        if pixel_bytes < self.pixels.budget_bytes:
            self.pixels.resize(pixel_bytes)
            self.latents.resize(latent_bytes)
        elif pixel_bytes > self.pixels.budget_bytes:
            self.latents.resize(latent_bytes)
            self.pixels.resize(pixel_bytes)

    def request(self, key: Hashable) -> Outcome:
        """Return which form of *key* is held; a use of it."""
        if self.line is not None:
            self._requests_until_move -= 1
            if self._requests_until_move < 0:
                self._move_line(self.line)
        if self.pixels.get(key):
            return "pixel"
        return "latent" if self.latents.get(key) else "miss"

    def fetched(self, key: Hashable, latent_bytes: int, fetch_cost_s: float) -> None:
        """Take a latent which was not held."""
        line = self.line
        if line is None:
            self.latents.put(key, latent_bytes, fetch_cost_s)
            return
        line.latent_edge.could_save(key, fetch_cost_s)
        line.pixel_edge.could_save(key, fetch_cost_s)
        line.latent_edge.came_back(key)
        if not self.latents.put(key, latent_bytes, fetch_cost_s):
            line.latent_edge.left(key, latent_bytes)

    def rendered(self, key: Hashable, pixel_bytes: int, render_cost_s: float) -> None:
        """Take pixels which were not held."""
        line = self.line
        if line is None:
            self.pixels.put(key, pixel_bytes, render_cost_s)
            return
        line.pixel_edge.could_save(key, render_cost_s)
        line.pixel_edge.came_back(key)
        if not self.pixels.put(key, pixel_bytes, render_cost_s):
            line.pixel_edge.left(key, pixel_bytes)

    def _move_line(self, line: MovingLine) -> None:
        line.move(
            free_pixel_share=self._free_share(self.pixels),
            free_latent_share=self._free_share(self.latents),
        )
        self._requests_until_move = line.interval_requests - 1  # this request counts
        self.set_pixel_bytes(int(self.budget_bytes * line.pixel_share))

    def _free_share(self, tier: Policy) -> float:
        return (tier.budget_bytes - tier.held_bytes) / self.budget_bytes


class ShadowedTwoTiers:
    """Two tiers whose line is found by a shadow: two LRUs of keys, of the same budget.

    At the edge of an LRU it is plain what more bytes would save.  At that of a policy which sorts
    out most of what is new it is not: much that comes back from there would not have been held
    with more bytes either.

    For the shadow every key ever seen is remembered with its sizes.  What it would have to fetch
    or render, and the tiers hold, costs what that did lately for others.

    Attributes:
        tiers, shadow: both have the same share of pixels.
    """

    def __init__(self, budget_bytes: int, *, policy: PolicyFactory, line: MovingLine) -> None:
        self.tiers = TwoTiers(budget_bytes, policy=policy, pixel_share=line.pixel_share)
        self.shadow = TwoTiers(budget_bytes, policy=Lru, pixel_share=line)
        self._latent_bytes: dict[Hashable, int] = {}
        self._pixel_bytes: dict[Hashable, int] = {}
        self._fetch_cost_s: float | None = None  # on average, lately; None: never done
        self._render_cost_s: float | None = None

    @property
    def pixel_share(self) -> float:
        """Of the budget, as it is now."""
        return self.tiers.pixel_share

    def request(self, key: Hashable) -> Outcome:
        """Return which form of *key* is held; a use of it."""
        outcome = self.shadow.request(key)
        if self.shadow.pixels.budget_bytes != self.tiers.pixels.budget_bytes:
            self.tiers.set_pixel_bytes(self.shadow.pixels.budget_bytes)
        if outcome != "pixel" and key in self._pixel_bytes:
            self._take_in_shadow(key, fetch=outcome == "miss")
        return self.tiers.request(key)

    def fetched(self, key: Hashable, latent_bytes: int, fetch_cost_s: float) -> None:
        """Take a latent which was not held."""
        self._latent_bytes[key] = latent_bytes
        self._fetch_cost_s = _average(self._fetch_cost_s, fetch_cost_s)
        self.tiers.fetched(key, latent_bytes, fetch_cost_s)

    def rendered(self, key: Hashable, pixel_bytes: int, render_cost_s: float) -> None:
        """Take pixels which were not held."""
        is_first = key not in self._pixel_bytes
        self._pixel_bytes[key] = pixel_bytes
        self._render_cost_s = _average(self._render_cost_s, render_cost_s)
        if is_first:
            self._take_in_shadow(key, fetch=True)
        self.tiers.rendered(key, pixel_bytes, render_cost_s)

    def _take_in_shadow(self, key: Hashable, *, fetch: bool) -> None:
        assert self._fetch_cost_s is not None
        assert self._render_cost_s is not None
        if fetch:
            self.shadow.fetched(key, self._latent_bytes[key], self._fetch_cost_s)
        self.shadow.rendered(key, self._pixel_bytes[key], self._render_cost_s)


def _average(before_s: float | None, now_s: float) -> float:
    return now_s if before_s is None else before_s + (now_s - before_s) * _NEW_COST_WEIGHT
