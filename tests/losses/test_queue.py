"""CodeQueue: which codes it holds, and that every loss with a bank takes it."""

from __future__ import annotations

import copy

import pytest
import torch

from hybridhash.losses import CodeBank, CodeQueue, ContrastiveLoss, MDSHCLoss, WMLLoss, create_loss_for
from tests._processes import run_on_ranks
from tests.losses.test_registry import BITS, CLASSES, PAIRWISE, ROWS, batch, make


def numbered(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)[:, None].expand(-1, 2)


def test_the_oldest_codes_make_room():
    queue, held = CodeQueue(5, 2), []
    for start, number in ((0, 2), (2, 2), (4, 3), (7, 5), (12, 1)):
        given = list(range(start, start + number))
        queue.enqueue(numbered(*given), torch.tensor(given) % 3)
        held = [*held, *given][-5:]
        seen = queue.codes[queue.seen]
        assert sorted(seen[:, 0].tolist()) == held
        assert torch.equal(queue.labels[queue.seen], seen[:, 0].long() % 3)
    assert int(queue.position) == 13 % 5
    assert queue.num_samples == 5


def test_class_ids_enter_a_multi_hot_queue_and_half_precision_rounds():
    queue = CodeQueue(3, 2, num_classes=4, dtype=torch.float16)
    queue.enqueue(numbered(1.0001, 2), torch.tensor([3, -1]))
    assert queue.labels.long().tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert queue.codes.dtype == torch.float16


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("name", PAIRWISE)
def test_a_loss_against_a_queue_is_that_against_a_bank_of_the_same_codes(name, exclude_self):
    codes, labels = batch(n=2 * ROWS)
    codes = codes.tanh().requires_grad_()
    memories = (
        CodeQueue(14, BITS, CLASSES, dtype=torch.float64),
        CodeBank(14, BITS, CLASSES, dtype=torch.float64),
    )
    losses = [make(name, bank=memory, exclude_self=exclude_self) for memory in memories]
    for start in (0, ROWS):
        rows = torch.arange(start, start + ROWS)
        values = [loss(codes[rows], labels[rows], indices=rows) for loss in losses]
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*(torch.autograd.grad(value, codes)[0] for value in values))
    assert losses[0].requires == losses[1].requires - {"indices"}
    losses[0](codes[:ROWS], labels[:ROWS])  # needs no indices, and starts over at row 0
    assert int(memories[0].position) == (3 * ROWS) % 14


def test_losses_that_share_a_queue_compare_with_the_same_codes_in_any_order():
    codes, labels = batch(n=2 * ROWS)
    queue = CodeQueue(3 * ROWS, BITS, CLASSES, dtype=torch.float64)
    shared = [make(name, bank=queue) for name in ("wml", "idhn")]
    own = [
        make(name, bank=CodeQueue(3 * ROWS, BITS, CLASSES, dtype=torch.float64)) for name in ("wml", "idhn")
    ]
    for step, order in enumerate(((0, 1), (1, 0), (0, 1))):
        leaf = (codes + step).tanh()[step : step + ROWS].requires_grad_()
        for number in order:
            value, alone = (loss[number](leaf, labels[step : step + ROWS]) for loss in (shared, own))
            torch.testing.assert_close(value, alone)
    assert int(queue.position) == 0
    assert bool(queue.seen.all())


@pytest.mark.parametrize("kind", [CodeBank, CodeQueue])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((5, 2), r"codes of the {} are \(4, 2\), in the state dict \(5, 2\): make it with the rows"),
        ((4, 2, 3), r"labels of the {} are \(4,\), in the state dict \(4, 3\): make it with the rows"),
    ],
)
def test_a_state_of_another_size_is_refused_with_advice(kind, sizes, message):
    loss, saved = WMLLoss(bank=kind(4, 2)), WMLLoss(bank=kind(*sizes)).state_dict()
    with pytest.raises(RuntimeError, match=message.format(kind.__name__)):
        loss.load_state_dict(saved)


def test_evaluation_and_no_grad_only_read():
    loss = WMLLoss(bank=CodeQueue(8, 4), exclude_self=True)
    codes, labels = torch.linspace(-1, 1, 12).view(3, 4).requires_grad_(), torch.tensor([0, 1, 0])
    loss(codes, labels)
    before = {name: buffer.clone() for name, buffer in loss.state_dict().items()}
    with torch.no_grad():
        without = loss(codes, labels)
    evaluated = loss.eval()(codes, labels)
    assert all(torch.equal(before[name], buffer) for name, buffer in loss.state_dict().items())
    # Nothing was written, so no code of the queue is the item itself.
    expected = WMLLoss()(codes, labels, ref_codes=codes, ref_labels=labels)
    torch.testing.assert_close((without, evaluated), (expected, expected), check_stride=False)


def test_state_dict_resumes_a_run():
    first, second = (WMLLoss(bank=CodeQueue(7, 4)) for _ in "ab")
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(3, 4, generator=generator, requires_grad=True) for _ in range(5)]
    labels = torch.tensor([0, 1, 0])
    for codes in batches[:3]:
        first(codes, labels)
    second.load_state_dict(first.state_dict())
    for codes in batches[3:]:
        assert torch.equal(first(codes, labels), second(codes, labels))
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))


def test_mdshc_takes_the_codes_of_a_momentum_network():
    queue = CodeQueue(10, BITS, CLASSES)
    loss = MDSHCLoss(CLASSES, BITS, bank=queue, pair_from=0)
    codes, labels = batch(dtype=torch.float32)
    loss(codes.requires_grad_(), labels, ref_codes=codes / 2)
    torch.testing.assert_close(queue.codes[:ROWS], codes.detach() / 2)
    assert "indices" not in loss.requires
    with pytest.raises(ValueError, match="holds the ref_codes of MDSHCLoss"):
        WMLLoss(bank=queue)(codes, labels)


def test_create_loss_for_takes_a_queue():
    queue = CodeQueue(12, 16)
    loss = create_loss_for("wml", torch.tensor([0, 1, 2]), bits=16, bank=queue)
    assert loss.bank is queue
    assert copy.deepcopy(loss).bank.num_samples == 12


@pytest.mark.parametrize(
    ("error", "message", "make_queue"),
    [
        (ValueError, "size must be >= 1, got 0", lambda: CodeQueue(0, 4)),
        (TypeError, "size must be an int >= 1, got 2.5", lambda: CodeQueue(2.5, 4)),
        (ValueError, "bits must be >= 1, got 0", lambda: CodeQueue(5, 0)),
        (TypeError, "floating-point", lambda: CodeQueue(5, 4, dtype=torch.int64)),
    ],
)
def test_bad_sizes_are_named(error, message, make_queue):
    with pytest.raises(error, match=message):
        make_queue()


@pytest.mark.parametrize(
    ("message", "codes", "labels"),
    [
        ("3 bits, the bank was made for 4", torch.ones(1, 3), [0]),
        ("batch of 6 codes does not fit a queue of 5", torch.ones(6, 4), [0] * 6),
        ("would stay in the bank", torch.full((2, 4), torch.inf), [0, 1]),
        ("would stay in the bank", torch.full((2, 4), torch.nan), [0, 1]),
        ("2 rows, expected 1", torch.ones(1, 4), [0, 1]),
        ("holds class ids, got multi-hot", torch.ones(1, 4), [[0, 1]]),
    ],
)
def test_bad_batches_are_named_and_write_nothing(message, codes, labels):
    queue = CodeQueue(5, 4)
    with pytest.raises(ValueError, match=message):
        queue.enqueue(codes, torch.tensor(labels))
    with pytest.raises(ValueError, match=message):
        WMLLoss(bank=queue)(codes.requires_grad_(), torch.tensor(labels))
    assert not bool(queue.seen.any())
    assert int(queue.position) == 0
    assert queue.kind is None


def _on_rank(rank, case):
    codes, labels, rows = case
    loss = WMLLoss(bank=CodeQueue(9, BITS, dtype=torch.float64), exclude_self=True)
    leaf = codes[rows[rank]].clone().requires_grad_()
    values = [loss(leaf, labels[rows[rank]]) for _ in range(2)]
    values[1].backward()
    return values[1].detach(), leaf.grad, loss.bank.state_dict()


def test_two_processes_equal_one_on_the_joined_batch():
    codes, labels = batch(seed=1, n=7)
    value, grad, state = _on_rank(0, (codes, labels, [torch.arange(7)]))
    results = run_on_ranks(_on_rank, (codes, labels, [torch.arange(4), torch.arange(4, 7)]))
    for of_rank in results:
        torch.testing.assert_close(of_rank[0], value)
        torch.testing.assert_close(of_rank[2], state)
    torch.testing.assert_close(torch.cat([of_rank[1] for of_rank in results]) / 2, grad)


@pytest.mark.parametrize(
    ("error", "message", "build"),
    [
        (TypeError, "bits must be an int >= 1, got 1.5", lambda: CodeQueue(5, 1.5)),
        (TypeError, "num_classes must be an int >= 1, got 2.5", lambda: CodeQueue(5, 4, 2.5)),
        (
            TypeError,
            "dtype must be a floating-point type, got float32",
            lambda: CodeQueue(5, 4, dtype="float32"),
        ),
        (TypeError, "temperature must be a number, got 'a'", lambda: ContrastiveLoss("a")),
        (TypeError, "bottleneck must be a number, got None", lambda: ContrastiveLoss(bottleneck=None)),
    ],
)
def test_settings_of_other_types_are_named(error, message, build):
    with pytest.raises(error, match=message):
        build()
