"""FAISS: exact and approximate search in the memory of one machine."""

from __future__ import annotations

import json
import os
import threading
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from hybridhash._checks import check_integer
from hybridhash._moved import renamed_arguments, renamed_attribute
from hybridhash.codes import MAX_BITS, HashCodes, hamming_distance, hamming_topk
from hybridhash.search.faiss_files import Write, open_files, save_files
from hybridhash.search.ids import Ids, as_numbers, first_few, name_numbers, named, not_held
from hybridhash.search.interface import (
    as_ranges,
    check_model_id,
    nearest_first,
    new_rows,
    query_rows,
    real_queries,
    rescored,
    result_count,
)
from hybridhash.search.manifest import check_content
from hybridhash.search.shared_lock import SharedLock
from hybridhash.search.sorted_pairs import Array, SortedPairs

__all__ = ["FaissIndex"]

_CHUNK = 1 << 20  # codes handed to FAISS at a time, so that memory-mapped codes are read in pieces
_REMOVED = -2  # the id of a row that was removed; FAISS's -1 means that it found nothing


class FaissIndex:
    """A :class:`SearchIndex` on a binary index of FAISS (extra ``faiss``).

    ``flat`` is exact: its distances are those of :func:`hybridhash.hamming_topk`. The other kinds look at a
    part of the codes. How much they miss depends on the codes, so measure it on yours;
    ``benchmarks/search.py`` shows how. FAISS uses all cores; ``faiss.omp_set_num_threads`` limits it.

    Codes and queries of any length are padded with zero bits to whole bytes, which changes no distance. Ids
    have 64 bits. An id occurs once: adding one that the index holds raises, and adds nothing.

    ``hnsw`` has one node for each distinct code, so many equal codes do not lower its recall. Up to 65,536
    distinct codes it compares them all, which is exact.

    A removed code stays in memory, and is passed over by searches, until more than half of the codes are
    removed. Then :meth:`remove` builds the index of the others again, which takes as long as adding them did.

    Threads may share an index: searches run side by side, and wait while codes are added or removed.

    Args:
        bits: The code length, 1 to 4,096. Codes are padded to whole bytes: FAISS takes multiples of 8 only.
        kind: ``"flat"``, ``"ivf"`` (inverted lists around trained centres), ``"hnsw"`` (a graph of
            neighbours) or ``"multihash"`` (tables of substrings of the codes).
        model_id: The name of the model that gives the codes, any text; kept in the manifest and compared.
        nlist: For ivf, the number of lists. By default 4 times the square root of the number of training
            codes.
        nprobe: For ivf, the number of lists searched for each query. By default a 32nd of them, at least 16.
        links: For hnsw, the neighbours of each code in the graph (FAISS's ``M``). By default 32.
        ef_construction: For hnsw, the candidates kept while the graph is built. By default 80.
        ef_search: For hnsw, the candidates kept while it is searched, at least ``top_k``. By default 128.
        nhash: For multihash, the number of tables. By default as many as fit, ``bits // hash_bits``.
        hash_bits: For multihash, the bits of the substring of each table. By default 16, or all if fewer.
        nflip: For multihash, the largest distance of a substring that is searched to that of the query. By
            default 1.

    Attributes:
        index: The FAISS index: an ``IndexBinaryIDMap`` around the index of the kind, for hnsw a
            :class:`hybridhash.search.faiss_graph.CodeGraph`; None before training.

    Raises:
        ImportError: FAISS is not installed.
        TypeError, ValueError: ``bits`` or an option is out of range, the kind is unknown, or an option
            belongs to another kind.

    Example:
        >>> import torch
        >>> index = FaissIndex(bits=3)
        >>> index.add(torch.tensor([[0.9, 0.2, -0.1], [0.9, -0.3, -0.4], [-1.0, -1.0, 1.0]]))
        >>> index.search(torch.tensor([[1.0, -1.0, -1.0]]), top_k=2)
        (tensor([[0, 1]], dtype=torch.int16), tensor([[1, 0]]))
        >>> index.range_search(torch.tensor([[1.0, -1.0, -1.0]]), radius=0)
        (tensor([0, 1]), tensor([0], dtype=torch.int16), tensor([1]))
    """

    model = renamed_attribute("model", "model_id")

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
        options = {
            "nlist": nlist,
            "nprobe": nprobe,
            "links": links,
            "ef_construction": ef_construction,
            "ef_search": ef_search,
            "nhash": nhash,
            "hash_bits": hash_bits,
            "nflip": nflip,
        }
        kinds = _kinds()
        self.bits = bits
        self.kind = kind
        self.model_id = model_id
        self._options = kinds.checked_options(bits, kind, options)
        self._lock = SharedLock()
        self._saving = threading.Lock()
        # The lists of an inverted file are made once the number of training codes is known.
        self.index: Any = None if kind == "ivf" else kinds.new_index(bits, kind, self._options)
        self._names: dict[int, str] = {}  # of all ids, if they were given as strings
        self._next_id = 0  # larger than any id so far
        self._removed = 0  # rows of the FAISS index whose id is _REMOVED
        self._held = SortedPairs()  # ids and rows; the last rows may be missing

    @renamed_arguments(model="model_id")
    def add(self, codes: Tensor | HashCodes, *, ids: Ids | None = None, model_id: str | None = None) -> None:
        """Add codes under their ids; codes without ids are numbered on from the largest id so far.

        The first codes train an ``ivf`` index unless :meth:`train` was called before. Adding ``k`` codes
        costs O(k log n) comparisons of ids on average.

        Args:
            codes: Codes as :class:`SearchIndex` describes.
            ids: Their ids, which replace those in ``codes``: integers, or strings for all codes of the index.
            model_id: The model of the codes.

        Raises:
            TypeError, ValueError: The codes have other bits, another model or NaN, an id is negative, occurs
                twice or is in the index already, or the index has strings as ids and these are numbers, or
                the other way round. Nothing is added then.
        """
        packed, numbers, names = new_rows(codes, self.bits, self.model_id, model_id, ids)
        if len(packed) == 0:
            return
        with self._lock.writing():
            if len(self):
                self._check_kind_of_ids(names)
                if names is None and self._names:
                    raise ValueError("the index has strings as ids: give these codes ids= of str as well")
            numbers = self._new_numbers(len(packed)) if numbers is None else numbers
            self._check_not_held(numbers, names)
            if self.index is None:
                self._train(packed)
            self._append(packed, numbers)
            if names is not None:
                self._names.update(zip(numbers.tolist(), names, strict=True))
            self._next_id = max(self._next_id, int(numbers.max()) + 1)

    def remove(self, ids: Ids) -> None:
        """Remove the codes of these ids, in O(k log n) on average; their ids may be added again.

        Raises:
            TypeError, ValueError: An id occurs twice or is not in the index, or they are strings while those
                of the index are numbers. Nothing is removed then.

        Example:
            >>> index = FaissIndex(bits=2)
            >>> index.add(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), ids=["a.jpg", "b.jpg"])
            >>> index.remove(["a.jpg"])
            >>> distances, ids = index.search(torch.tensor([[1.0, 1.0]]), top_k=1)
            >>> index.names(ids)
            [['b.jpg']]
        """
        numbers, names = as_numbers(ids)
        with self._lock.writing():
            self._check_kind_of_ids(names)
            positions, rows = self._find(numbers)
            if len(np.unique(rows)) < len(numbers):
                missing = np.setdiff1d(np.arange(len(numbers)), positions)
                if len(missing) == 0:
                    raise ValueError(f"{len(numbers)} ids have repeated ones among them: give each id once")
                raise not_held("the index", numbers, names, missing)
            self._ids()[rows] = _REMOVED
            self._removed += len(rows)
            if self._names:
                for number in numbers.tolist():
                    del self._names[number]
            if self._removed > len(self):
                self._rebuild()

    def contains(self, ids: Ids) -> Tensor:
        """Return which of the ids the index holds: bool ``(len(ids),)``.

        Raises:
            TypeError, ValueError: They are no ids, or strings while those of the index are numbers.
        """
        numbers, names = as_numbers(ids)
        held = torch.zeros(len(numbers), dtype=torch.bool)
        with self._lock.writing():  # it completes the lookup table
            self._check_kind_of_ids(names)
            held[self._find(numbers)[0]] = True
        return held

    def names(self, ids: Tensor) -> list[Any]:
        """Return the strings of ids in a result, in lists as ``ids.tolist()`` gives; None for -1.

        Raises:
            ValueError: An id has no string, for instance because it was removed.
        """
        with self._lock.reading():
            return named(ids, self._names)

    @renamed_arguments(model="model_id")
    def train(self, codes: Tensor | HashCodes, *, model_id: str | None = None) -> None:
        """Train the lists of an ``ivf`` index on codes like those to come, without adding them.

        Call it if the first codes to be added are few, or unlike the rest (for instance sorted by class).

        Raises:
            TypeError, ValueError: The index is not an ``ivf`` index or is trained already, or the codes do
                not fit, as in :meth:`add`.
        """
        if self.kind != "ivf":
            raise ValueError(f"an index of kind {self.kind!r} needs no training, only 'ivf' does")
        packed, _, _ = new_rows(codes, self.bits, self.model_id, model_id)
        if len(packed) == 0:
            raise ValueError("codes is empty: training needs codes like those to come")
        with self._lock.writing():
            if self.index is not None:
                raise ValueError("the index is trained already: train a new one before adding codes")
            self._train(packed)

    def tune(
        self, *, nprobe: int | None = None, ef_search: int | None = None, nflip: int | None = None
    ) -> None:
        """Change how many codes an approximate index looks at: more finds more and takes longer.

        Raises:
            TypeError, ValueError: An option is out of range or belongs to another kind.
        """
        options = {"nprobe": nprobe, "ef_search": ef_search, "nflip": nflip}
        given = {name: value for name, value in options.items() if value is not None}
        with self._lock.writing():
            self._options = _kinds().checked_options(self.bits, self.kind, {**self._options, **given})
            if self.index is not None:
                _kinds().apply_options(self.index, self.kind, self._options)

    @renamed_arguments(k="top_k", model="model_id")
    def search(
        self,
        codes: Tensor | HashCodes,
        top_k: int | None,
        *,
        rescore: int = 1,
        among: Ids | None = None,
        model_id: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Find the ``top_k`` nearest codes of each query, as :meth:`SearchIndex.search` describes.

        The codes ``among`` some ids are compared one by one, so the result is exact with every kind, and so
        are the candidates if ``rescore`` is above 1.

        Raises:
            TypeError, ValueError: ``top_k`` or ``rescore`` is below 1, the index is empty, there is no query,
                the codes have other bits or another model, ``among`` are no ids as those of the index, or
                ``rescore`` is above 1 and the queries are packed or not finite.

        Example:
            >>> index = FaissIndex(bits=2)
            >>> index.add(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
            >>> query = torch.tensor([[0.1, 0.9]])
            >>> index.search(query, top_k=1)  # one bit differs from each
            (tensor([[1]], dtype=torch.int16), tensor([[0]]))
            >>> index.search(query, top_k=1, rescore=2)  # and that of the first is the surer one
            (tensor([[0.8000]]), tensor([[1]]))
        """
        rescore = check_integer("rescore", rescore, 1)
        with self._lock.reading():
            query = query_rows(codes, self.bits, len(self), self.model_id, model_id)
            values = real_queries(codes, rescore) if rescore > 1 else None
            if among is None:
                count = result_count(top_k, len(self))
                if values is None:
                    return self._nearest(query, count)
                ids, packed = self._candidates(query, min(rescore * count, len(self)))
                return rescored(values, packed, ids, count)
            chosen = self._codes_of(among)
        assert chosen.ids is not None
        count = result_count(top_k, len(chosen))
        if count == 0:
            first = torch.empty(len(query), 0, dtype=torch.int16 if values is None else torch.float32)
            return first, torch.empty(len(query), 0).long()
        reach = min(rescore * count, len(chosen))
        distances, rows = hamming_topk(HashCodes(torch.from_numpy(query), self.bits), chosen, reach)
        if values is None:
            return distances, chosen.ids[rows]
        return rescored(values, chosen.packed[rows].numpy(), chosen.ids[rows].numpy(), count)

    @renamed_arguments(model="model_id")
    def range_search(
        self,
        codes: Tensor | HashCodes,
        radius: int,
        *,
        among: Ids | None = None,
        model_id: str | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find all codes within ``radius``, as :meth:`SearchIndex.range_search` describes.

        An approximate index misses the codes that it does not look at, but not those ``among`` some ids.
        FAISS's ``hnsw`` has no search by radius: it is asked for more and more neighbours until they are
        farther than ``radius``.

        Raises:
            TypeError, ValueError: ``radius`` is below 0; otherwise as in :meth:`search`.
        """
        radius = min(check_integer("radius", radius, 0), self.bits)
        with self._lock.reading():
            query = query_rows(codes, self.bits, len(self), self.model_id, model_id)
            if among is not None:
                chosen = self._codes_of(among)
                return as_ranges([_within_codes(row, chosen, radius) for row in query], self.bits)
            if self.kind == "hnsw":
                return as_ranges([self._within(row, radius) for row in query], self.bits)
            # FAISS means "nearer than", we mean "at most".
            limits, distances, ids = self.index.range_search(query, radius + 1)
        parts = []
        for start, stop in pairwise(limits):
            held = ids[start:stop] >= 0  # not removed
            parts.append((distances[start:stop][held], ids[start:stop][held]))
        return as_ranges(parts, self.bits)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index to ``folder``: the file of FAISS, and a ``manifest.json`` that names it.

        An hnsw index has a second file with the ids and nodes of its codes, and string ids have one. The
        manifest is written last and replaces an older one atomically, so a failure at any moment leaves the
        older save as it was. What an interrupted save left is removed. One process may save to a folder at a
        time; others may load from it.

        Raises:
            ValueError: The index is empty.
            FileExistsError: The folder has a manifest of something else, such as encoded shards.
            OSError: The files cannot be written.

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

        def write_names(write: Write) -> None:
            write(json.dumps([self._names[number] for number in sorted(self._names)]).encode())

        with self._saving, self._lock.reading():
            content = {
                "count": len(self),
                "next_id": self._next_id,
                "bits": self.bits,
                "kind": self.kind,
                "model_id": self.model_id,
                "options": self._options,
            }
            parts = _kinds().writers(self.index, self.kind)
            if self._names:
                parts["names"] = write_names
            save_files(folder, parts, content)

    @classmethod
    @renamed_arguments(model="model_id")
    def load(
        cls, folder: str | os.PathLike[str], *, bits: int | None = None, model_id: str | None = None
    ) -> FaissIndex:
        """Read what :meth:`save` wrote, and check it by its SHA-256.

        Args:
            folder: The folder of :meth:`save`, into which another process may be saving.
            bits: The code length that the index must have. None means any.
            model_id: The model that the codes must come from. None means any.

        An hnsw index that an older version saved is built again, since there equal codes had a node each.

        Raises:
            ImportError: FAISS is not installed.
            FileNotFoundError: The folder has no manifest, or the file that it names is missing.
            ValueError: The files are damaged or do not fit together, or the index is of other bits or another
                model.
        """
        _kinds()  # FAISS is asked for first
        with open_files(folder) as (manifest, files):
            check_content(folder, manifest, bits, model_id)
            path = files["faiss"].name
            try:
                index = cls(manifest["bits"], manifest["kind"], model_id=manifest["model_id"])
                index._options = manifest["options"]
                index._read(files)
            except (RuntimeError, TypeError, ValueError) as error:
                raise ValueError(f"{path} is damaged ({error}): save the index again") from error
        if index.index.d != 8 * -(-index.bits // 8) or len(index) != manifest["count"]:
            raise ValueError(
                f"{path} holds {len(index)} codes of {index.index.d} bits, the manifest says "
                f"{manifest['count']} of {index.bits}: save the index again"
            )
        index._next_id = manifest.get("next_id", index._ids().max() + 1)
        return index

    @property
    def options(self) -> dict[str, int | None]:
        """The options of the kind; those that training chooses are None before it."""
        return dict(self._options)

    def __len__(self) -> int:
        return 0 if self.index is None else int(self.index.ntotal) - self._removed

    def __repr__(self) -> str:
        options = "".join(f", {name}={value}" for name, value in self._options.items())
        return f"FaissIndex(bits={self.bits}, kind={self.kind!r}, size={len(self)}{options})"

    def _train(self, packed: Array) -> None:
        """Make the inverted file with lists around the centres of ``packed``."""
        self.index, chosen = _kinds().trained_lists(self.bits, packed, self._options)
        self._options |= chosen
        _kinds().apply_options(self.index, self.kind, self._options)

    def _append(self, packed: Array, ids: Array) -> None:
        """Hand rows to FAISS."""
        for start in range(0, len(packed), _CHUNK):
            rows = slice(start, start + _CHUNK)
            self.index.add_with_ids(np.ascontiguousarray(packed[rows]), np.ascontiguousarray(ids[rows]))

    def _rebuild(self) -> None:
        """Build the index of the rows that were not removed again."""
        ids = self._ids()
        rows = np.flatnonzero(ids >= 0)
        ids = ids[rows]
        packed = _kinds().stored_codes(self.index, self.kind, rows)
        self.index.reset()
        self._removed = 0
        self._held = SortedPairs()
        self._append(packed, ids)

    def _ids(self) -> Array:
        """Return a view of the ids of all rows of the FAISS index."""
        return np.empty(0, np.int64) if self.index is None else _kinds().row_ids(self.index)

    def _new_numbers(self, count: int) -> Array:
        """Return ids for codes without: those after the largest so far."""
        if self._next_id + count > 2**63:
            raise ValueError(f"no numbers are left after the id {self._next_id - 1}: give the codes ids")
        return np.arange(self._next_id, self._next_id + count)

    def _find(self, ids: Array) -> tuple[Array, Array]:
        """Return the positions of those of ``ids`` that the index holds, and their rows."""
        all_ids = self._ids()
        known = len(self._held)
        if known < len(all_ids):
            self._held.add(all_ids[known:].copy(), np.arange(known, len(all_ids)))
        positions, rows = self._held.find(ids)
        held = all_ids[rows] == ids[positions]  # not removed
        return positions[held], rows[held]

    def _check_not_held(self, ids: Array, names: list[str] | None) -> None:
        """Raise ValueError if the index holds one of the ids of new codes."""
        if ids.min() >= self._next_id:
            return
        positions, _ = self._find(ids)
        if len(positions):
            known = np.sort(ids[positions]) if names is None else [names[row] for row in np.sort(positions)]
            raise ValueError(
                f"the index holds {len(known)} of these {len(ids)} ids already, {first_few(known)}: nothing "
                "was added. Remove them first, or give new ids (codes without are numbered)"
            )

    def _check_kind_of_ids(self, names: list[str] | None) -> None:
        """Raise ValueError if ids are strings but those of the index are numbers."""
        if names and len(self) and not self._names:
            raise ValueError(f"the index has numbers as ids, got the str {names[0]!r}: give numbers")

    def _codes_of(self, ids: Ids) -> HashCodes:
        """Return the codes of the index that have one of the ids, in the order of their ids."""
        numbers, names = as_numbers(ids)
        self._check_kind_of_ids(names)
        held = self._ids()
        rows = np.flatnonzero(np.isin(held, numbers))
        rows = rows[np.argsort(held[rows])]
        packed = _kinds().stored_codes(self.index, self.kind, rows)
        return HashCodes(torch.from_numpy(packed), self.bits, ids=torch.from_numpy(held[rows]))

    def _nearest(self, query: Array, count: int) -> tuple[Tensor, Tensor]:
        """Return the nearest rows of each query that were not removed."""
        reach = count
        while True:
            distances, ids = self.index.search(query, reach)
            enough = (ids != _REMOVED).sum(1).min() >= count
            if enough or reach == self.index.ntotal:
                distances, ids = nearest_first(distances, ids, self.bits)
                ids = ids.clamp(min=-1)
                return distances[:, :count].contiguous(), ids[:, :count].contiguous()
            reach = min(2 * reach, self.index.ntotal)

    def _candidates(self, query: Array, count: int) -> tuple[Array, Array]:
        """Return ids and codes of the ``count`` nearest rows of each query that were not removed."""
        reach = count
        while True:
            rows, packed = _kinds().nearest_codes(self.index, self.kind, query, reach)
            ids = np.where(rows < 0, -1, self._ids()[rows])
            if self._removed == 0:
                return ids, packed
            removed = ids == _REMOVED
            if (~removed).sum(1).min() >= count or reach == self.index.ntotal:
                break
            reach = min(2 * reach, self.index.ntotal)
        # A stable sort puts those removed last and leaves the others nearest first.
        order = np.argsort(removed, axis=1, kind="stable")[:, :count]
        ids = np.take_along_axis(ids, order, axis=1)
        return np.maximum(ids, -1), np.take_along_axis(packed, order[:, :, None], axis=1)

    def _within(self, query: Array, radius: int) -> tuple[Array, Array]:
        """Return distances and ids of one query within ``radius``, by search for ever more neighbours."""
        top_k = min(128, self.index.ntotal)
        while True:
            distances, ids = self.index.search(query[None], top_k)
            inside = (ids != -1) & (distances <= radius)
            if not inside.all() or top_k == self.index.ntotal:
                inside &= ids != _REMOVED
                return distances[inside], ids[inside]
            top_k = min(4 * top_k, self.index.ntotal)

    def _read(self, files: dict[str, BinaryIO]) -> None:
        """Take the content of the files of :meth:`save`."""
        self.index = _kinds().read_index(self.bits, self.kind, self._options, files)
        self._removed = int((self._ids() == _REMOVED).sum())
        if "names" in files:
            names = json.load(files["names"])
            self._names = dict(zip(name_numbers(names).tolist(), names, strict=True))


def _within_codes(query: Array, codes: HashCodes, radius: int) -> tuple[Array, Array]:
    """Return distances and ids of the codes within ``radius`` of one packed query."""
    assert codes.ids is not None
    if len(codes) == 0:
        return np.empty(0, np.int16), np.empty(0, np.int64)
    one = HashCodes(torch.from_numpy(query[None]), codes.bits)
    distances = hamming_distance(one, codes)[0].numpy()
    inside = distances <= radius
    return distances[inside], codes.ids.numpy()[inside]


def _kinds() -> Any:
    """Return the module on the kinds of FAISS; raise ImportError with the extra if FAISS is missing."""
    try:
        import faiss  # noqa: F401
    except ImportError as error:
        raise ImportError("FaissIndex needs FAISS: pip install hybridhash[faiss]") from error
    from hybridhash.search import faiss_kinds

    return faiss_kinds
