"""Copying pictures out of a store without a mount."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from latentfs.errors import LatentfsError, NoRendererError, PathError
from latentfs.render.jobs import check_rendition, job_for_inode
from latentfs.render.scheduler import Scheduler
from latentfs.store.records import Inode
from latentfs.store.snapshot import Snapshot, check_name, split_path
from latentfs.store.store import Store

__all__ = ["ExportItem", "Exporter", "export_plan"]

_PARALLEL_FILES = 4


@dataclass(frozen=True, slots=True)
class ExportItem:
    """One picture: its path in the store, its inode, where it goes."""

    source: str
    inode: Inode
    destination: Path


def export_plan(store: Store, source: str, destination: Path) -> list[ExportItem]:
    """Return what is to be copied for *source*, a picture or folder in the store.

    Raises:
        PathError: the store has no such path.
    """
    with store.read() as snapshot:
        found = snapshot.resolve(source)
        if found is None:
            raise PathError(f"the store {store.path} has no {source}")
        ino, inode = found
        if inode.is_directory:
            return list(_folder(snapshot, source.rstrip("/"), ino, destination))
        name = split_path(source)[-1].decode()
        target = destination / name if destination.is_dir() else destination
        return [ExportItem(source, inode, target)]


def _folder(snapshot: Snapshot, source: str, ino: int, destination: Path) -> list[ExportItem]:
    items = []
    for name_bytes, child_ino in snapshot.entries(ino):
        name = name_bytes.decode("utf-8", "backslashreplace")
        check_name(name)  # a hostile store must not lead outside of the destination
        child = snapshot.inode(child_ino)
        if child is None:
            raise PathError(f"{source}/{name} leads nowhere; run latentfs fsck")
        if child.is_directory:
            items += _folder(snapshot, f"{source}/{name}", child_ino, destination / name)
        else:
            items.append(ExportItem(f"{source}/{name}", child, destination / name))
    return items


class Exporter:
    """Renders and writes the items of a plan.

    A file appears under its name only when complete.  *refuse* is called with (path, reason) for
    what can't be copied, *on_done* after each item.
    """

    def __init__(
        self,
        store: Store,
        scheduler: Scheduler,
        *,
        refuse: Callable[[str, str], None],
        on_done: Callable[[], None],
    ) -> None:
        self._store = store
        self._scheduler = scheduler
        self._refuse = refuse
        self._on_done = on_done

    async def run(self, plan: list[ExportItem]) -> None:
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
            with self._store.read() as snapshot:
                job = job_for_inode(snapshot, self._store.path, item.inode)
            rendition = await self._scheduler.render(job)
            check_rendition(item.inode, job.recipe, rendition)
            await trio.to_thread.run_sync(_write, item, rendition.data)
        except NoRendererError:
            raise  # no picture after this one fares better
        except LatentfsError as error:
            self._refuse(item.source, str(error))
        except OSError as error:
            self._refuse(item.source, f"can't write {item.destination}: {error.strerror}")


def _write(item: ExportItem, data: bytes) -> None:
    folder = item.destination.parent
    folder.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=".latentfs-", dir=folder)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), item.inode.mode & 0o777)
        os.utime(temporary, ns=(item.inode.mtime_ns, item.inode.mtime_ns))
        os.replace(temporary, item.destination)
    except OSError:
        os.unlink(temporary)
        raise
