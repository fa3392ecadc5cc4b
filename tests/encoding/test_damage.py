"""Damaged, foreign and old files: an error that names the file, or the right codes; never other codes."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import TensorDataset

from hybridhash import HashCodes, open_codes
from hybridhash.encoding import Manifest, read_failures, verify
from tests.encoding._helpers import IMAGES, LABELS, Net, contents, run

DATASET = TensorDataset(IMAGES, LABELS)
BROKEN = [None if row == 4 else (IMAGES[row], int(LABELS[row])) for row in range(23)]
SHARD = "shard-00001-of-00003.safetensors"
# 2,000 mutations of each file gave nothing silent; the tests make do with some.
MUTATIONS = int(os.environ.get("HYBRIDHASH_MUTATIONS", "60"))


def flip_a_bit(content, chance):
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def overwrite(content, chance):
    start = chance.randrange(len(content))
    size = chance.randint(1, 20)
    content[start : start + size] = chance.randbytes(size)


def cut(content, chance):
    del content[chance.randrange(len(content)) :]


def insert(content, chance):
    start = chance.randrange(len(content))
    content[start:start] = chance.randbytes(chance.randint(1, 9))


def take_out(content, chance):
    start = chance.randrange(len(content))
    del content[start : start + chance.randint(1, 9)]


def change_a_character(content, chance):
    """Put another character of JSON into the part of a file that is text."""
    content[chance.randrange(min(len(content), 900))] = ord(chance.choice('0123456789abcdef",:[]{} '))


KINDS = (flip_a_bit, overwrite, cut, insert, take_out, change_a_character)


@pytest.fixture(scope="module")
def encoding(tmp_path_factory):
    """An encoding with one failure, its merged file, and a file of its codes."""
    folder = tmp_path_factory.mktemp("encoding")
    with pytest.warns(UserWarning, match="1 of 23"):
        run(Net(), BROKEN, folder)
    open_codes(folder)[:].save(folder / "codes.safetensors")
    return folder


def error_of(folder, name, codes, failures):
    """Read what is in a folder: return the error, or check that it is these codes and failures."""
    try:
        if name == "codes.safetensors":
            read, read_too = HashCodes.load(folder / name), failures
        else:
            read, read_too = open_codes(folder), read_failures(folder)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    assert read == codes
    assert read_too == failures
    return None


@pytest.mark.parametrize("name", [SHARD, "manifest.json", "merged.safetensors", "codes.safetensors"])
def test_a_mutated_file_is_named_or_gives_the_right_codes(encoding, tmp_path, name):
    codes, failures = open_codes(encoding), read_failures(encoding)
    chance = random.Random(name)
    whole = (encoding / name).read_bytes()
    errors = []
    for number in range(MUTATIONS):
        folder = tmp_path / str(number)
        shutil.copytree(encoding, folder)
        content = bytearray(whole)
        KINDS[number % len(KINDS)](content, chance)
        (folder / name).write_bytes(content)
        if name == SHARD:
            (folder / "merged.safetensors").unlink()
        errors.append(error_of(folder, name, codes, failures))
        shutil.rmtree(folder)
    said = [error for error in errors if error is not None]
    assert len(said) > MUTATIONS / 2
    assert all(name in error for error in said)


@pytest.mark.parametrize("shard_size", [10, 100])
def test_a_flipped_bit_of_a_code_is_seen_by_all_who_read_it(tmp_path, shard_size):
    run(Net(), DATASET, tmp_path, shard_size=shard_size)
    verify(tmp_path)
    path = sorted(tmp_path.glob("shard-*"))[-1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 16
    path.write_bytes(content)
    message = f"{path.name} is damaged .its tensors are not what their SHA-256 says.: delete it"
    for read in (open_codes, verify, lambda folder: run(Net(), DATASET, folder, shard_size=shard_size)):
        with pytest.raises(ValueError, match=message):
            read(tmp_path)
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        HashCodes.load(path)
    path.unlink()
    run(Net(), DATASET, tmp_path, shard_size=shard_size)
    verify(tmp_path)


def test_verify_names_all_damaged_files_and_an_unchecked_opening_none(encoding, tmp_path):
    folder = tmp_path / "codes"
    shutil.copytree(encoding, folder)
    names = ["shard-00000-of-00003.safetensors", SHARD, "merged.safetensors"]
    for name in names[1:]:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 16
        (folder / name).write_bytes(content)
    (folder / names[0]).unlink()
    with pytest.raises(ValueError, match=f"(?s){names[0]} is missing.*{names[1]} is dam.*{names[2]} is dam"):
        verify(folder)
    shutil.copy(encoding / names[0], folder)
    with pytest.raises(ValueError, match=r"merged\.safetensors is damaged"):
        open_codes(folder)
    assert len(open_codes(folder, check=False)) == 22


def test_two_equal_runs_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        run(Net(), DATASET, tmp_path / name)
        open_codes(tmp_path / name).save(tmp_path / name / "saved.safetensors")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 6


# Merged files


def test_the_merged_file_is_of_these_shards_or_made_anew(tmp_path):
    merged = tmp_path / "merged.safetensors"
    out = tmp_path / "codes"
    for images in (IMAGES, -IMAGES, IMAGES.flip(0)):
        run(Net(), TensorDataset(images), out, resume=False)
        shards = [HashCodes.load(path) for path in sorted(out.glob("shard-*"))]
        assert open_codes(out, merged=merged) == HashCodes.cat(shards)
    run(Net(), TensorDataset(IMAGES), tmp_path / "other")
    other = open_codes(tmp_path / "other", merged=merged)
    assert other == open_codes(tmp_path / "other")


@pytest.mark.parametrize("kind", ["bytes", "codes", "tensors", "shard"])
def test_a_file_of_another_kind_is_not_replaced_by_the_merged_one(tmp_path, kind):
    run(Net(), DATASET, tmp_path / "codes")
    path = tmp_path / "mine"
    if kind == "bytes":
        path.write_bytes(b"mine")
    elif kind == "codes":
        HashCodes.from_codes(torch.randn(5, 8)).save(path)
    elif kind == "tensors":
        save_file({"weights": torch.zeros(3)}, path)
    else:
        path = tmp_path / "codes" / SHARD
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"{path.name} is .*delete it, or give another merged="):
        open_codes(tmp_path / "codes", merged=path)
    assert path.read_bytes() == before


# Foreign files


def test_only_files_of_an_encoding_are_deleted(tmp_path):
    run(Net(), DATASET, tmp_path)
    mine = [
        "parts/mine.txt",
        "parts/00001/mine.txt",
        "merged.safetensors",
        "shard-1-of-2.safetensors",
        ".a.tmp",
    ]
    for name in mine:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("mine")
    run(Net(), IMAGES, tmp_path, resume=False)
    assert [(tmp_path / name).read_text() for name in mine] == ["mine"] * 5
    assert Manifest.read(tmp_path).labels == "none"


@pytest.mark.parametrize("resume", [True, False])
def test_the_manifest_of_something_else_is_not_replaced(tmp_path, resume):
    text = json.dumps({"format": "hybridhash.index", "version": 1})
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json is (no manifest of|not of) .*choose"):
        run(Net(), DATASET, tmp_path, resume=resume)
    assert (tmp_path / "manifest.json").read_text() == text


def test_a_damaged_manifest_can_be_replaced(tmp_path):
    run(Net(), DATASET, tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace("false", "true").replace('"bits": 12', '"bits": 13'))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged .*resume=False"):
        run(Net(), DATASET, tmp_path)
    assert run(Net(), DATASET, tmp_path, resume=False).bits == 12


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_or_a_link_to_nothing_is_no_folder(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"out must be a folder, but .*out is a .*choose another"):
        run(Net(), DATASET, out)


@pytest.mark.parametrize("url", ["s3://bucket/codes", "gs://bucket", "hf://datasets/a/b", "file:///tmp/x"])
def test_a_url_is_refused_with_advice(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    codes = HashCodes.from_codes(torch.randn(5, 8))
    calls: list[Callable[[Any], Any]] = [lambda path: run(Net(), DATASET, path), open_codes, codes.save]
    for call in calls:
        for path in (url, Path(url)):
            with pytest.raises(ValueError, match="is a URL: give a local or mounted folder, and copy"):
                call(path)
    assert not os.listdir(tmp_path)


# Files of version 1


def as_version_1(folder):
    """Rewrite an encoding as it was before there were digests and samples."""
    manifest = Manifest.read(folder)
    old = dataclasses.replace(
        manifest, dtype=None, exif_orientation=None, names_sha256=None, probes=None, trial=None
    )
    fields = dataclasses.asdict(old)
    for name in ("exif_orientation", "names_sha256", "probes", "trial"):
        del fields[name]
    text = json.dumps({"format": "hybridhash.encoding", "version": 1, **fields})
    (folder / "manifest.json").write_text(text)
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata()
        kept = {key: metadata[key] for key in ("rows", "failures", "format", "bits")}
        save_file(load_file(path), path, {**kept, "version": "1", "encoding": old.identity})


def test_encodings_of_before_digests_are_opened_and_go_on(tmp_path):
    run(Net(), DATASET, tmp_path)
    codes = open_codes(tmp_path)[:]
    as_version_1(tmp_path)
    verify(tmp_path)
    assert open_codes(tmp_path) == codes
    (tmp_path / SHARD).unlink()
    model = Net()
    run(model, DATASET, tmp_path)
    assert sum(model.sizes) == 1 + 10
    verify(tmp_path)
    assert open_codes(tmp_path) == codes
    with pytest.raises(ValueError, match="bits 12 there and 16 now"):
        run(Net(16), DATASET, tmp_path)


# Saving and loading at the same time


def test_codes_can_be_loaded_while_they_are_saved(tmp_path):
    path = tmp_path / "codes.safetensors"
    states = [HashCodes.from_codes(torch.full((50, 8), sign)) for sign in (1.0, -1.0)]
    states[0].save(path)
    errors: list[Exception] = []

    def save():
        try:
            for number in range(50):
                states[number % 2].save(path)
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=save) for _ in range(2)]
    for writer in writers:
        writer.start()
    loaded = 0
    while any(writer.is_alive() for writer in writers):
        assert HashCodes.load(path) in states
        loaded += 1
    assert not errors
    assert loaded > 5
    assert os.listdir(tmp_path) == [path.name]
