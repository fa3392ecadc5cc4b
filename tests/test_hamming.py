"""The kernels on packed bits against literal loops, numpy.packbits and a full stable sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridhash import _hamming as kernels
from hybridhash._hamming import pack_bits, packed_distances, packed_topk, unpack_bits
from hybridhash.codes import binarize, pack_codes, unpack_codes

odd_bits = st.integers(0, 2047).map(lambda half: 2 * half + 1)
any_bits = st.one_of(st.integers(1, 600), st.integers(1, 4096), odd_bits)
seeds = st.integers(0, 2**31)
WIDTHS = [
    1,
    7,
    8,
    9,
    16,
    24,
    25,
    32,
    33,
    48,
    64,
    65,
    100,
    128,
    200,
    255,
    256,
    257,
    512,
    769,
    2047,
    2048,
    2049,
    4095,
    4096,
]


def signs(rows, bits, seed=0, flip=0.5):
    """±1 codes, float32 (rows, bits); a small ``flip`` makes many equal ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.where(torch.rand(rows, bits, generator=generator) < flip, 1.0, -1.0)


def differing(query, database):
    """The definition: how many entries differ, pair by pair."""
    return torch.tensor([[int((a != b).sum()) for b in database] for a in query])


def ranked(distances, top_k):
    """The definition: sort (distance, index) of all items."""
    order = torch.tensor(
        [sorted(range(distances.shape[1]), key=lambda j: (row[j], j)) for row in distances.tolist()]
    )
    return distances.gather(1, order)[:, :top_k], order[:, :top_k]


# Counts


@settings(max_examples=60, deadline=None)
@given(
    # 4,096 bits are the longest codes; keys of one, two and four bytes.
    bits=st.sampled_from([1, 7, 8, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 512, 1000, 4096]),
    grades=st.sampled_from([1, 2, 3, 22, 300]),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 40)),
    flip=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    seed=seeds,
)
def test_counts_are_those_of_a_literal_loop(bits, grades, sizes, flip, seed):
    query, database = signs(sizes[0], bits, seed, flip), signs(sizes[1], bits, seed + 1, 1 - flip)
    random = np.random.default_rng(seed)
    grade = random.integers(0, grades, sizes).astype(np.min_scalar_type(grades - 1))
    want = random.integers(0, 9, (sizes[0], bits + 1, grades))  # counts are added to what is there
    got = want.copy()
    words = [kernels.machine_words(pack_bits(codes > 0).numpy()) for codes in (query, database)]
    kernels.packed_counts(*words, lambda row: grade[row], got)
    for (row, item), distance in np.ndenumerate(differing(query, database).numpy()):
        want[row, distance, grade[row, item]] += 1
    np.testing.assert_array_equal(got, want)


# Binarize


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_binarize_keeps_a_floating_dtype_and_maps_zero_to_minus_one(dtype):
    codes = torch.tensor([[0.5, -0.5, 0.0, -0.0, float("inf"), -float("inf")]], dtype=dtype)
    expected = torch.tensor([[1, -1, -1, -1, 1, -1]], dtype=dtype)
    torch.testing.assert_close(binarize(codes), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int32, torch.int64])
def test_binarize_gives_int8_for_whole_numbers(dtype):
    result = binarize(torch.tensor([[1, 0]]).to(dtype))
    assert result.dtype == torch.int8
    assert result.tolist() == [[1, -1]]


def test_binarize_takes_any_shape_leaves_its_input_alone_and_has_no_gradient():
    codes = torch.randn(2, 3, 4, requires_grad=True)
    before = codes.detach().clone()
    result = binarize(codes)
    assert result.shape == codes.shape
    assert not result.requires_grad
    assert torch.equal(codes.detach(), before)


# Pack and unpack


@settings(max_examples=60, deadline=None)
@given(bits=any_bits, rows=st.integers(0, 20), seed=seeds)
def test_pack_equals_numpy_packbits_and_unpack_inverts_it(bits, rows, seed):
    codes = signs(rows, bits, seed)
    packed = pack_codes(codes)
    assert packed.dtype == torch.uint8
    np.testing.assert_array_equal(packed.numpy(), np.packbits(codes.numpy() > 0, axis=-1))
    assert torch.equal(unpack_codes(packed, bits), codes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64])
def test_unpack_gives_the_dtype_asked_for(dtype):
    codes = signs(5, 11).to(dtype)
    result = unpack_codes(pack_codes(codes), 11, dtype=dtype)
    assert result.dtype == dtype
    assert torch.equal(result, codes)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int16, torch.bfloat16, torch.float64])
def test_pack_takes_every_real_dtype(dtype):
    codes = signs(4, 13)
    other = (codes > 0) if dtype == torch.bool else codes.to(dtype)
    assert torch.equal(pack_codes(other), pack_codes(codes))


def test_zero_is_bit_0_and_infinities_have_their_sign():
    codes = torch.tensor([[0.0, -0.0, float("inf"), -float("inf"), 1e-30]])
    assert pack_codes(codes).tolist() == [[0b00101000]]


def test_pack_takes_tensors_that_are_not_contiguous():
    codes = signs(13, 6).T
    assert torch.equal(pack_codes(codes), pack_codes(codes.contiguous()))


@pytest.mark.parametrize("width", [1, 80, 1000])
def test_pack_bits_has_no_limit_of_width(width):
    hot = signs(3, width) > 0
    assert torch.equal(unpack_bits(pack_bits(hot), width).bool(), hot)


@pytest.mark.parametrize("width", WIDTHS)
def test_devices_without_numpy_pack_the_same(width):
    hot = signs(5, width) > 0
    packed = kernels._pack_by_shifts(hot)
    assert torch.equal(packed, pack_bits(hot))
    assert torch.equal(kernels._unpack_by_shifts(packed, width), unpack_bits(packed, width))


# Distances


@pytest.mark.parametrize("bits", WIDTHS)
def test_distances_count_the_differing_entries(bits):
    query, database = signs(5, bits, 1), torch.cat([signs(9, bits, 2), signs(5, bits, 1), -signs(5, bits, 1)])
    distances = packed_distances(pack_codes(query), pack_codes(database), bits)
    assert distances.dtype == (torch.uint8 if bits <= 255 else torch.int16)
    assert torch.equal(distances.long(), differing(query, database))
    assert distances.max() == bits


@settings(max_examples=30, deadline=None)
@given(bits=any_bits, tile=st.integers(9, 5000), sizes=st.tuples(st.integers(0, 40), st.integers(0, 300)))
def test_distances_do_not_depend_on_the_tiles(bits, tile, sizes):
    query, database = signs(sizes[0], bits, 3), signs(sizes[1], bits, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_TILE", tile)
        distances = packed_distances(pack_codes(query), pack_codes(database), bits)
    assert torch.equal(distances.float(), (bits - query @ database.T) / 2)


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_product_form_of_accelerators_gives_the_same_distances(bits):
    query, database = pack_codes(signs(6, bits, 5)), pack_codes(signs(50, bits, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = kernels._distances_by_product(query, database, bits)
    assert torch.equal(product.to(torch.int16), packed_distances(query, database, bits).to(torch.int16))


def test_distances_take_rows_that_are_not_contiguous_or_not_aligned():
    packed = torch.randint(0, 256, (40, 19), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    query, database = packed[::2, 3:11], packed[1::2, 3:11]
    expected = packed_distances(query.contiguous(), database.contiguous(), 64)
    assert torch.equal(packed_distances(query, database, 64), expected)


# Top-k


@settings(max_examples=60, deadline=None)
@given(
    bits=st.one_of(st.integers(1, 12), any_bits),
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 200)),
    top_k=st.integers(1, 200),
    chunk_size=st.one_of(st.none(), st.integers(1, 250)),
    seed=seeds,
    flip=st.sampled_from([0.05, 0.5]),
)
def test_topk_is_the_head_of_a_stable_sort(bits, sizes, top_k, chunk_size, seed, flip):
    query, database = signs(sizes[0], bits, seed, flip), signs(sizes[1], bits, seed + 1, flip)
    top_k = min(top_k, sizes[1])
    expected = ranked(((bits - query @ database.T) / 2).long(), top_k)
    distances, indices = packed_topk(pack_codes(query), pack_codes(database), bits, top_k, chunk_size)
    assert (distances.dtype, indices.dtype) == (torch.int16, torch.int64)
    assert torch.equal(distances.long(), expected[0])
    assert torch.equal(indices, expected[1])


@pytest.mark.parametrize("order", ["random", "nearest first", "nearest last", "all equal"])
@pytest.mark.parametrize(
    ("bits", "size", "chunk_size"),
    [(16, 30_000, None), (64, 30_000, 7000), (300, 30_000, None), (4096, 11_000, 4500)],
)
def test_topk_of_many_chunks_holds_in_every_order_of_the_database(order, bits, size, chunk_size):
    query, database = signs(3, bits, 7), signs(size, bits, 8)
    distance = ((bits - database @ query[0]) / 2).long()
    if order == "all equal":
        database = database[:1].expand(size, bits)
    elif order != "random":
        database = database[distance.argsort(descending=order == "nearest last")]
    full = ((bits - query @ database.T) / 2).long()
    expected = full.sort(dim=1, stable=True)
    distances, indices = packed_topk(pack_codes(query), pack_codes(database), bits, 50, chunk_size)
    assert torch.equal(distances.long(), expected.values[:, :50])
    assert torch.equal(indices, expected.indices[:, :50])


@pytest.mark.parametrize("bits", [3, 64, 300, 2048, 4095])
@pytest.mark.parametrize("chunk", [40, 64, 500])
def test_the_key_form_of_accelerators_ranks_the_same(bits, chunk):
    query, database = pack_codes(signs(4, bits, 9)), pack_codes(signs(300, bits, 10))
    expected = packed_topk(query, database, bits, 60)
    distances, indices = kernels._topk_by_key(query, database, bits, 60, chunk)
    assert torch.equal(distances.to(torch.int16), expected[0])
    assert torch.equal(indices, expected[1])


@pytest.mark.parametrize("queries", [1, 2, 40])
def test_threads_change_nothing(queries, monkeypatch):
    query, database = pack_codes(signs(queries, 70, 14)), pack_codes(signs(5000, 70, 15))
    distances, top = packed_distances(query, database, 70), packed_topk(query, database, 70, 30)
    monkeypatch.setattr(kernels, "_PAIRS", 600)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(packed_distances(query, database, 70), distances)
    with torch.inference_mode():
        inside = packed_topk(query, database, 70, 30, 500)
        assert torch.equal(packed_distances(query, database, 70), distances)
    for results in (packed_topk(query, database, 70, 30, 500), inside):
        assert all(torch.equal(got, expected) for got, expected in zip(results, top, strict=True))


def test_topk_holds_for_more_queries_than_fit_a_block():
    query, database = signs(700, 4096, 11), signs(20, 4096, 12)
    expected = ((4096 - query @ database.T) / 2).sort(dim=1, stable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_PAIRS", 500)
        distances, indices = packed_topk(pack_codes(query), pack_codes(database), 4096, 5, 8)
    assert torch.equal(distances.float(), expected.values[:, :5])
    assert torch.equal(indices, expected.indices[:, :5])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bits", [5, 64, 257, 512, 2048, 2049, 4096])
def test_a_gpu_gives_what_the_cpu_gives(bits):
    codes = signs(3000, bits, 13)
    packed = pack_codes(codes)
    on_gpu = pack_codes(codes.cuda())
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), packed)
    assert torch.equal(
        packed_distances(on_gpu[:9], on_gpu, bits).cpu(), packed_distances(packed[:9], packed, bits)
    )
    for gpu, cpu in zip(
        packed_topk(on_gpu[:9], on_gpu, bits, 100, 1000),
        packed_topk(packed[:9], packed, bits, 100),
        strict=True,
    ):
        assert torch.equal(gpu.cpu(), cpu)


# Bad input


@pytest.mark.parametrize("function", [binarize, pack_codes])
def test_nan_raises_with_its_count(function):
    codes = torch.zeros(3, 4)
    codes[1, 2] = codes[2, 0] = float("nan")
    with pytest.raises(ValueError, match="codes has NaN in 2 of 12 entries"):
        function(codes)  # type: ignore[operator]


@pytest.mark.parametrize("function", [binarize, pack_codes])
@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(2, 8, dtype=torch.uint8), "uint8, which means packed"),
        (torch.zeros(2, 8, dtype=torch.complex64), "must be real, got torch.complex64"),
        ([[1.0, -1.0]], "must be a tensor, got list"),
        (np.array([["a", "b"]]), "must hold real numbers, got a NumPy array of <U1"),
    ],
)
def test_codes_of_a_wrong_type_raise(function, codes, message):
    with pytest.raises(TypeError, match=message):
        function(codes)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8,), r"must be \(N, bits\), got shape \(8,\)"),
        ((2, 3, 8), r"must be \(N, bits\), got shape \(2, 3, 8\)"),
        ((2, 0), "columns of codes must be 1 to 4096, got 0"),
        ((2, 4097), "columns of codes must be 1 to 4096, got 4097"),
    ],
)
def test_pack_refuses_shapes_that_are_no_codes(shape, message):
    with pytest.raises(ValueError, match=message):
        pack_codes(torch.zeros(shape))


@pytest.mark.parametrize(
    ("packed", "bits", "error", "message"),
    [
        (
            torch.zeros(2, 2, dtype=torch.uint8),
            17,
            ValueError,
            r"17 bits must be \(N, 3\), got shape \(2, 2\)",
        ),
        (torch.zeros(2, 2, dtype=torch.uint8), 8, ValueError, r"8 bits must be \(N, 1\), got shape \(2, 2\)"),
        (torch.zeros(2, dtype=torch.uint8), 16, ValueError, r"got shape \(2,\)"),
        (torch.tensor([[0, 1]], dtype=torch.uint8), 15, ValueError, "padding after bit 15"),
        (torch.tensor([[0b00010000]], dtype=torch.uint8), 3, ValueError, "padding after bit 3"),
        (torch.zeros(2, 2), 16, TypeError, "must be a uint8 tensor of packed codes, got torch.float32"),
        ([[0]], 8, TypeError, "got list"),
        (torch.zeros(2, 1, dtype=torch.uint8), True, TypeError, "bits must be an int 1 to 4096, got True"),
        (torch.zeros(2, 1, dtype=torch.uint8), 8.0, TypeError, "bits must be an int 1 to 4096, got 8.0"),
        (torch.zeros(2, 0, dtype=torch.uint8), 0, ValueError, "bits must be 1 to 4096, got 0"),
        (torch.zeros(2, 513, dtype=torch.uint8), 4097, ValueError, "bits must be 1 to 4096, got 4097"),
    ],
)
def test_unpack_refuses_what_does_not_fit(packed, bits, error, message):
    with pytest.raises(error, match=message):
        unpack_codes(packed, bits)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.complex64])
def test_unpack_refuses_dtypes_without_minus_one(dtype):
    with pytest.raises(TypeError, match="dtype must hold -1"):
        unpack_codes(torch.zeros(1, 1, dtype=torch.uint8), 8, dtype=dtype)
