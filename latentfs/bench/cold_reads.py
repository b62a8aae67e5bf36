"""Reading pictures that must be rendered, through a mount without a cache."""

from __future__ import annotations

import time
from dataclasses import dataclass

from latentfs.bench.private_mount import READ_TIMEOUT_S, PrivateMount
from latentfs.bench.readers import Reading, open_readers
from latentfs.bench.sample import Picture
from latentfs.bench.stages import read_stages
from latentfs.errors import MountError, RenderError

__all__ = ["ColdPass", "ColdRead", "read_cold"]


@dataclass(frozen=True, slots=True)
class ColdRead:
    """One file read cold.

    Attributes:
        ino: of the file.
        seconds: as the reader saw it.
        stages_s: seconds by stage, which add up to *seconds*; empty where the daemon has forgotten
            the render, which it does after 1024 later ones.
    """

    ino: int
    seconds: float
    stages_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class ColdPass:
    """All files read once; *wall_s* from the first read's begin to the last one's end."""

    wall_s: float
    reads: list[ColdRead]


def read_cold(mount: PrivateMount, pictures: list[Picture], *, readers: int) -> ColdPass:
    """Read each picture once, by *readers* processes that take them in turn.

    Raises:
        RenderError: one could not be read.
        MountError: some came from a cache, or the daemon does not answer.
    """
    renders_before = mount.renders_total()
    with open_readers(readers) as opened:
        start_s = time.perf_counter()
        for picture in pictures:
            opened.read(mount.path / picture.path)
        try:
            readings = opened.finish(timeout_s=READ_TIMEOUT_S * len(pictures))
        except RenderError as error:
            raise RenderError(f"{error}; the daemon says: {mount.last_words()}") from error
    renders = mount.renders_total() - renders_before
    if renders != len(pictures):
        raise MountError(
            f"reading {len(pictures)} pictures cold made {renders} renders: the kernel keeps pages "
            "that it was asked to drop, or a render was tried again; measure again"
        )
    wall_s = max(reading.end_s for reading in readings) - start_s
    return ColdPass(wall_s, _with_stages(mount, pictures, readings))


def _with_stages(
    mount: PrivateMount, pictures: list[Picture], readings: list[Reading]
) -> list[ColdRead]:
    renders = {render["ino"]: render for render in mount.last_renders(len(pictures))}
    inos = {mount.path / picture.path: picture.ino for picture in pictures}
    reads = []
    for reading in readings:
        ino = inos[reading.path]
        render = renders.get(ino)
        stages_s = (
            {}
            if render is None
            else read_stages(render["stages_s"], total_s=render["total_s"], read_s=reading.seconds)
        )
        reads.append(ColdRead(ino, reading.seconds, stages_s))
    return reads
