"""The manifest of a folder of shards, and the rows of one shard or part."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from hybridhash._files import replacing
from hybridhash.codes import HashCodes

__all__ = ["MANIFEST", "Failure", "Manifest", "Rows"]

MANIFEST = "manifest.json"
_FORMAT, _VERSION = "hybridhash.encoding", 1
_PROGRESS = ("encoded", "failed", "complete")  # fields that do not decide the codes


class Failure(NamedTuple):
    """An image without a code.

    Attributes:
        row: Its row in the data set.
        id: Its id, None if the data set could not give it.
        reason: Why it has no code.
    """

    row: int
    id: int | None
    reason: str


class Rows(NamedTuple):
    """The codes and failures of rows ``start`` to ``stop - 1`` of a data set."""

    start: int
    stop: int
    codes: HashCodes
    failures: list[Failure]


@dataclass(frozen=True)
class Manifest:
    """The content of a folder of shards, and what made it.

    Attributes:
        model: The name of the architecture.
        weights_sha256: The digest of the weights, as :func:`hybridhash.hub.weights_sha256` gives it.
        bits: The code length.
        dtype: The dtype of autocast, None if the model ran as it was.
        transform: A description of the transforms applied to the images.
        labels: ``"none"``, ``"class ids"`` or ``"multi-hot"``.
        classes: The number of classes of multi-hot labels, else None.
        images: The size of the data set.
        shard_size: The number of rows of the data set in a shard; the last shard may have fewer.
        encoded: The number of codes.
        failed: The number of images without a code; :func:`read_failures` says why. In a complete encoding
            ``encoded + failed == images``.
        complete: Whether all images were seen and all shards are written. Both counts are 0 before that.
    """

    model: str
    weights_sha256: str
    bits: int
    dtype: str | None
    transform: str | None
    labels: str
    classes: int | None
    images: int
    shard_size: int
    encoded: int = 0
    failed: int = 0
    complete: bool = False

    @property
    def identity(self) -> str:
        """SHA-256 of all fields that decide what the shards hold; every shard carries it."""
        fields = dataclasses.asdict(self)
        for name in _PROGRESS:
            del fields[name]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def empty_codes(self) -> HashCodes:
        """Return the codes of no image, with the bits and the kind of labels of all others."""
        labels = None
        if self.labels != "none":
            labels = torch.zeros(0, dtype=torch.int64)
        if self.classes is not None:
            labels = torch.zeros(0, self.classes, dtype=torch.bool)
        packed = torch.zeros(0, -(-self.bits // 8), dtype=torch.uint8)
        return HashCodes(packed, self.bits, labels, torch.zeros(0, dtype=torch.int64))

    def differences(self, other: Manifest) -> list[str]:
        """Describe the fields that decide the codes and differ; ``self`` is the stored manifest."""
        stored = dataclasses.asdict(self)
        new = dataclasses.asdict(other)
        return [
            f"{name} {stored[name]!r} there and {new[name]!r} now"
            for name in stored
            if name not in _PROGRESS and stored[name] != new[name]
        ]

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Manifest:
        """Read the manifest of a folder.

        Raises:
            FileNotFoundError: The folder has no manifest.
            ValueError: The manifest is damaged, or of another format or version.
        """
        path = Path(folder, MANIFEST)
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no {MANIFEST} in {folder}: it is no folder of hybridhash.encode_dataset"
            ) from None
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): bring it back, or encode anew") from error
        if not isinstance(fields, dict) or fields.pop("format", None) != _FORMAT:
            raise ValueError(f"{path} is no manifest of {_FORMAT}: choose a folder of encode_dataset")
        version = fields.pop("version", None)
        if version != _VERSION:
            raise ValueError(
                f"{path} has version {version!r} of the format, this hybridhash reads {_VERSION}: upgrade "
                "hybridhash, or encode anew"
            )
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"{path} is damaged ({error}): bring it back, or encode anew") from error

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write or replace the manifest of a folder atomically."""
        fields = {"format": _FORMAT, "version": _VERSION, **dataclasses.asdict(self)}
        with replacing(Path(folder, MANIFEST)) as temporary:
            temporary.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
