"""What programs change through a mount, against a model and against POSIX."""

from __future__ import annotations

import errno
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from store_contents import add_picture, picture_latent
from store_invariants import assert_consistent

from latentfs.errors import RefusedChangeError
from latentfs.latents import payload as payload_codec
from latentfs.store import chunks
from latentfs.store.file_transaction import FileTransaction
from latentfs.store.records import Inode, LatentFileContent
from latentfs.store.rows import Layer, LayeredRows
from latentfs.store.snapshot import Snapshot
from latentfs.store.store import Store
from latentfs.store.tables import CHUNK_BYTES, ROOT_INO
from latentfs.store.transaction import pack_blob

LONG_AGO_NS = 1_000_000_000
FILE = Inode(stat.S_IFREG | 0o644, 1, 2, 1, 0, LONG_AGO_NS, LONG_AGO_NS)
FIFO = Inode(stat.S_IFIFO | 0o644, 1, 2, 1, 0, LONG_AGO_NS, LONG_AGO_NS)
SYMLINK = Inode(
    stat.S_IFLNK | 0o777, 1, 2, 1, 6, LONG_AGO_NS, LONG_AGO_NS, atime_ns=1, target=b"target"
)


def folder(parent_ino: int) -> Inode:
    mode = stat.S_IFDIR | 0o755
    return Inode(mode, 1, 2, 2, 0, LONG_AGO_NS, LONG_AGO_NS, parent_ino=parent_ino)


class Changed:
    """A store with a layer of changes on it, committed when the test says so."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.layer = Layer()

    @contextmanager
    def read(self) -> Iterator[Snapshot]:
        with self.store.stored_rows() as stored:
            yield Snapshot(LayeredRows((self.layer,), stored))

    @contextmanager
    def change(self) -> Iterator[FileTransaction]:
        with self.store.stored_rows() as stored:
            rows = LayeredRows((self.layer,), stored)
            transaction = FileTransaction(rows)
            try:
                yield transaction
                transaction.finish()
            except BaseException:
                rows.undo()
                raise

    def commit(self) -> None:
        self.store.apply(self.layer)
        self.layer = Layer()

    # Shorthands of one change each

    def make(self, name: bytes, inode: Inode = FILE, parent_ino: int = ROOT_INO) -> int:
        if inode.is_directory:
            inode = folder(parent_ino)
        with self.change() as transaction:
            return transaction.make(parent_ino, name, inode)

    def write(self, ino: int, offset: int, data: bytes) -> Inode:
        with self.change() as transaction:
            inode = transaction.require(ino)
            return transaction.write_bytes(ino, inode, offset=offset, data=data)

    def truncate(self, ino: int, size_bytes: int) -> Inode:
        with self.change() as transaction:
            return transaction.truncate(ino, transaction.require(ino), size_bytes=size_bytes)

    def remove(self, name: bytes, parent_ino: int = ROOT_INO, *, directory: bool = False) -> None:
        with self.change() as transaction:
            transaction.remove_entry(parent_ino, name, directory=directory)

    def inode(self, ino: int) -> Inode:
        with self.read() as snapshot:
            inode = snapshot.inode(ino)
        assert inode is not None
        return inode

    def names(self, ino: int = ROOT_INO) -> dict[bytes, int]:
        with self.read() as snapshot:
            return dict(snapshot.entries(ino))

    def content(self, ino: int) -> bytes:
        with self.read() as snapshot:
            return snapshot.bytes_of(ino, offset=0, end=self.inode(ino).size_bytes)

    def add_picture(self, name: bytes) -> int:
        """Add it as an import does, beside the changes of the layer, which must be committed."""
        assert not len(self.layer)
        with self.store.write() as transaction:
            return add_picture(
                transaction, ROOT_INO, name, picture_latent(1), chunks=(b"prompt",), metadata=b"{}"
            )


@pytest.fixture
def changed(tmp_path: Path) -> Iterator[Changed]:
    with Store.create(tmp_path / "art.lfs") as store:
        changed = Changed(store)
        yield changed
        with changed.read() as snapshot:
            assert_consistent(snapshot)
        changed.commit()
        with store.read() as snapshot:
            assert_consistent(snapshot)


@contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises(RefusedChangeError) as caught:
        yield
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]


def age(changed: Changed, *inos: int) -> None:
    """Let the inodes have last been changed long ago."""
    with changed.change() as transaction:
        for ino in inos:
            inode = transaction.require(ino)
            transaction.update(ino, inode, mtime_ns=LONG_AGO_NS, ctime_ns=LONG_AGO_NS)


def is_new(changed: Changed, ino: int) -> tuple[bool, bool]:
    """Return whether mtime and ctime are of just now."""
    inode = changed.inode(ino)
    return inode.mtime_ns > LONG_AGO_NS, inode.ctime_ns > LONG_AGO_NS


# Entries


def test_a_new_entry_dates_and_counts_its_folder(changed):
    age(changed, ROOT_INO)
    changed.make(b"file")
    assert is_new(changed, ROOT_INO) == (True, True)
    assert changed.inode(ROOT_INO).nlink == 2
    sub = changed.make(b"sub", folder(0))
    assert changed.inode(ROOT_INO).nlink == 3
    assert changed.inode(sub).nlink == 2
    with changed.read() as snapshot:
        assert snapshot.totals().directories == 2


@pytest.mark.parametrize("inode", [FILE, FIFO, SYMLINK, folder(0)])
def test_a_name_that_is_taken_is_refused_and_uses_no_number_up(changed, inode):
    changed.make(b"name", inode)
    with refused(errno.EEXIST):
        changed.make(b"name")
    assert changed.make(b"other") == changed.names()[b"name"] + 1


def test_names_that_can_not_be_are_refused(changed):
    file = changed.make(b"file")
    longest = b"n" * 255
    changed.make(longest)
    for name, number in [(b"", errno.ENOENT), (longest + b"n", errno.ENAMETOOLONG)]:
        with refused(number):
            changed.make(name)
        with refused(number), changed.change() as transaction:
            transaction.link(file, ROOT_INO, name)
        with refused(number), changed.change() as transaction:
            transaction.rename(ROOT_INO, b"file", ROOT_INO, name, may_replace=True)
        with refused(errno.ENOENT):
            changed.remove(name)


def test_nothing_is_made_in_a_file_or_in_a_folder_that_was_removed(changed):
    file, gone = changed.make(b"file"), changed.make(b"gone", folder(0))
    changed.remove(b"gone", directory=True)
    for parent, number in [(file, errno.ENOTDIR), (gone, errno.ENOENT), (999, errno.ESTALE)]:
        with refused(number):
            changed.make(b"a", parent_ino=parent)
        with refused(number), changed.change() as transaction:
            transaction.link(file, parent, b"a")
        with refused(number), changed.change() as transaction:
            transaction.rename(ROOT_INO, b"file", parent, b"a", may_replace=True)
    assert changed.names() == {b"file": file}


def test_links_share_an_inode_that_goes_with_the_last_of_them(changed):
    file = changed.make(b"one")
    age(changed, file)
    with changed.change() as transaction:
        assert transaction.link(file, ROOT_INO, b"two").nlink == 2
    assert is_new(changed, file) == (False, True)
    with changed.change() as transaction:
        assert transaction.remove_entry(ROOT_INO, b"one", directory=False) == (file, False)
    with changed.change() as transaction:
        assert transaction.remove_entry(ROOT_INO, b"two", directory=False) == (file, True)
    with refused(errno.ENOENT), changed.change() as transaction:
        transaction.link(file, ROOT_INO, b"three")
    with changed.read() as snapshot:
        assert list(snapshot.orphans()) == [file]


def test_a_folder_has_one_name_only(changed):
    sub = changed.make(b"sub", folder(0))
    with refused(errno.EPERM), changed.change() as transaction:
        transaction.link(sub, ROOT_INO, b"again")


def test_removing_tells_folders_from_others(changed):
    sub = changed.make(b"sub", folder(0))
    changed.make(b"file")
    changed.make(b"inner", parent_ino=sub)
    with refused(errno.ENOTDIR):
        changed.remove(b"file", directory=True)
    with refused(errno.EISDIR):
        changed.remove(b"sub")
    with refused(errno.ENOTEMPTY):
        changed.remove(b"sub", directory=True)
    with refused(errno.ENOENT):
        changed.remove(b"missing")
    changed.remove(b"inner", sub)
    changed.remove(b"sub", directory=True)
    assert changed.inode(sub).nlink == 0
    assert changed.inode(ROOT_INO).nlink == 2


def test_renaming_onto_another_link_of_the_same_file_changes_nothing(changed):
    file = changed.make(b"one")
    with changed.change() as transaction:
        transaction.link(file, ROOT_INO, b"two")
    age(changed, ROOT_INO, file)
    with changed.change() as transaction:
        assert transaction.rename(ROOT_INO, b"one", ROOT_INO, b"two", may_replace=True) is None
    assert changed.names() == {b"one": file, b"two": file}
    assert is_new(changed, file) == is_new(changed, ROOT_INO) == (False, False)
    with refused(errno.EEXIST), changed.change() as transaction:
        transaction.rename(ROOT_INO, b"one", ROOT_INO, b"two", may_replace=False)


def test_a_folder_renamed_to_its_own_name_stays(changed):
    sub = changed.make(b"sub", folder(0))
    with changed.change() as transaction:
        assert transaction.rename(ROOT_INO, b"sub", ROOT_INO, b"sub", may_replace=True) is None
    assert changed.names() == {b"sub": sub}


def test_a_folder_is_not_moved_into_itself(changed):
    a = changed.make(b"a", folder(0))
    b = changed.make(b"b", folder(0), a)
    c = changed.make(b"c", folder(0), b)
    for target in (a, b, c):
        with refused(errno.EINVAL), changed.change() as transaction:
            transaction.rename(ROOT_INO, b"a", target, b"new", may_replace=True)
    with refused(errno.EINVAL), changed.change() as transaction:
        transaction.exchange(ROOT_INO, b"a", b, b"c")
    with refused(errno.EINVAL), changed.change() as transaction:
        transaction.exchange(b, b"c", ROOT_INO, b"a")


def test_a_folder_replaces_an_empty_folder_of_another_parent(changed):
    a, b = changed.make(b"a", folder(0)), changed.make(b"b", folder(0))
    moved = changed.make(b"moved", folder(0), a)
    replaced = changed.make(b"replaced", folder(0), b)
    with changed.change() as transaction:
        assert transaction.rename(a, b"moved", b, b"replaced", may_replace=True) == replaced
    assert (changed.inode(a).nlink, changed.inode(b).nlink) == (2, 3)
    assert changed.inode(moved).parent_ino == b
    with refused(errno.ENOTEMPTY), changed.change() as transaction:
        transaction.rename(ROOT_INO, b"a", ROOT_INO, b"b", may_replace=True)


def test_what_replaces_and_what_is_replaced_must_be_of_one_kind(changed):
    changed.make(b"file")
    changed.make(b"sub", folder(0))
    with refused(errno.EISDIR), changed.change() as transaction:
        transaction.rename(ROOT_INO, b"file", ROOT_INO, b"sub", may_replace=True)
    with refused(errno.ENOTDIR), changed.change() as transaction:
        transaction.rename(ROOT_INO, b"sub", ROOT_INO, b"file", may_replace=True)
    with refused(errno.ENOENT), changed.change() as transaction:
        transaction.rename(ROOT_INO, b"missing", ROOT_INO, b"file", may_replace=True)


def test_a_folder_and_a_file_of_different_folders_change_places(changed):
    a, b = changed.make(b"a", folder(0)), changed.make(b"b", folder(0))
    sub, file = changed.make(b"sub", folder(0), a), changed.make(b"file", parent_ino=b)
    changed.make(b"inner", parent_ino=sub)
    age(changed, a, b, sub, file)
    with changed.change() as transaction:
        transaction.exchange(a, b"sub", b, b"file")
    assert changed.names(a) == {b"sub": file}
    assert changed.names(b) == {b"file": sub}
    assert (changed.inode(a).nlink, changed.inode(b).nlink) == (2, 3)
    assert changed.inode(sub).parent_ino == b
    assert changed.inode(file).parent_ino == 0
    assert is_new(changed, a) == is_new(changed, b) == (True, True)
    assert is_new(changed, sub) == is_new(changed, file) == (False, True)


def test_two_folders_change_places_with_all_that_is_in_them(changed):
    a, b = changed.make(b"a", folder(0)), changed.make(b"b", folder(0))
    one, two = changed.make(b"one", folder(0), a), changed.make(b"two", folder(0), b)
    with changed.change() as transaction:
        transaction.exchange(a, b"one", b, b"two")
        transaction.exchange(a, b"one", a, b"one")
    assert (changed.inode(one).parent_ino, changed.inode(two).parent_ino) == (b, a)
    with refused(errno.ENOENT), changed.change() as transaction:
        transaction.exchange(a, b"one", b, b"missing")


# Bytes


def test_writing_counts_and_dates(changed):
    file = changed.make(b"file")
    age(changed, file)
    inode = changed.write(file, 2 * CHUNK_BYTES + 5, b"end")
    assert (inode.size_bytes, inode.chunks) == (2 * CHUNK_BYTES + 8, 1)
    assert is_new(changed, file) == (True, True)
    assert changed.content(file) == bytes(2 * CHUNK_BYTES + 5) + b"end"
    inode = changed.write(file, CHUNK_BYTES - 1, b"xy")
    assert (inode.size_bytes, inode.chunks) == (2 * CHUNK_BYTES + 8, 3)
    age(changed, file)
    assert changed.truncate(file, 1).chunks == 1
    assert is_new(changed, file) == (True, True)
    assert changed.truncate(file, 10).chunks == 1
    assert changed.content(file) == bytes(10)
    with changed.read() as snapshot:
        assert snapshot.totals().size_bytes == 10


def test_a_file_can_not_be_longer_than_its_chunks_can_hold(changed):
    file = changed.make(b"file")
    with refused(errno.EFBIG):
        changed.truncate(file, chunks.FILE_BYTES_MAX + 1)
    with refused(errno.EFBIG):
        changed.write(file, chunks.FILE_BYTES_MAX - 1, b"ab")
    changed.truncate(file, chunks.FILE_BYTES_MAX)
    changed.write(file, chunks.FILE_BYTES_MAX - 1, b"a")
    assert changed.truncate(file, chunks.FILE_BYTES_MAX - 1).chunks == 1
    assert changed.truncate(file, 0).chunks == 0


def test_a_picture_that_is_written_into_gives_its_latent_up(changed):
    pictures = [changed.add_picture(b"a.png"), changed.add_picture(b"b.png")]
    for left, ino in reversed(list(enumerate(pictures))):
        with changed.change() as transaction:
            inode = transaction.make_chunked(ino, transaction.require(ino), b"bytes" * 100_000)
        assert (inode.content, inode.size_bytes, inode.chunks) == (None, 500_000, 4)
        assert changed.content(ino) == b"bytes" * 100_000
        with changed.read() as snapshot:
            assert snapshot.totals().payloads == min(left, 1)
            assert_consistent(snapshot)


def test_a_copy_shares_the_latent_of_its_picture_until_it_is_written_into(changed):
    picture = changed.add_picture(b"a.png")
    copy = changed.make(b"copy.png")
    changed.write(copy, 0, b"p" * 300_000)
    age(changed, copy)
    with changed.change() as transaction:
        content = transaction.require(picture).content
        transaction.make_latent(copy, transaction.require(copy), content)
    inode = changed.inode(copy)
    assert (inode.content, inode.chunks, inode.size_bytes) == (content, 0, 300_000)
    assert is_new(changed, copy) == (False, False)
    with changed.read() as snapshot:
        assert_consistent(snapshot)
        assert [references for *_, references in snapshot.payload_index()] == [2]
    changed.remove(b"a.png")
    with changed.change() as transaction:
        transaction.discard(picture)
    with changed.read() as snapshot:
        assert_consistent(snapshot)
    with changed.change() as transaction:
        transaction.make_chunked(copy, transaction.require(copy), b"p" * 300_000)
    with changed.read() as snapshot:
        assert not list(snapshot.payload_ids())


def test_a_latent_file_is_kept_as_its_payload_until_it_is_written_into(changed):
    file = changed.make(b"a.latent")
    changed.write(file, 0, b"l" * 300_000)
    age(changed, file)
    latent = picture_latent(3)
    with changed.change() as transaction:
        payload = transaction.add_payload(latent.digest(), payload_codec.encode(latent))
        rest = transaction.add_blob(pack_blob(b"the rest of the file"))
        # A batch may hold the same latent twice.
        content = LatentFileContent((payload, payload), rest, 0, False)
        transaction.make_latent(file, transaction.require(file), content)
    assert not changed.inode(file).is_chunked
    assert is_new(changed, file) == (False, False)
    with changed.read() as snapshot:
        assert_consistent(snapshot)
        assert snapshot.totals().payloads == 1
    changed.commit()
    with changed.change() as transaction:
        transaction.make_chunked(file, transaction.require(file), b"l" * 300_000)
    assert changed.inode(file).is_chunked
    with changed.read() as snapshot:
        assert not list(snapshot.payload_ids())
        assert not list(snapshot.blobs())


@pytest.mark.parametrize("committed", [False, True])
def test_a_discarded_orphan_leaves_nothing_behind(changed, committed):
    picture = changed.add_picture(b"a.png")
    file, sub = changed.make(b"file"), changed.make(b"sub", folder(0))
    link = changed.make(b"link", SYMLINK)
    changed.write(file, 3 * CHUNK_BYTES, b"data")
    for ino in (picture, file, sub, link):
        with changed.change() as transaction:
            transaction.set_xattr(ino, b"user.one", b"1")
            transaction.set_xattr(ino, b"user.two", b"2")
    for name in (b"a.png", b"file", b"sub", b"link"):
        changed.remove(name, directory=name == b"sub")
    if committed:
        changed.commit()
    for ino in (picture, file, sub, link):
        with changed.change() as transaction:
            transaction.discard(ino)
    changed.commit()
    with changed.store.read() as snapshot:
        assert [ino for ino, _ in snapshot.inodes()] == [ROOT_INO]
        assert not list(snapshot.orphans())
        for table in ("dentries", "payloads", "payload_index", "metadata", "chunks", "xattrs"):
            assert not list(snapshot._rows.keys(table))


# Extended attributes


def test_attributes_are_set_replaced_and_removed(changed):
    file, other = changed.make(b"file"), changed.make(b"other")
    age(changed, file)
    with changed.change() as transaction:
        transaction.set_xattr(file, b"user.b", b"first")
        transaction.set_xattr(file, b"user.b", b"")
        transaction.set_xattr(file, b"user.a", bytes(64 * 1024))
        transaction.set_xattr(other, b"user.c", b"of another")
    assert is_new(changed, file) == (False, True)
    with changed.read() as snapshot:
        assert list(snapshot.xattr_names(file)) == [b"user.a", b"user.b"]
        assert snapshot.xattr(file, b"user.b") == b""
        assert snapshot.xattr(file, b"user.c") is None
    with refused(errno.E2BIG), changed.change() as transaction:
        transaction.set_xattr(file, b"user.a", bytes(64 * 1024 + 1))
    with changed.change() as transaction:
        transaction.remove_xattr(file, b"user.a")
    with refused(errno.ENODATA), changed.change() as transaction:
        transaction.remove_xattr(file, b"user.a")
    with refused(errno.ESTALE), changed.change() as transaction:
        transaction.set_xattr(999, b"user.a", b"")


# A model

NAMES = st.sampled_from([b"a", b"b", b"c"])
KINDS = st.sampled_from([FILE, FILE, FIFO, SYMLINK, folder(0), folder(0), folder(0)])
SIZES = st.sampled_from([0, 1, 5000, CHUNK_BYTES, 3 * CHUNK_BYTES + 1])
PICK = st.integers(0, 1 << 30)


@dataclass
class Node:
    """A file or folder; the same object is at each of its names."""

    ino: int
    inode: Inode
    entries: dict[bytes, Node] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    is_removed: bool = False

    @property
    def is_folder(self) -> bool:
        return self.inode.is_directory


class FileTransactionModel(RuleBasedStateMachine):
    """Random changes to a store and to a tree of nodes, with equal errnos."""

    def __init__(self):
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.store = Store.create(Path(self.temporary.name) / "art.lfs")
        self.changed = Changed(self.store)
        self.root = Node(ROOT_INO, folder(ROOT_INO))
        self.orphans: list[Node] = []

    # The model

    def nodes(self, node=None):
        node = node or self.root
        found = [node]
        for child in node.entries.values():
            found += self.nodes(child)
        return found

    def folder(self, pick):
        folders = [node for node in self.nodes() if node.is_folder]
        folders += [node for node in self.orphans if node.is_folder]
        return folders[pick % len(folders)]

    def file(self, pick):
        files = [node for node in (*self.nodes(), *self.orphans) if not node.is_folder]
        return files[pick % len(files)] if files else None

    def has_left(self, node):
        """Note that a name of *node* is gone."""
        if all(node is not other for other in self.nodes()):
            node.is_removed = True
            self.orphans.append(node)

    def expected(self, number, change):
        """Make the change, which is refused with that errno, or isn't if it is None."""
        if number is None:
            with self.changed.change() as transaction:
                return change(transaction)
        with refused(number), self.changed.change() as transaction:
            change(transaction)
        return None

    # The changes

    @rule(pick=PICK, name=NAMES, inode=KINDS)
    def make(self, pick, name, inode):
        parent = self.folder(pick)
        if inode.is_directory:
            inode = folder(parent.ino)
        taken = errno.EEXIST if name in parent.entries else None
        number = errno.ENOENT if parent.is_removed else taken
        ino = self.expected(number, lambda t: t.make(parent.ino, name, inode))
        if number is None:
            parent.entries[name] = Node(ino, inode)

    @rule(pick=PICK, into=PICK, name=NAMES)
    def link(self, pick, into, name):
        node, parent = self.file(pick), self.folder(into)
        if node is None:
            return
        number = None
        if parent.is_removed or (node.is_removed and name not in parent.entries):
            number = errno.ENOENT
        elif name in parent.entries:
            number = errno.EEXIST
        self.expected(number, lambda t: t.link(node.ino, parent.ino, name))
        if number is None:
            parent.entries[name] = node

    @rule(pick=PICK, name=NAMES, directory=st.booleans())
    def remove(self, pick, name, directory):
        parent = self.folder(pick)
        node = parent.entries.get(name)
        number = None
        if node is None:
            number = errno.ENOENT
        elif directory != node.is_folder:
            number = errno.ENOTDIR if directory else errno.EISDIR
        elif node.entries:
            number = errno.ENOTEMPTY
        removed = self.expected(
            number, lambda t: t.remove_entry(parent.ino, name, directory=directory)
        )
        if number is None:
            del parent.entries[name]
            self.has_left(node)
            assert removed == (node.ino, node.is_removed)

    def rename_errno(self, old, name, new, new_name, *, may_replace):
        node, replaced = old.entries.get(name), new.entries.get(new_name)
        if new.is_removed or node is None:
            return errno.ENOENT
        if replaced is not None and not may_replace:
            return errno.EEXIST
        if replaced is node:
            return None
        if any(new is below for below in self.nodes(node)):
            return errno.EINVAL
        if replaced is None:
            return None
        if node.is_folder != replaced.is_folder:
            return errno.ENOTDIR if node.is_folder else errno.EISDIR
        return errno.ENOTEMPTY if replaced.entries else None

    @rule(a=PICK, name=NAMES, b=PICK, new_name=NAMES, may_replace=st.booleans())
    def rename(self, a, name, b, new_name, may_replace):
        old, new = self.folder(a), self.folder(b)
        number = self.rename_errno(old, name, new, new_name, may_replace=may_replace)
        orphan = self.expected(
            number,
            lambda t: t.rename(old.ino, name, new.ino, new_name, may_replace=may_replace),
        )
        replaced = new.entries.get(new_name)
        if number is not None or replaced is old.entries[name]:
            return
        new.entries[new_name] = old.entries.pop(name)
        if replaced is not None:
            self.has_left(replaced)
        is_orphan = replaced is not None and replaced.is_removed
        assert orphan == (replaced.ino if is_orphan else None)

    @rule(a=PICK, name=NAMES, b=PICK, other_name=NAMES)
    def exchange(self, a, name, b, other_name):
        one, two = self.folder(a), self.folder(b)
        node, other = one.entries.get(name), two.entries.get(other_name)
        number = None
        if node is None or other is None:
            number = errno.ENOENT
        elif node is not other and (
            any(two is below for below in self.nodes(node))
            or any(one is below for below in self.nodes(other))
        ):
            number = errno.EINVAL
        self.expected(number, lambda t: t.exchange(one.ino, name, two.ino, other_name))
        if number is None:
            one.entries[name], two.entries[other_name] = other, node

    @rule(pick=PICK, offset=SIZES, size_bytes=SIZES, fill=st.sampled_from([b"x", b"yz"]))
    def write(self, pick, offset, size_bytes, fill):
        node = self.file(pick)
        if node is None or not node.inode.is_regular or not size_bytes:
            return
        data = (fill * size_bytes)[:size_bytes]
        self.changed.write(node.ino, offset, data)
        node.data.extend(bytes(max(0, offset - len(node.data))))
        node.data[offset : offset + size_bytes] = data

    @rule(pick=PICK, size_bytes=SIZES)
    def truncate(self, pick, size_bytes):
        node = self.file(pick)
        if node is None or not node.inode.is_regular:
            return
        self.changed.truncate(node.ino, size_bytes)
        del node.data[size_bytes:]
        node.data.extend(bytes(size_bytes - len(node.data)))

    @rule(pick=PICK, name=st.sampled_from([b"user.a", b"user.ab"]), value=st.binary(max_size=3))
    def set_xattr(self, pick, name, value):
        node = self.file(pick) or self.folder(pick)
        self.expected(None, lambda t: t.set_xattr(node.ino, name, value))
        node.xattrs[name] = value

    @rule(pick=PICK, name=st.sampled_from([b"user.a", b"user.ab"]))
    def remove_xattr(self, pick, name):
        node = self.file(pick) or self.folder(pick)
        number = None if name in node.xattrs else errno.ENODATA
        self.expected(number, lambda t: t.remove_xattr(node.ino, name))
        node.xattrs.pop(name, None)

    @rule()
    def discard(self):
        if self.orphans:
            node = self.orphans.pop()
            self.expected(None, lambda t: t.discard(node.ino))

    @rule()
    def commit(self):
        self.changed.commit()

    # What must be true

    @invariant()
    def store_and_model_are_equal(self):
        with self.changed.read() as snapshot:
            assert_consistent(snapshot)
            nodes = [*self.nodes(), *self.orphans]
            assert {ino for ino, _ in snapshot.inodes()} == {node.ino for node in nodes}
            for node in nodes:
                entries = {name: child.ino for name, child in node.entries.items()}
                assert dict(snapshot.entries(node.ino)) == entries
                names = list(snapshot.xattr_names(node.ino))
                assert {name: snapshot.xattr(node.ino, name) for name in names} == node.xattrs
                inode = snapshot.inode(node.ino)
                assert inode is not None
                assert inode.mode == node.inode.mode or node is self.root
                if node.inode.is_regular:
                    assert inode.size_bytes == len(node.data)
                    data = snapshot.bytes_of(node.ino, offset=0, end=inode.size_bytes)
                    assert data == node.data

    def teardown(self):
        self.changed.commit()
        with self.store.read() as snapshot:
            assert_consistent(snapshot)
        self.store.close()
        self.temporary.cleanup()


TestFileTransactionModel = FileTransactionModel.TestCase
TestFileTransactionModel.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
