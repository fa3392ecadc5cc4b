"""What must hold of every loss, found by walking the registry."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hybridhash.losses as losses
from hybridhash.losses import CodeBank, create_loss, list_losses
from hybridhash.losses.pairwise import PairwiseLoss
from tests import ROOT
from tests._processes import run_on_ranks
from tests.losses._oracles import SIX_LABELS

BITS, CLASSES, ROWS = 8, 3, 6
# Arguments beyond these that a class needs are unknown to this file, and its walk would fail.
SIZES = {
    "num_classes": CLASSES,
    "bits": BITS,
    "database_labels": torch.arange(ROWS) % CLASSES,
    "target_codes": torch.ones(ROWS, BITS),
}


def loss_class_of(name):
    return next(getattr(losses, c) for c in losses.__all__ if c.lower() == f"{name}loss")


NAMES = list_losses()
# Settings that choose another formula than the default does.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "adsh": [{"dissimilarity": "batch"}],
    "cnnh": [{"target": "cross_entropy"}],
    "contrastive": [{"similarity": "dot"}],
    "csq": [{"tanh": True}],
    "dbdh": [{"power": 1}],
    "dch": [{"form": "official"}],
    "dhn": [{"variant": "E"}, {"variant": "Q"}],
    "dlbhc": [{"latent": "tanh"}],
    "dpn": [{"multi_label": "centroid"}, {"adaptive": True, "reduction": "mean"}],
    "dsrh": [{"top_k": 2}],
    "dshsd": [{"classification": "sigmoid", "tanh": True}],
    "dtsh": [{"exclude_self": False}],
    "hashnet": [{"weighting": "pytorch", "similar_weight": 3.0}, {"weighting": "caffe"}],
    "orthohash": [{"quantization": 0.5}],
    "tieawareap": [{"gamma": 1.0}],
    "tieawarendcg": [{"gamma": 1.0, "bins": 3}],
    "wml": [{"jaccard": True, "exclude_self": True, "quantization": 0.1}],
}
FORMULAS = [(name, more) for name in NAMES for more in [{}, *VARIANTS.get(name, [])]]
PAIRWISE = [name for name in list_losses() if issubclass(loss_class_of(name), PairwiseLoss)]


def make(name, **more):
    """A loss with the sizes that its class asks for; the random choices are seeded."""
    parameters = inspect.signature(loss_class_of(name)).parameters
    sizes = {
        k: v for k, v in SIZES.items() if k in parameters and parameters[k].default is inspect.Parameter.empty
    }
    if "generator" in parameters:
        sizes["generator"] = torch.Generator().manual_seed(0)
    return create_loss(name, **sizes, **more)


def batch(seed=0, n=ROWS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(n, BITS, generator=generator, dtype=torch.float64).to(dtype)
    return codes, torch.arange(n) % CLASSES


def test_names_are_sorted_and_the_documented_ones_exist():
    names = list_losses()
    assert names == sorted(names)
    assert {"wml", "hashnet", "dpsh", "dhn", "dsh", "dch", "dsdh", "idhn", "dfh"} <= set(names)


def test_a_name_may_be_written_as_in_the_paper():
    assert type(create_loss("HashNet")) is losses.HashNetLoss
    assert type(create_loss("hash-net", alpha=1.0)) is losses.HashNetLoss


def test_unknown_names_and_arguments_say_what_is_near():
    with pytest.raises(ValueError, match="no loss is called 'hashnt'; nearest: hashnet"):
        create_loss("hashnt")
    with pytest.raises(TypeError, match="WMLLoss takes no argument 'alhpa', only alpha, bank"):
        create_loss("wml", alhpa=1)
    with pytest.raises(TypeError, match="DFHLoss needs num_classes, bits"):
        create_loss("dfh")


@pytest.mark.parametrize("name", list_losses())
def test_every_class_says_what_it_requires(name):
    loss = make(name)
    assert isinstance(loss, nn.Module)
    assert loss.requires <= {"bank", "indices", "parameters", "epoch_hook"}
    assert ("epoch_hook" in loss.requires) == hasattr(loss, "epoch_end")
    assert ("parameters" in loss.requires) == any(True for _ in loss.parameters())
    assert all(isinstance(choice, str) for choice in loss.requires)


@pytest.mark.parametrize("name", list_losses())
def test_every_loss_has_the_same_call(name):
    codes, labels = batch(dtype=torch.float32)
    codes = torch.sigmoid(codes).requires_grad_()
    value = make(name)(codes, labels, indices=torch.arange(ROWS))
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert bool(torch.autograd.grad(value, codes)[0].isfinite().all())


@pytest.mark.parametrize("name", sorted(set(list_losses()) - {"cnnh", "dh"}))  # these two look at no label
def test_a_loss_that_needs_labels_says_so(name):
    codes, _ = batch(dtype=torch.float32)
    with pytest.raises((TypeError, ValueError), match=r"labels (must be a tensor, got NoneType|are needed)"):
        make(name)(torch.sigmoid(codes), None, indices=torch.arange(ROWS))


@pytest.mark.parametrize(("name", "more"), FORMULAS)
def test_labels_that_cannot_be_meant_are_refused(name, more):
    codes, labels = batch(dtype=torch.float32)
    loss, codes = make(name, **more), torch.sigmoid(codes)
    for given, message in (
        (labels[:, None], r"labels of shape \(N, 1\) may be class ids or one class .*give labels\[:, 0\]"),
        (labels[:4], "labels has 4 rows, expected 6"),
        (labels.to("meta"), "labels are on the meta device"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(codes, given, indices=torch.arange(ROWS))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.device("meta")], ids=str)
@pytest.mark.parametrize(("name", "more"), FORMULAS)
def test_defaults_of_torch_change_nothing(name, more, default):
    codes, labels = batch(dtype=torch.float32)
    expected = make(name, **more)
    before = torch.get_default_dtype()
    try:
        if isinstance(default, torch.dtype):
            torch.set_default_dtype(default)
            loss = make(name, **more)
        else:
            with default:
                loss = make(name, **more)
        pairs = zip(loss.state_dict().values(), expected.state_dict().values(), strict=True)
        for got, wanted in pairs:
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)
        rows = torch.arange(ROWS)
        values = [each(torch.sigmoid(codes), labels, indices=rows) for each in (loss, expected)]
        torch.testing.assert_close(*values)
        if "epoch_hook" in loss.requires:
            loss.epoch_end()
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(("name", "more"), FORMULAS)
def test_a_loss_in_half_precision_still_ends_its_epochs(name, more):
    codes, labels = batch(dtype=torch.float32)
    parameters = inspect.signature(loss_class_of(name)).parameters
    bank = {"bank": CodeBank(ROWS, BITS, CLASSES)} if "bank" in parameters else {}
    loss = make(name, **more, **bank).half()
    value = loss(torch.sigmoid(codes).half().requires_grad_(), labels, indices=torch.arange(ROWS))
    assert value.isfinite()
    if "epoch_hook" in loss.requires:
        loss.epoch_end()


@pytest.mark.parametrize("name", PAIRWISE)
def test_a_bank_is_among_what_a_loss_requires(name):
    assert {"bank", "indices"} <= make(name, bank=CodeBank(5, BITS, CLASSES)).requires
    assert not {"bank", "indices"} & make(name).requires


@pytest.mark.parametrize("name", PAIRWISE)
def test_gradcheck(name):
    codes, labels = batch()
    assert torch.autograd.gradcheck(lambda u: make(name)(u, labels), codes.requires_grad_())


@pytest.mark.parametrize("name", PAIRWISE)
def test_class_ids_equal_their_one_hot_form(name):
    codes, labels = batch()
    one_hot = nn.functional.one_hot(labels, CLASSES)
    torch.testing.assert_close(make(name)(codes, labels), make(name)(codes, one_hot))


@pytest.mark.parametrize("name", PAIRWISE)
def test_order_of_the_batch_does_not_matter(name):
    codes, labels = batch()
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    torch.testing.assert_close(make(name)(codes, labels), make(name)(codes[order], labels[order]))


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("size", [0.0, 1.0, -1.0, 1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_value_and_gradient_are_finite(name, size, dtype):
    loss = make(name)
    for labels in ([0, 0, 1, -1], [-1, -1, -1, -1], [0, 0, 0, 0], [0, 1, 2, -1], [1]):
        codes = torch.full((len(labels), BITS), size, dtype=dtype, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(codes, torch.tensor(labels))
        full = codes.detach().float().requires_grad_()
        gradient = torch.autograd.grad(loss(full, torch.tensor(labels)), full)[0]
        assert value.dtype == torch.float32
        assert bool(value.isfinite())
        assert bool(gradient.isfinite().all())
        # In half precision a gradient is as finite as the format can hold.
        if gradient.abs().max() < torch.finfo(dtype).max:
            assert bool(torch.autograd.grad(value, codes)[0].isfinite().all())


@pytest.mark.parametrize("name", PAIRWISE)
def test_callers_tensors_are_unchanged(name):
    codes, labels = batch()
    copies = codes.clone(), labels.clone()
    make(name)(codes.requires_grad_(), labels).backward()
    assert torch.equal(codes, copies[0])
    assert torch.equal(labels, copies[1])


@pytest.mark.parametrize("name", PAIRWISE)
def test_losses_can_be_copied_and_pickled(name):
    codes, labels = batch()
    loss = make(name)
    expected = loss(codes, labels)
    torch.testing.assert_close(copy.deepcopy(loss)(codes, labels), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(loss))(codes, labels), expected)


@pytest.mark.parametrize("name", PAIRWISE)
def test_indices_outside_the_bank_name_both_numbers(name):
    loss = make(name, bank=CodeBank(5, BITS, CLASSES))
    codes, labels = batch()
    with pytest.raises(IndexError, match="index 9 is outside the bank of 5 rows"):
        loss(codes, labels, indices=torch.tensor([0, 1, 2, 3, 4, 9]))


def _on_rank(rank, case):
    """Each loss on this rank's rows, in the batch and with a bank, and the gradient of all ranks' rows."""
    codes, labels, rows = case
    mine, results = rows[rank], {}
    for name in PAIRWISE:
        for kind in ("batch", "bank"):
            bank = {} if kind == "batch" else {"bank": CodeBank(12, BITS, CLASSES, dtype=torch.float64)}
            leaf = codes[mine].clone().requires_grad_()
            value = make(name, **bank)(leaf, labels[mine], indices=mine)
            value.backward()
            results[f"{name}-{kind}"] = (value.detach(), leaf.grad)
    return results


def test_two_processes_equal_one_on_the_joined_batch():
    codes, _ = batch(seed=1, n=7)
    # Uneven batches; the second rank has no similar pair of its own.
    labels = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
    rows = [torch.arange(4), torch.arange(4, 7)]
    expected = _on_rank(0, (codes, labels, [torch.arange(7)]))
    first, second = run_on_ranks(_on_rank, (codes, labels, rows))
    for name, (value, grad) in expected.items():
        torch.testing.assert_close(first[name][0], value, msg=name)
        torch.testing.assert_close(second[name][0], value, msg=name)
        # Each rank has its part of the gradient, times the ranks over which DDP will average.
        joined = torch.cat((first[name][1], second[name][1])) / 2
        torch.testing.assert_close(joined, grad, msg=name)


def test_the_table_for_choosing_a_loss_is_true():
    page = (ROOT / "docs" / "losses.md").read_text()
    choosing = page.split("## Choosing")[1].split("\n## ")[0]
    rows = {}
    for line in re.findall(r"^\| `(.*)$", choosing, flags=re.MULTILINE):
        name, labels, bank, loop, *_ = (cell.strip().strip("`") for cell in line.split("|"))
        rows[name] = labels, bank, loop
    assert sorted(rows) == list_losses()
    codes, _ = batch(dtype=torch.float32)
    # Rows 0 and 1 share one label, or two; nothing else changes in who is similar to whom.
    one = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]])
    two = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]])
    for name, (labels, bank, loop) in rows.items():
        parameters = inspect.signature(loss_class_of(name)).parameters
        assert bank in ("", "yes", "harms"), name
        assert (bank != "") == ("bank" in parameters), name
        loss = make(name)
        asked = {word.strip().replace("epoch_end", "epoch_hook") for word in loop.split(",")}
        assert asked & {"bank", "indices", "parameters", "epoch_hook"} == set(loss.requires), name
        assert "linear head" not in loop, name  # the heads are called "tanh" and "unbounded"
        call = {"indices": torch.arange(ROWS)} if "indices" in loss.requires else {}
        if labels == "one":
            with pytest.raises(ValueError, match="one label per image"):
                loss(codes, two, **call)
            continue
        if {"num_classes", "database_labels"} & set(parameters):  # made of the labels, so they differ anyway
            assert "graded" not in labels, name
            continue
        loss.eval()  # what a call remembers must not count as a difference
        values = [loss(codes, rows_of, **call).item() for rows_of in (one, two)]
        assert (values[0] != values[1]) == ("graded" in labels), name


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_stands_in_the_file_of_its_name(name):
    assert Path(inspect.getfile(loss_class_of(name))).stem == name


def host_reads(step):
    """Operations of a step that wait for a value, or for the size of a result, and so for the device."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        step()
    waits = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::_unique2"}
    return waits & {event.key for event in profile.key_averages()}


def test_host_reads_are_found():
    values = torch.arange(3)
    assert host_reads(lambda: int(values.max())) == {"aten::item", "aten::_local_scalar_dense"}
    assert host_reads(lambda: values[values > 0]) == {"aten::nonzero"}
    assert host_reads(lambda: values + 1) == set()


@pytest.mark.parametrize("labels", ["class ids", "multi-hot"])
@pytest.mark.parametrize(("name", "more"), FORMULAS)
def test_one_graph_without_host_reads_gives_the_same(name, more, labels):
    codes, given = batch(dtype=torch.float32)
    codes = codes.tanh()
    if labels == "multi-hot":
        given = nn.functional.one_hot(given, CLASSES)
    if name in PAIRWISE:  # which take any number of labels
        given = SIX_LABELS[labels]
    rows = torch.arange(ROWS)
    loss, plain = make(name, **more), make(name, **more)
    torch.compiler.reset()
    compiled = torch.compile(
        lambda u, y, indices: loss(u, y, indices=indices), backend="aot_eager", fullgraph=True
    )
    first, second = codes.clone().requires_grad_(), codes.clone().requires_grad_()
    value, expected = compiled(first, given, rows), plain(second, given, indices=rows)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(first.grad, second.grad)
    for got, wanted in zip(loss.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(got, wanted)
    again = codes.clone().requires_grad_()
    reads = host_reads(lambda: compiled(again, given, rows).backward())
    # The discrete solver of DSDH stops when no bit changes: never to look takes up to 75 times as long.
    assert reads == set() or name == "dsdh"


@pytest.mark.parametrize(("name", "more"), FORMULAS)
def test_the_second_derivative_is_right_or_refused(name, more):
    if name == "greedyhash":
        pytest.skip("its gradient is not the derivative of its value, by definition")
    codes, labels = batch()
    loss = make(name, **more)
    codes = codes.tanh().requires_grad_()
    try:
        assert torch.autograd.gradgradcheck(lambda u: loss(u, labels, indices=torch.arange(ROWS)), codes)
    except RuntimeError as error:
        if "differentiate twice" not in str(error):  # a wrong derivative is a RuntimeError, too
            raise


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize(("name", "more"), [*FORMULAS, ("contrastive", {"binary": "sign"})])
def test_codes_that_have_diverged_show_in_the_loss(name, more, value):
    codes, labels = batch(dtype=torch.float32)
    codes = torch.sigmoid(codes)
    codes[0, 0] = value
    try:
        loss = make(name, **more).eval()(codes, labels, indices=torch.arange(ROWS))
    except ValueError as error:
        assert "codes" in str(error)  # noqa: PT017
    else:
        assert not loss.isfinite()


@pytest.mark.parametrize(("name", "more"), FORMULAS)
def test_codes_without_numbers_are_refused_on_both_sides(name, more):
    codes, labels = batch(dtype=torch.float32)
    codes, rows = torch.sigmoid(codes), torch.arange(ROWS)
    loss = make(name, **more).eval()
    with pytest.raises(ValueError, match="codes are on the meta device"):
        loss(codes.to("meta"), labels, indices=rows)
    with pytest.raises(TypeError, match=r"codes must be a dense tensor, got torch.sparse_coo: use to_dense"):
        loss(codes.to_sparse(), labels, indices=rows)
    # Moved from there to the CPU, they would be whatever the memory holds.
    with pytest.raises(ValueError, match=r"ref_codes are on the meta device|compares nothing with ref_codes"):
        loss(codes, labels, indices=rows, ref_codes=codes.to("meta"), ref_labels=labels)


@pytest.mark.parametrize(("name", "more"), [each for each in FORMULAS if each[0] != "contrastive"])
def test_an_empty_batch_costs_nothing(name, more):
    codes = torch.zeros(0, BITS, requires_grad=True)
    loss = make(name, **more).eval()(codes, torch.zeros(0, dtype=torch.int64), indices=torch.arange(0))
    assert loss == 0
    loss.backward()
