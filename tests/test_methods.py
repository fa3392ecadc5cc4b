"""Every published method, as docs/methods.md has it, is short, runs, and retrieves better than untrained."""

import math

import pytest

from hybridhash.losses import list_losses
from tests._benchmark_scripts import load_benchmark

REQUIRED = {
    *("hybridhash", "hashnet", "dch", "dsh", "dpsh", "dhn", "cnnh", "dnnh", "drsdh", "dsrh", "dh"),
    *("superviseddh", "dlbhc", "adsh", "csq", "mdshc", "dtsh", "dsdh", "greedyhash", "dpn", "orthohash"),
    *("tieawareap", "tieawarendcg", "contrastive"),
}


SETUP, METHODS = load_benchmark("methods").blocks()


@pytest.fixture(scope="module")
def namespace():
    """The setup of the page with a smaller network, fewer and smaller images, and three epochs."""
    small = SETUP
    for old, new in (
        ("(32, 64, 128)", "(16, 32, 64)"),
        ("(1, 1, 2)", "(1, 1, 1)"),
        ("size=(32, 32)", "size=(16, 16)"),
        ('"img_size": 32', '"img_size": 16'),
        ("EPOCHS, BATCH = 16, 10, 14, 70", "EPOCHS, BATCH = 16, 10, 3, 70"),
        ("images[300:], labels[300:]", "images[300:1000], labels[300:1000]"),
    ):
        assert old in small
        small = small.replace(old, new)
    pytest.importorskip("sklearn")
    values = {}
    exec(small, values)
    hash_codes = values["hash_codes"]

    def checked(model, part):
        codes = hash_codes(model, part)
        head = getattr(model, "head", None)
        assert (len(codes), codes.bits) == (len(part[1]), getattr(head, "bits", values["BITS"]))
        return codes

    values["hash_codes"] = checked
    return values


def test_the_page_has_every_system_and_every_loss():
    assert set(METHODS) >= REQUIRED
    assert {"wml" if name == "hybridhash" else name for name in METHODS} == set(list_losses())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_at_most_15_lines(name):
    assert 0 < len([line for line in METHODS[name].splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns(name, namespace):
    def run(**instead):
        values = {**namespace, **instead, "results": {}}
        exec(METHODS[name], values)
        return values["results"]

    losses = []

    def fit(model, loss_fn, **kwargs):
        loss_fn.register_forward_hook(lambda module, given, loss: losses.append(loss.item()))
        namespace["fit"](model, loss_fn, **kwargs)

    untrained, trained = run(fit=lambda *args, **kwargs: None), run(fit=fit)
    assert losses
    assert all(map(math.isfinite, losses))
    assert trained.keys() == untrained.keys()
    assert trained
    for title, value in trained.items():
        assert value > untrained[title] + 0.03, title
