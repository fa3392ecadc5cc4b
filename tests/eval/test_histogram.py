"""The distance histogram against literal counting, for every way it is computed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridhash.codes import hamming_distance
from hybridhash.eval import distance_histogram, histogram
from hybridhash.labels import as_labels, shared_labels


def case(seed, queries, items, bits, classes, *, single, density=0.2):
    generator = torch.Generator().manual_seed(seed)
    query, codes = (
        torch.randn(queries, bits, generator=generator),
        torch.randn(items, bits, generator=generator),
    )
    if single:
        sides = [torch.randint(-1, classes, (n,), generator=generator) for n in (queries, items)]
    else:
        sides = [torch.rand(n, classes, generator=generator) < density for n in (queries, items)]
    return query, sides[0], codes, sides[1]


def literal(query, query_labels, codes, labels, *, graded):
    distances, shared = hamming_distance(query, codes), shared_labels(query_labels, labels).long()
    grades = shared if graded else shared.clamp(max=1)
    counts = torch.zeros(len(query), query.shape[1] + 1, int(grades.max()) + 1, dtype=torch.long)
    for row in range(len(query)):
        for item in range(len(codes)):
            counts[row, distances[row, item], grades[row, item]] += 1
    return counts


def assert_counts(histogram, want):
    grades = want.shape[2]
    assert torch.equal(histogram.counts[:, :, :grades], want)
    assert not histogram.counts[:, :, grades:].any()
    assert torch.equal(histogram.grades, histogram.counts.sum(1))


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 99),
    bits=st.sampled_from([1, 7, 8, 16, 33, 64, 100, 130, 300]),
    classes=st.sampled_from([1, 3, 21, 70]),
    single=st.booleans(),
    graded=st.booleans(),
    chunk_size=st.sampled_from([None, 1, 7, 1000]),
)
@pytest.mark.filterwarnings("ignore:all .* codes are the same")
def test_counts_equal_literal_counting(seed, bits, classes, single, graded, chunk_size):
    arguments = case(seed, 5, 31, bits, classes, single=single)
    got = distance_histogram(*arguments, graded=graded, chunk_size=chunk_size)
    assert_counts(got, literal(*arguments, graded=graded))


@pytest.mark.parametrize("bits", [12, 64, 127, 128, 260])
@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("graded", [True, False])
def test_long_rows_equal_a_plain_count(bits, single, graded):
    query, query_labels, codes, labels = case(1, 3, 20_001, bits, 21, single=single)
    got = distance_histogram(query, query_labels, codes, labels, graded=graded)
    distances, shared = hamming_distance(query, codes), shared_labels(query_labels, labels).long()
    grades = shared if graded else shared.clamp(max=1)
    for row in range(3):
        for grade in range(got.counts.shape[2]):
            want = torch.bincount(distances[row][grades[row] == grade].long(), minlength=bits + 1)
            assert torch.equal(got.counts[row, :, grade], want)


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("graded", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_the_accelerator_path_counts_the_same(single, graded, chunk_size):
    # The path for CUDA tensors is plain torch: it runs on the CPU too.
    arguments = case(2, 6, 500, 24, 9, single=single)
    want = distance_histogram(*arguments, graded=graded)
    options = {"chunk_size": chunk_size}
    data = histogram.query_database(*arguments, options)
    with torch.autocast("cpu", torch.bfloat16):
        got = histogram._count_on_device(data, want.counts.shape[2], graded)
    assert torch.equal(got, want.counts)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("graded", [True, False])
def test_cuda_counts_the_same(single, graded):
    arguments = case(3, 20, 3000, 48, 30, single=single)
    want = distance_histogram(*arguments, graded=graded)
    got = distance_histogram(*(side.cuda() for side in arguments), graded=graded)
    assert got.counts.is_cuda
    assert torch.equal(got.counts.cpu(), want.counts)


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("items", [400, 17_000])
def test_threads_and_modes_of_torch_do_not_change_the_counts(single, items):
    arguments = case(4, 9, items, 16, 4, single=single)
    want = distance_histogram(*arguments, graded=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(distance_histogram(*arguments, graded=True).counts, want.counts)
        with torch.inference_mode():
            assert torch.equal(distance_histogram(*arguments, graded=True).counts, want.counts)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(distance_histogram(*arguments, graded=True).counts, want.counts)
        torch.set_default_dtype(torch.float16)
        assert torch.equal(distance_histogram(*arguments, graded=True).counts, want.counts)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)


@pytest.mark.parametrize("bits", [4, 200])
def test_hundreds_of_shared_labels_are_counted(bits):
    arguments = case(8, 4, 40, bits, 400, single=False, density=0.9)
    got = distance_histogram(*arguments, graded=True)
    assert_counts(got, literal(*arguments, graded=True))
    assert int(got.counts.sum((0, 1)).nonzero().max()) > 255


def test_complements_and_copies_of_a_query_are_counted():
    # The largest key and the smallest.
    for bits in (1, 64, 180, 181, 512, 4095, 4096):
        query = torch.ones(1, bits)
        codes = torch.cat([-query.expand(10_003, -1), query.expand(10_000, -1)])
        labels = torch.ones(20_003, 2, dtype=torch.bool)
        for arguments in (
            (query, labels[:1], codes, labels),
            (query, torch.zeros(1).long(), codes, torch.zeros(20_003).long()),
        ):
            counts = distance_histogram(*arguments).counts[0]
            assert counts[[0, bits], 1].tolist() == [10_000, 10_003]
            assert int(counts.sum()) == 20_003


def test_a_database_in_several_parts_is_counted_whole(monkeypatch):
    arguments = case(9, 7, 50_001, 24, 6, single=False)
    want = distance_histogram(*arguments, graded=True)
    monkeypatch.setattr(histogram, "_SPAN", 20_000)
    monkeypatch.setattr(histogram, "_LABEL_BYTES", 100_000)
    assert torch.equal(distance_histogram(*arguments, graded=True).counts, want.counts)


def test_items_are_counted_in_parts_that_torch_does_not_split_between_threads(monkeypatch):
    # torch.bincount looks for the largest key first, in all threads from 2^15 keys on (its GRAIN_SIZE). Where
    # other processes use the cores too, waiting for them took ten times as long as counting.
    sizes, count = [], torch.bincount

    def recorded(keys, **options):
        sizes.append(len(keys))
        return count(keys, **options)

    monkeypatch.setattr(torch, "bincount", recorded)
    distance_histogram(*case(9, 2, 50_001, 24, 6, single=True))
    assert sum(sizes) == 2 * 50_001
    assert max(sizes) <= 2**15


def test_gains_are_shared_labels_and_two_to_the_r_minus_one():
    arguments = case(5, 4, 60, 8, 6, single=False, density=0.5)
    histogram = distance_histogram(*arguments, graded=True)
    distances, shared = (
        hamming_distance(arguments[0], arguments[2]),
        shared_labels(arguments[1], arguments[3]),
    )
    for distance in range(9):
        here = distances == distance
        assert histogram.gains()[:, distance].tolist() == (shared * here).sum(1).tolist()
        exponential = ((2**shared - 1) * here).sum(1)
        assert histogram.gains(exponential=True)[:, distance].tolist() == exponential.tolist()


def test_inputs_are_not_written_to():
    arguments = case(6, 4, 60, 8, 6, single=False)
    copies = [side.clone() for side in arguments]
    distance_histogram(*arguments, graded=True)
    assert all(torch.equal(side, copy) for side, copy in zip(arguments, copies, strict=True))


def test_one_hot_labels_are_counted_as_class_ids():
    query, ids, codes, database_ids = case(7, 6, 90, 10, 5, single=True)
    one_hot = [
        torch.nn.functional.one_hot(side.clamp(min=0), 5) * (side >= 0)[:, None]
        for side in (ids, database_ids)
    ]
    want = distance_histogram(query, ids, codes, database_ids)
    assert torch.equal(distance_histogram(query, one_hot[0], codes, one_hot[1]).counts, want.counts)


def test_bool_labels_are_not_copied():
    labels = torch.zeros(5, 3, dtype=torch.bool)
    assert as_labels(labels) is labels
