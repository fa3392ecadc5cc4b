"""The codes of photos: computed once, kept in a folder, and read again for what is not new."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from hybridhash._files import check_local, replacing
from hybridhash._fingerprint import model_name, weights_sha256
from hybridhash.codes import HashCodes
from hybridhash.data import ImageFiles, read_image
from hybridhash.encoding import Manifest, encode_dataset, open_codes, read_failures
from hybridhash.encoding.reader import check_dataset
from hybridhash.encoding.source import image_names
from hybridhash.models import HybridHash  # noqa: F401  # registers the network with timm

__all__ = ["CodedPhotos", "Encoder", "PhotoFiles", "Unread", "copy_network", "photos_of"]

_FILES = "files.json"
_FORMAT = "hybridhash.photo-codes"

Key = tuple[str, int, int]  # name, size in bytes, time of the last change in nanoseconds


class Unread(NamedTuple):
    """A photo without a code.

    Attributes:
        name: Its path, or what else names it.
        reason: Why it could not be read.
    """

    name: str
    reason: str


class CodedPhotos(NamedTuple):
    """Photos with their codes.

    Attributes:
        names: What names each photo that has a code.
        packed: uint8 ``(N, ceil(bits / 8))``.
        bits: The code length.
        failed: The photos without a code.
        image: Gives the image of a row, None if there are codes only.
        path: Gives the file of a row, None if the photos are no files.
    """

    names: Sequence[str]
    packed: Tensor
    bits: int
    failed: list[Unread]
    image: Callable[[int], Any] | None = None
    path: Callable[[int], str] | None = None


class PhotoFiles(Dataset[Any]):
    """Image files by their names, relative to a folder."""

    def __init__(self, root: str, names: Sequence[str]) -> None:
        self.root = root
        self.names = names

    def path(self, row: int) -> str:
        """Return the path of the image in a row."""
        return os.path.join(self.root, self.names[row])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> Any:
        return read_image(self.path(row))


class Encoder(NamedTuple):
    """How photos become codes.

    Attributes:
        model: The hash model.
        out: The folder that keeps the codes.
        batch_size: Images in a batch.
        num_workers: Processes that read.
        progress: Whether a bar is shown.
    """

    model: nn.Module
    out: Path
    batch_size: int
    num_workers: int
    progress: bool

    def encode(self, dataset: Any, out: Path) -> None:
        """Encode a data set into a folder, or go on with it; broken images are in its manifest."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* images have no code")  # the result lists them
            encode_dataset(
                self.model,
                dataset,
                out,
                batch_size=self.batch_size,
                num_workers=self.num_workers,
                progress=self.progress,
            )

    def files(self, files: PhotoFiles) -> tuple[list[int], Tensor, list[Unread]]:
        """Return the rows that have a code, their codes, and the files that have none.

        The folder has a part for each call that met new files: an encoding, and a list of its files. A file
        is known by its name, size and time of change. So a second call reads what is new or changed, renamed
        files are read again, and codes of deleted files stay unused.
        """
        check_local(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        keys, gone = _keys_of(files)
        wanted = set(keys.values())
        known = self._known(files, wanted)
        fresh = [row for row, key in keys.items() if key not in known]
        # Without one that can be read there is nothing to encode, and the reasons are found right here.
        reasons = {}
        for row in fresh:
            try:
                files[row]
            except Exception as error:
                reasons[row] = f"{type(error).__name__}: {error}"
            else:
                self._new_part(files, keys, fresh)
                known = self._known(files, wanted)
                reasons = {}
                break
        rows = [row for row, key in keys.items() if isinstance(known.get(key), bytes)]
        packed = torch.from_numpy(
            np.frombuffer(b"".join(_code(known[keys[row]]) for row in rows), np.uint8).copy()
        )
        failed = [Unread(files.names[row], reason) for row, reason in (gone | reasons).items()]
        failed += [
            Unread(files.names[row], str(known[key]))
            for row, key in keys.items()
            if isinstance(known.get(key), str)
        ]
        return rows, packed.reshape(len(rows), len(packed) // max(len(rows), 1)), sorted(failed)

    def _parts(self) -> list[Path]:
        return sorted(path for path in self.out.glob("part-*") if (path / _FILES).exists())

    def _known(self, files: PhotoFiles, wanted: set[Key]) -> dict[Key, bytes | str]:
        """Read codes, or reasons why there is none, of those files that are wanted; finish what was begun."""
        known: dict[Key, bytes | str] = {}
        for part in self._parts():
            stored = _read_list(part)
            codes = part / "codes"
            if not _is_complete(codes) and not self._finish(part, codes, files, stored, wanted):
                continue
            self._check_model(codes)
            failures = {failure.row: failure.reason for failure in read_failures(codes)}
            packed = open_codes(codes, progress=False).packed.numpy()
            place = 0
            for row, key in enumerate(stored):
                if row in failures:
                    found: bytes | str = failures[row]
                else:
                    found = packed[place].tobytes()
                    place += 1
                if key in wanted:
                    known[key] = found
        return known

    def _new_part(self, files: PhotoFiles, keys: dict[int, Key], fresh: list[int]) -> None:
        number = max((int(path.name[5:]) for path in self._parts()), default=-1) + 1
        part = self.out / f"part-{number:04d}"
        shutil.rmtree(part, ignore_errors=True)  # without its list: a call that was killed just then
        part.mkdir()
        content = {"format": _FORMAT, "files": [keys[row] for row in fresh]}
        with replacing(part / _FILES) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")
        self.encode(Subset(files, fresh), part / "codes")

    def _finish(
        self, part: Path, codes: Path, files: PhotoFiles, stored: list[Key], wanted: set[Key]
    ) -> bool:
        """Go on with a part of a call that was killed; return whether it is complete now.

        It is dropped if its files are not what they were, and left alone if it is of another folder.
        """
        if wanted.isdisjoint(stored):
            return False
        now = PhotoFiles(files.root, [key[0] for key in stored])
        keys, _ = _keys_of(now)
        if [keys.get(row) for row in range(len(stored))] != stored:
            shutil.rmtree(part)
            return False
        if (codes / "manifest.json").exists():
            self._check_model(codes)
        self.encode(now, codes)
        return True

    def _check_model(self, codes: Path) -> None:
        manifest = Manifest.read(codes)
        same = manifest.model == model_name(self.model)
        if not same or manifest.weights_sha256 != weights_sha256(self.model):
            raise ValueError(
                f"{self.out} holds codes of another model ({manifest.model}, {manifest.bits} bits, weights "
                f"{manifest.weights_sha256[:12]}): give another out=, or delete it"
            )


def _code(found: bytes | str) -> bytes:
    assert isinstance(found, bytes)
    return found


def _keys_of(files: PhotoFiles) -> tuple[dict[int, Key], dict[int, str]]:
    """Return what each file is known by, and why for those that cannot be asked."""
    keys, gone = {}, {}
    for row, name in enumerate(files.names):
        try:
            status = os.stat(files.path(row))
        except OSError as error:
            gone[row] = f"{type(error).__name__}: {error}"
        else:
            keys[row] = (_text(name), status.st_size, status.st_mtime_ns)
    return keys, gone


def _text(name: str) -> str:
    """A name as JSON can hold it: bytes that are no UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _read_list(part: Path) -> list[Key]:
    path = part / _FILES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        assert content["format"] == _FORMAT
        return [(str(name), int(size), int(time)) for name, size, time in content["files"]]
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{path} is damaged: delete {part}, and its photos are encoded anew") from error


def _is_complete(codes: Path) -> bool:
    try:
        return Manifest.read(codes).complete
    except FileNotFoundError:
        return False


def copy_network() -> nn.Module:
    """Build the network that ships with the package and was trained to find copies, in evaluation mode."""
    network: nn.Module = timm.create_model("hybridhash_nano_256", pretrained=True)
    return network.eval()


def photos_of(
    images: Any,
    model: nn.Module | None,
    out: str | os.PathLike[str] | None,
    names: Sequence[str] | None,
    *,
    batch_size: int,
    num_workers: int,
    progress: bool,
    what: str = "images",
) -> CodedPhotos:
    """Return photos with their codes, from whatever the caller has.

    Args:
        images: Codes, a folder, a file, a sequence of paths, or a data set.
        model: The hash model; None only if ``images`` are codes.
        out: The folder that keeps the codes. None keeps nothing.
        names: The names of codes.
        batch_size: Images in a batch.
        num_workers: Processes that read.
        progress: Whether a bar is shown.
        what: What the argument is called.
    """
    if isinstance(images, HashCodes):
        return _coded(images, names, what)
    if names is not None:
        raise ValueError(f"names are for codes: {what} have names of their own")
    assert model is not None
    files = _files_of(images, what)
    with tempfile.TemporaryDirectory(prefix="hybridhash-") as temporary:
        encoder = Encoder(model, Path(out or temporary), batch_size, num_workers, progress)
        if files is not None:
            rows, packed, failed = encoder.files(files)
            taken: Any = PhotoFiles(files.root, [files.names[row] for row in rows])
            # Relative paths of a second folder might be those of the first.
            photo_names: Sequence[str] = taken.names
            if what == "against":
                photo_names = [taken.path(row) for row in range(len(rows))]
            image, path = taken.__getitem__, taken.path
            total = len(files)
        else:
            check_dataset(images)
            encoder.encode(images, encoder.out)
            failures = {failure.row: failure.reason for failure in read_failures(encoder.out)}
            packed = open_codes(encoder.out, progress=False).packed.clone()
            name_of = image_names(images) or str
            rows = [row for row in range(len(images)) if row not in failures]
            photo_names = [name_of(row) for row in rows]
            failed = [Unread(name_of(row), reason) for row, reason in failures.items()]
            image, path = (lambda place: _image_of(images[rows[place]])), None
            total = len(images)
        if not rows:
            raise ValueError(f"none of the {total} {what} can be read; {failed[0].name}: {failed[0].reason}")
        bits = _bits_of(encoder.out)
    return CodedPhotos(photo_names, packed, bits, failed, image, path)


def _coded(codes: HashCodes, names: Sequence[str] | None, what: str) -> CodedPhotos:
    if names is None:
        numbers = range(len(codes)) if codes.ids is None else codes.ids.tolist()
        names = [str(number) for number in numbers]
    elif isinstance(names, str) or len(names) != len(codes):
        raise ValueError(f"names must be one for each of the {len(codes)} codes of {what}")
    if len(codes) == 0:
        raise ValueError(f"{what} are empty: there is no code")
    return CodedPhotos(names, codes.packed.cpu(), codes.bits, [])


def _files_of(images: Any, what: str) -> PhotoFiles | None:
    """Return the files that are meant, None for a data set of another kind."""
    if isinstance(images, (str, os.PathLike)):
        path = os.fspath(images)
        if os.path.isfile(path):
            return PhotoFiles(os.path.dirname(path), [os.path.basename(path)])
        images = ImageFiles(path)
    if isinstance(images, ImageFiles) and images.transform is None:
        return PhotoFiles(images.root, images.names)
    if isinstance(images, (list, tuple)) and all(isinstance(path, (str, os.PathLike)) for path in images):
        if not images:
            raise ValueError(f"{what} are empty: there is no path")
        return PhotoFiles("", [os.fspath(path) for path in images])
    return None


def _image_of(content: Any) -> Any:
    """The image in an item of a data set."""
    if isinstance(content, dict):
        return next(content[key] for key in ("image", "images", "pixel_values") if key in content)
    return content[0] if isinstance(content, (tuple, list)) else content


def _bits_of(out: Path) -> int:
    """The code length of the encodings in a folder, which are of one model."""
    folders = [*out.glob("part-*/codes"), out]
    return next(Manifest.read(folder).bits for folder in folders if (folder / "manifest.json").exists())
