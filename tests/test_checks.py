"""Arguments of another type: each is refused by its name."""

import pytest
import torch

from hybridhash import HashCodes, create_hash_model, fit_hash_layer, hash_embeddings
from hybridhash.binarization import binarization_report
from hybridhash.data import balanced_batches, custom_protocol, get_protocol
from hybridhash.eval import HammingRetrieval, evaluate
from hybridhash.losses import (
    CodeBank,
    CSQLoss,
    DFHLoss,
    DHLoss,
    DPNLoss,
    DSDHLoss,
    DSHLoss,
    DSHSDLoss,
    DTSHLoss,
    HashNetLoss,
    HyP2Loss,
    MDSHCLoss,
    WMLLoss,
    cnnh_codes,
    create_loss_for,
    hash_centers,
)
from hybridhash.losses.dfh import fisher_centers
from hybridhash.models import fit_hash_head
from hybridhash.search import FaissIndex
from hybridhash.shallow import ITQCCA, KSH, SDH
from hybridhash.shallow.unsupervised import itq_rotation, random_rotation, spherical_pivots

LABELS = torch.arange(30) % 3
FEATURES = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
HEAD = fit_hash_head(FEATURES, "pca", 4)
DRAWING = ("adsh", "cnnh", "csq", "dfh", "dlbhc", "dpn", "dshsd", "greedyhash", "hyp2", "mdshc", "orthohash")

CALLS = {
    "cnnh_codes": lambda: cnnh_codes(LABELS, 4, 3),
    "hash_centers": lambda: hash_centers(3, 8, "bernoulli", 3),
    "fisher_centers": lambda: fisher_centers(3, 4, generator=3),
    "balanced_batches": lambda: balanced_batches(LABELS, 2, 2, 3),
    "split": lambda: get_protocol("cifar10").split(torch.arange(60_000) % 10, 3),
    "hash_embeddings": lambda: hash_embeddings(FEATURES, 4, generator=3),
    "hash_embeddings, itqcca": lambda: hash_embeddings(
        FEATURES, 2, method="itqcca", labels=LABELS, generator=3
    ),
    "binarization_report": lambda: binarization_report(FEATURES, HEAD, generator=3),
    "binarization_report, pair": lambda: binarization_report((FEATURES, FEATURES), HEAD, generator=3),
    "fit_hash_layer": lambda: fit_hash_layer(
        create_hash_model("resnet10t", 4), [torch.zeros(6, 3, 32, 32)], generator=3, progress=False
    ),
    "itq_rotation": lambda: itq_rotation(FEATURES, generator=3),
    "random_rotation": lambda: random_rotation(4, 3),
    "spherical_pivots": lambda: spherical_pivots(FEATURES, 4, generator=3),
    **{
        f"create_loss_for {name}": lambda name=name: create_loss_for(name, LABELS, 8, generator=3)
        for name in DRAWING
    },
    **{
        f"fit_hash_head {method}": lambda method=method: fit_hash_head(FEATURES, method, 4, 3)
        for method in ("itq", "pca", "pca-rr", "lsh", "sh", "sph", "rabitq", "contrastive")
    },
    **{
        type(kind).__name__: lambda kind=kind: kind.fit(FEATURES, LABELS, generator=3)
        for kind in (ITQCCA(2), KSH(2, num_anchors=9), SDH(2, num_anchors=9))
    },
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_seed_in_the_place_of_a_generator_is_refused(call):
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator or None, got 3: make one of a"):
        call()


FLAGS = {
    "exclude_self": lambda flag: WMLLoss(exclude_self=flag),
    "exclude_self of triplets": lambda flag: DTSHLoss(exclude_self=flag),
    "jaccard": lambda flag: WMLLoss(jaccard=flag),
    "jaccard of HashNet": lambda flag: HashNetLoss(jaccard=flag),
    "tanh": lambda flag: CSQLoss(3, 8, tanh=flag),
    "tanh of DSHSD": lambda flag: DSHSDLoss(3, 8, tanh=flag),
    "adaptive": lambda flag: DPNLoss(3, 8, adaptive=flag),
    "count_unseen": lambda flag: CodeBank(9, 8, count_unseen=flag),
    "relaxed": lambda flag: cnnh_codes(LABELS, 4, relaxed=flag),
    "factors": lambda flag: HashCodes.from_codes(FEATURES, factors=flag),
    "train_in_database": lambda flag: custom_protocol("x", LABELS, query_per_class=1, train_in_database=flag),
    "bank": lambda flag: create_loss_for("wml", LABELS, 8, bank=flag),
}


@pytest.mark.parametrize("flag", ["no", [0], torch.ones(2), 1.5, None])
@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_true_or_false(name, flag):
    with pytest.raises(TypeError, match=rf"{name.split()[0]} must be True or False, got "):
        FLAGS[name](flag)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("margin must be a number, got True", lambda: DSHLoss(margin=True)),
        ("alpha must be a number, got False", lambda: WMLLoss(False)),
        ("threshold must be a number, got 'a'", lambda: HyP2Loss(3, 8, threshold="a")),
        ("iterations must be an int >= 1, got 1.5", lambda: DSDHLoss(iterations=1.5)),
        ("num_classes must be an int >= 1, got 2.5", lambda: DFHLoss(2.5, 8)),
        ("bits must be an int >= 1, got None", lambda: DFHLoss(3, None)),
        ("bits must be an int >= 1, got None", lambda: CodeBank(3, None)),
        ("num_samples must be an int >= 1, got None", lambda: CodeBank(None, 8)),
        ("start must be a tensor, got int", lambda: cnnh_codes(LABELS, 4, start=3)),
        ("layers must be modules .* got int", lambda: DHLoss(layers=3)),
        ("ks must be a sequence of cuts, got None", lambda: HammingRetrieval(8, ks=None)),
        ("head_args must be a dict, got 'a'", lambda: create_hash_model("resnet10t", 8, head_args="a")),
        (
            "pretrained_cfg_overlay must be a dict, got 1.5",
            lambda: create_hash_model("resnet10t", 8, pretrained_cfg_overlay=1.5),
        ),
        ("backbone must be the name of a timm model or a module", lambda: create_hash_model(None, 8)),
        ("features must be a tensor .* got 3", lambda: fit_hash_head(3, "itq", 4)),
        (
            "sample_size must be an int >= 0, got 'a'",
            lambda: fit_hash_head(FEATURES, bits=4, sample_size="a"),
        ),
        (
            "top_k must be an int >= 1, got 'a'",
            lambda: custom_protocol("x", LABELS, query_per_class=1, top_k="a"),
        ),
        ("bank must be a CodeBank, a CodeQueue or None, got True", lambda: WMLLoss(bank=True)),
        ("bank must be a CodeBank, a CodeQueue or None, got 'a'", lambda: MDSHCLoss(3, 8, bank="a")),
        ("multi-hot .* got torch.complex64", lambda: WMLLoss()(FEATURES, torch.ones(30, 3).cfloat())),
    ],
)
def test_settings_of_another_type_are_named(message, call):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda value: create_hash_model("resnet10t", 8, head=value),
        lambda value: fit_hash_head(FEATURES, value, 4),
        lambda value: FaissIndex(8, value),
        lambda value: evaluate(FEATURES, LABELS, FEATURES, LABELS, ties=value),
        lambda value: evaluate(FEATURES, LABELS, FEATURES, LABELS, progress=value),
    ],
)
@pytest.mark.parametrize("value", [None, [1], {}, torch.ones(2)])
def test_what_is_no_name_is_no_choice(call, value):
    with pytest.raises(ValueError, match=r"no (head|method) is called|unknown kind|must be one of"):
        call(value)
