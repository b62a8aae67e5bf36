"""What replays of traces came to, kept as JSON, and what is judged by them."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass, fields, replace
from math import inf
from pathlib import Path

import numpy as np

from cachesim.simulator import Delays, Replay
from latentfs.cache.ranking import Form
from latentfs.errors import InvalidArgumentError

__all__ = [
    "AUTO",
    "EVEN",
    "PIXELS",
    "PLAIN",
    "PLAIN_LRU",
    "QUANTILES",
    "Judged",
    "Result",
    "Results",
    "Run",
    "judge_splits",
    "policy_results",
    "result_of",
    "split",
]

AUTO = "auto"
PLAIN = "plain"
PLAIN_LRU = "plain lru"

QUANTILES = (*range(0, 100, 4), 98.0, 99.0, 99.9)
_SHARES_KEPT = 80
_SPLIT = "split "


def split(pixel_share: float) -> str:
    """Return the name of the product's cache with a fixed split."""
    return f"{_SPLIT}{pixel_share:.2f}"


EVEN = split(0.5)
PIXELS = split(1.0)


@dataclass(frozen=True, slots=True, order=True)
class Run:
    """What was replayed.

    Attributes:
        cache: ``auto``; ``split 0.90`` with so much for pixels; ``plain`` and ``plain lru`` hold
            nothing but pixels, over a store of finished files; ``lru moving``, ``lru shadowed`` and
            ``lru 0.90`` are two tiers with that policy.
        fetch_ms, mb_per_s: of the store; None is no limit.
        render_ms: of a picture of weight 1; 0 for a store of finished files.
        budget: of the cache, as part of the bytes of all finished files.
    """

    trace: str
    budget: float
    fetch_ms: float
    mb_per_s: float | None
    render_ms: float
    cache: str

    def __post_init__(self) -> None:
        if self.plain:
            object.__setattr__(self, "render_ms", 0.0)

    @property
    def plain(self) -> bool:
        return self.cache in (PLAIN, PLAIN_LRU)

    @property
    def pixel_share(self) -> float | None:
        """Of a fixed split of the product's cache."""
        return float(self.cache[len(_SPLIT) :]) if self.cache.startswith(_SPLIT) else None

    @property
    def delays(self) -> Delays:
        return Delays(
            fetch_s=self.fetch_ms / 1e3,
            render_s=self.render_ms / 1e3,
            bytes_per_s=inf if self.mb_per_s is None else self.mb_per_s * 1e6,
        )

    def of(self, cache: str) -> Run:
        """Return the same with another cache."""
        return replace(self, cache=cache)


@dataclass(frozen=True, slots=True)
class Result:
    """What readers waited, in milliseconds, and which part of the requests found what.

    Attributes:
        quantiles_ms: at :data:`QUANTILES` percent, where a plot needs them.
        shares: part of the bytes that were pixels, evenly over the requests, where a plot needs it.
    """

    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    pixels: float
    latents: float
    misses: float
    quantiles_ms: list[float] | None = None
    shares: list[float] | None = None


def result_of(replayed: Replay, *, quantiles: bool = False, shares: bool = False) -> Result:
    """Return what is kept of a replay.

    Args:
        quantiles, shares: whether to keep those.
    """
    p50_ms, p95_ms, p99_ms, p999_ms = (
        round(replayed.percentile_s(percent) * 1e3, 2) for percent in (50, 95, 99, 99.9)
    )
    every = max(1, len(replayed.share_at) // _SHARES_KEPT)
    quantiles_ms = (np.percentile(replayed.waits_s, QUANTILES) * 1e3).tolist()
    return Result(
        mean_ms=round(replayed.mean_s * 1e3, 4),
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        p999_ms=p999_ms,
        pixels=round(replayed.part(Form.PIXELS), 4),
        latents=round(replayed.part(Form.LATENT), 4),
        misses=round(replayed.part(Form.NOTHING), 4),
        quantiles_ms=[round(value, 1) for value in quantiles_ms] if quantiles else None,
        shares=[round(part, 2) for _, part in replayed.share_at[::every]] if shares else None,
    )


@dataclass(slots=True)
class Results:
    """All results of traces of one size and seed."""

    requests: int
    pictures: int
    seed: int
    by_run: dict[Run, Result]

    @classmethod
    def load(cls, path: Path) -> Results:
        """Raises InvalidArgumentError for a file that isn't one of :meth:`save`."""
        try:
            read = json.loads(path.read_text())
            columns = len(_RUN_COLUMNS)
            by_run = {Run(*row[:columns]): Result(*row[columns:]) for row in read["rows"]}
            return cls(read["requests"], read["pictures"], read["seed"], by_run)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidArgumentError(
                f"{path} has no results ({error}); make it with tools/simulate_caches.py"
            ) from error

    def save(self, path: Path) -> None:
        """Write a line for each run."""
        rows = ",\n".join(
            json.dumps([*astuple(run), *_without_end(astuple(result))])
            for run, result in sorted(self.by_run.items(), key=lambda item: _order(item[0]))
        )
        columns = json.dumps([*_RUN_COLUMNS, *(field.name for field in fields(Result))])
        head = f'"requests": {self.requests}, "pictures": {self.pictures}, "seed": {self.seed}'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{{head},\n"columns": {columns},\n"rows": [\n{rows}\n]}}\n')

    def splits(self, run: Run) -> dict[float, Result]:
        """Return the results of all fixed splits in the place of *run*, by pixel share."""
        found = {
            other.pixel_share: result
            for other, result in self.by_run.items()
            if other.pixel_share is not None and other.of(run.cache) == run
        }
        return dict(sorted((share, result) for share, result in found.items() if share is not None))


@dataclass(frozen=True, slots=True)
class Judged:
    """The cache that finds its split by itself, against fixed ones; mean waits in milliseconds."""

    run: Run
    auto_ms: float
    best_share: float
    best_ms: float
    even_ms: float
    pixels_ms: float

    @property
    def over_best(self) -> float:
        """By what part readers wait longer than with the best fixed split; below 0: shorter."""
        return self.auto_ms / self.best_ms - 1


def judge_splits(results: Results) -> list[Judged]:
    """Judge every place that has been swept: a trace, delays and a budget."""
    judged = []
    for run in sorted(results.by_run, key=_order):
        if run.cache != AUTO:
            continue
        swept = {share: result.mean_ms for share, result in results.splits(run).items()}
        if not {0.5, 1.0} <= swept.keys():
            continue
        best_share = min(swept, key=lambda share: swept[share])
        judged.append(
            Judged(
                run=run,
                auto_ms=results.by_run[run].mean_ms,
                best_share=best_share,
                best_ms=swept[best_share],
                even_ms=swept[0.5],
                pixels_ms=swept[1.0],
            )
        )
    return judged


def policy_results(results: Results, policy: str) -> dict[str, tuple[float, dict[str, float]]]:
    """Return what readers waited on average with two tiers of a policy, by trace, in milliseconds.

    First with the product's cache, then with the policy: ``moving``, ``best fixed`` and, for some,
    ``shadowed``.
    """
    found: dict[str, tuple[float, dict[str, float]]] = {}
    for run, result in results.by_run.items():
        name, _, how = run.cache.partition(" ")
        if name != policy:
            continue
        _, ways = found.setdefault(run.trace, (results.by_run[run.of(AUTO)].mean_ms, {}))
        way = how if how in ("moving", "shadowed") else "best fixed"
        ways[way] = min(result.mean_ms, ways.get(way, inf))
    return found


def _order(run: Run) -> tuple[str | float, ...]:
    mb_per_s = inf if run.mb_per_s is None else run.mb_per_s
    return run.trace, run.budget, run.fetch_ms, mb_per_s, run.render_ms, run.cache


def _without_end(values: tuple[object, ...]) -> tuple[object, ...]:
    """Return *values* without what is None at their end."""
    while values and values[-1] is None:
        values = values[:-1]
    return values


_RUN_COLUMNS = tuple(field.name for field in fields(Run))
