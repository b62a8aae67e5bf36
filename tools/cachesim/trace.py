"""What the simulator replays: who reads which picture when, and what each picture costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from latentfs.errors import InvalidArgumentError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """A collection of pictures, by index."""

    pixel_bytes: Ints
    """Length of the finished file."""
    latent_bytes: Ints
    """Length of the compressed payload."""
    kinds: Ints
    """Index into ``kind_names``."""
    kind_names: tuple[str, ...]
    render_weights: Floats
    """Cost of a render; 1 is 1024x1024 with the VAE of kind 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests in order of arrival, each for one picture of a collection.

    ``times_s`` (from any start, never going back) and ``objects`` (index of the picture) have an
    element for each request; the other arrays have one for each picture and are those of
    `Pictures`.  A picture may have no request at all.

    Raises InvalidArgumentError if the arrays don't fit together.
    """

    name: str
    times_s: Floats
    objects: Ints
    pixel_bytes: Ints
    latent_bytes: Ints
    kinds: Ints
    kind_names: tuple[str, ...]
    render_weights: Floats

    def __post_init__(self) -> None:
        arrays = (self.pixel_bytes, self.latent_bytes, self.kinds, self.render_weights)
        if len({len(array) for array in arrays}) != 1 or len(self.times_s) != len(self.objects):
            raise self._wrong("arrays of one kind differ in length", "make them equally long")
        if not self.requests:
            raise self._wrong("has no request", "give it at least one")
        if not np.isfinite(self.times_s).all() or (np.diff(self.times_s) < 0).any():
            raise self._wrong("times_s isn't finite and ascending", "sort the requests by time")
        if not (self.objects.min() >= 0 and self.objects.max() < self.pictures):
            raise self._wrong(f"objects isn't below {self.pictures}", "request known pictures only")
        if not (self.kinds.min() >= 0 and self.kinds.max() < len(self.kind_names)):
            raise self._wrong("kinds has one without a name", "name each in kind_names")
        if min(self.pixel_bytes.min(), self.latent_bytes.min()) < 1:
            raise self._wrong("a picture has no bytes", "let each have 1 byte or more")
        if not np.isfinite(self.render_weights).all() or self.render_weights.min() < 0:
            raise self._wrong("render_weights has one below 0 or not finite", "use 0 or more")

    def _wrong(self, what: str, advice: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"trace {self.name!r}: {what}; {advice}")

    @property
    def requests(self) -> int:
        return len(self.objects)

    @property
    def pictures(self) -> int:
        return len(self.pixel_bytes)

    @property
    def total_pixel_bytes(self) -> int:
        """Of all pictures, requested or not."""
        return int(self.pixel_bytes.sum())


def trace_of(name: str, times_s: Floats, objects: Ints, pictures: Pictures) -> Trace:
    """The trace of these requests for these pictures."""
    return Trace(
        name=name,
        times_s=times_s,
        objects=objects,
        pixel_bytes=pictures.pixel_bytes,
        latent_bytes=pictures.latent_bytes,
        kinds=pictures.kinds,
        kind_names=pictures.kind_names,
        render_weights=pictures.render_weights,
    )


@dataclass(frozen=True, slots=True)
class Vae:
    """What a VAE does to the costs: weight of its render, and bytes of its latents."""

    name: str
    render_weight: float
    latent_factor: float
    """Compressed bytes, relative to a latent with 4 channels of the same picture."""


FULL = Vae("full", 1.0, 1.0)
TINY = Vae("tiny", 0.1, 1.0)
WIDE = Vae("wide", 4.0, 3.5)
"""One with 16 channels: its latents have four times the numbers, which compress a bit better."""

PIXEL_RANGE_BYTES = {
    512: (350_000, 550_000),
    768: (700_000, 1_100_000),
    1024: (1_100_000, 1_900_000),
    1536: (2_200_000, 3_800_000),
}
"""PNG files of generated pictures, by side in pixels."""

LATENT_RANGE_BYTES = {
    512: (24_000, 30_000),
    768: (53_000, 66_000),
    1024: (90_000, 120_000),
    1536: (199_000, 265_000),
}
"""Compressed float16 latents with 4 channels of the same pictures."""

BUSYNESS_CORRELATION = 0.5
"""A busy picture compresses badly as pixels, and half as surely as a latent."""


def draw_pictures(
    count: int,
    rng: np.random.Generator,
    *,
    sides: Sequence[tuple[int, float]] = ((1024, 1.0),),
    vaes: Sequence[tuple[Vae, float]] = ((FULL, 1.0),),
) -> Pictures:
    """`count` pictures whose sizes are log-normal within the ranges above.

    `sides` and `vaes` give what there is and its share of the pictures; each pair of them is a
    kind.  The first side and the first VAE are kind 0.
    """
    kinds = list(product(sides, vaes))
    shares = np.array([side_share * vae_share for (_, side_share), (_, vae_share) in kinds])
    drawn = rng.choice(len(kinds), size=count, p=shares / shares.sum())
    busyness = rng.standard_normal(count)
    own = rng.standard_normal(count)
    latent_busyness = BUSYNESS_CORRELATION * busyness + (1 - BUSYNESS_CORRELATION**2) ** 0.5 * own
    pixel_ranges = np.array([PIXEL_RANGE_BYTES[side] for (side, _), _ in kinds], dtype=np.float64)
    latent_ranges = np.array(
        [np.multiply(LATENT_RANGE_BYTES[side], vae.latent_factor) for (side, _), (vae, _) in kinds]
    )
    weights = np.array([vae.render_weight * (side / 1024) ** 2 for (side, _), (vae, _) in kinds])
    return Pictures(
        pixel_bytes=_log_normal_bytes(pixel_ranges[drawn], busyness),
        latent_bytes=_log_normal_bytes(latent_ranges[drawn], latent_busyness),
        kinds=drawn.astype(np.int64),
        kind_names=tuple(f"{side}x{side} {vae.name}" for (side, _), (vae, _) in kinds),
        render_weights=weights[drawn],
    )


def _log_normal_bytes(ranges: Floats, normal: Floats) -> Ints:
    """Sizes of which 95% are within their range by themselves, and the others at its ends."""
    low, high = np.log(ranges).T
    middle, deviation = (low + high) / 2, (high - low) / 4
    sizes: Floats = np.exp(np.clip(middle + deviation * normal, low, high))
    return np.rint(sizes).astype(np.int64)
