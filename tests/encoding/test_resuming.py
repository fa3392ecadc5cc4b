"""What changed between two calls is refused by name; what was finished before an exception stays."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from PIL import Image, ImageFile
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from hybridhash import HashCodes, open_codes
from hybridhash.data import ImageList, TarImages, read_image
from hybridhash.encoding import Manifest, read_failures
from tests.data._images import encoded, photo, write_tar
from tests.encoding._helpers import BITS, IMAGES, LABELS, Net, contents, expected, image_folder, probed, run

SHARD = "shard-00001-of-00003.safetensors"
DATASET = TensorDataset(IMAGES, LABELS)


def refused(out, model, dataset, match, **options):
    """Check that a second call is refused, and that nothing of the first is touched."""
    before = contents(out)
    with pytest.raises(ValueError, match=f"holds another encoding: .*{match}"):
        run(model, dataset, out, **options)
    assert contents(out) == before


# Other data


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (IMAGES.flip(0), LABELS, "row 0 of the data set has another image: these are other data"),
        (IMAGES.flip(0), LABELS.flip(0), "row 0 of the data set has another label: these are other data"),
        (
            -IMAGES,
            LABELS,
            "row 0 of the data set has another image: these are other data or in another order",
        ),
        (torch.cat([IMAGES[:9], IMAGES[10:], IMAGES[9:10]]), LABELS, "row 1[0-9] of the data set"),
        (IMAGES, LABELS + 1, "row 0 of the data set has another label"),
        (IMAGES * 1.02, LABELS, "row 0 of the data set has another image"),
    ],
)
def test_other_data_of_the_same_size_are_refused(tmp_path, images, labels, match):
    run(Net(), DATASET, tmp_path)
    (tmp_path / SHARD).unlink()
    refused(tmp_path, Net(), TensorDataset(images, labels), match)


def test_other_ids_are_refused(tmp_path):
    run(Net(), TensorDataset(IMAGES, LABELS, torch.arange(23) * 2), tmp_path)
    other = TensorDataset(IMAGES, LABELS, torch.arange(23) * 3)
    refused(tmp_path, Net(), other, "row 1 of the data set has the id 2 there and 3 now")


def test_rows_that_change_places_between_the_samples_are_told_by_ids_only(tmp_path):
    """Reading every image again would take as long as encoding it."""
    rows = [0, 1, 2, 6, 4, 5, 3, *range(7, 23)]
    assert not {3, 6} & set(probed(23))
    before, after = TensorDataset(IMAGES, LABELS), TensorDataset(IMAGES[rows], LABELS[rows])
    run(Net(), before, tmp_path / "nameless")
    run(Net(), after, tmp_path / "nameless")
    before.ids, after.ids = [f"{row}.jpg" for row in range(23)], [f"{row}.jpg" for row in rows]
    run(Net(), before, tmp_path / "named")
    refused(tmp_path / "named", Net(), after, "names_sha256 '.*' there and '.*' now")


def write_photos(root, names):
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(photo(seed % 2, 20), "png"))


def pixels(image):
    return torch.tensor(list(image.resize((4, 4)).tobytes())).reshape(3, 4, 4) / 255 - 0.5


def folder_of(root, names):
    return ImageFolder(str(root), loader=read_image)


def list_of(root, names):
    (root / "list.txt").write_text("\n".join(f"{name} 0" for name in names))
    return ImageList(root / "list.txt")


def tar_of(root, names):
    files = {name.replace("/", "-"): (root / name).read_bytes() for name in names}
    return TarImages([write_tar(root / "0.tar", files)])


def subset_of(root, names):
    return Subset(folder_of(root, names), list(range(len(names)))[::-1])


@pytest.mark.parametrize("make", [folder_of, list_of, tar_of, subset_of])
def test_other_files_are_refused_by_their_names(tmp_path, make):
    """A file that came and one that went, as copies of one image, so that only the names tell."""
    names = [f"a/{number:02d}.png" for number in range(40)]
    for place, listed in (
        ("one", names),
        ("moved", names),
        ("other", [*names[:20], *names[22:], "a/99.png"]),
    ):
        (tmp_path / place).mkdir()
        write_photos(tmp_path / place, listed)
        if place == "other":
            write_photos(tmp_path / place, ["a/98.png"])
    run(Net(), make(tmp_path / "one", names), tmp_path / "codes", transform=pixels)
    run(Net(), make(tmp_path / "moved", names), tmp_path / "codes", transform=pixels)
    other = sorted(f"a/{path.name}" for path in (tmp_path / "other" / "a").iterdir())
    assert len(other) == 40
    dataset = make(tmp_path / "other", other)
    refused(tmp_path / "codes", Net(), dataset, "names_sha256 '.*' there and '.*' now", transform=pixels)


def test_a_repaired_image_is_not_another_one(tmp_path):
    broken = [None if row in (0, 22) else image for row, image in enumerate(IMAGES)]
    with pytest.warns(UserWarning, match="2 of 23"):
        run(Net(), broken, tmp_path)
    (tmp_path / "shard-00000-of-00003.safetensors").unlink()
    with pytest.warns(UserWarning, match="1 of 23"):
        run(Net(), list(IMAGES), tmp_path)
    assert len(open_codes(tmp_path)) == 22


# Another transform or model


class Prepared(Dataset[Tensor]):
    """A data set that prepares its images by itself."""

    def __init__(self, scale):
        self.scale = scale

    def __len__(self):
        return 23

    def __getitem__(self, row):
        return self.scale * IMAGES[row]


class Scale:
    """A transform without a ``repr`` of its own."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, image):
        return self.scale * image


def closure(scale):
    return lambda image: scale * image


@pytest.mark.parametrize("make", [closure, Scale], ids=["closure", "class"])
def test_another_transform_of_the_same_name_is_refused(tmp_path, make):
    run(Net(), IMAGES, tmp_path, transform=make(1.0))
    run(Net(), IMAGES, tmp_path, transform=make(1.0))
    refused(tmp_path, Net(), IMAGES, "row 0 .*another image.*or another transform", transform=make(-1.0))


def test_another_preparation_inside_the_data_set_is_refused(tmp_path):
    run(Net(), Prepared(1.0), tmp_path)
    refused(tmp_path, Net(), Prepared(-1.0), "row 0 .*another image.*or another transform")


class Activated(nn.Module):
    """A network whose activation is none of its weights."""

    def __init__(self, activation):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(48, 30), nn.Linear(30, BITS)
        self.activation = activation

    def forward(self, images):
        return self.last(self.activation(self.first(images.flatten(1))))  # type: ignore[no-any-return]


def test_another_activation_is_refused(tmp_path):
    run(Activated(torch.relu), IMAGES, tmp_path)
    run(Activated(torch.relu), IMAGES, tmp_path)
    match = "the model gives other codes for row 0, by up to .* such as an activation"
    refused(tmp_path, Activated(torch.nn.functional.gelu), IMAGES, match)


def test_rounding_is_not_another_model(tmp_path):
    run(Net(), IMAGES, tmp_path)
    model = copy.deepcopy(Net())
    model.register_forward_hook(lambda module, inputs, output: output * (1 + 1e-4))
    run(model, IMAGES * (1 + 1e-5), tmp_path)


# Exceptions


class Raising(Dataset[Tensor]):
    """Images of 100 rows, one of which raises."""

    def __init__(self, row, error):
        self.row = row
        self.error = error

    def __len__(self):
        return 100

    def __getitem__(self, row):
        if row == self.row:
            raise self.error
        return IMAGES[row % 23]


@pytest.mark.parametrize("error", [TypeError("a bug"), KeyboardInterrupt(), OSError(5, "Input/output error")])
def test_what_was_finished_before_an_exception_is_kept(tmp_path, error):
    with pytest.raises(type(error)):
        run(Net(), Raising(90, error), tmp_path, shard_size=50)
    model = Net()
    run(model, Raising(-1, error), tmp_path, shard_size=50)
    assert sum(model.sizes) <= 1 + 10 + 4  # the trial, the rest and the batch in hand
    assert len(open_codes(tmp_path)) == 100


def test_an_error_of_the_program_names_its_row(tmp_path):
    dataset = Raising(90, TypeError("a bug"))
    dataset.ids = [f"photo {row}" for row in range(100)]  # type: ignore[attr-defined]
    with pytest.raises(TypeError) as caught:
        run(Net(), dataset, tmp_path)
    assert getattr(caught.value, "__notes__", None) in (None, ["in row 90 of the data set, photo 90"])


# Broken files


class BrokenImageFile(ImageFile.ImageFile):
    """A file that makes its decoder raise what only programs should."""

    format = "BROKEN"
    error: Exception

    def _open(self):
        self._mode, self._size = "RGB", (4, 4)
        self.tile = [ImageFile._Tile("raw", (0, 0, 4, 4), 0, "RGB")]

    def load_prepare(self):
        raise self.error


@pytest.mark.parametrize("error", [NotImplementedError, KeyError, TypeError, AttributeError, AssertionError])
@pytest.mark.parametrize("workers", [0, 1])
def test_whatever_a_decoder_raises_is_recorded_with_the_file(tmp_path, monkeypatch, error, workers):
    monkeypatch.setattr(BrokenImageFile, "error", error("flags 138"), raising=False)
    Image.init()
    monkeypatch.setitem(Image.OPEN, "BROKEN", (BrokenImageFile, lambda prefix: prefix.startswith(b"broken")))
    monkeypatch.setattr(Image, "ID", [*Image.ID, "BROKEN"])
    write_photos(tmp_path / "photos", [f"a/{number}.png" for number in range(5)])
    path = tmp_path / "photos" / "a" / "3.png"
    path.write_bytes(b"broken file of some format")
    for name, loader in (("ours", read_image), ("PIL", Image.open)):
        dataset = ImageFolder(str(tmp_path / "photos"), loader=loader)
        with pytest.warns(UserWarning, match="1 of 5"):
            run(Net(), dataset, tmp_path / name, transform=pixels, num_workers=workers)
        failure = read_failures(tmp_path / name)[0]
        assert failure.row == 3
        assert str(path) in failure.reason
        assert f"{error.__name__}: " in failure.reason


def test_an_error_of_a_transform_is_one_of_the_program(tmp_path):
    def wrong(image):
        return pixels(image.rotate("left"))  # type: ignore[arg-type]

    with pytest.raises(TypeError):
        run(Net(), [photo(0, 20)] * 5, tmp_path, transform=wrong)


def test_the_reason_of_a_failure_names_the_file(tmp_path):
    names = [f"a/{number}.png" for number in range(5)]
    write_photos(tmp_path, names)
    (tmp_path / names[1]).write_bytes(b"")
    (tmp_path / names[4]).write_bytes((tmp_path / names[0]).read_bytes()[:-40])
    out = tmp_path / "codes"
    (tmp_path / "list.txt").write_text("\n".join(names))
    tar = write_tar(
        tmp_path / "0.tar", {f"{n}.png": (tmp_path / name).read_bytes() for n, name in enumerate(names)}
    )
    sources: list[tuple[Any, list[str]]] = [
        (Subset(image_folder(tmp_path), [0, 1, 2, 3, 4]), [str(tmp_path / names[row]) for row in (1, 4)]),
        (ImageList(tmp_path / "list.txt"), [str(tmp_path / names[row]) for row in (1, 4)]),
        (TarImages([tar]), ["1", "4"]),
    ]
    for number, (dataset, shown) in enumerate(sources):
        with pytest.warns(UserWarning, match="2 of 5"):
            run(Net(), dataset, out / str(number), transform=pixels)
        for failure, name in zip(read_failures(out / str(number)), shown, strict=True):
            assert name in failure.reason


# Threads


def test_two_threads_of_a_process_are_told_apart(tmp_path):
    started, go_on = threading.Event(), threading.Event()

    class Waiting(nn.Module):
        calls = 0

        def forward(self, images):
            self.calls += 1
            if self.calls == 2:
                started.set()
                go_on.wait(60)
            return Net().eval()(images)  # type: ignore[no-any-return]

    (tmp_path / "link").symlink_to(tmp_path / "codes")
    thread = threading.Thread(target=run, args=(Waiting(), DATASET, tmp_path / "codes"))
    thread.start()
    assert started.wait(60)
    for name in ("codes", "link"):
        with pytest.raises(RuntimeError, match=r"another thread is encoding to .*: wait until"):
            run(Net(), DATASET, tmp_path / name)
    go_on.set()
    thread.join()
    assert open_codes(tmp_path / "codes") == HashCodes(expected(), BITS, LABELS, torch.arange(23))
    run(Waiting(), DATASET, tmp_path / "codes")


def test_the_manifest_says_what_was_done_with_exif(tmp_path):
    assert run(Net(), [photo(0, 20)], tmp_path / "images", transform=pixels).exif_orientation is True
    assert run(Net(), IMAGES, tmp_path / "tensors").exif_orientation is None
    assert Manifest.read(tmp_path / "images").exif_orientation is True
