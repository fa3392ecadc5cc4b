"""The container of packed codes with labels, ids and factors, and its files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_flags, check_integer
from hybridhash._code_checks import as_factors, as_ids, as_rows, check_packed, from_numpy
from hybridhash._code_files import damaged, read_fields, write_codes
from hybridhash.codes.packing import correction_factors, pack_codes, unpack_codes
from hybridhash.labels import as_labels

__all__ = ["HashCodes", "check_joinable", "read_codes"]

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_TENSORS = ("packed", "labels", "ids", "factors")  # each has a row for each image
_KINDS = ("bits", "labels", "ids", "factors", "device")  # what must agree to join HashCodes


@dataclass(frozen=True, eq=False, repr=False)
class HashCodes:
    """Packed binary codes of images, with labels and ids where known; all tensors are on one device.

    The tensors may be given as NumPy arrays. ``codes[index]`` takes an int, a slice, a list, a bool mask or
    an integer tensor and always gives HashCodes (an int gives one row). ``len(codes)`` is the number of
    images, and ``==`` compares the content.

    Attributes:
        packed: uint8 ``(N, ceil(bits / 8))``.
        bits: The code length, 1 to 4,096.
        labels: Class ids int64 ``(N,)``, multi-hot bool ``(N, C)``, or None. All forms that
            :func:`hybridhash.labels.as_labels` takes may be given.
        ids: The id of each image, int64 ``(N,)``, such as its row in a data set; or None.
        factors: What the signs do not tell of the real-valued codes, float32 ``(N, 2)``, or None: see
            :func:`correction_factors`.

    Raises:
        TypeError, ValueError: ``packed`` does not fit ``bits``; or labels, ids or factors have a wrong shape,
            dtype or length, are on another device, or factors are out of range.

    Example:
        >>> codes = HashCodes.from_codes(torch.randn(5, 12), labels=torch.tensor([0, 1, 2, 0, 1]))
        >>> codes
        HashCodes(size=5, bits=12, bytes=10, labels=class ids, ids=None)
        >>> len(codes[codes.labels == 0])
        2
    """

    packed: Tensor
    bits: int
    labels: Tensor | None = None
    ids: Tensor | None = None
    factors: Tensor | None = None

    # Without it, Python would iterate by calling __getitem__ with 0, 1, 2 ...: one object for each row.
    __iter__ = None

    def __post_init__(self) -> None:
        packed: object = self.packed
        if isinstance(packed, np.ndarray):
            object.__setattr__(self, "packed", from_numpy(packed, "packed"))
        check_packed(self.packed, self.bits, "packed")
        object.__setattr__(self, "bits", int(self.bits))
        device = self.packed.device
        for name, rows in (("labels", self.labels), ("ids", self.ids), ("factors", self.factors)):
            if isinstance(rows, Tensor) and rows.device != device:
                raise ValueError(f"{name} is on {rows.device} but the codes on {device}: move one with .to()")
        if self.labels is not None:
            object.__setattr__(self, "labels", as_labels(self.labels, length=len(self)).to(device))
        if self.ids is not None:
            object.__setattr__(self, "ids", as_ids(self.ids, length=len(self)).to(device))
        if self.factors is not None:
            object.__setattr__(self, "factors", as_factors(self.factors, length=len(self)).to(device))

    @classmethod
    def from_codes(
        cls,
        codes: Tensor | Array,
        labels: Tensor | Array | None = None,
        ids: Tensor | Array | None = None,
        *,
        factors: bool = False,
        norms: Tensor | Array | None = None,
    ) -> HashCodes:
        """Pack real-valued or ±1 codes.

        Args:
            codes: Codes ``(N, bits)`` as for :func:`pack_codes`.
            labels: Class ids ``(N,)`` or multi-hot labels ``(N, C)``, or None.
            ids: The id of each image, integers ``(N,)``, or None.
            factors: Whether to keep the :func:`correction_factors` of the codes, 8 more bytes each. With them
                real-valued queries estimate inner products and distances of the real-valued codes.
            norms: With factors, the norms ``(N,)`` of the vectors that the codes are projections of, see
                :func:`correction_factors`.

        Raises:
            TypeError, ValueError: As :func:`pack_codes`, :func:`correction_factors` and the class.

        Example:
            >>> HashCodes.from_codes(torch.tensor([[0.5, -0.5]]), ids=torch.tensor([7])).packed
            tensor([[128]], dtype=torch.uint8)
            >>> HashCodes.from_codes(torch.tensor([[3.0, -4.0]]), factors=True).factors
            tensor([[5.0000, 0.9899]])
        """
        packed = pack_codes(codes)
        check_flags(factors=factors)
        if norms is not None and not factors:
            raise ValueError("norms are kept as factors: give factors=True, or leave norms out")
        kept = correction_factors(codes, norms) if factors else None
        rows: dict[str, Any] = {"labels": labels, "ids": ids}  # the class takes all their forms
        return cls(packed, codes.shape[1], **rows, factors=kept)

    @classmethod
    def cat(cls, parts: Sequence[HashCodes]) -> HashCodes:
        """Join codes of equal bits, of one kind of labels, and all or none of them with ids and factors.

        Raises:
            TypeError: A part is not HashCodes.
            ValueError: There is no part, or bits, labels, ids, factors or devices of the parts differ.

        Example:
            >>> codes = HashCodes.from_codes(torch.ones(2, 8))
            >>> len(HashCodes.cat([codes, codes, codes[:1]]))
            5
        """
        parts = list(parts)
        if not parts:
            raise ValueError("HashCodes.cat got no parts: give at least one HashCodes")
        for number, part in enumerate(parts):
            if not isinstance(part, HashCodes):
                raise TypeError(f"HashCodes.cat takes HashCodes only, part {number} is {type(part).__name__}")
            if number > 0:
                check_joinable(parts[0], part, ("part 0", f"part {number}"))
        joined: dict[str, Any] = {}
        for name in _TENSORS:
            tensors = [getattr(part, name) for part in parts]
            joined[name] = None if tensors[0] is None else torch.cat(tensors)
        return cls(bits=parts[0].bits, **joined)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HashCodes:
        """Read a file of :meth:`save` onto the CPU.

        The content is checked against the SHA-256 digests in the file. Files of version 1 of the format
        have none and are read unchecked; saving the codes again adds them.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is truncated or no safetensors file, is not what its digests say, holds
                something else, is of another version of the format, or its content does not fit together.
                The message names the file.
        """
        return read_codes(path)[0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file atomically: it replaces an older one only when it is complete on disk.

        The file holds ``packed``, ``labels`` (class ids int64; or ``multi_hot``, packed to bits as codes
        are), ``ids`` and ``factors``. Its metadata are the format, its version, ``bits``, the number of
        ``classes`` of multi-hot labels, and SHA-256 digests of header and tensors. Equal codes give equal
        bytes. The device is not kept.

        Raises:
            FileNotFoundError: The folder does not exist.
            OSError: The file cannot be written. An older file is unchanged, and nothing else is left behind.

        Example:
            >>> import tempfile
            >>> codes = HashCodes.from_codes(torch.randn(5, 12), labels=torch.arange(5))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     codes.save(f"{folder}/codes.safetensors")
            ...     HashCodes.load(f"{folder}/codes.safetensors") == codes
            True
        """
        write_codes(path, self)

    def codes(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the codes as ±1 ``(N, bits)`` of ``dtype``, as :func:`unpack_codes` does."""
        return unpack_codes(self.packed, self.bits, dtype=dtype)

    def to(self, device: torch.device | str) -> HashCodes:
        """Return the codes with all tensors on ``device``; tensors that are there are not copied."""
        return self._map(lambda tensor: tensor.to(device))

    def truncate(self, bits: int) -> HashCodes:
        """Return the first ``bits`` bits of each code, with the labels and ids.

        The bits are those of ``z[:, :bits]`` if the codes are those of ``z``.

        Factors of a part of the bits cannot be had from those of all. The alignment is kept and the norm is
        multiplied by ``sqrt(bits / self.bits)``, which assumes that the first bits are like the others. So
        estimates stay right in the mean where the bits are in random order, as after a random rotation
        (method ``"rabitq"`` of :func:`hybridhash.models.fit_hash_head`). ITQ's rotation was measured to come
        close: cut from 128 to 64 bits, norms were right to 1 % in the mean and each to some 5 %. Where the
        first bits carry more of the norm than the others, as those of a PCA, the new norm is too small; pack
        ``z[:, :bits]`` anew then. With ``norms`` of longer vectors, all estimates of distances shrink by the
        same ``bits / self.bits``.

        Args:
            bits: The new code length, 1 to that of the codes.

        Raises:
            TypeError: ``bits`` is not an integer.
            ValueError: ``bits`` is below 1, or the codes have fewer.

        Example:
            >>> HashCodes.from_codes(torch.tensor([[0.5, -0.5, 2.0]])).truncate(2)
            HashCodes(size=1, bits=2, bytes=1, labels=None, ids=None)
        """
        bits = check_integer("bits", bits, 1, self.bits, advice="codes can be cut, not lengthened")
        packed = self.packed[:, : -(-bits // 8)].clone()
        if bits % 8:
            packed[:, -1] &= 0xFF << (8 - bits % 8) & 0xFF
        factors = self.factors
        if factors is not None:
            factors = factors * factors.new_tensor([(bits / self.bits) ** 0.5, 1.0])
        return HashCodes(packed, bits, self.labels, self.ids, factors)

    def __len__(self) -> int:
        return self.packed.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Sequence[bool] | Tensor) -> HashCodes:
        rows = as_rows(index, len(self))
        if isinstance(rows, Tensor):
            rows = rows.to(self.packed.device)
        return self._map(lambda tensor: tensor[rows])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HashCodes):
            return NotImplemented
        if len(self) != len(other) or self._kinds()[:-1] != other._kinds()[:-1]:
            return False
        other = other.to(self.packed.device)
        pairs = [(getattr(self, name), getattr(other, name)) for name in _TENSORS]
        return all(a is None or torch.equal(a, b) for a, b in pairs)

    def __repr__(self) -> str:
        bits, labels, ids, factors, device = self._kinds()
        where = "" if device == "cpu" else f", device={device}"
        size = f"size={len(self)}, bits={bits}, bytes={self.packed.numel()}"
        kept = "" if self.factors is None else f", factors={factors}"
        return f"HashCodes({size}, labels={labels}, ids={ids}{kept}{where})"

    def _map(self, change: Callable[[Tensor], Tensor]) -> HashCodes:
        """Return codes of the same bits whose tensors are what ``change`` makes of these."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        changed: dict[str, Any] = {
            name: None if tensor is None else change(tensor) for name, tensor in tensors.items()
        }
        return HashCodes(bits=self.bits, **changed)

    def _kinds(self) -> tuple[str, ...]:
        """Describe what must agree to join codes, in the order of ``_KINDS``."""
        labels = "None"
        if self.labels is not None:
            labels = "class ids" if self.labels.ndim == 1 else f"multi-hot of {self.labels.shape[1]} classes"
        ids = "None" if self.ids is None else "int64"
        factors = "None" if self.factors is None else "float32"
        return str(self.bits), labels, ids, factors, str(self.packed.device)


def read_codes(path: str | os.PathLike[str], *, mapped: bool = False) -> tuple[HashCodes, dict[str, str]]:
    """Read a file of :func:`write_codes` and its metadata; raises as :meth:`HashCodes.load`.

    Args:
        path: The file.
        mapped: Whether the tensors are views of the file on disk, which take no memory of their own. Writing
            to them does not change the file, and the file must not change. Multi-hot labels are unpacked.
            The tensors are not checked against their digest then, only the header is.
    """
    fields, metadata = read_fields(path, mapped=mapped)
    try:
        return HashCodes(**fields), metadata
    except (TypeError, ValueError) as error:
        raise damaged(path, error) from error


def check_joinable(first: HashCodes, other: HashCodes, names: tuple[str, str]) -> None:
    """Raise ValueError, with both names, if bits, kind of labels, ids, factors or device differ."""
    for what, one, two in zip(_KINDS, first._kinds(), other._kinds(), strict=True):
        if one != two:
            raise ValueError(f"{names[0]} and {names[1]} do not fit together: {what} {one} and {two}")
