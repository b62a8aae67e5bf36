"""Which pictures are measured."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from store_contents import add_picture, picture_latent

from latentfs.bench.sample import choose_sample
from latentfs.errors import PathError
from latentfs.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """/wide has 5 files of 4 latents of one shape, /tall 3 of another."""
    with Store.create(tmp_path / "art.lfs") as store:
        with store.write() as transaction:
            wide = transaction.make_directories("/a/wide", uid=0, gid=0)
            tall = transaction.make_directories("/tall", uid=0, gid=0)
            for number, seed in enumerate((0, 1, 2, 3, 3)):
                add_picture(transaction, wide, b"%d.png" % number, picture_latent(seed))
            for number in range(3):
                latent = picture_latent(9 + number, height=5)
                size_bytes = 1_000_000 + number * 40_000
                add_picture(transaction, tall, b"%d.png" % number, latent, size_bytes=size_bytes)
        yield store


def test_the_most_common_shape_is_chosen_and_each_latent_once(store: Store) -> None:
    sample = choose_sample(store, "/", files=64)
    assert sample.latent_shape == (4, 2, 3)
    assert sample.found == 4
    assert [picture.path for picture in sample.pictures] == [f"a/wide/{n}.png" for n in range(4)]


def test_fewer_pictures_are_spread_over_all(store: Store) -> None:
    chosen = choose_sample(store, "/", files=2).pictures
    assert [picture.path for picture in chosen] == ["a/wide/0.png", "a/wide/2.png"]


def test_a_path_limits_the_choice(store: Store) -> None:
    assert choose_sample(store, "/tall/", files=64).found == 3
    (single,) = choose_sample(store, "/tall/1.png", files=64).pictures
    assert single.path == "tall/1.png"


def test_the_cached_picture_is_the_one_closest_to_a_mebibyte(store: Store) -> None:
    assert choose_sample(store, "/", files=1).hit.path == "tall/1.png"


def test_a_path_without_pictures_is_refused(store: Store) -> None:
    with pytest.raises(PathError, match="has no /none"):
        choose_sample(store, "/none", files=1)
    with store.write() as transaction:
        transaction.make_directories("/empty", uid=0, gid=0)
    with pytest.raises(PathError, match="no pictures below /empty"):
        choose_sample(store, "/empty", files=1)
