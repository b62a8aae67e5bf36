"""Copying files out of a store without a mount."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import trio

from latentfs.errors import LatentfsError, NoRendererError, PathError, StoreCorruptError
from latentfs.ingest.destination import Place, make_link, write_file
from latentfs.render.job_queue import RenderJob
from latentfs.render.jobs import check_rendition, job_for_inode
from latentfs.render.scheduler import Scheduler
from latentfs.store.latent_files import latent_file_parts
from latentfs.store.records import Inode
from latentfs.store.snapshot import Snapshot, split_path
from latentfs.store.store import Store
from latentfs.store.tables import CHUNK_BYTES

__all__ = ["ExportItem", "Exporter", "export_plan"]

_PARALLEL_FILES = 4
_CHANGED = (
    "it was written with other bytes than at import: another device or library version decodes or "
    "encodes differently, or the store is damaged"
)
_WITHOUT_BYTES = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True, slots=True)
class ExportItem:
    """One file: its path in the store, its inode number, whether to render it, where it goes."""

    source: str
    ino: int
    is_picture: bool
    place: Place


def export_plan(
    store: Store, source: str, destination: Path, *, refuse: Callable[[str, str], None]
) -> list[ExportItem]:
    """Return what is to be copied for *source*, a file or folder in the store.

    Args:
        refuse: called with (path, reason) for what is below *source* and can't be copied.  Of a
            damaged store all is had that can be.

    Raises:
        PathError: the store has no such path.
    """
    with store.read() as snapshot:
        found = snapshot.resolve(source)
        if found is None:
            raise PathError(f"the store {store.path} has no {source}")
        ino, inode = found
        if inode.is_directory:
            place = Place(destination, ())
            return list(_folder(snapshot, source.rstrip("/"), ino, place, refuse))
        if destination.is_dir():
            place = Place(destination, (split_path(source)[-1].decode(),))
        else:
            place = Place(destination.parent, (destination.name,))
        return [ExportItem(source, ino, inode.content is not None, place)]


def _folder(
    snapshot: Snapshot, source: str, ino: int, place: Place, refuse: Callable[[str, str], None]
) -> Iterator[ExportItem]:
    seen = {ino}
    pending = [(source, ino, place)]
    while pending:
        folder, folder_ino, into = pending.pop()
        for name, child_ino in snapshot.entries(folder_ino):
            path = f"{folder}/{name.decode('utf-8', 'backslashreplace')}"
            try:
                below = into.below(_checked(name))
                child = _proven_child(snapshot, child_ino, seen)
            except (PathError, StoreCorruptError) as error:
                refuse(path, str(error))
                continue
            if child.is_directory:
                seen.add(child_ino)
                pending.append((path, child_ino, below))
            else:
                yield ExportItem(path, child_ino, child.content is not None, below)


def _proven_child(snapshot: Snapshot, ino: int, folders: set[int]) -> Inode:
    inode = snapshot.inode(ino)
    if inode is None:
        raise PathError("it leads nowhere; run latentfs fsck")
    if inode.is_directory and ino in folders:
        raise PathError("it is a folder with two names; run latentfs fsck")
    return inode


def _checked(name: bytes) -> str:
    """Return the name for system calls: a hostile store must not lead out of the destination."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise PathError(f"its name {name!r} can't be used for a file or folder; run latentfs fsck")
    return os.fsdecode(name)


class Exporter:
    """Writes the items of a plan, each as it is when its turn comes.

    A file appears under its name only when complete, and no symbolic link in the destination is
    followed.

    Args:
        scheduler: renders the pictures; None where the plan has none.
        refuse: called with (path, reason) for what can't be copied.
        skip: called with (path, reason) for what has no bytes to copy.
        tell_change: called with (path, reason) for pictures that were written, but with other bytes
            than they had at import.
        on_done: called after each item.
    """

    def __init__(
        self,
        store: Store,
        scheduler: Scheduler | None,
        *,
        refuse: Callable[[str, str], None],
        skip: Callable[[str, str], None],
        tell_change: Callable[[str, str], None],
        on_done: Callable[[], None],
    ) -> None:
        self._store = store
        self._scheduler = scheduler
        self._refuse = refuse
        self._skip = skip
        self._tell_change = tell_change
        self._on_done = on_done

    async def run(self, plan: list[ExportItem]) -> None:
        """Copy all; an item that is being written when this is cancelled is finished first.

        Raises:
            NoRendererError: none can be started.
        """
        queue = iter(plan)

        async def work() -> None:
            for item in queue:
                await self._export(item)
                self._on_done()

        async with trio.open_nursery() as nursery:
            for _ in range(_PARALLEL_FILES):
                nursery.start_soon(work)

    async def _export(self, item: ExportItem) -> None:
        try:
            done = await trio.to_thread.run_sync(self._copy, item)
            if isinstance(done, str):
                self._skip(item.source, done)
            elif done is not None:
                await self._render(item, *done)
        except NoRendererError:
            raise  # no picture after this one fares better
        except LatentfsError as error:
            self._refuse(item.source, str(error))
        except OSError as error:
            self._refuse(item.source, f"can't write {item.place.path}: {error.strerror}")

    def _copy(self, item: ExportItem) -> tuple[Inode, RenderJob] | str | None:
        """Copy what needs no render, in one snapshot, as a mount may change the file meanwhile.

        Returns: what is to be rendered of a picture; why it is skipped; None if it is copied.
        """
        with self._store.read() as snapshot:
            inode = snapshot.inode(item.ino)
            if inode is None:
                raise PathError("it was removed meanwhile")
            if inode.content is not None:
                return inode, job_for_inode(snapshot, self._store.path, inode)
            if stat.S_ISLNK(inode.mode):
                make_link(item.place, _proven_link(inode))
            elif inode.is_regular:
                write_file(item.place, inode, _filler(snapshot, item.ino, inode))
            elif stat.S_IFMT(inode.mode) in _WITHOUT_BYTES:
                return f"it is {_WITHOUT_BYTES[stat.S_IFMT(inode.mode)]}"
            else:
                raise StoreCorruptError(f"it has the mode {inode.mode:o}; run latentfs fsck")
            return None

    async def _render(self, item: ExportItem, inode: Inode, job: RenderJob) -> None:
        if self._scheduler is None:
            raise PathError("it became a picture meanwhile; export it again")
        rendition = await self._scheduler.render(job)
        is_as_at_import = check_rendition(inode, job.recipe, rendition)
        await trio.to_thread.run_sync(
            write_file, item.place, inode, lambda file: file.write(rendition.data)
        )
        if not is_as_at_import:
            self._tell_change(item.source, _CHANGED)


def _proven_link(inode: Inode) -> Inode:
    if not inode.target or b"\0" in inode.target:
        raise StoreCorruptError(f"it is a link to {inode.target!r}; run latentfs fsck")
    return inode


def _filler(snapshot: Snapshot, ino: int, inode: Inode) -> Callable[[BinaryIO], object]:
    """Return what writes the bytes of a file that is not a picture."""
    if inode.latent_file is None:
        return lambda file: _write_chunks(file, snapshot, ino, inode.size_bytes)
    data = latent_file_parts(snapshot, inode.latent_file).put_together()
    if len(data) != inode.size_bytes:
        raise StoreCorruptError(
            f"it is put together to {len(data)} bytes, not to its size of {inode.size_bytes}; "
            "run latentfs fsck"
        )
    return lambda file: file.write(data)


def _write_chunks(file: BinaryIO, snapshot: Snapshot, ino: int, size_bytes: int) -> None:
    """Write what there is, in pieces; holes stay holes, which may be larger than the disk."""
    for index in snapshot.chunk_indices(ino):
        offset = index * CHUNK_BYTES
        if offset < size_bytes:
            file.seek(offset)
            end = min(size_bytes, offset + CHUNK_BYTES)
            file.write(snapshot.bytes_of(ino, offset=offset, end=end))
    file.truncate(size_bytes)
