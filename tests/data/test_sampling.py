"""The batch sampler for triplets."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from hybridhash.data.sampling import balanced_batches


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_batch_has_images_of_distinct_classes():
    labels = torch.arange(60) % 6
    batches = balanced_batches(labels, 3, 4, seeded())
    assert len(batches) == len(list(batches)) == 5
    for batch in batches:
        assert len(set(batch)) == 12
        assert sorted(Counter(labels[batch].tolist()).values()) == [4, 4, 4]


def test_an_epoch_of_equal_classes_has_every_image_once():
    labels = torch.arange(60) % 6
    drawn = [index for batch in balanced_batches(labels, 3, 5, seeded()) for index in batch]
    assert sorted(drawn) == list(range(60))


def test_rare_classes_come_up_as_often_as_common_ones():
    labels = torch.tensor([0] * 40 + [1] * 40 + [2] * 4)
    batches = balanced_batches(labels, 1, 2, seeded())
    counts = Counter(int(labels[batch[0]]) for batch in batches)
    assert len(batches) == 42
    assert set(counts.values()) == {14}


def test_class_with_fewer_images_than_asked_gives_all_it_has():
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    for batch in balanced_batches(labels, 2, 4, seeded()):
        assert sorted(batch) == [0, 1, 2, 3, 4, 5]


def test_images_without_label_are_never_drawn():
    labels = torch.tensor([-1, 0, 0, -1, 1, 1])
    multi_hot = torch.tensor([[0, 0], [1, 0], [1, 0], [0, 0], [0, 1], [0, 1]])
    for given_labels in (labels, multi_hot):
        drawn = {index for batch in balanced_batches(given_labels, 2, 1, seeded()) for index in batch}
        assert drawn == {1, 2, 4, 5}


def test_multi_hot_image_counts_for_the_class_it_was_drawn_for():
    labels = torch.tensor([[1, 1], [1, 1], [1, 0], [0, 1]])
    for seed in range(10):
        for batch in balanced_batches(labels, 2, 2, seeded(seed)):
            assert len(set(batch)) == len(batch)
            assert len(batch) >= 3
            assert bool(labels[batch].any(0).all())


def test_ids_and_one_hot_give_the_same_batches():
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2, -1])
    one_hot = labels[:, None] == torch.arange(3)
    assert list(balanced_batches(labels, 2, 2, seeded())) == list(balanced_batches(one_hot, 2, 2, seeded()))


def test_epochs_differ_and_a_seed_repeats_them():
    labels = torch.arange(40) % 4
    batches, again = balanced_batches(labels, 2, 5, seeded(3)), balanced_batches(labels, 2, 5, seeded(3))
    first, second = list(batches), list(batches)
    assert first != second
    assert [list(again), list(again)] == [first, second]


def test_works_as_the_batch_sampler_of_a_loader():
    labels = torch.arange(12) % 3
    loader = DataLoader(
        TensorDataset(torch.arange(12), labels), batch_sampler=balanced_batches(labels, 2, 2, seeded())
    )
    assert len(loader) == 3
    for _ in range(2):
        for images, given_labels in loader:
            assert torch.equal(labels[images], given_labels)
            assert len(set(given_labels.tolist())) == 2


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(-1, 4), min_size=1, max_size=30),
    classes=st.integers(1, 5),
    images=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_batches_are_as_promised(labels, classes, images, seed):
    sizes = Counter(label for label in labels if label >= 0)
    if len(sizes) < classes:
        with pytest.raises(
            ValueError, match=f"classes_per_batch is {classes}, but only {len(sizes)} classes"
        ):
            balanced_batches(torch.tensor(labels), classes, images, seeded(seed))
        return
    batches = balanced_batches(torch.tensor(labels), classes, images, seeded(seed))
    for _ in range(2):
        epoch = list(batches)
        assert len(epoch) == len(batches) == -(-sum(sizes.values()) // (classes * images))
        for batch in epoch:
            counts = Counter(labels[index] for index in batch)
            assert len(set(batch)) == len(batch)
            assert len(counts) == classes
            assert all(counts[label] == min(images, sizes[label]) for label in counts)


@pytest.mark.parametrize(
    ("classes", "images", "name"), [(0, 1, "classes_per_batch"), (1, 0, "images_per_class")]
)
def test_numbers_below_one_are_refused(classes, images, name):
    with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
        balanced_batches(torch.tensor([0, 1]), classes, images)
