"""From a latent file to pictures that are ready to be rendered and added.

Nothing here touches the store: what is refused here has left no trace in it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from latentfs.errors import RefusedLatentError
from latentfs.images import jpeg, png
from latentfs.images.framing import Framing, with_room
from latentfs.ingest.conflicts import Identity, OnConflict
from latentfs.ingest.discover import Candidate
from latentfs.latents.latent import Latent
from latentfs.latents.recipe import Recipe, Rounding
from latentfs.latents.scaling import LATENT_FORMATS, Space, steps_for
from latentfs.latents.source import LatentFile, read_latent_file
from latentfs.store.records import Source, VaeRecord
from latentfs.store.snapshot import check_name
from latentfs.store.tables import storable_ns

__all__ = ["ImportOptions", "Picture", "Preparation"]

_PIXELS_MAX = 1 << 25
# libjpeg's own limit.
_JPEG_SIDE_MAX = 65500
# Each is a chunk of its own in a PNG, whose length is in every request to a renderer; those are
# packets of limited size.
_TEXTS_MAX = 1000
_EXIF_MODEL = 0x0110
# Make and the tags below it that hold text: ImageDescription and DocumentName.
_EXIF_OTHERS = (0x010F, 0x010E, 0x010D)


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
        head_multiple_bytes: the pictures get a room that brings their heads to a multiple of this;
            0 for none.
    """

    vae: str
    to: str
    precision: str
    framing: Framing
    rounding: Rounding
    on_conflict: OnConflict
    head_multiple_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Picture:
    """One latent on its way into the store, not compressed yet: it may turn out to be there.

    ``exact`` is the latent as it came where ``latent`` has been narrowed, else None.
    """

    path: Path
    folder: str
    name: bytes
    identity: Identity
    latent: Latent
    exact: Latent | None
    chunks: list[bytes]
    metadata: bytes | None
    source: Source
    mtime_ns: int
    recipe: Recipe

    @property
    def target(self) -> str:
        return f"{self.folder.rstrip('/')}/{self.name.decode()}"


class Preparation:
    """Reads latent files for one VAE under one set of options.  Safe to use from many threads."""

    def __init__(self, options: ImportOptions, vae: VaeRecord) -> None:
        self._options = options
        self._vae = vae

    def prepare(self, candidate: Candidate) -> list[Picture]:
        """Read a latent file and return its pictures, checked against the VAE.

        Raises:
            LatentfsError: it is refused; the message says why.
            OSError: it can't be read.
        """
        file = read_latent_file(candidate.path)
        mtime_ns = storable_ns(os.stat(candidate.path).st_mtime_ns)
        return self.pictures_of(file, candidate, mtime_ns=mtime_ns)

    def pictures_of(
        self, file: LatentFile, candidate: Candidate, *, mtime_ns: int
    ) -> list[Picture]:
        """Return the pictures of a latent file that has been read, checked against the VAE.

        Raises:
            LatentfsError: it is refused; the message says why.
        """
        chunks, metadata = self._metadata(file)
        recipe = self._recipe(file.space)
        framing = self._framing(chunks)
        pictures = []
        for index, latent in enumerate(file.latents):
            self._check_fits_vae(latent)
            number = f"_{index + 1}" if len(file.latents) > 1 else ""
            name = check_name(candidate.stem + number + framing.suffix)
            kept = self._narrowed(latent)
            pictures.append(
                Picture(
                    path=candidate.path,
                    folder=candidate.folder,
                    name=name,
                    identity=Identity.of(kept, recipe, framing, chunks),
                    latent=kept,
                    exact=None if kept is latent else latent,
                    chunks=chunks,
                    metadata=metadata,
                    source=Source(candidate.path.name, file.kind, index, None),
                    mtime_ns=mtime_ns,
                    recipe=recipe,
                )
            )
        return pictures

    def _framing(self, chunks: list[bytes]) -> Framing:
        options = self._options
        if options.head_multiple_bytes == 0:
            return options.framing
        return with_room(
            options.framing,
            metadata_bytes=sum(map(len, chunks)),
            multiple_bytes=options.head_multiple_bytes,
        )

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

    def _narrowed(self, latent: Latent) -> Latent:
        """Return the latent to keep: the same one where no precision is to be given up."""
        precision = self._options.precision
        if precision == "source":
            return latent
        return latent.narrowed("float16" if precision == "float16" else "bfloat16")

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
            batch=vae.batch,
            cpu_threads=vae.cpu_threads,
            layout=vae.layout,
            device=vae.device,
            compiled=vae.compiled,
        )

    def _metadata(self, file: LatentFile) -> tuple[list[bytes], bytes | None]:
        """Return the chunks to keep in the picture, and what does not go there, as JSON."""
        if len(file.text) > _TEXTS_MAX:
            raise RefusedLatentError(
                f"its metadata has {len(file.text)} entries, at most {_TEXTS_MAX} are taken; "
                "save it with fewer"
            )
        kept = msgspec.json.encode(file.source_metadata) if file.source_metadata else None
        if self._options.framing.format == "png":
            return [png.text_chunk(keyword, text) for keyword, text in file.text], kept
        if not file.text:
            return [], kept
        segment = jpeg.exif_segment(_exif_fields(file.text))
        return [] if segment is None else [segment], msgspec.json.encode(dict(file.text))


def _exif_fields(text: tuple[tuple[str, str], ...]) -> dict[int, str]:
    """Where ComfyUI's own writers put these in formats without text chunks.

    The prompt goes to Model, the others to Make and the tags below it, each as ``key:value``, until
    there is no tag that holds text.
    """
    others = [entry for entry in text if entry[0] != "prompt"]
    placed = [(_EXIF_MODEL, entry) for entry in text if entry[0] == "prompt"]
    placed += zip(_EXIF_OTHERS, others, strict=False)
    return {tag: f"{keyword}:{value}" for tag, (keyword, value) in placed}
