"""``hybridhash_nano_*``: weights that are part of the package, for three code lengths."""

import hashlib
import json
import socket
import warnings

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from timm.models import get_pretrained_cfg

import hybridhash
from hybridhash.models import load_checkpoint
from tests import ROOT

LENGTHS = (64, 128, 256)
FILE = ROOT / "hybridhash" / "models" / "weights" / "hybridhash_nano.copies.safetensors"


@pytest.fixture(scope="module")
def models():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {
            bits: timm.create_model(f"hybridhash_nano_{bits}", pretrained=True).eval() for bits in LENGTHS
        }


def _picture(seed):
    """Smooth noise, the same on every machine."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC)


def _codes(model, pictures):
    transform = create_transform(**resolve_model_data_config(model))
    with torch.inference_mode():
        return model(torch.stack([transform(picture) for picture in pictures]))


def test_the_shorter_codes_are_the_first_bits_of_the_longest(models):
    codes = {bits: _codes(model, [_picture(0), _picture(1)]) for bits, model in models.items()}
    assert [codes[bits].shape[1] for bits in LENGTHS] == list(LENGTHS)
    for bits in LENGTHS:
        torch.testing.assert_close(codes[bits], codes[256][:, :bits])
    assert [model.lengths for model in models.values()] == [None, (64, 128), (64, 128, 256)]


def test_nothing_is_fetched(monkeypatch):
    def refuse(*_args):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    timm.create_model("hybridhash_nano_128", pretrained=True)


def test_the_file_is_small_and_the_one_of_the_card():
    assert FILE.stat().st_size < 4_000_000
    assert sum(tensor.numel() for tensor in load_file(FILE).values()) < 2_000_000
    digest = hashlib.sha256(FILE.read_bytes()).hexdigest()
    zoo = ROOT / "zoo" / "hybridhash_nano.copies"
    assert f"`{digest}`" in (zoo / "README.md").read_text()
    log = [json.loads(line) for line in (zoo / "log.jsonl").read_text().splitlines()]
    assert log[0]["loss"] > log[-1]["loss"] > 0
    assert all(get_pretrained_cfg(f"hybridhash_nano_{bits}").file == str(FILE) for bits in LENGTHS)


def test_the_whole_photo_is_squashed_to_the_square(models):
    transform = create_transform(**resolve_model_data_config(models[64]))
    photo = Image.new("RGB", (300, 100))
    photo.paste((255, 0, 0), (0, 0, 10, 100))  # would be cut off by a crop of the centre
    pixels = transform(photo)
    assert pixels.shape == (3, 64, 64)
    assert pixels[0, :, 0].min() > 1.9  # (1 - 0.5) / 0.25
    assert pixels[0, :, 32].max() < -1.9


def test_copies_are_nearer_than_other_pictures(models):
    pictures = [_picture(seed) for seed in range(40)]
    altered = [
        picture.resize((70, 70)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).convert("L").convert("RGB")
        for picture in pictures
    ]
    for bits, model in models.items():
        before, after = (
            hybridhash.HashCodes.from_codes(_codes(model, photos)) for photos in (pictures, altered)
        )
        distances = hybridhash.hamming_distance(before, after)
        found = distances.argmin(1) == torch.arange(40)
        assert found.float().mean() >= 0.85, bits


def test_another_length_starts_untrained_and_says_so():
    with pytest.warns(UserWarning, match="256-bit hash layer does not fit a model of 96 bits"):
        model = timm.create_model("hybridhash_nano_64", pretrained=True, num_classes=96)
    assert model.bits == 96
    assert model.lengths is None
    with pytest.warns(UserWarning, match="does not fit a model of 128 bits"):
        assert timm.create_model("hybridhash_nano_64", pretrained=True, num_classes=128).lengths is None


def test_the_embedding_needs_no_hash_layer(models):
    embedding = timm.create_model("hybridhash_nano_64", pretrained=True, num_classes=0).eval()
    assert embedding(torch.zeros(1, 3, 64, 64)).shape == (1, 128)


def test_a_checkpoint_of_a_nested_model_is_cut(models, tmp_path):
    model = timm.create_model("hybridhash_nano_128")
    load_checkpoint(model, FILE)
    for one, other in zip(model.parameters(), models[128].parameters(), strict=True):
        assert torch.equal(one, other)
    plain = {name: tensor for name, tensor in load_file(FILE).items() if name != "lengths"}
    save_file(plain, tmp_path / "plain.safetensors")  # a hash layer that was trained for one length only
    with pytest.warns(UserWarning, match="does not fit"):
        load_checkpoint(model, tmp_path / "plain.safetensors")


def test_saved_and_loaded_without_the_file_of_the_package(models, tmp_path):
    hybridhash.hub.save_pretrained(models[128], tmp_path)
    assert str(ROOT) not in (tmp_path / "config.json").read_text()
    loaded = hybridhash.hub.load(tmp_path).eval()
    assert loaded.lengths == (64, 128)
    assert torch.equal(_codes(loaded, [_picture(3)]), _codes(models[128], [_picture(3)]))
