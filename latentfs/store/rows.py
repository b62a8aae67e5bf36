"""Rows by table and key: those in LMDB, and those of changes that are not yet there.

Everything above reads and writes rows through one of the two classes here, so that a snapshot and
a transaction are the same whether a change is on disk already or still in memory.
"""

from __future__ import annotations

import bisect
import heapq
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, cast

import lmdb

from latentfs.store import tables

__all__ = ["Layer", "LayeredRows", "Row", "Rows", "StoredRows"]

_ITEMS_AT_ONCE = 32

Value = bytes | bytearray | memoryview
Row = tuple[bytes | memoryview, Value]


class Rows(Protocol):
    """The rows of all tables.

    Values may be buffers that are valid only for a moment.  Nothing may be changed while a table is
    iterated over.
    """

    def get(self, table: str, key: bytes) -> Value | None: ...

    def items(self, table: str, start: bytes = b"") -> Iterator[Row]:
        """Yield the rows of a table from the key *start* on, in order of their keys."""
        ...

    def items_backwards(self, table: str) -> Iterator[Row]:
        """Yield the rows of a table, the greatest key first."""
        ...

    def keys(self, table: str) -> Iterator[bytes | memoryview]: ...

    def put(self, table: str, key: bytes, value: Value, *, append: bool = False) -> None:
        """Add or replace a row; *append* promises that no key is greater, which saves space."""
        ...

    def delete(self, table: str, key: bytes) -> bool:
        """Remove a row; return whether there was one."""
        ...


class StoredRows:
    """The rows in LMDB, in one of its transactions."""

    def __init__(self, txn: lmdb.Transaction, dbs: Mapping[str, lmdb._Database]) -> None:
        self._txn = txn
        self._dbs = dbs

    def end(self) -> None:
        """Let go of the transaction, which has ended or is about to: no row can be had any more.

        One that is only read keeps its place in LMDB's table of readers as long as anybody refers
        to it, such as a read that waits for a render.
        """
        del self._txn

    def get(self, table: str, key: bytes) -> Value | None:
        # Typed as either by lmdb; a transaction with buffers=True gives memoryviews.
        return cast("memoryview | None", self._txn.get(key, db=self._dbs[table]))

    def items(self, table: str, start: bytes = b"") -> Iterator[Row]:
        cursor = self._txn.cursor(db=self._dbs[table])
        return iter(cursor) if cursor.set_range(start) else iter(())

    def items_backwards(self, table: str) -> Iterator[Row]:
        return self._txn.cursor(db=self._dbs[table]).iterprev()

    def keys(self, table: str) -> Iterator[bytes | memoryview]:
        return self._txn.cursor(db=self._dbs[table]).iternext(values=False)

    def put(self, table: str, key: bytes, value: Value, *, append: bool = False) -> None:
        self._txn.put(key, value, db=self._dbs[table], append=append)

    def delete(self, table: str, key: bytes) -> bool:
        return self._txn.delete(key, db=self._dbs[table])


class _LayerTable:
    """The changed rows of one table; None stands for one that was removed."""

    __slots__ = ("_lock", "ordered", "rows")

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes | None] = {}
        self.ordered: list[bytes] = []
        # For threads that read while the trio thread changes other rows.
        self._lock = threading.Lock()

    def put(self, key: bytes, value: bytes | None) -> None:
        with self._lock:
            if key not in self.rows:
                bisect.insort(self.ordered, key)
            self.rows[key] = value

    def drop(self, key: bytes) -> None:
        with self._lock:
            del self.rows[key]
            del self.ordered[bisect.bisect_left(self.ordered, key)]

    def items(self, start: bytes) -> Iterator[tuple[bytes, bytes | None]]:
        """Yield from *start* on.

        Rows that are changed meanwhile may come as they were or as they are; all others come once.
        """
        while True:
            with self._lock:
                first = bisect.bisect_left(self.ordered, start)
                keys = self.ordered[first : first + _ITEMS_AT_ONCE]
                found = [(key, self.rows[key]) for key in keys]
            yield from found
            if len(found) < _ITEMS_AT_ONCE:
                return
            start = keys[-1] + b"\0"


class Layer:
    """Changes that are not yet in LMDB, made together and to be written together.

    Attributes:
        size_bytes: of the keys and values in it.
    """

    def __init__(self) -> None:
        self.tables = {name: _LayerTable() for name in tables.TABLES}
        self.size_bytes = 0

    def __len__(self) -> int:
        return sum(len(table.rows) for table in self.tables.values())

    def changes(self) -> Iterator[tuple[str, bytes, bytes | None]]:
        """Yield (table, key, value or None) of all rows, in order of tables and keys."""
        for name, table in self.tables.items():
            for key in table.ordered:
                yield name, key, table.rows[key]

    def put(self, table: str, key: bytes, value: bytes | None) -> None:
        self.size_bytes += _size_bytes(key, value) - self._held_bytes(table, key)
        self.tables[table].put(key, value)

    def drop(self, table: str, key: bytes) -> None:
        """Forget the change of a row."""
        self.size_bytes -= self._held_bytes(table, key)
        self.tables[table].drop(key)

    def _held_bytes(self, table: str, key: bytes) -> int:
        rows = self.tables[table].rows
        return _size_bytes(key, rows[key]) if key in rows else 0


class LayeredRows:
    """The rows in LMDB as layers of changes leave them; changes go to the uppermost layer.

    Args:
        layers: the uppermost first.
        stored: the rows below all of them.
    """

    def __init__(self, layers: tuple[Layer, ...], stored: StoredRows) -> None:
        self._layers = layers
        self._stored = stored
        self._undo: list[tuple[str, bytes, bool, bytes | None]] = []

    def get(self, table: str, key: bytes) -> Value | None:
        for layer in self._layers:
            rows = layer.tables[table].rows
            if key in rows:
                return rows[key]
        return self._stored.get(table, key)

    def items(self, table: str, start: bytes = b"") -> Iterator[Row]:
        stored = self._stored.items(table, start)
        changed = [layer.tables[table] for layer in self._layers if layer.tables[table].rows]
        if not changed:
            return stored
        return _merged([*(rows.items(start) for rows in changed), stored])

    def items_backwards(self, table: str) -> Iterator[Row]:
        if not any(layer.tables[table].rows for layer in self._layers):
            return self._stored.items_backwards(table)
        return reversed(list(self.items(table)))

    def keys(self, table: str) -> Iterator[bytes | memoryview]:
        return (key for key, _ in self.items(table))

    def put(self, table: str, key: bytes, value: Value, *, append: bool = False) -> None:
        self._change(table, key, bytes(value))

    def delete(self, table: str, key: bytes) -> bool:
        if self.get(table, key) is None:
            return False
        if len(self._layers) == 1 and self._stored.get(table, key) is None:
            self._remember(table, key)
            self._layers[0].drop(table, key)
        else:
            self._change(table, key, None)
        return True

    def undo(self) -> None:
        """Take back all that was changed through this object."""
        layer = self._layers[0]
        for table, key, was_changed, value in reversed(self._undo):
            if was_changed:
                layer.put(table, key, value)
            elif key in layer.tables[table].rows:
                layer.drop(table, key)
        self._undo.clear()

    def _change(self, table: str, key: bytes, value: bytes | None) -> None:
        self._remember(table, key)
        self._layers[0].put(table, key, value)

    def _remember(self, table: str, key: bytes) -> None:
        rows = self._layers[0].tables[table].rows
        self._undo.append((table, key, key in rows, rows.get(key)))


def _size_bytes(key: bytes, value: bytes | None) -> int:
    return len(key) + (0 if value is None else len(value))


def _merged(
    sources: Iterable[Iterator[tuple[bytes | memoryview, Value | None]]],
) -> Iterator[Row]:
    """Yield the rows of *sources*, each in order; of equal keys the first source's, if any."""
    numbered = (_numbered(number, source) for number, source in enumerate(sources))
    last: bytes | None = None
    for key, _, value in heapq.merge(*numbered, key=lambda row: row[:2]):
        if key == last:
            continue
        last = key
        if value is not None:
            yield key, value


def _numbered(
    number: int, source: Iterator[tuple[bytes | memoryview, Value | None]]
) -> Iterator[tuple[bytes, int, Value | None]]:
    for key, value in source:
        yield bytes(key), number, value
