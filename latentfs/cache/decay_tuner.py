"""How fast requests of the past should lose their weight, found while the requests come.

Popularity that stays is judged best by a long past, new pictures by a short one, and nothing suits
both.  So a few rankings that hold no bytes, each with a decay of its own, are shown a sample of the
pictures with a budget that is as much smaller; the one whose readers would have waited least is
right.  (Such miniature simulations are due to Waldspurger et al., 2017.)
"""

from __future__ import annotations

from collections.abc import Hashable

from latentfs.cache.ranking import Costs, Decay, Form, Ranking

__all__ = ["DECAYS", "DecayTuner"]

DECAYS = (
    Decay(0.5, latent_slowness=2.0),
    Decay(1.0, latent_slowness=4.0),
    Decay(4.0),
    Decay(32.0),
)
"""Those to choose from: for working sets that change, new pictures, something of all, and what
stays popular."""

_START = 2
# A sample of fewer pictures than that tells too little, of more too slowly.
_SAMPLE_MIN = 256
# Requests of the sample after which what was measured counts half, per picture of the sample.
_MEMORY = 4.0
_MEMORY_MIN = 500.0
# Another decay must be better by that part to be taken.
_BETTER_BY = 0.01


class _Trial:
    """A ranking with one of the decays.

    Attributes:
        waits_s: that readers would have had, all in all; old ones count less.
    """

    def __init__(
        self, decay: Decay, *, budget_bytes: int, pixel_share: float | None, costs: Costs
    ) -> None:
        self.waits_s = 0.0
        self.ranking: Ranking[None, None] = Ranking(
            budget_bytes=budget_bytes,
            pixel_share=pixel_share,
            costs=costs,
            decay=decay,
            on_evicted=_ignore,
        )


class DecayTuner:
    """Finds the decay that suits what is read now.

    Args:
        budget_bytes: of the cache it is for.
        pixel_share: as of :class:`Ranking`.
        costs: as of :class:`Ranking`.
    """

    def __init__(self, *, budget_bytes: int, pixel_share: float | None, costs: Costs) -> None:
        self._budget_bytes = budget_bytes
        self._costs = costs
        self._sampled_of = 1
        self._trials = [
            _Trial(decay, budget_bytes=budget_bytes, pixel_share=pixel_share, costs=costs)
            for decay in DECAYS
        ]
        self._chosen = _START
        self._seen = 0

    @property
    def decay(self) -> Decay:
        return DECAYS[self._chosen]

    @property
    def sampled_of(self) -> int:
        """One of how many pictures is in the sample."""
        return self._sampled_of

    def request(
        self, key: Hashable, *, pixel_bytes: int, latent_bytes: int, kind: Hashable, weight: float
    ) -> None:
        """Show a request to the trials, if the picture belongs to the sample."""
        if self._sampled_of > 1 and hash((key, 0)) % self._sampled_of:
            return
        render_s = 2.0 ** self._costs.render_log2_s(kind) * weight
        fetch_s = 2.0**self._costs.fetch_log2_s
        for trial in self._trials:
            ranking = trial.ranking
            form = ranking.request(key)
            if form is Form.PIXELS:
                continue
            trial.waits_s += render_s
            if form is Form.NOTHING:
                trial.waits_s += fetch_s
                ranking.hold_latent(key, None, size_bytes=latent_bytes)
            ranking.hold_pixels(key, None, size_bytes=pixel_bytes, kind=kind, weight=weight)
        self._seen += 1
        if self._seen % 64 == 0:
            self._judge()

    def resize(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        for trial in self._trials:
            trial.ranking.resize(budget_bytes // self._sampled_of)

    def divide(self, pixel_share: float | None) -> None:
        for trial in self._trials:
            trial.ranking.divide(pixel_share)

    def _judge(self) -> None:
        held = max(len(trial.ranking) for trial in self._trials)
        fading = 0.5 ** (64 / max(_MEMORY_MIN, _MEMORY * held))
        for trial in self._trials:
            trial.waits_s *= fading
        best = min(range(len(DECAYS)), key=lambda index: self._trials[index].waits_s)
        chosen_s = self._trials[self._chosen].waits_s
        if self._trials[best].waits_s < (1 - _BETTER_BY) * chosen_s:
            self._chosen = best
        if held >= 2 * _SAMPLE_MIN:
            self._sample_one_of(2 * self._sampled_of)
        elif held < _SAMPLE_MIN // 2 and self._sampled_of > 1:
            self._sample_one_of(self._sampled_of // 2)

    def _sample_one_of(self, sampled_of: int) -> None:
        self._sampled_of = sampled_of
        for trial in self._trials:
            for key in list(trial.ranking):
                if hash((key, 0)) % sampled_of:
                    trial.ranking.discard(key)
        self.resize(self._budget_bytes)


def _ignore(key: Hashable, form: Form) -> None:
    pass
