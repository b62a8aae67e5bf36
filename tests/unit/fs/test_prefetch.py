"""Who reads a directory in order is found, and what comes next is suggested, once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfs.errors import InvalidArgumentError
from latentfs.fs import prefetch
from latentfs.fs.prefetch import PrefetchStatistics, SequenceDetector

PARENT = 7
READER = "reader"


class Directory:
    """Files named 000, 001, ... with inode numbers of 1000 and up, all seen by a detector."""

    def __init__(self, detector: SequenceDetector, count: int, *, parent_ino: int = PARENT) -> None:
        self.detector = detector
        self.parent_ino = parent_ino
        self.inos: dict[bytes, int] = {}
        self.taken = 0
        for number in range(count):
            self.add(b"%03d" % number, ino=parent_ino * 1000 + number)

    def add(self, name: bytes, *, ino: int) -> None:
        self.inos[name] = ino
        self.detector.saw_name(ino, self.parent_ino, name)

    def names_after(self, name: bytes) -> list[bytes]:
        names = sorted(self.inos)
        return names[bisect_right(names, name) :]

    def next_names(self, parent_ino: int, name: bytes) -> Iterator[tuple[bytes, int]]:
        assert parent_ino == self.parent_ino
        for other in self.names_after(name):
            self.taken += 1
            yield other, self.inos[other]

    def ino(self, number: int) -> int:
        return self.parent_ino * 1000 + number

    def open(self, number: int, *, reader: str = READER) -> list[int]:
        """Open a file; return the numbers of those suggested."""
        found = self.detector.opened(reader, self.ino(number), self.next_names)
        return [ino - self.parent_ino * 1000 for ino in found]

    def open_all(self, *numbers: int, reader: str = READER) -> list[list[int]]:
        return [self.open(number, reader=reader) for number in numbers]

    def wanted(self, *, reader: str = READER) -> list[int]:
        known = range(self.parent_ino * 1000, self.parent_ino * 1000 + 1000)
        found = [ino for ino in known if self.detector.is_wanted(reader, ino)]
        return [ino - self.parent_ino * 1000 for ino in found]


def made(count: int = 100, *, files_max: int = 8) -> Directory:
    return Directory(SequenceDetector(files_max=files_max), count)


def test_a_scan_is_suggested_a_growing_window_from_its_third_file() -> None:
    directory = made()
    assert directory.open_all(10, 11) == [[], []]
    assert directory.wanted() == []
    assert directory.open(12) == [13, 14]
    assert directory.open(13) == [15, 16, 17]
    assert directory.open(14) == [18, 19, 20, 21, 22]
    assert directory.open(15) == [23]
    assert directory.wanted() == [16, 17, 18, 19, 20, 21, 22, 23]


@pytest.mark.parametrize("files_max", [1, 2, 5])
def test_the_window_grows_to_its_limit(files_max: int) -> None:
    directory = made(files_max=files_max)
    suggested = directory.open_all(*range(50))
    assert max(map(len, suggested)) <= files_max
    assert list(chain.from_iterable(suggested)) == list(range(3, 50 + files_max))
    assert len(directory.wanted()) == files_max
    statistics = directory.detector.statistics()
    assert statistics == PrefetchStatistics(streams=1, suggested_total=47 + files_max)


def test_nothing_is_suggested_when_nothing_may_be() -> None:
    directory = made(files_max=0)
    assert directory.open_all(*range(50)) == [[]] * 50
    assert directory.detector.statistics() == PrefetchStatistics(streams=0, suggested_total=0)
    with pytest.raises(InvalidArgumentError, match="-1"):
        SequenceDetector(files_max=-1)


def test_the_limit_can_be_lowered_and_raised_in_the_middle_of_a_scan() -> None:
    directory = made()
    directory.open_all(*range(10, 20))
    assert len(directory.wanted()) == 8
    for start, limit in ((20, 4), (30, 2), (40, 0)):
        directory.detector.limit(limit)
        # Nothing as long as more is ahead than there may be, and then one for each.
        assert max(map(len, directory.open_all(*range(start, start + 10)))) <= 1
        assert len(directory.wanted()) == limit
    directory.detector.limit(8)
    directory.open_all(*range(50, 60))
    assert len(directory.wanted()) == 8


def test_random_opens_are_suggested_nothing() -> None:
    assert made().open_all(50, 3, 80, 12, 97, 40, 9, 60, 20) == [[]] * 9


def test_going_backwards_is_suggested_nothing() -> None:
    assert made().open_all(*range(50, 0, -1)) == [[]] * 50


def test_two_neighbours_are_no_scan() -> None:
    assert made().open_all(10, 11, 60, 61, 30, 31) == [[]] * 6


def test_interleaved_readers_have_windows_of_their_own() -> None:
    directory = made()
    for step in range(2):
        assert directory.open(10 + step, reader="a") == []
        assert directory.open(60 - step * 7, reader="random") == []
        assert directory.open(20 + step, reader="b") == []
    assert directory.open(12, reader="a") == [13, 14]
    assert directory.open(22, reader="b") == [23, 24]
    assert directory.wanted(reader="a") == [13, 14]
    assert directory.wanted(reader="b") == [23, 24]
    assert directory.wanted(reader="random") == []


def test_readers_of_the_same_files_are_each_suggested_them() -> None:
    directory = made()
    for reader in ("a", "b"):
        assert directory.open_all(0, 1, 2, reader=reader)[-1] == [3, 4]


def test_directories_that_one_reader_alternates_between_are_followed_apart() -> None:
    one = made()
    two = Directory(one.detector, 100, parent_ino=8)
    for number in range(2):
        assert one.open(number) == []
        assert two.open(50 + number) == []
    assert one.open(2) == [3, 4]
    assert two.open(52) == [53, 54]
    assert one.wanted() == [3, 4]
    assert two.wanted() == [53, 54]
    assert one.detector.statistics() == PrefetchStatistics(streams=2, suggested_total=4)


def test_a_reader_that_jumps_wants_nothing_of_what_was_ahead_and_begins_anew() -> None:
    for elsewhere in (3, 60, 17):
        directory = made()
        assert directory.open_all(10, 11, 12)[-1] == [13, 14]
        assert directory.open(elsewhere) == []
        assert directory.wanted() == []
        assert directory.open(elsewhere + 1) == []
        assert directory.open(elsewhere + 2) == [elsewhere + 3, elsewhere + 4]


def test_what_was_dropped_at_a_jump_is_suggested_again() -> None:
    directory = made()
    assert directory.open_all(10, 11, 12)[-1] == [13, 14]
    assert directory.open_all(10, 11, 12) == [[], [], [13, 14]]


def test_opening_a_file_again_changes_nothing() -> None:
    directory = made()
    assert directory.open_all(10, 10, 11, 11, 11) == [[]] * 5
    assert directory.open_all(12, 12) == [[13, 14], []]
    assert directory.wanted() == [13, 14]
    assert directory.open(13) == [15, 16, 17]


def test_what_the_reader_came_to_or_passed_is_not_wanted_any_more() -> None:
    directory = made()
    directory.open_all(10, 11, 12, 13)
    assert directory.wanted() == [14, 15, 16, 17]
    directory.open(15)
    assert directory.wanted()[:2] == [16, 17]
    assert not directory.detector.is_wanted("another", directory.ino(16))


def test_entries_that_the_reader_has_no_use_for_do_not_end_the_run() -> None:
    directory = made()
    assert directory.open_all(0, 4, 8) == [[], [], [9, 10]]
    assert directory.open(12) == [13, 14, 15, 16]
    assert directory.open(17) == [], "further than the reach"
    assert directory.wanted() == []


def test_files_left_out_of_the_listing_are_never_suggested() -> None:
    directory = made()
    for number in (4, 5, 6, 7, 8):
        del directory.inos[b"%03d" % number]
    assert directory.open_all(1, 2, 3)[-1] == [9, 10]
    assert directory.open(9) == [11, 12, 13]


def test_parallel_readers_a_little_out_of_order_keep_the_run_alive() -> None:
    directory = made()
    assert directory.open_all(0, 2, 1, 3) == [[], [], [], [4, 5]]
    assert directory.open_all(6, 4, 5) == [[7, 8, 9, 10], [], []]
    assert directory.wanted() == [7, 8, 9, 10]
    assert directory.open_all(8, 7) == [list(range(11, 17)), []]


def test_the_end_of_the_directory_ends_the_window() -> None:
    directory = made(16)
    assert directory.open_all(11, 12, 13, 14, 15) == [[], [], [14, 15], [], []]
    assert directory.wanted() == []
    assert directory.open_all(0, 1, 2) == [[], [], [3, 4]]


def test_files_that_come_and_go_meanwhile() -> None:
    directory = made()
    assert directory.open_all(10, 11, 12, 13)[-1] == [15, 16, 17]
    for number in range(3):
        directory.add(b"014-%d" % number, ino=directory.ino(900 + number))
    del directory.inos[b"015"]
    # 15 to 17 were suggested and are ahead, though new ones stand between: at most 8 are ahead.
    assert directory.open(14) == [900, 901, 902, 18, 19]
    assert directory.wanted() == [15, 16, 17, 18, 19, 900, 901, 902]
    assert directory.open_all(900, 901, 902) == [[20], [21], [22]]
    assert directory.open(16) == [23, 24]
    assert 15 not in directory.wanted()


def test_the_last_opened_file_may_be_gone() -> None:
    directory = made()
    directory.open_all(10, 11)
    del directory.inos[b"011"]
    assert directory.open(12) == [13, 14]


def test_a_file_whose_name_was_never_seen_is_passed_over() -> None:
    directory = made()
    directory.open_all(10, 11)
    assert directory.detector.opened(READER, 5, directory.next_names) == []
    assert directory.open(12) == [13, 14]


def test_no_more_of_a_directory_is_read_than_needed() -> None:
    directory = made(1000)
    directory.open(10)
    directory.open(2)
    assert directory.taken == 0, "neither a first file nor an earlier one needs the listing"
    directory.open(500)
    assert directory.taken == 4
    directory.open_all(501, 502)
    assert directory.taken == 4 + 1 + 3


def test_names_are_forgotten_oldest_first_and_suggestions_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefetch, "_NAMES_MAX", 10)
    directory = made(15)
    assert directory.open_all(2, 3, 4) == [[], [], []], "their names are forgotten"
    assert directory.open_all(7, 8, 9)[-1] == [10, 11]
    for number in range(7):
        directory.detector.saw_name(1 + number, 1, b"%d" % number)
    assert directory.wanted() == [10, 11]
    assert directory.open(10) == []
    directory.detector.saw_name(directory.ino(10), PARENT, b"010")
    assert directory.open(10) == [12, 13, 14]


def test_the_reader_seen_longest_ago_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_STREAMS_MAX", 3)
    directory = made()
    for reader in "abc":
        directory.open_all(10, 11, 12, reader=reader)
    directory.open(13, reader="a")
    directory.open(50, reader="d")
    assert directory.detector.statistics().streams == 3
    assert directory.wanted(reader="b") == []
    assert directory.wanted(reader="c") == [13, 14]
    assert directory.wanted(reader="a") == [14, 15, 16, 17]


def test_memory_is_bounded() -> None:
    directory = made(1000, files_max=4)
    for reader in range(300):
        directory.open_all(1, 2, 3, 4, reader=f"{reader}")
    assert directory.detector.statistics().streams == 64
    for ino in range(200_000):
        directory.detector.saw_name(ino, 1, b"name")
    assert len(directory.detector._names) == 131_072
    for number in range(0, 998, 4):
        directory.add(b"%03d" % number, ino=directory.ino(number))
        directory.open(number)
    assert len(directory.detector._streams[READER, PARENT].passed_over) <= 16


def _steps() -> st.SearchStrategy[list[tuple[str, str, int]]]:
    """Readers' moves: mostly a few files onward, some elsewhere; and files that come and go."""
    onward = st.tuples(st.just("onward"), st.sampled_from("ab"), st.integers(-2, 5))
    jump = st.tuples(st.just("jump"), st.sampled_from("ab"), st.integers(0, 99))
    change = st.tuples(st.sampled_from(["add", "remove"]), st.just(""), st.integers(0, 99))
    return st.lists(st.one_of(onward, onward, onward, onward, jump, change), max_size=60)


@given(files_max=st.integers(0, 9), steps=_steps())
def test_suggestions_are_ahead_few_and_never_twice(
    files_max: int, steps: list[tuple[str, str, int]]
) -> None:
    directory = made(100, files_max=files_max)
    last = {"a": 0, "b": 50}
    outstanding: dict[str, set[int]] = {"a": set(), "b": set()}
    total = 0
    for action, reader, number in steps:
        if action == "add":
            directory.add(b"%03d" % number, ino=directory.ino(number))
            continue
        if action == "remove":
            directory.inos.pop(b"%03d" % number, None)
            continue
        target = min(max(last[reader] + number, 0), 99) if action == "onward" else number
        name = b"%03d" % target
        if name not in directory.inos:
            continue
        suggested = directory.open(target, reader=reader)
        total += len(suggested)
        last[reader] = target

        following = [int(other) for other in directory.names_after(name)]
        assert suggested == [other for other in following if other in suggested], "nearest first"
        assert set(suggested) <= set(following[:files_max])
        assert not outstanding[reader] & set(suggested), "never twice"
        wanted = set(directory.wanted(reader=reader))
        assert set(suggested) <= wanted <= outstanding[reader] | set(suggested)
        assert target not in wanted
        assert len(wanted) <= files_max
        outstanding[reader] = wanted
    assert directory.detector.statistics().suggested_total == total


@given(start=st.integers(0, 90), steps=st.lists(st.integers(1, 4), max_size=40))
def test_a_run_is_suggested_each_file_ahead_of_it_once(start: int, steps: list[int]) -> None:
    directory = made(200, files_max=6)
    directory.open(start)
    suggested: list[int] = []
    position = start
    for number, step in enumerate(steps, start=1):
        position += step
        suggested += directory.open(position)
        if number >= 2:
            window = min(2 ** (number - 1), 6)
            ahead = [other for other in suggested if other > position]
            assert ahead == list(range(position + 1, min(position + 1 + window, 200)))
    assert suggested == sorted(set(suggested))
