"""The contrastive head on ready features: its neighbours, its views, where it goes, and what it refuses."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

from hybridhash import create_hash_model, fit_hash_layer
from hybridhash.eval import mean_average_precision
from hybridhash.hub import load, save_pretrained
from hybridhash.models import fit_contrastive, fit_hash_head
from hybridhash.models.fit_contrastive import nearest_neighbours, walk_ends
from hybridhash.models.heads import HashCoderHead

FEW = 20  # steps


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def features(rows=150, width=12, seed=0):
    g = seeded(seed)
    return torch.randn(rows, width, generator=g) @ torch.randn(width, width, generator=g) + 2


def fit(x, bits=8, seed=0, **kwargs):
    return fit_hash_head(x, "contrastive", bits, seeded(seed), **{"iterations": FEW, **kwargs})


def test_neighbours_are_those_of_scikit_learn():
    x = features(90)
    exact = NearestNeighbors(n_neighbors=6, metric="cosine").fit(x.double()).kneighbors(return_distance=False)
    assert torch.equal(nearest_neighbours(x, 6), torch.as_tensor(exact))
    assert nearest_neighbours(torch.cat([x[:3], x[:3]]), 1).flatten().tolist() == [3, 4, 5, 0, 1, 2]


def test_blocks_do_not_change_the_neighbours():
    x = features(6000, width=4)  # two blocks
    found = nearest_neighbours(x, 3)
    rows = torch.tensor([0, 5591, 5592, 5999])
    cosines = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x[rows]).T
    cosines[rows, torch.arange(4)] = -math.inf
    assert torch.equal(found[rows], cosines.T.topk(3).indices)


def test_it_retrieves_better_than_itq_on_the_digits_without_a_label():
    images, classes = load_digits(return_X_y=True)
    x, labels = torch.as_tensor(images, dtype=torch.float32), torch.as_tensor(classes)
    query, database = x[:300], x[300:]
    scores = []
    for method, rounds in (("contrastive", 60), ("itq", 50)):
        head = fit_hash_head(database, method, 16, seeded(), iterations=rounds)
        with torch.no_grad():
            found = mean_average_precision(head(query), labels[:300], head(database), labels[300:])
        scores.append(float(found))
    assert scores[0] > scores[1] + 0.05


def test_bits_are_balanced_over_all_features():
    x = features(300)
    head = fit(x)
    assert isinstance(head, HashCoderHead)
    assert not head.training
    z = head(x).detach()
    torch.testing.assert_close(z.mean(0), head.norm.bias.detach(), atol=1e-2, rtol=0)
    assert [norm.momentum for norm in (head.hidden_norm, head.norm)] == [0.1, 0.1]


def test_no_step_gives_a_random_balanced_network():
    x = features()
    z = fit(x, iterations=0)(x).detach()
    torch.testing.assert_close(z.mean(0), torch.zeros(8), atol=1e-2, rtol=0)


@pytest.mark.parametrize("iterations", [1, 10, 11])
def test_few_steps_are_enough_to_run(iterations):
    assert bool(fit(features(), iterations=iterations)(features()).isfinite().all())


def test_the_generator_decides_and_the_global_one_is_left_alone():
    x = features()
    state = torch.get_rng_state()
    first, again, other = fit(x), fit(x.split(40)), fit(x, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not torch.equal(first.fc.weight, other.fc.weight)


def test_it_trains_where_gradients_are_off_and_leaves_the_features_alone():
    x = features()
    copy, expected = x.clone(), fit(x)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(fit(x).state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert torch.equal(x, copy)
    expected(x).sum().backward()
    assert expected.fc.weight.grad is not None


def test_a_walk_goes_from_neighbour_to_neighbour():
    ring = torch.stack([(torch.arange(20) - 1) % 20, (torch.arange(20) + 1) % 20], 1)
    ends = walk_ends(ring, torch.zeros(400, dtype=torch.int64), seeded())
    assert set(ends.tolist()) == {1, 3, 17, 19}  # three steps left or right from 0
    assert torch.equal(ends, walk_ends(ring, torch.zeros(400, dtype=torch.int64), seeded()))


def test_positives_are_of_the_group_of_their_item(monkeypatch):
    group = torch.arange(60) % 2
    x = torch.randn(60, 6, generator=seeded()) + 50 * torch.nn.functional.one_hot(group, 6)
    ends = walk_ends(nearest_neighbours(x, 10), torch.arange(60), seeded())
    assert torch.equal(group[ends], group)
    seen = []

    def loss(codes, labels, **settings):
        seen.append((labels, settings))
        return codes.sum() * 0

    monkeypatch.setattr(fit_contrastive, "contrastive_loss", loss)
    fit(x, bits=4, iterations=2)
    assert [settings for _, settings in seen] == [{"temperature": 0.4, "binary": "sign"}] * 2
    assert torch.equal(seen[0][0], torch.arange(60).repeat(2))


def test_views_take_the_place_of_neighbours(monkeypatch):
    # The part that both views share is small; neighbours would follow the large part that they do not.
    g = seeded()
    item, noise = torch.randn(400, 4, generator=g), torch.randn(2, 400, 4, generator=g)
    first, second = (torch.cat([item, 3 * part], 1) for part in noise)
    monkeypatch.setattr(fit_contrastive, "nearest_neighbours", None)  # not even looked for
    head = fit(first, bits=16, iterations=100, views=second)
    with torch.no_grad():
        same = (head(first).sign() * head(second).sign()).mean()
    assert same > 0.5
    batches = fit(first.split(90), bits=16, iterations=100, views=list(second.split(90)))
    torch.testing.assert_close(head.state_dict(), batches.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (features(149), r"batch 0 of views has shape \(149, 12\), that of features \(150, 12\)"),
        (features(150, width=11), r"batch 0 of views has shape \(150, 11\), that of features \(150, 12\)"),
        ([features(), features(10)], "features end after 1 batches, but views go on"),
        ([], "views end after 0 batches, but features go on"),
    ],
)
def test_views_of_other_counts_are_refused(views, message):
    with pytest.raises(ValueError, match=message):
        fit(features(), views=views)


def test_views_for_another_method_are_refused():
    with pytest.raises(ValueError, match="views are for method 'contrastive', and 'itq' takes none"):
        fit_hash_head(features(), "itq", 8, views=features())


def test_bad_features_are_refused():
    x = features()
    x[7, 3] = math.nan
    with pytest.raises(ValueError, match=r"features of batch 0 hold NaN or infinity in 1 of 150 .* row 7"):
        fit(x)
    with pytest.raises(ValueError, match="needs more items than bits, got 8 for 8 bits"):
        fit(features(8))
    with pytest.raises(ValueError, match="features of all 50 items are the same"):
        fit(torch.ones(50, 12))
    with pytest.raises(TypeError, match="views of batch 0 must be a tensor, got list"):
        fit(features(), views=[[1.0]])


def test_more_bits_than_directions_are_no_limit_and_few_items_have_few_neighbours():
    x = features(width=3) @ torch.randn(3, 20, generator=seeded())
    z = fit(x, bits=40)(x)
    assert z.shape == (150, 40)
    assert bool(z.isfinite().all())
    assert fit(features(5), bits=3)(features(2)).shape == (2, 3)
    assert fit(features(width=1), bits=4)(features(2, width=1)).shape == (2, 4)


@pytest.mark.parametrize("backbone", ["test_convnext", "hybridhash_16"])
def test_the_head_goes_into_a_model_that_is_saved_and_loaded(backbone, tmp_path):
    torch.manual_seed(0)
    small = {"embed_dims": (16, 32, 64), "num_heads": (1, 2, 4), "depths": (1, 1, 1), "img_size": 32}
    model = create_hash_model(backbone, 8, **(small if backbone == "hybridhash_16" else {})).eval()
    x = torch.randn(40, 3, 32, 32, generator=seeded(1))
    fit_hash_layer(model, x.split(25), "contrastive", 10, seeded(), iterations=FEW, progress=False)
    assert model.head_name == "hashcoder"
    with torch.no_grad():
        embeddings = model.forward_head(model.forward_features(x), pre_logits=True)
        codes = model(x)
    torch.testing.assert_close(fit(embeddings.split(25), bits=10)(embeddings), codes, atol=1e-4, rtol=1e-4)
    save_pretrained(model, tmp_path)
    assert torch.equal(load(tmp_path).eval()(x), model(x))
    fit_hash_layer(model, x.split(25), "itq", 10, seeded(), progress=False)
    assert model.head_name == "tanh"
