"""What a latent file says of itself goes into its picture, as far as that can hold it."""

from pathlib import Path

import msgspec
import pytest
from latent_files import latent_array, write_comfyui_latent
from store_contents import VAE

from latentfs.errors import RefusedLatentError
from latentfs.images import jpeg
from latentfs.images.framing import Framing
from latentfs.ingest.discover import Candidate
from latentfs.ingest.preparation import ImportOptions, Picture, Preparation

ENTRIES_MAX = 1000


def _prepared(folder: Path, framing: Framing, metadata: dict[str, str]) -> Picture:
    path = folder / "cat.latent"
    write_comfyui_latent(path, latent_array(1, 4, 2, 2), metadata=metadata)
    options = ImportOptions(
        vae="tiny",
        to="/",
        precision="source",
        framing=framing,
        rounding="round",
        on_conflict="skip",
    )
    (found,) = Preparation(options, VAE).prepare(Candidate(path, "/", "cat"))
    return found


def test_a_jpeg_takes_what_exif_has_tags_for_and_the_store_all(tmp_path: Path) -> None:
    metadata = {"prompt": "{}", "workflow": "[]", **{f"extra{n}": str(n) for n in range(6)}}
    found = _prepared(tmp_path, Framing.jpeg(quality=90), metadata)
    in_exif = {0x0110: "prompt:{}", 0x010F: "workflow:[]", 0x010E: "extra0:0", 0x010D: "extra1:1"}
    assert found.chunks == [jpeg.exif_segment(in_exif)]
    assert msgspec.json.decode(found.metadata or b"") == metadata


@pytest.mark.parametrize("framing", [Framing.png(), Framing.jpeg(quality=90)], ids=["png", "jpeg"])
def test_metadata_of_more_entries_than_a_request_can_hold_is_refused(
    tmp_path: Path, framing: Framing
) -> None:
    metadata = {f"key{n}": "" for n in range(ENTRIES_MAX)}
    assert _prepared(tmp_path, framing, metadata).chunks
    with pytest.raises(RefusedLatentError, match=f"its metadata has {ENTRIES_MAX + 1} entries"):
        _prepared(tmp_path, framing, {**metadata, "prompt": "{}"})
