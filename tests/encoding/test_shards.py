"""Folders of shards: opening them as one, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import TensorDataset

import hybridhash.encoding.opening
from hybridhash import HashCodes, open_codes
from hybridhash.encoding import Manifest, read_failures, verify
from tests.encoding._helpers import IMAGES, LABELS, Net, contents, run, unprivileged

SHARD = "shard-00001-of-00003.safetensors"
MULTI_HOT = torch.rand(23, 11, generator=torch.Generator().manual_seed(1)) < 0.4


@pytest.fixture
def folder(tmp_path):
    """An encoding of three shards."""
    run(Net(), TensorDataset(IMAGES, LABELS), tmp_path / "codes")
    return tmp_path / "codes"


def mapped_files(tensor):
    """Files that the memory of a tensor is mapped from."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        first, last = (int(address, 16) for address in span.split("-"))
        if first <= tensor.data_ptr() < last:
            found.append(name)
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("shard_size", [10, 100])
def test_the_tensors_are_mapped_from_one_file(tmp_path, shard_size):
    run(Net(), TensorDataset(IMAGES, LABELS), tmp_path, shard_size=shard_size)
    codes = open_codes(tmp_path)
    name = "merged.safetensors" if shard_size == 10 else "shard-00000-of-00001.safetensors"
    for tensor in (codes.packed, codes.labels, codes.ids):
        assert tensor is not None
        assert mapped_files(tensor) == [str(tmp_path / name)]
    assert (tmp_path / "merged.safetensors").exists() == (shard_size == 10)


@pytest.mark.parametrize("labels", [None, LABELS, MULTI_HOT], ids=["none", "class ids", "multi-hot"])
def test_the_merged_file_is_one_that_every_reader_reads(tmp_path, labels):
    columns = [IMAGES] if labels is None else [IMAGES, labels]
    run(Net(), TensorDataset(*columns), tmp_path)
    codes = open_codes(tmp_path)
    shards = sorted(tmp_path.glob("shard-*"))
    assert codes == HashCodes.cat([HashCodes.load(path) for path in shards])
    assert codes.labels is None or labels is None or torch.equal(codes.labels, labels)
    assert HashCodes.load(tmp_path / "merged.safetensors") == codes
    merged, parts = load_file(tmp_path / "merged.safetensors"), [load_file(path) for path in shards]
    assert merged.keys() == parts[0].keys()
    for name, tensor in merged.items():
        assert torch.equal(tensor, torch.cat([part[name] for part in parts]))
        assert tensor.data_ptr() % tensor.element_size() == 0


def test_what_is_written_to_opened_codes_does_not_reach_the_files(folder):
    codes = open_codes(folder)
    before = codes.packed.clone()
    codes.packed.zero_()
    assert torch.equal(open_codes(folder).packed, before)


def test_the_merged_file_is_written_once_and_anew_when_shards_are(folder):
    open_codes(folder)
    merged = folder / "merged.safetensors"
    first = merged.stat().st_ino
    open_codes(folder)
    assert merged.stat().st_ino == first
    (folder / SHARD).unlink()
    run(Net(), TensorDataset(IMAGES, LABELS), folder)
    assert not merged.exists()
    assert len(open_codes(folder)) == 23


def test_the_merged_file_may_lie_elsewhere(folder, tmp_path):
    before = contents(folder)
    codes = open_codes(folder, merged=tmp_path / "all.safetensors")
    assert contents(folder) == before
    assert HashCodes.load(tmp_path / "all.safetensors") == codes


@pytest.fixture
def read_only(folder):
    """An encoding in a folder that cannot be written to, and that everybody may read."""
    with tempfile.TemporaryDirectory() as root:  # others may not look into tmp_path
        out = Path(root, "codes")
        shutil.copytree(folder, out)
        for path, mode in ((Path(root), 0o755), (out, 0o555)):
            path.chmod(mode)
        yield out
        out.chmod(0o755)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other rights")
def test_a_read_only_folder_is_named_with_what_to_do(read_only, folder, tmp_path):
    before = contents(read_only)
    merged = re.escape(str(read_only / "merged.safetensors"))
    dataset = TensorDataset(IMAGES, LABELS)
    with unprivileged():
        with pytest.raises(PermissionError, match=f"cannot be written, give merged=: '{merged}'"):
            open_codes(read_only)
        for out in (read_only, read_only / "new"):
            match = f"cannot be written to, choose another folder for out: '{re.escape(str(out))}'"
            with pytest.raises(PermissionError, match=match):
                run(Net(), dataset, out)
        with pytest.raises(PermissionError, match=rf"Permission denied: '{read_only}/all.safetensors'"):
            HashCodes.load(read_only / SHARD).save(read_only / "all.safetensors")
        verify(read_only)
    assert contents(read_only) == before
    assert open_codes(read_only, merged=tmp_path / "all.safetensors") == open_codes(folder)


def test_a_full_disk_leaves_no_merged_file(folder, monkeypatch):
    def half(*arguments):
        yield memoryview(b"half of it")
        raise OSError(28, "No space left on device")

    before = contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr(hybridhash.encoding.opening, "_contents", half)
        with pytest.raises(OSError, match="No space left"):
            open_codes(folder)
    assert contents(folder) == before
    assert len(open_codes(folder)) == 23


def test_all_images_of_a_shard_may_fail(tmp_path):
    images = [None if 10 <= row < 20 else (IMAGES[row], int(LABELS[row])) for row in range(23)]
    with pytest.warns(UserWarning, match="10 of 23"):
        run(Net(), images, tmp_path, batch_size=5)
    good = [*range(10), 20, 21, 22]
    codes = open_codes(tmp_path)
    assert codes.ids is not None
    assert codes.ids.tolist() == good
    assert torch.equal(codes.labels, LABELS[good])  # type: ignore[arg-type]
    assert [failure.row for failure in read_failures(tmp_path)] == list(range(10, 20))
    assert len(HashCodes.load(tmp_path / SHARD)) == 0


# Refused


def test_a_folder_that_is_none_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(
            FileNotFoundError, match=r"no manifest\.json in .*: it is no folder of hybridhash"
        ):
            open_codes(path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"format": "hybri', r"manifest\.json is damaged"),
        ("[]", r"manifest\.json is no manifest"),
        ('{"format": "other"}', r"manifest\.json is no manifest"),
        ('{"format": "hybridhash.encoding", "version": 9}', r"manifest\.json has version 9 of the format"),
        ('{"format": "hybridhash.encoding", "version": 1, "bit": 8}', r"manifest\.json is damaged .*bit"),
    ],
)
def test_a_bad_manifest_is_named(folder, text, match):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=match):
        open_codes(folder)
    with pytest.raises(ValueError, match=match):
        run(Net(), TensorDataset(IMAGES, LABELS), folder)


def test_an_unfinished_encoding_is_refused(folder):
    dataclasses.replace(Manifest.read(folder), complete=False).write(folder)
    with pytest.raises(ValueError, match="unfinished encoding: call encode_dataset again"):
        open_codes(folder)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def scribble(path):
    path.write_bytes(os.urandom(500))


def take_from_another_model(path):
    with torch.no_grad():
        model = Net()
        model.fc.bias.add_(1)
    other = path.parent.parent / "other"
    run(model, TensorDataset(IMAGES, LABELS), other)
    shutil.copy(other / path.name, path)


def take_the_neighbour(path):
    shutil.copy(path.parent / "shard-00000-of-00003.safetensors", path)


def drop_a_row(path):
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    save_file({key: value[1:].clone() for key, value in load_file(path).items()}, path, metadata)


def take_another_kind(path):
    HashCodes.from_codes(torch.randn(10, 12)).save(path)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (truncate, "is truncated or not a safetensors file"),
        (empty, "is truncated or not a safetensors file"),
        (scribble, "is truncated or not a safetensors file"),
        (take_from_another_model, r"belongs to another encoding than manifest\.json describes"),
        (take_another_kind, r"belongs to another encoding than manifest\.json describes"),
        (take_the_neighbour, "holds 10 codes of rows 0-10, not rows 10-20"),
        (drop_a_row, "is damaged .its header is not what its SHA-256 says"),
    ],
)
def test_a_damaged_or_foreign_shard_is_named_and_can_be_encoded_again(folder, damage, match):
    assert callable(damage)
    before = contents(folder)
    damage(folder / SHARD)
    message = f"{re.escape(str(folder / SHARD))} {match}.*delete it and call encode_dataset again"
    with pytest.raises(ValueError, match=message):
        open_codes(folder)
    with pytest.raises(ValueError, match=message):
        read_failures(folder)
    with pytest.raises(ValueError, match=message):
        run(Net(), TensorDataset(IMAGES, LABELS), folder)
    (folder / SHARD).unlink()
    with pytest.raises(FileNotFoundError, match=f"{SHARD} is missing"):
        open_codes(folder)
    run(Net(), TensorDataset(IMAGES, LABELS), folder)
    assert contents(folder) == before


def test_the_manifest_can_be_written_and_read(folder):
    manifest = Manifest.read(folder)
    assert (manifest.complete, manifest.encoded, manifest.bits) == (True, 23, 12)
    manifest.write(folder)
    assert Manifest.read(folder) == manifest
    assert manifest.empty_codes().bits == 12
