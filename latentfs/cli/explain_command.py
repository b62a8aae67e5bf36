"""latentfs explain"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click
import msgspec

from latentfs.cli.arguments import counted, shown_bytes
from latentfs.cli.output import one_line
from latentfs.cli.places import FilePlace, file_place, why_no_answer
from latentfs.errors import LatentfsError, PathError
from latentfs.fs.control import ask_daemon
from latentfs.fs.explanation import find_ino, stored_facts
from latentfs.latents.scaling import Step
from latentfs.store.snapshot import Snapshot
from latentfs.store.store import Store
from latentfs.store.tables import ROOT_INO

__all__ = ["command"]

# What a mount has changed is on disk within a second.
_ON_DISK_WAIT_S = 3.0
_ON_DISK_POLL_S = 0.1
_TIERS = {
    "pixels": "the daemon's cache, with the finished file",
    "latent": "a render, of the latent in the daemon's cache",
    "miss": "a render, of the payload in the store",
    "shared": "a render that is already running",
    "bytes": "the store, byte for byte",
    "latent_file": "the store, put together from its payloads",
}


@click.command(
    "explain",
    epilog="Examples: latentfs explain /mnt/art/2026/cat.png | "
    "latentfs explain ~/art.lfs:/2026/cat.png --json",
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="As a JSON list, for programs.")
def command(files: tuple[str, ...], as_json: bool) -> int:
    """Show what each FILE is made of, what it takes, and what would answer a read of it now.

    FILE is a path in a mount, or STORE:/path for one in a store.  Nothing is rendered.  Exits with
    1 if a file could not be found or its records are damaged.
    """
    explained, failed = [], 0
    for file in files:
        try:
            explained.append(_explain(file))
        except (LatentfsError, OSError) as error:
            failed += 1
            reason = error.strerror if isinstance(error, OSError) else error
            click.echo(one_line(f"latentfs: {file}: {reason}"), err=True)
    if as_json:
        click.echo(json.dumps(explained, indent=2))
    else:
        screens = ("\n".join(map(one_line, _lines(facts))) for facts in explained)
        click.echo("\n\n".join(screens), nl=bool(explained))
    return 1 if failed else 0


def _explain(file: str) -> dict[str, Any]:
    place = file_place(file)
    # The root first: of a daemon that answers this, the mount can be asked too.
    answer = ask_daemon(place.store, "explain", ino=ROOT_INO)
    problem = why_no_answer(place.store) if answer is None else answer.get("error")
    with Store.open(place.store) as store:
        if place.mount is not None and problem is None:
            ino = _number(place)
            facts = _facts(store, lambda snapshot: ino, wait_s=_ON_DISK_WAIT_S)
        else:
            facts = _facts(store, lambda snapshot: find_ino(snapshot, place.inside), wait_s=0.0)
    live = None if problem is not None else ask_daemon(place.store, "explain", ino=facts["ino"])
    if live is not None and "error" in live:
        problem, live = live["error"], None
    return {
        "file": file,
        "store": str(place.store),
        **facts,
        "tier": None,
        "refused_for_s": 0.0,
        "last_render": None,
        "renderer_devices": [],
        **(live or {}),
        "daemon_problem": problem,
    }


def _number(place: FilePlace) -> int:
    assert place.mount is not None
    assert place.path is not None
    status = os.lstat(place.path)
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    if device != place.mount.device:
        raise PathError(
            f"another file system is mounted in {place.mount.mountpoint} above it, or a link "
            "leads to another file system"
        )
    return status.st_ino


def _facts(
    store: Store, find: Callable[[Snapshot], int | None], *, wait_s: float
) -> dict[str, Any]:
    """Return what the store knows of a file, which may take *wait_s* to get there."""
    deadline_s = time.monotonic() + wait_s
    while True:
        with store.read() as snapshot:
            ino = find(snapshot)
            inode = None if ino is None else snapshot.inode(ino)
            if ino is not None and inode is not None:
                return stored_facts(snapshot, ino, inode)
        if time.monotonic() >= deadline_s:
            raise PathError("it is not on disk yet" if wait_s else "the store has no such file")
        time.sleep(_ON_DISK_POLL_S)


def _lines(facts: dict[str, Any]) -> list[str]:
    rows = [("kind", _kind(facts))]
    if "source" in facts:
        rows += _picture_rows(facts)
    rows += [("payload", _payload(payload)) for payload in facts.get("payloads", ())]
    if "stored_bytes" in facts:
        rows.append(("stored", _stored(facts)))
    if "rendition_sha256" in facts:
        rows.append(("hash", f"sha256 {facts['rendition_sha256']}, as first rendered"))
        rows.append(("render", _last_render(facts)))
    if facts["kind"] in ("latent picture", "latent file", "bytes kept"):
        rows.append(("read", _tier(facts)))
    return [facts["file"], *(f"  {name:9} {text}" for name, text in rows)]


def _kind(facts: dict[str, Any]) -> str:
    words = [f"{facts['kind']}, inode {facts['ino']}"]
    if "width" in facts:
        words.append(f"{facts['width']}x{facts['height']} {facts['framing']['format'].upper()}")
    if "target" in facts:
        words.append(f"to {facts['target']}")
    elif facts["kind"] != "folder":
        words.append(_size(facts["size_bytes"]))
    if facts["links"] > 1 and facts["kind"] != "folder":
        words.append(f"{facts['links']} names")
    return ", ".join(words)


def _size(count: int) -> str:
    return shown_bytes(count) if count < 1024 else f"{shown_bytes(count)} ({count} bytes)"


def _picture_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    source, vae, framing = facts["source"], facts["vae"], facts["framing"]
    quality = "" if framing["quality"] is None else f", quality {framing['quality']}"
    room = f", room {framing['room_bytes']} bytes" if framing["room_bytes"] else ""
    return [
        ("source", f"{source['name']}, latent {source['index']}, {source['kind']}"),
        ("VAE", "missing" if vae is None else f"{vae['name']} ({vae['class']}), {vae['id']}"),
        ("recipe", _recipe(facts["recipe"])),
        ("framing", f"{framing['format']}, encoder {framing['encoder']}{quality}{room}"),
    ]


def _recipe(recipe: dict[str, Any] | None) -> str:
    if recipe is None:
        return "missing"
    words = [recipe["id"][:12], recipe["dtype"], recipe["rounding"], recipe["layout"]]
    words += [f"batch {recipe['batch']}", f"{recipe['device']} of {recipe['cpu_threads']} threads"]
    words += [name for name in ("tiled", "compiled") if recipe[name]]
    if recipe["widened_from"]:
        words.append(f"widened from {recipe['widened_from']}")
    return f"{', '.join(words)}, {_scaling(recipe)}"


def _scaling(recipe: dict[str, Any]) -> str:
    steps = msgspec.convert(recipe["scaling"], tuple[Step, ...])
    if not steps:
        return "no scaling"
    dtype = recipe["dtype"] if recipe["scaling_dtype"] == "recipe" else recipe["scaling_dtype"]
    return f"scaling {', '.join(f'{step.op} {step.value:g}' for step in steps)} in {dtype}"


def _payload(payload: dict[str, Any] | None) -> str:
    if payload is None:
        return "missing; run latentfs fsck"
    shape = "x".join(map(str, payload["shape"]))
    files = "" if payload["files"] is None else f", in {counted(payload['files'], 'file')}"
    return (
        f"{payload['digest'][:12]}, {shape} {payload['dtype']}, {payload['codec']}, "
        f"{shown_bytes(payload['bytes'])}{files}"
    )


def _stored(facts: dict[str, Any]) -> str:
    text = shown_bytes(facts["stored_bytes"])
    if facts.get("metadata_bytes"):
        text += f", {shown_bytes(facts['metadata_bytes'])} of it metadata"
    if facts["size_bytes"]:
        share = facts["stored_bytes"] / facts["size_bytes"]
        text += f"; {share:.0%} of the {shown_bytes(facts['size_bytes'])} that are read"
    return text


def _last_render(facts: dict[str, Any]) -> str:
    last = facts["last_render"]
    if last is None:
        return "none remembered by the daemon" if facts["daemon_problem"] is None else "not known"
    stages = ", ".join(f"{stage} {_milliseconds(s)}" for stage, s in last["stages_s"].items())
    devices = facts["renderer_devices"]
    where = f" on {devices[0]}" if len(devices) == 1 else ""
    ended = datetime.fromtimestamp(last["ended_at"]).astimezone().isoformat(" ", "seconds")
    return f"{ended}, {_milliseconds(last['total_s'])}{where}: {stages}"


def _milliseconds(elapsed_s: float) -> str:
    return f"{1000 * elapsed_s:.1f} ms"


def _tier(facts: dict[str, Any]) -> str:
    if facts["daemon_problem"] is not None:
        return f"not known: {facts['daemon_problem']}"
    if facts["tier"] == "quarantined":
        return f"an error, for {facts['refused_for_s']:.0f} s more: renderers were lost over it"
    return f"{_TIERS[facts['tier']]}, unless the kernel's page cache has it"
