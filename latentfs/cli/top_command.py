"""latentfs top"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from latentfs.cli.interrupts import ended_as_by_ctrl_c
from latentfs.cli.output import wrapped
from latentfs.cli.places import PLACE, store_of, why_no_answer
from latentfs.cli.watching import nothing_done, watched_lines
from latentfs.errors import MountError
from latentfs.fs.control import ask_daemon
from latentfs.fs.explanation import path_of
from latentfs.fs.mountpoint import mounts_of
from latentfs.settings.values import read_seconds
from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.snapshot import Snapshot
from latentfs.store.store import Store

__all__ = ["command"]

_LABEL_COLUMNS = 12
_PRINTED_COLUMNS = 80
_INTERVAL_MIN_S = 0.1
# A daemon may answer twice at once, after a time in which it could not.
_ELAPSED_MIN_S = 0.001
# An unmounted daemon takes a while to end after its socket is gone.
_END_WAIT_S = 10.0
_END_POLL_S = 0.1
_SEARCH_S = 0.25

Row = tuple[str, str]


class _Interval(click.ParamType[float]):
    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return read_seconds(at_least_s=_INTERVAL_MIN_S)(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("top", epilog="Example: latentfs top /mnt/art --interval 2s")
@click.argument("where", type=PLACE, metavar="STORE|MOUNTPOINT")
@click.option(
    "--interval",
    "interval_s",
    type=_Interval(),
    default="1s",
    show_default=True,
    metavar="TIME",
    help="Time between updates.",
)
@click.option("--count", type=click.IntRange(min=1), help="Stop after this many updates.")
def command(where: Path, interval_s: float, count: int | None) -> int:
    """Watch what a mount does: requests, hits, renders, the cache, recent slow files.

    On a terminal it updates one screen; q or Ctrl-C ends it.  Otherwise it prints a block of lines
    for each update.  It ends with the mount: with 0 when that was unmounted, with 1 when its daemon
    has died or does not answer.
    """
    store_path = store_of(where)
    first = _status(store_path)
    is_live = _is_screen()
    with Store.open(store_path) as store:
        looks = _looks(store, first, interval_s, count, begins_at_once=is_live)
        return _show_live(looks) if is_live else _print(looks)


def _is_screen() -> bool:
    """Whether there is a terminal that can be drawn on, and keys."""
    is_dumb = os.environ.get("TERM", "dumb") in ("dumb", "unknown")
    return sys.stdout.isatty() and sys.stdin.isatty() and not is_dumb


def _status(store_path: Path) -> dict[str, Any]:
    """Return what the daemon tells of itself.

    Raises:
        MountError: there is none, or it does not answer.
    """
    answer = ask_daemon(store_path, "status")
    problem = why_no_answer(store_path) if answer is None else answer.get("error")
    if answer is None or problem is not None:
        raise MountError(f"{store_path} can't be watched: {problem}")
    return answer


Looks = Callable[[Callable[[float], None]], Iterator[list[Row]]]
"""Yields the rows of each look, and waits between them by what it is given."""


def _looks(
    store: Store,
    first: dict[str, Any],
    interval_s: float,
    count: int | None,
    *,
    begins_at_once: bool = False,
) -> Looks:
    """*begins_at_once*: with averages since the mount, which do not count among *count*."""
    paths = _Paths(store)

    def rows(before: dict[str, Any], after: dict[str, Any]) -> list[Row]:
        elapsed_s = max(_ELAPSED_MIN_S, after["uptime_s"] - before["uptime_s"])
        return watched_lines(before, after, elapsed_s=elapsed_s, path_of=paths.of)

    def looks(wait: Callable[[float], None]) -> Iterator[list[Row]]:
        before, seen = first, 0
        if begins_at_once:
            yield rows(nothing_done(first), first)
        while count is None or seen < count:
            wait(interval_s)
            after = _after(store.path, before)
            yield rows(before, after)
            before, seen = after, seen + 1

    return looks


class _Paths:
    """Finds the names of files.  An inode does not say in which folders it is."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._places: dict[int, tuple[int, bytes]] = {}
        self._without: set[int] = set()

    def of(self, ino: int, place: tuple[int, bytes] | None) -> bytes | None:
        """Return a path of the file *ino*, which was last asked for at *place*, if that is known.

        Where it is not, all entries are searched, for a while at most.
        """
        with self._store.read() as snapshot:
            place = place or self._places.get(ino)
            if place is None and ino not in self._without:
                place = _searched(snapshot, ino)
            if place is None or snapshot.lookup(*place) != ino:
                self._places.pop(ino, None)
                self._without.add(ino)
                return None
            self._places[ino] = place
            return path_of(snapshot, *place)


def _searched(snapshot: Snapshot, ino: int) -> tuple[int, bytes] | None:
    deadline_s = time.monotonic() + _SEARCH_S
    for parent_ino, name, child_ino in snapshot.all_entries(after=(0, b"")):
        if child_ino == ino:
            return parent_ino, name
        if time.monotonic() > deadline_s:
            break
    return None


class _Ended(Exception):
    """The daemon is gone.

    Attributes:
        status: to exit with.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def _after(store_path: Path, before: dict[str, Any]) -> dict[str, Any]:
    """Ask the daemon again.

    Raises:
        _Ended: it does not answer any more, or another one does.
    """
    answer = ask_daemon(store_path, "status")
    if answer is None:
        raise _ended(store_path, Path(before["mountpoint"]))
    if answer.get("pid") != before["pid"]:
        raise _Ended("the store was mounted anew", 0)
    return answer


def _ended(store_path: Path, mountpoint: Path) -> _Ended:
    lock = DaemonLock(store_path)
    deadline_s = time.monotonic() + _END_WAIT_S
    while lock.is_mounted():
        if time.monotonic() > deadline_s:
            return _Ended("the daemon does not answer", 1)
        time.sleep(_END_POLL_S)
    if mounts_of(store_path):
        return _Ended(why_no_answer(store_path), 1)
    return _Ended(f"{mountpoint} was unmounted", 0)


def _print(looks: Looks) -> int:
    try:
        for rows in looks(time.sleep):
            click.echo(_block(rows, columns=_PRINTED_COLUMNS) + "\n")
    except _Ended as end:
        click.echo(f"latentfs: {end}", err=True)
        return end.status
    return 0


def _block(rows: list[Row], *, columns: int) -> str:
    return "\n".join(
        wrapped(label, text, label_columns=_LABEL_COLUMNS, columns=columns) for label, text in rows
    )


def _show_live(looks: Looks) -> int:
    console = Console()
    rows: list[Row] = []
    try:
        with (
            ended_as_by_ctrl_c(),
            _keys() as wait_for_q,
            Live(console=console, screen=True) as live,
        ):
            for rows in looks(wait_for_q):
                live.update(_screen(rows, columns=console.width), refresh=True)
    except _Ended as end:
        click.echo(f"latentfs: {end}", err=True)
        return end.status
    except KeyboardInterrupt:
        return 0
    click.echo(_block(rows, columns=console.width))  # the screen is gone, and with it the last look
    return 0


def _screen(rows: list[Row], *, columns: int) -> Text:
    """The rows as they are: what a file is called is no markup."""
    screen = Text(no_wrap=True, overflow="ellipsis")
    for row in rows:
        block = _block([row], columns=columns)
        screen.append(block[:_LABEL_COLUMNS], style="bold")
        screen.append(f"{block[_LABEL_COLUMNS:]}\n")
    return screen.append("q ends it", style="dim")


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], None]]:
    """Give what waits so many seconds; a q interrupts it, as Ctrl-C does."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def wait_for_q(wait_s: float) -> None:
        deadline_s = time.monotonic() + wait_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            if select.select([fd], [], [], left_s)[0]:
                typed = os.read(fd, 1024)
                if not typed or b"q" in typed:
                    raise KeyboardInterrupt

    tty.setcbreak(fd)
    try:
        yield wait_for_q
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
