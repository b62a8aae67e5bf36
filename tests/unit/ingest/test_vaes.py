"""A VAE that can't be recorded leaves no copy behind, and takes none that another has recorded."""

import contextlib
import threading

import msgspec
import pytest
from store_contents import VAE

from latentfs.errors import StoreFullError, VaeError
from latentfs.ingest import vaes
from latentfs.ingest.vaes import add_vae
from latentfs.store.store import Store


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "art.lfs") as store:
        yield store


def copies(store):
    return [path.name for path in (store.path / "vae").iterdir()]


def test_a_name_that_another_has(store, tiny_vae_folder):
    with store.write() as transaction:
        transaction.put_vae("tiny", VAE)
    with pytest.raises(VaeError, match="another VAE is called 'tiny'"):
        add_vae(store, "tiny", str(tiny_vae_folder), dtype="float32")
    assert copies(store) == []


def test_a_disk_that_is_full_after_the_copy(store, tiny_vae_folder, monkeypatch):
    added = add_vae(store, "one", str(tiny_vae_folder), dtype="float32")
    assert copies(store) == [added.record.id]
    write = store.write
    failures = [StoreFullError("no space left")]

    @contextlib.contextmanager
    def fail_once():
        with write() as transaction:
            yield transaction
            if failures:
                raise failures.pop()

    monkeypatch.setattr(store, "write", fail_once)
    with pytest.raises(StoreFullError):
        add_vae(store, "two", str(tiny_vae_folder), dtype="float32")
    assert copies(store) == [added.record.id]  # which is still that of "one"

    with write() as transaction:
        other = msgspec.structs.replace(added.record, id=VAE.id)
        transaction.put_vae("one", other)
    failures.append(StoreFullError("no space left"))
    with pytest.raises(StoreFullError):
        add_vae(store, "two", str(tiny_vae_folder), dtype="float32")
    assert copies(store) == [added.record.id]  # no record names it, but pictures may need it

    (store.path / "vae" / added.record.id).rename(store.path / "elsewhere")
    failures.append(StoreFullError("no space left"))
    with pytest.raises(StoreFullError):
        add_vae(store, "two", str(tiny_vae_folder), dtype="float32")
    assert copies(store) == []


def test_one_that_is_refused_leaves_the_copy_of_another_at_the_same_time(
    store, tiny_vae_folder, monkeypatch
):
    """The copy of both is there when the one comes to record it, if the other lets it."""
    with store.write() as transaction:
        transaction.put_vae("taken", VAE)
    copied, refused = threading.Event(), threading.Event()
    record_now = vaes._record

    def record(store, name, record):
        if name == "taken":
            copied.wait(0.5)
        else:
            copied.set()
            refused.wait(0.5)
        record_now(store, name, record)

    def add_taken():
        with pytest.raises(VaeError, match="another VAE is called 'taken'"):
            add_vae(store, "taken", str(tiny_vae_folder), dtype="float32")
        refused.set()

    monkeypatch.setattr(vaes, "_record", record)
    other = threading.Thread(target=add_taken)
    other.start()
    added = add_vae(store, "free", str(tiny_vae_folder), dtype="float32")
    other.join()
    assert copies(store) == [added.record.id]
