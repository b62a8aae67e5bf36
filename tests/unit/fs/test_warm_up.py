"""Which pictures renderers are warmed up with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from store_contents import RECIPE, add_picture, picture_latent

from latentfs.fs import warm_up
from latentfs.fs.warm_up import warm_up_jobs
from latentfs.latents.recipe import Recipe
from latentfs.store.store import Store

ROOT_INO = 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "art.lfs") as store:
        yield store


def recipe(**changes: Any) -> Recipe:
    return msgspec.structs.replace(RECIPE, **changes)


def add(store: Store, *recipes: Recipe) -> None:
    """Add a picture of each, in this order."""
    with store.write() as transaction:
        start = transaction.totals().files
        for number, each in enumerate(recipes, start):
            name = f"{number}".encode()
            latent = picture_latent(number, width=number + 1)
            add_picture(transaction, ROOT_INO, name, latent, recipe=each)


def test_the_newest_picture_of_each_way_of_decoding_newest_first(store: Store) -> None:
    narrow, batched = recipe(dtype="bfloat16"), recipe(batch=4)
    add(store, narrow, RECIPE, batched, narrow, RECIPE, RECIPE)
    jobs = warm_up_jobs(store)
    assert [job.recipe for job in jobs] == [RECIPE, narrow, batched]
    assert [job.shape[2] for job in jobs] == [6, 4, 3]
    assert not any(job.request.want_data for job in jobs)
    assert all(job.request.size_bytes == 1000 for job in jobs)


def test_recipes_of_one_model_are_one(store: Store) -> None:
    add(store, recipe(rounding="truncate"), RECIPE)
    assert [job.recipe for job in warm_up_jobs(store)] == [RECIPE]


def test_compiled_is_a_way_of_its_own(store: Store) -> None:
    add(store, recipe(compiled=True), RECIPE)
    assert [job.recipe.compiled for job in warm_up_jobs(store)] == [False, True]


def test_four_at_most_and_none_in_tiles(store: Store) -> None:
    batches = [recipe(batch=n) for n in range(1, 8)]
    add(store, *batches, recipe(tiled=True))
    assert [job.recipe.batch for job in warm_up_jobs(store)] == [7, 6, 5, 4]


def test_only_so_many_pictures_are_looked_at(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up, "_INODES_MAX", 3)
    add(store, recipe(batch=2), recipe(batch=3), RECIPE, RECIPE)
    assert [job.recipe.batch for job in warm_up_jobs(store)] == [1, 3]


def test_an_empty_store_has_none(store: Store) -> None:
    assert warm_up_jobs(store) == []


def test_what_can_not_be_rendered_is_left_out(store: Store) -> None:
    add(store, RECIPE, recipe(vae="w" * 32))  # which is not in the store
    assert [job.recipe for job in warm_up_jobs(store)] == [RECIPE]


def test_an_error_is_logged_and_harmless(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise OSError("the disk has gone")

    monkeypatch.setattr(store, "read", fail)
    assert warm_up_jobs(store) == []
    assert "the disk has gone" in caplog.text
