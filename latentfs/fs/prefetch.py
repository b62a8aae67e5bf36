"""Which files to render ahead: told what readers open, it finds those who go through a directory.

Pure logic: it reads and waits for nothing, and what it suggests the caller renders, or doesn't.
Names are in byte order, as directories list them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from latentfs.errors import InvalidArgumentError

__all__ = ["NextNames", "PrefetchStatistics", "SequenceDetector"]

_NAMES_MAX = 131_072
_STREAMS_MAX = 64

_REACH = 4
"""A file is the next in order if it is among so many entries after the last one.

So a run goes on past files that its reader has no use for, and when parallel processes of one
reader open their files a little out of order.
"""

_OPENS_BEFORE = 2
"""Opens in order, behind a first one, that begin to render ahead: so the third file does.

One would be too few: two neighbours are often opened and nothing after them (the two pictures of a
comparison, the next page of a gallery), and of random opens in a directory of 100 files every 25th
is in order.  Two in a row are 1 in 600 of those.  Three would be safer still, but each scan would
wait for one more picture in full, and a false start is cheap: two renders, that nobody waited for.
"""

_WINDOW_FIRST = 2
_PASSED_OVER_MAX = 16

NextNames = Callable[[int, bytes], Iterator[tuple[bytes, int]]]
"""From (directory, name) to the (name, inode number) of its entries after that name, in order."""


@dataclass(frozen=True, slots=True)
class PrefetchStatistics:
    """How far it got.

    Attributes:
        streams: pairs of a reader and a directory that are followed now.
        suggested_total: files that were suggested to be rendered ahead.
    """

    streams: int
    suggested_total: int


@dataclass(slots=True)
class _Stream:
    """One reader in one directory, since it last began to read in order.

    Attributes:
        last: name of the file that it has come to.
        in_order: opens in order that led to it.
        window: number of files to be ahead of it; 0 as long as nothing is rendered ahead.
        ahead: names by inode number of what was suggested and not passed yet, in no order.
        passed_over: entries that it left out, the latest at the end.
    """

    last: bytes
    in_order: int = 0
    window: int = 0
    ahead: dict[int, bytes] = field(default_factory=dict)
    passed_over: deque[int] = field(default_factory=lambda: deque(maxlen=_PASSED_OVER_MAX))


class SequenceDetector:
    """Follows readers through directories.

    Args:
        files_max: how many files are rendered ahead of one reader at the most; 0 for none ever.

    Raises:
        InvalidArgumentError: *files_max* is negative.
    """

    def __init__(self, *, files_max: int) -> None:
        if files_max < 0:
            raise InvalidArgumentError(
                f"{files_max} files can't be rendered ahead; use 0 for none, or more"
            )
        self._files_max = files_max
        self._names: OrderedDict[int, tuple[int, bytes]] = OrderedDict()
        self._streams: OrderedDict[tuple[Hashable, int], _Stream] = OrderedDict()
        self._suggested_total = 0

    def limit(self, files_max: int) -> None:
        """Set how many files are rendered ahead of one reader at the most; 0 for none."""
        self._files_max = files_max

    def statistics(self) -> PrefetchStatistics:
        return PrefetchStatistics(streams=len(self._streams), suggested_total=self._suggested_total)

    def saw_name(self, ino: int, parent_ino: int, name: bytes) -> None:
        """Remember where the file is; the names seen longest ago are forgotten first."""
        if self._files_max == 0:
            return
        names = self._names
        names[ino] = (parent_ino, name)
        names.move_to_end(ino)
        if len(names) > _NAMES_MAX:
            names.popitem(last=False)

    def opened(self, reader: Hashable, ino: int, next_names: NextNames) -> list[int]:
        """Note that *reader* opened the file; return those to render ahead now, nearest first.

        A file whose name was not seen, or is forgotten, is passed over.

        Args:
            next_names: is called at most once, before this returns.  What it gives is read only as
                far as needed, `_REACH` entries and *files_max* more at the most.  Entries that
                can't be rendered, such as folders, are best left out of it.
        """
        place = self._names.get(ino)
        if place is None:
            return []
        self._names.move_to_end(ino)
        parent_ino, name = place
        stream = self._streams.get((reader, parent_ino))
        if stream is None:
            self._begin((reader, parent_ino), name)
            return []
        self._streams.move_to_end((reader, parent_ino))
        if name == stream.last or ino in stream.passed_over:
            return []
        following = next_names(parent_ino, stream.last) if name > stream.last else iter(())
        passed_over = _until(ino, following)
        if passed_over is None:
            self._begin((reader, parent_ino), name)
            return []
        self._advance(stream, name, passed_over)
        return self._suggest(stream, following)

    def is_wanted(self, reader: Hashable, ino: int) -> bool:
        """Whether the file was suggested for *reader* and it is still on its way there.

        False once it came to the file or past it, went elsewhere in that directory, or was
        forgotten because other readers came.
        """
        # Not by name: names are forgotten earlier than what was suggested.
        return any(
            ino in stream.ahead for (who, _), stream in self._streams.items() if who == reader
        )

    def _begin(self, key: tuple[Hashable, int], name: bytes) -> None:
        """Follow the reader from here on; whatever was suggested to it is not wanted any more."""
        self._streams[key] = _Stream(name)
        if len(self._streams) > _STREAMS_MAX:
            self._streams.popitem(last=False)

    def _advance(self, stream: _Stream, name: bytes, passed_over: list[int]) -> None:
        stream.last = name
        stream.in_order += 1
        stream.passed_over.extend(passed_over)
        stream.ahead = {ino: other for ino, other in stream.ahead.items() if other > name}
        if stream.in_order >= _OPENS_BEFORE:
            stream.window = min(2 * stream.window or _WINDOW_FIRST, self._files_max)

    def _suggest(self, stream: _Stream, following: Iterator[tuple[bytes, int]]) -> list[int]:
        """Fill up the window from what follows the file that the reader has come to."""
        # Files that came into the directory meanwhile may have pushed some out of the window.
        # The window itself may have become smaller, too.
        wanting = max(0, stream.window - len(stream.ahead))
        near = islice(following, stream.window)
        new = {ino: name for name, ino in near if ino not in stream.ahead}
        added = dict(islice(new.items(), wanting))
        stream.ahead.update(added)
        self._suggested_total += len(added)
        return list(added)


def _until(ino: int, following: Iterator[tuple[bytes, int]]) -> list[int] | None:
    """Return the entries ahead of the file; None where it is not within reach."""
    passed_over: list[int] = []
    for _, other in islice(following, _REACH):
        if other == ino:
            return passed_over
        passed_over.append(other)
    return None
