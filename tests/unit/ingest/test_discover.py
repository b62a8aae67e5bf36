"""Every file under a source is a candidate or refused by name; only hidden ones are passed over."""

import errno
import os

import pytest

from latentfs.errors import PathError
from latentfs.ingest.discover import Candidate, discover


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "latents"
    folder.mkdir()
    return folder


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def find(*sources, to="/"):
    """Return (candidates as (name, folder, stem), refused paths with their reasons)."""
    found = list(discover(list(sources), to=to))
    candidates = [c for c in found if isinstance(c, Candidate)]
    refused = {r[0]: r[1] for r in found if not isinstance(r, Candidate)}
    return [(c.path.name, c.folder, c.stem) for c in candidates], refused


def test_files_and_folders(folder):
    touch(folder, "b.latent", "a.safetensors", "notes.txt")
    assert find(folder, folder / "b.latent", to="/2026/art/") == (
        [
            ("a.safetensors", "/2026/art", "a"),
            ("b.latent", "/2026/art", "b"),
            ("notes.txt", "/2026/art", "notes"),
            ("b.latent", "/2026/art", "b"),
        ],
        {},
    )


@pytest.mark.parametrize(("to", "expected"), [("/", ""), ("/x", "/x"), ("//x/./", "/x")])
def test_the_structure_of_a_folder_is_kept(folder, to, expected):
    touch(folder, "z.latent", "one/a.latent", "one/two/a.latent", "three/c.d.latent")
    assert find(folder, to=to) == (
        [
            ("z.latent", expected or "/", "z"),
            ("a.latent", f"{expected}/one", "a"),
            ("a.latent", f"{expected}/one/two", "a"),
            ("c.d.latent", f"{expected}/three", "c.d"),
        ],
        {},
    )


def test_hidden_files_are_passed_over_unless_named(folder):
    touch(folder, ".hidden.latent", ".git/a.latent", "one/.b.latent")
    assert find(folder) == ([], {})
    assert find(folder / ".hidden.latent")[0] == [(".hidden.latent", "/", ".hidden")]
    assert find(folder / ".git")[0] == [("a.latent", "/", "a")]


@pytest.mark.parametrize("to", ["", "x", "./x", "/x/../y", "/\0", "/" + "x" * 256, "/\udcff"])
def test_targets_that_cannot_be(folder, to):
    with pytest.raises(PathError):
        find(folder, to=to)


def test_names_that_are_no_utf8_are_refused(folder):
    bad = os.fsdecode(b"bad\xff")
    touch(folder, "a.latent", bad + ".latent", f"{bad}/b.latent")
    candidates, refused = find(folder)
    assert candidates == [("a.latent", "/", "a")]
    assert set(refused) == {folder / (bad + ".latent"), folder / bad / "b.latent"}
    assert all("not valid UTF-8" in reason for reason in refused.values())
    for reason in refused.values():
        reason.encode()


def test_links(folder, tmp_path):
    touch(tmp_path, "elsewhere/a.latent", "elsewhere/sub/b.latent")
    (folder / "file.latent").symlink_to(tmp_path / "elsewhere" / "a.latent")
    (folder / "broken.latent").symlink_to("nowhere")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / ".hidden").symlink_to(folder)
    candidates, refused = find(folder)
    assert [name for name, *_ in candidates] == ["broken.latent", "file.latent"]
    assert set(refused) == {folder / "linked", folder / "loop"}
    assert all("symbolic link" in reason for reason in refused.values())
    # A link that the user names is followed.
    assert [name for name, *_ in find(folder / "linked")[0]] == ["a.latent", "b.latent"]


@pytest.mark.parametrize("unreadable", ["latents", "locked"])
def test_folders_that_cannot_be_read_are_refused(folder, monkeypatch, unreadable):
    touch(folder, "a.latent", "locked/b.latent", "open/c.latent")
    scandir = os.scandir

    def scan(path):
        if os.path.basename(path) == unreadable:
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    candidates, refused = find(folder)
    if unreadable == "latents":
        assert (candidates, list(refused)) == ([], [folder])
    else:
        assert [name for name, *_ in candidates] == ["a.latent", "c.latent"]
        assert list(refused) == [folder / "locked"]
    assert list(refused.values()) == ["can't be read: Permission denied"]


def test_names_that_were_too_long_stay_candidates(folder):
    # What is added to a name, such as the number in a batch, is only known later.
    touch(folder, "x" * 255)
    assert [stem for *_, stem in find(folder)[0]] == ["x" * 255]
