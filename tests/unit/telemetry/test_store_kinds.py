"""What the pages of a store hold, found without looking through them."""

from __future__ import annotations

import os
from pathlib import Path

from store_contents import FILE_MODE, add_picture, picture_latent

from latentfs.store.file_transaction import FileTransaction
from latentfs.store.records import Inode
from latentfs.store.store import Store
from latentfs.store.tables import PAGE_BYTES, ROOT_INO
from latentfs.telemetry.families import store_families


def kinds(store: Store) -> dict[str, float]:
    live, space = _Any(), _Any()
    families = store_families(store.statistics(), live, space)  # type: ignore[arg-type]
    family = next(family for family in families if family.name == "latentfs_store_bytes")
    return {sample.labels["kind"]: sample.value for sample in family.samples}


class _Any:
    """Has every figure."""

    def __getattr__(self, name: str) -> int:
        return 0


def test_bytes_are_counted_as_what_they_are_and_make_up_the_file(tmp_path: Path) -> None:
    with Store.create(tmp_path / "art.lfs") as store:
        before = kinds(store)
        with store.write() as transaction:
            add_picture(
                transaction,
                ROOT_INO,
                b"a.png",
                picture_latent(1, height=100, width=100),
                chunks=(os.urandom(50_000),),
            )
        with store.write_rows() as rows:
            files = FileTransaction(rows)
            ino = files.make(ROOT_INO, b"notes", Inode(FILE_MODE, 0, 0, 1, 0, 0, 0))
            files.write_bytes(ino, files.require(ino), offset=0, data=os.urandom(300_000))
        after = kinds(store)
        assert sum(after.values()) == store.used_bytes() + store.free_bytes()
    grown = {kind: after[kind] - before[kind] for kind in after}
    assert grown["payloads"] >= 60_000
    assert 50_000 <= grown["metadata"] <= 50_000 + 4 * PAGE_BYTES
    assert 300_000 <= grown["bytes"] <= 330_000
