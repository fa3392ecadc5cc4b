"""List files and CSV files: what is read, and what is refused by file and line."""

import numpy as np
import pytest
import torch

import hybridhash.eval
import hybridhash.images
from hybridhash.data import ImageList, check_disjoint, read_csv
from tests.data._lists import write


def test_class_ids_are_read_and_empty_lines_skipped(folder):
    photos = ImageList(write(folder / "list.txt", "a.png 3", "", "b.png -1"))
    assert photos.labels.tolist() == [3, -1]
    assert (len(photos), photos.num_classes, photos.unlabelled) == (2, 4, 1)
    image, label = photos[1]
    assert image.getpixel((0, 0)) == (30, 0, 0)
    assert label == -1
    with pytest.raises(IndexError):
        photos[2]


def test_multi_hot_labels_after_tabs_and_a_transform(folder):
    (folder / "b.png").rename(folder / "b c.png")
    path = write(folder / "list.txt", "a.png\t0\t1\t1", "b c.png\t0\t0\t0")
    image, label = ImageList(path, transform=np.asarray)[1]
    assert image[0, 0].tolist() == [30, 0, 0]
    assert label.tolist() == [False] * 3


def test_a_list_without_labels_and_with_another_root(folder, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("lists") / "list.txt", "a.png", "b.png")
    photos = ImageList(path, folder)
    assert photos.labels is None
    assert (photos.num_classes, photos.unlabelled) == (0, 2)
    assert photos[1].getpixel((0, 0)) == (30, 0, 0)
    assert photos.path(0) == str(folder / "a.png")


def test_multi_hot_lines_give_image_labels_and_row(folder):
    lines = write(folder / "list.txt", "a.png 0 1 1", "", "c.png 1 0 0")
    photos = ImageList(lines, num_classes=3, with_rows=True)
    image, label, index = photos[1]
    assert image.getpixel((0, 0)) == (60, 0, 0)
    assert (label.tolist(), index) == ([True, False, False], 1)
    assert (len(photos), photos.num_classes, photos.unlabelled) == (2, 3, 0)
    assert ImageList(folder / "list.txt", transform=lambda image: image.size)[0][0] == (4, 4)


def test_a_path_with_a_tab_and_a_class_id(folder):
    (folder / "a.png").rename(folder / "a 1.png")
    photos = ImageList(write(folder / "list.txt", "a 1.png\t7", "b.png\t2"), num_classes=8)
    assert photos.labels.tolist() == [7, 2]
    assert photos.path(0) == str(folder / "a 1.png")


def test_labels_are_known_without_decoding(folder):
    (folder / "a.png").write_bytes(b"no image")
    photos = ImageList(write(folder / "list.txt", "a.png 1 0", "b.png 0 0"))
    assert photos.labels.tolist() == [[True, False], [False, False]]
    assert photos.unlabelled == 1
    with pytest.raises(ValueError, match=r"list\.txt, line 1: the image .*a\.png cannot be read"):
        photos[0]


def test_roots_and_prefixes(folder, tmp_path_factory):
    lists = tmp_path_factory.mktemp("lists")
    relative = write(lists / "list.txt", "a.png 1 0")
    prefixed = write(lists / "prefixed.txt", "./data/photos/a.png 1 0")
    absolute = write(lists / "absolute.txt", f"{folder}/a.png 1 0")
    expected = str(folder / "a.png")
    assert ImageList(relative, folder).path(0) == expected
    assert ImageList(prefixed, folder, strip_prefix="./data/photos/").path(0) == expected
    assert ImageList(absolute, "/elsewhere").path(0) == expected
    with pytest.raises(ValueError, match=r"list\.txt, line 1: 'a\.png' does not begin with 'photos/'"):
        ImageList(relative, folder, strip_prefix="photos/")


def test_one_hot_lists_of_single_label_benchmarks_give_class_ids(folder):
    path = write(folder / "list.txt", "a.png 0 0 1", "b.png 0 0 0", "c.png 1 0 0")
    assert ImageList(path, multi_label=False).labels.tolist() == [2, -1, 0]
    assert ImageList(path, multi_label=True).labels.dtype == torch.bool


@pytest.mark.parametrize(
    ("lines", "options", "error", "message"),
    [
        (["a.png 0 1", "b.png 0"], {}, ValueError, "line 2: 1 labels, but 2"),
        (["a.png 0 1", "", "b.png 0 2"], {}, ValueError, "line 3: several labels must be 0 or 1"),
        (["", "a.png 0 1"], {"num_classes": 3}, ValueError, "line 2: 2 labels, expected 3"),
        (
            ["a.png 3", "b.png 9"],
            {"num_classes": 5},
            ValueError,
            "line 2: class id 9, but classes are 0 to 4",
        ),
        (["a.png 3", "b.png -2"], {}, ValueError, "line 2: class id -2"),
        (["a.png", "b.png"], {"with_rows": True}, ValueError, "line 1: no label after the path 'a.png'"),
        (["a.png\tcat"], {"multi_label": False}, ValueError, "line 1: no label"),
        (["a.png 1 0", "b.png 1 1"], {"multi_label": False}, ValueError, "line 2: 2 labels are 1"),
        (["a.png 1"], {"multi_label": True}, ValueError, "line 1: one class id, expected multi-hot"),
        (
            ["a.png 1", "", "x.png 1", "y.png 0"],
            {},
            FileNotFoundError,
            r"line 3: there is no image .*x\.png .*1 more",
        ),
        (
            ["a.png 1", "b.png 1", "./a.png 0"],
            {},
            ValueError,
            r"line 3: .*a\.png is listed .*line 1",
        ),
        ([], {}, ValueError, "lists no image"),
    ],
)
def test_bad_lines_are_named_by_file_and_line(folder, lines, options, error, message):
    path = write(folder / "list.txt", *lines)
    with pytest.raises(error, match=rf"list\.txt.*{message}"):
        ImageList(path, **options)


def test_checks_can_be_left_out(folder):
    path = write(folder / "list.txt", "gone.png 1", "gone.png 1")
    photos = ImageList(path, check_files=False, allow_duplicates=True)
    assert len(photos) == 2
    with pytest.raises(FileNotFoundError, match=r"list\.txt, line 2: the image .*gone\.png cannot be read"):
        photos[1]


def test_a_list_that_is_no_text_is_refused(folder):
    with pytest.raises(ValueError, match=r"a\.png is no list of images in UTF-8"):
        ImageList(folder / "a.png")


def test_a_leak_is_named_by_both_files_and_lines(folder):
    query = ImageList(write(folder / "test.txt", "a.png 1", "b.png 0"))
    database = ImageList(write(folder / "database.txt", "c.png 1", "", "./b.png 0"))
    with pytest.raises(
        ValueError, match=r"1 images are in both .*test\.txt, line 2 and .*database\.txt, line 3"
    ):
        check_disjoint(query, database)
    check_disjoint(query, ImageList(write(folder / "rest.txt", "c.png 1")))


def test_the_old_lists_give_what_they_gave(folder):
    path = write(folder / "list.txt", "a.png 1", "a.png 1", "gone.png 0")
    with pytest.deprecated_call(match="hybridhash.images.ImageList is now hybridhash.data.ImageList"):
        photos = hybridhash.images.ImageList(path)
    assert (len(photos), len(photos[0])) == (3, 2)
    with pytest.deprecated_call(match="hybridhash.eval.ImageList is now hybridhash.data.ImageList"):
        lists = hybridhash.eval.ImageList
    with pytest.raises(ValueError, match=r"line 2: .*a\.png is listed already"):
        lists(path)
    assert lists(write(folder / "list.txt", "a.png 1"))[0][1:] == (1, 0)
    with pytest.raises(ValueError, match="no label"):
        lists(write(folder / "list.txt", "a.png"))


def test_an_unlabelled_list_has_no_rows_to_give(folder):
    with pytest.raises(ValueError, match=r"list\.txt, line 2: no label after the path 'a\.png'"):
        ImageList(write(folder / "list.txt", "", "a.png"), with_rows=True)


def test_the_old_name_of_location_warns(folder):
    photos = ImageList(write(folder / "list.txt", "", "a.png 1"))
    with pytest.deprecated_call(match="now ImageList.location"):
        assert photos.place(0) == photos.location(0) == f"{folder / 'list.txt'}, line 2"


# CSV files


def test_several_classes_in_a_cell_and_none(folder):
    table = write(folder / "t.csv", "image,label", "a.png,10;2", "b.png,", '"c.png","2"')
    photos = read_csv(table, separator=";")
    assert photos.classes == ("2", "10")
    assert photos.labels.tolist() == [[True, True], [False, False], [True, False]]
    assert photos.unlabelled == 1
    single = read_csv(write(folder / "u.csv", "image,label", "a.png,x", "b.png,"), classes=["w", "x"])
    assert single.labels.tolist() == [1, -1]
    assert single.num_classes == 2


@pytest.mark.parametrize(
    ("lines", "options", "error", "message"),
    [
        (["file,label", "a.png,1"], {}, ValueError, "line 1: no column 'image', only file, label"),
        (["image,label", "a.png"], {}, ValueError, "line 2: 1 cells, expected 2"),
        (
            ["image,label", "", "a.png,x"],
            {"classes": ["y"]},
            ValueError,
            "line 3: the class 'x' is not among y",
        ),
        (["image,label", "a.png,1", "a.png,2"], {}, ValueError, "line 3: .* is listed already, .*line 2"),
        (["image,label", "a.png,1", "z.png,2"], {}, FileNotFoundError, r"line 3: there is no image .*z\.png"),
        (["image,label"], {}, ValueError, "lists no image below its header"),
        ([], {}, ValueError, "no column 'image', only none"),
    ],
)
def test_bad_rows_of_a_csv_file_are_named(folder, lines, options, error, message):
    table = write(folder / "t.csv", *lines)
    with pytest.raises(error, match=rf"t\.csv.*{message}"):
        read_csv(table, **options)
