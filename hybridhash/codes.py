"""Binary codes: bits and how they are packed, exact Hamming distances and top-k, and the HashCodes container.

Everywhere in the package ``packed`` codes are ``uint8 (N, ceil(bits / 8))``: big-endian inside a byte as
:func:`numpy.packbits` writes them, padded on the right with zero bits. Bit 1 means ``code > 0``; a code of
exactly 0 is bit 0. This is the layout that FAISS, usearch (``b1``), Milvus and pgvector take.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hybridhash._checks import check_integer
from hybridhash._files import replacing
from hybridhash._hamming import pack_bits, packed_distances, packed_topk, unpack_bits
from hybridhash.labels import as_labels

__all__ = [
    "MAX_BITS",
    "HashCodes",
    "as_packed",
    "as_packed_pair",
    "binarize",
    "check_packed",
    "check_width",
    "hamming_distance",
    "hamming_topk",
    "pack_codes",
    "sign",
    "unpack_codes",
]

MAX_BITS = 512

_FORMAT, _VERSION = "hybridhash.codes", "1"
_KINDS = ("bits", "labels", "ids", "device")  # what must agree to join HashCodes


def binarize(codes: Tensor) -> Tensor:
    """Binary codes: +1 where ``code > 0``, -1 elsewhere. So 0 gives -1, and an infinity its sign.

    Args:
        codes: ``(..., bits)`` of any real dtype except uint8, which means packed codes here.

    Returns:
        A new tensor of the same shape with values -1 and +1: in the dtype of ``codes`` if that is floating,
        else int8. It carries no gradient.

    Raises:
        TypeError: not a tensor, complex, or uint8.
        ValueError: a code is NaN.

    Example:
        >>> binarize(torch.tensor([[0.3, -2.0, 0.0, 0.1]]))
        tensor([[ 1., -1., -1.,  1.]])
    """
    _check_unpacked(codes)
    _check_not_nan(codes, "codes")
    dtype = codes.dtype if codes.dtype.is_floating_point else torch.int8
    return (codes.detach() > 0).to(dtype).mul_(2).sub_(1)


def sign(values: Tensor) -> Tensor:
    """Return +1 where ``values > 0`` and -1 elsewhere, in the same dtype.

    Unlike ``torch.sign``, 0 gives -1, as everywhere in the package: it is bit 0. No gradient, no checks.

    Args:
        values: any shape, floating.

    Example:
        >>> sign(torch.tensor([0.3, 0.0, -2.0]))
        tensor([ 1., -1., -1.])
    """
    # Signs are -1, 0 and 1 first; half a step down, 0 is negative.
    return values.detach().sign().sub_(0.5).sign_()


def pack_codes(codes: Tensor, *, name: str = "codes") -> Tensor:
    """Pack codes to bits, eight to a byte, as ``numpy.packbits(codes > 0, axis=-1)`` does.

    Args:
        codes: ``(N, bits)`` real-valued or ±1, any real dtype except uint8; 1 to 512 bits.
        name: how an error message calls ``codes``.

    Returns:
        uint8 ``(N, ceil(bits / 8))`` on the device of ``codes``.

    Raises:
        TypeError: not a tensor, complex, or uint8 (packed already).
        ValueError: not ``(N, bits)``, too few or too many bits, or a code is NaN.

    Example:
        >>> pack_codes(torch.tensor([[1.0, -1, -1, -1, -1, -1, -1, 1, 1]]))
        tensor([[129, 128]], dtype=torch.uint8)
    """
    _check_unpacked(codes, name)
    if codes.ndim != 2:
        raise ValueError(f"{name} must be (N, bits), got shape {tuple(codes.shape)}")
    check_integer(f"the number of columns of {name}", codes.shape[1], 1, MAX_BITS)
    _check_not_nan(codes, name)
    return pack_bits(codes.detach() > 0)


def unpack_codes(packed: Tensor, bits: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """The ±1 codes that packed bits stand for; inverse of :func:`pack_codes`.

    Args:
        packed: uint8 ``(N, ceil(bits / 8))`` with zero padding bits.
        bits: code length, 1 to 512.
        dtype: dtype of the result: floating, or a signed integer.

    Returns:
        ``(N, bits)`` of ``dtype`` with values -1 and +1, on the device of ``packed``.

    Raises:
        TypeError: ``packed`` is not a uint8 tensor, ``bits`` not an integer, or ``dtype`` cannot hold -1.
        ValueError: the shape does not fit ``bits``, or a padding bit is set.

    Example:
        >>> unpack_codes(torch.tensor([[0b10100000]], dtype=torch.uint8), 3)
        tensor([[ 1., -1.,  1.]])
    """
    if dtype.is_complex or not dtype.is_signed:
        raise TypeError(f"dtype must hold -1 and +1 (floating or signed integer), got {dtype}")
    check_packed(packed, bits, "packed")
    return unpack_bits(packed, bits).to(dtype).mul_(2).sub_(1)


def as_packed(
    codes: Tensor | HashCodes, *, bits: int | None = None, name: str = "codes"
) -> tuple[Tensor, int]:
    """Codes of any accepted form as packed bits and their number: the one check of codes in the package.

    Args:
        codes: real-valued or ±1 ``(N, bits)``, packed uint8 ``(N, ceil(bits / 8))``, or :class:`HashCodes`.
        bits: code length; required for a packed tensor, elsewhere it must agree if it is given.
        name: how an error message calls ``codes``.

    Returns:
        ``(packed, bits)``: uint8 ``(N, ceil(bits / 8))`` on the device of ``codes`` (not a copy if it was
        packed), and the code length. ``N`` may be 0.

    Raises:
        TypeError: neither a tensor nor HashCodes, a complex tensor, or ``bits`` is not an integer.
        ValueError: packed without ``bits``, a shape that does not fit, set padding bits, NaN, or ``bits``
            that differ from those of ``codes``.

    Example:
        >>> as_packed(torch.tensor([[0.3, -2.0, 0.7]]))
        (tensor([[160]], dtype=torch.uint8), 3)
    """
    if isinstance(codes, HashCodes):
        if bits is not None and bits != codes.bits:
            raise ValueError(f"{name} has {codes.bits} bits, but bits={bits} was given: leave bits out")
        return codes.packed, codes.bits
    if not isinstance(codes, Tensor):
        raise TypeError(
            f"{name} must be a tensor or HashCodes, got {type(codes).__name__}: wrap it in torch.as_tensor"
        )
    if codes.dtype == torch.uint8:
        if bits is None:
            raise ValueError(f"{name} is uint8, which means packed codes: say how many bits with bits=")
        check_packed(codes, bits, name)
        return codes, bits
    packed = pack_codes(codes, name=name)
    if bits is not None and bits != codes.shape[1]:
        raise ValueError(
            f"{name} has {codes.shape[1]} bits (columns), but bits={bits} was given: leave bits out"
        )
    return packed, codes.shape[1]


def as_packed_pair(
    query_codes: Tensor | HashCodes, database_codes: Tensor | HashCodes, *, bits: int | None = None
) -> tuple[Tensor, Tensor, int]:
    """Both sides of a retrieval as packed bits: :func:`as_packed` on each, and whether they fit together.

    Args:
        query_codes: codes of any form that :func:`as_packed` takes.
        database_codes: the same; may be of another form than ``query_codes``.
        bits: code length; needed only if no side tells it (both are packed tensors).

    Returns:
        ``(query_packed, database_packed, bits)``.

    Raises:
        TypeError, ValueError: as :func:`as_packed`; different bits, different devices, or an empty side.

    Example:
        >>> as_packed_pair(torch.tensor([[1.0, -1.0]]), torch.tensor([[0], [64]], dtype=torch.uint8))[2]
        2
    """
    if bits is None:
        known = [_known_bits(codes) for codes in (query_codes, database_codes)]
        if None not in known and known[0] != known[1]:
            raise ValueError(f"query_codes have {known[0]} bits but database_codes have {known[1]}")
        bits = known[0] or known[1]
    query, bits = as_packed(query_codes, bits=bits, name="query_codes")
    database, bits = as_packed(database_codes, bits=bits, name="database_codes")
    for side, name in ((query, "query_codes"), (database, "database_codes")):
        if side.shape[0] == 0:
            raise ValueError(f"{name} is empty: retrieval needs at least one query and one database item")
    if query.device != database.device:
        raise ValueError(
            f"query_codes are on {query.device} but database_codes on {database.device}: move one with .to()"
        )
    return query, database, bits


def hamming_distance(
    query_codes: Tensor | HashCodes, database_codes: Tensor | HashCodes, *, bits: int | None = None
) -> Tensor:
    """Hamming distance of each query to each database item: the number of bits that differ.

    ``d(a, b) = (bits - <a, b>) / 2`` for ±1 codes ``a`` and ``b``. The result holds all ``Nq * Nd`` pairs;
    :func:`hamming_topk` gives the nearest only.

    Args:
        query_codes: real-valued or ±1 ``(Nq, bits)``, packed uint8, or :class:`HashCodes`.
        database_codes: the same for ``Nd`` items; may be of another form than ``query_codes``.
        bits: code length; needed only if both sides are packed tensors.

    Returns:
        int16 ``(Nq, Nd)`` with values 0..bits.

    Raises:
        TypeError, ValueError: see :func:`as_packed_pair`.

    Example:
        >>> query, database = torch.tensor([[0.9, 0.2, -0.1]]), torch.tensor([[1, 1, 1], [-1, -1, 1]])
        >>> hamming_distance(query, database)
        tensor([[1, 3]], dtype=torch.int16)
    """
    return packed_distances(*as_packed_pair(query_codes, database_codes, bits=bits)).to(torch.int16)


def hamming_topk(
    query_codes: Tensor | HashCodes,
    database_codes: Tensor | HashCodes,
    top_k: int | None,
    *,
    bits: int | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The nearest database items of each query: by Hamming distance, equal distances by database index.

    Streams over the database in chunks: no ``(Nq, Nd)`` tensor is kept.

    Args:
        query_codes: real-valued or ±1 ``(Nq, bits)``, packed uint8, or :class:`HashCodes`.
        database_codes: the same for ``Nd`` items; may be of another form than ``query_codes``.
        top_k: number of neighbours ``k >= 1``; None, or more than ``Nd``, means the whole database.
        bits: code length; needed only if both sides are packed tensors.
        chunk_size: largest number of database items that are compared at a time (at least ``top_k`` are);
            None chooses one. It changes memory and speed, never the result.

    Returns:
        ``(distances, indices)``: int16 and int64, both ``(Nq, min(top_k, Nd))``, nearest first.

    Raises:
        TypeError: ``top_k`` or ``chunk_size`` is not an integer; see also :func:`as_packed_pair`.
        ValueError: ``top_k`` or ``chunk_size`` is below 1; see also :func:`as_packed_pair`.

    Example:
        >>> database = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [1.0, 1.0]])
        >>> distances, indices = hamming_topk(torch.tensor([[0.9, 0.2]]), database, top_k=3)
        >>> distances, indices
        (tensor([[0, 0, 1]], dtype=torch.int16), tensor([[0, 3, 2]]))
    """
    query, database, bits = as_packed_pair(query_codes, database_codes, bits=bits)
    size = database.shape[0]
    top_k = (
        size
        if top_k is None
        else min(check_integer("top_k", top_k, 1, advice="use None for the whole database"), size)
    )
    if chunk_size is not None:
        check_integer("chunk_size", chunk_size, 1, advice="use None for the default")
    return packed_topk(query, database, bits, top_k, chunk_size)


def _known_bits(codes: object) -> int | None:
    """The code length that codes tell by themselves: None for packed tensors."""
    if isinstance(codes, HashCodes):
        return codes.bits
    if isinstance(codes, Tensor) and codes.dtype != torch.uint8 and codes.ndim == 2:
        return codes.shape[1]
    return None


@dataclass(frozen=True, eq=False, repr=False)
class HashCodes:
    """Packed binary codes of images, with their labels and ids where known; all tensors on one device.

    ``codes[index]`` takes an int, a slice, a list, a bool mask or an integer tensor and always gives
    HashCodes (an int gives one row); ``len(codes)`` is the number of images, ``==`` compares the content.

    Attributes:
        packed: uint8 ``(N, ceil(bits / 8))``.
        bits: code length, 1 to 512.
        labels: None, or class ids int64 ``(N,)`` or multi-hot bool ``(N, C)``, as
            :func:`hybridhash.labels.as_labels` makes them of what is given.
        ids: None, or int64 ``(N,)``: which image each row is, a row number of the data set, say.

    Raises:
        TypeError, ValueError: ``packed`` does not fit ``bits``, labels or ids of a wrong shape, dtype or
            length, or on another device.

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

    # Without it, Python would iterate by calling __getitem__ with 0, 1, 2 ...: one object for each row.
    __iter__ = None

    def __post_init__(self) -> None:
        check_packed(self.packed, self.bits, "packed")
        for name, rows in (("labels", self.labels), ("ids", self.ids)):
            if isinstance(rows, Tensor) and rows.device != self.packed.device:
                raise ValueError(
                    f"{name} is on {rows.device} but the codes on {self.packed.device}: move one with .to()"
                )
        if self.labels is not None:
            object.__setattr__(self, "labels", as_labels(self.labels, length=len(self)))
        if self.ids is not None:
            object.__setattr__(self, "ids", as_ids(self.ids, length=len(self)))

    @classmethod
    def from_codes(cls, codes: Tensor, labels: Tensor | None = None, ids: Tensor | None = None) -> HashCodes:
        """Pack real-valued or ±1 codes ``(N, bits)``; raises as :func:`pack_codes` and the class do.

        Example:
            >>> HashCodes.from_codes(torch.tensor([[0.5, -0.5]]), ids=torch.tensor([7])).packed
            tensor([[128]], dtype=torch.uint8)
        """
        return cls(pack_codes(codes), codes.shape[1], labels, ids)

    @classmethod
    def cat(cls, parts: Sequence[HashCodes]) -> HashCodes:
        """Join codes of equal bits, of one kind of labels, and all or none of them with ids.

        Raises:
            TypeError: a part is not HashCodes.
            ValueError: no part at all, or parts that do not fit: bits, labels, ids or devices differ.

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
            check_joinable(parts[0], part, ("part 0", f"part {number}"))
        labels, ids = (
            None if getattr(parts[0], name) is None else torch.cat([getattr(part, name) for part in parts])
            for name in ("labels", "ids")
        )
        return cls(torch.cat([part.packed for part in parts]), parts[0].bits, labels, ids)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HashCodes:
        """Read what :meth:`save` wrote, onto the CPU.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated or no safetensors file, holds something else, is of another
                version of the format, or its content does not fit together. The message names the file.
        """
        return read_codes(path)[0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; it replaces an older one only when it is complete on disk.

        Holds ``packed``, ``labels`` (class ids int64; or ``multi_hot``, packed to bits as codes are) and
        ``ids``, and as metadata the format, its version, ``bits`` and the number of ``classes`` of multi-hot
        labels. The device is not kept.

        Raises:
            FileNotFoundError: the folder does not exist.
            OSError: the file cannot be written. An older file stays as it was, nothing else is left behind.

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
        """The codes as ±1 ``(N, bits)`` of ``dtype``; see :func:`unpack_codes`."""
        return unpack_codes(self.packed, self.bits, dtype=dtype)

    def to(self, device: torch.device | str) -> HashCodes:
        """The same with all tensors on ``device``; tensors that are there already are not copied."""
        labels, ids = (None if t is None else t.to(device) for t in (self.labels, self.ids))
        return HashCodes(self.packed.to(device), self.bits, labels, ids)

    def __len__(self) -> int:
        return self.packed.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Sequence[bool] | Tensor) -> HashCodes:
        rows = _rows(index, len(self))
        if isinstance(rows, Tensor):
            rows = rows.to(self.packed.device)
        labels, ids = (None if t is None else t[rows] for t in (self.labels, self.ids))
        return HashCodes(self.packed[rows], self.bits, labels, ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HashCodes):
            return NotImplemented
        if len(self) != len(other) or self._kinds()[:3] != other._kinds()[:3]:
            return False
        other = other.to(self.packed.device)
        pairs = ((self.packed, other.packed), (self.labels, other.labels), (self.ids, other.ids))
        return all(a is None or b is None or torch.equal(a, b) for a, b in pairs)

    def __repr__(self) -> str:
        bits, labels, ids, device = self._kinds()
        where = "" if device == "cpu" else f", device={device}"
        size = f"size={len(self)}, bits={bits}, bytes={self.packed.numel()}"
        return f"HashCodes({size}, labels={labels}, ids={ids}{where})"

    def _kinds(self) -> tuple[str, str, str, str]:
        """What must agree to join codes, in words: in the order of ``_KINDS``."""
        labels = "None"
        if self.labels is not None:
            labels = "class ids" if self.labels.ndim == 1 else f"multi-hot of {self.labels.shape[1]} classes"
        return str(self.bits), labels, "None" if self.ids is None else "int64", str(self.packed.device)


def read_codes(path: str | os.PathLike[str], *, mapped: bool = False) -> tuple[HashCodes, dict[str, str]]:
    """Codes of a file of :func:`write_codes` and its metadata; raises as :meth:`HashCodes.load`.

    ``mapped`` tensors are views of the file on disk, except multi-hot labels, which are unpacked: they take
    no memory of their own, and what is written to them is not written to the file, which must not change.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no codes file at {file}: HashCodes.save writes one")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{file} is truncated or not a safetensors file ({error}): write it again with HashCodes.save"
        ) from error
    if not mapped:
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{file} is a safetensors file, but not of hash codes (format {metadata.get('format')!r}, "
            f"expected {_FORMAT!r}): give a file that HashCodes.save wrote"
        )
    if metadata.get("version") != _VERSION:
        raise ValueError(
            f"{file} has version {metadata.get('version')!r} of the format, this hybridhash reads "
            f"{_VERSION!r}: upgrade hybridhash, or write the codes again"
        )
    try:
        if "classes" in metadata:
            classes, multi_hot = int(metadata["classes"]), tensors.pop("multi_hot")
            check_width(multi_hot, classes, "multi_hot")
            labels = unpack_bits(multi_hot, classes).bool()
        else:
            labels = tensors.pop("labels", None)
        codes = HashCodes(tensors.pop("packed"), int(metadata["bits"]), labels, tensors.pop("ids", None))
        if tensors:
            raise ValueError(f"unexpected tensors {sorted(tensors)}")
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{file} is damaged ({reason}): write it again with HashCodes.save") from error
    return codes, metadata


def write_codes(
    path: str | os.PathLike[str], codes: HashCodes, metadata: Mapping[str, str] | None = None
) -> None:
    """Write codes as :meth:`HashCodes.save` describes, with further ``metadata`` if wanted."""
    tensors = {"packed": codes.packed}
    metadata = {**(metadata or {}), "format": _FORMAT, "version": _VERSION, "bits": str(codes.bits)}
    if codes.labels is not None and codes.labels.ndim == 2:
        tensors["multi_hot"] = pack_bits(codes.labels)
        metadata["classes"] = str(codes.labels.shape[1])
    elif codes.labels is not None:
        tensors["labels"] = codes.labels
    if codes.ids is not None:
        tensors["ids"] = codes.ids
    # Clones, because safetensors refuses tensors that share memory (labels given as ids, too).
    tensors = {
        name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def check_joinable(first: HashCodes, other: HashCodes, names: tuple[str, str]) -> None:
    """Raise a ValueError that names both if two HashCodes cannot be joined: bits, labels, ids or device."""
    for what, one, two in zip(_KINDS, first._kinds(), other._kinds(), strict=True):
        if one != two:
            raise ValueError(f"{names[0]} and {names[1]} do not fit together: {what} {one} and {two}")


def as_ids(ids: Tensor, *, length: int, name: str = "ids") -> Tensor:
    """Check ids, ``length`` integers, and give them as int64 ``(length,)``.

    Raises:
        TypeError: not a tensor, or not integers.
        ValueError: a wrong shape.

    Example:
        >>> as_ids(torch.tensor([7, 9], dtype=torch.int32), length=2)
        tensor([7, 9])
    """
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(ids).__name__}: wrap it in torch.as_tensor")
    if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {ids.dtype}")
    if ids.shape != (length,):
        raise ValueError(f"{name} must be ({length},), one for each code, got shape {tuple(ids.shape)}")
    return ids.to(torch.int64)


def _rows(index: object, size: int) -> slice | Tensor:
    """An index of any accepted kind as a slice with a positive step, or as row numbers, checked."""
    if isinstance(index, slice):
        start, stop, step = index.indices(size)
        return slice(start, stop, step) if step > 0 else torch.arange(start, stop, step)
    if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
        index = [int(index)]
    if isinstance(index, Tensor) and index.ndim == 0 and index.dtype != torch.bool:
        index = index[None]
    if not isinstance(index, (list, range, np.ndarray, Tensor)):
        raise TypeError(
            f"index must be an int, slice, list, bool mask or integer tensor, got {type(index).__name__}"
        )
    rows = torch.as_tensor(index)
    if rows.shape == (0,) and rows.dtype != torch.bool:
        rows = rows.long()  # an empty list has no dtype of its own
    if rows.ndim != 1 or rows.dtype.is_floating_point or rows.dtype.is_complex or rows.dtype == torch.uint8:
        raise TypeError(
            f"index must be one-dimensional, of bools or (not uint8) integers, got {rows.dtype} of shape "
            f"{tuple(rows.shape)}"
        )
    if rows.dtype == torch.bool:
        if rows.shape[0] != size:
            raise IndexError(f"the mask has {rows.shape[0]} entries for {size} codes")
        return rows.nonzero()[:, 0]
    if rows.numel() and not -size <= int(rows.min()) <= int(rows.max()) < size:
        outside = rows[(rows < -size) | (rows >= size)][0].item()
        raise IndexError(f"index {outside} is out of range for {size} codes")
    return rows.long()


def _check_unpacked(codes: Tensor, name: str = "codes") -> None:
    if not isinstance(codes, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(codes).__name__}: wrap it in torch.as_tensor")
    if codes.dtype == torch.uint8:
        raise TypeError(
            f"{name} is uint8, which means packed codes: use unpack_codes, or .float() if it is not"
        )
    if codes.dtype.is_complex:
        raise TypeError(f"{name} must be real, got {codes.dtype}")


def _check_not_nan(codes: Tensor, name: str) -> None:
    if codes.dtype.is_floating_point and bool(torch.isnan(codes).any()):
        count = int(torch.isnan(codes).sum())
        raise ValueError(
            f"{name} has NaN in {count} of {codes.numel()} entries, which has no sign: did training diverge?"
        )


def check_packed(packed: Tensor, bits: int, name: str) -> None:
    """Raise unless ``packed`` is a valid tensor of ``bits``-bit codes."""
    check_integer("bits", bits, 1, MAX_BITS)
    check_width(packed, bits, name)


def check_width(packed: Tensor, bits: int, name: str) -> None:
    """Raise unless ``packed`` holds rows of ``bits`` bits and zero padding."""
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8:
        kind = packed.dtype if isinstance(packed, Tensor) else type(packed).__name__
        raise TypeError(f"{name} must be a uint8 tensor of packed codes, got {kind}: use pack_codes")
    width = -(-bits // 8)
    if packed.ndim != 2 or packed.shape[1] != width:
        raise ValueError(
            f"{name} of {bits} bits must be (N, {width}), got shape {tuple(packed.shape)}: is bits right?"
        )
    if bits % 8 and bool((packed[:, -1] & (0xFF >> bits % 8)).any()):
        raise ValueError(
            f"{name} has bits set in the padding after bit {bits} of its last byte: is bits={bits} right?"
        )
