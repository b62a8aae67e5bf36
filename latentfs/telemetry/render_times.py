"""How long renders took, by recipe and by stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from latentfs.latents.recipe import Recipe
from latentfs.telemetry.histogram import Histogram, HistogramStatistics

__all__ = ["OTHER_RECIPES", "RenderTimes"]

OTHER_RECIPES = "other"
"""Stands for all recipes beyond the first ones."""

# Each is a set of time series.
_RECIPES_MAX = 64


class RenderTimes:
    """Counts finished renders.  Belongs to the trio thread.

    Attributes:
        recipes: those that were used, by their short names; 64 at most.
    """

    def __init__(self) -> None:
        self.recipes: dict[str, Recipe] = {}
        self._work: defaultdict[str, Histogram] = defaultdict(Histogram)
        self._stages: defaultdict[str, Histogram] = defaultdict(Histogram)

    def rendered(
        self, name: str, recipe: Recipe, *, work_s: float, stages_s: Mapping[str, float]
    ) -> None:
        """Count a render by the recipe of that short *name*.

        Args:
            work_s: that the renderer worked for it.
            stages_s: all of its stages, those in which it waited among them.
        """
        if name not in self.recipes:
            if len(self.recipes) < _RECIPES_MAX:
                self.recipes[name] = recipe
            else:
                name = OTHER_RECIPES
        self._work[name].observe(work_s)
        for stage, elapsed_s in stages_s.items():
            self._stages[stage].observe(elapsed_s)

    def work_seconds(self) -> dict[str, HistogramStatistics]:
        """Return how long renderers worked for each render, by the short name of its recipe."""
        return {name: times.statistics() for name, times in self._work.items()}

    def stage_seconds(self) -> dict[str, HistogramStatistics]:
        return {stage: times.statistics() for stage, times in self._stages.items()}
