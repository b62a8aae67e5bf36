"""What becomes of files that programs write into a mount, once they are finished.

* A **latent file** is kept as its compressed payload from then on, and its picture appears beside
  it: ``cat.latent`` gives ``cat.png``.
* A **copy of a picture** shares the payload of the picture that it is a copy of; so does one that
  differs from it in nothing but metadata.

Neither changes a byte of the file that was written.  All of it happens behind the programs' backs:
what fails leaves the file as it is.
"""

from __future__ import annotations

import dataclasses
import logging
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import trio

from latentfs.errors import (
    LatentError,
    LatentfsError,
    NoRendererError,
    RenderError,
    StoreCorruptError,
    StoreError,
    VaeError,
    VaeNotFoundError,
)
from latentfs.images.framing import Framing
from latentfs.ingest.addition import (
    Owner,
    RenderedPicture,
    add_picture,
    compressed,
)
from latentfs.ingest.copies import CopyFinder
from latentfs.ingest.discover import Candidate
from latentfs.ingest.preparation import ImportOptions, Picture, Preparation
from latentfs.ingest.room import free_name
from latentfs.latents.taken_apart import TakenApart, take_apart
from latentfs.render.job_queue import Priority
from latentfs.render.scheduler import Scheduler
from latentfs.store.file_transaction import FileTransaction
from latentfs.store.latent_files import LatentFileParts, latent_file_parts
from latentfs.store.live_store import LiveStore
from latentfs.store.records import Inode, LatentFileContent, VaeRecord
from latentfs.store.snapshot import PackedBlob, Snapshot
from latentfs.store.tables import ROOT_INO
from latentfs.store.transaction import pack_blobs

__all__ = ["UNDEVELOPED_XATTR", "VAE_XATTR", "Developer", "DeveloperStatistics"]

log = logging.getLogger(__name__)

VAE_XATTR = b"user.latentfs.vae"
"""Of a folder: name of the VAE for the latent files below it."""

UNDEVELOPED_XATTR = b"user.latentfs.undeveloped"
"""Of a latent file: why it has no picture."""

_NOT_YET = b"not yet: "
"""What that begins with where the reason may go away, so that it is worth another try."""

_LATENT_SUFFIXES = (b".latent", b".safetensors")
_PICTURE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_FILE_BYTES_MAX = 64 << 20
_PIECE_BYTES = 1 << 20
_WAITING_MAX = 10_000
_ENTRIES_AT_ONCE = 1000
# A damaged store may have folders that are in each other.
_FOLDERS_DEEP_MAX = 10_000
_FRAMING = Framing.png()

_Place = tuple[int, bytes]
"""Number of the folder, and name in it."""


@dataclass(frozen=True, slots=True)
class DeveloperStatistics:
    """Counters since the mount.

    Attributes:
        developed_total: latent files whose pictures were made.
        undeveloped_total: times that no picture could be made of a latent file.
        copies_recognised_total: files that turned out to be copies of pictures.
        developing: files that wait for their turn.
    """

    developed_total: int
    undeveloped_total: int
    copies_recognised_total: int
    developing: int


@dataclass(frozen=True, slots=True)
class _Finished:
    """A file as it was when its turn came."""

    ino: int
    inode: Inode
    parent_ino: int
    name: bytes


@dataclass(frozen=True, slots=True)
class _Developed:
    """A latent file that is ready to be kept as its latents.

    Attributes:
        data: its bytes.
        apart: the same, taken apart.
        rest: what is left without the latents, as it is kept.
        rendered: its pictures.
    """

    data: bytes
    apart: TakenApart
    rest: PackedBlob
    rendered: list[RenderedPicture]

    def check(self) -> None:
        """Make sure that what is to be stored gives the bytes of the file.

        Decompresses all of it: to be called in a thread.

        Raises:
            StoreCorruptError, CorruptPayloadError: it does not.
        """
        content = LatentFileContent((), self.rest.id, self.apart.offset, self.apart.packed)
        payloads = [picture.payload for picture in self.rendered]
        _require(LatentFileParts(content, payloads, self.apart.rest), self.data)


class Developer:
    """Looks at finished files one after the other, at low priority.

    Args:
        name_of: gives (parent ino, name) of an inode, None where it isn't known.
        is_being_written: whether a file is open to be written.
        release_replaced: lets an inode go that :meth:`finished` was told of.
        let_go: lets an inode go that has lost its last name to another picture.
    """

    def __init__(
        self,
        store: LiveStore,
        scheduler: Scheduler,
        *,
        name_of: Callable[[int], tuple[int, bytes] | None],
        is_being_written: Callable[[int], bool],
        release_replaced: Callable[[int], Awaitable[None]],
        let_go: Callable[[int], Awaitable[None]],
    ) -> None:
        self._store = store
        self._scheduler = scheduler
        self._name_of = name_of
        self._is_being_written = is_being_written
        self._release_replaced = release_replaced
        self._let_go = let_go
        self._replaced: dict[int, list[int]] = {}
        self._copies = CopyFinder(store, scheduler)
        self._waiting: dict[int, _Place | None] = {}
        self._wake = trio.Event()
        self._is_to_search = False
        self._current_ino: int | None = None
        self._current_has_changed = False
        self._developed = 0
        self._undeveloped = 0
        self._copies_total = 0

    def statistics(self) -> DeveloperStatistics:
        return DeveloperStatistics(
            developed_total=self._developed,
            undeveloped_total=self._undeveloped,
            copies_recognised_total=self._copies_total,
            developing=len(self._waiting),
        )

    def finished(self, ino: int, replaced_ino: int | None = None) -> None:
        """Have a file looked at that was written or renamed; costs next to nothing.

        Args:
            replaced_ino: what it took the place of.  It may be the very picture that the file is a
                copy of, so it is let go only when that has been found out.
        """
        if replaced_ino is not None:
            self._replaced.setdefault(ino, []).append(replaced_ino)
        if ino == self._current_ino:
            self._current_has_changed = True
        if len(self._waiting) < _WAITING_MAX or ino in self._replaced:
            self._waiting[ino] = None
            self._wake.set()
        else:
            self.look_again()

    def look_again(self) -> None:
        """Have all latent files looked at that have no picture yet, as there may be a way now."""
        self._is_to_search = True
        self._wake.set()

    async def run(self) -> None:
        """Look at finished files until cancelled; a file whose turn is on then stays as it is.

        First come the latent files that an earlier mount did not get to.
        """
        self.look_again()
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            if self._is_to_search:
                self._is_to_search = False
                await self._search()
            while self._waiting:
                await self._take_next()
                await trio.lowlevel.checkpoint()

    async def _take_next(self) -> None:
        """Look at the file that has waited longest; whatever goes wrong is logged."""
        ino = next(iter(self._waiting))
        place = self._waiting.pop(ino)
        self._current_ino, self._current_has_changed = ino, False
        try:
            await self._look_at(ino, place)
        except LatentfsError as error:
            log.warning("inode %d stays as it was written: %s", ino, error)
        except Exception:
            log.exception("inode %d stays as it was written", ino)
        if ino in self._waiting:
            return
        for replaced_ino in self._replaced.pop(ino, []):
            await _released(self._release_replaced, replaced_ino)

    async def _search(self) -> None:
        try:
            await self._find_undeveloped()
        except LatentfsError as error:  # the mount outlives what is wrong with a store
            log.error("not all latent files without pictures could be found: %s", error)
        except Exception:
            log.exception("not all latent files without pictures could be found")

    async def _find_undeveloped(self) -> None:
        after: _Place = (0, b"")
        while True:
            with self._store.read() as snapshot:
                entries = list(islice(snapshot.all_entries(after=after), _ENTRIES_AT_ONCE))
                for parent_ino, name, ino in entries:
                    if name.endswith(_LATENT_SUFFIXES) and _is_undeveloped(snapshot, ino):
                        self._waiting[ino] = (parent_ino, name)
            if not entries:
                break
            after = entries[-1][:2]
            await trio.lowlevel.checkpoint()

    async def _look_at(self, ino: int, place: _Place | None) -> None:
        file = self._finished_file(ino, place)
        if file is None:
            return
        with self._store.read() as snapshot:
            start = snapshot.bytes_of(ino, offset=0, end=min(16, file.inode.size_bytes))
        if start.startswith(_PICTURE_STARTS):
            await self._recognise_copy(file)
        elif file.name.endswith(_LATENT_SUFFIXES):
            await self._develop(file)

    def _finished_file(self, ino: int, place: _Place | None) -> _Finished | None:
        """Return the file if it is to be looked at: whole, chunked, named, not too large."""
        where = place or self._name_of(ino)
        with self._store.read() as snapshot:
            inode = snapshot.inode(ino)
            if where is not None and snapshot.lookup(*where) != ino:
                return None
        if (
            inode is None
            or where is None
            or not inode.is_chunked
            or not 0 < inode.size_bytes <= _FILE_BYTES_MAX
            or self._is_being_written(ino)
        ):
            return None
        return _Finished(ino, inode, *where)

    async def _bytes_of(self, file: _Finished) -> bytes:
        """Return the bytes of the file; they count only if it is unchanged in the end."""
        pieces = []
        for offset in range(0, file.inode.size_bytes, _PIECE_BYTES):
            with self._store.read() as snapshot:
                end = min(offset + _PIECE_BYTES, file.inode.size_bytes)
                pieces.append(snapshot.bytes_of(file.ino, offset=offset, end=end))
            await trio.lowlevel.checkpoint()
        return b"".join(pieces)

    def _is_unchanged(self, transaction: FileTransaction, file: _Finished) -> bool:
        """Whether the file is still there, and nobody has written it since its turn came."""
        now = transaction.inode(file.ino)
        return (
            now is not None
            and transaction.lookup(file.parent_ino, file.name) == file.ino
            and not self._current_has_changed
            and not self._is_being_written(file.ino)
            and now.is_chunked
            and now.size_bytes == file.inode.size_bytes
        )

    # Copies of pictures

    async def _recognise_copy(self, file: _Finished) -> None:
        data = await self._bytes_of(file)
        copy = await self._copies.find(data)
        if copy is None:
            return
        metadata = await self._packed(*copy.metadata)
        await self._store.may_change()
        with self._store.change(adds_bytes=len(data)) as transaction:
            if not transaction.has_all_of(copy.of) or not self._is_unchanged(transaction, file):
                return
            for blob in metadata:
                transaction.add_blob(blob)
            transaction.make_latent(file.ino, transaction.require(file.ino), copy.content)
        self._copies_total += 1

    # Latent files

    async def _develop(self, file: _Finished) -> None:
        try:
            self._developed += await self._make_pictures(file)
        except LatentfsError as error:
            self._undeveloped += 1
            is_ours = isinstance(error, RenderError | StoreError | VaeError)  # else it may quote it
            shown = error if is_ours else "its attribute user.latentfs.undeveloped says why"
            log.info("no picture is made of inode %d: %s", file.ino, shown)
            await self._note(file, _reason(error))

    async def _make_pictures(self, file: _Finished) -> bool:
        """Return whether the file was still the same when its pictures were there."""
        data = await self._bytes_of(file)
        apart = await trio.to_thread.run_sync(take_apart, data)
        with self._store.read() as snapshot:
            vae_name, vae = _vae_for(snapshot, file.parent_ino, apart)
        pictures = _pictures_of(apart, file, vae_name, vae)
        rendered = [await self._render(picture, vae) for picture in pictures]
        (rest,) = await self._packed(apart.rest)
        developed = _Developed(data, apart, rest, rendered)
        await trio.to_thread.run_sync(developed.check)
        await self._store.may_change()
        adds_bytes = 4096 + sum(len(picture.payload) for picture in rendered)
        with self._store.change(adds_bytes=adds_bytes, announced=True) as transaction:
            is_unchanged = self._is_unchanged(transaction, file)
            orphans = self._commit(transaction, file, developed) if is_unchanged else []
        for ino in orphans:
            await _released(self._let_go, ino)
        return is_unchanged

    async def _render(self, picture: Picture, vae: VaeRecord) -> RenderedPicture:
        job, metadata = await trio.to_thread.run_sync(
            compressed, self._store.read_in_thread(), self._store.path, vae, _FRAMING, picture
        )
        rendition = await self._scheduler.render(job, priority=Priority.IMPORT)
        return RenderedPicture(picture, job.bulk[0], metadata, rendition.report)

    async def _packed(self, *blobs: bytes) -> tuple[PackedBlob, ...]:
        return await trio.to_thread.run_sync(pack_blobs, self._store.read_in_thread(), blobs)

    def _commit(
        self, transaction: FileTransaction, file: _Finished, developed: _Developed
    ) -> list[int]:
        """Add the pictures and keep the file as its latents; return what has lost its last name."""
        orphans = []
        inode = transaction.require(file.ino)
        digests = [picture.picture.identity.digest for picture in developed.rendered]
        were_there = any(transaction.payload_of_digest(d) is not None for d in digests)
        owner = Owner(inode.uid, inode.gid, stat.S_IMODE(inode.mode) & 0o666)
        for made in developed.rendered:
            source = msgspec.structs.replace(made.picture.source, developed_in=file.parent_ino)
            # Programs set the times of a file after they have closed it.
            picture = dataclasses.replace(made.picture, source=source, mtime_ns=inode.mtime_ns)
            free = free_name(transaction, file.parent_ino, picture, owner)
            if free is not None:
                if free.orphan_ino is not None:
                    orphans.append(free.orphan_ino)
                add_picture(
                    transaction,
                    file.parent_ino,
                    free.name,
                    dataclasses.replace(made, picture=picture),
                    framing=_FRAMING,
                    owner=owner,
                )
        payloads = tuple(
            transaction.add_payload(picture.picture.identity.digest, picture.payload)
            for picture in developed.rendered
        )
        rest, apart = transaction.add_blob(developed.rest), developed.apart
        content = LatentFileContent(payloads, rest, apart.offset, apart.packed)
        if were_there:  # and may be damaged
            _require(latent_file_parts(transaction, content), developed.data)
        transaction.make_latent(file.ino, inode, content)
        transaction.note_xattr(file.ino, UNDEVELOPED_XATTR, None)
        return orphans

    async def _note(self, file: _Finished, reason: bytes) -> None:
        await self._store.may_change()
        with self._store.change() as transaction:
            if transaction.inode(file.ino) is not None:
                transaction.note_xattr(file.ino, UNDEVELOPED_XATTR, reason)


async def _released(release: Callable[[int], Awaitable[None]], ino: int) -> None:
    """Let a replaced inode go; whatever goes wrong is logged, and the next mount removes it."""
    try:
        await release(ino)
    except LatentfsError as error:
        log.error("inode %d, which was replaced, can't be removed: %s", ino, error)
    except Exception:
        log.exception("inode %d, which was replaced, can't be removed", ino)


def _require(parts: LatentFileParts, data: bytes) -> None:
    """Make sure that *parts* give *data*, a file whose chunks, all that is left of it, are dropped.

    Takes a millisecond or two a megabyte.

    Raises:
        StoreCorruptError, CorruptPayloadError: they do not.
    """
    if parts.put_together() != data:
        raise StoreCorruptError(
            f"payloads {parts.content.payloads} and metadata blob {parts.content.rest.hex()} give "
            "other bytes than were written; run latentfs fsck"
        )


def _reason(error: LatentfsError) -> bytes:
    """Return why there is no picture, as the attribute says it."""
    reason = str(error).encode("utf-8", "backslashreplace")
    is_of_the_file = not isinstance(error, NoRendererError | VaeError)
    return reason if is_of_the_file else _NOT_YET + reason


def _is_undeveloped(snapshot: Snapshot, ino: int) -> bool:
    """Whether it is a file as it was written, for no reason that lies in the file itself."""
    inode = snapshot.inode(ino)
    if inode is None or not inode.is_chunked:
        return False
    return (snapshot.xattr(ino, UNDEVELOPED_XATTR) or _NOT_YET).startswith(_NOT_YET)


def _vae_for(snapshot: Snapshot, ino: int, apart: TakenApart) -> tuple[str, VaeRecord]:
    """Return the VAE that the nearest folder names, or the only one that takes such latents.

    Raises:
        VaeNotFoundError: there is none, or several and no folder names one.
    """
    for _ in range(_FOLDERS_DEEP_MAX):
        named = snapshot.xattr(ino, VAE_XATTR)
        if named is not None:
            name = named.decode("utf-8", "replace")
            return name, snapshot.vae(name)
        inode = snapshot.inode(ino)
        if ino == ROOT_INO or inode is None:
            break
        ino = inode.parent_ino
    channels = apart.file.latents[0].shape[0]
    fitting = [(name, vae) for name, vae in snapshot.vaes() if vae.latent_channels == channels]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(name for name, _ in fitting) or "none"
    raise VaeNotFoundError(
        f"which VAE decodes latents of {channels} channels is not known (the store has: {names}); "
        "name one for the folder: setfattr -n user.latentfs.vae -v NAME FOLDER"
    )


def _pictures_of(
    apart: TakenApart, file: _Finished, vae_name: str, vae: VaeRecord
) -> list[Picture]:
    options = ImportOptions(
        vae=vae_name,
        to="/",
        precision="source",
        framing=_FRAMING,
        rounding="round",
        on_conflict="rename",
    )
    try:
        path = Path(file.name.decode())
    except UnicodeDecodeError as error:
        raise LatentError("its name is not valid UTF-8; rename it") from error
    candidate = Candidate(path, "/", path.stem)
    return Preparation(options, vae).pictures_of(
        apart.file, candidate, mtime_ns=file.inode.mtime_ns
    )
