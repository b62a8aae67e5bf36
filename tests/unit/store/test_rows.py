"""Rows seen through layers of changes are those of a dict to which the changes were made."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentfs.store.rows import Layer, LayeredRows, Rows, StoredRows
from latentfs.store.store import Store

TABLE, OTHER = "xattrs", "dentries"
# Few keys, so that changes meet, some of which begin with others.
KEYS = st.sampled_from([b"a", b"a\x00", b"ab", b"b", b"\x00", b"\xff", b"\xff\xff", bytes(64)])
VALUES = st.binary(max_size=5)
BUFFERS = st.sampled_from([bytes, bytearray, memoryview])
PUTS = st.tuples(st.just("put"), KEYS, VALUES, BUFFERS)
DELETES = st.tuples(st.just("delete"), KEYS, st.just(b""), st.just(bytes))
CHANGES = st.lists(PUTS | DELETES, max_size=12)
Changes = list[tuple[str, bytes, bytes, type]]
Model = dict[bytes, bytes]


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder, Store.create(Path(folder) / "art.lfs") as store:
        yield store


@contextmanager
def stored_rows(store: Store, content: Model) -> Iterator[StoredRows]:
    """The rows on disk, those of TABLE being *content*."""
    with store.stored_rows() as rows:
        old = [bytes(key) for key in rows.keys(TABLE)]
    layer = Layer()
    for key in old:
        layer.put(TABLE, key, None)
    for key, value in content.items():
        layer.put(TABLE, key, value)
    store.apply(layer)
    with store.stored_rows() as rows:
        yield rows


def change(rows: Rows, model: Model, changes: Changes) -> None:
    for what, key, value, buffer in changes:
        if what == "put":
            rows.put(TABLE, key, buffer(value))
            model[key] = value
        else:
            assert rows.delete(TABLE, key) == (key in model)
            model.pop(key, None)


def assert_equal(rows: Rows, model: Model) -> None:
    expected = sorted(model.items())
    for start in [b"", *model, b"a", b"aa", b"\xff\x00", b"\xff\xff\xff"]:
        found = [(bytes(key), bytes(value)) for key, value in rows.items(TABLE, start)]
        assert found == [row for row in expected if row[0] >= start]
        value = rows.get(TABLE, start) if start else None
        assert (None if value is None else bytes(value)) == model.get(start)
    backwards = [(bytes(key), bytes(value)) for key, value in rows.items_backwards(TABLE)]
    assert backwards == expected[::-1]
    assert [bytes(key) for key in rows.keys(TABLE)] == sorted(model)
    assert not list(rows.items(OTHER))


def assert_exact_size(layer: Layer) -> None:
    rows = list(layer.changes())
    assert layer.size_bytes == sum(len(key) + len(value or b"") for _, key, value in rows)
    assert len(layer) == len(rows)
    order = [key for _, key, _ in rows]
    assert order == sorted(set(order))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=st.dictionaries(KEYS, VALUES), first=CHANGES, second=CHANGES, undone=CHANGES)
def test_layers_on_rows_are_a_dict_that_was_changed(store, content, first, second, undone):
    lower, upper = Layer(), Layer()
    model = dict(content)
    with stored_rows(store, content) as stored:
        assert_equal(stored, model)
        one = LayeredRows((lower,), stored)
        change(one, model, first)
        assert_equal(one, model)
        change(LayeredRows((upper, lower), stored), model, second)
        two = LayeredRows((upper, lower), stored)
        assert_equal(two, model)
        after = dict(model)
        held = list(upper.changes())
        change(two, after, undone)
        assert_equal(two, after)
        assert_exact_size(upper)
        two.undo()
        assert list(upper.changes()) == held
        assert_equal(two, model)
        for layer in (lower, upper):
            assert_exact_size(layer)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=st.dictionaries(KEYS, VALUES), first=CHANGES, second=CHANGES)
def test_applying_layers_in_turn_leaves_what_was_seen_through_them(store, content, first, second):
    lower, upper = Layer(), Layer()
    model = dict(content)
    with stored_rows(store, content) as stored:
        change(LayeredRows((lower,), stored), model, first)
        change(LayeredRows((upper, lower), stored), model, second)
    store.apply(lower)
    # The lower layer is on disk and still looked through, as in the moment after its commit.
    with store.stored_rows() as stored:
        assert_equal(LayeredRows((upper, lower), stored), model)
        assert_equal(LayeredRows((upper,), stored), model)
    store.apply(upper)
    with store.stored_rows() as stored:
        assert_equal(stored, model)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=st.dictionaries(KEYS, VALUES), changes=CHANGES)
def test_undoing_everything_leaves_an_empty_layer(store, content, changes):
    layer = Layer()
    with stored_rows(store, content) as stored:
        rows = LayeredRows((layer,), stored)
        change(rows, dict(content), changes)
        rows.undo()
        assert_equal(rows, content)
    assert layer.size_bytes == 0
    assert not len(layer)


def test_a_row_that_came_and_went_within_a_layer_leaves_nothing_to_be_written(store):
    layer = Layer()
    with stored_rows(store, {}) as stored:
        rows = LayeredRows((layer,), stored)
        rows.put(TABLE, b"a", b"value")
        assert rows.delete(TABLE, b"a")
        assert not rows.delete(TABLE, b"a")
    assert not len(layer)


def test_a_buffer_that_is_used_again_does_not_change_a_row(store):
    buffer = bytearray(b"first")
    with stored_rows(store, {}) as stored:
        rows = LayeredRows((Layer(),), stored)
        rows.put(TABLE, b"a", memoryview(buffer))
        rows.put(TABLE, b"b", buffer)
        buffer[:] = b"again"
        assert rows.get(TABLE, b"a") == rows.get(TABLE, b"b") == b"first"


def test_rows_around_those_that_change_meanwhile_come_once() -> None:
    """A thread may read a picture's rows while others come and go in front of them."""
    layer = Layer()
    keys = [b"k%03d" % number for number in range(100)]
    for key in keys:
        layer.put(TABLE, key, key)
    found = []
    for key, _ in layer.tables[TABLE].items(b"k"):
        found.append(key)
        number = len(found)
        layer.put(TABLE, b"a%03d" % number, b"")
        if number > 50:
            layer.tables[TABLE].drop(b"a%03d" % (number - 50))
    assert found == keys
