"""What was measured, as one JSON document and as tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from latentfs.bench.bare_decode_process import BareDecodes, decode_environment
from latentfs.bench.benchmark import Benchmark, Round
from latentfs.bench.cold_reads import ColdPass
from latentfs.bench.hits import Hits
from latentfs.bench.stages import percentile, stage_figures
from latentfs.render import TORCH_ENVIRONMENT

__all__ = ["document", "screen"]

_MS = 1000


def document(benchmark: Benchmark) -> dict[str, Any]:
    """Return all figures; the keys are those in docs/command-line.md."""
    sample, rounds = benchmark.sample, benchmark.rounds
    bare = [round_.bare for round_ in rounds]
    plain = [round_.bare_plain for round_ in rounds if round_.bare_plain is not None]
    return {
        "store": str(benchmark.store_path),
        "path": benchmark.path,
        "recipe": sample.recipe.id.hex(),
        "vae_class": sample.recipe.vae_class,
        "dtype": sample.recipe.dtype,
        "device": bare[0].device,
        "cpu_threads": sample.recipe.cpu_threads,
        "latent_shape": list(sample.latent_shape),
        "pictures": sample.found,
        "files": len(sample.pictures),
        "readers": benchmark.options.readers,
        "rounds": len(rounds),
        "bare_decode": _bare(bare, plain_environment=False),
        "bare_decode_plain": _bare(plain, plain_environment=True) if plain else None,
        "one_reader": _one_reader(rounds),
        "many_readers": _many_readers(rounds),
        "hits_while_saturated": None if benchmark.hits is None else _hits(benchmark.hits),
    }


def _bare(rounds: Sequence[BareDecodes], *, plain_environment: bool) -> dict[str, Any]:
    given = decode_environment(plain_environment=plain_environment)
    return {
        "environment": {name: given[name] for name in TORCH_ENVIRONMENT if name in given},
        "seconds": _seconds(value for bare in rounds for value in bare.seconds),
        "files_per_s": _best_and_median([bare.files_per_s for bare in rounds]),
    }


def _one_reader(rounds: Sequence[Round]) -> dict[str, Any]:
    # The sample's first pictures are read alone, so bare decodes and reads go together by place.
    overheads_s = [
        read.seconds - bare_s
        for round_ in rounds
        for bare_s, read in zip(round_.bare.seconds, round_.one_reader.reads, strict=False)
    ]
    beside_s = [
        read.seconds - read.stages_s["decode"]
        for round_ in rounds
        for read in round_.one_reader.reads
        if "decode" in read.stages_s
    ]
    return {
        "files": len(rounds[0].one_reader.reads),
        "seconds": _seconds(read.seconds for round_ in rounds for read in round_.one_reader.reads),
        "overhead_ms": statistics.median(overheads_s) * _MS,
        "beside_decode_ms": statistics.median(beside_s) * _MS,
        "stages": _stages([round_.one_reader for round_ in rounds]),
    }


def _many_readers(rounds: Sequence[Round]) -> dict[str, Any]:
    rates = [len(round_.many_readers.reads) / round_.many_readers.wall_s for round_ in rounds]
    ratios = [rate / round_.bare.files_per_s for rate, round_ in zip(rates, rounds, strict=True)]
    return {
        "files": len(rounds[0].many_readers.reads),
        "seconds": _seconds(
            read.seconds for round_ in rounds for read in round_.many_readers.reads
        ),
        "files_per_s": _best_and_median(rates),
        "of_bare": _best_and_median(ratios),
        "stages": _stages([round_.many_readers for round_ in rounds]),
    }


def _stages(passes: Iterable[ColdPass]) -> dict[str, dict[str, float]]:
    reads = [read.stages_s for cold in passes for read in cold.reads if read.stages_s]
    return {
        stage: {
            "median_ms": figures.median_s * _MS,
            "p95_ms": figures.p95_s * _MS,
            "share": figures.share,
        }
        for stage, figures in stage_figures(reads).items()
    }


def _hits(hits: Hits) -> dict[str, Any]:
    return {
        "size_bytes": hits.size_bytes,
        "reads": len(hits.seconds),
        "p50_ms": percentile(hits.seconds, 50) * _MS,
        "p99_ms": percentile(hits.seconds, 99) * _MS,
        "max_ms": max(hits.seconds) * _MS,
        "cold_readers": hits.cold_readers,
        "cold_renders": hits.cold_renders,
        "rendered_again": hits.rendered_again,
    }


def _seconds(values: Iterable[float]) -> dict[str, float]:
    listed = list(values)
    return {"median": statistics.median(listed), "p95": percentile(listed, 95)}


def _best_and_median(rates: Sequence[float]) -> dict[str, float]:
    return {"best": max(rates), "median": statistics.median(rates)}


def screen(found: dict[str, Any]) -> str:
    """Return the figures of :func:`document` as people read them."""
    one, many = found["one_reader"], found["many_readers"]
    parts = [
        _heading(found),
        _stage_table(f"one reader, {one['files']} cold files", one["stages"]),
        _stage_table(f"{found['readers']} readers, {many['files']} cold files", many["stages"]),
        _summary(found),
        _hits_line(found["hits_while_saturated"]),
    ]
    return "\n\n".join(parts)


def _heading(found: dict[str, Any]) -> str:
    shape = "x".join(map(str, found["latent_shape"]))
    return "\n".join(
        [
            f"store      {found['store']}, below {found['path']}",
            f"recipe     {found['recipe'][:12]}: {found['vae_class']} in {found['dtype']}, "
            f"on {found['device']}, {found['cpu_threads']} threads",
            f"pictures   {found['files']} of {found['pictures']} with latents of {shape}",
            f"rounds     {found['rounds']}",
        ]
    )


def _stage_table(title: str, stages: dict[str, dict[str, float]]) -> str:
    lines = [f"{title:<34} {'median ms':>10} {'p95 ms':>10} {'share':>7}"]
    lines += [
        f"  {stage:<32} {figures['median_ms']:>10.1f} {figures['p95_ms']:>10.1f} "
        f"{figures['share']:>7.1%}"
        for stage, figures in stages.items()
    ]
    return "\n".join(lines)


def _summary(found: dict[str, Any]) -> str:
    bare, plain = found["bare_decode"], found["bare_decode_plain"]
    one, many = found["one_reader"], found["many_readers"]
    rows = [
        ("bare decode, s a file", "", bare["seconds"]["median"]),
        *([("  in the plain environment", "", plain["seconds"]["median"])] if plain else []),
        ("cold read, s a file", "", one["seconds"]["median"]),
        ("  over the bare decode, ms", "", one["overhead_ms"]),
        ("  beside its own decode, ms", "", one["beside_decode_ms"]),
        ("bare decode, files/s", bare["files_per_s"]["best"], bare["files_per_s"]["median"]),
        *(
            [("  in the plain environment", *(plain["files_per_s"][k] for k in ("best", "median")))]
            if plain
            else []
        ),
        ("through the mount, files/s", many["files_per_s"]["best"], many["files_per_s"]["median"]),
        ("  of bare decode", many["of_bare"]["best"], many["of_bare"]["median"]),
    ]
    lines = [f"{'':<34} {'best':>10} {'median':>10}"]
    lines += [
        f"{name:<34} {_number(best):>10} {_number(median):>10}" for name, best, median in rows
    ]
    return "\n".join(lines)


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else ""


def _hits_line(hits: dict[str, Any] | None) -> str:
    if hits is None:
        return "hits while the renderer is busy: not measured"
    again = hits["rendered_again"]
    note = (
        f"\n  it fell out of the cache {again} times: so many reads were no hits" if again else ""
    )
    return (
        f"hits while the renderer is busy: p50 {hits['p50_ms']:.1f} ms, "
        f"p99 {hits['p99_ms']:.1f} ms, max {hits['max_ms']:.1f} ms\n"
        f"  {hits['reads']} reads of {hits['size_bytes']:,} bytes, beside {hits['cold_readers']} "
        f"cold readers with {hits['cold_renders']} renders{note}"
    )
