"""What the store's tables hold, as typed records.

Records are msgpack arrays (``array_like``), so fields may only ever be appended, with a default;
any other change raises ``SCHEMA_VERSION`` in :mod:`latentfs.store.tables`.
"""

from __future__ import annotations

import stat

import msgspec

from latentfs.images.framing import Framing
from latentfs.latents.latent import Dtype
from latentfs.latents.recipe import DeviceClass, Layout

__all__ = [
    "Change",
    "Inode",
    "LatentContent",
    "LatentFileContent",
    "Source",
    "Totals",
    "VaeFile",
    "VaeRecord",
]


class Change(msgspec.Struct, frozen=True, array_like=True):
    """What one transaction changed of what the kernel of a live mount may remember.

    Attributes:
        removed: (parent ino, name, ino) of entries that no longer lead to that inode.
        directories: inode numbers of directories whose attributes changed, and of files that lost
            one of several links.
    """

    removed: tuple[tuple[int, bytes, int], ...]
    directories: tuple[int, ...]


class Source(msgspec.Struct, frozen=True, array_like=True):
    """Where a content came from.

    Attributes:
        name: file name of the imported file.
        kind: reader that read it: ``comfyui``, ``diffusers`` or ``diffusers-packed``.
        index: which latent of the file's batch, from 0.
        metadata: id of the metadata blob that holds the file's own key-value pairs as JSON.
        developed_in: inode number of the folder in which a mount made the picture beside the file;
            0 for imported pictures, for copies, and for what was changed since.
    """

    name: str
    kind: str
    index: int
    metadata: bytes | None
    developed_in: int = 0


class LatentContent(msgspec.Struct, frozen=True, array_like=True):
    """The bytes of a picture, as payload + recipe + framing.

    Attributes:
        payload: id in the ``payloads`` table.
        recipe: id in the catalog.
        framing: format and encoder of the file.
        chunks: ids of the metadata blobs that are kept verbatim in the file, in order.
        rendition_sha256: of the file's bytes as first rendered; advisory.
        width, height: in pixels.
        source: provenance.
        trailing: ids of the metadata blobs that are kept behind the pixel data, in order.
        pixel_data_sha256: of the part of the first rendition that decides the pixels; empty where
            that was not looked at.
    """

    payload: int
    recipe: bytes
    framing: Framing
    chunks: tuple[bytes, ...]
    rendition_sha256: bytes
    width: int
    height: int
    source: Source
    trailing: tuple[bytes, ...] = ()
    pixel_data_sha256: bytes = b""

    @property
    def blobs(self) -> tuple[bytes, ...]:
        """Ids of the metadata blobs that it needs, each as often as it is used."""
        metadata = () if self.source.metadata is None else (self.source.metadata,)
        return (*self.chunks, *self.trailing, *metadata)


class LatentFileContent(msgspec.Struct, frozen=True, array_like=True):
    """The bytes of a latent file, as the payloads of its latents and all the rest of it.

    Attributes:
        payloads: ids in the ``payloads`` table, in the order of the file.
        rest: id of the metadata blob with the bytes that are not the latents'.
        offset: where in those the latents belong.
        packed: whether they are packed there as FLUX.1's are.
    """

    payloads: tuple[int, ...]
    rest: bytes
    offset: int
    packed: bool


class Inode(msgspec.Struct, frozen=True, array_like=True):
    """A file, a directory or a special file.  A number is never used again for another.

    Attributes:
        mode, uid, gid, nlink: as in ``stat``.
        size_bytes: exact before anything is rendered; of a symbolic link its target's length.
        mtime_ns, ctime_ns: nanoseconds since the epoch.
        content: of a picture that is kept as a latent; other files are kept in chunks.
        parent_ino: the directory that a directory is in, the root its own; 0 for all others.
        atime_ns: None where it is that of the last change.  Reading doesn't change it.
        rdev: device number of a device file.
        target: of a symbolic link.
        chunks: how many a file has that is kept in chunks; the rest of it is holes.
        latent_file: of a latent file that is kept as its payloads, not in chunks.
    """

    mode: int
    uid: int
    gid: int
    nlink: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    content: LatentContent | None = None
    parent_ino: int = 0
    atime_ns: int | None = None
    rdev: int = 0
    target: bytes = b""
    chunks: int = 0
    latent_file: LatentFileContent | None = None

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def payloads(self) -> tuple[int, ...]:
        """Ids of the payloads that its bytes need, each as often as it is used."""
        if self.content is not None:
            return (self.content.payload,)
        return () if self.latent_file is None else self.latent_file.payloads

    @property
    def blobs(self) -> tuple[bytes, ...]:
        """Ids of the metadata blobs that it needs, each as often as it is used."""
        if self.latent_file is not None:
            return (self.latent_file.rest,)
        return () if self.content is None else self.content.blobs

    @property
    def is_chunked(self) -> bool:
        """Whether its bytes are kept as they are, in chunks."""
        return self.is_regular and self.content is None and self.latent_file is None


class VaeFile(msgspec.Struct, frozen=True, array_like=True):
    """One file of a VAE's folder and what it must hash to when it is loaded."""

    name: str
    size_bytes: int
    sha256: str


class VaeRecord(msgspec.Struct, frozen=True, array_like=True):
    """A VAE that the store can decode with.

    Attributes:
        id: hash of class, config and weights; also the name of its folder under ``vae/``.
        class_name: diffusers class.
        dtype: chosen when it was added; part of the recipe of everything imported with it.
        latent_channels: C of the latents it takes.
        spatial_factor: pixels per latent cell along one side.
        scaling_factor, shift_factor: of its diffusers config.
        takes_scaled: whether it takes scaled latents (TAESD) rather than VAE-native ones.
        latent_format: name in :data:`latentfs.latents.scaling.LATENT_FORMATS`, if known.
        cpu_threads: threads of one decode on a CPU, fixed so that every import has one recipe.
        origin: folder or hub id it was added from.
        layout: memory layout of the decoder, chosen when it was added; part of the recipe.
        device: class of device that dtype, layout and batch were chosen for.
        batch: latents decoded together.
        compiled: whether torch.compile makes its kernels.
    """

    id: str
    class_name: str
    dtype: Dtype
    latent_channels: int
    spatial_factor: int
    scaling_factor: float
    shift_factor: float
    takes_scaled: bool
    latent_format: str | None
    cpu_threads: int
    files: tuple[VaeFile, ...]
    origin: str
    layout: Layout = "contiguous"
    device: DeviceClass = "cpu"
    batch: int = 1
    compiled: bool = False


class Totals(msgspec.Struct, frozen=True, array_like=True):
    """Sums over the store, kept in step by every transaction and checked by fsck.

    Attributes:
        files: regular files.
        directories: directories, the root among them.
        size_bytes: sum of the sizes the files show.
        payloads: distinct payloads.
        payload_bytes: their bytes.
    """

    files: int = 0
    directories: int = 0
    size_bytes: int = 0
    payloads: int = 0
    payload_bytes: int = 0

    def plus(
        self,
        *,
        files: int = 0,
        directories: int = 0,
        size_bytes: int = 0,
        payloads: int = 0,
        payload_bytes: int = 0,
    ) -> Totals:
        return Totals(
            self.files + files,
            self.directories + directories,
            self.size_bytes + size_bytes,
            self.payloads + payloads,
            self.payload_bytes + payload_bytes,
        )
