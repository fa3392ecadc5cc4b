"""Hash layers from unlabelled images: their bits by literal formulas, in every kind of model."""

import copy
import math

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hybridhash import create_hash_model, encode, fit_hash_layer, unpack_codes
from hybridhash.eval import mean_average_precision
from hybridhash.hub import load, save_pretrained
from hybridhash.models import HashModel, fit_hash_head
from hybridhash.models.heads import SpectralHead, SphericalHead, TanhHead
from hybridhash.shallow import itq_rotation
from tests._processes import run_on_ranks

METHODS = ["itq", "pca", "pca-rr", "lsh", "sh", "sph"]
LINEAR = METHODS[:4]
ALL = [*METHODS, "rabitq"]  # tests/shallow/test_rabitq.py has the rest of it
DIRECTIONS = METHODS[:3]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def features(rows=150, width=20, seed=0):
    """Correlated, off-centre and with variances that differ, as those of networks are."""
    g = seeded(seed)
    mixing = torch.randn(width, width, generator=g) * torch.logspace(0, -1, width)
    return torch.randn(rows, width, generator=g) @ mixing + 2


def images(rows=60, channels=3, seed=1):
    return torch.randn(rows, channels, 32, 32, generator=seeded(seed))


def hash_model(bits=8, **kwargs):
    torch.manual_seed(0)
    return create_hash_model("test_convnext", bits, **kwargs).eval()


def hybrid_model(bits=8):
    torch.manual_seed(0)
    small = {"img_size": 32, "embed_dims": (16, 32, 64), "num_heads": (1, 2, 4), "depths": (1, 1, 1)}
    return timm.create_model("hybridhash_16", num_classes=bits, **small).eval()


MODELS = {"hash_model": hash_model, "hybridhash": hybrid_model}


def fit(model, method="itq", x=None, **kwargs):
    kwargs = {"generator": seeded(), "progress": False, **kwargs}
    return fit_hash_layer(model, (images() if x is None else x).split(25), method, **kwargs)


def embeddings_of(model, x):
    with torch.no_grad():
        return model.forward_head(model.forward_features(x), pre_logits=True)


def bits_of(model, x):
    codes = encode(model, [x], progress=False)
    return unpack_codes(codes.packed, codes.bits) > 0


# What the methods compute.


def test_pca_bits_are_those_of_scikit_learn():
    x = features()
    head = fit_hash_head(x.split(40), "pca", bits=9)
    projected = PCA(9, svd_solver="full").fit_transform(x.double().numpy())
    z = head.fc(x).detach().numpy()
    cosines = (z * projected).sum(0) / np.linalg.norm(z, axis=0) / np.linalg.norm(projected, axis=0)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-6)


@pytest.mark.parametrize("method", LINEAR)
def test_linear_methods_centre_and_have_one_scale(method):
    x = features(width=24)
    head = fit_hash_head(x, method, bits=16, generator=seeded())
    assert isinstance(head, TanhHead)
    z = head.fc(x).detach().double()
    assert float(z.mean(0).abs().max()) < 1e-5
    if method == "lsh":
        assert 0.5 < float(z.square().mean()) < 2
    else:
        assert float(z.square().mean()) == pytest.approx(1, abs=0.02)
        weight = head.fc.weight.detach().double()
        gram = weight @ weight.T
        assert float((gram / gram[0, 0] - torch.eye(16)).abs().max()) < 1e-5


def test_itq_is_pca_and_the_rotation_of_the_projected_features():
    x = features()
    g = seeded(4)
    torch.rand(len(x), dtype=torch.float64, generator=g)  # the keys of the sample
    pca = PCA(8, svd_solver="full").fit(x.double().numpy())
    peaks = np.take_along_axis(pca.components_, np.abs(pca.components_).argmax(1)[:, None], 1)
    projected = torch.as_tensor(pca.transform(x.double().numpy()) * np.sign(peaks).T)
    expected = projected @ itq_rotation(projected, generator=g)
    head = fit_hash_head(x, "itq", bits=8, generator=seeded(4))
    assert torch.equal(head(x) > 0, expected > 0)


def test_itq_quantises_better_than_pca_and_a_random_rotation():
    x = features(400)

    def loss(method):
        z = fit_hash_head(x, method, bits=12, generator=seeded()).fc(x).detach()
        return float((z.sign() - z).square().mean())

    assert loss("itq") < loss("pca-rr") < loss("pca")


@pytest.mark.parametrize("method", ["itq", "rabitq"])
def test_the_first_bits_of_several_lengths_are_those_of_a_head_of_the_shortest(method):
    x = features()
    rotation = {} if method == "itq" else {"rotation": "itq"}
    nested = fit_hash_head(x, method, 12, seeded(), lengths=(4, 8, 12), **rotation)
    alone = fit_hash_head(x, method, 4, seeded(), **rotation)
    assert torch.equal(nested(x)[:, :4] > 0, alone(x) > 0)


def test_lengths_on_digits_keep_short_codes_good():
    digits, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    x, heads = digits.float(), {}
    heads["nested"] = fit_hash_head(x, "itq", 32, seeded(), lengths=(8, 16, 32))
    heads["cut"] = fit_hash_head(x, "itq", 32, seeded())
    for bits, least in ((8, 0.1), (16, 0.0)):
        nested, cut = (
            float(mean_average_precision(z[:300], labels[:300], z[300:], labels[300:]))
            for z in (heads[kind](x)[:, :bits] for kind in ("nested", "cut"))
        )
        assert nested > cut + least


def test_rabitq_of_several_lengths_keeps_inner_products_of_every_prefix():
    x = features()
    head = fit_hash_head(x, "rabitq", 12, seeded(), lengths=(4, 12))
    rows = head.fc.weight.double()
    assert torch.allclose(rows @ rows.T, torch.eye(12, dtype=torch.float64), atol=1e-5)
    directions = torch.linalg.eigh(torch.cov(x.double().T))[1].flip(1)[:, :4]
    assert torch.allclose(rows[:4].T @ rows[:4], directions @ directions.T, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "lengths", "error", "message"),
    [
        ("itq", (4, 8), ValueError, r"end with the code length 12, got \(4, 8\)"),
        ("itq", (8, 4, 12), ValueError, r"must ascend, each once, got \(8, 4, 12\): use \(4, 8, 12\)"),
        ("rabitq", (), ValueError, "name at least one code length"),
        ("rabitq", 12, TypeError, "several code lengths, such as"),
        ("itq", (4.0, 12), TypeError, "lengths"),
        ("lsh", (4, 12), ValueError, "for 'itq' and 'rabitq', but the method is 'lsh'"),
    ],
)
def test_lengths_that_cannot_be(method, lengths, error, message):
    with pytest.raises(error, match=message):
        fit_hash_head(features(), method, 12, lengths=lengths)


def test_lengths_beyond_the_directions_of_the_features():
    flat = features(width=6) @ torch.randn(6, 20, generator=seeded())
    assert fit_hash_head(flat, "rabitq", 12, lengths=(4, 12)).bits == 12
    with pytest.raises(ValueError, match="vary in 6 directions, none of which is left for the bits after"):
        fit_hash_head(flat, "rabitq", 12, lengths=(4, 8, 12))


@pytest.mark.parametrize("method", ["itq", "rabitq"])
def test_a_model_knows_its_lengths_after_saving_and_loading(method, tmp_path):
    model = create_hash_model("resnet10t", bits=8)
    assert model.lengths is None
    images = torch.randn(24, 3, 32, 32, generator=seeded())
    fit_hash_layer(model, [images], method, lengths=(2, 8), progress=False)
    assert model.lengths == (2, 8)
    assert load(save_pretrained(model, tmp_path)).lengths == (2, 8)
    assert load(tmp_path, num_classes=16).lengths is None
    model.reset_classifier(8)
    assert model.lengths is None


def test_lsh_is_a_random_gaussian_map_around_the_mean():
    x = features(width=6)
    head = fit_hash_head(x, "lsh", bits=2000, generator=seeded(2))
    weight = torch.randn(2000, 6, dtype=torch.float64, generator=seeded(2))
    expected = (x.double() - x.double().mean(0)) @ weight.T > 0
    assert float((expected == (head(x) > 0)).double().mean()) > 0.9999


@pytest.mark.parametrize("bits", [8, 50])
def test_spectral_hashing_is_the_authors_formula(bits):
    x = features(width=6).double()
    pca = PCA(min(bits, 6), svd_solver="full").fit(x.numpy())
    signs = np.sign(np.take_along_axis(pca.components_, np.abs(pca.components_).argmax(1)[:, None], 1))
    projected = pca.transform(x.numpy()) * signs.T
    low, sides = projected.min(0), np.ptp(projected, axis=0)
    modes = sorted((m * math.pi / side, d, m) for d, side in enumerate(sides) for m in range(1, bits + 1))
    expected = np.stack(
        [np.sin(math.pi / 2 + omega * (projected[:, d] - low[d])) for omega, d, _ in modes[:bits]], axis=1
    )
    head = fit_hash_head(x.float(), "sh", bits=bits)
    assert isinstance(head, SpectralHead)
    np.testing.assert_allclose(head(x.float()).detach(), expected, atol=1e-4)


def test_spherical_hashing_balances_its_bits():
    x = features(200)
    head = fit_hash_head(x, "sph", bits=40, generator=seeded())  # more bits than features
    assert isinstance(head, SphericalHead)
    assert (head(x) > 0).sum(0).tolist() == [100] * 40


def test_spherical_bits_are_one_inside_the_sphere():
    x = features(200)
    head = fit_hash_head(x, "sph", bits=5, generator=seeded())
    y = (x - head.mean) * head.scale
    pivots = head.fc.weight / 2
    radii = (head.fc.bias + pivots.square().sum(1)).sqrt()
    torch.testing.assert_close(head(x), torch.tanh(radii**2 - torch.cdist(y, pivots) ** 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ALL)
def test_batches_do_not_matter_and_a_generator_decides(method):
    x = features()
    heads = [
        fit_hash_head(batches, method, bits=8, generator=seeded(3))
        for batches in (x, x.split(7), [x[:1], x[1:1], x[1:]])
    ]
    for head in heads[1:]:
        torch.testing.assert_close(head.state_dict(), heads[0].state_dict(), rtol=1e-5, atol=1e-5)
    other = fit_hash_head(x, method, bits=8, generator=seeded(4))
    same = torch.allclose(other.fc.weight, heads[0].fc.weight)
    assert same == (method in ("pca", "sh"))


@pytest.mark.parametrize("method", ALL)
def test_a_given_generator_leaves_the_global_one_alone(method):
    state = torch.get_rng_state()
    fit_hash_head(features(), method, bits=8, generator=seeded(3))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", ["itq", "sph"])
def test_a_sample_of_many_features_is_enough(method):
    x = features(3000)
    head = fit_hash_head(x.split(100), method, bits=8, generator=seeded(), sample_size=400)
    balance = (head(x) > 0).float().mean(0)
    assert 0.4 < float(balance.min()) < float(balance.max()) < 0.6


# What they are worth.


def map_of(method, bits, query, query_labels, database, labels, seed=0):
    head = fit_hash_head(database, method, bits, seeded(seed))
    with torch.no_grad():
        return float(mean_average_precision(head(query), query_labels, head(database), labels))


@pytest.mark.parametrize("bits", [32, 64])
def test_itq_beats_pca_beats_lsh_where_much_of_the_variance_is_noise(bits):
    g = seeded()
    labels, spread = torch.randint(50, (900,), generator=g), torch.linspace(2, 0.5, 80)
    signal = torch.randn(50, 80, generator=g)[labels] + 0.5 * torch.randn(900, 80, generator=g)
    basis = torch.linalg.qr(torch.randn(500, 80, generator=g))[0]
    x = (signal * spread) @ basis.T + 0.7 * torch.randn(900, 500, generator=g) + 1
    split = x[:150], labels[:150], x[150:], labels[150:]
    itq, pca, lsh = (map_of(method, bits, *split) for method in ("itq", "pca", "lsh"))
    assert itq > pca + 0.05
    assert pca > lsh + 0.2


@pytest.mark.parametrize("bits", [32, 48])
def test_on_digits_a_rotation_of_the_principal_directions_beats_random_ones(bits):
    images, classes = load_digits(return_X_y=True)
    x, labels = torch.as_tensor(images, dtype=torch.float32), torch.as_tensor(classes)
    split = x[:300], labels[:300], x[300:], labels[300:]
    itq, rotated, lsh = (
        sum(map_of(method, bits, *split, seed=seed) for seed in range(3)) / 3
        for method in ("itq", "pca-rr", "lsh")
    )
    assert itq > rotated + 0.02
    assert rotated > lsh + 0.02


# What happens to models.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_gives_the_codes_of_a_head_on_its_embeddings(kind, method):
    model, x = MODELS[kind](), images()
    embeddings = embeddings_of(model, x)
    before = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("head.fc")}
    assert fit(model, method, x) is model
    head = fit_hash_head(embeddings.split(25), method, 8, seeded())
    assert float((bits_of(model, x) == (head(embeddings) > 0)).float().mean()) > 0.99
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(p.requires_grad for p in model.parameters())
    assert model.bits == 8
    if method in LINEAR:
        assert isinstance(model.get_classifier(), nn.Linear)
        torch.testing.assert_close(model.get_classifier().state_dict(), head.fc.state_dict())


@pytest.mark.parametrize("method", ["itq", "sh", "sph"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_fitted_model_is_copied_exported_and_restored(kind, method):
    model, x = fit(MODELS[kind](), method, bits=10), images(4, seed=5)
    codes = model(x)
    assert codes.shape == (4, 10)
    assert bool((codes.abs() <= 1).all())
    torch.testing.assert_close(copy.deepcopy(model)(x), codes)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), codes, rtol=1e-4, atol=1e-4)
    other = fit(MODELS[kind](), method, bits=10, x=images(seed=9))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), codes)
    codes.sum().backward()
    assert bool(next(model.parameters()).grad.isfinite().all())
    model.reset_classifier(6)
    assert model(x).shape == (4, 6)


@pytest.mark.parametrize("method", METHODS)
def test_a_fitted_model_is_saved_and_loaded_exactly(method, tmp_path):
    model, x = fit(hash_model(), method, bits=11), images(4, seed=5)
    save_pretrained(model, tmp_path)
    loaded = load(tmp_path).eval()
    assert isinstance(loaded, HashModel)
    assert torch.equal(loaded(x), model(x))


def test_hybridhash_is_saved_with_linear_methods_and_refused_with_others(tmp_path):
    model, x = fit(hybrid_model(), "itq", bits=10), images(4)
    save_pretrained(model, tmp_path / "itq")
    assert torch.equal(load(tmp_path / "itq").eval()(x), model(x))
    with pytest.raises(ValueError, match=r"pruned or replaced are head\.fc"):
        save_pretrained(fit(model, "sh"), tmp_path / "sh")
    model = create_hash_model("hybridhash_16", 8, **model.model_args)
    save_pretrained(fit(model, "sh"), tmp_path / "sh")
    assert torch.equal(load(tmp_path / "sh").eval()(x), model.eval()(x))


@pytest.mark.parametrize("kind", MODELS)
def test_one_model_can_be_fitted_again_and_again(kind):
    model, x = MODELS[kind](), images()
    for method in ("sh", "itq", "sph", "lsh", "sh"):
        fit(model, method, x)
        assert torch.equal(bits_of(model, x), bits_of(fit(MODELS[kind](), method, x), x))


@pytest.mark.parametrize(
    "head", ["bihalf", "continuation", "greedy", "sigmoid", "sign", "tanh", "unbounded", "weighted"]
)
def test_a_head_that_is_the_sign_of_its_map_stays(head):
    model = fit(hash_model(head=head), bits=9)
    assert model.head_name == head
    assert torch.equal(bits_of(model, images()), bits_of(fit(hash_model(), bits=9), images()))


@pytest.mark.parametrize("head", ["batchnorm", "divide", "mlp", "two_level"])
def test_a_head_that_is_not_becomes_linear(head, tmp_path):
    model = fit(hash_model(head=head))
    assert model.head_name == model.model_args["head"] == "tanh"
    assert torch.equal(bits_of(model, images()), bits_of(fit(hash_model()), images()))
    save_pretrained(model, tmp_path)


def test_arguments_of_a_head_that_stays_are_kept():
    model = fit(hash_model(head="bihalf", head_args={"gamma": 2.0}), bits=5)
    assert model.head.gamma == 2.0
    assert model.model_args["head_args"] == {"gamma": 2.0}


def test_embedding_models_get_a_hash_layer():
    model = hash_model()
    model.reset_classifier(0)
    with pytest.raises(ValueError, match=r"num_classes=0, which means no hash layer: give bits"):
        fit(model)
    assert fit(model, bits=7).bits == 7


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", ["itq", "sh", "sph"])
def test_dtypes_and_modes_of_the_model_are_kept(kind, method):
    model = MODELS[kind]().to(torch.bfloat16).train()
    backbone = next(model.children())
    backbone.eval()
    modes = [m.training for m in backbone.modules()]
    fit(model, method, images().bfloat16())
    assert model.training
    assert [m.training for m in backbone.modules()] == modes
    assert model.get_classifier().training
    assert {v.dtype for k, v in model.state_dict().items() if "head.fc" in k} == {torch.bfloat16}
    assert model(images(2).bfloat16()).dtype == torch.bfloat16


def test_autocast_and_what_loaders_yield():
    x, model = images(), hash_model()
    data = TensorDataset(x, torch.arange(60) % 3, torch.arange(60))
    exact = bits_of(fit(model, x=x), x)
    fit_hash_layer(model, DataLoader(data, batch_size=25), "itq", generator=seeded(), progress=False)
    assert torch.equal(bits_of(model, x), exact)
    batches = [{"pixel_values": part} for part in x.split(25)]
    fit_hash_layer(model, batches, generator=seeded(), progress=False, dtype=torch.bfloat16)
    assert float((bits_of(model, x) == exact).float().mean()) > 0.9


def test_wrappers_are_looked_through():
    model = hash_model()
    compiled = torch.compile(model, backend="eager")
    assert fit(compiled, bits=7) is compiled
    assert model.bits == 7


# Bad input.


@pytest.mark.parametrize("method", DIRECTIONS)
def test_more_bits_than_the_width_names_the_limit_and_methods_without_one(method):
    with pytest.raises(ValueError, match=rf"'{method}' gives at most 20 bits here, the width .* got bits=21"):
        fit_hash_head(features(), method, bits=21)
    with pytest.raises(ValueError, match="that give more are 'lsh', 'sh', 'sph', 'rabitq' and 'contrastive'"):
        fit_hash_head(features(), method, bits=21)


@pytest.mark.parametrize("method", ["lsh", "sh", "sph"])
def test_methods_without_this_limit_give_more(method):
    head = fit_hash_head(features(), method, bits=64)
    assert head(features()).shape == (150, 64)


@pytest.mark.parametrize("method", DIRECTIONS)
def test_features_that_vary_in_few_directions_limit_the_bits(method):
    x = features(width=5) @ torch.randn(5, 20, generator=seeded())
    with pytest.raises(ValueError, match=r"at most 5 bits here, the directions in which the features vary"):
        fit_hash_head(x, method, bits=6)
    assert fit_hash_head(x, method, bits=5).bits == 5


@pytest.mark.parametrize("method", ALL)
def test_fewer_images_than_bits(method):
    x = features(8)
    if method in ("lsh", "rabitq"):
        assert fit_hash_head(x, method, bits=8).bits == 8
    else:
        with pytest.raises(ValueError, match=r"needs more items than bits, got 8 for 8 bits.*only 'lsh'"):
            fit_hash_head(x, method, bits=8)


@pytest.mark.parametrize("method", ALL)
def test_constant_features(method):
    noise = 1 + 1e-7 * torch.randn(50, 20, generator=seeded())
    for x in (torch.zeros(50, 20), torch.full((50, 20), 3.3), 5 * noise):
        with pytest.raises(ValueError, match="features of all 50 items are the same"):
            fit_hash_head(x, method, bits=8)


def test_a_single_image_has_no_code():
    with pytest.raises(ValueError, match="features of all 1 items are the same"):
        fit_hash_head(features(1), "lsh", bits=8)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("batches", [[], [torch.empty(0, 20)]])
def test_no_features(method, batches):
    with pytest.raises(ValueError, match="there are no features: give at least one item"):
        fit_hash_head(batches, method, bits=8)


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="no method is called 'pca-r': did you mean pca-rr"):
        fit_hash_head(features(), "pca-r")
    with pytest.raises(
        ValueError,
        match="no method is called 'xyz': did you mean itq, pca, pca-rr, lsh, sh, sph, rabitq, contrastive",
    ):
        fit_hash_head(features(), "xyz")
    with pytest.raises(ValueError, match="bits must be 1 to 4096, got 0"):
        fit_hash_head(features(), "itq", bits=0)
    with pytest.raises(ValueError, match="iterations must be >= 0, got -1"):
        fit_hash_head(features(), "itq", bits=4, iterations=-1)
    with pytest.raises(ValueError, match="sample_size must be more than the 16 bits, got 16"):
        fit_hash_head(features(), "itq", bits=16, sample_size=16)


def test_nan_names_the_batch_and_the_model_stays_as_it_was():
    x, model = images(), hash_model().train()
    before = copy.deepcopy(model.state_dict())
    x[30] = float("nan")
    with pytest.raises(ValueError, match=r"features of batch 1 hold NaN or infinity in 1 of 25 rows.* row 5"):
        fit(model, "sph", x, bits=12)
    with pytest.raises(ValueError, match="there are no features: give at least one item"):
        fit_hash_layer(model, [], "sh", progress=False)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert model.training
    assert model.head_name == "tanh"
    assert model.bits == 8


def test_models_without_a_pooled_feature():
    model = create_hash_model("test_convnext", 8, global_pool="")
    with pytest.raises(ValueError, match="global_pool='avg'"):
        fit(model)
    model = hybrid_model()
    model.reset_classifier(8, "")
    with pytest.raises(ValueError, match=r"pooled to \(B, D\), got .*global_pool='avg'"):
        fit(model)


def test_what_is_no_hash_model_or_no_loader():
    with pytest.raises(TypeError, match=r"hash model, .*, got ConvNeXt; .* fit_hash_head"):
        fit(timm.create_model("test_convnext"))
    with pytest.raises(TypeError, match="loader must yield batches, got a tensor"):
        fit_hash_layer(hash_model(), images())


# Several processes.


def _fit_on_rank(rank, x):
    part = (x[:110], x[110:])[rank]
    results = {method: fit_hash_head(part.split(30), method, 8, seeded(rank)).state_dict() for method in ALL}
    failures = []
    for bad in (part * math.nan if rank == 1 else part, part[:0]):
        try:
            fit_hash_head(bad, "pca", 8)
        except (ValueError, RuntimeError) as error:
            failures.append(str(error))
    return results, failures


def test_processes_fit_the_layer_of_all_images():
    (first, failed_first), (second, failed_second) = run_on_ranks(_fit_on_rank, features(150))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    for method in ("pca", "sh", "lsh"):
        alone = fit_hash_head(features(150), method, 8, seeded(0)).state_dict()
        torch.testing.assert_close(first[method], alone, rtol=1e-5, atol=1e-5)
    assert "process 1 of 2 failed: ValueError: features of batch 0 hold NaN" in failed_first[0]
    assert failed_second[0].startswith("features of batch 0 hold NaN")
    assert all("there are no features" in failures[1] for failures in (failed_first, failed_second))
