"""A VAE that can't be recorded leaves no copy behind."""

import contextlib

import msgspec
import pytest
from store_contents import VAE

from latentfs.errors import StoreFullError, VaeError
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
    assert copies(store) == []
