"""latentfs status"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from latentfs.cli.arguments import shown_bytes
from latentfs.errors import StoreNotFoundError
from latentfs.fs.control import ask_daemon
from latentfs.fs.mountpoint import FILESYSTEM_TYPE, find_mount
from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.store import Store

__all__ = ["command"]


@click.command("status", epilog="Example: latentfs status /mnt/art --json")
@click.argument("where", type=click.Path(path_type=Path), metavar="STORE|MOUNTPOINT")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def command(where: Path, as_json: bool) -> None:
    """Show what a store holds and, while it is mounted, what its daemon does."""
    status = _status(_store_path(where))
    click.echo(json.dumps(status, indent=2) if as_json else _screen(status))


def _store_path(where: Path) -> Path:
    mount = find_mount(where)
    if mount is not None and mount.type == FILESYSTEM_TYPE:
        return Path(mount.source)
    if mount is None and not (where / "latentfs.toml").exists():
        raise StoreNotFoundError(f"{where} is neither a latentfs store nor a mount point of one")
    return Path(os.path.abspath(where))


def _status(store_path: Path) -> dict[str, Any]:
    with Store.open(store_path) as store:
        statistics = store.statistics()
        with store.read() as snapshot:
            vaes = [name for name, _ in snapshot.vaes()]
    totals = statistics.totals
    daemon = ask_daemon(store_path, "status")
    return {
        "store": str(store_path),
        "mounted": daemon is not None or DaemonLock(store_path).held_elsewhere(),
        "files": totals.files,
        "directories": totals.directories,
        "file_bytes": totals.size_bytes,
        "payloads": totals.payloads,
        "payload_bytes": totals.payload_bytes,
        "store_bytes": statistics.store_bytes,
        "vaes": vaes,
        **(daemon or {}),
    }


def _screen(status: dict[str, Any]) -> str:
    file_bytes = status["file_bytes"]
    ratio = f", {status['store_bytes'] / file_bytes:.3f} of the files" if file_bytes else ""
    lines = [
        f"store      {status['store']}",
        f"files      {status['files']} in {status['directories']} folders, "
        f"{shown_bytes(file_bytes)} as they are read",
        f"stored     {shown_bytes(status['store_bytes'])}{ratio} "
        f"({status['payloads']} payloads, {shown_bytes(status['payload_bytes'])})",
        f"VAEs       {', '.join(status['vaes']) or 'none'}",
    ]
    if status["mounted"] and "pid" not in status:
        return "\n".join([*lines, "mount      mounted, but its daemon does not answer"])
    if not status["mounted"]:
        return "\n".join([*lines, "mount      not mounted"])
    return "\n".join(
        [
            *lines,
            f"mount      {status['mountpoint']}, process {status['pid']}, "
            f"up {status['uptime_s']:.0f} s",
            f"renderer   {_readiness(status)}, "
            f"{status['renders_total']} renders, {status['renders_in_flight']} in flight, "
            f"{_queued(status)}{status['renders_failed_total']} failed, "
            f"{status['render_timeouts_total']} timed out, "
            f"{status['renderer_restarts_total']} restarts, "
            f"{status['hash_mismatches_total']} hash mismatches{_quarantined(status)}",
            f"reads      {status['reads_total']} ({shown_bytes(status['read_bytes_total'])}), "
            f"{status['errors_total']} errors, {status['open_files']} files open",
            *_cache_lines(status["cache"]),
        ]
    )


def _cache_lines(cache: dict[str, Any]) -> list[str]:
    held_bytes = cache["pixel_bytes"] + cache["latent_bytes"]
    share = cache["pixel_share"]
    split = "moving by itself" if share is None else f"fixed at {share:.0%} for files"
    return [
        f"cache      {shown_bytes(held_bytes)} of {shown_bytes(cache['budget_bytes'])}: "
        f"{shown_bytes(cache['pixel_bytes'])} in {cache['pixel_entries']} files, "
        f"{shown_bytes(cache['latent_bytes'])} in {cache['latent_entries']} latents; {split}",
        f"           hits: {cache['kernel_hits']} kernel, {cache['pixel_hits']} files, "
        f"{cache['latent_hits']} latents, {cache['misses']} misses; dropped: "
        f"{cache['pixel_evictions']} files, {cache['latent_evictions']} latents",
        f"           the last GB saves {_edge(cache['pixel_edge_s_per_gb'])} a read with files, "
        f"{_edge(cache['latent_edge_s_per_gb'])} with latents; a fetch takes "
        f"{1000 * cache['fetch_s']:.1f} ms, {_renders(cache['render_s'])}",
    ]


def _edge(edge_s_per_gb: float | None) -> str:
    return "nothing yet" if edge_s_per_gb is None else f"{1000 * edge_s_per_gb:.2f} ms"


def _renders(render_s: dict[str, float]) -> str:
    times = ", ".join(f"{1000 * s:.0f} ms" for s in render_s.values())
    return f"a render {times} a megapixel" if times else "no render was measured yet"


def _readiness(status: dict[str, Any]) -> str:
    devices = status["renderer_devices"]
    return f"ready on {', '.join(devices)}" if devices else "starting"


def _queued(status: dict[str, Any]) -> str:
    queued = status["renders_queued"] + status["renders_queued_background"]
    return f"{queued} queued, " if queued else ""


def _quarantined(status: dict[str, Any]) -> str:
    count = status["contents_quarantined"]
    return f", {count} quarantined" if count else ""
