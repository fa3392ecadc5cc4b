"""Codes with correction factors: from images to memory, shards and back."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from hybridhash import HashCodes, encode, open_codes
from hybridhash.encoding import Failure, Manifest, read_failures, verify
from tests.encoding._helpers import IMAGES, LABELS, Net, contents, run

DATASET = TensorDataset(IMAGES, LABELS)


def _expected(rows=slice(None)):
    with torch.no_grad():
        codes = Net().eval()(IMAGES[rows])
    return HashCodes.from_codes(codes, LABELS[rows], torch.arange(23)[rows], factors=True)


def _close(codes, expected):
    """Equal but for the rounding of batches of another size."""
    torch.testing.assert_close(codes.factors, expected.factors)
    return dataclasses.replace(codes, factors=None) == dataclasses.replace(expected, factors=None)


def test_encode_keeps_the_factors():
    batches = [(IMAGES[i : i + 5], LABELS[i : i + 5], torch.arange(23)[i : i + 5]) for i in range(0, 23, 5)]
    assert _close(encode(Net(), batches, factors=True, progress=False), _expected())
    assert encode(Net(), batches, progress=False).factors is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_codes_without_a_norm_raise(value):
    images = IMAGES.clone()
    images[6, 0, 0, 0] = value
    model = nn.Sequential(nn.Flatten(), nn.Identity())
    message = "NaN or infinite codes in batch 1 for 1 of its 5 images, the first at position 6"
    with pytest.raises(ValueError, match=message):
        encode(model, images.split(5), factors=True, progress=False)


@pytest.mark.parametrize("shard_size", [100, 10])
def test_shards_and_their_merged_file_keep_the_factors(tmp_path, shard_size):
    manifest = run(Net(), DATASET, tmp_path, factors=True, shard_size=shard_size)
    assert manifest.factors
    assert Manifest.read(tmp_path) == manifest
    codes = open_codes(tmp_path)
    assert _close(codes, _expected())
    assert open_codes(tmp_path, check=False) == codes
    verify(tmp_path)


def test_work_that_was_cut_short_goes_on_to_the_same_bytes(tmp_path):
    run(Net(), DATASET, tmp_path / "whole", factors=True)
    run(Net(), DATASET, tmp_path / "cut", factors=True)
    (tmp_path / "cut" / "shard-00001-of-00003.safetensors").unlink()
    run(Net(), DATASET, tmp_path / "cut", factors=True)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("first", [True, False])
def test_another_setting_is_refused(tmp_path, first):
    run(Net(), DATASET, tmp_path, factors=first)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"another encoding: factors {first} there and {not first} now"):
        run(Net(), DATASET, tmp_path, factors=not first)
    assert contents(tmp_path) == before


def test_images_with_infinite_codes_are_recorded(tmp_path):
    images = IMAGES.clone()
    images[6] = float("inf")
    model = nn.Sequential(nn.Flatten())
    with pytest.warns(UserWarning, match="1 of 23"):
        run(model, TensorDataset(images), tmp_path, factors=True)
    assert read_failures(tmp_path) == [Failure(6, 6, "the model gave NaN or infinite codes")]
    kept = [row for row in range(23) if row != 6]
    assert open_codes(tmp_path) == HashCodes.from_codes(
        images[kept].flatten(1), ids=torch.tensor(kept), factors=True
    )


def test_the_manifest_of_codes_without_factors_is_what_it_was(tmp_path):
    run(Net(), DATASET, tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["version"] == 2
    assert "factors" not in content
    run(Net(), DATASET, tmp_path, factors=True, resume=False)
    assert json.loads((tmp_path / "manifest.json").read_text())["version"] == 3


@pytest.mark.parametrize("factors", [1.5, "yes", None])
def test_factors_is_a_bool(tmp_path, factors):
    with pytest.raises(ValueError, match="factors must be one of True, False"):
        encode(Net(), [IMAGES], factors=factors)
    with pytest.raises(ValueError, match="factors must be one of True, False"):
        run(Net(), DATASET, tmp_path, factors=factors)
