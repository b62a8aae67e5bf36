"""Import latent files into a store.

Every picture is rendered once, to find its size, before its file appears.  Files appear in groups,
each one transaction: an interrupted import leaves whole pictures and nothing else, and a repeated
one finds them and adds nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from latentfs.errors import LatentfsError, NoRendererError, StoreFullError
from latentfs.ingest.addition import (
    Owner,
    RenderedPicture,
    add_picture,
    compressed,
)
from latentfs.ingest.conflicts import Conflict, resolve
from latentfs.ingest.discover import Candidate
from latentfs.ingest.preparation import ImportOptions, Picture, Preparation
from latentfs.render.job_queue import Priority
from latentfs.render.scheduler import Scheduler
from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.store import Store
from latentfs.store.transaction import Transaction

__all__ = ["Added", "AlreadyThere", "Importer", "Outcome", "Refused"]

_PARALLEL_FILES = 4
_GROUP_FILES = 64
# As much as a mount gathers for one commit: nobody else can write meanwhile.
_GROUP_BYTES = 16 << 20
_GROUP_AGE_S = 1.0


@dataclass(frozen=True, slots=True)
class Added:
    """A picture that is in the store now, on disk."""

    path: Path
    target: str
    payload_bytes: int
    narrowing_psnr_db: float | None


@dataclass(frozen=True, slots=True)
class AlreadyThere:
    """A picture that the store had already under that name."""

    path: Path
    target: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A file, or one picture of it, that is not in the store, and why."""

    path: Path
    reason: str


Outcome = Added | AlreadyThere | Refused


class Importer:
    """Runs one import.

    *report* is called on the trio thread with each outcome, once per picture or refused file;
    *on_file_done* after each file's pictures were rendered or refused.

    Raises:
        VaeNotFoundError: the store has no VAE of that name.
    """

    def __init__(
        self,
        store: Store,
        options: ImportOptions,
        *,
        report: Callable[[Outcome], None],
        on_file_done: Callable[[], None],
    ) -> None:
        self._store = store
        self._daemon_lock = DaemonLock(store.path)
        self._options = options
        self._report = report
        self._on_file_done = on_file_done
        with store.read() as snapshot:
            self._vae = snapshot.vae(options.vae)
        self._preparation = Preparation(options, self._vae)

    async def run(self, candidates: list[Candidate], scheduler: Scheduler) -> None:
        """Import all *candidates*, rendering them with *scheduler*.

        If cancelled, pictures that were rendered but not yet committed are left out; what was
        reported as added stays.

        Raises:
            NoRendererError: nothing can be rendered here.
            StoreFullError: the disk is full; what was reported as added stays.
        """
        queue = iter(candidates)
        rendered, to_commit = trio.open_memory_channel[RenderedPicture](_GROUP_FILES)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._commit_groups, to_commit)
            async with rendered, trio.open_nursery() as workers:
                for _ in range(_PARALLEL_FILES):
                    workers.start_soon(self._work, queue, scheduler, rendered.clone())

    async def _work(
        self,
        queue: Iterator[Candidate],
        scheduler: Scheduler,
        rendered: trio.MemorySendChannel[RenderedPicture],
    ) -> None:
        async with rendered:
            for candidate in queue:
                await self._import_file(candidate, scheduler, rendered)
                self._on_file_done()

    async def _import_file(
        self,
        candidate: Candidate,
        scheduler: Scheduler,
        rendered: trio.MemorySendChannel[RenderedPicture],
    ) -> None:
        try:
            pictures = await trio.to_thread.run_sync(self._preparation.prepare, candidate)
        except (LatentfsError, OSError) as error:
            self._report(Refused(candidate.path, _reason(error, candidate.path)))
            return
        for picture in pictures:
            await self._render(picture, scheduler, rendered)

    async def _render(
        self,
        picture: Picture,
        scheduler: Scheduler,
        rendered: trio.MemorySendChannel[RenderedPicture],
    ) -> None:
        if self._settled_by_conflict(picture):
            return
        try:
            job, metadata = await trio.to_thread.run_sync(
                compressed,
                self._store.read,
                self._store.path,
                self._vae,
                picture.identity.framing,
                picture,
            )
            rendition = await scheduler.render(job, priority=Priority.IMPORT)
        except NoRendererError:
            raise  # no file after this one fares better
        except LatentfsError as error:
            self._report(Refused(picture.path, _reason(error, picture.path)))
            return
        await rendered.send(RenderedPicture(picture, job.bulk[0], metadata, rendition.report))

    def _settled_by_conflict(self, picture: Picture) -> bool:
        """Whether the picture needs no render: it is there already, or may not replace another."""
        with self._store.read() as snapshot:
            found = snapshot.resolve(picture.folder)
            if found is None:
                return False
            try:
                conflict = resolve(
                    snapshot, found[0], picture.name, picture.identity, self._options.on_conflict
                )
            except LatentfsError as error:
                self._report(Refused(picture.path, str(error)))
                return True
        return self._reported(conflict, picture)

    def _reported(self, conflict: Conflict, picture: Picture) -> bool:
        if conflict.action == "same":
            self._report(AlreadyThere(picture.path, picture.target))
        elif conflict.action == "refuse":
            self._report(
                Refused(
                    picture.path,
                    f"{picture.target} exists with another picture; "
                    "use --on-conflict rename or replace",
                )
            )
        else:
            return False
        return True

    # Committing

    async def _commit_groups(self, to_commit: trio.MemoryReceiveChannel[RenderedPicture]) -> None:
        async for first in to_commit:
            group, group_bytes = [first], first.stored_bytes
            with trio.move_on_after(_GROUP_AGE_S), suppress(trio.EndOfChannel):
                while len(group) < _GROUP_FILES and group_bytes < _GROUP_BYTES:
                    group.append(await to_commit.receive())
                    group_bytes += group[-1].stored_bytes
            await self._commit(group)

    async def _commit(self, group: list[RenderedPicture]) -> None:
        try:
            # Not to be abandoned half-way: outcomes must tell what is in the store.
            with trio.CancelScope(shield=True):
                conflicts = await trio.to_thread.run_sync(self._commit_in_thread, group)
        except LatentfsError as error:
            await self._commit_one_by_one(group, error)
            return
        for rendered, conflict in zip(group, conflicts, strict=True):
            self._report_committed(rendered, conflict)

    async def _commit_one_by_one(self, group: list[RenderedPicture], error: LatentfsError) -> None:
        """A full disk may have room for some of a group; damage is met by one of them.

        Raises:
            StoreFullError: it has no room for one; what comes next would be rendered in vain.
        """
        if len(group) == 1:
            if isinstance(error, StoreFullError):
                raise StoreFullError(
                    f"no space left for the store {self._store.path}: the import ends here and "
                    "keeps what it has added; free some space and import the same again"
                ) from error
            path = group[0].picture.path
            self._report(Refused(path, _reason(error, path)))
            return
        for rendered in group:
            await self._commit([rendered])

    def _report_committed(
        self, rendered: RenderedPicture, conflict: Conflict | LatentfsError
    ) -> None:
        picture = rendered.picture
        if isinstance(conflict, LatentfsError):
            self._report(Refused(picture.path, str(conflict)))
        elif not self._reported(conflict, picture):
            target = f"{picture.folder.rstrip('/')}/{conflict.name.decode()}"
            psnr_db = rendered.report.psnr_db
            self._report(Added(picture.path, target, len(rendered.payload), psnr_db))

    def _commit_in_thread(self, group: list[RenderedPicture]) -> list[Conflict | LatentfsError]:
        with self._store.write() as transaction:
            return [self._add(transaction, rendered) for rendered in group]

    def _add(self, transaction: Transaction, rendered: RenderedPicture) -> Conflict | LatentfsError:
        """Add one picture; conflicts are looked at again, now that nobody else can write."""
        picture = rendered.picture
        uid, gid = os.getuid(), os.getgid()
        try:
            folder_ino = transaction.make_directories(picture.folder, uid=uid, gid=gid)
            conflict = resolve(
                transaction, folder_ino, picture.name, picture.identity, self._options.on_conflict
            )
        except LatentfsError as error:
            return error
        if conflict.action in ("same", "refuse"):
            return conflict
        if conflict.action == "replace":
            is_mounted = self._daemon_lock.is_mounted()
            transaction.remove_file_by_command(folder_ino, conflict.name, is_mounted=is_mounted)
        owner = Owner(uid, gid)
        framing = picture.identity.framing
        add_picture(transaction, folder_ino, conflict.name, rendered, framing=framing, owner=owner)
        return conflict


def _reason(error: LatentfsError | OSError, path: Path) -> str:
    """Why a file is refused; the report names the file itself."""
    if isinstance(error, OSError):
        return f"can't be read: {error.strerror}"
    reason = str(error)
    for shown in (str(path), ascii(str(path))):
        reason = reason.removeprefix(f"{shown}: ")
    return reason
