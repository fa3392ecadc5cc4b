"""Arguments that many functions share: a generator that is none is refused by all of them."""

import pytest
import torch

from hybridhash import create_hash_model, fit_hash_layer, hash_embeddings
from hybridhash.binarization import binarization_report
from hybridhash.data import balanced_batches, get_protocol
from hybridhash.losses import cnnh_codes, create_loss_for, hash_centers
from hybridhash.losses.dfh import fisher_centers
from hybridhash.models import fit_hash_head
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
