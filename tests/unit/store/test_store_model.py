"""Whatever is done to a store, it holds what plain dicts would hold, and fsck finds nothing."""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from store_contents import add_picture, picture_latent, problems

from latentfs.latents import payload as payload_codec
from latentfs.store import tables
from latentfs.store.records import Totals
from latentfs.store.store import Store

NAMES = st.sampled_from(["a", "b.png", "ä" * 127, "c d.png"])
# Sizes of latents for payloads of one row, of several rows, and of whole pages and rows.
LATENTS = [picture_latent(0), *(picture_latent(n, height=20, width=20 * n) for n in (1, 2, 3))]
PAYLOAD_BYTES = [len(payload_codec.encode(latent)) for latent in LATENTS]
BLOBS = st.sampled_from([b"prompt", b"workflow" * 1000, b""])
File = tuple[int, int, tuple[bytes, ...], bytes | None]


class StoreModel(RuleBasedStateMachine):
    """Folders are a dict of path to inode number; files of (folder path, name) to what they are."""

    folders = Bundle("folders")
    files = Bundle("files")

    def __init__(self):
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.path = Path(self.temporary.name) / "art.lfs"
        self.store = Store.create(self.path)
        self.inos: dict[str, int] = {"/": tables.ROOT_INO}
        self.pictures: dict[tuple[str, str], File] = {}
        self.steps = 0

    @rule(target=folders)
    def root(self):
        return "/"

    @rule(target=folders, parent=folders, name=NAMES)
    def make_directory(self, parent, name):
        path = f"{parent.rstrip('/')}/{name}"
        if (parent, name) in self.pictures:
            return multiple()
        with self.store.write() as transaction:
            ino = transaction.make_directories(path, uid=0, gid=0)
        assert self.inos.setdefault(path, ino) == ino
        return path

    @rule(
        target=files,
        folder=folders,
        name=NAMES,
        latent=st.sampled_from(range(len(LATENTS))),
        size_bytes=st.integers(1 << 17, 1 << 40),
        chunks=st.lists(BLOBS, max_size=2).map(tuple),
        metadata=st.none() | BLOBS,
    )
    def add_or_replace(self, folder, name, latent, size_bytes, chunks, metadata):
        if f"{folder.rstrip('/')}/{name}" in self.inos:
            return multiple()
        key = (folder, name)
        with self.store.write() as transaction:
            if key in self.pictures:
                transaction.remove_file_by_command(self.inos[folder], name.encode())
            add_picture(
                transaction,
                self.inos[folder],
                name.encode(),
                LATENTS[latent],
                size_bytes=size_bytes,
                chunks=chunks,
                metadata=metadata,
            )
        self.pictures[key] = (latent, size_bytes, chunks, metadata)
        return key

    @rule(file=consumes(files))
    def remove(self, file):
        if file in self.pictures:
            with self.store.write() as transaction:
                transaction.remove_file_by_command(self.inos[file[0]], file[1].encode())
            del self.pictures[file]

    @rule(folder=folders, name=NAMES)
    def abandon(self, folder, name):
        """A transaction that fails half-way changes nothing."""
        try:
            with self.store.write() as transaction:
                for old_folder, old_name in self.pictures:
                    transaction.remove_file_by_command(self.inos[old_folder], old_name.encode())
                transaction.make_directories("/abandoned/too", uid=0, gid=0)
                add_picture(transaction, self.inos["/"], b"abandoned.png", LATENTS[0])
                raise InterruptedError
        except InterruptedError:
            pass

    @rule(writable=st.booleans())
    def reopen(self, writable):
        self.store.close()
        with Store.open(self.path, writable=writable):
            pass
        self.store = Store.open(self.path, writable=True)

    @invariant()
    def holds_what_the_model_holds(self):
        self.steps += 1
        if self.steps % 4:
            return
        self.compare()

    def compare(self):
        latents = {latent for latent, *_ in self.pictures.values()}
        assert self.store.statistics().totals == Totals(
            files=len(self.pictures),
            directories=len(self.inos),
            size_bytes=sum(size_bytes for _, size_bytes, *_ in self.pictures.values()),
            payloads=len(latents),
            payload_bytes=sum(PAYLOAD_BYTES[latent] for latent in latents),
        )
        assert problems(self.store) == []
        with self.store.read() as snapshot:
            for path, ino in self.inos.items():
                names = {name.decode() for name, _ in snapshot.entries(ino)}
                assert names == self.names_in(path)
            for (folder, name), (latent, size_bytes, chunks, metadata) in self.pictures.items():
                found = snapshot.resolve(f"{folder}/{name}")
                assert found is not None
                content = found[1].content
                assert content is not None
                assert found[1].size_bytes == size_bytes
                payload = snapshot.payload(content.payload)
                assert payload is not None
                assert payload_codec.decode(payload).digest() == LATENTS[latent].digest()
                assert tuple(snapshot.blob(blob) for blob in content.chunks) == chunks
                kept = content.source.metadata
                assert (None if kept is None else snapshot.blob(kept)) == metadata

    def names_in(self, folder):
        prefix = folder.rstrip("/") + "/"
        below = {path.removeprefix(prefix) for path in self.inos if path.startswith(prefix)}
        folders = {name for name in below if name and "/" not in name}
        return folders | {name for in_folder, name in self.pictures if in_folder == folder}

    def teardown(self):
        self.compare()
        self.store.close()
        self.temporary.cleanup()


StoreModel.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestStoreModel = StoreModel.TestCase
