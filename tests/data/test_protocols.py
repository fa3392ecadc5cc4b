"""Benchmarks: their sizes, the splits that are drawn, list files, and what is refused."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder

from hybridhash.data import (
    LabelledImages,
    Split,
    SplitDatasets,
    custom_protocol,
    describe_protocols,
    get_protocol,
    list_protocols,
    read_csv,
)
from tests.data._lists import write

# name: classes, several labels, query, train, database, train in database, top_k; of the papers' code.
PUBLISHED = {
    "cifar10": (10, False, 1000, 5000, 54_000, False, None),
    "cifar10-1": (10, False, 1000, 5000, 59_000, True, None),
    "cifar10-2": (10, False, 10_000, 50_000, 50_000, True, None),
    "nuswide_21": (21, True, 2100, 10_500, 193_734, True, 5000),
    "nuswide_21_m": (21, True, 2100, 10_500, 149_736, False, 5000),
    "nuswide_81_m": (81, True, 5000, 10_000, 168_692, True, 5000),
    "coco": (80, True, 5000, 10_000, 112_218, False, 5000),
    "imagenet100": (100, False, 5000, 13_000, 128_503, True, 1000),
    "mirflickr": (38, True, 1000, 4000, 20_000, False, None),
    "voc2012": (20, True, 1000, 4000, 6540, False, None),
}
IMAGES = {
    "cifar10": 60_000,
    "cifar10-1": 60_000,
    "cifar10-2": 60_000,
    "nuswide_21": 195_834,
    "mirflickr": 25_000,
    "voc2012": 11_540,
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def labels_for(name):
    protocol = get_protocol(name)
    classes = torch.arange(IMAGES[name]) % protocol.num_classes
    if not protocol.multi_label:
        return classes
    hot = torch.nn.functional.one_hot(classes, protocol.num_classes).bool()
    hot[torch.arange(0, len(hot), 3), (classes[::3] * 7 + 1) % protocol.num_classes] = True
    return hot


# The registry


def test_all_ten_benchmarks_are_there():
    assert list_protocols() == list(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name):
    p = get_protocol(name)
    got = (p.num_classes, p.multi_label, p.query, p.train, p.database, p.train_in_database, p.top_k)
    assert got == PUBLISHED[name]
    assert p.images == IMAGES.get(name, p.images)
    assert (p.draw is None) == (name not in IMAGES)


@pytest.mark.parametrize(
    ("wrong", "near"), [("cifar-10", "cifar10"), ("imagenet", "imagenet100"), ("voc", "voc2012")]
)
def test_unknown_names_say_what_is_near(wrong, near):
    with pytest.raises(ValueError, match=rf"no protocol is called '{wrong}'; nearest: .*{near}"):
        get_protocol(wrong)


def test_the_case_of_a_name_does_not_matter():
    assert get_protocol("VOC2012") is get_protocol("voc2012")


def test_the_table_names_every_benchmark_and_marks_what_is_not_certain():
    lines = {line.split()[0]: line for line in describe_protocols().splitlines()[1:]}
    assert set(lines) == set(PUBLISHED)
    assert "59,000" in lines["cifar10-1"]
    assert "112,218?" in lines["coco"]
    assert "?" not in lines["imagenet100"]


def test_str_shows_sizes_cut_and_notes():
    text = str(get_protocol("nuswide_81_m"))
    for part in (
        "81 classes",
        "several labels",
        "query 5,000",
        "168,692",
        "nearest 5,000",
        "not certain: train",
    ):
        assert part in text


# Splits


@pytest.mark.parametrize("name", IMAGES)
def test_a_drawn_split_has_the_published_sizes(name, recwarn):
    labels = labels_for(name)
    split = get_protocol(name).split(labels, seeded())
    _, _, query, train, database, inside, _ = PUBLISHED[name]
    assert (len(split.query), len(split.train), len(split.database)) == (query, train, database)
    assert not torch.isin(split.query, torch.cat([split.train, split.database])).any()
    assert bool(torch.isin(split.train, split.database).all()) == inside
    together = torch.cat([split.query, split.train, split.database]).unique()
    assert torch.equal(together, torch.arange(len(labels)))
    assert not recwarn


@pytest.mark.parametrize("name", ["cifar10", "cifar10-1", "cifar10-2"])
def test_every_class_has_its_quota(name):
    labels = labels_for(name)
    split = get_protocol(name).split(labels, seeded())
    assert set(labels[split.query].bincount().tolist()) == {len(split.query) // 10}
    assert set(labels[split.train].bincount().tolist()) == {len(split.train) // 10}


def test_one_hot_labels_draw_the_split_of_their_class_ids():
    labels = labels_for("cifar10")
    one_hot = torch.nn.functional.one_hot(labels, 10)
    first, second = (get_protocol("cifar10").split(x, seeded()) for x in (labels, one_hot))
    assert torch.equal(first.query, second.query)
    assert torch.equal(first.train, second.train)


def greedy_oracle(labels, order, quota):
    """Class counters, image by image."""
    counts, taken = [0] * labels.shape[1], []
    for row in order:
        for c in range(labels.shape[1]):
            if labels[row, c] and counts[c] < quota:
                counts[c] += 1
                taken.append(row)
                break
    return sorted(taken), counts


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_greedy_draw_counts_each_image_for_one_class(seed):
    labels = torch.rand(120, 4, generator=seeded(seed)) < 0.4
    labels[:60] = False
    labels[torch.arange(60), torch.arange(60) % 4] = True
    split = custom_protocol("mine", labels, query_per_class=3, train_per_class=5).split(labels, seeded(seed))
    order = torch.randperm(120, generator=seeded(seed)).tolist()
    query, counts = greedy_oracle(labels, order, 3)
    assert split.query.tolist() == query
    assert counts == [3] * 4
    train, _ = greedy_oracle(labels, [row for row in order if row not in query], 5)
    assert split.train.tolist() == train


def test_the_generator_decides_the_split():
    labels = labels_for("voc2012")
    protocol = get_protocol("voc2012")
    first, again, other = (protocol.split(labels, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first.query, again.query)
    assert not torch.equal(first.query, other.query)


def test_images_without_label_are_neither_queries_nor_trained_on():
    labels = torch.tensor([0, 0, 0, -1, 1, 1, 1, -1])
    split = custom_protocol("mine", labels, query_per_class=1).split(labels, seeded())
    assert not {3, 7} & {*split.query.tolist(), *split.train.tolist()}
    assert {3, 7} <= set(split.database.tolist())


def test_published_lists_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"coco is not drawn at random but published as test\.txt"):
        get_protocol("coco").split(torch.zeros(3, 80), seeded())


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("nuswide_21", torch.zeros(9).long(), r"nuswide_21 needs multi-hot labels \(N, 21\), got class ids"),
        ("voc2012", torch.zeros(9, 21), "voc2012 has 20 classes, got 21 columns"),
        ("cifar10", torch.tensor([3, 12, 1]), "10 classes, row 1 has the class id 12"),
        ("cifar10", torch.ones(2, 10), r"one class an image, but 2 rows have several labels.*\[0, 1\]"),
        (
            "cifar10",
            torch.arange(5000) % 10,
            "class 0 has 500 images, too few for 100 queries and 500",
        ),
        (
            "nuswide_21",
            torch.eye(21).repeat(150, 1),
            "class 0 has 150 images, too few for 100",
        ),
        (
            "voc2012",
            torch.ones(5000, 20),
            "5,000 images are too few for 1,000 queries, 4,000",
        ),
    ],
)
def test_labels_that_do_not_fit_the_benchmark_are_refused(name, labels, message):
    with pytest.raises(ValueError, match=message):
        get_protocol(name).split(labels, seeded())


def test_other_sizes_warn_and_name_both():
    with pytest.warns(UserWarning, match=r"not the sizes of cifar10: database 600 instead of 54,000"):
        split = get_protocol("cifar10").split(torch.arange(6600) % 10, seeded())
    assert (len(split.query), len(split.train), len(split.database)) == (1000, 5000, 600)


def test_a_split_survives_a_reload(tmp_path):
    labels = torch.arange(40) % 4
    split = custom_protocol("mine", labels, query_per_class=2, train_per_class=3).split(labels, seeded())
    split.save(tmp_path / "split.safetensors")
    again = Split.load(tmp_path / "split.safetensors", labels)
    for part in ("query", "train", "database"):
        assert torch.equal(getattr(again, part), getattr(split, part))
    assert (again.protocol, again.images) == ("mine", 40)
    assert str(again) == "split of 40 images by mine: query 8, train 12, database 32"
    assert [path.name for path in tmp_path.iterdir()] == ["split.safetensors"]


def test_a_split_is_refused_for_another_data_set(tmp_path):
    labels = torch.arange(40) % 4
    custom_protocol("mine", labels, query_per_class=2).split(labels, seeded()).save(tmp_path / "s")
    with pytest.raises(ValueError, match=r"s was drawn for 40 images, the data set has 39"):
        Split.load(tmp_path / "s", labels[:39])
    with pytest.raises(ValueError, match="other labels, or in another order"):
        Split.load(tmp_path / "s", labels.flip(0))


def test_a_damaged_split_file_is_refused(tmp_path):
    labels = torch.arange(40) % 4
    split = custom_protocol("mine", labels, query_per_class=2).split(labels, seeded())
    split.save(tmp_path / "s")
    (tmp_path / "cut").write_bytes((tmp_path / "s").read_bytes()[:-9])
    save_file({"query": split.query}, tmp_path / "other")
    for name in ("cut", "other"):
        with pytest.raises(ValueError, match=f"{name} is no split"):
            Split.load(tmp_path / name, labels)
    about = {"format": "hybridhash.split/1", "protocol": "mine", "images": "40", "labels_sha256": "x"}
    rows = {"query": split.query, "train": split.query.clone(), "database": split.database}
    save_file(rows, tmp_path / "leaking", metadata=about)
    with pytest.raises(ValueError, match="leaking is damaged: 8 rows are in query and train"):
        Split.load(tmp_path / "leaking", labels)


def test_no_flipped_bit_of_a_split_file_is_read(tmp_path):
    """Such as the row of a training image that became that of another one."""
    labels = torch.arange(40) % 4
    rule = custom_protocol("mine", labels, query_per_class=1, train_per_class=1)
    rule.split(labels, seeded()).save(tmp_path / "s")
    rule.split(labels, seeded()).save(tmp_path / "again")
    content = (tmp_path / "s").read_bytes()
    assert (tmp_path / "again").read_bytes() == content
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged is "):
            Split.load(tmp_path / "damaged", labels)


def test_a_split_file_of_the_version_without_digests_is_read(tmp_path):
    labels = torch.arange(40) % 4
    split = custom_protocol("mine", labels, query_per_class=2, train_per_class=3).split(labels, seeded())
    about = {"format": "hybridhash.split/1", "protocol": "mine", "images": "40"}
    rows = {name: getattr(split, name) for name in ("query", "train", "database")}
    save_file(rows, tmp_path / "old", metadata={**about, "labels_sha256": split.labels_sha256})
    again = Split.load(tmp_path / "old", labels)
    assert all(torch.equal(getattr(again, name), part) for name, part in rows.items())


@pytest.mark.parametrize(
    ("query", "train", "database", "message"),
    [
        ([0, 1], [2], [1, 3], r"1 rows are in query and database, the first are \[1\]"),
        ([0], [2, 2], [3], r"train has rows twice, the first are \[2\]"),
        ([0], [2], [9], "database has row 9, but there are 5 images"),
        ([0], [-1], [3], "train has row -1"),
    ],
)
def test_rows_that_make_no_split_are_named(query, train, database, message):
    with pytest.raises(ValueError, match=message):
        Split("mine", 5, "", *(torch.tensor(rows) for rows in (query, train, database)))


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    labels = torch.arange(40) % 4
    split = custom_protocol("mine", labels, query_per_class=2).split(labels, seeded())
    split.save(tmp_path / "s")
    before = (tmp_path / "s").read_bytes()

    def fail(path, *rest):
        Path(path).write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr("hybridhash.data.splits.write_tensors", fail)
    with pytest.raises(OSError, match="full"):
        split.save(tmp_path / "s")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("s", before)]


def test_parts_carry_labels_rows_and_their_own_transforms():
    labels = torch.arange(40) % 4
    images = torch.arange(40.0)
    split = custom_protocol("mine", labels, query_per_class=2, train_per_class=3).split(labels, seeded())
    whole = LabelledImages(TensorDataset(images), labels)
    parts = split.datasets(whole, transform=lambda x: x, train_transform=lambda x: -x)
    for part, rows, sign in ((parts.query, split.query, 1), (parts.train, split.train, -1)):
        for index in (0, len(part) - 1):
            image, label, number = part[index]
            assert (image, label, number) == (sign * images[rows[index]], labels[rows[index]], index)
        assert torch.equal(part.labels, labels[rows])
    assert len(next(iter(DataLoader(parts.train, batch_size=5)))) == 3
    with pytest.raises(ValueError, match="other labels"):
        split.datasets(LabelledImages(TensorDataset(images), labels.flip(0)))


def test_the_table_of_parts_counts_images_without_label():
    ids, hot = torch.tensor([0, 1, 1, -1]), torch.tensor([[1, 1], [0, 0], [0, 1]])
    parts = SplitDatasets(*(LabelledImages(range(len(x)), x) for x in (ids, hot, ids)))
    lines = parts.describe().splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["query", "4", "1", "0.75", "1..2"],
        ["train", "3", "1", "1.00", "1..2"],
        ["database", "4", "1", "0.75", "1..2"],
    ]
    assert str(parts) == parts.describe()


def test_what_custom_protocol_refuses():
    labels = torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match="query_per_class must be >= 1, got 0"):
        custom_protocol("mine", labels, query_per_class=0)
    with pytest.raises(ValueError, match="the database would be empty"):
        custom_protocol("mine", labels, query_per_class=1, train_in_database=False)
    with pytest.raises(ValueError, match="class 1 has 1 images, too few for 1 queries and some training"):
        custom_protocol("mine", labels, query_per_class=1).split(labels, seeded())


# List files of a benchmark


def hot(*classes, of=20):
    return " ".join("1" if c in classes else "0" for c in range(of))


def voc(folder, query="ab", train="cd", database="efgh"):
    for name, letters in (("test", query), ("train", train), ("database", database)):
        write(folder / f"{name}.txt", *(f"{x}.png {hot(i, i + 1)}" for i, x in enumerate(letters)))


def test_three_lists_make_a_benchmark(folder):
    voc(folder)
    with pytest.warns(UserWarning, match="not the sizes of voc2012: query 2 instead of 1,000, train 2"):
        parts = get_protocol("voc2012").load_lists(
            folder, transform=len, train_transform=lambda image: image.size
        )
    assert [len(part) for part in parts] == [2, 2, 4]
    assert parts.train[0][0] == (4, 4)
    assert parts.query.labels.shape == (2, 20)
    assert "database" in str(parts)


@pytest.mark.filterwarnings("ignore:.*has not the sizes")
def test_published_lists_that_leak_are_refused(folder):
    voc(folder, database="efa")
    with pytest.raises(ValueError, match=r"in both .*test\.txt and .*database\.txt"):
        get_protocol("voc2012").load_lists(folder)
    voc(folder, train="cb")
    with pytest.raises(ValueError, match=r"in both .*test\.txt and .*train\.txt"):
        get_protocol("voc2012").load_lists(folder)
    (folder / "train.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.txt"):
        get_protocol("voc2012").load_lists(folder)


def test_lists_of_another_benchmark_are_refused(folder):
    voc(folder)
    with pytest.raises(ValueError, match=r"test\.txt, line 1: 20 labels, expected 80"):
        get_protocol("coco").load_lists(folder)


# Data of one's own


def test_an_image_folder_is_a_benchmark_in_three_lines(tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for number in range(4):
            Image.new("RGB", (4, 4)).save(tmp_path / kind / f"{number}.png")
    photos = LabelledImages(ImageFolder(tmp_path))
    protocol = custom_protocol("pets", photos.labels, query_per_class=1)
    query, train, database = protocol.split(photos.labels, seeded()).datasets(photos)
    assert [len(part) for part in (query, train, database)] == [2, 6, 6]
    assert photos.classes == ("cat", "dog")
    assert train[0][0].size == (4, 4)


def test_a_csv_file_is_a_benchmark_in_three_lines(folder):
    kinds = zip("abcdefgh", ["wren", "crow"] * 4, strict=True)
    table = write(folder / "birds.csv", "id,file,kind", *(f"1,{name}.png,{kind}" for name, kind in kinds))
    birds = read_csv(table, image="file", label="kind")
    protocol = custom_protocol("birds", birds.labels, query_per_class=1, train_per_class=2)
    query, train, database = protocol.split(birds.labels, seeded()).datasets(birds)
    assert [len(part) for part in (query, train, database)] == [2, 4, 6]
    assert birds.classes == ("crow", "wren")
    assert birds[1][0].getpixel((0, 0)) == (30, 0, 0)
    assert birds.labels.tolist() == [1, 0] * 4
