"""Codes of ready embeddings: every kind of input, the model that comes with them, what binarising costs."""

import json

import numpy as np
import pytest
import torch

import hybridhash
from hybridhash import HashCodes, binarization_report, encode, hash_embeddings
from hybridhash.embeddings import encode_embeddings
from hybridhash.hub import load, save_pretrained
from tests import ROOT


def _features(rows=400, width=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(2, 0.2, width)
    return torch.randn(rows, width, generator=generator) * scales + 0.3


def _generator():
    return torch.Generator().manual_seed(7)


@pytest.fixture(scope="module")
def reference():
    return hash_embeddings(_features(), 16, generator=_generator(), batch_size=100)


@pytest.mark.parametrize(
    "kind",
    [
        "numpy", "mapped", "float16", "float64", "gradient", "list",
        "loader", "tuples", "empty batches", "noncontiguous",
    ],
)  # fmt: skip
def test_every_kind_of_features_gives_the_same_codes(kind, reference, tmp_path):
    features = _features()
    tolerance = 0
    if kind == "numpy":
        given = features.numpy()
    elif kind == "mapped":
        np.save(tmp_path / "x.npy", features.numpy())
        given = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif kind == "float16":
        given, tolerance = features.half(), 0.02
    elif kind == "float64":
        given = features.double().numpy()
    elif kind == "gradient":
        given = features.clone().requires_grad_()
    elif kind == "tuples":
        data = torch.utils.data.TensorDataset(features)
        given = torch.utils.data.DataLoader(data, batch_size=100)
    elif kind == "empty batches":
        given = [features[:0], *features.split(100), features[:0]]
    elif kind == "list":
        given = [part.numpy() for part in features.split(100)]
    elif kind == "loader":
        given = torch.utils.data.DataLoader(features, batch_size=100)
    else:
        given = features.T.contiguous().T
    codes, _ = hash_embeddings(given, 16, generator=_generator(), batch_size=100)
    differing = (codes.codes() != reference[0].codes()).float().mean()
    assert differing <= tolerance
    assert codes.ids.tolist() == list(range(400))


def test_bfloat16_gives_the_codes_of_its_values_in_float32():
    rounded = _features().bfloat16()
    codes, _ = hash_embeddings(rounded, 16, generator=_generator())
    expected, _ = hash_embeddings(rounded.float(), 16, generator=_generator())
    assert torch.equal(codes.packed, expected.packed)
    assert torch.equal(codes.factors, expected.factors)


def test_codes_are_those_of_the_model_and_carry_factors(reference):
    codes, model = reference
    norms = model.head.norms(_features())
    again = HashCodes.from_codes(model(_features()), ids=torch.arange(400), factors=True, norms=norms)
    assert torch.equal(codes.packed, again.packed)
    assert torch.allclose(codes.factors, again.factors)
    assert not model.training


@pytest.mark.parametrize("bits", [5, 24, 77])
def test_lengths_below_at_and_above_the_width(bits):
    codes, model = hash_embeddings(_features(), bits, generator=_generator())
    assert codes.bits == model.bits == bits
    assert model(_features()[:2]).shape == (2, bits)


@pytest.mark.parametrize("method", ["itq", "lsh"])
def test_other_methods_have_no_factors(method):
    codes, _ = hash_embeddings(_features(), 16, method, generator=_generator())
    assert codes.factors is None


def test_labels_are_kept_and_used(reference):
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(400) % 4
    centres = torch.randn(4, 24, generator=generator)
    features = centres[labels] + 1.5 * torch.randn(400, 24, generator=generator)
    query, query_labels = features[:100], labels[:100]
    maps = {}
    for method in ("auto", "itq"):
        codes, model = hash_embeddings(features[100:], 8, method, labels[100:], generator=_generator())
        assert torch.equal(codes.labels, labels[100:])
        found = hybridhash.eval.mean_average_precision(model(query).detach(), query_labels, codes)
        maps[method] = float(found)
    assert maps["auto"] > maps["itq"]


def test_cosine_ignores_lengths():
    features = _features()
    lengths = torch.linspace(0.5, 3, 400)[:, None]
    one, _ = hash_embeddings(features, 16, metric="cosine", generator=_generator())
    other, model = hash_embeddings(features * lengths, 16, metric="cosine", generator=_generator())
    assert (one.codes() != other.codes()).float().mean() < 0.01
    assert torch.allclose(model(features), model(features * 7), atol=1e-4)


def test_the_model_is_saved_and_loaded_with_its_card(reference, tmp_path):
    codes, model = reference
    save_pretrained(model, tmp_path / "head")
    loaded = load(tmp_path / "head").eval()
    assert torch.equal(loaded(_features()), model(_features()))
    assert encode(loaded, [_features()], progress=False).packed.equal(codes.packed)
    card = (tmp_path / "head" / "README.md").read_text()
    assert "embeddings of width 24" in card
    assert "PIL" not in card
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    assert config["pretrained_cfg"]["mean"] == [0.0]


def test_the_generator_decides_alone(reference):
    torch.manual_seed(0)
    one, _ = hash_embeddings(_features(), 16, generator=_generator(), batch_size=100)
    torch.manual_seed(1)
    other, _ = hash_embeddings(_features(), 16, generator=_generator(), batch_size=37)
    assert torch.equal(one.packed, reference[0].packed)
    assert torch.equal(one.packed, other.packed)
    assert torch.allclose(one.factors, other.factors, atol=1e-4)


def test_progress_goes_to_stderr_and_counts_rows(capsys):
    hash_embeddings(_features(), 8, generator=_generator(), progress=True)
    shown = capsys.readouterr()
    assert "fit rabitq" in shown.err
    assert "400/400" in shown.err
    assert shown.out == ""


def test_a_file_of_codes_is_all_that_a_search_needs(reference, tmp_path):
    codes, model = reference
    codes.save(tmp_path / "codes.safetensors")
    database = HashCodes.load(tmp_path / "codes.safetensors")
    query_codes = model(_features(7, seed=5)).detach()
    found = hybridhash.asymmetric_topk(query_codes, database, 10, metric="euclidean")
    expected = hybridhash.asymmetric_topk(query_codes, codes, 10, metric="euclidean")
    assert torch.equal(database.factors, codes.factors)
    assert torch.equal(database.ids, codes.ids)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    # The scores of a query are distances to the embeddings, less what it has outside of the projection.
    scores, rows = hybridhash.asymmetric_topk(query_codes, database, None, metric="euclidean")
    exact = torch.cdist(_features(7, seed=5), _features()).square().gather(1, rows)
    for pair in zip(exact, scores, strict=True):
        assert torch.corrcoef(torch.stack(pair))[0, 1] > 0.8


def test_further_embeddings_get_ids_of_their_own(reference):
    codes, model = reference
    later = encode_embeddings(model, iter([_features(5)]), ids=torch.arange(400, 405))
    assert torch.equal(HashCodes.cat([codes, later]).ids, torch.arange(405))
    assert torch.equal(later.packed, codes.packed[:5])


@pytest.mark.parametrize(
    ("features", "ids", "error", "words"),
    [
        (_features(5, width=25), None, ValueError, "B, 24"),
        (_features(5), torch.arange(4), ValueError, "ids"),
        ([], None, ValueError, "empty"),
        (_features(0), None, ValueError, "empty"),
        (torch.full((5, 24), torch.nan), None, ValueError, "NaN"),
    ],
)
def test_further_embeddings_that_do_not_fit_are_named(features, ids, error, words, reference):
    with pytest.raises(error, match=words):
        encode_embeddings(reference[1], features, ids)
    with pytest.raises(TypeError, match="Linear"):
        encode_embeddings(torch.nn.Linear(24, 16), _features(5))


class _Changing:
    """Batches that are fewer at each reading."""

    def __init__(self):
        self.left = 4

    def __iter__(self):
        self.left -= 1
        return iter(_features().split(100)[: self.left])


def test_batches_are_read_in_bounded_memory():
    class Stream:
        """Batches that are made when they are asked for, and counted while they live."""

        alive = most = 0

        def __iter__(self):
            for seed in range(30):
                batch = _features(200, seed=seed).numpy()
                Stream.alive += 1
                Stream.most = max(Stream.most, Stream.alive)
                try:
                    yield batch
                finally:
                    Stream.alive -= 1

    codes, _ = hash_embeddings(Stream(), 16, generator=_generator())
    assert len(codes) == 6000
    assert Stream.most == 1


@pytest.mark.parametrize(
    ("features", "settings", "error", "words"),
    [
        (iter([_features()]), {}, TypeError, "readable twice"),
        ([], {}, ValueError, "empty"),
        (_features().long(), {}, TypeError, "floating point"),
        (_features()[0], {}, ValueError, r"\(N, D\)"),
        (_features().masked_fill(_features() > 2.5, torch.nan), {}, ValueError, "rows, the first is row"),
        (_features()[:10], {"method": "itq"}, ValueError, "10 for 16"),
        (torch.ones(400, 24), {}, ValueError, "same"),
        ([_features(), _features(width=25)], {}, ValueError, "25 wide, those before 24"),
        ("embeddings.npy", {}, TypeError, "mmap_mode"),
        (7, {}, TypeError, "int"),
        (["a", "b"], {}, TypeError, "str"),
        (_Changing(), {}, ValueError, "3 rows|300 rows|200"),
        (torch.utils.data.DataLoader(_features(), shuffle=True), {}, ValueError, "shuffle=False"),
        (_features(400, 4) @ torch.randn(4, 24), {"method": "itq"}, ValueError, "directions"),
        (list(_features().split(100)), {"labels": torch.zeros(401).long()}, ValueError, "401 rows"),
        (list(_features().split(100)), {"labels": torch.zeros(39).long(), "method": "lsh"}, ValueError, "39"),
        (_features(), {"labels": torch.zeros(3)}, (TypeError, ValueError), "labels"),
        (_features(), {"metric": "dot"}, ValueError, "metric"),
        (_features(), {"method": "itqcca"}, ValueError, "labels"),
        (_features(), {"method": "ITQ"}, ValueError, "itq"),
    ],
)
def test_bad_input_is_named(features, settings, error, words):
    with pytest.raises(error, match=words):
        hash_embeddings(features, 16, **settings)


def test_report_orders_the_scorings(reference):
    _, model = reference
    labels = torch.arange(400) % 3
    report = binarization_report(
        _features(), model, labels, top_k=[1, 10], queries=100, generator=_generator()
    )
    ten = {scoring: cuts[10] for scoring, cuts in report.recall.items()}
    assert ten["float"] == 1.0
    assert ten["asymmetric with factors"] > ten["hamming"]
    assert report.bytes_per_item == {
        "float": 96,
        "asymmetric with factors": 10,
        "asymmetric": 2,
        "hamming": 2,
    }
    assert (report.queries, report.database) == (100, 300)
    assert set(report.map) == set(report.recall)
    assert "recall@10" in str(report)
    assert "mAP" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["bits"] == 16


def test_report_against_plain_loops(reference):
    _, model = reference
    query, database = _features(20, seed=1), _features(60, seed=2)
    report = binarization_report((query, database), model, top_k=[3], queries=20)
    codes, query_codes = model(database).sign(), model(query)
    hits = {"hamming": 0, "asymmetric": 0}
    order = torch.randperm(20)  # the queries are taken in any order
    for row in order.tolist():
        exact = (database - query[row]).square().sum(1).argsort(stable=True)[:3]
        scores = {
            "hamming": (codes != query_codes[row].sign()).sum(1),
            "asymmetric": -(codes @ query_codes[row]),
        }
        for scoring, distance in scores.items():
            found = distance.argsort(stable=True)[:3]
            hits[scoring] += len(set(found.tolist()) & set(exact.tolist()))
    for scoring, count in hits.items():
        assert report.recall[scoring][3] == pytest.approx(count / 60)


def test_report_takes_the_metric_of_the_head():
    features = _features() * torch.linspace(0.5, 3, 400)[:, None]
    _, model = hash_embeddings(features, 16, metric="cosine", generator=_generator())
    reports = [
        binarization_report(features, model, top_k=[10], metric=metric, generator=_generator())
        for metric in (None, "cosine", "euclidean")
    ]
    assert reports[0] == reports[1]
    assert reports[0].metric == "cosine"
    assert reports[0].recall["hamming"][10] > reports[2].recall["hamming"][10]
    assert binarization_report(features, torch.nn.Linear(24, 8), top_k=[1]).metric == "euclidean"


@pytest.mark.parametrize("kind", ["mapped", "loader"])
def test_report_reads_only_the_rows_that_it_needs(kind, reference, tmp_path):
    np.save(tmp_path / "x.npy", _features().numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    given = mapped if kind == "mapped" else torch.utils.data.DataLoader(_features(), batch_size=64)
    settings = {"top_k": [5], "queries": 30, "max_database": 100}
    labels = torch.arange(400) % 3
    one = binarization_report(given, reference[1], labels, generator=_generator(), **settings)
    other = binarization_report(_features(), reference[1], labels, generator=_generator(), **settings)
    assert one == other
    assert (one.queries, one.database) == (30, 100)


def test_report_map_is_that_of_the_metrics(reference):
    _, model = reference
    query, database = _features(40, seed=1), _features(90, seed=2)
    labels = torch.arange(40) % 3, torch.arange(90) % 3
    report = binarization_report((query, database), model, labels, top_k=[90])
    codes = model(query).detach(), labels[0], model(database).detach(), labels[1]
    for scoring in ("hamming", "asymmetric"):
        expected = hybridhash.eval.mean_average_precision(*codes, scoring=scoring, ties="stable")
        assert report.map[scoring] == pytest.approx(float(expected), abs=1e-6)
    assert all(cuts[90] == 1.0 for cuts in report.recall.values())


def test_report_draws_a_figure(reference):
    pytest.importorskip("matplotlib")
    report = binarization_report(_features(), reference[1], top_k=[1, 5], queries=20)
    axes = report.plot().axes[0]
    assert len(axes.get_lines()) == 3


@pytest.mark.parametrize(
    ("features", "labels", "settings", "words"),
    [
        (_features(1), None, {}, "at least 2"),
        (_features(), None, {"top_k": [500]}, "top_k"),
        (_features(), None, {"top_k": []}, "top_k must be a sequence of cuts"),
        ((_features(), _features(0)), None, {}, "a side is empty: got 400 queries and 0 items"),
        ((_features(), _features(), _features()), None, {}, "tuple of 3"),
        ((_features(), _features(width=30)), None, {}, "30"),
        ((_features(), _features()), torch.zeros(400).long(), {}, "pair"),
        (_features().masked_fill(_features() > 2.5, torch.inf), None, {}, "infinity"),
    ],
)
def test_report_names_bad_input(features, labels, settings, words, reference):
    with pytest.raises(ValueError, match=words):
        binarization_report(features, reference[1], labels, **settings)


class _TextNetwork:
    """Looks like a SentenceTransformer from outside."""

    def encode(self, sentences):
        return np.random.default_rng(0).normal(size=(len(sentences), 32)).astype(np.float32)


def test_the_manual_runs(tmp_path, monkeypatch):
    """Every block of the page, with small networks of random weights in place of downloads."""
    transformers = pytest.importorskip("transformers")
    import re

    import timm

    monkeypatch.chdir(tmp_path)
    np.save("embeddings.npy", torch.randn(400, 40).numpy())
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/embeddings.md").read_text(), flags=re.DOTALL)
    config = transformers.CLIPTextConfig(
        vocab_size=99, hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=24, max_position_embeddings=16, eos_token_id=1, bos_token_id=0, pad_token_id=2,
    )  # fmt: skip
    clip = transformers.CLIPTextModelWithProjection
    monkeypatch.setattr(clip, "from_pretrained", lambda name: clip(config))
    create, names = timm.create_model, []

    def create_small(name, pretrained=False, **settings):
        if not name.startswith("vit_"):
            return create(name, pretrained, **settings)
        names.append(name)
        assert timm.is_model(name.split(".")[0])
        assert name in timm.list_pretrained()
        small = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 28, "patch_size": 14}
        return create(name.split(".")[0], **settings, **small)

    monkeypatch.setattr(timm, "create_model", create_small)
    tokens = torch.randint(3, 99, (200, 16))
    namespace = {
        "image_batches": torch.randn(200, 3, 28, 28).split(50),
        "tokens": [{"input_ids": part} for part in tokens.split(50)],
        "sentences": [f"sentence {number}" for number in range(200)],
    }
    for block in blocks:
        if "sentence_transformers" in block:
            sentences = pytest.importorskip("sentence_transformers")
            monkeypatch.setattr(sentences, "SentenceTransformer", lambda name: _TextNetwork())
        exec(compile(block, "embeddings.md", "exec"), namespace)
    assert len(names) == 2
    assert namespace["codes"].bits == 128


@pytest.mark.parametrize(
    ("features", "error", "words"),
    [
        (_features().to("meta"), ValueError, "features is on the meta device"),
        (_features().to_sparse(), TypeError, "features must be a dense tensor, got torch.sparse_coo"),
        (None, TypeError, "features must be .*, got NoneType"),
        (_features()[:, :0], ValueError, "D at least 1"),
        ([], ValueError, "empty"),
    ],
)
def test_features_that_hold_nothing_are_named_everywhere(features, error, words, reference):
    _, model = reference
    for call in (
        lambda: hash_embeddings(features, 8),
        lambda: encode_embeddings(model, features),
        lambda: binarization_report((features, _features()), model),
    ):
        with pytest.raises(error, match=words):
            call()


def test_other_models_are_named():
    images = hybridhash.create_hash_model("resnet10t", 8)
    for model in (None, torch.nn.Linear(24, 8), images):
        with pytest.raises(TypeError, match=r"model must be that of hash_embeddings.*there is encode"):
            encode_embeddings(model, _features())
    for head, error, words in (
        (None, TypeError, "head must be a module, such as the model of hash_embeddings, got None"),
        (torch.nn.Linear(24, 8).half(), ValueError, "its weights are torch.float16: give torch.float16"),
        (torch.nn.Linear(24, 8, device="meta"), ValueError, "it is on the meta device"),
    ):
        with pytest.raises(error, match=words):
            binarization_report(_features(), head, top_k=[1])
    with pytest.raises(ValueError, match="no method is called 5"):
        hash_embeddings(_features(), 8, 5)


def test_report_counts_a_cut_once_and_names_bad_ones(reference):
    _, model = reference
    report = binarization_report(_features(), model, top_k=np.array([5, 5]), queries=20)
    assert list(report.recall["float"]) == [5]
    assert report.recall["float"][5] == 1
    for top_k in ([], 5, None):
        with pytest.raises(ValueError, match="top_k must be a sequence of cuts"):
            binarization_report(_features(), model, top_k=top_k)
    with pytest.raises(ValueError, match="features must be a pair"):
        binarization_report((_features(),) * 3, model)


def test_report_finds_neighbours_far_from_the_origin():
    exact = _features(rows=60).double()
    far = exact.float() + 4000
    nearest = torch.cdist(far[:1].double(), far[1:].double()).argsort()[0, :10]
    shown = []

    class _Recorder(torch.nn.Module):
        def forward(self, x):
            shown.append(x)
            return x - 4000

    report = binarization_report((far[:1], far[1:]), _Recorder(), top_k=[10])
    codes = _Recorder()(far)
    scores = codes[:1] @ codes[1:].sign().T
    expected = set(scores[0].argsort(descending=True, stable=True)[:10].tolist()) & set(nearest.tolist())
    assert report.recall["asymmetric"][10] == pytest.approx(len(expected) / 10)
