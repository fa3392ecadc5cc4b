"""Each published definition of mAP against a literal transcription of its code.

The transcriptions keep every decision of the originals but one: sorts are stable, so that the order of ties
is defined.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hybridhash.codes import HashCodes, pack_codes
from hybridhash.eval import DEFINITIONS, mean_average_precision
from tests.eval._oracles import random_case


def deephash_pytorch(query, query_labels, codes, labels, k):
    query, codes = np.sign(query), np.sign(codes)
    k = -1 if k is None else k
    total = 0.0
    for i in range(len(query)):
        gnd = (np.dot(query_labels[i, :], labels.transpose()) > 0).astype(np.float32)
        hamm = 0.5 * (codes.shape[1] - np.dot(query[i, :], codes.transpose()))
        gnd = gnd[np.argsort(hamm, kind="stable")][0:k]
        tsum = np.sum(gnd).astype(int)
        if tsum == 0:
            continue
        count = np.linspace(1, tsum, tsum)
        total += np.mean(count / (np.asarray(np.where(gnd == 1)) + 1.0))
    return total / len(query)


def hashnet(query, query_labels, codes, labels, k, *, csq=False):
    if csq:
        query, codes = np.where(query >= 0, 1.0, -1.0), np.where(codes >= 0, 1.0, -1.0)
    else:
        query, codes = np.sign(query), np.sign(codes)
    k = len(codes) if k is None else k
    ids = np.argsort(-np.dot(codes, query.T), axis=0, kind="stable")
    values = []
    for i in range(len(query)):
        label = query_labels[i].copy()
        if csq and np.sum(label) == 0:
            continue
        label[label == 0] = -1
        match = np.sum(labels[ids[0:k, i], :] == label, axis=1) > 0
        number = np.sum(match)
        precision = np.cumsum(match).astype(float) / np.arange(1, k + 1, 1)
        if number != 0:
            values.append(np.sum(precision * match) / number)
        elif csq:
            values.append(0)
    return np.mean(np.array(values))


def csq(query, query_labels, codes, labels, k):
    return hashnet(query, query_labels, codes, labels, k, csq=True)


def torchcmh(query, query_labels, codes, labels, k):
    query, codes = np.sign(query), np.sign(codes)
    k = len(codes) if k is None else k
    total = 0.0
    for i in range(len(query)):
        gnd = (np.dot(query_labels[i], labels.T) > 0).astype(np.float64)
        if gnd.sum() == 0:
            continue
        hamm = 0.5 * (codes.shape[1] - np.dot(query[i], codes.T))
        gnd = gnd[np.argsort(hamm, kind="stable")]
        number = min(k, int(gnd.sum()))
        count = np.arange(1, number + 1)
        total += np.mean(count / (np.nonzero(gnd)[0][:number] + 1.0))
    return total / len(query)


def torchmetrics(query, query_labels, codes, labels, k):
    query, codes = np.where(query > 0, 1.0, -1.0), np.where(codes > 0, 1.0, -1.0)
    total = 0.0
    for i in range(len(query)):
        target = np.dot(query_labels[i], labels.T) > 0
        preds = codes.shape[1] + 1 - 0.5 * (codes.shape[1] - np.dot(query[i], codes.T))
        target = target[np.argsort(-preds, kind="stable")][: k or len(codes)]
        if not target.sum():
            continue
        positions = np.arange(1, len(target) + 1)[target > 0]
        total += np.mean(np.arange(1, len(positions) + 1) / positions)
    return total / len(query)


LITERAL = {
    "deephash-pytorch": deephash_pytorch,
    "hashnet": hashnet,
    "csq": csq,
    "torchcmh": torchcmh,
    "torchmetrics": torchmetrics,
}


def case_with_everything(zeros):
    """Tied codes, codes of exactly 0, unlabelled queries and items, queries without a hit in a short list."""
    query, query_labels, codes, labels = random_case(seed=20, queries=30, classes=8, density=0.12)
    if zeros:
        generator = torch.Generator().manual_seed(21)
        query = query * (torch.rand(query.shape, generator=generator) > 0.2)
        codes = codes * (torch.rand(codes.shape, generator=generator) > 0.2)
    return query, query_labels, codes, labels


def test_every_definition_has_a_transcription():
    assert set(LITERAL) == set(DEFINITIONS)


@pytest.mark.parametrize("name", LITERAL)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("top_k", [1, 5, 60, None])
def test_definition_equals_the_transcription_of_its_code(name, zeros, top_k):
    case = case_with_everything(zeros)
    want = LITERAL[name](*(side.numpy().astype(np.float64) for side in case), top_k)
    got = mean_average_precision(*case, top_k=top_k, definition=name)
    assert got.item() == pytest.approx(want, abs=1e-12)


def test_definitions_differ_from_each_other_and_from_the_exact_number():
    case = case_with_everything(zeros=True)
    for top_k in (5, None):
        values = [mean_average_precision(*case, top_k=top_k, definition=name).item() for name in DEFINITIONS]
        values.append(mean_average_precision(*case, top_k=top_k).item())
        assert len({round(value, 9) for value in values}) == len(values)


def test_definitions_take_hash_codes_several_cuts_and_give_values_per_query():
    query, query_labels, codes, labels = case_with_everything(zeros=False)
    queries = HashCodes(pack_codes(query), 8, query_labels)
    database = HashCodes(pack_codes(codes), 8, labels)
    for name in DEFINITIONS:
        want = mean_average_precision(
            query, query_labels, codes, labels, top_k=[5, None], definition=name, aggregation=None
        )
        got = mean_average_precision(queries, database, top_k=[5, None], definition=name, aggregation=None)
        assert torch.equal(got.nan_to_num(-1), want.nan_to_num(-1))
        assert want.shape == (2, 30)
        assert bool(want[:, ~query_labels.any(1)].isnan().all()) == (name in ("hashnet", "csq"))


def test_a_definition_leaves_no_room_for_other_rules():
    case = case_with_everything(zeros=False)
    with pytest.raises(ValueError, match="leave them out"):
        mean_average_precision(*case, definition="csq", ties="best")
    with pytest.raises(ValueError, match="definition must be one of 'deephash-pytorch'"):
        mean_average_precision(*case, definition="swuxyj")


@pytest.mark.parametrize("bits", [200, 4096])
def test_zeros_have_a_third_value_at_every_length(bits):
    # Item 1 differs from the query in one bit, and item 0 only in the half of a bit: 0 against +1.
    query = torch.ones(1, bits)
    database = torch.ones(2, bits)
    database[0, -1] = 0
    database[1, 0] = -1
    labels = torch.tensor([0, 1])
    for items, value in ((database, 1.0), (database.flip(0), 1.0)):
        order = labels if items is database else labels.flip(0)
        got = mean_average_precision(query, labels[:1], items, order, definition="torchcmh")
        assert got == value
