"""List files and CSV files: what is read, and what is refused by file and line."""

import tracemalloc

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
    with pytest.raises(ValueError, match=r"a\.png, line 1: there is no image .*, and the line is not UTF-8"):
        ImageList(folder / "a.png")


@pytest.mark.parametrize(
    ("line", "label"),
    [
        ("a.png  0  1  0", [0, 1, 0]),
        ("a.png 0  1 0", [0, 1, 0]),
        ("  a.png\t0 1 0  ", [0, 1, 0]),
        ("a.png \t0\t 1\t0\t", [0, 1, 0]),
        ("a.png   7", 7),
        ("a.png   -1", -1),
    ],
)
def test_any_number_of_spaces_and_tabs_separates_labels(folder, line, label):
    photos = ImageList(write(folder / "list.txt", line), check_files=False)
    assert photos.path(0) == str(folder / "a.png")
    assert photos.labels[0].tolist() == label


def test_a_path_keeps_its_spaces(folder):
    lines = write(folder / "list.txt", "a  b 2.png  3", "c\u00a0d.png 1", "12 4", "e\tf.png 5")
    photos = ImageList(lines, check_files=False)
    assert list(photos.names) == ["a  b 2.png", "c\u00a0d.png", "12", "e\tf.png"]
    assert photos.labels.tolist() == [3, 1, 4, 5]


def test_a_number_before_the_tab_is_of_the_path_if_there_is_such_an_image(folder):
    lines = write(folder / "list.txt", "IMG 1\t7")
    with pytest.raises(ValueError, match=r"line 1: there is no image 'IMG 1', and spaces and a tab separate"):
        ImageList(lines, check_files=False)
    (folder / "a.png").rename(folder / "IMG 1")
    photos = ImageList(lines)
    assert (photos.names[0], photos.labels.tolist()) == ("IMG 1", [7])


@pytest.mark.parametrize(
    "content", ["\ufeffa.png 1\nb.png 0\n", "a.png 1\r\n\r\nb.png 0\r\n", "a.png 1\rb.png 0"]
)
def test_lists_from_windows_and_old_macs_are_read(folder, content):
    (folder / "list.txt").write_bytes(content.encode())
    photos = ImageList(folder / "list.txt", check_files=False)
    assert (list(photos.names), photos.labels.tolist()) == (["a.png", "b.png"], [1, 0])


@pytest.mark.parametrize("read", [ImageList, read_csv])
@pytest.mark.parametrize("check_files", [True, False])
def test_latin_1_is_refused_by_line_unless_the_name_on_the_disk_is_so(folder, read, check_files):
    comma = "," if read is read_csv else " "
    header = "image,label\n" if read is read_csv else ""
    text = f"{header}a.png{comma}1\ncaf\xe9.png{comma}0\n"
    (folder / "café.png").write_bytes((folder / "b.png").read_bytes())
    (folder / "list").write_bytes(text.encode("latin-1"))
    line = 3 if header else 2
    with pytest.raises(
        ValueError, match=rf"list, line {line}: there is no image 'caf.*', and the line is not UTF-8"
    ):
        read(folder / "list", check_files=check_files)
    (folder / "list").write_bytes(text.encode())
    assert read(folder / "list", check_files=check_files)[1][0].getpixel((0, 0)) == (30, 0, 0)
    (folder / "café.png").rename(folder / "caf\udce9.png")
    (folder / "list").write_bytes(text.encode("latin-1"))
    assert read(folder / "list", check_files=check_files)[1][0].getpixel((0, 0)) == (30, 0, 0)


@pytest.mark.parametrize(("line", "digits"), [("a.png " + "9" * 20, 20), ("a.png " + "1" * 5000, 5000)])
def test_huge_ids_are_refused_by_file_and_line(folder, line, digits):
    with pytest.raises(ValueError, match=r"list\.txt, line 2: the class id .* has more than 18 digits"):
        ImageList(write(folder / "list.txt", "b.png 1", line))


@pytest.mark.parametrize("line", ["a.png,3", "a.png cat", "sub/a.PNG; 3", "a.png 0,1", "a.png wren 3"])
def test_a_path_and_something_else_is_not_taken_for_a_path(folder, line):
    with pytest.raises(ValueError, match=r"list\.txt, line 1: .* looks like a path and a label.*read_csv"):
        ImageList(write(folder / "list.txt", line), check_files=False)


def test_a_name_that_goes_on_after_its_ending_is_taken_where_it_exists(folder):
    (folder / "a.png").rename(folder / "a.png old")
    assert len(ImageList(write(folder / "list.txt", "a.png old 1"))) == 1


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


def test_minus_one_is_no_label_and_numbers_are_sorted_by_value(folder):
    table = write(folder / "l.csv", "image,label", *(f"{k}.jpg,{c}" for k, c in enumerate([0, 1, 2, 10, -1])))
    photos = read_csv(table, check_files=False)
    assert photos.classes == ("0", "1", "2", "10")
    assert photos.labels.tolist() == [0, 1, 2, 3, -1]
    floats = write(folder / "f.csv", "image,label", "a,10.0", "b,3.5", "c,-1.0", "d,", "e,3.0")  # of pandas
    photos = read_csv(floats, check_files=False)
    assert (photos.classes, photos.labels.tolist()) == (("3.0", "3.5", "10.0"), [2, 1, -1, -1, 0])
    several = write(folder / "s.csv", "image,label", "a,-1", "b,2;10", "c,")
    photos = read_csv(several, separator=";", check_files=False)
    assert photos.labels.tolist() == [[False, False], [True, True], [False, False]]


def test_minus_one_is_a_class_if_the_classes_say_so(folder):
    table = write(folder / "l.csv", "image,label", "a,1", "b,-1")
    with pytest.raises(ValueError, match=r"all labels are 1 or -1, .* give classes=\['-1', '1'\]"):
        read_csv(table, check_files=False)
    assert read_csv(table, check_files=False, classes=["-1", "1"]).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["a,1", "b,01"], {}, r"line 3: the class 01 is the number 1 of line 2"),
        (["a,cat", "b,7", "c,7.0"], {}, r"line 4: the class 7\.0 is the number 7 of line 3"),
        (["a,3", "b,-2"], {}, r"line 3: the class -2 is negative"),
        (["a,1;2;-1"], {"separator": ";"}, r"line 2: -1 means no label, but there are others"),
        (["a,x"], {"classes": ["x", "y", "x"]}, "classes has 'x' twice"),
        (['a,"' + "x" * 200_000 + '"'], {}, "line 2: field larger than field limit .*is a quote not closed"),
    ],
)
def test_classes_that_are_not_certain_are_refused(folder, lines, options, message):
    table = write(folder / "t.csv", "image,label", *lines)
    with pytest.raises(ValueError, match=message):
        read_csv(table, check_files=False, **options)


def test_two_spellings_are_two_classes_if_the_classes_say_so(folder):
    table = write(folder / "t.csv", "image,label", "a,1", "b,01")
    assert read_csv(table, check_files=False, classes=["01", "1"]).labels.tolist() == [1, 0]
    with pytest.raises(TypeError, match="classes must be a sequence of names, got the string"):
        read_csv(table, check_files=False, classes="ab")


def test_a_table_from_excel_is_read(folder):
    (folder / "t.csv").write_bytes("\ufeffimage, label\r\n a.png ,x \r\nb.png, y\r\n".encode())
    photos = read_csv(folder / "t.csv")
    assert (photos.classes, photos.labels.tolist()) == (("x", "y"), [0, 1])
    (folder / "t.csv").write_bytes("image,label\na.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t\.csv, line 2: the class 'caf.*' is not UTF-8"):
        read_csv(folder / "t.csv")
    with pytest.raises(ValueError, match="line 1: two columns 'image'"):
        read_csv(write(folder / "t.csv", "image,label,image", "a.png,x,b.png"))


def test_many_rows_by_class_id_take_little_memory(tmp_path):
    rows = 100_000
    names = [f"images/{row:07d}.jpg" for row in range(rows)]
    write(tmp_path / "t.csv", "image,label", *(f"{name},{row % 1000}" for row, name in enumerate(names)))
    of_paths = sum(map(len, names))
    del names
    read_csv(tmp_path / "t.csv", check_files=False)
    tracemalloc.start()
    photos = read_csv(tmp_path / "t.csv", check_files=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert photos.labels[-1] == 999
    assert peak - 1.125 * of_paths < 64 * rows
