"""Import latent files into a store.

Every picture is rendered once, to find its size, before its file appears.  Files appear in groups,
each one transaction: an interrupted import leaves whole pictures and nothing else, and a repeated
one finds them and adds nothing.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

from latentfs.errors import LatentfsError, RefusedLatentError, StoreFullError
from latentfs.images import jpeg, png
from latentfs.images.framing import Framing
from latentfs.ingest.conflicts import Conflict, Identity, OnConflict, resolve
from latentfs.ingest.discover import Candidate
from latentfs.latents import payload as payload_codec
from latentfs.latents.latent import Latent
from latentfs.latents.recipe import Recipe, Rounding
from latentfs.latents.scaling import LATENT_FORMATS, Space, steps_for
from latentfs.latents.source import LatentFile, read_latent_file
from latentfs.render.protocol import RenderRequest
from latentfs.render.scheduler import RenderJob, Rendition, Scheduler
from latentfs.store.records import Inode, LatentContent, Source, VaeRecord
from latentfs.store.snapshot import check_name
from latentfs.store.store import Store
from latentfs.store.transaction import Transaction

__all__ = ["Added", "AlreadyThere", "ImportOptions", "Importer", "Outcome", "Refused"]

_PARALLEL_FILES = 4
_GROUP_FILES = 64
_GROUP_AGE_S = 1.0
_PIXELS_MAX = 1 << 25
# libjpeg's own limit.
_JPEG_SIDE_MAX = 65500
_EXIF_MODEL = 0x0110
_EXIF_MAKE = 0x010F


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What the user chose.

    Attributes:
        vae: name of a VAE in the store.
        to: absolute path of the target folder in the store.
        precision: ``source`` keeps the latents' own; a narrower one is given up to on purpose.
        framing: file format of the pictures.
        rounding: of pixels to 8 bits.
        on_conflict: what to do where a name exists with another picture.
    """

    vae: str
    to: str
    precision: str
    framing: Framing
    rounding: Rounding
    on_conflict: OnConflict


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


@dataclass(slots=True)
class _Picture:
    """One latent on its way into the store."""

    path: Path
    folder: str
    name: bytes
    identity: Identity
    payload: bytes
    chunks: list[bytes]
    metadata: bytes | None
    source: Source
    mtime_ns: int
    recipe: Recipe
    reference: bytes
    rendition: Rendition | None = field(default=None)

    @property
    def target(self) -> str:
        return f"{self.folder.rstrip('/')}/{self.name.decode()}"


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
        self._options = options
        self._report = report
        self._on_file_done = on_file_done
        with store.read() as snapshot:
            self._vae: VaeRecord = snapshot.vae(options.vae)

    async def run(self, candidates: list[Candidate], scheduler: Scheduler) -> None:
        """Import all *candidates*, rendering them with *scheduler*.

        If cancelled, pictures that were rendered but not yet committed are left out; what was
        reported as added stays.
        """
        queue = iter(candidates)
        prepared, to_commit = trio.open_memory_channel[_Picture](_GROUP_FILES)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._commit_groups, to_commit)
            async with prepared, trio.open_nursery() as workers:
                for _ in range(_PARALLEL_FILES):
                    workers.start_soon(self._work, queue, scheduler, prepared.clone())

    async def _work(
        self,
        queue: Iterator[Candidate],
        scheduler: Scheduler,
        prepared: trio.MemorySendChannel[_Picture],
    ) -> None:
        async with prepared:
            for candidate in queue:
                await self._import_file(candidate, scheduler, prepared)
                self._on_file_done()

    async def _import_file(
        self,
        candidate: Candidate,
        scheduler: Scheduler,
        prepared: trio.MemorySendChannel[_Picture],
    ) -> None:
        try:
            pictures = await trio.to_thread.run_sync(self._prepare, candidate)
        except (LatentfsError, OSError) as error:
            self._report(Refused(candidate.path, _reason(error, candidate.path)))
            return
        for picture in pictures:
            await self._render(picture, scheduler, prepared)

    async def _render(
        self,
        picture: _Picture,
        scheduler: Scheduler,
        prepared: trio.MemorySendChannel[_Picture],
    ) -> None:
        if self._settled_by_conflict(picture):
            return
        try:
            picture.rendition = await scheduler.render(self._job(picture))
        except LatentfsError as error:
            self._report(Refused(picture.path, _reason(error, picture.path)))
            return
        await prepared.send(picture)

    def _settled_by_conflict(self, picture: _Picture) -> bool:
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

    def _reported(self, conflict: Conflict, picture: _Picture) -> bool:
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

    # Preparing: runs in a worker thread

    def _prepare(self, candidate: Candidate) -> list[_Picture]:
        """Read a latent file and return its pictures, compressed and checked against the VAE."""
        file = read_latent_file(candidate.path)
        status = os.stat(candidate.path)
        chunks, metadata = self._metadata(file)
        recipe = self._recipe(file.space)
        suffix = self._options.framing.suffix
        pictures = []
        for index, latent in enumerate(file.latents):
            self._check_fits_vae(latent)
            number = f"_{index + 1}" if len(file.latents) > 1 else ""
            name = check_name(candidate.stem + number + suffix)
            kept, reference = self._narrowed(latent)
            pictures.append(
                _Picture(
                    path=candidate.path,
                    folder=candidate.folder,
                    name=name,
                    identity=Identity.of(kept, recipe, self._options.framing, chunks),
                    payload=payload_codec.encode(kept),
                    chunks=chunks,
                    metadata=metadata,
                    source=Source(candidate.path.name, file.kind, index, None),
                    mtime_ns=status.st_mtime_ns,
                    recipe=recipe,
                    reference=reference,
                )
            )
        return pictures

    def _check_fits_vae(self, latent: Latent) -> None:
        channels, height, width = latent.shape
        if channels != self._vae.latent_channels:
            raise RefusedLatentError(
                f"its latents have {channels} channels, VAE {self._options.vae!r} takes "
                f"{self._vae.latent_channels}; import it with the VAE of the model it came from"
            )
        pixels = height * width * self._vae.spatial_factor**2
        if pixels > _PIXELS_MAX:
            raise RefusedLatentError(
                f"a latent of {width} x {height} cells would decode to {pixels} pixels, "
                f"at most {_PIXELS_MAX} are rendered"
            )
        side = max(height, width) * self._vae.spatial_factor
        if self._options.framing.format == "jpeg" and side > _JPEG_SIDE_MAX:
            raise RefusedLatentError(
                f"a side of {side} pixels is more than the {_JPEG_SIDE_MAX} that a JPEG can have; "
                "import it with --format png"
            )

    def _narrowed(self, latent: Latent) -> tuple[Latent, bytes]:
        """Return the latent to keep and, where that loses precision, the exact payload."""
        precision = self._options.precision
        if precision == "source":
            return latent, b""
        kept = latent.narrowed("float16" if precision == "float16" else "bfloat16")
        return kept, b"" if kept is latent else payload_codec.encode(latent)

    def _recipe(self, space: Space) -> Recipe:
        vae = self._vae
        return Recipe(
            vae=vae.id,
            vae_class=vae.class_name,
            dtype=vae.dtype,
            scaling=steps_for(
                space,
                vae_scaling_factor=vae.scaling_factor,
                vae_shift_factor=vae.shift_factor,
                vae_takes_scaled=vae.takes_scaled,
                latent_format=LATENT_FORMATS.get(vae.latent_format or ""),
            ),
            # Pipelines cast scaled latents to the VAE's dtype and compute in it.
            scaling_dtype="recipe" if space is Space.SCALED else "float32",
            rounding=self._options.rounding,
            batch=1,
            cpu_threads=vae.cpu_threads,
        )

    def _metadata(self, file: LatentFile) -> tuple[list[bytes], bytes | None]:
        """Return the chunks to keep in the picture, and what does not go there, as JSON."""
        kept = msgspec.json.encode(file.source_metadata) if file.source_metadata else None
        if self._options.framing.format == "png":
            return [png.text_chunk(keyword, text) for keyword, text in file.text], kept
        if not file.text:
            return [], kept
        segment = jpeg.exif_segment(_exif_fields(file.text))
        return [] if segment is None else [segment], msgspec.json.encode(dict(file.text))

    # Rendering and committing

    def _job(self, picture: _Picture) -> RenderJob:
        request = RenderRequest(
            number=0,
            vae_folder=str(self._store.path / "vae" / self._vae.id),
            vae_files=self._vae.files,
            recipe=picture.recipe,
            framing=self._options.framing,
            size_bytes=None,
            payload_bytes=len(picture.payload),
            reference_bytes=len(picture.reference),
            chunk_bytes=tuple(len(chunk) for chunk in picture.chunks),
            want_data=False,
        )
        return RenderJob(request, [picture.payload, picture.reference, *picture.chunks])

    async def _commit_groups(self, to_commit: trio.MemoryReceiveChannel[_Picture]) -> None:
        async for first in to_commit:
            group = [first]
            with trio.move_on_after(_GROUP_AGE_S):
                while len(group) < _GROUP_FILES:
                    try:
                        group.append(await to_commit.receive())
                    except trio.EndOfChannel:
                        break
            await self._commit(group)

    async def _commit(self, group: list[_Picture]) -> None:
        try:
            # Not to be abandoned half-way: outcomes must tell what is in the store.
            with trio.CancelScope(shield=True):
                conflicts = await trio.to_thread.run_sync(self._commit_in_thread, group)
        except StoreFullError as error:
            for picture in group:
                self._report(Refused(picture.path, str(error)))
            return
        for picture, conflict in zip(group, conflicts, strict=True):
            if isinstance(conflict, LatentfsError):
                self._report(Refused(picture.path, str(conflict)))
                continue
            if self._reported(conflict, picture):
                continue
            picture.name = conflict.name
            assert picture.rendition is not None
            psnr_db = picture.rendition.report.psnr_db
            self._report(Added(picture.path, picture.target, len(picture.payload), psnr_db))

    def _commit_in_thread(self, group: list[_Picture]) -> list[Conflict | LatentfsError]:
        with self._store.write() as transaction:
            return [self._add(transaction, picture) for picture in group]

    def _add(self, transaction: Transaction, picture: _Picture) -> Conflict | LatentfsError:
        """Add one picture; conflicts are looked at again, now that nobody else can write."""
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
            transaction.remove_file(folder_ino, conflict.name)
        assert picture.rendition is not None
        report = picture.rendition.report
        metadata = None if picture.metadata is None else transaction.add_blob(picture.metadata)
        content = LatentContent(
            payload=transaction.add_payload(picture.identity.digest, picture.payload),
            recipe=transaction.put_recipe(picture.recipe),
            framing=self._options.framing,
            chunks=tuple(transaction.add_blob(chunk) for chunk in picture.chunks),
            rendition_sha256=report.sha256,
            width=report.width,
            height=report.height,
            source=msgspec.structs.replace(picture.source, metadata=metadata),
        )
        inode = Inode(
            mode=stat.S_IFREG | 0o644,
            uid=uid,
            gid=gid,
            nlink=1,
            size_bytes=report.size_bytes,
            mtime_ns=picture.mtime_ns,
            ctime_ns=time.time_ns(),
            content=content,
        )
        transaction.add_file(folder_ino, conflict.name, inode)
        return conflict


def _exif_fields(text: tuple[tuple[str, str], ...]) -> dict[int, str]:
    """Where ComfyUI's own writers put these in formats without text chunks.

    The prompt goes to Model, the others to Make and the tags below it, each as ``key:value``.
    """
    fields = {}
    tag = _EXIF_MAKE
    for keyword, value in text:
        if keyword == "prompt":
            fields[_EXIF_MODEL] = f"{keyword}:{value}"
        else:
            fields[tag] = f"{keyword}:{value}"
            tag -= 1
    return fields


def _reason(error: LatentfsError | OSError, path: Path) -> str:
    """Why a file is refused; the report names the file itself."""
    if isinstance(error, OSError):
        return f"can't be read: {error.strerror}"
    reason = str(error)
    for shown in (str(path), ascii(str(path))):
        reason = reason.removeprefix(f"{shown}: ")
    return reason
