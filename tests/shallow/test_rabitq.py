"""RaBitQ's map: orthonormal, unbiased, and with the rotation that finds more held-out neighbours."""

from __future__ import annotations

import pytest
import timm
import torch

from hybridhash import HashCodes, create_hash_model, encode, fit_hash_layer
from hybridhash.hub import load, save_pretrained
from hybridhash.models import create_head, fit_hash_head
from hybridhash.models.heads import ProjectionHead
from hybridhash.shallow import rabitq
from hybridhash.shallow.rabitq import estimated_distances, rabitq_map


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _features(rows=400, width=24, seed=0):
    """Off-centre, with variances that differ."""
    scales = torch.logspace(0, -1, width)
    return torch.randn(rows, width, generator=_seeded(seed)) * scales + 2


def _clusters(rows=600, width=12, seed=0):
    """Near the corners of a cube that is turned: what ITQ's rotation is for."""
    corners = torch.where(torch.rand(rows, width, generator=_seeded(seed)) < 0.5, 1.0, -1.0)
    turn = torch.linalg.qr(torch.randn(width, width, generator=_seeded(seed + 1))).Q
    return (corners + 0.1 * torch.randn(rows, width, generator=_seeded(seed + 2))) @ turn + 5


# The head


@pytest.mark.parametrize("rotation", ["auto", "random", "itq"])
@pytest.mark.parametrize("bits", [1, 7, 24, 40])
def test_the_map_is_orthonormal_and_in_the_units_of_the_features(bits, rotation):
    x = _features()
    head = fit_hash_head(x.split(90), "rabitq", bits, _seeded(), rotation=rotation)
    assert isinstance(head, ProjectionHead)
    weight = head.fc.weight.detach().double()
    product = weight @ weight.T if bits <= 24 else weight.T @ weight
    torch.testing.assert_close(product, torch.eye(len(product), dtype=torch.float64), atol=1e-5, rtol=0)
    z = head(x).detach()
    assert float(z.mean(0).abs().max()) < 1e-4
    torch.testing.assert_close(head.center, x.mean(0))
    centred = (x - x.mean(0)).norm(dim=1)
    torch.testing.assert_close(head.norms(x), centred)
    if bits >= 24:
        torch.testing.assert_close(z.norm(dim=1), centred)
    else:
        # The projection onto the directions of largest variance.
        variances = torch.linalg.eigvalsh(torch.cov(x.double().T)).flip(0)[:bits]
        assert float(z.double().var(0).sum()) == pytest.approx(float(variances.sum()), rel=1e-4)


def test_features_of_low_rank_and_fewer_rows_than_bits_are_padded():
    x = _features(width=5) @ torch.randn(5, 20, generator=_seeded(3))
    head = fit_hash_head(x, "rabitq", 16, _seeded())
    torch.testing.assert_close(head(x).norm(dim=1), head.norms(x), rtol=1e-4, atol=1e-4)
    few = fit_hash_head(x[:8], "rabitq", 16, _seeded(), rotation="random")
    torch.testing.assert_close(few(x[:8]).norm(dim=1), few.norms(x[:8]), rtol=1e-4, atol=1e-4)


def test_the_same_generator_gives_the_same_head():
    heads = [fit_hash_head(_features(), "rabitq", 8, _seeded(5)) for _ in range(2)]
    assert torch.equal(heads[0].fc.weight, heads[1].fc.weight)


# Estimates


@pytest.mark.parametrize("bits", [16, 40])
def test_estimates_of_the_features_have_no_bias(bits):
    """Over random rotations; with fewer bits than directions, of the projections."""
    x, query = _features(300), _features(1, seed=9)
    errors = []
    for seed in range(600):
        head = fit_hash_head(x, "rabitq", bits, _seeded(seed), rotation="random")
        with torch.no_grad():
            z, q = head(x[:1]), head(query)
        codes = HashCodes.from_codes(z, factors=True)
        norm, alignment = codes.factors[0]
        inner = norm / alignment * (codes.codes() @ q.T) / bits**0.5
        if bits == 16:
            errors.append(inner.item() - (z @ q.T).item())
        else:
            errors.append(inner.item() - ((x[:1] - head.center) @ (query - head.center).T).item())
    error = torch.tensor(errors, dtype=torch.float64)
    assert float(error.std()) > 0.01
    assert abs(float(error.mean())) < 3 * float(error.std()) / len(errors) ** 0.5


def test_factors_with_norms_give_the_estimated_distances_of_the_whole_features():
    x, queries = _features(), _features(7, seed=4)
    head = fit_hash_head(x, "rabitq", 12, _seeded())
    with torch.no_grad():
        codes = HashCodes.from_codes(head(x), factors=True, norms=head.norms(x))
        q = head(queries)
    norm, alignment = codes.factors.T
    inner = norm / alignment * (q @ codes.codes().T) / 12**0.5
    got = norm.square() + head.norms(queries)[:, None].square() - 2 * inner
    matrix = head.fc.weight.detach().T
    expected = estimated_distances(queries - head.center, x - head.center, matrix)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(codes.factors[:, 0], head.norms(x))


def test_norms_keep_the_inner_products():
    z = torch.randn(5, 9, generator=_seeded())
    plain, whole = (
        HashCodes.from_codes(z, factors=True, norms=norms).factors for norms in (None, 3 * z.norm(dim=1))
    )
    torch.testing.assert_close(whole[:, 0], 3 * plain[:, 0])
    torch.testing.assert_close(whole[:, 0] / whole[:, 1], plain[:, 0] / plain[:, 1])


def test_norms_of_projections_to_zero():
    codes = HashCodes.from_codes(torch.zeros(2, 8), factors=True, norms=torch.tensor([2.0, 0.0]))
    assert codes.factors[:, 0].tolist() == [2, 0]
    assert codes.factors[0, 0] / codes.factors[0, 1] < 1e-30
    assert codes.factors[1, 1] == 1


@pytest.mark.parametrize(
    ("norms", "error", "message"),
    [
        (torch.ones(2), ValueError, "finite and at least those of the codes"),
        (torch.tensor([9.0, float("nan")]), ValueError, "finite and at least"),
        (torch.tensor([9.0, float("inf")]), ValueError, "finite and at least"),
        (torch.ones(3), ValueError, r"norms must be \(2,\) on cpu, one for each code, got shape \(3,\)"),
        (torch.ones(2, dtype=torch.int64), TypeError, "norms must be a floating-point tensor"),
    ],
)
def test_norms_that_cannot_be(norms, error, message):
    with pytest.raises(error, match=message):
        HashCodes.from_codes(torch.full((2, 4), 3.0), factors=True, norms=norms)
    with pytest.raises(ValueError, match="norms are kept as factors"):
        HashCodes.from_codes(torch.full((2, 4), 3.0), norms=norms)


# The rotation


def test_auto_takes_the_rotation_that_finds_more_held_out_neighbours():
    round_cloud = torch.randn(600, 24, generator=_seeded(7))
    for x, best in ((_clusters(), "itq"), (round_cloud, None)):
        recalls = {}
        for rotation in ("random", "itq", "auto"):
            head = fit_hash_head(x[:500], "rabitq", 12, _seeded(1), rotation=rotation)
            centred, queries = x[:500] - head.center, x[500:] - head.center
            nearest = torch.cdist(queries, centred).topk(10, largest=False).indices
            estimates = estimated_distances(queries, centred, head.fc.weight.detach().T)
            found = estimates.topk(10, largest=False).indices
            recalls[rotation] = float((found[:, :, None] == nearest[:, None]).any(2).double().mean())
        if best:
            assert recalls[best] > recalls["random"] + 0.05
            assert recalls["auto"] > recalls["random"] + 0.05
        assert recalls["auto"] > min(recalls["random"], recalls["itq"]) - 0.02


def test_held_out_queries_are_not_seen_by_the_fit(monkeypatch):
    seen = []

    def record(projected, **_):
        seen.append(len(projected))
        return torch.eye(projected.shape[1], dtype=torch.float64)

    monkeypatch.setattr(rabitq, "itq_rotation", record)
    x = _features(200).double()
    monkeypatch.setattr(rabitq, "random_rotation", lambda bits, _: torch.zeros(bits, bits).double())
    rabitq_map(x - x.mean(0), torch.eye(24, dtype=torch.float64), 24, generator=_seeded())
    assert seen == [160, 200]  # the winner is fitted to all


def test_few_rows_or_many_bits_take_the_random_rotation(monkeypatch):
    monkeypatch.setattr(rabitq, "itq_rotation", None)
    monkeypatch.setattr(rabitq, "_WIDEST", 30)
    for rows, bits in ((99, 8), (200, 31)):
        assert fit_hash_head(_features(rows), "rabitq", bits).bits == bits


# In models


def test_a_model_with_this_head_encodes_with_factors_and_is_saved(tmp_path):
    model = create_hash_model("test_convnext", 8).eval()
    images = torch.randn(40, 3, 32, 32, generator=_seeded())
    fit_hash_layer(model, images.split(20), "rabitq", 12, _seeded(), rotation="random", progress=False)
    assert model.head_name == "projection"
    with torch.no_grad():
        z = model(images)
    codes = encode(model, [images], factors=True, progress=False)
    assert codes == HashCodes.from_codes(z, factors=True)
    save_pretrained(model, tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(loaded.head.center, model.head.center)
    assert torch.equal(loaded(images), z)
    fit_hash_layer(model, images.split(20), "itq", 12, _seeded(), progress=False)
    assert model.head_name == "tanh"


def test_what_cannot_be_fitted_says_so():
    small = {"img_size": 32, "embed_dims": (16, 32, 64), "num_heads": (1, 2, 4), "depths": (1, 1, 1)}
    with pytest.raises(ValueError, match="without tanh, which a hybridhash_\\* has not"):
        fit_hash_layer(timm.create_model("hybridhash_16", **small), [], "rabitq")
    with pytest.raises(ValueError, match="rotation is a setting of 'rabitq', but the method is 'itq'"):
        fit_hash_head(_features(), "itq", 8, rotation="random")
    with pytest.raises(ValueError, match="rotation must be one of 'auto', 'random', 'itq', got 'pca'"):
        fit_hash_head(_features(), "rabitq", 8, rotation="pca")
    assert create_head("projection", 8, 4).norms(torch.full((1, 8), 2.0)) == 32**0.5
