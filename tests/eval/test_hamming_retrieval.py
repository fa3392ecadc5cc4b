"""HammingRetrieval: batches, duplicates, several processes, torchmetrics and Lightning."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch

from hybridhash.codes import HashCodes, pack_codes
from hybridhash.eval import HammingRetrieval, evaluate
from tests._processes import run_on_ranks
from tests.eval._oracles import random_case

SETTINGS = {"top_k": 30, "ks": (1, 10), "ties": "stable", "denominator": "relevant"}


def filled(case, *, size=17, **settings):
    metric = HammingRetrieval(8, **SETTINGS | settings)
    for is_query, codes, labels in ((True, *case[:2]), (False, *case[2:])):
        for start in range(0, len(codes), size):
            rows = torch.arange(start, min(start + size, len(codes)))
            metric.update(codes[rows], labels[rows], is_query=is_query, indices=rows)
    return metric


def test_batches_give_the_report_of_the_whole():
    case = random_case(seed=70)
    want = evaluate(*case, **SETTINGS)
    metric = filled(case)
    assert metric.report() == want
    assert {name: value.item() for name, value in metric.compute().items()} == want.metrics
    assert all(value.ndim == 0 for value in metric.compute().values())


def test_forms_of_codes_agree_and_only_packed_codes_are_kept():
    query, query_labels, codes, labels = random_case(seed=71)
    metric = HammingRetrieval(8, **SETTINGS)
    metric(pack_codes(query), query_labels, is_query=True)
    metric.update(HashCodes(pack_codes(codes), 8, labels), is_query=False)
    assert metric.report() == evaluate(query, query_labels, codes, labels, **SETTINGS)
    kept = metric._batches["query"] + metric._batches["database"]
    assert all(batch.packed.dtype == torch.uint8 and batch.packed.shape[1] == 1 for batch in kept)


def test_repeated_indices_count_once():
    case = random_case(seed=72)
    metric = filled(case)
    want = metric.report()
    again = torch.tensor([3, 3, 7])
    metric.update(case[0][again], case[1][again], is_query=True, indices=again)
    metric.update(case[2][again], case[3][again], is_query=False, indices=again)
    assert metric.report() == want


def test_reset_forgets_everything():
    metric = filled(random_case(seed=73))
    metric.reset()
    case = random_case(seed=74)
    with pytest.raises(ValueError, match="no query codes"):
        metric.report()
    metric.update(*case[:2], is_query=True)
    with pytest.raises(ValueError, match="no database codes"):
        metric.report()
    metric.update(*case[2:], is_query=False)
    assert metric.report() == evaluate(*case, **SETTINGS)


def test_queries_are_left_out_of_their_own_rankings_by_index():
    _, _, codes, labels = random_case(seed=75)
    rows = torch.tensor([4, 8, 100])
    metric = HammingRetrieval(8, exclude_self=True, **SETTINGS)
    metric.update(codes, labels, is_query=False, indices=torch.arange(150))
    metric.update(codes[rows], labels[rows], is_query=True, indices=rows)
    want = evaluate(codes[rows], labels[rows], codes, labels, exclude_self=rows, **SETTINGS)
    # Radii without an item are NaN, which equals nothing: compare the plain values.
    assert metric.report().to_dict() == want.to_dict()


def test_bad_batches_are_refused():
    query, query_labels, _, _ = random_case(seed=76)
    metric = HammingRetrieval(8)
    with pytest.raises(ValueError, match="NaN"):
        metric.update(query * torch.nan, query_labels, is_query=True)
    with pytest.raises(ValueError, match="bits=8 was given"):
        metric.update(query[:, :7], query_labels, is_query=True)
    with pytest.raises(ValueError, match="11 rows, expected 12"):
        metric.update(query, query_labels[1:], is_query=True)
    with pytest.raises(TypeError, match="labels are missing"):
        metric.update(query, is_query=True)
    with pytest.raises(ValueError, match=r"indices must be \(12,\), one for each code"):
        metric.update(query, query_labels, is_query=True, indices=torch.arange(11))
    metric.update(query, query_labels, is_query=True)
    with pytest.raises(ValueError, match="always or never"):
        metric.update(query, query_labels, is_query=True, indices=torch.arange(12))
    with pytest.raises(ValueError, match="bits must be"):
        HammingRetrieval(0)


def _report_on_rank(rank, case):
    metric = HammingRetrieval(8, **SETTINGS)
    # All queries in one process; a database split unevenly, with padding as a sampler adds it.
    if rank == 0:
        metric.update(*case[:2], is_query=True, indices=torch.arange(12))
    rows = (
        torch.arange(rank, 150, 2)
        if rank == 0
        else torch.cat([torch.arange(1, 150, 2), torch.tensor([0, 2])])
    )
    metric.update(case[2][rows], case[3][rows], is_query=False, indices=rows)
    report = metric.report()
    assert {name: value.item() for name, value in metric.compute().items()} == report.metrics
    return report


def test_two_processes_give_the_numbers_of_one():
    case = random_case(seed=77)
    assert run_on_ranks(_report_on_rank, case) == [evaluate(*case, **SETTINGS)] * 2


def test_it_is_the_same_class_with_and_without_torchmetrics(monkeypatch):
    assert HammingRetrieval.__mro__ == (HammingRetrieval, object)
    metric = filled(random_case(seed=78))
    assert pickle.loads(pickle.dumps(metric)).report() == metric.report()
    monkeypatch.setitem(sys.modules, "torchmetrics", None)  # importing it fails
    monkeypatch.delitem(sys.modules, "hybridhash.eval._torchmetrics", raising=False)
    with pytest.raises(ImportError, match=r"pip install hybridhash\[torchmetrics\]"):
        metric.as_torchmetrics()


def test_as_torchmetrics_gives_a_metric_for_a_collection():
    torchmetrics = pytest.importorskip("torchmetrics")
    case = random_case(seed=78)
    want = evaluate(*case, **SETTINGS)
    metric = filled(case).as_torchmetrics()
    assert isinstance(metric, torchmetrics.Metric)
    collection = torchmetrics.MetricCollection({"retrieval": metric})
    assert collection.compute()["map"].item() == want["map"]
    assert pickle.loads(pickle.dumps(metric)).compute()["map"].item() == want["map"]
    metric.reset()
    metric(*case[:2], is_query=True)
    metric.update(*case[2:], is_query=False)
    assert metric.compute()["map"].item() == want["map"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ties": "nope"}, "ties must be one of"),
        ({"top_k": -5}, "top_k must be >= 1"),
        ({"ks": [1.5]}, "a cut in ks must be an int"),
        ({"ks": 5}, "ks must be a sequence of cuts"),
        ({"radius": -1}, "radius must be >= 0"),
        ({"denominator": "all"}, "denominator must be one of"),
        ({"empty": "drop"}, "empty must be one of"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_encoded(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        HammingRetrieval(16, **settings)


def test_batches_that_do_not_go_together_are_refused_when_they_come():
    query, query_labels, _, _ = random_case(seed=76)
    metric = HammingRetrieval(8)
    metric.update(query, query_labels, is_query=True)
    with pytest.raises(ValueError, match="do not go with those of earlier query batches"):
        metric.update(query, torch.zeros(12, dtype=torch.long), is_query=True)
    with pytest.raises(ValueError, match="by its indices"):
        HammingRetrieval(8, exclude_self=True).update(query, query_labels, is_query=True)
    metric = HammingRetrieval(8)
    metric.update(query, query_labels, is_query=True, indices=torch.arange(12, dtype=torch.int32))
    assert metric._gathered("query").ids.dtype == torch.int64


def test_it_works_in_a_lightning_module():
    lightning = pytest.importorskip("lightning")
    case = random_case(seed=79)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 8)
            self.metric = HammingRetrieval(8, **SETTINGS)

        def validation_step(self, batch, batch_index, dataloader_idx=0):
            codes, labels, rows = batch
            self.metric.update(codes, labels, is_query=dataloader_idx == 0, indices=rows)

        def on_validation_epoch_end(self):
            self.log_dict({name: value.float() for name, value in self.metric.compute().items()})
            self.metric.reset()

    def loader(codes, labels):
        data = torch.utils.data.TensorDataset(codes, labels, torch.arange(len(codes)))
        return torch.utils.data.DataLoader(data, batch_size=32)

    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.validate(Module(), [loader(*case[:2]), loader(*case[2:])], verbose=False)
    want = evaluate(*case, **SETTINGS)
    assert trainer.callback_metrics["map"].item() == pytest.approx(want["map"], abs=1e-6)


def test_arrays_and_any_integers_are_taken():
    query, query_labels, codes, labels = random_case()
    want, got = HammingRetrieval(8), HammingRetrieval(np.int64(8), top_k=np.int64(150), ks=np.array([1, 5]))
    for is_query, side, of in ((True, query, query_labels), (False, codes, labels)):
        rows = torch.arange(len(side))
        want.update(side, of, is_query=is_query, indices=rows)
        got.update(side.numpy(), of.numpy(), is_query=is_query, indices=rows.numpy().astype(np.uint16))
    assert got.compute()["map"] == want.compute()["map"]
    with pytest.raises(TypeError, match=r"indices must be integers, got torch\.float32"):
        want.update(query, query_labels, is_query=True, indices=torch.arange(12.0))
