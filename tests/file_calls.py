"""Random calls for :class:`file_operations.Place`.

Names, sizes and handles are few, so that calls meet what others have left.
"""

from __future__ import annotations

import os
import stat

from file_operations import FAR_OFFSETS, RENAME_EXCHANGE, RENAME_NOREPLACE, Call
from hypothesis import strategies as st

from latentfs.store.tables import CHUNK_BYTES

__all__ = ["FIRST_CALLS", "calls"]

_LONG = b"l" * 255
_NOT_UTF8 = b"\xff\xfe\x80"
# Of the tree that calls begin with, if nothing has changed it.
_FILES = (b"c", b"a/a", b"a/c", b"b/c", b"a/b/c")
_FOLDERS = (b"a", b"b", b"a/b")
_FREE = (b"d", b"a/d", b"b/a", b"b/b", b"a/b/a", b"d/a")
_ODD = (
    *(_LONG, b"a/" + _LONG, _LONG + b"/a", b"l" * 256, b"a/" + b"l" * 256),
    *(_NOT_UTF8, b"b/" + _NOT_UTF8, _NOT_UTF8 + b"/a", b".", b"a/"),
)
_MOSTLY_FILES = (*(_FILES * 6), *(_FOLDERS * 2), *(_FREE * 2), *_ODD)
_MOSTLY_FOLDERS = (*(_FOLDERS * 6), *_FILES, *(_FREE * 3), *_ODD)
_MOSTLY_FREE = (*(_FREE * 6), *_FILES, *_FOLDERS, *(_ODD * 2))
_ANY = (*(_FILES * 3), *(_FOLDERS * 3), *(_FREE * 3), *_ODD)
_TARGETS = (b"a", b"c", b"d", b"a/b", b"b/c", b".", b"missing", _NOT_UTF8, b"t" * 4095)
_EDGES = (0, 1, 4095, 4096, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES - 5)
_LENGTHS = (0, 1, 7, 4096, CHUNK_BYTES, CHUNK_BYTES + 1, 200_000)
_CREATING = (
    os.O_RDWR | os.O_CREAT,
    os.O_WRONLY | os.O_CREAT,
    os.O_RDWR | os.O_CREAT | os.O_EXCL,
    os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    os.O_RDONLY | os.O_CREAT,
)
_OPENING = (
    os.O_RDONLY,
    os.O_RDWR,
    os.O_RDWR | os.O_APPEND,
    os.O_WRONLY | os.O_TRUNC,
    os.O_RDONLY | os.O_TRUNC,
    os.O_RDWR | os.O_NOFOLLOW,
    os.O_RDONLY | os.O_DIRECTORY,
)
_MODES = (0o644, 0o600, 0o755, 0o000, 0o6755, 0o2755, 0o1777)
_IDS = (-1, 0, 1, 65534)
_TIMES_NS = (
    -1_500_000_001,
    0,
    1,
    999_999_999,
    1_234_567_890_123_456_789,
    4_000_000_000_000_000_001,
)
_XATTRS = (*["user.a"] * 6, "user.b", "user.b", "user." + "x" * 250, "user." + "x" * 251, "user.")
_VALUES = (b"", b"\0", b"value", b"v" * 200)

# A tree to begin with, in which operations meet something.
FIRST_CALLS = (
    *(Call("mkdir", (path,), (0o755,)) for path in (b"a", b"b", b"a/b")),
    *(
        call
        for slot, path in enumerate((b"b/c", b"a/b/c", b"a/a", b"a/c", b"c"))
        for call in (
            Call("open", (path,), (slot % 3, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)),
            Call("pwrite", (), (slot % 3, 0, slot, 10_000 * slot)),
        )
    ),
)

_Pools = tuple[tuple[bytes, ...], ...]
_Arguments = tuple[st.SearchStrategy[object], ...]


def calls(*, size_min: int, size_max: int) -> st.SearchStrategy[list[Call]]:
    """Lists of calls, about as long as halfway between the two sizes; shrunk ones are shorter."""
    # The shrinker can't go below a list's minimum, but puts None for what isn't needed.
    padded = st.lists(_call_or_none(), min_size=size_min, max_size=size_max)
    return padded.map(lambda some: [call for call in some if call is not None])


def _call_or_none() -> st.SearchStrategy[Call | None]:
    offset = _one_of(_EDGES, _EDGES, FAR_OFFSETS) | st.integers(0, 3 * CHUNK_BYTES)
    length = st.sampled_from(_LENGTHS) | st.integers(0, 5000)
    size = _one_of(_EDGES, FAR_OFFSETS[:1]) | st.integers(0, 3 * CHUNK_BYTES)
    slot, seed = st.integers(0, 2), st.integers(0, 99)
    mode, time_ns = st.sampled_from(_MODES), st.sampled_from(_TIMES_NS)
    xattr, ids = st.sampled_from(_XATTRS), st.sampled_from(_IDS)
    special = st.sampled_from((stat.S_IFIFO | 0o644, stat.S_IFIFO | 0o600, stat.S_IFSOCK | 0o755))
    flags = st.sampled_from((*[0] * 6, *[RENAME_NOREPLACE, RENAME_EXCHANGE] * 2, 3, 8))
    xattr_flags = st.sampled_from((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
    # Method, what each of its paths is taken from, what else it takes, how often it is chosen.
    choices: tuple[tuple[str, _Pools, _Arguments, int], ...] = (
        ("open", (_ANY,), (slot, st.sampled_from(_CREATING), mode), 6),
        ("open", (_MOSTLY_FILES,), (slot, st.sampled_from(_OPENING), mode), 4),
        ("close", (), (slot,), 1),
        ("pwrite", (), (slot, offset, seed, length), 6),
        ("write", (), (slot, seed, length), 3),
        ("pread", (), (slot, offset, length), 3),
        ("ftruncate", (), (slot, size), 3),
        ("fstat", (), (slot,), 1),
        ("fchmod", (), (slot, mode), 1),
        ("fsync", (), (slot,), 1),
        ("list_open_directory", (), (slot,), 1),
        ("truncate", (_MOSTLY_FILES,), (size,), 3),
        ("read_file", (_MOSTLY_FILES,), (), 3),
        ("mkdir", (_MOSTLY_FREE,), (mode,), 6),
        ("mknod", (_MOSTLY_FREE,), (special,), 1),
        ("rmdir", (_MOSTLY_FOLDERS,), (), 3),
        ("unlink", (_MOSTLY_FILES,), (), 4),
        ("rename", (_MOSTLY_FILES, _ANY), (flags,), 9),
        ("link", (_MOSTLY_FILES, _MOSTLY_FREE), (), 4),
        ("symlink", (_MOSTLY_FREE,), (st.sampled_from(_TARGETS),), 3),
        ("readlink", (_MOSTLY_FREE,), (), 1),
        ("list_directory", (_MOSTLY_FOLDERS,), (), 3),
        ("stat", (_ANY,), (), 2),
        ("chmod", (_ANY,), (mode,), 2),
        ("lchown", (_ANY,), (ids, ids), 2),
        ("set_times", (_ANY,), (time_ns, time_ns), 3),
        ("set_times_to_now", (_ANY,), (), 1),
        ("set_xattr", (_FILES + _FOLDERS,), (xattr, st.sampled_from(_VALUES), xattr_flags), 3),
        ("get_xattr", (_FILES + _FOLDERS,), (xattr,), 1),
        ("list_xattrs", (_FILES + _FOLDERS,), (), 2),
        ("remove_xattr", (_FILES + _FOLDERS,), (xattr,), 2),
    )
    # one_of would drop an alternative that is the same object as another.
    weighted = [_call(*choice[:3]) for choice in choices for _ in range(choice[3])]
    return st.one_of(st.none(), *weighted)


def _call(method: str, pools: _Pools, arguments: _Arguments) -> st.SearchStrategy[Call]:
    def make(drawn: tuple[tuple[bytes, ...], tuple[object, ...]]) -> Call:
        return Call(method, *drawn)

    return st.tuples(st.tuples(*map(st.sampled_from, pools)), st.tuples(*arguments)).map(make)


def _one_of(*groups: tuple[int, ...]) -> st.SearchStrategy[int]:
    return st.sampled_from([value for group in groups for value in group])
