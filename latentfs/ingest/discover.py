"""Finding the files that an import is asked for.

Every file under a source is either a candidate or refused by name: none is passed over in silence
but hidden ones, whose name starts with a dot.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latentfs.errors import PathError
from latentfs.store.snapshot import check_name, split_path

__all__ = ["Candidate", "discover"]


_LINKED_FOLDER = "is a symbolic link to a folder, which is not followed; import it by itself"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file to import.

    Attributes:
        path: where it is.
        folder: target folder in the store.
        stem: its name without the last suffix.
    """

    path: Path
    folder: str
    stem: str


def discover(sources: list[Path], *, to: str) -> Iterator[Candidate | tuple[Path, str]]:
    """Yield a candidate, or (path, reason) for what is refused, for each file under *sources*.

    A folder's own structure is kept below *to*; the folder's name is not part of it.

    Raises:
        PathError: *to* is no absolute path inside the store.
    """
    target = "/" + "/".join(name.decode() for name in split_path(to))
    for source in sources:
        if source.is_dir():
            yield from _walk(source, target)
        else:
            yield _candidate(source, target)


def _walk(source: Path, target: str) -> Iterator[Candidate | tuple[Path, str]]:
    def unreadable(error: OSError) -> None:
        errors.append((Path(error.filename), f"can't be read: {error.strerror}"))

    errors: list[tuple[Path, str]] = []
    for folder, subfolders, names in os.walk(source, onerror=unreadable):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = os.path.relpath(folder, source)
        below = target if relative == "." else f"{target.rstrip('/')}/{relative}"
        links = (Path(folder, name) for name in subfolders)
        errors += [(link, _LINKED_FOLDER) for link in links if link.is_symlink()]
        for name in sorted(names):
            if not name.startswith("."):
                yield _candidate(Path(folder, name), below)
        yield from errors
        errors.clear()
    yield from errors


def _candidate(path: Path, folder: str) -> Candidate | tuple[Path, str]:
    try:
        check_name(path.name)
        split_path(folder)
    except PathError as error:
        return path, str(error)
    return Candidate(path, folder, path.stem)
