"""Copies in folders of photos: what is read again, what is broken, what is kept, and what is written."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
from PIL import Image, ImageFilter
from torch import nn

import hybridhash
from hybridhash import HashCodes, find_duplicates
from hybridhash.data import ImageFiles


class _Grid(nn.Module):
    """64 bits: whether each part of an 8 x 8 grid is brighter than the part to its right."""

    def __init__(self):
        super().__init__()
        self.bits = 64
        self.seen = 0
        self.scale = nn.Parameter(torch.ones(1))
        self.pretrained_cfg = {
            "input_size": (3, 64, 64),
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
            "crop_pct": 1.0,
        }

    def forward(self, images):
        self.seen += len(images)
        grey = nn.functional.adaptive_avg_pool2d(images.mean(1), (8, 9))
        return (grey[..., :8] - grey[..., 1:]).flatten(1) * self.scale


def _photo(seed, size=(96, 96)):
    pixels = torch.rand(3, 8, 9, generator=torch.Generator().manual_seed(seed))
    array = (pixels.permute(1, 2, 0) * 255).byte().numpy()
    return Image.fromarray(array).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    (root / "deep" / "er").mkdir(parents=True)
    for seed in range(6):
        _photo(seed).save(root / f"{seed}.png")
    _photo(0).save(root / "deep" / "0.jpg", quality=60)
    _photo(1, (48, 48)).save(root / "deep" / "er" / "small.png")
    return root


def _find(images, model=None, **options):
    model = model or _Grid()
    return find_duplicates(images, model=model, radius=options.pop("radius", 8), progress=False, **options)


def test_copies_in_a_deep_folder(folder):
    found = _find(folder)
    assert [group.names for group in found.groups] == [
        ("0.png", "deep/0.jpg"),
        ("1.png", "deep/er/small.png"),
    ]
    assert found.keep[1] == "1.png"
    assert "deep/er/small.png" in found.remove
    assert "2 groups" in str(found)


def test_any_hash_model_and_any_data_set(folder):
    model = hybridhash.create_hash_model("resnet10t", 32)
    found = find_duplicates(ImageFiles(folder), model=model, radius=0, progress=False)
    assert found.bits == 32
    images = [_photo(seed) for seed in (0, 1, 0)]
    assert _find(images).groups[0].rows == (0, 2)


def test_a_second_call_reads_what_is_new_or_changed(folder, tmp_path):
    model, out = _Grid(), tmp_path / "codes"
    first = _find(folder, model, out=out)
    seen = model.seen
    again = _find(folder, model, out=out)
    assert model.seen == seen
    assert again.to_dict() == first.to_dict()

    _photo(5, (200, 200)).save(folder / "new.png")
    (folder / "2.png").unlink()
    found = _find(folder, model, out=out)
    assert model.seen - seen <= 3  # the new one, and again for the samples of its encoding
    assert found.keep == [*first.keep, "new.png"]
    _photo(4).save(folder / "3.png", compress_level=1)
    assert ("3.png", "4.png") in [group.names for group in _find(folder, model, out=out).groups]
    # The folder may move.
    shutil.move(folder, tmp_path / "moved")
    seen = model.seen
    _find(tmp_path / "moved", model, out=out)
    assert model.seen == seen


def test_a_call_that_was_killed_goes_on(folder, tmp_path, monkeypatch):
    out = tmp_path / "codes"
    model = _Grid()
    forward = _Grid.forward

    def dies(self, images):
        if self.seen >= 4:
            raise KeyboardInterrupt
        return forward(self, images)

    monkeypatch.setattr(_Grid, "forward", dies)
    with pytest.raises(KeyboardInterrupt):
        _find(folder, model, out=out, batch_size=2)
    monkeypatch.setattr(_Grid, "forward", forward)
    # Another collection leaves the work of this one alone.
    other = tmp_path / "other"
    other.mkdir()
    _photo(9).save(other / "9.png")
    _find(other, _Grid(), out=out)
    model = _Grid()
    found = _find(folder, model, out=out, batch_size=2)
    assert len(found.groups) == 2
    assert model.seen < 8
    assert found.to_dict() == _find(folder).to_dict()


def test_broken_photos_are_listed(folder, tmp_path):
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "gone.jpg").symlink_to(tmp_path / "nothing")
    out = tmp_path / "codes"
    for _ in range(2):
        found = _find(folder, out=out)
        assert [unread.name for unread in found.failed] == ["broken.jpg", "gone.jpg"]
        assert len(found.groups) == 2
    (folder / "later.png").write_bytes(b"")
    assert len(_find(folder, out=out).failed) == 3
    assert "3 photos could not be read" in str(_find(folder, out=out))


def test_new_photos_against_a_folder(folder, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    _photo(0).resize((300, 300)).save(new / "0.png")
    _photo(7).save(new / "7.png")
    found = _find(new, against=folder, out=tmp_path / "codes")
    (group,) = found.groups
    assert group.names[0] == "0.png"
    assert set(group.names[1:]) == {str(folder / "0.png"), str(folder / "deep/0.jpg")}
    assert found.remove == ["0.png"]
    assert sorted(found.keep) == sorted(group.names[1:])
    one = _find(new / "0.png", against=folder, out=tmp_path / "codes")
    assert one.remove == ["0.png"]


@pytest.mark.parametrize("keep", ["largest", "sharpest", "first"])
def test_which_photo_is_kept(tmp_path, keep):
    _photo(0, (64, 64)).save(tmp_path / "a.png")
    _photo(0, (64, 64)).resize((256, 256), Image.Resampling.NEAREST).save(tmp_path / "b.png")
    _photo(0, (400, 400)).filter(ImageFilter.GaussianBlur(8)).save(tmp_path / "c.png")
    found = _find(tmp_path, keep=keep)
    assert found.keep == [{"largest": "c.png", "sharpest": "b.png", "first": "a.png"}[keep]]


def test_what_is_written(folder, tmp_path):
    found = _find(folder)
    found.to_csv(tmp_path / "copies.csv")
    with open(tmp_path / "copies.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["photo"] for row in rows if row["action"] == "remove"] == found.remove
    found.to_json(tmp_path / "copies.json")
    assert json.loads((tmp_path / "copies.json").read_text()) == json.loads(json.dumps(found.to_dict()))


def test_the_picture_of_groups(folder, tmp_path):
    pytest.importorskip("matplotlib")
    figure = _find(folder).plot()
    assert sum(len(axes.images) for axes in figure.axes) == 4
    figure.savefig(tmp_path / "groups.png")
    with pytest.raises(ValueError, match="codes have no photos"):
        find_duplicates(HashCodes.from_codes(torch.ones(2, 8))).plot()


def test_one_photo_and_equal_photos(tmp_path):
    _photo(0).save(tmp_path / "0.png")
    found = find_duplicates(tmp_path, model=_Grid(), progress=False)
    assert (found.groups, found.pairs, found.radius) == ([], [], 0)
    for number in range(1, 5):
        _photo(0).save(tmp_path / f"{number}.png")
    found = find_duplicates(tmp_path, model=_Grid(), progress=False)
    assert len(found.groups[0].names) == 5
    assert found.total_pairs == 10


def test_without_a_model_the_network_of_the_package_finds_the_copies(folder, tmp_path):
    found = find_duplicates(folder, out=tmp_path / "codes", progress=False)
    assert {frozenset(group.names) for group in found.groups} == {
        frozenset({"0.png", "deep/0.jpg"}),
        frozenset({"1.png", "deep/er/small.png"}),
    }
    assert (found.bits, found.network_rate, found.estimate) == (256, 1e-5, None)
    assert "within which 1e-05 of the pairs of other photos lie" in str(found)
    assert found.to_dict()["network_rate"] == 1e-5
    strict = find_duplicates(folder, out=tmp_path / "codes", false_pairs=5e-6, progress=False)
    assert strict.network_rate == 1e-6
    assert strict.radius < found.radius
    given = find_duplicates(folder, out=tmp_path / "codes", radius=3, progress=False)
    assert (given.radius, given.network_rate) == (3, None)
    one = find_duplicates(folder / "0.png", false_pairs=1e-9, progress=False)  # nothing to estimate
    assert (one.radius, one.network_rate, one.groups) == (0, None, [])


def test_bad_input(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    codes = HashCodes.from_codes(torch.randn(5, 16))
    with pytest.raises(ValueError, match="no image in"):
        _find(empty)
    with pytest.raises(FileNotFoundError):
        _find(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="at least 64 distinct codes"):
        find_duplicates(
            folder, false_pairs=1e-9, progress=False
        )  # a rate that the network was not measured at
    with pytest.raises(ValueError, match="radius must be 0 to 16"):
        find_duplicates(codes, radius=17)
    with pytest.raises(ValueError, match="16 bits and against of 8"):
        find_duplicates(codes, against=HashCodes.from_codes(torch.ones(2, 8)))
    with pytest.raises(ValueError, match="at least 64 distinct codes"):
        find_duplicates(codes)
    with pytest.raises(ValueError, match="linkage must be one of"):
        find_duplicates(codes, radius=1, linkage="average")
    with pytest.raises(ValueError, match="codes have none"):
        find_duplicates(codes, radius=1, keep="largest")
    with pytest.raises(TypeError, match="pairs of names"):
        find_duplicates(codes, radius=1, exclude=["ab"])
    (empty / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 1 images can be read; a"):
        _find(empty)


def test_codes_of_another_model_are_refused(folder, tmp_path):
    _find(folder, out=tmp_path / "codes")
    other = _Grid()
    other.scale.data.fill_(2.0)
    with pytest.raises(ValueError, match="codes of another model"):
        _find(folder, other, out=tmp_path / "codes")


def test_a_folder_that_vanishes_meanwhile(folder, tmp_path, monkeypatch):
    photos = ImageFiles(folder)
    (folder / "0.png").unlink()
    assert [unread.name for unread in _find(photos).failed] == ["0.png"]
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="none of the 8 images can be read"):
        _find(photos)
