"""The same picture is never added twice, and another of its name is never lost unasked."""

import msgspec
import pytest
from store_contents import RECIPE, add_picture, picture_latent

from latentfs.errors import PathError
from latentfs.images.framing import Framing
from latentfs.ingest.conflicts import Conflict, Identity, resolve
from latentfs.store import tables
from latentfs.store.store import Store

ROOT = tables.ROOT_INO
LATENT = picture_latent(1)
CHUNKS = [b"prompt", b"workflow"]


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "art.lfs") as store:
        yield store


def add(store, name, latent=LATENT, chunks=CHUNKS):
    with store.write() as transaction:
        add_picture(transaction, ROOT, name, latent, chunks=tuple(chunks))


def identity(latent=LATENT, recipe=RECIPE, framing=None, chunks=CHUNKS):
    return Identity.of(latent, recipe, framing or Framing.png(), list(chunks))


def decide(store, name, policy, wanted=None, folder_ino=ROOT):
    with store.read() as snapshot:
        return resolve(snapshot, folder_ino, name, wanted or identity(), policy)


OTHERS = {
    "latent": identity(picture_latent(2)),
    "shape": identity(picture_latent(1, height=3, width=2)),
    "recipe": identity(recipe=msgspec.structs.replace(RECIPE, rounding="truncate")),
    "format": identity(framing=Framing.jpeg(quality=90)),
    "metadata": identity(chunks=[b"prompt"]),
    "order of metadata": identity(chunks=CHUNKS[::-1]),
}


@pytest.mark.parametrize("policy", ["skip", "rename", "replace"])
def test_a_free_name_is_taken(store, policy):
    assert decide(store, b"a.png", policy) == Conflict("add", b"a.png")


@pytest.mark.parametrize("policy", ["skip", "rename", "replace"])
def test_the_same_picture_is_there_already(store, policy):
    add(store, b"a.png")
    assert decide(store, b"a.png", policy) == Conflict("same", b"a.png")


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("skip", Conflict("refuse", b"a.png")),
        ("replace", Conflict("replace", b"a.png")),
        ("rename", Conflict("add", b"a (1).png")),
    ],
)
def test_another_picture(store, other, policy, expected):
    add(store, b"a.png")
    assert decide(store, b"a.png", policy, OTHERS[other]) == expected


def test_renaming_goes_on_until_a_name_is_free_or_has_the_picture(store):
    for number, name in enumerate([b"a.png", b"a (1).png", b"a (2).png"]):
        add(store, name, picture_latent(10 + number))
    assert decide(store, b"a.png", "rename") == Conflict("add", b"a (3).png")
    add(store, b"a (3).png")
    assert decide(store, b"a.png", "rename") == Conflict("same", b"a (3).png")
    assert decide(store, b"a.png", "skip") == Conflict("refuse", b"a.png")


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        (b"a.b.png", b"a.b (1).png"),
        (b"a (1).png", b"a (1) (1).png"),
        ("ä.png".encode(), "ä (1).png".encode()),
        (b".png", b" (1).png"),
    ],
)
def test_numbers_go_before_the_suffix(store, name, renamed):
    add(store, name, picture_latent(2))
    assert decide(store, name, "rename") == Conflict("add", renamed)


def test_a_name_that_cannot_get_longer(store):
    name = b"x" * 251 + b".png"
    add(store, name, picture_latent(2))
    with pytest.raises(PathError, match="259 bytes long"):
        decide(store, name, "rename")
    assert decide(store, name, "replace") == Conflict("replace", name)


@pytest.mark.parametrize("policy", ["skip", "rename", "replace"])
def test_a_folder_of_that_name_stays(store, policy):
    with store.write() as transaction:
        transaction.make_directories("/a.png", uid=0, gid=0)
    with pytest.raises(PathError, match="a folder has that name"):
        decide(store, b"a.png", policy)


def test_other_folders_do_not_matter(store):
    add(store, b"a.png", picture_latent(2))
    with store.write() as transaction:
        folder = transaction.make_directories("/folder", uid=0, gid=0)
    assert decide(store, b"a.png", "skip", folder_ino=folder) == Conflict("add", b"a.png")
