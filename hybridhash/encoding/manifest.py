"""The manifest of a folder of shards, and the rows of one shard or part."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hybridhash._files import replacing
from hybridhash._fingerprint import json_sha256
from hybridhash.codes import HashCodes

__all__ = ["MANIFEST", "Failure", "Manifest", "Probe", "Rows", "Trial", "is_manifest"]

MANIFEST = "manifest.json"
_FORMAT, _VERSION = "hybridhash.encoding", 2
_WITH_FACTORS = 3  # of encodings with factors only: all others are what they were in version 2
_PROGRESS = ("encoded", "failed", "complete")  # fields that do not decide the codes
_SINCE_VERSION_2 = ("exif_orientation", "names_sha256", "probes")
# The largest difference of a code that rounding explains, relative to the largest code.
_TRIAL_TOLERANCES = {"bfloat16": 0.05, "float16": 0.02}
_TRIAL_TOLERANCE = 0.01
_PROBE_TOLERANCE = 1e-3  # the same for the means of a probe
_DIGEST = "sha256"

Probe = list[Any]  # of hybridhash.encoding.source.probe, as JSON gives it back


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


class Trial(NamedTuple):
    """The real-valued codes of one image, to four digits, by which another model or transform is told.

    Attributes:
        row: Its row in the data set.
        codes: Its codes, one for each bit.
    """

    row: int
    codes: list[float]


@dataclass(frozen=True)
class Manifest:
    """The content of a folder of shards, and what made it.

    Attributes:
        model: The name of the architecture.
        weights_sha256: The digest of the weights, as :func:`hybridhash.hub.weights_sha256` gives it.
        bits: The code length.
        dtype: The dtype in which the model ran, None if that was not recorded. It is float32 where the
            processor only emulates the half precision that was asked for.
        transform: A description of the transforms applied to the images.
        labels: ``"none"``, ``"class ids"`` or ``"multi-hot"``.
        classes: The number of classes of multi-hot labels, else None.
        images: The size of the data set.
        shard_size: The number of rows of the data set in a shard; the last shard may have fewer.
        exif_orientation: Whether images were turned as their EXIF data say
            (:func:`hybridhash.data.read_image`). None if the data set gave tensors, or before version 2.
        names_sha256: SHA-256 of the names of all images, None if the data set does not tell them.
        probes: Samples of the images of some rows, by which other data are told: by row, the id, a digest of
            the label and four means. None for an image that could not be read.
        trial: The real-valued codes of one image.
        factors: Whether the codes have correction factors (:func:`hybridhash.codes.correction_factors`).
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
    exif_orientation: bool | None = None
    names_sha256: str | None = None
    probes: dict[str, Probe | None] | None = None
    trial: Trial | None = None
    factors: bool = False
    encoded: int = 0
    failed: int = 0
    complete: bool = False

    @property
    def identity(self) -> str:
        """SHA-256 of the fields that decide what the shards hold; every shard carries it."""
        fields = self._fields()
        for name in (*_PROGRESS, "trial"):
            del fields[name]
        for name in _SINCE_VERSION_2:
            if fields[name] is None:  # shards of version 1 do not know it
                del fields[name]
        return json_sha256(fields)

    def empty_codes(self) -> HashCodes:
        """Return the codes of no image, with the bits and the kind of labels of all others."""
        labels = None
        if self.labels != "none":
            labels = torch.zeros(0, dtype=torch.int64)
        if self.classes is not None:
            labels = torch.zeros(0, self.classes, dtype=torch.bool)
        packed = torch.zeros(0, -(-self.bits // 8), dtype=torch.uint8)
        factors = torch.zeros(0, 2) if self.factors else None
        return HashCodes(packed, self.bits, labels, torch.zeros(0, dtype=torch.int64), factors)

    def differences(self, other: Manifest) -> list[str]:
        """Describe what decides the codes and differs; ``self`` is the stored manifest.

        What one of them does not know is not compared: names and samples of the images, the trial, the dtype.
        """
        apart = (*_PROGRESS, "probes", "trial")
        unknown = [name for name in ("names_sha256", "dtype") if None in (self._get(name), other._get(name))]
        found = [
            f"{field.name} {self._get(field.name)!r} there and {other._get(field.name)!r} now"
            for field in dataclasses.fields(self)
            if field.name not in (*apart, *unknown) and self._get(field.name) != other._get(field.name)
        ]
        if self.images == other.images:
            found.extend(self._other_probes(other))
        if not found:  # else the codes differ for that reason
            found.extend(self._other_trial(other))
        return found

    def _fields(self) -> dict[str, Any]:
        """Return the fields as they are stored: without ``factors`` where there are none, as in version 2."""
        fields = dataclasses.asdict(self)
        if not self.factors:
            del fields["factors"]
        return fields

    def _get(self, name: str) -> Any:
        return getattr(self, name)

    def _other_probes(self, other: Manifest) -> list[str]:
        """Describe the first probe that differs: other data, another order or another transform."""
        for row, stored in (self.probes or {}).items():
            new = (other.probes or {}).get(row)
            difference = None if stored is None or new is None else _probe_difference(stored, new)
            if difference:
                return [
                    f"row {row} of the data set has {difference}: these are other data or in another order, "
                    "or another transform, or one that gives another result each time"
                ]
        return []

    def _other_trial(self, other: Manifest) -> list[str]:
        """Describe how the codes of the same image differ."""
        if self.trial is None or other.trial is None or self.trial.row != other.trial.row:
            return []
        before, now = torch.tensor(self.trial.codes), torch.tensor(other.trial.codes)
        largest = float(torch.maximum(before.abs(), now.abs()).max())
        difference = float((before - now).abs().max())
        if difference <= _TRIAL_TOLERANCES.get(str(other.dtype), _TRIAL_TOLERANCE) * largest:
            return []
        return [
            f"the model gives other codes for row {self.trial.row}, by up to {difference:.2g} where the "
            f"largest is {largest:.2g}: another transform, or a change in the model that is none of its "
            "weights, such as an activation"
        ]

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Manifest:
        """Read the manifest of a folder.

        Raises:
            FileNotFoundError: The folder has no manifest.
            ValueError: The manifest is damaged, or of another format or version.
        """
        path = Path(folder, MANIFEST)
        advice = "bring it back, or encode anew with resume=False"
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no {MANIFEST} in {folder}: it is no folder of hybridhash.encode_dataset"
            ) from None
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): {advice}") from error
        if not isinstance(fields, dict) or fields.pop("format", None) != _FORMAT:
            raise ValueError(f"{path} is no manifest of {_FORMAT}: choose a folder of encode_dataset")
        version = fields.pop("version", None)
        if version not in (1, _VERSION, _WITH_FACTORS):
            raise ValueError(
                f"{path} has version {version!r} of the format, this hybridhash reads up to {_WITH_FACTORS}: "
                "upgrade hybridhash, or encode anew"
            )
        digest = fields.pop(_DIGEST, None)
        if (version != 1 or digest is not None) and digest != json_sha256(fields):
            raise ValueError(f"{path} is damaged (it is not what its SHA-256 says): {advice}")
        try:
            trial = fields.pop("trial", None)
            return cls(**fields, trial=trial and Trial(*trial))
        except TypeError as error:
            raise ValueError(f"{path} is damaged ({error}): {advice}") from error

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write or replace the manifest of a folder atomically, with a digest of its fields."""
        fields = self._fields()
        version = _WITH_FACTORS if self.factors else _VERSION
        content = {"format": _FORMAT, "version": version, **fields, _DIGEST: json_sha256(fields)}
        with replacing(Path(folder, MANIFEST)) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def is_manifest(path: Path) -> bool:
    """Return whether a file is a manifest of an encoding, perhaps a damaged one."""
    return path.is_file() and _FORMAT in path.read_text(encoding="utf-8", errors="replace")


def _probe_difference(stored: Probe, new: Probe) -> str | None:
    """Say in what two probes of a row differ, beyond rounding; None if in nothing."""
    if stored[0] != new[0]:
        return f"the id {stored[0]} there and {new[0]} now"
    if stored[1] != new[1]:
        return "another label"
    before, now = torch.tensor(stored[2]), torch.tensor(new[2])
    tolerance = _PROBE_TOLERANCE * float(torch.maximum(before.abs(), now.abs()).nan_to_num().max())
    if not torch.allclose(before, now, rtol=0.0, atol=tolerance, equal_nan=True):
        return "another image"
    return None
