"""encode: what it does with models, loaders and batches of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.utils import disable_progress_bars
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from hybridhash import HashCodes, encode, open_codes, pack_codes
from hybridhash.encoding import image_loader
from tests._hub_models import SMALL
from tests.data._images import photo
from tests.encoding._helpers import run

BITS = 12
IMAGES = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10) % 4
MULTI_HOT = torch.rand(10, 6, generator=torch.Generator().manual_seed(1)) < 0.4
IDS = torch.arange(10) * 7


class Net(nn.Module):
    """A small hash network; dropout and batch norm tell training from eval mode."""

    def __init__(self, bits=BITS):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(48, bits)
        self.seen: dict[str, Any] = {}

    def forward(self, images):
        codes = torch.tanh(self.fc(self.drop(self.norm(images)).flatten(1)))
        self.seen = {
            "training": any(module.training for module in self.modules()),
            "grad": codes.requires_grad or torch.is_grad_enabled(),
            "dtype": codes.dtype,
            "autocast": torch.is_autocast_enabled("cpu"),
        }
        return codes


class Output(nn.Module):
    """Returns what it is told to, whatever the images."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, images):
        return self.output(images) if callable(self.output) else self.output


def expected(images=IMAGES):
    with torch.no_grad():
        return pack_codes(Net().eval()(images))


def batches(*columns, size=4):
    """What a DataLoader yields: the last batch is smaller."""
    return [tuple(column[i : i + size] for column in columns) for i in range(0, 10, size)]


class Dicts(Dataset[dict[str, Any]]):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"pixel_values": IMAGES[index], "labels": int(LABELS[index]), "index": int(IDS[index])}


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self):
        return iter(zip(IMAGES, LABELS, strict=True))


# What loaders may yield


@pytest.mark.parametrize(
    ("loader", "labels", "ids"),
    [
        ([images for (images,) in batches(IMAGES)], False, False),
        (batches(IMAGES), False, False),
        (batches(IMAGES, LABELS), True, False),
        (batches(IMAGES, LABELS, IDS), True, True),
        ([list(batch) for batch in batches(IMAGES, LABELS, IDS)], True, True),
        ([(images, None) for (images,) in batches(IMAGES)], False, False),
        ([(images, None, ids) for images, ids in batches(IMAGES, IDS)], False, True),
        (
            [(images, labels.tolist(), ids.numpy()) for images, labels, ids in batches(IMAGES, LABELS, IDS)],
            True,
            True,
        ),
        ([{"image": images} for (images,) in batches(IMAGES)], False, False),
        ([{"images": images, "label": labels} for images, labels in batches(IMAGES, LABELS)], True, False),
        ([{"ids": ids, "image": images} for images, ids in batches(IMAGES, IDS)], False, True),
        (DataLoader(TensorDataset(IMAGES), 4), False, False),
        (DataLoader(TensorDataset(IMAGES, LABELS), 3), True, False),
        (DataLoader(TensorDataset(IMAGES, LABELS, IDS), 10), True, True),
        (DataLoader(Dicts(), 4), True, True),
        (DataLoader(Stream(), 4), True, False),
        ((batch for batch in batches(IMAGES, LABELS)), True, False),
    ],
)
def test_every_kind_of_loader_gives_the_same_codes_in_order(loader, labels, ids):
    codes = encode(Net(), loader, progress=False)
    assert isinstance(codes, HashCodes)
    assert codes == HashCodes(expected(), BITS, LABELS if labels else None, IDS if ids else None)


@pytest.mark.parametrize("key", ["index", "indices", "id", "ids"])
@pytest.mark.parametrize("label_key", ["label", "labels"])
@pytest.mark.parametrize("image_key", ["image", "images", "pixel_values"])
def test_dicts_may_use_any_of_the_usual_keys(image_key, label_key, key):
    codes = encode(Net(), [{image_key: IMAGES, label_key: LABELS, key: IDS}], progress=False)
    assert codes == HashCodes(expected(), BITS, LABELS, IDS)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_multi_hot_labels_of_any_dtype_are_kept(dtype):
    codes = encode(Net(), batches(IMAGES, MULTI_HOT.to(dtype)), progress=False)
    assert codes == HashCodes(expected(), BITS, MULTI_HOT)


def test_labels_are_copies_that_outlive_the_batches_of_the_loader():
    def reusing():
        labels = torch.empty(5, dtype=torch.int64)
        for i in (0, 5):
            yield IMAGES[i : i + 5], labels.copy_(LABELS[i : i + 5])

    codes = encode(Net(), reusing(), progress=False)
    assert codes.labels is not None
    assert torch.equal(codes.labels, LABELS)


@pytest.mark.parametrize("bits", [1, 8, 13, 4095])
def test_any_number_of_bits(bits):
    codes = encode(Net(bits), [IMAGES], progress=False)
    assert codes.bits == bits
    assert torch.equal(codes.packed, pack_codes(Net(bits).eval()(IMAGES)))


def test_infinities_have_their_sign_and_zero_is_bit_0():
    output = torch.tensor([[float("inf"), -float("inf"), 0.0, 1.0]])
    assert encode(Output(output), [IMAGES[:1]], progress=False).packed.tolist() == [[0b10010000]]


# What happens to the model


def test_it_runs_in_eval_mode_without_gradient_and_puts_every_mode_back():
    model = Net().train()
    model.norm.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    encode(model, batches(IMAGES), progress=False)
    assert model.seen["training"] is False
    assert model.seen["grad"] is False
    assert [module.training for module in (model, model.norm, model.drop, model.fc)] == [
        True,
        False,
        True,
        True,
    ]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()


def failing_loader():
    yield IMAGES
    raise OSError("no such image")


def test_modes_are_put_back_after_an_exception_in_the_model_or_the_loader():
    model = Net().train()
    model.norm.eval()
    with pytest.raises(OSError, match="no such image"):
        encode(model, failing_loader(), progress=False)
    with pytest.raises(RuntimeError):
        encode(model, [torch.zeros(2, 5, 4, 4)], progress=False)
    assert [module.training for module in (model, model.norm, model.drop, model.fc)] == [
        True,
        False,
        True,
        True,
    ]
    assert torch.is_grad_enabled()


def test_the_loader_runs_outside_of_no_grad_and_autocast():
    states = []

    def loader():
        for _ in range(2):
            states.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
            yield IMAGES

    encode(Net(), loader(), dtype=torch.bfloat16, progress=False)
    assert states == [(True, False)] * 2


def test_what_a_model_caches_while_encoding_can_be_trained_with_later():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(48, 8)
            self.scale: Tensor | None = None

        def forward(self, images):
            if self.scale is None:
                self.scale = torch.ones(8) * 2
            codes: Tensor = self.fc(images.flatten(1)) * self.scale
            return codes

    model = Caching()
    encode(model, [IMAGES], progress=False)
    model(IMAGES).sum().backward()
    assert model.fc.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_under_autocast(dtype, monkeypatch):
    monkeypatch.setattr("hybridhash._inference.multiplies_natively", lambda dtype: True)
    model = Net()
    codes = encode(model, batches(IMAGES), dtype=dtype, progress=False)
    assert model.seen["autocast"] is True
    assert model.seen["dtype"] == dtype
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        assert torch.equal(codes.packed, pack_codes(Net().eval()(IMAGES)))


def test_float32_switches_autocast_off_and_none_leaves_it():
    model = Net()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encode(model, [IMAGES], dtype=torch.float32, progress=False)
        assert model.seen["dtype"] == torch.float32
        encode(model, [IMAGES], progress=False)
        assert model.seen["dtype"] == torch.bfloat16


def test_a_device_where_the_model_is_not_raises_and_the_model_stays():
    model = Net()
    with pytest.raises(
        ValueError, match=r"on cpu, but device='meta' was given: move it with model.to\('meta'\)"
    ):
        encode(model, [IMAGES], device="meta", progress=False)
    assert model.fc.weight.device.type == "cpu"
    assert encode(model, [IMAGES], device="cpu", progress=False) == HashCodes(expected(), BITS)


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
def test_a_model_without_parameters_takes_the_images_where_it_is_told(device):
    codes = encode(Output(lambda images: images.flatten(1)), [IMAGES], device=device, progress=False)
    assert codes == HashCodes.from_codes(IMAGES.flatten(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_codes_on_the_cpu():
    model = Net().cuda().double()
    images = IMAGES.double()
    loader = batches(images, LABELS.cuda(), IDS, size=3)
    codes = encode(model, loader, device="cuda", progress=False)
    assert codes == HashCodes(pack_codes(Net().double().eval()(images)), BITS, LABELS, IDS)


# Progress


def test_progress_counts_images_and_can_be_silenced(capsys):
    encode(Net(), batches(IMAGES))
    shown = capsys.readouterr()
    assert "10/10" in shown.err
    assert "image" in shown.err
    assert shown.out == ""
    encode(Net(), batches(IMAGES), progress=False)
    with disable_progress_bars():
        encode(Net(), batches(IMAGES))
    assert capsys.readouterr() == ("", "")


def test_progress_works_without_a_length(capsys):
    encode(Net(), (batch for batch in batches(IMAGES)))
    encode(Net(), DataLoader(Stream(), 4))
    assert capsys.readouterr().err.count("10/10") >= 2


# Bad input


@pytest.mark.parametrize("loader", [[], iter(()), DataLoader(TensorDataset(IMAGES[:0]), 4)])
def test_an_empty_loader_raises(loader):
    with pytest.raises(ValueError, match="loader is empty"):
        encode(Net(), loader, progress=False)


def test_a_tensor_as_loader_and_a_function_as_model_raise():
    with pytest.raises(TypeError, match=r"give \[images\] for one batch"):
        encode(Net(), IMAGES, progress=False)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got function"):
        encode(lambda images: images, [IMAGES], progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, "bf16"])
def test_other_dtypes_raise(dtype):
    with pytest.raises(ValueError, match=r"dtype must be None, torch.bfloat16"):
        encode(Net(), [IMAGES], dtype=dtype, progress=False)


@pytest.mark.parametrize("position", [0, 5, 9])
def test_nan_codes_raise_and_name_the_batch_and_the_image(position):
    images = IMAGES.clone()
    images[position, 0, 0, 0] = float("nan")
    message = f"NaN codes in batch {position // 4} for 1 of its .* images, the first at position {position} "
    with pytest.raises(ValueError, match=message):
        encode(Net(), batches(images), progress=False)


def test_a_model_without_hash_layer_raises():
    model = Net()
    model.num_classes = 0  # type: ignore[assignment]
    with pytest.raises(ValueError, match="num_classes=0, which means no hash layer"):
        encode(model, [IMAGES], progress=False)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (torch.zeros(10), ValueError, r"got shape \(10,\)"),
        (torch.zeros(10, 8, 1, 1), ValueError, r"got shape \(10, 8, 1, 1\)"),
        (torch.zeros(9, 8), ValueError, r"codes \(10, bits\).* the 10 images of batch 0, got shape \(9, 8\)"),
        (torch.zeros(10, 0), ValueError, r"of 1 to 4096 bits .*got shape \(10, 0\)"),
        (torch.zeros(10, 4097), ValueError, r"got shape \(10, 4097\)"),
        ((torch.zeros(10, 8), None), TypeError, "got tuple"),
        (torch.zeros(10, 8, dtype=torch.uint8), TypeError, "got torch.uint8"),
        (torch.zeros(10, 8, dtype=torch.complex64), TypeError, "got torch.complex64"),
    ],
)
def test_a_model_that_returns_no_codes_raises(output, error, message):
    with pytest.raises(error, match=f"the model must return .*{message}"):
        encode(Output(output), [IMAGES], progress=False)


@pytest.mark.parametrize(
    ("second", "error", "message"),
    [
        (IMAGES, ValueError, "batch 0 and batch 1 do not fit together: labels class ids and None"),
        ((IMAGES, MULTI_HOT, IDS), ValueError, "labels class ids and multi-hot of 6 classes"),
        ((IMAGES, LABELS), ValueError, "batch 0 and batch 1 do not fit together: ids int64 and None"),
        ((IMAGES, LABELS[:9], IDS), ValueError, "labels of batch 1 has 9 rows, expected 10"),
        ((IMAGES, LABELS, IDS[:9]), ValueError, r"indices of batch 1 must be \(10,\).*got shape \(9,\)"),
        ((IMAGES, LABELS.float(), IDS), TypeError, "labels of batch 1 .* must be integers"),
        ((IMAGES, LABELS, IDS.float()), TypeError, "indices of batch 1 must be integers, got torch.float32"),
        ((IMAGES, ["cat"] * 10, IDS), TypeError, "labels of batch 1 must be a tensor or numbers, got list"),
        ((IMAGES, 3, IDS), ValueError, "labels of batch 1 must be class ids"),
        ((IMAGES, LABELS, IDS, IDS), TypeError, "batch 1 is a tuple of 4: the loader must yield images,"),
        ((), TypeError, "batch 1 is a tuple of 0"),
        ("images", TypeError, "batch 1 is a str"),
        (None, TypeError, "batch 1 is a NoneType"),
        ((IMAGES.numpy(), LABELS, IDS), TypeError, "images of batch 1 must be a tensor .*got ndarray"),
        ((torch.tensor(0.0), LABELS, IDS), TypeError, r"images of batch 1 .*got shape \(\)"),
        (
            {"image": IMAGES, "path": "a"},
            ValueError,
            r"batch 1 has the unknown keys \['path'\]: known are image,",
        ),
        ({"label": LABELS}, ValueError, r"batch 1 has no images, only the keys \['label'\]"),
        ({"image": IMAGES, "images": IMAGES}, ValueError, "batch 1 has two keys for the same thing"),
    ],
)
def test_a_batch_that_does_not_fit_raises_and_is_named(second, error, message):
    with pytest.raises(error, match=message):
        encode(Net(), [(IMAGES, LABELS, IDS), second], progress=False)


def test_bits_that_change_between_batches_raise():
    model = Output(lambda images: torch.zeros(len(images), len(images)))
    with pytest.raises(ValueError, match="batch 0 and batch 2 do not fit together: bits 4 and 2"):
        encode(model, batches(IMAGES), progress=False)


def test_numpy_scalars_as_ids_of_one_image():
    codes = encode(Net(), [(IMAGES[:1], np.array([2]), np.array([40]))], progress=False)
    assert codes == HashCodes(expected(IMAGES[:1]), BITS, torch.tensor([2]), torch.tensor([40]))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_of_a_data_set_gives_what_encode_dataset_gives(tmp_path, workers):
    model = timm.create_model("hybridhash_16", **SMALL)
    photos = [(photo(seed, 40), seed % 2, 3 * seed) for seed in range(5)]
    codes = encode(model, image_loader(model, photos, 2, num_workers=workers), progress=False)
    run(model, photos, tmp_path, batch_size=2, shard_size=100)
    assert codes == open_codes(tmp_path)
    with pytest.raises(ValueError, match="the image of row 1 cannot be read"):
        encode(model, image_loader(model, [photos[0], (None, 1, 2)], 2), progress=False)
    with pytest.raises(TypeError, match="dataset must be map-style"):
        image_loader(model, iter(photos), 2)


@pytest.mark.parametrize(
    ("loader", "match"),
    [
        ("photos/", r"got the path 'photos/': give a loader .*image_loader\(.*ImageFiles\(path\)"),
        (Path("photos"), "got the path 'photos': give a loader"),
        (
            TensorDataset(IMAGES),
            "got the data set TensorDataset of single images: give .*image_loader",
        ),
    ],
)
def test_a_path_or_a_data_set_is_no_loader(loader, match):
    with pytest.raises(TypeError, match=f"loader must yield batches, {match}"):
        encode(Net(), loader, progress=False)
