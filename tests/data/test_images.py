"""Images of every kind as RGB; tar shards as data sets."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from hybridhash.data import TarImages, read_image, to_rgb
from tests.data._images import bomb, encoded, photo, rgb_png, write_tar

GREY = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 0..255 of 257ths


def with_a_flipped_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("image", "format"),
    [
        (photo().convert("CMYK"), "jpeg"),
        (photo().convert("CMYK"), "tiff"),
        (photo().convert("L"), "png"),
        (photo().convert("1"), "png"),
        (photo().convert("P"), "gif"),
        (photo().convert("RGBA"), "png"),
        (photo().convert("LA"), "png"),
        (photo().convert("YCbCr"), "jpeg"),
    ],
    ids=lambda value: getattr(value, "mode", value),
)
def test_8_bit_modes_are_what_pil_converts_them_to(image: Image.Image, format: str) -> None:
    content = encoded(image, format)
    got = read_image(content)
    assert got.mode == "RGB"
    want = Image.open(io.BytesIO(content)).convert("RGB")
    assert np.array_equal(np.asarray(got), np.asarray(want))


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_16_bit_grey_is_scaled_and_not_clipped(format: str) -> None:
    got = np.asarray(read_image(encoded(Image.fromarray(GREY), format)))
    assert np.array_equal(got, np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2))


def test_16_bit_colours_are_scaled_and_not_clipped() -> None:
    colour = np.array([0, 40000, 65535], ">u2")
    got = np.asarray(read_image(rgb_png(1, 1, 16, b"\0" + colour.tobytes())))
    assert np.abs(got.ravel().astype(int) - [0, 156, 255]).max() <= 1


def test_an_image_below_the_limit_of_pixels_is_read_however_huge(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = encoded(Image.new("RGB", (5000, 4000), (3, 140, 250)), "png")
    assert read_image(huge).getpixel((4999, 3999)) == (3, 140, 250)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000 * 4000 // 2 - 1)
    with pytest.raises(Image.DecompressionBombError, match="20000000 pixels"):
        read_image(huge)


def test_floats_of_0_to_1_are_scaled_and_others_refused() -> None:
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    got = np.asarray(read_image(encoded(Image.fromarray(values), "tiff")))
    assert np.array_equal(got[..., 0].ravel(), np.arange(256))
    for bad in (values * 2, values - 1, np.full_like(values, np.nan)):
        with pytest.raises(ValueError, match=r"white is not known in a F image"):
            to_rgb(Image.fromarray(bad))
    with pytest.raises(ValueError, match=r"white is not known in a I image with values 0 to 65536"):
        to_rgb(Image.fromarray(np.array([[0, 65536]], np.int32)))


@pytest.mark.parametrize("format", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    animation = Image.open(io.BytesIO(content))
    assert animation.n_frames == 3
    animation.seek(2)
    for got in (read_image(content), to_rgb(animation)):
        assert np.abs(np.asarray(got, int) - [255, 0, 0]).max() <= 3


def test_a_palette_with_transparency_gives_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    image = photo().convert("P")
    content = encoded(image, "png", transparency=bytes(range(256)))
    assert np.array_equal(np.asarray(read_image(content)), np.asarray(image.convert("RGB")))
    assert not recwarn.list


def test_paths_and_bytes_give_the_same(tmp_path: Path) -> None:
    content = encoded(photo(), "jpeg")
    (tmp_path / "a.jpg").write_bytes(content)
    assert read_image(tmp_path / "a.jpg") == read_image(str(tmp_path / "a.jpg")) == read_image(content)


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (b"", UnidentifiedImageError, "empty"),
        (b"no image at all", UnidentifiedImageError, "cannot identify"),
        (encoded(photo(size=64), "jpeg")[:1500], OSError, "truncated"),
        (encoded(photo(size=64), "png")[:5000], OSError, "truncated"),
        (
            with_a_flipped_bit(encoded(photo(size=64), "png")),
            (OSError, SyntaxError),
            "broken|checksum|corrupt",
        ),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), (OSError, SyntaxError), "cannot identify|broken"),
        (bomb(), Image.DecompressionBombError, "3600000000 pixels"),
    ],
    ids=["empty", "text", "short jpeg", "short png", "flipped bit", "no header", "bomb"],
)
def test_what_is_no_whole_image_raises(
    content: bytes, error: type[Exception] | tuple[type[Exception], ...], match: str
) -> None:
    with pytest.raises(error, match=match):
        read_image(content)


# Tar shards


def test_tar_shards_give_what_the_webdataset_library_reads(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(f"{tmp_path}/%03d.tar", maxcount=3, verbose=0) as writer:
        for row in range(8):
            sample = {"__key__": f"split.a/img{row}", "png": photo(row), "cls": row % 5, "json": {"x": 1}}
            writer.write(sample)
    shards = sorted(str(path) for path in tmp_path.glob("*.tar"))
    assert len(shards) == 3
    ours = TarImages(shards)
    theirs = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("__key__", "png", "cls")
    rows = list(theirs)
    assert len(ours) == len(rows) == 8
    for row, (key, image, label) in enumerate(rows):
        assert (ours.keys[row], ours[row][0], int(ours[row][1])) == (key, image, label)


def test_tar_shards_without_classes_and_with_a_transform(tmp_path: Path) -> None:
    files = {"b.PNG": encoded(photo(1), "png"), "a.jpg": encoded(photo(2), "jpeg"), "__meta__": b"x"}
    images = TarImages([write_tar(tmp_path / "0.tar", files)], transform=np.asarray)
    assert images.labels is None
    assert list(images.keys) == ["b", "a"]
    assert np.array_equal(images[0], np.asarray(photo(1)))


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"a.cls": b"1"}, r"the sample 'a' must have one image, got the files \['cls'\]"),
        ({"a.jpg": b"", "a.png": b""}, r"the sample 'a' must have one image, got the files \['jpg', 'png'\]"),
        ({"a.left.jpg": b""}, r"got the files \['left.jpg'\]"),
        ({"a.jpg": b"", "a.cls": b"cat"}, "invalid literal"),
        ({}, "no image in the tar files"),
    ],
)
def test_a_bad_tar_shard_is_named(tmp_path: Path, files: dict[str, bytes], match: str) -> None:
    path = write_tar(tmp_path / "bad.tar", files)
    with pytest.raises(ValueError, match=match) as caught:
        TarImages([path])
    assert "bad.tar" in str(caught.value)


def test_a_truncated_or_compressed_or_missing_tar_shard_is_named(tmp_path: Path) -> None:
    files = {f"{k}.png": encoded(photo(k, 64), "png") for k in range(3)}
    whole = Path(write_tar(tmp_path / "whole.tar", files))
    (tmp_path / "short.tar").write_bytes(whole.read_bytes()[:20000])
    write_tar(tmp_path / "small.tar", files, "w:gz")
    for name in ("short.tar", "small.tar"):
        with pytest.raises(ValueError, match=f"{name} is no tar shard that can be read by row"):
            TarImages([tmp_path / name])
    with pytest.raises(FileNotFoundError, match=r"none\.tar"):
        TarImages([tmp_path / "none.tar"])
    images = TarImages([whole])
    whole.write_bytes(whole.read_bytes()[:20000])
    with pytest.raises(ValueError, match=r"whole.tar ends in the middle of 1"):
        images[1]
