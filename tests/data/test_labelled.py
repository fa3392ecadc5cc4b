"""Data sets with labels: any of the user's, CIFAR-10, digits."""

import pickle
import sys

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, ImageFolder

from hybridhash.data import ImageList, LabelledImages, cifar10, custom_protocol, digits
from tests.data._lists import write


def test_labelled_images_refuse_what_does_not_fit():
    with pytest.raises(TypeError, match=r"list has neither \.labels nor \.targets"):
        LabelledImages(["a", "b"])
    with pytest.raises(ValueError, match="3 rows, expected 2"):
        LabelledImages(["a", "b"], torch.arange(3))
    with pytest.raises(IndexError, match="row 2 is outside the data set of 2 images"):
        LabelledImages(["a", "b"], torch.arange(2), rows=torch.tensor([0, 2]))


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (torch.tensor([0, 3]), ("cat", "dog"), "labels have the class id 3, but there are 2 names"),
        (torch.eye(2, 3), ("cat", "dog"), "labels have 3 columns, but there are 2 names"),
        (torch.eye(2, 3), ("cat", "dog", "cow", "hen"), "labels have 3 columns, but there are 4 names"),
    ],
)
def test_names_of_other_classes_are_refused(labels, classes, message):
    with pytest.raises(ValueError, match=f"{message}.*classes="):
        LabelledImages(["a", "b"], labels, classes=classes)
    images = LabelledImages(["a", "b"], torch.tensor([0, 1]), classes=classes)
    with pytest.raises(ValueError, match=message):
        LabelledImages(images, labels)  # whose own labels would fit


def test_names_that_no_image_has_and_images_without_a_label_are_fine():
    images = LabelledImages(["a", "b"], torch.tensor([-1, 0]), classes=["cat", "dog"])
    assert images.num_classes == 2
    with pytest.raises(TypeError, match="got the string 'cat'"):
        LabelledImages(["a"], torch.tensor([0]), classes="cat")


def test_rows_are_integers():
    for rows in (torch.tensor([True, False]), torch.tensor([0.0, 1.5])):
        with pytest.raises(TypeError, match="rows must be integers"):
            LabelledImages(["a", "b"], torch.tensor([0, 1]), rows=rows)


def test_the_file_of_an_item_is_known(folder):
    (folder / "x").mkdir()
    for name in "abc":
        (folder / f"{name}.png").rename(folder / "x" / f"{name}.png")
    write(folder / "list.txt", "x/c.png 0", "x/a.png 1", "x/b.png 0")
    in_folder = LabelledImages(ImageFolder(folder), rows=torch.tensor([2, 0]))
    in_list = LabelledImages(ImageList(folder / "list.txt"), rows=torch.tensor([0, 1]))
    for images in (in_folder, in_list):
        again = LabelledImages(images, rows=torch.tensor([1, 0]))
        assert [again.file(0), again.file(1)] == [str(folder / "x" / "a.png"), str(folder / "x" / "c.png")]
    with pytest.raises(TypeError, match=r"list has neither path\(row\) nor samples"):
        LabelledImages(["a"], torch.zeros(1).long()).file(0)


@pytest.fixture
def cifar_folder(tmp_path, monkeypatch):
    """Files of CIFAR-10's form with 4 images of each class in all; their checksums are those of any file."""
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    monkeypatch.setattr(CIFAR10, "train_list", [[name, None] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[5], None]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    targets = np.arange(40) % 10
    pixels = np.repeat(np.arange(40, dtype=np.uint8)[:, None], 3072, axis=1)
    for name, rows in zip(names, np.array_split(np.arange(40), 6), strict=True):
        content = {"data": pixels[rows], "labels": targets[rows].tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    label_names = {"label_names": ["airplane", "automobile", *"abcdefgh"]}
    (folder / "batches.meta").write_bytes(pickle.dumps(label_names))
    return tmp_path


def test_cifar_is_pooled_training_set_first(cifar_folder):
    images = cifar10(cifar_folder)
    assert (len(images), images.classes[:2]) == (40, ("airplane", "automobile"))
    assert torch.equal(images.labels, torch.arange(40) % 10)
    assert [images[row][0].getpixel((0, 0)) for row in (0, 39)] == [(0, 0, 0), (39, 39, 39)]
    protocol = custom_protocol(
        "small", images.labels, query_per_class=1, train_per_class=2, train_in_database=False
    )
    parts = protocol.split(images.labels, torch.Generator().manual_seed(0)).datasets(images)
    assert [len(part) for part in parts] == [10, 20, 10]
    image, label, _ = parts.query[3]
    assert image.getpixel((0, 0))[0] % 10 == label


def test_missing_cifar_files_say_what_to_do(tmp_path):
    with pytest.raises(RuntimeError, match="download=True"):
        cifar10(tmp_path)


def test_digits_are_images_of_all_ten_classes():
    images = digits()
    image, label, index = images[1796]
    assert (image.size, image.mode, int(label), index) == ((8, 8), "RGB", 8, 1796)
    assert torch.bincount(images.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    pixels = np.array(image)
    assert pixels[0, 0].tolist() == [255] * 3  # dark on white
    assert pixels.min() == 0


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install hybridhash\[examples\]"):
        digits()
