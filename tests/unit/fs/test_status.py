"""What is told of a store whose daemon does not answer, and of a VAE that has two names."""

from pathlib import Path

import msgspec
from click.testing import CliRunner
from store_contents import RECIPE, VAE, add_picture, picture_latent

from latentfs.cli import _latentfs
from latentfs.fs import attributes
from latentfs.ingest.vaes import _record
from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.store import Store


def test_a_daemon_that_does_not_answer_is_no_missing_mount(tmp_path: Path) -> None:
    path = tmp_path / "art.lfs"
    Store.create(path).close()
    assert "not mounted" in CliRunner().invoke(_latentfs, ["status", str(path)]).output
    lock = DaemonLock(path)
    lock.acquire(mountpoint=tmp_path / "mnt")
    assert "does not answer" in CliRunner().invoke(_latentfs, ["status", str(path)]).output
    lock.release()


def test_a_vae_of_two_names_is_called_by_the_one_with_the_recipes_dtype(tmp_path: Path) -> None:
    with Store.create(tmp_path / "art.lfs") as store:
        half = msgspec.structs.replace(VAE, dtype="bfloat16", cpu_threads=7)
        _record(store, "tiny", VAE)
        _record(store, "a-half", half)
        with store.write() as transaction:
            transaction.put_recipe(RECIPE)
            add_picture(transaction, 1, b"a.png", picture_latent(1))
        with store.read() as snapshot:
            found = snapshot.resolve("/a.png")
            assert found is not None
            assert attributes.xattr(snapshot, found[1], b"user.latentfs.vae") == b"tiny"
            # Part of the recipe: the same on every machine that adds the VAE again.
            assert snapshot.vae("a-half").cpu_threads == VAE.cpu_threads
