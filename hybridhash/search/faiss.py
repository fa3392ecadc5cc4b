"""FAISS: exact and approximate search in the memory of one machine."""

from __future__ import annotations

import os
import secrets
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hybridhash._checks import check_integer
from hybridhash._files import replacing
from hybridhash._moved import renamed_arguments
from hybridhash.codes import MAX_BITS, HashCodes
from hybridhash.search.interface import (
    Array,
    as_ranges,
    check_held,
    check_model_id,
    clipped_top_k,
    nearest_first,
    new_rows,
    query_rows,
    read_manifest,
    write_manifest,
)

__all__ = ["FaissIndex"]

_CHUNK = 1 << 20  # codes that are handed to FAISS at a time, so that mapped codes are read in pieces
_FEWEST, _MOST = 39, 64  # codes to train a list of an inverted file; FAISS asks for 39 at least
# The options of each kind with their defaults; None is chosen from the number of codes.
_OPTIONS: dict[str, dict[str, int | None]] = {
    "flat": {},
    "ivf": {"nlist": None, "nprobe": None},
    "hnsw": {"links": 32, "ef_construction": 80, "ef_search": 128},
    "multihash": {"nhash": None, "hash_bits": None, "nflip": 1},
}
_RANGES = {"links": (2, None), "hash_bits": (1, 64), "nflip": (0, None)}


class FaissIndex:
    """Codes in a binary index of FAISS (extra ``faiss``); a :class:`SearchIndex`.

    ``flat`` is exact: the distances are those of :func:`hybridhash.hamming_topk`. The other kinds search a
    part of the codes. How much they miss depends on the codes, so measure it on yours, as
    ``benchmarks/search.py`` does. FAISS uses all cores; ``faiss.omp_set_num_threads`` limits it.

    Codes and queries are padded with zero bits to whole bytes, which changes no distance. Ids have 64 bits.
    Each id occurs once: adding one that the index holds raises, and adds nothing.

    Args:
        bits: The code length, 1 to 512.
        kind: ``"flat"``, ``"ivf"`` (inverted lists around trained centres), ``"hnsw"`` (a graph of
            neighbours) or ``"multihash"`` (tables of substrings of the codes).
        model_id: A string that identifies the model of the codes. It is kept in the manifest and compared.
        nlist: The number of lists of ``ivf``, by default 4 times the square root of the number of training
            codes.
        nprobe: The number of lists that ``ivf`` searches for each query, by default a 32nd, but at least 16.
        links: The number of neighbours of each code in the graph of ``hnsw`` (FAISS's ``M``).
        ef_construction: The number of candidates that ``hnsw`` keeps while it builds the graph.
        ef_search: The number of candidates that ``hnsw`` keeps while it searches, at least ``top_k``.
        nhash: The number of tables of ``multihash``, by default as many as fit, ``bits // hash_bits``.
        hash_bits: The length of the substring of each table of ``multihash``, by default at most 16.
        nflip: ``multihash`` searches substrings that differ from the query's in up to this many bits.

    Attributes:
        index: the FAISS index, an ``IndexBinaryIDMap`` around the index of the kind; None before training.

    Raises:
        ImportError: FAISS is not installed.
        TypeError, ValueError: ``bits`` or an option is out of range, an unknown kind, or an option of
            another kind.

    Example:
        >>> import torch
        >>> index = FaissIndex(bits=3)
        >>> index.add(torch.tensor([[0.9, 0.2, -0.1], [0.9, -0.3, -0.4], [-1.0, -1.0, 1.0]]))
        >>> index.search(torch.tensor([[1.0, -1.0, -1.0]]), top_k=2)
        (tensor([[0, 1]], dtype=torch.int16), tensor([[1, 0]]))
        >>> index.range_search(torch.tensor([[1.0, -1.0, -1.0]]), radius=0)
        (tensor([0, 1]), tensor([0], dtype=torch.int16), tensor([1]))
    """

    @renamed_arguments(model="model_id")
    def __init__(
        self,
        bits: int,
        kind: str = "flat",
        *,
        model_id: str | None = None,
        nlist: int | None = None,
        nprobe: int | None = None,
        links: int | None = None,
        ef_construction: int | None = None,
        ef_search: int | None = None,
        nhash: int | None = None,
        hash_bits: int | None = None,
        nflip: int | None = None,
    ) -> None:
        bits = check_integer("bits", bits, 1, MAX_BITS)
        check_model_id(None, model_id)
        given = {"nlist": nlist, "nprobe": nprobe, "links": links, "ef_construction": ef_construction}
        given |= {"ef_search": ef_search, "nhash": nhash, "hash_bits": hash_bits, "nflip": nflip}
        self.bits = bits
        self.kind = kind
        self.model_id: str | None = model_id
        self._options = _checked_options(bits, kind, {k: v for k, v in given.items() if v is not None})
        faiss = _faiss()
        # The lists of an inverted file are made when it is known how many codes there are to train them.
        self.index: Any = None if kind == "ivf" else faiss.IndexBinaryIDMap(self._empty(faiss))

    @renamed_arguments(model="model_id")
    def add(self, codes: Tensor | HashCodes, *, model_id: str | None = None) -> None:
        """Add codes under their ids, or numbered on from ``len(index)`` if they have none.

        The first codes train an ``ivf`` index unless :meth:`train` was called before.

        Raises:
            TypeError, ValueError: codes of other bits or another model, NaN; ids that are negative, occur
                twice, or are in the index already. Nothing is added then.
        """
        packed, ids = new_rows(codes, self.bits, self.model_id, model_id)
        if len(packed) == 0:
            return
        size = len(self)
        ids = np.arange(size, size + len(packed)) if ids is None else ids
        check_held(ids, self._ids())
        if self.index is None:
            self._train(packed)
        for start in range(0, len(packed), _CHUNK):
            rows = slice(start, start + _CHUNK)
            self.index.add_with_ids(*(np.ascontiguousarray(part[rows]) for part in (packed, ids)))

    @renamed_arguments(model="model_id")
    def train(self, codes: Tensor | HashCodes, *, model_id: str | None = None) -> None:
        """Fit the lists of an ``ivf`` index to codes like those to come, without adding them.

        Worth a call if the first codes that are added are few, or not like the rest (sorted by class, say).

        Raises:
            TypeError, ValueError: not an ``ivf`` index, trained already, or codes as in :meth:`add`.
        """
        if self.kind != "ivf":
            raise ValueError(f"an index of kind {self.kind!r} needs no training, only 'ivf' does")
        if self.index is not None:
            raise ValueError("the index is trained already: train a new one before adding codes")
        packed, _ = new_rows(codes, self.bits, self.model_id, model_id)
        if len(packed) == 0:
            raise ValueError("codes is empty: training needs codes like those to come")
        self._train(packed)

    def tune(
        self, *, nprobe: int | None = None, ef_search: int | None = None, nflip: int | None = None
    ) -> None:
        """Change how much of an approximate index is searched: more finds more and takes longer.

        Raises:
            TypeError, ValueError: an option of another kind, or out of range.
        """
        given = {"nprobe": nprobe, "ef_search": ef_search, "nflip": nflip}
        chosen = {name: value for name, value in given.items() if value is not None}
        self._options = _checked_options(self.bits, self.kind, {**self._options, **chosen})
        if self.index is not None:
            self._apply_options()

    @renamed_arguments(k="top_k", model="model_id")
    def search(
        self, codes: Tensor | HashCodes, top_k: int | None, *, model_id: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Find the ``top_k`` nearest codes of each query, as :meth:`SearchIndex.search` describes.

        Raises:
            TypeError, ValueError: ``top_k`` below 1, an empty index, no query, or codes of other bits or
                another model.
        """
        query = query_rows(codes, self.bits, len(self), self.model_id, model_id)
        distances, ids = self.index.search(query, clipped_top_k(top_k, len(self)))
        return nearest_first(distances, ids, self.bits)

    @renamed_arguments(model="model_id")
    def range_search(
        self, codes: Tensor | HashCodes, radius: int, *, model_id: str | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find all codes at a distance of at most ``radius``, as :meth:`SearchIndex.range_search` describes.

        An approximate index misses what it does not search. FAISS's ``hnsw`` has no range search, so it is
        asked for more and more neighbours until they are farther than ``radius``.

        Raises:
            TypeError, ValueError: ``radius`` below 0, otherwise as :meth:`search`.
        """
        query = query_rows(codes, self.bits, len(self), self.model_id, model_id)
        radius = min(check_integer("radius", radius, 0), self.bits)
        if self.kind == "hnsw":
            return as_ranges([self._within(row, radius) for row in query], self.bits)
        # FAISS means "nearer than", we mean "at most".
        limits, distances, ids = self.index.range_search(query, radius + 1)
        parts = [slice(start, stop) for start, stop in pairwise(limits)]
        return as_ranges([(distances[part], ids[part]) for part in parts], self.bits)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index to ``folder``: the file of FAISS, and ``manifest.json`` that names it.

        The manifest is written last and replaces an older one at once, so a failure at any moment leaves the
        older save as it was.

        Raises:
            ValueError: the index is empty.
            OSError: the files cannot be written.

        Example:
            >>> import tempfile, torch
            >>> index = FaissIndex(bits=16, model_id="toy")
            >>> index.add(torch.randn(5, 16))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     index.save(folder)
            ...     len(FaissIndex.load(folder, model_id="toy"))
            5
        """
        if len(self) == 0:
            raise ValueError("the index is empty: add codes before saving")
        faiss, folder = _faiss(), Path(folder)
        folder.mkdir(exist_ok=True)
        file = folder / f"index-{secrets.token_hex(8)}.faiss"
        try:
            # Through a Python file, because FAISS's own does not report an error on closing it.
            with replacing(file) as temporary, open(temporary, "wb") as opened:
                faiss.write_index_binary(self.index, faiss.PyCallbackIOWriter(opened.write))
            manifest = {"file": file.name, "bytes": file.stat().st_size, "count": len(self)}
            manifest |= {
                "bits": self.bits,
                "kind": self.kind,
                "model": self.model_id,
                "options": self._options,
            }
            write_manifest(folder, "faiss", manifest)
        except Exception as error:
            file.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise
            raise OSError(f"cannot write {file}: {error}") from error
        for old in folder.glob("index-*.faiss"):
            if old != file:
                old.unlink()

    @classmethod
    @renamed_arguments(model="model_id")
    def load(
        cls, folder: str | os.PathLike[str], *, bits: int | None = None, model_id: str | None = None
    ) -> FaissIndex:
        """Read the files of :meth:`save`.

        Args:
            folder: The folder that it was saved to.
            bits: The expected code length, if it is to be checked.
            model_id: The expected model_id, if it is to be checked.

        Raises:
            ImportError: FAISS is not installed.
            FileNotFoundError: the folder has no manifest, or the file that it names is missing.
            ValueError: the files are damaged or do not fit together, or the index is of other bits or another
                model.
        """
        keys = ("file", "bytes", "count", "bits", "kind", "model", "options")
        manifest = read_manifest(folder, "faiss", keys)
        if bits is not None and bits != manifest["bits"]:
            raise ValueError(f"the index at {folder} holds codes of {manifest['bits']} bits, not of {bits}")
        check_model_id(manifest["model"], model_id)
        file = Path(folder) / manifest["file"]
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, which the manifest names: save the index again")
        if file.stat().st_size != manifest["bytes"]:
            raise ValueError(
                f"{file} is truncated or foreign: it has {file.stat().st_size:,} bytes, the manifest says "
                f"{manifest['bytes']:,}. Save the index again"
            )
        index = cls(manifest["bits"], manifest["kind"], model_id=manifest["model"])
        index._options = manifest["options"]
        faiss = _faiss()
        try:
            index.index = faiss.read_index_binary(str(file))
        except RuntimeError as error:
            raise ValueError(f"{file} is damaged ({error}): save the index again") from error
        if index.index.d != 8 * _width(index.bits) or len(index) != manifest["count"]:
            raise ValueError(
                f"{file} holds {len(index)} codes of {index.index.d} bits, the manifest says "
                f"{manifest['count']} of {index.bits}: save the index again"
            )
        return index

    @property
    def options(self) -> dict[str, int | None]:
        """The options of the kind as they are now; those that training will choose are None before it."""
        return dict(self._options)

    @property
    def model(self) -> str | None:
        """The ``model_id``; this is its old name."""
        warnings.warn(f"{type(self).__name__}.model is now model_id", DeprecationWarning, stacklevel=2)
        return self.model_id

    def __len__(self) -> int:
        return 0 if self.index is None else int(self.index.ntotal)

    def __repr__(self) -> str:
        options = "".join(f", {name}={value}" for name, value in self._options.items())
        return f"FaissIndex(bits={self.bits}, kind={self.kind!r}, size={len(self)}{options})"

    def _empty(self, faiss: Any) -> Any:
        """The FAISS index of any kind but ``ivf``."""
        width, options = 8 * _width(self.bits), self._options
        if self.kind == "flat":
            return faiss.IndexBinaryFlat(width)
        if self.kind == "hnsw":
            index = faiss.IndexBinaryHNSW(width, options["links"])
            index.hnsw.efConstruction, index.hnsw.efSearch = options["ef_construction"], options["ef_search"]
            return index
        index = faiss.IndexBinaryMultiHash(width, options["nhash"], options["hash_bits"])
        index.nflip = options["nflip"]
        return index

    def _train(self, packed: Array) -> None:
        """Make the inverted file with lists around the centres of ``packed``."""
        faiss, size = _faiss(), len(packed)
        nlist = self._options["nlist"]
        if nlist is None:
            nlist = max(1, min(round(4 * size**0.5), size // _FEWEST))
        if nlist > size:
            raise ValueError(f"nlist={nlist} lists need as many codes to train, got {size}: give more codes")
        self._options |= {"nlist": nlist, "nprobe": self._options["nprobe"] or max(16, nlist // 32)}
        width = 8 * _width(self.bits)
        lists = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(width), width, nlist)
        lists.cp.min_points_per_centroid = 1  # a warning of C++ on the terminal
        # FAISS would make floats of all codes before it takes its sample.
        most = _MOST * nlist
        sample = packed[np.random.default_rng(0).permutation(size)[:most]] if size > most else packed
        lists.train(np.ascontiguousarray(sample))
        self.index = faiss.IndexBinaryIDMap(lists)
        self._apply_options()

    def _apply_options(self) -> None:
        base = _faiss().downcast_IndexBinary(self.index.index)
        if self.kind == "ivf":
            base.nprobe = self._options["nprobe"]
        elif self.kind == "hnsw":
            base.hnsw.efSearch = self._options["ef_search"]
        elif self.kind == "multihash":
            base.nflip = self._options["nflip"]

    def _ids(self) -> Array:
        """A view of the ids in the index."""
        if len(self) == 0:
            return np.empty(0, np.int64)
        held = self.index.id_map
        view: Array = _faiss().rev_swig_ptr(held.data(), held.size())
        return view

    def _within(self, query: Array, radius: int) -> tuple[Array, Array]:
        """Distances and ids of one query up to ``radius``, by search for more and more neighbours."""
        k = min(128, len(self))
        while True:
            distances, ids = (found[0] for found in self.index.search(query[None], k))
            inside = (ids >= 0) & (distances <= radius)
            if not inside.all() or k == len(self):
                return distances[inside], ids[inside]
            k = min(4 * k, len(self))


def _checked_options(bits: int, kind: str, given: dict[str, int | None]) -> dict[str, int | None]:
    """The options of a kind: what was given, else its default."""
    if kind not in _OPTIONS:
        raise ValueError(f"unknown kind {kind!r} of FAISS index: use {', '.join(map(repr, _OPTIONS))}")
    for name, value in given.items():
        if name not in _OPTIONS[kind]:
            owner = next(other for other, names in _OPTIONS.items() if name in names)
            raise ValueError(f"{name} is an option of kind {owner!r}, but kind={kind!r} was given")
        if value is not None:
            check_integer(name, value, *_RANGES.get(name, (1, None)))
    options = _OPTIONS[kind] | given
    if kind == "multihash":
        hash_bits = given.get("hash_bits") or min(16, bits)
        nhash = given.get("nhash") or max(1, bits // hash_bits)
        if nhash * hash_bits > bits:
            raise ValueError(
                f"nhash={nhash} tables of hash_bits={hash_bits} need more than the {bits} bits of the codes: "
                "use fewer"
            )
        options |= {"hash_bits": hash_bits, "nhash": nhash}
    return options


def _width(bits: int) -> int:
    return -(-bits // 8)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError("FaissIndex needs FAISS: pip install hybridhash[faiss]") from error
    return faiss
