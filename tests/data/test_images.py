"""Images of every kind as RGB; tar shards as data sets."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor

from hybridhash import encode, encode_dataset, open_codes
from hybridhash.data import ImageFiles, ImageList, TarImages, read_csv, read_image, to_rgb
from hybridhash.encoding import read_failures
from tests.data._images import bomb, encoded, photo, rgb_png, write_tar

GREY = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 0..255 of 257ths


def with_a_flipped_bit(content):
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
def test_8_bit_modes_are_what_pil_converts_them_to(image, format):
    content = encoded(image, format)
    got = read_image(content)
    assert got.mode == "RGB"
    want = Image.open(io.BytesIO(content)).convert("RGB")
    assert np.array_equal(np.asarray(got), np.asarray(want))


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_16_bit_grey_is_scaled_and_not_clipped(format):
    got = np.asarray(read_image(encoded(Image.fromarray(GREY), format)))
    assert np.array_equal(got, np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2))


def test_16_bit_colours_are_scaled_and_not_clipped():
    colour = np.array([0, 40000, 65535], ">u2")
    got = np.asarray(read_image(rgb_png(1, 1, 16, b"\0" + colour.tobytes())))
    assert np.abs(got.ravel().astype(int) - [0, 156, 255]).max() <= 1


def test_an_image_below_the_limit_of_pixels_is_read_however_huge(monkeypatch):
    huge = encoded(Image.new("RGB", (5000, 4000), (3, 140, 250)), "png")
    assert read_image(huge).getpixel((4999, 3999)) == (3, 140, 250)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000 * 4000 // 2 - 1)
    with pytest.raises(Image.DecompressionBombError, match="20000000 pixels"):
        read_image(huge)


def test_floats_of_0_to_1_are_scaled_and_others_refused():
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    got = np.asarray(read_image(encoded(Image.fromarray(values), "tiff")))
    assert np.array_equal(got[..., 0].ravel(), np.arange(256))
    for bad in (values * 2, values - 1, np.full_like(values, np.nan)):
        with pytest.raises(ValueError, match=r"white is not known in a F image"):
            to_rgb(Image.fromarray(bad))
    with pytest.raises(ValueError, match=r"white is not known in a I image with values 0 to 65536"):
        to_rgb(Image.fromarray(np.array([[0, 65536]], np.int32)))


@pytest.mark.parametrize("format", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_is_taken(format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    animation = Image.open(io.BytesIO(content))
    assert animation.n_frames == 3
    animation.seek(2)
    for got in (read_image(content), to_rgb(animation)):
        assert np.abs(np.asarray(got, int) - [255, 0, 0]).max() <= 3


def test_a_palette_with_transparency_gives_no_warning(recwarn):
    image = photo().convert("P")
    content = encoded(image, "png", transparency=bytes(range(256)))
    assert np.array_equal(np.asarray(read_image(content)), np.asarray(image.convert("RGB")))
    assert not recwarn.list


def test_paths_and_bytes_give_the_same(tmp_path):
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
def test_what_is_no_whole_image_raises(content, error, match):
    with pytest.raises(error, match=match):
        read_image(content)


@pytest.mark.parametrize("as_path", [True, False], ids=["path", "bytes"])
def test_whatever_a_decoder_raises_names_the_image(tmp_path, monkeypatch, as_path):
    def fail(*_):
        raise NotImplementedError("Unknown pixel format flags 138")  # of a damaged .dds

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    content = encoded(photo(), "png")
    path = tmp_path / "a.png"
    path.write_bytes(content)
    name = str(path) if as_path else ""
    with pytest.raises(ValueError, match=rf"the image {name}.*cannot be read: NotImplementedError: Unknown"):
        read_image(path if as_path else content)


def test_messages_name_the_file_and_can_be_printed(tmp_path):
    short = tmp_path / "short.jpg"
    short.write_bytes(encoded(photo(size=64), "jpeg")[:1500])
    with pytest.raises(OSError, match=r"short\.jpg cannot be read: image file is truncated"):
        read_image(short)
    odd = Path(f"{tmp_path}/caf\udce9.jpg")
    odd.write_bytes(b"no image")
    with pytest.raises(UnidentifiedImageError, match=r"caf\\xe9\.jpg cannot be read") as caught:
        read_image(odd)
    assert str(caught.value).encode("utf-8").count(b"caf") == 1


# Orientation


def turned(orientation, format="jpeg", size=(48, 32)):
    """A photo as a camera held in one of the 8 ways stores it, and the same photo upright."""
    left, top = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    upright = Image.fromarray(np.stack([left, top, 0 * left], -1).astype(np.uint8))
    stored = (
        next(
            stored
            for stored in (upright.transpose(method) for method in Image.Transpose)
            if _as_viewers_show(stored, orientation) == upright
        )
        if orientation > 1
        else upright
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if format == "jpeg" else {}
    return encoded(stored, format, exif=exif, **options), upright


def _as_viewers_show(stored, orientation):
    tagged = stored.copy()
    tagged.getexif()[0x0112] = orientation
    return ImageOps.exif_transpose(tagged)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "tiff"])
def test_photos_are_upright_however_the_camera_was_held(orientation, format):
    content, upright = turned(orientation, format)
    for got in (read_image(content), to_rgb(Image.open(io.BytesIO(content))), to_rgb(read_image(content))):
        assert got.size == upright.size
        assert np.abs(np.asarray(got, int) - np.asarray(upright, int)).mean() < 8


def test_every_source_gives_the_same_upright_photo(tmp_path):
    content, upright = turned(6)
    (tmp_path / "all").mkdir()
    path = tmp_path / "all" / "a.jpg"
    path.write_bytes(content)
    (tmp_path / "list.txt").write_text("all/a.jpg 0\n")
    (tmp_path / "list.csv").write_text("image,label\nall/a.jpg,x\n")
    got = read_image(path)
    assert got.size == upright.size
    sources = [
        TarImages([write_tar(tmp_path / "0.tar", {"a.jpg": content})])[0],
        ImageList(tmp_path / "list.txt")[0][0],
        read_csv(tmp_path / "list.csv")[0][0],
        ImageFolder(tmp_path, loader=read_image)[0][0],
        to_rgb(ImageFolder(tmp_path)[0][0]),  # as encode_dataset does with the PIL images of any data set
        to_rgb(ImageOps.exif_transpose(Image.open(path))),  # as Hugging Face datasets does
        ImageFiles(tmp_path / "all")[0],
    ]
    for image in sources:
        assert np.array_equal(np.asarray(image), np.asarray(got))


def test_16_bit_photos_are_upright_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(GREY[:4])
    got = read_image(encoded(wide, "png", exif=exif))
    assert got == to_rgb(Image.fromarray(np.rot90(GREY[:4], -1).copy()))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_leave_the_image_as_it_is():
    content = encoded(photo(), "png", exif=b"Exif\0\0II*\0" + b"\xff" * 40)
    assert np.array_equal(np.asarray(read_image(content)), np.asarray(photo()))


def test_the_callers_image_is_not_turned():
    content, _ = turned(6)
    image = Image.open(io.BytesIO(content))
    to_rgb(image)
    assert (image.size, image.getexif()[0x0112]) == ((32, 48), 6)


# Tar shards


def test_tar_shards_give_what_the_webdataset_library_reads(tmp_path):
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


def test_tar_shards_without_classes_and_with_a_transform(tmp_path):
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
        ({"a.jpg": b"", "a.cls": b"cat"}, "a.cls has no class id, but b'cat'"),
        ({"a.jpg": b"", "a.cls": b"9" * 20}, "a.cls has the class id 9{20}: ids are 0 and more"),
        ({"a.jpg": b"", "a.cls": b"-2"}, "a.cls has the class id -2"),
        ({}, "no image in the tar files"),
    ],
)
def test_a_bad_tar_shard_is_named(tmp_path, files, match):
    path = write_tar(tmp_path / "bad.tar", files)
    with pytest.raises(ValueError, match=match) as caught:
        TarImages([path])
    assert "bad.tar" in str(caught.value)


def test_a_truncated_or_compressed_or_missing_tar_shard_is_named(tmp_path):
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


# A folder of photos


def test_a_flat_or_nested_folder_is_a_data_set(folder):
    (folder / "2024" / "june").mkdir(parents=True)
    (folder / "a.png").rename(folder / "2024" / "june" / "z.PNG")
    for hidden in (".thumbnails", ".git"):
        (folder / hidden).mkdir()
        photo().save(folder / hidden / "no.png")
    photos = ImageFiles(folder, transform=np.asarray)
    assert list(photos.names) == ["2024/june/z.PNG", *(f"{name}.png" for name in "bcdefgh")]
    assert [int(photos[row][0, 0, 0]) for row in range(8)] == [0, 30, 60, 90, 120, 150, 180, 210]
    assert Path(photos.path(0)) == folder / "2024" / "june" / "z.PNG"
    assert list(photos.left_out) == []


def test_what_is_left_out_is_named(folder):
    for name in ("sub/1.HEIC", "sub/2.heic", "notes.txt", "README"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    with pytest.warns(
        UserWarning, match=r"4 files in .* \(2 \.heic, 1 without ending, 1 \.txt\).*pillow-heif"
    ):
        photos = ImageFiles(folder)
    assert list(photos.left_out) == ["README", "notes.txt", "sub/1.HEIC", "sub/2.heic"]
    assert repr(photos.left_out) == "['README', 'notes.txt', 'sub/1.HEIC'] and 1 more"
    assert len(photos) == 8


def test_heic_is_read_where_pillow_can(folder, monkeypatch):
    (folder / "b.png").rename(folder / "b.heic")
    monkeypatch.setattr(Image, "EXTENSION", {**Image.registered_extensions(), ".heic": "PNG"})
    photos = ImageFiles(folder)
    assert photos.names[1] == "b.heic"
    assert photos[1].getpixel((0, 0)) == (30, 0, 0)


def test_links_are_followed_and_loops_are_not(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    photo().save(elsewhere / "x.png")
    (folder / "link").symlink_to(elsewhere)
    (folder / "loop").symlink_to(folder)
    assert len(ImageFiles(folder).names) == 9


def test_odd_names_are_kept_and_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        ImageFiles(tmp_path / "none")
    with pytest.raises(ValueError, match=r"there is no image in .*: images end in avif, bmp"):
        ImageFiles(tmp_path)
    Path(f"{tmp_path}/caf\udce9 \n.png").write_bytes(encoded(photo(), "png"))
    photos = ImageFiles(tmp_path)
    assert photos.names[0] == "caf\udce9 \n.png"
    assert photos[0] == photo()


def test_a_folder_of_photos_is_encoded_in_one_call(folder):
    (folder / "c.png").write_bytes(b"damaged")
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8))
    photos = ImageFiles(folder, transform=to_tensor)
    with pytest.warns(UserWarning, match="1 of 8 images have no code"):
        encode_dataset(model, photos, folder / "out", batch_size=3, num_workers=0, progress=False)
    codes = open_codes(folder / "out")
    assert [photos.names[row] for row in codes.ids.tolist()] == [f"{name}.png" for name in "abdefgh"]
    assert "c.png" in read_failures(folder / "out")[0].reason


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_in_place_of_images_is_named(folder, kind):
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8))
    with pytest.raises(TypeError, match=r"got the path '.*': .*ImageFiles\(path\)"):
        encode(model, kind(folder))
