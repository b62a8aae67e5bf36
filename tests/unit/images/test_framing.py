import msgspec
import numpy as np
import pytest
import sample_pictures as samples
from hypothesis import given
from hypothesis import strategies as st

from latentfs.errors import FramingError, InvalidArgumentError
from latentfs.images import drift, framing, png
from latentfs.images.framing import Framing
from latentfs.images.pixels import Pixels

FRAMINGS = [Framing.png(), Framing.png(level="small"), Framing.jpeg(quality=90)]


def _metadata(chosen: Framing) -> list[bytes]:
    if chosen.format == "png":
        return [png.text_chunk("prompt", "a cat")]
    return [b"\xff\xfe\x00\x07a cat"]


def _size_bytes(pixels: Pixels, chosen: Framing) -> int:
    encoded = framing.encode_picture(pixels, chosen, metadata=_metadata(chosen))
    return framing.framed_size_bytes(len(encoded))


def _fitted(pixels: Pixels, chosen: Framing, size_bytes: int) -> framing.Fitted:
    return framing.encode_to_size(pixels, chosen, metadata=_metadata(chosen), size_bytes=size_bytes)


def test_framings() -> None:
    assert (
        Framing.png() == Framing.png(level="fast") == Framing("png", None, "png-up-igzip1-strips4")
    )
    assert Framing.png(level="small") == Framing("png", None, "png-best-igzip3")
    assert Framing.jpeg(quality=75) == Framing("jpeg", 75, "jpeg-turbo-444")
    assert [chosen.suffix for chosen in FRAMINGS] == [".png", ".png", ".jpg"]


@pytest.mark.parametrize("chosen", FRAMINGS)
def test_framings_survive_msgspec(chosen: Framing) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(chosen), type=Framing) == chosen


def test_impossible_framings_are_refused() -> None:
    for quality in (0, 101):
        with pytest.raises(InvalidArgumentError):
            Framing.jpeg(quality=quality)
    with pytest.raises(InvalidArgumentError):
        Framing("jpeg", None, "x")
    with pytest.raises(InvalidArgumentError):
        Framing("png", 90, "x")


@given(st.integers(1, 1 << 40))
def test_slack_is_small_and_never_in_the_way(encoded_bytes: int) -> None:
    slack = framing.framed_size_bytes(encoded_bytes) - encoded_bytes
    assert 64 <= slack <= 64 + encoded_bytes / 100


@pytest.mark.parametrize("chosen", FRAMINGS)
@pytest.mark.parametrize("name", samples.SYNTHETIC)
def test_an_unchanged_picture_fits_at_once(name: str, chosen: Framing) -> None:
    pixels = samples.SYNTHETIC[name]
    size_bytes = _size_bytes(pixels, chosen)
    fitted = _fitted(pixels, chosen, size_bytes)
    assert fitted.retries == 0
    assert len(fitted.data) == size_bytes
    first = framing.encode_picture(pixels, chosen, metadata=_metadata(chosen))
    assert np.array_equal(samples.decoded(fitted.data), samples.decoded(first))


@pytest.mark.parametrize("chosen", FRAMINGS)
@pytest.mark.parametrize("setting", ["noise:0.001", "noise:0.01", "flat:0.1", "flat:1"])
def test_drift_keeps_the_size(
    chosen: Framing, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = samples.smooth(200, 160)
    size_bytes = _size_bytes(pixels, chosen)
    monkeypatch.setenv(drift.ENVIRONMENT_VARIABLE, setting)
    fitted = _fitted(pixels, chosen, size_bytes)
    assert len(fitted.data) == size_bytes
    assert samples.decoded(fitted.data).shape == pixels.shape
    if chosen.format == "png":
        assert np.array_equal(samples.decoded(fitted.data), drift.drifted(pixels))


@samples.real
@pytest.mark.parametrize("chosen", FRAMINGS)
@pytest.mark.parametrize("folder", samples.REAL_NAMES)
def test_the_drift_of_other_devices_fits_at_once(
    folder: str, chosen: Framing, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = samples.real_picture(folder)
    size_bytes = _size_bytes(pixels, chosen)
    monkeypatch.setenv(drift.ENVIRONMENT_VARIABLE, "noise:0.001")
    fitted = _fitted(pixels, chosen, size_bytes)
    assert (len(fitted.data), fitted.retries) == (size_bytes, 0)


@samples.real
@pytest.mark.parametrize("chosen", [Framing.png(), Framing.png(level="small")])
@pytest.mark.parametrize("folder", samples.REAL_NAMES)
def test_noise_of_the_same_strength_in_both_renders_fits_at_once(
    folder: str, chosen: Framing, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = samples.real_picture(folder)
    monkeypatch.setenv(drift.ENVIRONMENT_VARIABLE, "noise:0.48")
    first, later = drift.drifted(clean), drift.drifted(clean[::-1].copy())[::-1].copy()
    monkeypatch.delenv(drift.ENVIRONMENT_VARIABLE)
    assert not np.array_equal(first, later)
    size_bytes = _size_bytes(first, chosen)
    assert _fitted(later, chosen, size_bytes).retries == 0


@pytest.mark.parametrize("chosen", FRAMINGS)
def test_harder_encodings_are_tried_one_by_one(chosen: Framing) -> None:
    """Sizes that only just hold each of the encodings need as many retries as its place."""
    pixels = samples.smooth(200, 160)
    lengths = [len(data) for data in framing._encodings(pixels, chosen, _metadata(chosen), ())]
    assert lengths == sorted(set(lengths), reverse=True)
    for retries, length in enumerate(lengths):
        fitted = _fitted(pixels, chosen, length)
        assert (fitted.retries, len(fitted.data)) == (retries, length)
        samples.decoded(fitted.data)


def test_a_gap_too_small_for_a_chunk_is_closed_by_a_harder_encoding() -> None:
    pixels = samples.smooth(200, 160)
    size_bytes = len(framing.encode_picture(pixels, Framing.png())) + 5
    fitted = framing.encode_to_size(pixels, Framing.png(), size_bytes=size_bytes)
    assert (fitted.retries, len(fitted.data)) == (1, size_bytes)


@pytest.mark.parametrize("chosen", FRAMINGS)
def test_what_can_not_fit_raises_with_both_sizes(chosen: Framing) -> None:
    pixels = samples.smooth(200, 160)
    least = min(len(data) for data in framing._encodings(pixels, chosen, _metadata(chosen), ()))
    with pytest.raises(FramingError, match=rf"{least} bytes.*{least - 1} "):
        _fitted(pixels, chosen, least - 1)


def test_drift_is_off_by_default_and_only_in_encode_to_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = samples.smooth(20, 20)
    assert drift.drifted(pixels) is pixels
    before = framing.encode_picture(pixels, Framing.png())
    monkeypatch.setenv(drift.ENVIRONMENT_VARIABLE, "noise:1")
    assert framing.encode_picture(pixels, Framing.png()) == before


def test_noise_moves_that_share_by_one_level(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = samples.noise(100, 100)
    monkeypatch.setenv(drift.ENVIRONMENT_VARIABLE, "noise:0.1")
    moved = np.abs(drift.drifted(pixels).astype(int) - pixels)
    assert moved.max() == 1
    assert 0.09 < moved.mean() < 0.11
    assert np.array_equal(drift.drifted(pixels), drift.drifted(pixels))
    monkeypatch.setenv(drift.ENVIRONMENT_VARIABLE, "noise:1")
    assert (np.abs(drift.drifted(pixels).astype(int) - pixels) == 1).all()


def test_flat_repeats_rows_and_encodes_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = samples.smooth(100, 100)
    monkeypatch.setenv(drift.ENVIRONMENT_VARIABLE, "flat:0.25")
    flattened = drift.drifted(pixels)
    assert np.array_equal(flattened[:75], pixels[:75])
    assert (flattened[75:] == pixels[74]).all()
    for chosen in FRAMINGS:
        shorter = framing.encode_picture(flattened, chosen)
        assert len(shorter) < len(framing.encode_picture(pixels, chosen))


@pytest.mark.parametrize(
    "setting", ["", "noise", "noise:", "noise:x", "noise:2", "flat:-0.1", "flat:nan", "more:0.1"]
)
def test_other_settings_are_refused(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(drift.ENVIRONMENT_VARIABLE, setting)
    with pytest.raises(InvalidArgumentError, match="LATENTFS_TEST_DRIFT"):
        framing.encode_to_size(samples.flat(4, 4), Framing.png(), size_bytes=1000)


@pytest.mark.parametrize("chosen", FRAMINGS)
def test_the_first_rendition_is_what_later_ones_are_framed_to(chosen: Framing) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    first = framing.frame_first(pixels, chosen)
    encoded = framing.encode_picture(pixels, chosen)
    assert len(first.data) == framing.framed_size_bytes(len(encoded))
    later = framing.encode_to_size(pixels, chosen, size_bytes=len(first.data))
    assert (later.data, later.retries, first.retries) == (first.data, 0, 0)
    assert first.pad_s > 0
    assert later.pad_s > 0


@pytest.mark.parametrize(
    ("encoder", "strips_max", "efforts"),
    [
        ("png-up-igzip1-strips4", 4, list(png.Effort)),
        ("png-up-igzip1", 1, list(png.Effort)),
        ("png-best-igzip3", 1, [png.Effort.SMALL, png.Effort.SMALLEST]),
        ("png-of-another-version", 4, list(png.Effort)),
    ],
)
def test_a_png_begins_with_the_encoder_it_names(
    encoder: str, strips_max: int, efforts: list[png.Effort]
) -> None:
    pixels = samples.smooth(400, 360)
    chosen = Framing("png", None, encoder)
    files = [png.encode(pixels, effort=effort, strips_max=strips_max) for effort in efforts]
    assert framing.encode_picture(pixels, chosen) == files[0]
    assert framing.frame_first(pixels, chosen).data == png.pad(
        files[0], framing.framed_size_bytes(len(files[0]))
    )
    for retries, data in enumerate(files):
        fitted = framing.encode_to_size(pixels, chosen, size_bytes=len(data))
        assert (fitted.data, fitted.retries) == (data, retries)
