"""A hostile store can't have a renderer load what is outside of it."""

from pathlib import Path

import msgspec
import pytest
from store_contents import RECIPE, VAE, add_picture, picture_latent

from latentfs.errors import VaeCorruptError
from latentfs.render.jobs import job_for_inode
from latentfs.store import tables
from latentfs.store.store import Store


def test_a_vae_outside_of_the_store_is_not_asked_for(tmp_path: Path) -> None:
    outside = "../../outside"
    with Store.create(tmp_path / "art.lfs") as store:
        with store.write() as transaction:
            recipe = msgspec.structs.replace(RECIPE, vae=outside)
            transaction.put_vae("led", msgspec.structs.replace(VAE, id=outside))
            root = tables.ROOT_INO
            ino = add_picture(transaction, root, b"a.png", picture_latent(1), recipe=recipe)
        with store.read() as snapshot:
            inode = snapshot.inode(ino)
            assert inode is not None
            with pytest.raises(VaeCorruptError, match="is no name of a file"):
                job_for_inode(snapshot, store.path, inode)
