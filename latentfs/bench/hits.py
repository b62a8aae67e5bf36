"""How soon a cached picture is read while the renderer is kept busy by others."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from latentfs.bench.private_mount import READ_TIMEOUT_S, PrivateMount, private_mount
from latentfs.bench.readers import open_readers
from latentfs.bench.sample import Picture

__all__ = ["COLD_FILES_MIN", "Hits", "measure_hits"]

COLD_FILES_MIN = 2
"""With fewer, what is to be cold would stay in the cache."""

_FOR_S = 10.0
_PAUSE_S = 0.02
_COLD_LEAD_S = 0.5
_COLD_FILES_A_READER_MAX = 4


@dataclass(frozen=True, slots=True)
class Hits:
    """Reads of one cached picture.

    Attributes:
        size_bytes: of the picture.
        seconds: of each read, whole, with the kernel's pages dropped before.
        cold_readers: processes that read others cold meanwhile.
        cold_renders: renders that were finished meanwhile.
        rendered_again: those of the cached picture among them, after which a read was no hit.
    """

    size_bytes: int
    seconds: list[float]
    cold_readers: int
    cold_renders: int
    rendered_again: int


def measure_hits(
    store_path: Path, hit: Picture, cold: list[Picture], *, readers: int, device: str
) -> Hits:
    """Read *hit* for 10 s, 20 ms apart, while *readers* processes read *cold* over and over.

    *cold* must have :data:`COLD_FILES_MIN` pictures.  The cache holds *hit* and about a quarter of
    them, so that each is gone from it before its turn comes again.

    Raises:
        StoreLockedError, MountError, RenderError: as of the mount and its reads.
    """
    cold_readers = min(readers, len(cold) // COLD_FILES_MIN)
    cold = cold[: cold_readers * _COLD_FILES_A_READER_MAX]
    sizes = [picture.size_bytes for picture in cold]
    # The quarter on top of the largest is for what the cache counts beside a file's own bytes.
    cache_bytes = hit.size_bytes + max(max(sizes) * 5 // 4, sum(sizes) // 4)
    with private_mount(store_path, cache_bytes=cache_bytes, device=device) as mount:
        _read_once(mount, cold[0])
        _read_once(mount, hit)
        with open_readers(cold_readers) as others, open_readers(1) as reader:
            # Before the others: the cache drops first what nobody has read for longest.
            reader.read(mount.path / hit.path, for_s=_COLD_LEAD_S + _FOR_S, pause_s=_PAUSE_S)
            for index in range(cold_readers):
                paths = [mount.path / picture.path for picture in cold[index::cold_readers]]
                others.read(*paths, for_s=READ_TIMEOUT_S)
            time.sleep(_COLD_LEAD_S)
            renders_before, start_s = mount.renders_total(), time.perf_counter()
            readings = reader.finish(timeout_s=READ_TIMEOUT_S)
            renders = mount.renders_total() - renders_before
            last = mount.last_renders(renders)
    return Hits(
        size_bytes=hit.size_bytes,
        seconds=[reading.seconds for reading in readings if reading.end_s >= start_s],
        cold_readers=cold_readers,
        cold_renders=renders,
        rendered_again=sum(render["ino"] == hit.ino for render in last),
    )


def _read_once(mount: PrivateMount, picture: Picture) -> None:
    with open_readers(1) as reader:
        reader.read(mount.path / picture.path)
        reader.finish(timeout_s=READ_TIMEOUT_S)
