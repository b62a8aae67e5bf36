"""import takes in what it can, names what it refuses, and does nothing twice."""

import hashlib
import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from e2e.support import (
    Batch,
    Result,
    call,
    files_in,
    import_all,
    picture,
    shown_error,
    spawn,
)
from latent_files import latent_array, write_comfyui_latent, write_diffusers_latent
from PIL import Image

from latentfs.images.framing import Framing
from latentfs.store.store import Store

LONG_NAME = "n" * 253 + ".l"
BAD_NAME = os.fsdecode(b"bad\xff.latent")
TEXT = {"prompt": '{"1": "caf\u00e9"}', "workflow": "{}"}


def imported(store: Path, *arguments: object, unprivileged: bool = False) -> Result:
    return spawn("import", store, *arguments, "--vae", "tiny", unprivileged=unprivileged)


def payload_bytes(store: Path) -> int:
    with Store.open(store) as opened:
        return opened.statistics().totals.payload_bytes


def write_good(folder: Path) -> set[str]:
    """Fill a folder; return the pictures that come of it."""
    (folder / "nested" / "deeper").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.latent").write_bytes(b"passed over")
    (folder / ".x.latent").write_bytes(b"passed over")
    batch = folder / "batch.latent"
    write_comfyui_latent(batch, latent_array(3, 4, 4, 4), metadata=TEXT)
    write_comfyui_latent(folder / "v1.0 caf\u00e9 -.latent", latent_array(1, 4, 4, 6))
    nested = folder / "nested" / "b.safetensors"
    write_diffusers_latent(nested, latent_array(1, 4, 6, 4), dtype="bfloat16")
    deeper = folder / "nested" / "deeper" / "no suffix"
    write_diffusers_latent(deeper, latent_array(1, 4, 4, 5), dtype="float16", name="latent")
    (folder / "link.latent").symlink_to(nested)
    return {
        "batch_1.png",
        "batch_2.png",
        "batch_3.png",
        "v1.0 caf\u00e9 -.png",
        "link.png",
        "nested/b.png",
        "nested/deeper/no suffix.png",
    }


def raw(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape: list[int], end: int, dtype: str = "F32") -> dict[str, object]:
    return {"latent_tensor": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


def write_bad(folder: Path) -> dict[str, str]:
    """Fill a folder with what can't be imported; return a part of each reason by shown name."""
    folder.mkdir()
    good = write_comfyui_latent(folder / "truncated.latent", latent_array(1, 4, 4, 4)).read_bytes()
    nan, infinite = latent_array(1, 4, 4, 4), latent_array(2, 4, 4, 4)
    nan[0, 1, 2, 3] = np.nan
    infinite[1, 0, 0, 0] = -np.inf
    write_comfyui_latent(folder / "nan.latent", nan)
    write_diffusers_latent(folder / "infinite.safetensors", infinite)
    write_comfyui_latent(folder / "channels.latent", latent_array(1, 16, 4, 4))
    write_comfyui_latent(folder / "video.latent", latent_array(1, 4, 2, 4, 4))
    write_comfyui_latent(folder / "flat.latent", latent_array(4, 4))
    write_comfyui_latent(folder / "wide.latent", latent_array(1, 4, 1, 8193))
    packed = {"height": "64", "width": "80"}
    write_diffusers_latent(folder / "packed.safetensors", latent_array(1, 16, 64), metadata=packed)
    write_diffusers_latent(folder / "sizeless.safetensors", latent_array(1, 16, 64))
    write_diffusers_latent(folder / "weights.safetensors", latent_array(3), name="conv.weight")
    write_diffusers_latent(folder / LONG_NAME, latent_array(1, 4, 4, 4))
    (folder / "dangling.latent").symlink_to(folder / "nothing")
    (folder / "cycle").symlink_to(folder, target_is_directory=True)
    os.mkfifo(folder / "fifo.latent")
    (folder / "locked.latent").write_bytes(good)
    (folder / "locked.latent").chmod(0)
    (folder / "locked").mkdir(mode=0)
    huge = raw(tensor([1, 4, 1 << 20, 1 << 20], 1 << 44))
    for name, data in {
        "truncated.latent": good[:-100],
        "lying.latent": raw(tensor([1, 4, 4, 4], 1000), bytes(1000)),
        "header.latent": struct.pack("<Q", 1 << 40) + good[8:],
        "huge.latent": huge,
        "zero.latent": raw(tensor([1, 4, 0, 4], 0)),
        "nobody.latent": raw(tensor([0, 4, 4, 4], 0)),
        "double.latent": raw(tensor([1, 4, 1, 1], 32, "F64"), bytes(32)),
        "pickle.latent": pickle.dumps({"latent_tensor": [1.0]}),
        "archive.latent": b"PK\x03\x04archive/data.pkl",
        "empty.latent": b"",
        "notes.txt": b"no latent at all",
        "picture.png": b"\x89PNG\r\n\x1a\n" + bytes(20),
        BAD_NAME: good,
        "two\nlines\x1b[31m.latent": b"",
    }.items():
        (folder / name).write_bytes(data)
    return {
        "truncated.latent": "truncated",
        "lying.latent": "aren't the size of F32",
        "header.latent": "header would have 1099511627776 bytes",
        "huge.latent": "truncated: it has",
        "zero.latent": "has no numbers",
        "nobody.latent": "a batch of 0",
        "double.latent": "F64",
        "pickle.latent": "pickle files are never read",
        "archive.latent": "pickle files are never read",
        "empty.latent": "the file is empty",
        "notes.txt": "not a safetensors file",
        "picture.png": "a PNG picture",
        "nan.latent": "NaN or infinite",
        "infinite.safetensors": "latent 2 of 2 has NaN or infinite",
        "channels.latent": "16 channels, VAE 'tiny' takes 4",
        "video.latent": "video latents aren't taken",
        "flat.latent": "2 dimensions",
        "wide.latent": "8193 latent cells",
        "packed.safetensors": "4x5 tokens",
        "sizeless.safetensors": "height",
        "weights.safetensors": "no latents in it",
        LONG_NAME: "at most 255",
        "dangling.latent": "can't be opened: No such file",
        "cycle": "symbolic link to a folder",
        "fifo.latent": "not a regular file",
        "locked.latent": "can't be opened: Permission denied",
        "locked": "can't be read: Permission denied",
        "bad\\udcff.latent": "not valid UTF-8",
        "two\\nlines\\x1b[31m.latent": "the file is empty",
    }


def test_the_good_and_the_bad(store, tmp_path):
    expected = write_good(tmp_path / "good")
    reasons = write_bad(tmp_path / "bad")
    sources = (tmp_path / "bad", tmp_path / "good", tmp_path / "nothing")
    first = imported(store, *sources, "--to", "/2026/new", unprivileged=True)
    assert first.status == 1
    refused = first.refused()
    assert len(first.err.splitlines()) == len(refused) == len(reasons) + 1, first.err
    assert "can't be opened: No such file" in refused.pop("nothing")
    assert set(refused) == set(reasons)
    for name, reason in reasons.items():
        assert reason in refused[name], (name, refused[name])
        assert str(tmp_path) not in refused[name], "the file is named once"
    assert first.out.startswith(f"{len(expected)} added (")
    assert f"0 already there, {len(reasons) + 1} refused" in first.out
    assert set(files_in(store, "/2026/new")) == {f"/2026/new/{name}" for name in expected}

    # Again: nothing is added, and of the good ones alone nothing is wrong.
    before = files_in(store)
    assert imported(store, *sources, "--to", "/2026/new", unprivileged=True).status == 1
    again = imported(store, tmp_path / "good", "--to", "/2026/new/").checked()
    assert again.out.startswith(f"0 added (0 B of payloads), {len(expected)} already there")
    assert again.err == ""
    assert files_in(store) == before
    assert "no problems" in call("fsck", store).checked().out


def test_names_that_exist(store, tmp_path):
    for folder, cells in (("one", 4), ("two", 5)):
        (tmp_path / folder).mkdir()
        write_comfyui_latent(tmp_path / folder / "a.latent", latent_array(1, 4, 4, cells))
    one, two = tmp_path / "one", tmp_path / "two"

    def widths() -> dict[str, int]:
        contents = {path: inode.content for path, inode in files_in(store).items()}
        return {path: content.width for path, content in contents.items() if content is not None}

    assert imported(store, one).checked().out.startswith("1 added")
    assert imported(store, one, "--on-conflict", "replace").checked().out.startswith("0 added")

    skipped = imported(store, two)
    assert skipped.status == 1
    assert "/a.png exists with another picture" in skipped.refused()["a.latent"]
    assert widths() == {"/a.png": 32}

    assert imported(store, two, "--on-conflict", "rename").checked().out.startswith("1 added")
    assert imported(store, two, "--on-conflict", "rename").checked().out.startswith("0 added")
    assert widths() == {"/a.png": 32, "/a (1).png": 40}

    replaced = imported(store, two, "--on-conflict", "replace").checked()
    assert replaced.out.startswith("1 added")
    assert imported(store, two, "--on-conflict", "replace").checked().out.startswith("0 added")
    assert widths() == {"/a.png": 40, "/a (1).png": 40}
    with Store.open(store) as opened:
        assert opened.statistics().totals.payloads == 1
    assert "no problems" in call("fsck", store).checked().out

    to_file = imported(store, one, "--to", "/a.png/folder")
    assert to_file.status == 1
    assert "is a file, not a folder" in to_file.refused()["a.latent"]


def test_precision_and_jpeg(store, tmp_path):
    source = tmp_path / "a.latent"
    write_comfyui_latent(source, latent_array(1, 4, 24, 16), metadata=TEXT)
    import_all(store, [Batch([source], "tiny", "/source")])
    sizes = [payload_bytes(store)]
    for precision, *options in (
        ("float16",),
        ("bfloat16", "--format", "jpeg", "--quality", "40"),
    ):
        arguments = (source, "--precision", precision, "--to", f"/{precision}", *options)
        assert "narrowing cost: PSNR" in imported(store, *arguments).checked().out
        sizes.append(payload_bytes(store) - sum(sizes))
    assert sizes[1] < 0.55 * sizes[0]
    assert sizes[2] < sizes[1]

    spawn("export", store, "/", tmp_path / "out").checked()
    (jpeg,) = (tmp_path / "out" / "bfloat16").iterdir()
    found = picture(jpeg)
    assert (jpeg.name, found.format, found.pixels.shape) == ("a.jpg", "JPEG", (192, 128, 3))
    with Image.open(jpeg) as image:
        image.save(tmp_path / "other.jpg", quality=40)
        quantization = image.quantization  # type: ignore[attr-defined]
        assert image.getexif()[0x0110].encode("latin-1").decode() == f"prompt:{TEXT['prompt']}"
        assert image.getexif()[0x010F] == "workflow:{}"
    with Image.open(tmp_path / "other.jpg") as image:
        assert image.quantization == quantization  # type: ignore[attr-defined]
    exact = picture(tmp_path / "out" / "source" / "a.png").pixels.astype(int)
    narrowed = picture(tmp_path / "out" / "float16" / "a.png").pixels.astype(int)
    assert np.abs(narrowed - exact).max() == 1


def test_png_levels_differ_in_bytes_and_not_in_pixels(store, tmp_path):
    # Coarse numbers make smooth pictures, which have something to gain.
    coarse = latent_array(1, 4, 4, 4).repeat(6, axis=2).repeat(6, axis=3)
    source = write_comfyui_latent(tmp_path / "a.latent", coarse)
    import_all(store, [Batch([source], "tiny", "/fast")])
    small = ("--png-level", "small", "--to")
    assert imported(store, source, *small, "/small").checked().out.startswith("1 added")
    other = imported(store, source, *small, "/fast")
    assert "exists with another picture" in other.refused()["a.latent"]

    fast_inode, small_inode = (files_in(store)[f"/{level}/a.png"] for level in ("fast", "small"))
    assert fast_inode.content is not None
    assert small_inode.content is not None
    assert fast_inode.content.framing == Framing.png(level="fast")
    assert small_inode.content.framing == Framing.png(level="small")
    assert small_inode.size_bytes < fast_inode.size_bytes

    assert spawn("export", store, "/", tmp_path / "out").checked().err == ""
    files = [tmp_path / "out" / level / "a.png" for level in ("fast", "small")]
    assert [file.stat().st_size for file in files] == [
        fast_inode.size_bytes,
        small_inode.size_bytes,
    ]
    rendition = hashlib.sha256(files[1].read_bytes()).digest()
    assert rendition == small_inode.content.rendition_sha256
    assert np.array_equal(picture(files[0]).pixels, picture(files[1]).pixels)


def test_what_does_not_fit_float16_or_jpeg(store, tmp_path):
    large, wide = tmp_path / "large.latent", tmp_path / "wide.latent"
    write_comfyui_latent(large, latent_array(1, 4, 4, 4) * np.float32(1e6))
    write_comfyui_latent(wide, latent_array(1, 4, 1, 8190))
    result = imported(store, large, "--precision", "float16")
    assert "doesn't fit float16" in result.refused()["large.latent"]
    result = imported(store, wide, "--format", "jpeg")
    assert "JPEG" in result.refused()["wide.latent"]
    assert len(result.err.splitlines()) == 1
    assert files_in(store) == {}


def test_wrong_use(store, tmp_path):
    source = write_comfyui_latent(tmp_path / "a.latent", latent_array(1, 4, 4, 4))
    unknown = spawn("import", store, source, "--vae", "sdxl")
    assert unknown.status == 1
    assert unknown.err == (
        "latentfs: the store has no VAE 'sdxl' (it has: tiny); add it with latentfs vae add\n"
    )
    assert "must start with '/'" in shown_error(
        call("import", store, source, "--vae", "tiny", "--to", "2026")
    )
    assert "'..'" in shown_error(call("import", store, source, "--vae", "tiny", "--to", "/a/../b"))
    for wrong in (
        (source,),
        ("--vae", "tiny"),
        (source, "--vae", "tiny", "--format", "webp"),
        (source, "--vae", "tiny", "--quality", "0"),
        (source, "--vae", "tiny", "--png-level", "smallest"),
        (source, "--vae", "tiny", "--on-conflict", "ask"),
        (source, "--vae", "tiny", "--precision", "int8"),
    ):
        assert call("import", store, *wrong).status == 2
    for level in ("fast", "small"):
        options = ("--vae", "tiny", "--format", "jpeg", "--png-level", level)
        result = call("import", store, source, *options)
        assert result.status == 2
        assert "--png-level is of PNG files only" in result.err.splitlines()[-1]
    result = call("import", store, source, "--vae", "tiny", "--quality", "90")
    assert result.status == 2
    assert "--quality is of JPEG files only" in result.err.splitlines()[-1]
    assert files_in(store) == {}


@pytest.mark.parametrize("count", [1, 3])
def test_a_store_that_may_not_be_written(store, tmp_path, count):
    sources = [
        write_comfyui_latent(tmp_path / f"{index}.latent", latent_array(1, 4, 4, 4))
        for index in range(count)
    ]
    (store / "lmdb" / "data.mdb").chmod(0o444)
    message = shown_error(imported(store, *sources, unprivileged=True))
    assert str(store) in message
