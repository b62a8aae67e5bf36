"""A store's own copies of VAE files: config and safetensors weights, verified by hash.

A latent without its decoder is noise, so the decoder is kept beside it.  Only JSON and safetensors
are ever copied or read: formats that can run code are refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from latentfs.errors import PathError, StoreError, StoreFullError, VaeCorruptError, VaeError
from latentfs.store.disk import is_full_disk, sync_directory
from latentfs.store.records import VaeFile
from latentfs.store.snapshot import check_name

__all__ = ["VaeSource", "copied_into_store", "file_in", "open_vae_folder", "vae_folder", "verify"]

CONFIG_NAME = "config.json"
_WEIGHT_NAMES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bf16.safetensors",
)
_CONFIG_BYTES_MAX = 1 << 20
# Say where a config was, or who wrote it: not what the VAE is.
_VOLATILE_CONFIG_KEYS = {"_name_or_path", "_diffusers_version"}
_HASH_BLOCK_BYTES = 1 << 20
_TEMPORARY_PREFIX = ".new-"


class VaeSource:
    """A diffusers VAE folder as the user has it.

    Attributes:
        config: parsed ``config.json``.
        weight_paths: safetensors files (and the shard index) that belong to it; a single weights
            file of a variant such as ``.fp16`` counts as the plain one.
    """

    def __init__(self, path: Path, config: dict[str, object], weight_paths: list[Path]) -> None:
        self.path = path
        self.config = config
        self.weight_paths = weight_paths

    @property
    def class_name(self) -> str:
        return str(self.config.get("_class_name"))


def vae_folder(store_path: Path, vae_id: str) -> Path:
    """Return where a store keeps the files of a VAE.

    Raises:
        VaeCorruptError: the id, of a damaged or hostile store, would lead elsewhere.
    """
    return file_in(store_path / "vae", vae_id)


def file_in(folder: Path, name: str) -> Path:
    """Return the path of what a record names in *folder*.

    Raises:
        VaeCorruptError: the name, of a damaged or hostile store, would lead elsewhere.
    """
    try:
        check_name(name)
    except PathError:
        raise VaeCorruptError(
            f"{name!r} in the record of a VAE is no name of a file; run latentfs fsck"
        ) from None
    return folder / name


def open_vae_folder(path: Path) -> VaeSource:
    """Check that *path* is a diffusers VAE folder with safetensors weights.

    Raises:
        VaeError: it is not; the message says what is missing.
    """
    if not path.is_dir():
        raise VaeError(f"{path} is not a folder; give a diffusers VAE folder or a hub id")
    if (path / "model_index.json").exists():
        raise VaeError(f"{path} is a whole pipeline; give its VAE folder, {path / 'vae'}")
    config = _read_config(path / CONFIG_NAME)
    return VaeSource(path, config, _weight_paths(path))


def _read_config(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            data = file.read(_CONFIG_BYTES_MAX + 1)
        if len(data) > _CONFIG_BYTES_MAX:
            raise VaeError(f"{path} is larger than {_CONFIG_BYTES_MAX} bytes; it is no VAE config")
        config = json.loads(data)
    except FileNotFoundError:
        raise VaeError(f"{path.parent} has no {CONFIG_NAME}; give a diffusers VAE folder") from None
    except (ValueError, RecursionError) as error:
        raise VaeError(f"{path} can't be read: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise VaeError(f"{path} names no _class_name; give a diffusers VAE folder")
    return config


def _weight_paths(folder: Path) -> list[Path]:
    for name in _WEIGHT_NAMES:
        if not (folder / name).is_file():
            continue
        if name.endswith(".index.json"):
            return [folder / name, *_shard_paths(folder / name)]
        return [folder / name]
    pickled = [p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"}]
    if pickled:
        raise VaeError(
            f"{folder} has only pickled weights ({pickled[0]}), which can run code and are never "
            "loaded; convert them to safetensors"
        )
    raise VaeError(f"{folder} has no {_WEIGHT_NAMES[0]}; give a diffusers VAE folder")


def _shard_paths(index_path: Path) -> list[Path]:
    try:
        names = set(json.loads(index_path.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise VaeError(f"{index_path} can't be read: {error!r}") from error
    if not names:
        raise VaeError(f"{index_path} names no files; give a whole diffusers VAE folder")
    for name in names:
        if not isinstance(name, str) or "/" in name or not name.endswith(".safetensors"):
            raise VaeError(f"{index_path} names {name!r}, which is no safetensors file beside it")
        if not (index_path.parent / name).is_file():
            raise VaeError(f"{index_path} names {name!r}, which is missing")
    return [index_path.parent / name for name in sorted(names)]


@contextlib.contextmanager
def copied_into_store(
    source: VaeSource, store_path: Path
) -> Iterator[tuple[str, tuple[VaeFile, ...]]]:
    """Copy the VAE to ``vae/<id>/`` and give the block (id, files), to be recorded by it.

    A VAE already there is kept.  The copy appears under its final name only when complete and on
    disk.  If the block raises, a copy that was not there before is removed again; nobody else can
    have taken it for one to record, as copies exclude each other until the block has ended.

    Raises:
        StoreFullError: the disk is full; nothing is left behind.
        StoreError: reading or writing failed otherwise; nothing is left behind.
    """
    parent = store_path / "vae"
    with contextlib.ExitStack() as alone:
        try:
            alone.enter_context(_alone_in(parent))
            with _temporary_folder(parent) as temporary:
                vae_id, files, is_new = _copy(source, temporary, parent)
        except OSError as error:
            kind = StoreFullError if is_full_disk(error, parent) else StoreError
            raise kind(f"can't copy the VAE {source.path} to {parent}: {error.strerror}") from error
        try:
            yield vae_id, files
        except BaseException:
            if is_new:
                shutil.rmtree(parent / vae_id, ignore_errors=True)
            raise


@contextlib.contextmanager
def _alone_in(parent: Path) -> Iterator[None]:
    """Keep all others from copying VAEs to *parent*, and from removing some."""
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder for one copy; those that killed copies have left are removed.

    Only for one who is alone in *parent*, and takes no other's folder for one that was left.
    """
    for left in parent.glob(f"{_TEMPORARY_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy(
    source: VaeSource, temporary: Path, parent: Path
) -> tuple[str, tuple[VaeFile, ...], bool]:
    """Return id and files of the copy, and whether there was none before."""
    files = [_write_config(source, temporary)]
    files += [_copy_file(path, temporary / _plain_name(path)) for path in source.weight_paths]
    vae_id = _vae_id(files)
    final = parent / vae_id
    is_new = not os.path.lexists(final)
    if not _is_intact(final, tuple(files)):
        temporary.chmod(0o755)
        sync_directory(temporary)
        if final.is_dir() and not final.is_symlink():
            _mend(final, temporary, files)
        else:
            final.unlink(missing_ok=True)
            temporary.rename(final)
        sync_directory(parent)
    return vae_id, tuple(files), is_new


def _mend(folder: Path, temporary: Path, files: list[VaeFile]) -> None:
    """Put good files in the places of a damaged copy's, one by one, and remove what is no part.

    Whenever this is killed, each file is as it was or good: it may be the only one there is.
    """
    names = {file.name for file in files}
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in names:
            path.unlink()
    for name in names:
        os.replace(temporary / name, folder / name)
    sync_directory(folder)


def _plain_name(path: Path) -> str:
    """A variant's weights under the name that diffusers looks for by default."""
    return _WEIGHT_NAMES[0] if path.name in _WEIGHT_NAMES[2:] else path.name


def _write_config(source: VaeSource, folder: Path) -> VaeFile:
    """Write the config in canonical form, so that equal configs have equal hashes."""
    kept = {k: v for k, v in source.config.items() if k not in _VOLATILE_CONFIG_KEYS}
    data = json.dumps(kept, indent=2, sort_keys=True).encode() + b"\n"
    path = folder / CONFIG_NAME
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return VaeFile(CONFIG_NAME, len(data), hashlib.sha256(data).hexdigest())


def _copy_file(source: Path, target: Path) -> VaeFile:
    digest, size_bytes = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(_HASH_BLOCK_BYTES):
            digest.update(block)
            size_bytes += len(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    return VaeFile(target.name, size_bytes, digest.hexdigest())


def _vae_id(files: list[VaeFile]) -> str:
    lines = sorted(f"{file.name} {file.size_bytes} {file.sha256}" for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _refuse_strays(folder: Path, names: set[str]) -> None:
    strays = {path.name for path in folder.iterdir()} - names if folder.is_dir() else set()
    if strays:
        raise VaeCorruptError(
            f"{folder} has a file {sorted(strays)[0]!r} that was not there when the VAE was added; "
            "remove it"
        )


def _is_intact(folder: Path, files: tuple[VaeFile, ...]) -> bool:
    try:
        verify(folder, files)
    except VaeCorruptError:
        return False
    return True


def verify(folder: Path, files: tuple[VaeFile, ...]) -> None:
    """Check every file of a VAE folder against its recorded hash.

    Raises:
        VaeCorruptError: one is missing or different, or was not there when the VAE was added: a
            stray index file, for instance, would make diffusers load other weights.  Or a name
            would lead out of the folder.
    """
    paths = [(file, file_in(folder, file.name)) for file in files]
    _refuse_strays(folder, {file.name for file in files})
    for file, path in paths:
        digest = hashlib.sha256()
        try:
            with path.open("rb") as reader:
                while block := reader.read(_HASH_BLOCK_BYTES):
                    digest.update(block)
        except OSError as error:
            raise VaeCorruptError(
                f"VAE file {path} can't be read ({error.strerror}); add the VAE again"
            ) from error
        if digest.hexdigest() != file.sha256:
            raise VaeCorruptError(
                f"VAE file {path} is not what was added (sha256 {digest.hexdigest()[:16]}..., "
                f"recorded {file.sha256[:16]}...); add the VAE again"
            )
