"""What renders and fetches cost here, measured while they happen."""

from __future__ import annotations

from collections.abc import Hashable
from math import log2

__all__ = ["MeasuredCosts"]

# Taken for what has not been measured yet.
_FETCH_S = 1e-3
_RENDER_S = 0.1
_COST_MIN_S = 1e-6
# The last one counts for so much.
_NEWEST = 1 / 16
# One that took longer than so many ordinary ones was held up by something else.
_OUTLIER = 8.0


class MeasuredCosts:
    """Smoothed seconds of a fetch, and of a render of weight 1 by its kind.

    A kind of which no render was measured yet is taken to cost what others do on average.
    """

    def __init__(self) -> None:
        self._fetch_s: float | None = None
        self._renders_s: dict[Hashable, float] = {}
        self._fetch_log2_s = log2(_FETCH_S)
        self._renders_log2_s: dict[Hashable, float] = {}
        self._unknown_log2_s = log2(_RENDER_S)

    @property
    def fetch_s(self) -> float:
        return _FETCH_S if self._fetch_s is None else self._fetch_s

    @property
    def fetch_log2_s(self) -> float:
        return self._fetch_log2_s

    def render_s(self) -> dict[Hashable, float]:
        """Return the seconds of a render of weight 1, by kind."""
        return dict(self._renders_s)

    def render_log2_s(self, kind: Hashable) -> float:
        return self._renders_log2_s.get(kind, self._unknown_log2_s)

    def fetched(self, elapsed_s: float) -> None:
        self._fetch_s = _smoothed(self._fetch_s, elapsed_s)
        self._fetch_log2_s = log2(self._fetch_s)

    def rendered(self, kind: Hashable, elapsed_s: float, *, weight: float) -> None:
        render_s = _smoothed(self._renders_s.get(kind), elapsed_s / weight)
        self._renders_s[kind] = render_s
        self._renders_log2_s[kind] = log2(render_s)
        self._unknown_log2_s = log2(sum(self._renders_s.values()) / len(self._renders_s))


def _smoothed(before_s: float | None, newest_s: float) -> float:
    newest_s = max(_COST_MIN_S, newest_s)
    if before_s is None:
        return newest_s
    return before_s + _NEWEST * (min(newest_s, _OUTLIER * before_s) - before_s)
