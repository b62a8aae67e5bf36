"""Random changes of files in a folder: what they make of it, and a process that makes them.

Each change is one system call that changes the folder, so what a crash leaves is the folder after
some number of them.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from file_operations import RENAME_EXCHANGE, data_of, rename_with_flags

__all__ = ["Change", "Load", "LoggedChange", "Seen", "Tree", "read_log", "read_tree"]

_FOLDERS_MAX = 6
_FILES_MAX = 40
_FILE_BYTES_MAX = 300_000
# One write request of the kernel each, so that each is one change.
_WRITE_BYTES_MAX = 60_000
_HELD_FILES = 3


class File(NamedTuple):
    """What a file, folder or symbolic link is; *data* is a link's target."""

    kind: int
    data: bytes = b""
    mode: int = 0o644
    xattrs: tuple[tuple[str, bytes], ...] = ()


Seen = dict[str, tuple[File, tuple[str, ...]]]


@dataclass(slots=True)
class Tree:
    """A folder's contents: numbers of files by path, and the files by number."""

    names: dict[str, int] = field(default_factory=dict)
    files: dict[int, File] = field(default_factory=dict)

    def copy(self) -> Tree:
        return Tree(dict(self.names), dict(self.files))

    def seen(self) -> Seen:
        """Return what programs see: the file of each path, and all its paths."""
        paths: dict[int, list[str]] = {}
        for path in sorted(self.names):
            paths.setdefault(self.names[path], []).append(path)
        return {path: (self.files[ino], tuple(paths[ino])) for path, ino in self.names.items()}

    def add(self, path: str, file: File) -> None:
        self.names[path] = number = len(self.files)
        self.files[number] = file

    def paths(self, kind: int) -> list[str]:
        return [path for path in sorted(self.names) if self[path].kind == kind]

    def __getitem__(self, path: str) -> File:
        return self.files[self.names[path]]

    def __setitem__(self, path: str, file: File) -> None:
        self.files[self.names[path]] = file


@dataclass(frozen=True, slots=True)
class Change:
    """A system call: its name, its path, and whatever else it takes."""

    call: str
    path: str
    other: str = ""
    number: int = 0
    seed: int = 0

    def apply(self, tree: Tree) -> None:
        """Do it to a *tree*."""
        match self.call:
            case "create":
                tree.add(self.path, File(stat.S_IFREG))
            case "mkdir":
                tree.add(self.path, File(stat.S_IFDIR, mode=0o755))
            case "symlink":
                tree.add(self.path, File(stat.S_IFLNK, os.fsencode(self.other), 0o777))
            case "write":
                tree[self.path] = tree[self.path]._replace(data=self._written(tree))
            case "truncate":
                data = tree[self.path].data[: self.number]
                tree[self.path] = tree[self.path]._replace(data=data.ljust(self.number, b"\0"))
            case "chmod":
                tree[self.path] = tree[self.path]._replace(mode=self.number)
            case "set_xattr":
                xattrs = dict(tree[self.path].xattrs) | {self.other: data_of(self.seed, 20)}
                tree[self.path] = tree[self.path]._replace(xattrs=tuple(sorted(xattrs.items())))
            case "link":
                tree.names[self.other] = tree.names[self.path]
            case "unlink" | "rmdir":
                del tree.names[self.path]
            case "rename":
                self._rename(tree)
            case "exchange":
                names = tree.names
                names[self.path], names[self.other] = names[self.other], names[self.path]

    def _written(self, tree: Tree) -> bytes:
        before = tree[self.path].data.ljust(self.number, b"\0")
        piece = data_of(self.seed, int(self.other))
        return before[: self.number] + piece + before[self.number + len(piece) :]

    def _rename(self, tree: Tree) -> None:
        if tree.names.get(self.other) == tree.names[self.path]:
            return  # two names of one file: POSIX leaves both
        moved = {
            path: ino
            for path, ino in tree.names.items()
            if path == self.path or path.startswith(f"{self.path}/")
        }
        for path in moved:
            del tree.names[path]
        for path, ino in moved.items():
            tree.names[self.other + path.removeprefix(self.path)] = ino


@dataclass(slots=True)
class Load:
    """A random sequence of changes, the same for the same *tree* and *seed*.

    The tree is kept as the changes so far leave it.
    """

    tree: Tree
    seed: int
    _chance: random.Random = field(init=False)
    _synced_parts: float = field(init=False)
    _planned: deque[Change] = field(default_factory=deque)
    _names: int = 0

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._synced_parts = self._chance.choice((0.0, 0.02, 0.3))

    def changes(self) -> Iterator[Change]:
        """Yield changes without end; each must have been done before the next is asked for."""
        while True:
            if not self._planned:
                self._plan()
            change = self._planned.popleft()
            change.apply(self.tree)
            yield change

    def _plan(self) -> None:
        files = self.tree.paths(stat.S_IFREG)
        if len(files) < 5:
            self._plan_save(self._new_name())
            return
        path = self._chance.choice(files)
        plans = [self._plan_save, self._plan_edit, self._plan_move, self._plan_folder]
        if len(self.tree.names) > _FILES_MAX:
            plans = [self._plan_removal]
        self._chance.choice(plans)(path)

    def _plan_save(self, path: str) -> None:
        """Replace a file as editors do: write another, have it on disk, rename it."""
        new_path = self._new_name()
        self._planned.append(Change("create", new_path))
        size_bytes = self._chance.randrange(0, _FILE_BYTES_MAX // 2)
        for offset in range(0, size_bytes, _WRITE_BYTES_MAX):
            length = min(_WRITE_BYTES_MAX, size_bytes - offset)
            self._planned.append(self._write(new_path, offset, length))
        if self._chance.random() < self._synced_parts:
            self._planned.append(Change("fsync", new_path))
        self._planned.append(Change("rename", new_path, path))
        if self._chance.random() < self._synced_parts:
            self._planned.append(Change("fsync_folder", os.path.dirname(path)))

    def _plan_edit(self, path: str) -> None:
        for _ in range(self._chance.randint(1, 4)):
            offset = self._chance.randrange(_FILE_BYTES_MAX)
            length = self._chance.randint(1, _WRITE_BYTES_MAX)
            edits = [
                self._write(path, offset, length),
                self._write(path, offset // 100, length // 100 + 1),
                Change("truncate", path, number=offset),
                Change("chmod", path, number=self._chance.choice((0o600, 0o644, 0o755))),
                Change("set_xattr", path, f"user.{offset % 3}", seed=offset % 100),
            ]
            self._planned.append(self._chance.choice(edits))
        if self._chance.random() < self._synced_parts:
            self._planned.append(Change("fsync", path))

    def _plan_move(self, path: str) -> None:
        other = self._chance.choice(self.tree.paths(stat.S_IFREG))
        moves = [
            Change("rename", path, self._new_name()),
            Change("rename", path, other),
            Change("link", path, self._new_name()),
            Change("symlink", self._new_name(), path),
            Change("exchange", path, other),
            Change("unlink", path),
        ]
        self._planned.append(self._chance.choice(moves))

    def _plan_folder(self, path: str) -> None:
        folders = self.tree.paths(stat.S_IFDIR)
        if len(folders) < _FOLDERS_MAX:
            self._planned.append(Change("mkdir", self._new_name()))
            return
        folder = self._chance.choice(folders)
        if any(name.startswith(f"{folder}/") for name in self.tree.names):
            self._planned.append(Change("rename", folder, self._free_name("")))
        else:
            self._planned.append(Change("rmdir", folder))

    def _plan_removal(self, path: str) -> None:
        paths = [name for name in sorted(self.tree.names) if self.tree[name].kind != stat.S_IFDIR]
        for each in self._chance.sample(paths, len(paths) // 2):
            self._planned.append(Change("unlink", each))

    def _write(self, path: str, offset: int, length: int) -> Change:
        seed = self._chance.randrange(100)
        return Change("write", path, str(length), number=offset, seed=seed)

    def _new_name(self) -> str:
        return self._free_name(self._chance.choice(["", *self.tree.paths(stat.S_IFDIR)]))

    def _free_name(self, folder: str) -> str:
        while True:
            self._names += 1
            path = os.path.join(folder, str(self._names))
            if path not in self.tree.names:
                return path


def read_tree(root: Path) -> Tree:
    """Read a folder with all that is in it; files are numbered as they are found."""
    tree = Tree()
    numbers: dict[int, int] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(root))
        if status.st_ino in numbers:
            tree.names[name] = numbers[status.st_ino]
            continue
        tree.add(name, _read_file(path, status))
        numbers[status.st_ino] = tree.names[name]
    return tree


def _read_file(path: Path, status: os.stat_result) -> File:
    kind, mode = stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode)
    if kind == stat.S_IFLNK:
        return File(kind, os.fsencode(os.readlink(path)), mode)
    xattrs = tuple(sorted((name, os.getxattr(path, name)) for name in os.listxattr(path)))
    return File(kind, b"" if kind == stat.S_IFDIR else path.read_bytes(), mode, xattrs)


# The process.


def _do(root: Path, change: Change, held: deque[int]) -> None:
    """Make one change, with one system call that changes something."""
    path, other = root / change.path, root / change.other
    match change.call:
        case "create":
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        case "write":
            with path.open("r+b", buffering=0) as file:
                data = data_of(change.seed, int(change.other))
                assert os.pwrite(file.fileno(), data, change.number) == len(data)
        case "truncate":
            os.truncate(path, change.number)
        case "mkdir":
            path.mkdir(0o755)
        case "symlink":
            path.symlink_to(change.other)
        case "chmod":
            path.chmod(change.number)
        case "set_xattr":
            os.setxattr(path, change.other, data_of(change.seed, 20))
        case "link":
            os.link(path, other)
        case "unlink":
            _unlink(path, held)
        case "rmdir":
            path.rmdir()
        case "rename":
            path.rename(other)
        case "exchange":
            rename_with_flags(os.fsencode(path), os.fsencode(other), RENAME_EXCHANGE)
        case "fsync" | "fsync_folder":
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)


def _unlink(path: Path, held: deque[int]) -> None:
    """Remove a file while it is open; it stays so, and is written to, for some removals more."""
    if path.is_symlink():
        path.unlink()
        return
    held.append(os.open(path, os.O_RDWR))
    path.unlink()
    if os.fstat(held[-1]).st_nlink == 0:
        os.write(held[-1], b"never to be seen")
    if len(held) > _HELD_FILES:
        os.close(held.popleft())


@dataclass(frozen=True, slots=True)
class LoggedChange:
    """When a change was begun and done, in ns of the monotonic clock; None if it wasn't done."""

    call: str
    begun_ns: int
    done_ns: int | None


def read_log(path: Path) -> list[LoggedChange]:
    changes = []
    for line in path.read_text().splitlines():
        call, begun_ns, *done_ns = line.split()
        changes.append(LoggedChange(call, int(begun_ns), int(done_ns[0]) if done_ns else None))
    return changes


def _run(root: Path, seed: int, log: Path) -> None:
    """Change things in *root* until its mount is lost."""
    held: deque[int] = deque()
    with log.open("wb", buffering=0) as lines:
        for change in Load(read_tree(root), seed).changes():
            lines.write(b"%s %d " % (change.call.encode(), time.monotonic_ns()))
            try:
                _do(root, change, held)
            except OSError as error:
                if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
                    return
                raise
            lines.write(b"%d\n" % time.monotonic_ns())


if __name__ == "__main__":
    _run(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
