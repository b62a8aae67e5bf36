"""latentfs status"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from latentfs.cli.arguments import counted, shown_bytes
from latentfs.cli.output import wrapped
from latentfs.cli.places import PLACE, store_of, why_no_answer
from latentfs.fs.control import ask_daemon
from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.store import Store
from latentfs.telemetry.renderer_state import shown_renderers

__all__ = ["command"]

_COLUMNS = 80
_LABEL_COLUMNS = 11
_OPERATIONS_MAX = 8


@click.command("status", epilog="Example: latentfs status /mnt/art --json")
@click.argument("where", type=PLACE, metavar="STORE|MOUNTPOINT")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def command(where: Path, as_json: bool) -> None:
    """Show what a store holds and, while it is mounted, what its daemon does."""
    status = _status(store_of(where))
    click.echo(json.dumps(status, indent=2) if as_json else _screen(status))


def _status(store_path: Path) -> dict[str, Any]:
    with Store.open(store_path) as store:
        statistics = store.statistics()
        with store.read() as snapshot:
            vaes = [name for name, _ in snapshot.vaes()]
    totals = statistics.totals
    answer = ask_daemon(store_path, "status")
    problem = why_no_answer(store_path) if answer is None else answer.get("error")
    daemon = {} if answer is None or problem is not None else answer
    return {
        "store": str(store_path),
        "mounted": bool(daemon) or DaemonLock(store_path).is_mounted(),
        "files": totals.files,
        "directories": totals.directories,
        "file_bytes": totals.size_bytes,
        "payloads": totals.payloads,
        "payload_bytes": totals.payload_bytes,
        "store_bytes": statistics.store_bytes,
        "vaes": vaes,
        "daemon_problem": problem,
        **daemon,
    }


def _screen(status: dict[str, Any]) -> str:
    rows = _store_rows(status)
    if "pid" in status:
        rows += [*_mount_rows(status), *_render_rows(status), *_read_rows(status)]
        rows += _cache_rows(status["cache"])
    else:
        rows.append(("mount", status["daemon_problem"]))
    return "\n".join(
        wrapped(label, text, label_columns=_LABEL_COLUMNS, columns=_COLUMNS) for label, text in rows
    )


def _store_rows(status: dict[str, Any]) -> list[tuple[str, str]]:
    file_bytes = status["file_bytes"]
    ratio = f", {status['store_bytes'] / file_bytes:.1%} of that" if file_bytes else ""
    return [
        ("store", status["store"]),
        (
            "files",
            f"{status['files']} in {counted(status['directories'], 'folder')}, "
            f"{shown_bytes(file_bytes)} when read",
        ),
        (
            "stored",
            f"{shown_bytes(status['store_bytes'])}{ratio} "
            f"({counted(status['payloads'], 'payload')}, {shown_bytes(status['payload_bytes'])})",
        ),
        ("VAEs", ", ".join(status["vaes"]) or "none"),
    ]


def _mount_rows(status: dict[str, Any]) -> list[tuple[str, str]]:
    metrics = status["metrics_address"]
    return [
        (
            "mount",
            f"{status['mountpoint']}, process {status['pid']}, up {status['uptime_s']:.0f} s",
        ),
        ("health", status["problem"] or "the mount answers"),
        ("metrics", "not served" if metrics is None else f"served at {metrics}"),
    ]


def _render_rows(status: dict[str, Any]) -> list[tuple[str, str]]:
    renderers = shown_renderers(status["renderer_devices"], status.get("renderer_problem"))
    queued = status["renders_queued"] + status["renders_queued_background"]
    counts = [
        counted(status["renders_total"], "render"),
        f"{status['renders_in_flight']} in flight",
        f"{queued} queued" if queued else "",
        f"{status['renders_failed_total']} failed",
        f"{status['render_timeouts_total']} timed out",
        f"{status['hash_mismatches_total']} hash mismatches",
        f"{status['contents_quarantined']} quarantined" if status["contents_quarantined"] else "",
    ]
    return [
        ("renderer", f"{renderers}, {counted(status['renderer_restarts_total'], 'restart')}"),
        ("renders", ", ".join(filter(None, counts))),
    ]


def _read_rows(status: dict[str, Any]) -> list[tuple[str, str]]:
    tiers, reads = status["reads"], status["reads_total"]
    shares = [
        f"{tier} {times['count']} ({times['count'] / reads:.0%})"
        for tier, times in sorted(tiers.items(), key=lambda item: -item[1]["count"])
        if times["count"]
    ]
    return [
        (
            "reads",
            f"{reads} ({shown_bytes(status['read_bytes_total'])}), "
            f"{status['slow_reads_total']} slow, {status['errors_total']} errors, "
            f"{counted(status['open_files'], 'file')} open",
        ),
        ("  by tier", ", ".join(shares) or "none yet"),
        ("operations", _operations(status["operations"])),
    ]


def _operations(operations: dict[str, Any]) -> str:
    most = sorted(operations.items(), key=lambda item: -item[1]["count"])
    words = [f"{name} {times['count']}{_errors(times['errors'])}" for name, times in most]
    if len(words) > _OPERATIONS_MAX:
        words[_OPERATIONS_MAX:] = [f"{len(words) - _OPERATIONS_MAX} other kinds"]
    return ", ".join(words) or "none yet"


def _errors(errors: dict[str, int]) -> str:
    return f" ({', '.join(f'{count} {name}' for name, count in errors.items())})" if errors else ""


def _cache_rows(cache: dict[str, Any]) -> list[tuple[str, str]]:
    held_bytes = cache["pixel_bytes"] + cache["latent_bytes"]
    share = cache["pixel_share"]
    split = "moving by itself" if share is None else f"fixed at {share:.0%} for files"
    return [
        (
            "cache",
            f"{shown_bytes(held_bytes)} of {shown_bytes(cache['budget_bytes'])}: "
            f"{shown_bytes(cache['pixel_bytes'])} in {counted(cache['pixel_entries'], 'file')}, "
            f"{shown_bytes(cache['latent_bytes'])} in "
            f"{counted(cache['latent_entries'], 'latent')}; {split}",
        ),
        (
            "  hits",
            f"{cache['kernel_hits']} kernel, {cache['pixel_hits']} files, "
            f"{cache['latent_hits']} latents, {cache['misses']} misses; dropped: "
            f"{cache['pixel_evictions']} files, {cache['latent_evictions']} latents",
        ),
        (
            "  worth",
            f"the last GB of files saves {_edge(cache['pixel_edge_s_per_gb'])}, of latents "
            f"{_edge(cache['latent_edge_s_per_gb'])}; a fetch takes "
            f"{1000 * cache['fetch_s']:.1f} ms, {_renders(cache['render_s'])}",
        ),
    ]


def _edge(edge_s_per_gb: float | None) -> str:
    return "not known yet" if edge_s_per_gb is None else f"{1000 * edge_s_per_gb:.2f} ms per read"


def _renders(render_s: dict[str, float]) -> str:
    times = ", ".join(f"{1000 * s:.0f} ms" for s in render_s.values())
    return f"a render {times} per megapixel" if times else "no render was measured yet"
