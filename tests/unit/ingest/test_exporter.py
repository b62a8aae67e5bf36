"""A hostile store can't lead an export outside of its destination."""

from pathlib import Path

import pytest
from store_contents import add_picture, picture_latent

from latentfs.errors import PathError
from latentfs.ingest.exporter import export_plan
from latentfs.store.store import Store


@pytest.mark.parametrize("name", [b"../../escaped.png", b"/etc/escaped.png", b".."])
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: bytes) -> None:
    with Store.create(tmp_path / "art.lfs") as store:
        with store.write() as transaction:
            folder = transaction.make_directories("/pictures", uid=0, gid=0)
            add_picture(transaction, folder, name, picture_latent(1))
        with pytest.raises(PathError):
            export_plan(store, "/pictures", tmp_path / "out")
