"""Codes in any accepted form, distances and top-k over them, and the HashCodes container."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hybridhash import _code_files
from hybridhash.codes import (
    HashCodes,
    as_packed,
    as_packed_pair,
    hamming_distance,
    hamming_topk,
    pack_codes,
    unpack_codes,
)


def signs(rows, bits, seed=0):
    return torch.where(torch.randn(rows, bits, generator=torch.Generator().manual_seed(seed)) > 0, 1.0, -1.0)


def example(rows=7, bits=12, labels="ids", ids=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    kinds = {
        "ids": torch.randint(-1, 5, (rows,), generator=generator),
        "multi-hot": torch.rand(rows, 11, generator=generator) < 0.3,
        None: None,
    }
    numbers = torch.randperm(1000, generator=generator)[:rows] if ids else None
    return HashCodes.from_codes(signs(rows, bits, seed), kinds[labels], numbers)


def forms(codes):
    """The same codes in every accepted form."""
    return {
        "real": codes * torch.rand(codes.shape).add(0.1),
        "signs": codes,
        "int8": codes.to(torch.int8),
        "bool": codes > 0,
        "packed": pack_codes(codes),
        "HashCodes": HashCodes.from_codes(codes),
    }


FORMS = list(forms(torch.ones(1, 1)))


# As_packed


@pytest.mark.parametrize("form", FORMS)
def test_every_form_packs_to_the_same_bits(form):
    codes = signs(6, 13)
    packed, bits = as_packed(forms(codes)[form], bits=13)
    assert bits == 13
    assert torch.equal(packed, pack_codes(codes))


@pytest.mark.parametrize("form", ["real", "HashCodes"])
def test_codes_that_know_their_bits_need_none(form):
    assert as_packed(forms(signs(6, 13))[form])[1] == 13


def test_packed_codes_are_not_copied():
    packed = pack_codes(signs(3, 16))
    assert as_packed(packed, bits=16)[0] is packed


def test_as_packed_takes_no_rows_but_a_retrieval_needs_some():
    assert as_packed(torch.empty(0, 9))[0].shape == (0, 2)
    some, none = signs(2, 9), torch.empty(0, 9)
    with pytest.raises(ValueError, match="query_codes is empty"):
        as_packed_pair(none, some)
    with pytest.raises(ValueError, match="database_codes is empty"):
        hamming_topk(some, none, 1)


@pytest.mark.parametrize(
    ("codes", "bits", "error", "message"),
    [
        (
            torch.zeros(2, 2, dtype=torch.uint8),
            None,
            ValueError,
            "query is uint8.*say how many bits with bits=",
        ),
        (torch.zeros(2, 2, dtype=torch.uint8), 17, ValueError, r"query of 17 bits must be \(N, 3\)"),
        (torch.full((2, 2), 255, dtype=torch.uint8), 12, ValueError, "query has bits set in the padding"),
        (torch.zeros(2, 16), 17, ValueError, r"query has 16 bits \(columns\), but bits=17"),
        (example(bits=12), 13, ValueError, "query has 12 bits, but bits=13"),
        (torch.full((2, 8), float("nan")), None, ValueError, "query has NaN in 16 of 16"),
        (torch.zeros(2, 5000), None, ValueError, "columns of query must be 1 to 4096, got 5000"),
        (torch.zeros(8), None, ValueError, r"query must be \(N, bits\), got shape \(8,\)"),
        ([[1.0, -1.0]], None, TypeError, "query must be a tensor or HashCodes, got list"),
        (torch.zeros(2, 2, dtype=torch.uint8), "16", TypeError, "bits must be an int 1 to 4096, got '16'"),
    ],
)
def test_as_packed_names_the_argument_and_what_is_wrong(codes, bits, error, message):
    with pytest.raises(error, match=message):
        as_packed(codes, bits=bits, name="query")


@pytest.mark.parametrize(
    ("query", "database", "bits", "message"),
    [
        (signs(2, 16), signs(2, 24), None, "query_codes have 16 bits but database_codes have 24"),
        (example(bits=16), example(bits=24), None, "query_codes have 16 bits but database_codes have 24"),
        (signs(2, 16), pack_codes(signs(2, 24)), None, r"database_codes of 16 bits must be \(N, 2\)"),
        (signs(2, 16), signs(2, 24), 16, r"database_codes has 24 bits \(columns\), but bits=16"),
        (pack_codes(signs(2, 16)), pack_codes(signs(2, 16)), None, "query_codes is uint8"),
    ],
)
def test_sides_of_different_bits_raise_with_both_numbers(query, database, bits, message):
    with pytest.raises(ValueError, match=message):
        hamming_distance(query, database, bits=bits)


def test_sides_on_different_devices_raise():
    elsewhere = torch.empty(2, 1, dtype=torch.uint8, device="meta")
    with pytest.raises(ValueError, match="query_codes are on cpu but database_codes on meta"):
        as_packed_pair(signs(2, 8), elsewhere)


# Distances and top-k


@pytest.mark.parametrize("query_form", FORMS)
@pytest.mark.parametrize("database_form", FORMS)
def test_distance_and_topk_take_any_form_on_either_side(query_form, database_form):
    query, database = signs(4, 21, 1), signs(30, 21, 2)
    literal = torch.tensor([[int((a != b).sum()) for b in database] for a in query], dtype=torch.int16)
    sides = forms(query)[query_form], forms(database)[database_form]
    distances = hamming_distance(*sides, bits=21)
    assert distances.dtype == torch.int16
    assert torch.equal(distances, literal)
    nearest, indices = hamming_topk(*sides, 5, bits=21)
    expected = literal.sort(dim=1, stable=True)
    assert torch.equal(nearest, expected.values[:, :5])
    assert torch.equal(indices, expected.indices[:, :5])


@pytest.mark.parametrize(
    ("top_k", "columns"), [(1, 1), (29, 29), (30, 30), (31, 30), (10**9, 30), (None, 30)]
)
def test_topk_larger_than_the_database_or_none_is_the_whole_database(top_k, columns):
    distances, indices = hamming_topk(signs(2, 8), signs(30, 8, 1), top_k)
    assert distances.shape == indices.shape == (2, columns)
    assert all(len(set(row)) == columns for row in indices.tolist())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"top_k": 0}, ValueError, "top_k must be >= 1, got 0"),
        ({"top_k": -1}, ValueError, "top_k must be >= 1, got -1: use None for the whole database"),
        ({"top_k": True}, TypeError, "top_k must be an int >= 1, got True"),
        ({"top_k": 5.0}, TypeError, "top_k must be an int >= 1, got 5.0"),
        ({"top_k": 5, "chunk_size": 0}, ValueError, "chunk_size must be >= 1, got 0"),
        ({"top_k": 5, "chunk_size": "10"}, TypeError, "chunk_size must be an int >= 1, got '10'"),
    ],
)
def test_topk_refuses_impossible_numbers(arguments, error, message):
    with pytest.raises(error, match=message):
        hamming_topk(signs(2, 8), signs(9, 8), **arguments)


# HashCodes --------------------------------------------------------------------------------------------------


def test_from_codes_packs_and_codes_unpacks():
    codes = signs(5, 19)
    made = HashCodes.from_codes(codes.mul(0.3))
    assert (len(made), made.bits, made.packed.shape) == (5, 19, (5, 3))
    assert made.labels is None
    assert made.ids is None
    assert torch.equal(made.codes(), codes)
    assert made.codes(torch.int8).dtype == torch.int8


def test_labels_and_ids_take_their_canonical_dtypes():
    made = HashCodes.from_codes(
        signs(2, 8), torch.tensor([3, -1], dtype=torch.int16), torch.tensor([5, 5], dtype=torch.int32)
    )
    assert made.labels is not None
    assert made.ids is not None
    assert (made.labels.dtype, made.ids.dtype) == (torch.int64, torch.int64)
    multi_hot = HashCodes.from_codes(signs(2, 8), torch.tensor([[0.0, 1.0], [1.0, 1.0]])).labels
    assert multi_hot is not None
    assert multi_hot.tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (None, "HashCodes(size=7, bits=12, bytes=14, labels=None, ids=None)"),
        ("ids", "HashCodes(size=7, bits=12, bytes=14, labels=class ids, ids=int64)"),
        ("multi-hot", "HashCodes(size=7, bits=12, bytes=14, labels=multi-hot of 11 classes, ids=int64)"),
    ],
)
def test_repr_is_short(labels, text):
    assert repr(example(labels=labels, ids=labels is not None)) == text


def test_it_is_frozen_cannot_be_hashed_or_iterated_and_pickles():
    made = example()
    with pytest.raises(AttributeError):
        made.bits = 8  # type: ignore[misc]
    with pytest.raises(TypeError, match="unhashable"):
        hash(made)
    with pytest.raises(TypeError, match="not iterable"):
        list(made)  # type: ignore[call-overload]
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize("change", ["codes", "labels", "ids", "no labels", "no ids", "bits", "size"])
def test_equality_is_of_content(change):
    made = example()
    assert made == HashCodes(made.packed.clone(), made.bits, made.labels, made.ids)
    packed, labels, ids = made.packed, made.labels, made.ids
    assert labels is not None
    assert ids is not None
    other = {
        "codes": lambda: HashCodes(packed ^ 128, 12, labels, ids),
        "labels": lambda: HashCodes(packed, 12, labels + 1, ids),
        "ids": lambda: HashCodes(packed, 12, labels, ids + 1),
        "no labels": lambda: HashCodes(packed, 12, None, ids),
        "no ids": lambda: HashCodes(packed, 12, labels),
        "bits": lambda: HashCodes(packed, 13, labels, ids),
        "size": lambda: made[:-1],
    }[change]()
    assert made != other
    assert made != "codes"


@pytest.mark.parametrize("labels", [None, "ids", "multi-hot"])
@pytest.mark.parametrize(
    "index",
    [
        slice(None),
        slice(2, 5),
        slice(-3, None),
        slice(5, 2),
        slice(None, None, 3),
        slice(None, None, -1),
        slice(5, 0, -2),
        [0, 6, 3, 3, -1],
        [],
        range(1, 6, 2),
        [True, False, True, False, False, False, True],
        torch.tensor([4, -7]),
        torch.tensor([1], dtype=torch.int32),
        torch.tensor([], dtype=torch.int64),
        torch.tensor([False, True, True, False, False, False, True]),
        np.array([5, 1]),
        np.array([False] * 7),
    ],
    ids=str,
)
def test_indexing_takes_the_same_rows_of_everything(labels, index):
    made = example(labels=labels)
    picked = made[index]
    key = index if isinstance(index, slice) else np.asarray(index) if len(index) else np.zeros(0, np.int64)
    rows = torch.tensor(np.arange(7)[key].tolist(), dtype=torch.int64)
    assert isinstance(picked, HashCodes)
    assert picked.bits == 12
    assert torch.equal(picked.codes(), made.codes()[rows])
    assert made.ids is not None
    assert picked.ids is not None
    assert torch.equal(picked.ids, made.ids[rows])
    if labels is None:
        assert picked.labels is None
    else:
        assert picked.labels is not None
        assert made.labels is not None
        assert torch.equal(picked.labels, made.labels[rows])


@pytest.mark.parametrize("index", [3, -4, np.int64(3), torch.tensor(3)])
def test_an_int_gives_one_row(index):
    made = example()
    assert made[index] == made[3:4]


def test_a_mask_of_one_entry_is_a_mask():
    made = example(rows=1)
    assert len(made[torch.tensor([False])]) == 0
    assert len(made[torch.tensor([True])]) == 1


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (7, IndexError, "index 7 is out of range for 7 codes"),
        (-8, IndexError, "index -8 is out of range for 7 codes"),
        ([0, 99], IndexError, "index 99 is out of range for 7 codes"),
        ([True, False], IndexError, "the mask has 2 entries for 7 codes"),
        (torch.zeros(0, dtype=torch.bool), IndexError, "the mask has 0 entries for 7 codes"),
        ((1, 2), TypeError, "got tuple"),
        ("a", TypeError, "got str"),
        (True, TypeError, "got bool"),
        (None, TypeError, "got NoneType"),
        (1.0, TypeError, "got float"),
        ([1.0], TypeError, "got torch.float32"),
        (torch.tensor(True), TypeError, r"got torch.bool of shape \(\)"),
        (torch.tensor([[1]]), TypeError, r"got torch.int64 of shape \(1, 1\)"),
        (torch.tensor([1, 0], dtype=torch.uint8), TypeError, "got torch.uint8"),
    ],
)
def test_a_bad_index_raises(index, error, message):
    with pytest.raises(error, match=message):
        example()[index]


@pytest.mark.parametrize("labels", [None, "ids", "multi-hot"])
@pytest.mark.parametrize("ids", [False, True])
def test_cat_undoes_slicing(labels, ids):
    made = example(labels=labels, ids=ids)
    assert HashCodes.cat([made[:2], made[2:2], made[2:]]) == made


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (example(bits=16), "part 0 and part 1 do not fit together: bits 12 and 16"),
        (example(labels=None), "labels class ids and None"),
        (example(labels="multi-hot"), "labels class ids and multi-hot of 11 classes"),
        (example(ids=False), "ids int64 and None"),
    ],
)
def test_cat_refuses_parts_that_do_not_fit_and_names_both(other, message):
    with pytest.raises(ValueError, match=message):
        HashCodes.cat([example(), other])


def test_cat_refuses_nothing_and_what_is_no_hash_codes():
    with pytest.raises(ValueError, match="got no parts"):
        HashCodes.cat([])
    with pytest.raises(TypeError, match="part 1 is Tensor"):
        HashCodes.cat([example(), torch.zeros(1, 2)])  # type: ignore[list-item]


def test_to_moves_everything():
    made = example()
    assert made.to("cpu") == made
    if torch.cuda.is_available():
        moved = made.to("cuda")
        assert moved.labels is not None
        assert moved.ids is not None
        assert moved.packed.is_cuda
        assert moved.labels.is_cuda
        assert moved.ids.is_cuda
        assert "device=cuda" in repr(moved)
        assert moved[[1, 2]].to("cpu") == made[[1, 2]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"packed": torch.zeros(3, 1)}, TypeError, "packed must be a uint8 tensor"),
        ({"bits": 20}, ValueError, r"packed of 20 bits must be \(N, 3\), got shape \(3, 2\)"),
        ({"packed": torch.full((3, 2), 1, dtype=torch.uint8)}, ValueError, "padding after bit 12"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, ValueError, "labels has 2 rows, expected 3"),
        ({"labels": torch.zeros(3)}, TypeError, "must be integers, got torch.float32"),
        ({"labels": torch.full((3, 2), 0.5)}, ValueError, "multi-hot"),
        ({"labels": [0, 1, 2]}, TypeError, "labels must be a tensor, got list"),
        ({"labels": torch.zeros(3, dtype=torch.int64, device="meta")}, ValueError, "labels is on meta"),
        ({"ids": torch.zeros(4, dtype=torch.int64)}, ValueError, r"ids must be \(3,\).*got shape \(4,\)"),
        ({"ids": torch.zeros(3, 1, dtype=torch.int64)}, ValueError, r"got shape \(3, 1\)"),
        ({"ids": torch.zeros(3)}, TypeError, "ids must be integers, got torch.float32"),
        ({"ids": torch.zeros(3, dtype=torch.bool)}, TypeError, "ids must be integers, got torch.bool"),
        ({"ids": [0, 1, 2]}, TypeError, "ids must be a tensor, got list"),
        (
            {"ids": torch.zeros(3, dtype=torch.int64, device="meta")},
            ValueError,
            "ids is on meta but the codes on cpu",
        ),
    ],
)
def test_parts_that_do_not_fit_raise(arguments, error, message):
    with pytest.raises(error, match=message):
        HashCodes(**{"packed": torch.zeros(3, 2, dtype=torch.uint8), "bits": 12, **arguments})


# Files


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(1, 4096),
    rows=st.integers(0, 9),
    labels=st.sampled_from([None, "ids", "multi-hot"]),
    ids=st.booleans(),
)
def test_a_file_gives_back_what_was_saved(tmp_path_factory, bits, rows, labels, ids):
    path = tmp_path_factory.mktemp("codes") / "codes.safetensors"
    made = example(rows, bits, labels, ids)
    made.save(path)
    loaded = HashCodes.load(str(path))
    assert loaded == made
    assert torch.equal(loaded.codes(), unpack_codes(made.packed, bits))


def test_a_file_holds_bits_only_and_says_what_it_is(tmp_path):
    path = tmp_path / "codes.safetensors"
    example(rows=1000, bits=64, labels="multi-hot").save(path)
    assert path.stat().st_size < 1000 * (8 + 2 + 8) + 1000
    assert set(load_file(path)) == {"packed", "multi_hot", "ids"}


def test_labels_and_ids_may_be_one_tensor_and_rows_a_view(tmp_path):
    numbers = torch.arange(9)
    made = HashCodes.from_codes(signs(9, 8), numbers, numbers)[::2]
    made.save(tmp_path / "codes")
    assert HashCodes.load(tmp_path / "codes") == made


def test_saving_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "codes.safetensors"
    example(seed=1).save(path)
    loaded = HashCodes.load(path)
    example(seed=2).save(path)
    assert loaded == example(seed=1)
    assert HashCodes.load(path) == example(seed=2)
    assert os.listdir(tmp_path) == [path.name]


def test_saving_to_a_link_writes_the_file_it_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "codes")
    example().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert HashCodes.load(tmp_path / "real" / "codes") == example()


@pytest.mark.parametrize("failing", ["write_tensors", "fsync", "replace"])
def test_a_failed_save_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch, failing):
    path = tmp_path / "codes.safetensors"
    example(seed=1).save(path)
    before = path.read_bytes()

    def half_written(filename, *_):
        Path(filename).write_bytes(b"half")
        raise OSError("disk full")

    def fail(*_):
        raise OSError("disk full")

    if failing == "write_tensors":
        monkeypatch.setattr(_code_files, "write_tensors", half_written)
    else:
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        example(seed=2).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_saving_where_no_file_can_be_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder .*nowhere does not exist, create it"):
        example().save(tmp_path / "nowhere" / "codes")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        example().save(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


def test_loading_nothing_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no codes file at .*missing"):
        HashCodes.load(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="no codes file at"):
        HashCodes.load(tmp_path)


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 0.999))
def test_a_truncated_file_raises_and_is_named(tmp_path_factory, share):
    path = tmp_path_factory.mktemp("codes") / "short.safetensors"
    example(rows=50).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"short.safetensors is truncated or not a safetensors file.*again"):
        HashCodes.load(path)


def test_a_file_of_another_kind_raises_and_is_named(tmp_path):
    path = tmp_path / "foreign"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    with pytest.raises(ValueError, match="foreign is truncated or not a safetensors file"):
        HashCodes.load(path)
    for metadata in (None, {"format": "pt"}):
        save_file({"packed": torch.zeros(2, 1, dtype=torch.uint8)}, path, metadata)
        with pytest.raises(ValueError, match="foreign is a safetensors file, but not of hash codes"):
            HashCodes.load(path)


@pytest.mark.parametrize("version", ["4", None])
def test_a_file_of_another_version_raises(tmp_path, version):
    metadata = {"format": "hybridhash.codes", "bits": "8"} | ({} if version is None else {"version": version})
    save_file({"packed": torch.zeros(2, 1, dtype=torch.uint8)}, tmp_path / "codes", metadata)
    with pytest.raises(ValueError, match=rf"codes has version {version!r} of the format.*upgrade hybridhash"):
        HashCodes.load(tmp_path / "codes")


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"packed": None}, {}, "no 'packed'"),
        ({}, {"bits": None}, "no 'bits'"),
        ({}, {"bits": "many"}, "invalid literal"),
        ({}, {"bits": "30"}, r"packed of 30 bits must be \(N, 4\), got shape \(3, 2\)"),
        ({}, {"bits": "9"}, "padding after bit 9"),
        ({"packed": torch.zeros(3, 2)}, {}, "packed must be a uint8 tensor"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, {}, "labels has 4 rows, expected 3"),
        ({"ids": torch.zeros(3)}, {}, "ids must be integers"),
        ({"extra": torch.zeros(3)}, {}, r"unexpected tensors \['extra'\]"),
        ({}, {"classes": "5"}, "no 'multi_hot'"),
        (
            {"multi_hot": torch.zeros(3, 1, dtype=torch.uint8)},
            {"classes": "9"},
            r"multi_hot of 9 bits must be",
        ),
        ({"multi_hot": torch.zeros(3, 1, dtype=torch.uint8)}, {}, r"unexpected tensors \['multi_hot'\]"),
    ],
)
def test_a_damaged_file_raises_and_is_named(tmp_path, tensors, metadata, message):
    whole = {"packed": torch.full((3, 2), 64, dtype=torch.uint8), **tensors}
    described = {"format": "hybridhash.codes", "version": "1", "bits": "12", **metadata}
    save_file(
        {name: tensor for name, tensor in whole.items() if tensor is not None},
        tmp_path / "codes",
        {name: value for name, value in described.items() if value is not None},
    )
    with pytest.raises(ValueError, match=rf"codes is damaged \(.*{message}.*write it again"):
        HashCodes.load(tmp_path / "codes")
