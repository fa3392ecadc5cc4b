"""NumPy arrays and NumPy integers wherever tensors of codes or labels and integers are taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hybridhash import eval as evaluation
from hybridhash.codes import HashCodes, hamming_topk, pack_codes
from tests.eval._oracles import WITH_A_CUT, random_case


@pytest.mark.parametrize("metric", [*WITH_A_CUT, evaluation.precision_within_radius])
def test_metrics_take_arrays(metric):
    case = random_case(seed=40)
    assert metric(*[side.numpy() for side in case]) == metric(*case)


def test_evaluate_and_the_histogram_take_arrays():
    case = random_case(seed=41)
    arrays = [side.numpy() for side in case]
    rows = torch.arange(12)
    want = evaluation.evaluate(*case, top_k=9, exclude_self=rows)
    assert evaluation.evaluate(*arrays, top_k=9, exclude_self=rows.numpy()).to_dict() == want.to_dict()
    got = evaluation.distance_histogram(*arrays)
    assert torch.equal(got.counts, evaluation.distance_histogram(*case).counts)


@pytest.mark.parametrize("definition", evaluation.DEFINITIONS)
def test_published_definitions_see_the_zeros_of_arrays(definition):
    query, query_labels, codes, labels = random_case(seed=42)
    case = (query.round(), query_labels, codes.round(), labels)
    want = evaluation.mean_average_precision(*case, definition=definition)
    arrays = [side.numpy() for side in case]
    assert evaluation.mean_average_precision(*arrays, definition=definition) == want


def test_hash_codes_and_top_k_take_arrays():
    query, _, codes, labels = random_case(seed=43)
    ids = np.arange(150, dtype=np.uint32)
    made = HashCodes.from_codes(codes.numpy(), labels.numpy(), ids)
    assert made == HashCodes.from_codes(codes, labels, torch.arange(150))
    packed = np.packbits(codes.numpy() > 0, axis=1)
    assert HashCodes(packed, np.int64(8), labels.numpy(), ids) == made
    want = hamming_topk(query, codes, 5)
    for some in (codes.numpy(), packed, codes.double().numpy()[:, ::1], np.asfortranarray(codes.numpy())):
        distances, indices = hamming_topk(query.numpy(), some, np.int64(5))
        assert torch.equal(distances, want[0])
        assert torch.equal(indices, want[1])


def test_arrays_that_torch_cannot_share_are_copied():
    codes = random_case(seed=44)[0].numpy()
    want = pack_codes(torch.from_numpy(codes))
    fixed = codes.copy()
    fixed.flags.writeable = False
    for array in (fixed, codes[::-1][::-1], codes.astype(">f8"), codes[:, ::-1][:, ::-1]):
        assert torch.equal(pack_codes(array), want)
    reversed_rows = pack_codes(codes[::-1])
    assert torch.equal(reversed_rows, want.flip(0))


@pytest.mark.parametrize("number", [np.int64(5), np.int32(5), np.uint8(5)])
def test_integers_of_numpy_are_integers(number, tmp_path):
    case = random_case(seed=45)
    for metric in WITH_A_CUT:
        assert metric(*case, top_k=number) == metric(*case, top_k=5)
        assert metric(*case, chunk_size=number) == metric(*case)
    assert evaluation.precision_within_radius(*case, radius=number) == evaluation.precision_within_radius(
        *case, radius=5
    )
    report = evaluation.evaluate(*case, top_k=number, ks=np.array([1, 5]), radius=number)
    assert report.to_dict() == evaluation.evaluate(*case, top_k=5, ks=(1, 5), radius=5).to_dict()
    report.to_json(tmp_path / "report.json")


@pytest.mark.parametrize("cuts", [np.array([5, 6]), torch.tensor([5, 6]), range(5, 7)])
def test_cuts_of_any_kind_of_sequence(cuts):
    case = random_case(seed=46)
    want = evaluation.precision_at_k(*case, top_k=[5, 6])
    assert torch.equal(evaluation.precision_at_k(*case, top_k=cuts), want)


def test_arrays_of_words_are_refused():
    query, query_labels, codes, labels = random_case(seed=47)
    with pytest.raises(TypeError, match="query_labels must hold real numbers, got a NumPy array of <U"):
        evaluation.mean_average_precision(query, np.array(["cat"] * 12), codes, labels)
    with pytest.raises(TypeError, match="database_codes must hold real numbers, got a NumPy array of object"):
        evaluation.mean_average_precision(query, query_labels, codes.numpy().astype(object), labels)


def test_labels_in_one_column_of_numbers_are_refused():
    query, _, codes, labels = random_case(seed=48)
    column = labels[:, :1].long()
    with pytest.raises(ValueError, match=r"database_labels of shape \(N, 1\) may be class ids or one class"):
        evaluation.mean_average_precision(query, torch.zeros(12).long(), codes, column)
    one_class = evaluation.mean_average_precision(query, torch.zeros(12).long(), codes, column.bool())
    ids = torch.where(column[:, 0] > 0, 0, -1)
    assert one_class == evaluation.mean_average_precision(query, torch.zeros(12).long(), codes, ids)


def test_codes_of_eight_bit_floats_are_packed_and_meta_tensors_refused():
    codes = random_case(seed=49)[0]
    assert torch.equal(
        pack_codes(codes.to(torch.float8_e4m3fn)), pack_codes(codes.to(torch.float8_e4m3fn).float())
    )
    with pytest.raises(ValueError, match="codes is on the meta device and holds no numbers"):
        pack_codes(torch.empty(2, 8, device="meta"))
