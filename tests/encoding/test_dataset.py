"""encode_dataset: what it does with data sets, images, models and devices of every kind."""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import hybridhash
from hybridhash import HashCodes, encode, open_codes
from hybridhash.data import ImageList, TarImages, read_image
from hybridhash.encoding import Failure, Manifest, read_failures
from hybridhash.hub import save_pretrained
from tests._hub_models import SMALL
from tests.data._images import bomb, encoded, photo, write_tar
from tests.encoding._helpers import BITS, IMAGES, LABELS, Net, contents, expected, image_folder, run


class Pixels:
    """A transform to 4 x 4 pixels that draws no attention of its own."""

    def __call__(self, image):
        return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1).float() / 255 - 0.5

    def __repr__(self):
        return "Pixels()"


# Data sets


class Dicts(Dataset[dict[str, Any]]):
    def __len__(self):
        return 23

    def __getitem__(self, row):
        return {"pixel_values": IMAGES[row], "labels": int(LABELS[row]), "index": 7 * row}


@pytest.mark.parametrize(
    ("dataset", "labels", "ids"),
    [
        (IMAGES, None, torch.arange(23)),
        (list(IMAGES), None, torch.arange(23)),
        (TensorDataset(IMAGES), None, torch.arange(23)),
        (TensorDataset(IMAGES, LABELS), LABELS, torch.arange(23)),
        (TensorDataset(IMAGES, LABELS, torch.arange(23) * 7), LABELS, torch.arange(23) * 7),
        (Dicts(), LABELS, torch.arange(23) * 7),
        ([(x, np.int64(y)) for x, y in zip(IMAGES, LABELS, strict=True)], LABELS, torch.arange(23)),
        ([(x, None, 5) for x in IMAGES], None, torch.full((23,), 5)),
        ([(x, [1, 0, int(y) % 2]) for x, y in zip(IMAGES, LABELS, strict=True)], "multi-hot", None),
    ],
)
def test_every_kind_of_data_set_gives_its_codes_in_order(tmp_path, dataset, labels, ids):
    manifest = run(Net(), dataset, tmp_path)
    codes = open_codes(tmp_path)
    if isinstance(labels, str):
        labels = torch.stack([torch.ones(23), torch.zeros(23), LABELS % 2], 1).bool()
        ids = torch.arange(23)
    assert codes == HashCodes(expected(), BITS, labels, ids)
    kind = "none" if labels is None else "class ids" if labels.ndim == 1 else "multi-hot"
    assert (manifest.encoded, manifest.failed, manifest.images, manifest.labels) == (23, 0, 23, kind)
    assert manifest == Manifest.read(tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("batch_size", "shard_size"), [(1, 1), (4, 10), (5, 10), (100, 7), (4, 1000)])
def test_the_sizes_of_batches_and_shards_change_the_files_and_not_the_codes(
    tmp_path, batch_size, shard_size, workers
):
    model = Net()
    run(
        model,
        TensorDataset(IMAGES, LABELS),
        tmp_path,
        batch_size=batch_size,
        shard_size=shard_size,
        num_workers=workers,
    )
    assert open_codes(tmp_path) == HashCodes(expected(), BITS, LABELS, torch.arange(23))
    shards = sorted(tmp_path.glob("shard-*.safetensors"))
    assert len(shards) == -(-23 // shard_size)
    assert [len(HashCodes.load(path)) for path in shards[:-1]] == [shard_size] * (len(shards) - 1)
    assert max(model.sizes) <= batch_size
    assert not (tmp_path / "parts").exists()


def test_the_codes_are_those_of_encode(tmp_path):
    dataset = TensorDataset(IMAGES, LABELS, torch.arange(23))
    run(Net(), dataset, tmp_path, shard_size=12)
    assert open_codes(tmp_path) == encode(Net(), DataLoader(dataset, 4), progress=False)


def test_rows_that_share_an_id_all_keep_their_code_and_an_index_refuses_them(tmp_path):
    pytest.importorskip("faiss")
    run(Net(), TensorDataset(IMAGES, LABELS, torch.arange(23) % 22), tmp_path, shard_size=12)
    codes = open_codes(tmp_path)
    assert codes == HashCodes(expected(), BITS, LABELS, torch.arange(23) % 22)
    with pytest.raises(ValueError, match="1 ids occur more than once, 0: each code needs its own"):
        hybridhash.search.FaissIndex(BITS).add(codes)


def test_the_model_runs_in_eval_mode_and_is_left_as_it_was(tmp_path):
    model = Net().train()
    model.drop.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    run(model, IMAGES, tmp_path)
    assert model.training
    assert not model.drop.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batches_are_dealt_to_the_devices_and_come_back_in_order(tmp_path):
    run(Net(), TensorDataset(IMAGES, LABELS), tmp_path, devices=["cpu", torch.device("cpu"), "cpu:0"])
    assert open_codes(tmp_path) == HashCodes(expected(), BITS, LABELS, torch.arange(23))
    with pytest.raises(ValueError, match="devices is empty"):
        run(Net(), IMAGES, tmp_path, devices=[])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_copy_of_the_model_runs_on_a_gpu(tmp_path):
    model = Net()
    run(model, IMAGES, tmp_path, devices=["cuda", "cpu"], num_workers=1)
    assert next(model.parameters()).device.type == "cpu"
    assert len(open_codes(tmp_path)) == 23


def test_autocast_is_part_of_what_the_codes_are(tmp_path, monkeypatch):
    monkeypatch.setattr(hybridhash._inference, "multiplies_natively", lambda dtype: True)
    manifest = run(Net(), IMAGES, tmp_path, dtype=torch.bfloat16)
    assert manifest.dtype == "bfloat16"
    with pytest.raises(ValueError, match="dtype 'bfloat16' there and 'float32' now"):
        run(Net(), IMAGES, tmp_path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run(Net(), IMAGES, tmp_path).dtype == "bfloat16"


def test_the_dtype_that_really_ran_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(hybridhash._inference, "multiplies_natively", lambda dtype: False)
    with pytest.warns(UserWarning, match="the model runs in float32"):
        manifest = run(Net(), IMAGES, tmp_path, dtype=torch.bfloat16)
    assert manifest.dtype == "float32"
    assert run(Net(), IMAGES, tmp_path, dtype=None).dtype == "float32"
    assert run(Net().double(), IMAGES.double(), tmp_path / "double").dtype == "float64"


# Images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image folder of two classes with whatever there is in the wild."""
    root = tmp_path_factory.mktemp("images")
    (root / "bad").mkdir()
    (root / "good").mkdir()
    files = {
        "bad/bomb.png": bomb(),
        "bad/empty.jpg": b"",
        "bad/short.jpg": encoded(photo(1, 64), "jpeg")[:1500],
        "bad/text.jpg": b"no image at all",
        "good/16bit.png": encoded(Image.fromarray(np.full((8, 8), 40000, np.uint16)), "png"),
        "good/animated.gif": encoded(
            photo(2), "gif", save_all=True, append_images=[photo(3), photo(4)], duration=40
        ),
        "good/cmyk.jpg": encoded(photo(5).convert("CMYK"), "jpeg"),
        "good/plain.png": encoded(photo(6), "png"),
    }
    for name, content in files.items():
        (root / name).write_bytes(content)
    return root


REASONS = ["DecompressionBombError", "UnidentifiedImageError", "truncated", "cannot identify"]


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_decoded_are_recorded_and_all_others_encoded(folder, tmp_path, workers):
    dataset = image_folder(folder)
    with pytest.warns(UserWarning, match="4 of 8 images have no code"):
        manifest = run(Net(), dataset, tmp_path, transform=Pixels(), shard_size=3, num_workers=workers)
    assert (manifest.images, manifest.encoded, manifest.failed) == (8, 4, 4)
    failures = read_failures(tmp_path)
    assert [failure.row for failure in failures] == [0, 1, 2, 3]
    for failure, reason in zip(failures, REASONS, strict=True):
        assert reason in failure.reason
    good = [read_image(path) for path, _ in dataset.samples[4:]]
    assert open_codes(tmp_path) == HashCodes(
        expected(torch.stack([Pixels()(image) for image in good])),
        BITS,
        torch.tensor([1, 1, 1, 1]),
        torch.tensor([4, 5, 6, 7]),
    )
    assert manifest.transform == "Pixels()"


def test_an_image_that_cannot_be_decoded_raises_if_asked_and_the_rest_is_done_later(folder, tmp_path):
    options: dict[str, Any] = {"transform": Pixels(), "batch_size": 2, "save_seconds": 0}
    good_first = Subset(image_folder(folder), list(range(8))[::-1])
    with pytest.raises(ValueError, match=r"the image of row 4 cannot be read: UnidentifiedImageError"):
        run(Net(), good_first, tmp_path, on_error="raise", **options)
    with pytest.raises(ValueError, match="unfinished"):
        open_codes(tmp_path)
    model = Net()
    with pytest.warns(UserWarning, match="4 of 8"):
        run(model, good_first, tmp_path, **options)
    assert open_codes(tmp_path).ids.tolist() == [0, 1, 2, 3]  # type: ignore[union-attr]
    assert model.sizes == [1, 2]  # the trial of one image, and the second batch: the first was kept


def test_16_bit_images_are_not_clipped(folder, tmp_path):
    path = folder / "good" / "16bit.png"
    for name, image in (("file", Image.open(path)), ("grey", Image.new("RGB", (8, 8), (156, 156, 156)))):
        run(Net(), [image], tmp_path / name, transform=Pixels())
    assert open_codes(tmp_path / "file") == open_codes(tmp_path / "grey")


def test_hugging_face_data_sets_are_taken_as_they_are(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    paths = sorted(str(path) for path in folder.rglob("*.*"))
    columns = {"image": [*paths, None], "label": [0] * 4 + [1] * 4 + [-1]}
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    with pytest.warns(UserWarning, match="5 of 9"):
        run(Net(), dataset, tmp_path, transform=Pixels())
    codes = open_codes(tmp_path)
    with pytest.warns(UserWarning, match="4 of 8"):
        run(Net(), image_folder(folder), tmp_path / "same", transform=Pixels())
    assert codes == open_codes(tmp_path / "same")
    assert read_failures(tmp_path)[-1] == Failure(8, 8, "ValueError: there is no image, but None")
    with pytest.raises(ValueError, match=r"row 4 has the unknown keys \['picture'\]"):
        run(Net(), dataset.rename_column("image", "picture"), tmp_path / "other", transform=Pixels())


def test_list_files_and_tar_shards_give_the_codes_of_the_folder(folder, tmp_path):
    paths = sorted(path for path in folder.rglob("*.*"))
    lines = [f"{path.relative_to(folder)} {int(path.parent.name == 'good')}" for path in paths]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    files = {}
    for row, path in enumerate(paths):
        files[f"{row}{path.suffix}"] = path.read_bytes()
        files[f"{row}.cls"] = b"%d" % (path.parent.name == "good")
    rivals = {
        "folder": image_folder(folder),
        "list": ImageList(tmp_path / "list.txt", folder),
        "tar": TarImages([write_tar(tmp_path / "0.tar", files)]),
    }
    for name, dataset in rivals.items():
        with pytest.warns(UserWarning, match="4 of 8"):
            run(Net(), dataset, tmp_path / name, transform=Pixels())
    opened = [open_codes(tmp_path / name) for name in rivals]
    assert len(opened[0]) == 4
    assert opened[0] == opened[1] == opened[2]


def test_pil_images_go_through_the_models_own_transform(tmp_path):
    model = timm.create_model("hybridhash_16", **SMALL)
    images = [photo(seed, 40) for seed in range(3)]
    manifest = run(model, images, tmp_path)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({"img_size": 32}, model=model))
    want = encode(model, [torch.stack([transform(image) for image in images])], progress=False)
    assert torch.equal(open_codes(tmp_path).packed, want.packed)
    assert manifest.model == "hybridhash_16"
    assert "Normalize" in str(manifest.transform)
    with pytest.raises(TypeError, match="row 0 is a PIL image, and the model does not say how"):
        run(Net(), images, tmp_path / "plain")


def test_the_manifest_has_the_sha256_of_the_weights_file(tmp_path):
    model = timm.create_model("hybridhash_16", **SMALL)
    save_pretrained(model, tmp_path / "model")
    manifest = run(nn.DataParallel(model), torch.zeros(1, 3, 32, 32), tmp_path / "codes")
    file = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert manifest.weights_sha256 == hashlib.sha256(file).hexdigest()
    assert json.loads((tmp_path / "codes" / "manifest.json").read_text())["bits"] == 16


# Bad input


class Failing(Dataset[Any]):
    """Raises in the rows it is told to."""

    def __init__(self, errors):
        self.errors = errors

    def __len__(self):
        return 10

    def __getitem__(self, row):
        if row in self.errors:
            raise self.errors[row]
        return IMAGES[row]


def test_missing_files_are_recorded_and_broken_disks_and_programs_are_not(tmp_path):
    bad = {3: FileNotFoundError(2, "No such file", "a.jpg"), 5: RuntimeError("sizes"), 9: MemoryError("big")}
    with pytest.warns(UserWarning, match="3 of 10"):
        run(Net(), Failing(bad), tmp_path / "recorded")
    assert [failure.row for failure in read_failures(tmp_path / "recorded")] == [3, 5, 9]
    for error in (OSError(5, "Input/output error"), TypeError("a bug"), KeyError("a bug")):
        with pytest.raises(type(error), match=r"Input/output|a bug"):
            run(Net(), Failing({3: error}), tmp_path / "raised")
    with pytest.raises(ValueError, match="none of the 10 images can be read; row 0: OSError: truncated"):
        run(Net(), Failing({row: OSError("truncated") for row in range(10)}), tmp_path / "none")


class NaN(nn.Module):
    """NaN codes for images whose first pixel is NaN."""

    def forward(self, images):
        return images.flatten(1)[:, :8]


def test_nan_codes_are_recorded_unless_a_whole_batch_is_nan(tmp_path):
    images = IMAGES.clone()
    images[[1, 6, 22]] = float("nan")
    with pytest.warns(UserWarning, match="3 of 23"):
        run(NaN(), images, tmp_path / "some", batch_size=3, shard_size=100)
    assert read_failures(tmp_path / "some") == [
        Failure(row, row, "the model gave NaN codes") for row in (1, 6, 22)
    ]
    good = [row for row in range(23) if row not in (1, 6, 22)]
    codes = open_codes(tmp_path / "some")
    assert codes == HashCodes.from_codes(IMAGES[good].flatten(1)[:, :8], ids=torch.tensor(good))
    images[4:8] = float("nan")
    with pytest.raises(ValueError, match="for 4 of the 4 images of rows 4 to 7, the first is row 4"):
        run(NaN(), images, tmp_path / "batch")
    with pytest.raises(ValueError, match="for 1 of the 4 images of rows 0 to 3, the first is row 1"):
        run(NaN(), images, tmp_path / "strict", on_error="raise")


class Stream(IterableDataset[Tensor]):
    def __iter__(self):
        return iter(IMAGES)

    def __len__(self):
        return 23


@pytest.mark.parametrize(
    ("dataset", "error", "match"),
    [
        (Stream(), TypeError, "dataset must be map-style"),
        (iter(IMAGES), TypeError, "dataset must be map-style"),
        (DataLoader(TensorDataset(IMAGES)), TypeError, "dataset must be map-style"),
        ("images/", TypeError, "got the path 'images/': give hybridhash.data.ImageFiles for"),
        ([], ValueError, "dataset is empty"),
        ([np.zeros((3, 4, 4))], TypeError, "must be a tensor or a PIL image, got ndarray"),
        ([(IMAGES[0], 1), (IMAGES[1], None)], ValueError, "row 1 has no label"),
        ([(IMAGES[0], 1), (IMAGES[1], [0, 1])], ValueError, "labels of rows 0 to 1 differ in shape"),
        ([(IMAGES[0], "cat")], TypeError, "the label of row 0 must be a tensor or numbers"),
        ([(IMAGES[0], 0.5)], TypeError, "labels of rows 0 to 0 of shape"),
        ([IMAGES[0], IMAGES[1, :, :2]], ValueError, "the images of rows 0 to 1 differ in shape"),
        ([IMAGES[0]] * 4 + [IMAGES[0, :, :2]], RuntimeError, "shapes"),
        ([(x, 1) for x in IMAGES[:4]] + [(IMAGES[4], [0, 1])], ValueError, "rows 4 to 4 do not fit together"),
        ([(1, 2, 3, 4)], TypeError, "must be a tensor or a PIL image, got tuple"),
    ],
)
def test_bad_data_sets_are_refused(tmp_path, dataset, error, match):
    with pytest.raises(error, match=match):
        run(Net(), dataset, tmp_path)


def test_timms_data_set_which_replaces_unreadable_images_is_refused(folder, tmp_path):
    dataset = timm.data.ImageDataset(str(folder))
    with pytest.raises(TypeError, match="next image in place of one that cannot be read: use torchvision"):
        run(Net(), Subset(dataset, [0]), tmp_path)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"shard_size": 2.5}, r"shard_size must be an int >= 1, got 2\.5"),
        ({"on_error": "skip"}, "on_error must be one of 'record', 'raise', got 'skip'"),
        ({"dtype": torch.int8}, "dtype must be None"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, options, match):
    with pytest.raises((TypeError, ValueError), match=match):
        run(Net(), IMAGES, tmp_path, **options)


def test_bad_models_are_refused(tmp_path):
    with pytest.raises(TypeError, match="model must be a torch"):
        run(len, IMAGES, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_classes=0"):
        run(timm.create_model("hybridhash_16", num_classes=0, **SMALL), IMAGES, tmp_path)
    with pytest.raises(ValueError, match=r"codes \(1, bits\)"):
        run(nn.Identity(), IMAGES, tmp_path)


# Going on


def test_a_second_call_encodes_nothing_and_changes_nothing(tmp_path):
    run(Net(), IMAGES, tmp_path)
    before, model = contents(tmp_path), Net()
    assert run(model, IMAGES, tmp_path).encoded == 23
    assert model.sizes == [1]
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("model", "dataset", "options", "match"),
    [
        (Net(16), IMAGES, {}, "bits 12 there and 16 now"),
        (nn.Sequential(Net()), IMAGES, {}, "model 'Net' there and 'Sequential' now"),
        (Net(), IMAGES[:22], {}, "images 23 there and 22 now"),
        (Net(), IMAGES, {"transform": nn.ReLU()}, r"transform None there and 'ReLU\(\)' now"),
        (Net(), IMAGES, {"shard_size": 11}, "shard_size 10 there and 11 now"),
        (Net(), TensorDataset(IMAGES, LABELS), {}, "labels 'none' there and 'class ids' now"),
    ],
)
def test_another_encoding_is_refused_with_both_named(tmp_path, model, dataset, options, match):
    run(Net(), IMAGES, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=match):
        run(model, dataset, tmp_path, **options)
    assert contents(tmp_path) == before
    (tmp_path / "notes.txt").write_text("mine")
    run(model, dataset, tmp_path, resume=False, **options)
    assert len(open_codes(tmp_path)) == len(dataset)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_other_weights_are_refused_with_both_named(tmp_path):
    model = Net()
    there = run(model, IMAGES, tmp_path).weights_sha256
    with torch.no_grad():
        model.fc.bias.add_(1)
    with pytest.raises(ValueError, match=f"weights_sha256 '{there}' there and '[0-9a-f]{{64}}' now"):
        run(model, IMAGES, tmp_path)


def test_another_batch_size_goes_on(tmp_path):
    errors = {8: OSError(5, "Input/output error")}
    with pytest.raises(OSError, match="Input/output"):
        run(Net(), Failing(errors), tmp_path, save_seconds=0)
    model = Net()
    run(model, IMAGES[:10], tmp_path, batch_size=3)
    assert model.sizes == [1, 3, 3]  # rows 0 to 3 were kept
    assert torch.equal(open_codes(tmp_path).packed, expected(IMAGES[:10]))


def test_a_deleted_shard_is_encoded_again(tmp_path):
    run(Net(), IMAGES, tmp_path)
    before, model = contents(tmp_path), Net()
    (tmp_path / "shard-00001-of-00003.safetensors").unlink()
    run(model, IMAGES, tmp_path)
    assert sum(model.sizes) == 1 + 10
    assert contents(tmp_path) == before


def test_shards_without_a_manifest_are_not_touched(tmp_path):
    run(Net(), IMAGES, tmp_path)
    (tmp_path / "manifest.json").unlink()
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"holds shards without their manifest\.json"):
        run(Net(), IMAGES, tmp_path)
    assert contents(tmp_path) == before


def test_no_warning_without_a_failure_and_no_bar_if_not_wanted(tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(Net(), IMAGES, tmp_path)
    assert capfd.readouterr() == ("", "")
    run(Net(), IMAGES, tmp_path, progress=True, resume=False)
    assert "encode" in capfd.readouterr().err


def test_it_is_public():
    assert {"encode_dataset", "open_codes"} <= set(hybridhash.__all__)
