"""The whole measurement: rounds of bare decodes and cold reads in turns, then hits under load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from latentfs.bench.bare_decode_process import BareDecodes, time_bare_decodes
from latentfs.bench.cold_reads import ColdPass, read_cold
from latentfs.bench.hits import COLD_FILES_MIN, Hits, measure_hits
from latentfs.bench.private_mount import PrivateMount, private_mount
from latentfs.bench.sample import Sample

__all__ = ["Benchmark", "BenchmarkOptions", "Round", "run_benchmark"]

_WARM_UPS = 2
_ONE_READER_FILES_MAX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkOptions:
    """How it is measured.

    Attributes:
        readers: processes that read at the same time.
        rounds: how often everything is measured, in turns.
        device: that decodes, as for a mount; the bare decode takes the first it stands for.
        plain_environment: whether to time the bare decode also without the renderer's settings.
    """

    readers: int
    rounds: int
    device: str
    plain_environment: bool


@dataclass(frozen=True, slots=True)
class Round:
    """Each measured once.

    Attributes:
        bare: decodes of the sample's pictures, in its order.
        bare_plain: the same without the renderer's settings; None where not asked for.
        one_reader: cold reads one after the other.
        many_readers: cold reads by several processes at the same time.
    """

    bare: BareDecodes
    bare_plain: BareDecodes | None
    one_reader: ColdPass
    many_readers: ColdPass


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What was measured; *hits* is None where there are too few pictures for it."""

    store_path: Path
    path: str
    sample: Sample
    options: BenchmarkOptions
    rounds: list[Round]
    hits: Hits | None


def run_benchmark(
    store_path: Path,
    path: str,
    sample: Sample,
    options: BenchmarkOptions,
    *,
    tell: Callable[[str], None],
) -> Benchmark:
    """Measure, with a line to *tell* before each step.

    Ends after a time that follows from files and rounds; every wait in it has a deadline.  If
    interrupted, what it has mounted is unmounted and its processes ended.

    Raises:
        StoreLockedError: the store is mounted.
        MountError, RenderError: it can't be mounted, or a picture not read or decoded.
    """
    tell("mounting the store without a cache and loading the VAE")
    rounds: list[Round] = []
    with private_mount(store_path, cache_bytes=0, device=options.device) as mount:
        read_cold(mount, sample.pictures[:1] * _WARM_UPS, readers=1)
        for number in range(1, options.rounds + 1):
            tell(f"round {number} of {options.rounds}")
            rounds.append(_round(mount, store_path, sample, options, tell))
    hits = _hits(store_path, sample, options, tell)
    return Benchmark(store_path, path, sample, options, rounds, hits)


def _round(
    mount: PrivateMount,
    store_path: Path,
    sample: Sample,
    options: BenchmarkOptions,
    tell: Callable[[str], None],
) -> Round:
    pictures = sample.pictures
    tell(f"  bare decode of {len(pictures)} latents")
    bare = time_bare_decodes(store_path, pictures, device=options.device, plain_environment=False)
    bare_plain = None
    if options.plain_environment:
        tell(f"  the same in the plain environment; it took {bare.total_s:.1f} s")
        bare_plain = time_bare_decodes(
            store_path, pictures, device=options.device, plain_environment=True
        )
    alone = pictures[:_ONE_READER_FILES_MAX]
    tell(f"  one reader, {len(alone)} cold files; a bare decode took {bare.seconds[0]:.3f} s")
    one_reader = read_cold(mount, alone, readers=1)
    tell(f"  {options.readers} readers, {len(pictures)} cold files, about {bare.total_s:.0f} s")
    many_readers = read_cold(mount, pictures, readers=options.readers)
    return Round(bare, bare_plain, one_reader, many_readers)


def _hits(
    store_path: Path, sample: Sample, options: BenchmarkOptions, tell: Callable[[str], None]
) -> Hits | None:
    cold = [picture for picture in sample.pictures if picture.ino != sample.hit.ino]
    if len(cold) < COLD_FILES_MIN:
        tell(f"no hits are measured: that takes {COLD_FILES_MIN + 1} pictures of one shape")
        return None
    tell("mounting the store with a cache: hits while the renderer is busy, 10 s")
    return measure_hits(
        store_path, sample.hit, cold, readers=options.readers, device=options.device
    )
