"""latentfs bench"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from latentfs.bench.benchmark import BenchmarkOptions, run_benchmark
from latentfs.bench.private_mount import check_unmounted
from latentfs.bench.report import document, screen
from latentfs.bench.sample import Sample, choose_sample
from latentfs.cli.arguments import device_option, store_argument
from latentfs.cli.interrupts import ended_as_by_ctrl_c
from latentfs.cli.output import one_line
from latentfs.store.store import Store

__all__ = ["command"]


class _StoreOrReplay(click.Command):
    """Takes a store, unless the first word is ``replay``: then that command takes the rest."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        if args[:1] != ["replay"]:
            return super().make_context(info_name, args, parent, **extra)
        from latentfs.cli import bench_replay_command

        replay = bench_replay_command.command
        return replay.make_context(f"{info_name} replay", args[1:], parent, **extra)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_usage(ctx, formatter)
        prefix = " " * len("Usage: ")
        formatter.write_usage(f"{ctx.command_path} replay", "[OPTIONS] TRACE FOLDER", prefix)


@click.command(
    "bench", cls=_StoreOrReplay, epilog="Example: latentfs bench ~/art.lfs --path /2026 --files 16"
)
@store_argument
@click.option(
    "--path", default="/", show_default=True, metavar="FOLDER", help="Folder in the store."
)
@click.option(
    "--files",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Pictures to read, all of one recipe and size.",
)
@click.option(
    "--readers",
    type=click.IntRange(1, 256),
    default=16,
    show_default=True,
    help="Processes that read at the same time.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How often to measure everything, in turns.",
)
@device_option
@click.option(
    "--plain-environment",
    is_flag=True,
    help="Also time the bare decode without the settings that a renderer gets.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def command(
    store: Path,
    path: str,
    files: int,
    readers: int,
    rounds: int,
    device: str,
    plain_environment: bool,
    as_json: bool,
) -> None:
    """Measure what reading pictures of STORE through a mount costs on top of decoding them.

    Mounts STORE itself in a temporary folder, so it must not be mounted already.  Each picture is
    decoded at least twice per round; progress is printed on standard error.

    "latentfs bench replay" replays a trace of requests; see its own --help.
    """
    options = BenchmarkOptions(
        readers=readers, rounds=rounds, device=device, plain_environment=plain_environment
    )
    with Store.open(store) as opened:
        sample = choose_sample(opened, path, files=files)
    check_unmounted(store)
    _tell(_chosen(sample, path, files))
    with ended_as_by_ctrl_c():  # so that nothing stays mounted
        found = document(run_benchmark(store, path, sample, options, tell=_tell))
    click.echo(json.dumps(found, indent=2) if as_json else screen(found))


def _tell(line: str) -> None:
    click.echo(one_line(line), err=True)


def _chosen(sample: Sample, path: str, files: int) -> str:
    shape = "x".join(map(str, sample.latent_shape))
    count = len(sample.pictures)
    fewer = f", fewer than the {files} asked for" if count < files else ""
    return (
        f"{count} pictures of the {sample.found} below {path} with recipe "
        f"{sample.recipe.id.hex()[:12]} and latents of {shape}{fewer}"
    )
