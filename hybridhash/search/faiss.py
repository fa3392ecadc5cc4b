"""FAISS: exact and approximate search in the memory of one machine."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from hybridhash._checks import check_integer
from hybridhash._files import replacing
from hybridhash._moved import renamed_arguments, renamed_attribute
from hybridhash.codes import MAX_BITS, HashCodes
from hybridhash.search.interface import (
    Array,
    as_ranges,
    check_held,
    check_model_id,
    check_replaceable,
    nearest_first,
    new_rows,
    query_rows,
    read_manifest,
    result_count,
    write_manifest,
)

__all__ = ["FaissIndex"]

_CHUNK = 1 << 20  # codes handed to FAISS at a time, so that memory-mapped codes are read in pieces
_FEWEST, _MOST = 39, 64  # codes to train one list of an inverted file; FAISS asks for at least 39
# The options of each kind with their defaults. None: chosen from the number of codes.
_OPTIONS: dict[str, dict[str, int | None]] = {
    "flat": {},
    "ivf": {"nlist": None, "nprobe": None},
    "hnsw": {"links": 32, "ef_construction": 80, "ef_search": 128},
    "multihash": {"nhash": None, "hash_bits": None, "nflip": 1},
}
# The files of saved indexes, and what is left of them if a save is killed.
_OUR_FILES = re.compile(r"index-[0-9a-f]{16}\.faiss|\.index-[0-9a-f]{16}\.faiss\.[0-9a-f]{16}\.tmp")
_RANGES = {"links": (2, None), "hash_bits": (1, 64), "nflip": (0, None)}


class _SharedLock:
    """A lock that many readers hold together, or one writer alone; waiting writers go first."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._writers = 0  # at work or waiting

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: self._writers == 0)
            self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                self._condition.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        with self._condition:
            self._writers += 1
            try:
                # From here on the condition itself keeps other writers out.
                self._condition.wait_for(lambda: self._readers == 0)
                yield
            finally:
                self._writers -= 1
                self._condition.notify_all()


class FaissIndex:
    """A :class:`SearchIndex` on a binary index of FAISS (extra ``faiss``).

    ``flat`` is exact: its distances are those of :func:`hybridhash.hamming_topk`. The other kinds look at a
    part of the codes. How much they miss depends on the codes, so measure it on yours;
    ``benchmarks/search.py`` shows how. FAISS uses all cores; ``faiss.omp_set_num_threads`` limits it.

    Codes and queries of any length are padded with zero bits to whole bytes, which changes no distance. Ids
    have 64 bits. An id occurs once: adding one that the index holds raises, and adds nothing.

    Threads may share an index: searches run side by side, and wait while codes are added.

    Args:
        bits: Code length, 1 to 512.
        kind: ``"flat"``, ``"ivf"`` (inverted lists around trained centres), ``"hnsw"`` (a graph of
            neighbours) or ``"multihash"`` (tables of substrings of the codes).
        model_id: Name of the model that gives the codes, any text; kept in the manifest and compared.
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
        index: The FAISS index, an ``IndexBinaryIDMap`` around the index of the kind; None before training.

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
        given = {name: value for name, value in options.items() if value is not None}
        self.bits = bits
        self.kind = kind
        self.model_id = model_id
        self._options = _checked_options(bits, kind, given)
        self._lock = _SharedLock()
        faiss = _faiss()
        # The lists of an inverted file are made once the number of training codes is known.
        self.index: Any = None if kind == "ivf" else faiss.IndexBinaryIDMap(self._empty(faiss))

    @renamed_arguments(model="model_id")
    def add(self, codes: Tensor | HashCodes, *, model_id: str | None = None) -> None:
        """Add codes under their ids; codes without ids are numbered from ``len(index)`` on.

        The first codes train an ``ivf`` index unless :meth:`train` was called before.

        Raises:
            TypeError, ValueError: The codes have other bits, another model or NaN, or an id is negative,
                occurs twice or is in the index already. Nothing is added then.
        """
        packed, ids = new_rows(codes, self.bits, self.model_id, model_id)
        if len(packed) == 0:
            return
        with self._lock.writing():
            size = len(self)
            ids = np.arange(size, size + len(packed)) if ids is None else ids
            check_held(ids, self._ids())
            if self.index is None:
                self._train(packed)
            for start in range(0, len(packed), _CHUNK):
                rows = slice(start, start + _CHUNK)
                self.index.add_with_ids(np.ascontiguousarray(packed[rows]), np.ascontiguousarray(ids[rows]))

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
        packed, _ = new_rows(codes, self.bits, self.model_id, model_id)
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
            self._options = _checked_options(self.bits, self.kind, {**self._options, **given})
            if self.index is not None:
                self._apply_options()

    @renamed_arguments(k="top_k", model="model_id")
    def search(
        self, codes: Tensor | HashCodes, top_k: int | None, *, model_id: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Find the ``top_k`` nearest codes of each query, as :meth:`SearchIndex.search` describes.

        Raises:
            TypeError, ValueError: ``top_k`` is below 1, the index is empty, there is no query, or the codes
                have other bits or another model.
        """
        query = query_rows(codes, self.bits, len(self), self.model_id, model_id)
        with self._lock.reading():
            distances, ids = self.index.search(query, result_count(top_k, len(self)))
        return nearest_first(distances, ids, self.bits)

    @renamed_arguments(model="model_id")
    def range_search(
        self, codes: Tensor | HashCodes, radius: int, *, model_id: str | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find all codes within ``radius``, as :meth:`SearchIndex.range_search` describes.

        An approximate index misses the codes that it does not look at. FAISS's ``hnsw`` has no search by
        radius: it is asked for more and more neighbours until they are farther than ``radius``.

        Raises:
            TypeError, ValueError: ``radius`` is below 0; otherwise as in :meth:`search`.
        """
        query = query_rows(codes, self.bits, len(self), self.model_id, model_id)
        radius = min(check_integer("radius", radius, 0), self.bits)
        with self._lock.reading():
            if self.kind == "hnsw":
                return as_ranges([self._within(row, radius) for row in query], self.bits)
            # FAISS means "nearer than", we mean "at most".
            limits, distances, ids = self.index.range_search(query, radius + 1)
        parts = [slice(start, stop) for start, stop in pairwise(limits)]
        return as_ranges([(distances[part], ids[part]) for part in parts], self.bits)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index to ``folder``: the file of FAISS, and a ``manifest.json`` that names it.

        The manifest is written last and replaces an older one atomically, so a failure at any moment leaves
        the older save as it was. What an interrupted save left is removed.

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
        faiss = _faiss()
        folder = Path(folder)
        check_replaceable(folder)
        folder.mkdir(exist_ok=True)
        file = folder / f"index-{secrets.token_hex(8)}.faiss"
        digest = hashlib.sha256()
        try:
            with self._lock.reading(), replacing(file) as temporary, open(temporary, "wb") as opened:

                def write(block: bytes) -> int:
                    digest.update(block)
                    return opened.write(block)

                # By a Python file, because FAISS's own does not report an error on closing it.
                faiss.write_index_binary(self.index, faiss.PyCallbackIOWriter(write))
                count = len(self)
            manifest = {
                "file": file.name,
                "bytes": file.stat().st_size,
                "sha256": digest.hexdigest(),
                "count": count,
                "bits": self.bits,
                "kind": self.kind,
                "model_id": self.model_id,
                "options": self._options,
            }
            write_manifest(folder, "faiss", manifest)
        except Exception as error:
            file.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise
            raise OSError(f"cannot write {file}: {error}") from error
        for other in folder.iterdir():
            if other != file and _OUR_FILES.fullmatch(other.name):
                other.unlink(missing_ok=True)

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

        Raises:
            ImportError: FAISS is not installed.
            FileNotFoundError: The folder has no manifest, or the file that it names is missing.
            ValueError: The files are damaged or do not fit together, or the index is of other bits or another
                model.
        """
        manifest, opened = _open_saved(folder)
        file = opened.name
        with opened:
            if bits is not None and bits != manifest["bits"]:
                raise ValueError(
                    f"the index at {folder} holds codes of {manifest['bits']} bits, not of {bits}"
                )
            check_model_id(manifest["model_id"], model_id)
            _check_saved(opened, manifest)
            index = cls(manifest["bits"], manifest["kind"], model_id=manifest["model_id"])
            index._options = manifest["options"]
            faiss = _faiss()
            try:
                index.index = faiss.read_index_binary(faiss.PyCallbackIOReader(opened.read))
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
        """The options of the kind; those that training chooses are None before it."""
        return dict(self._options)

    def __len__(self) -> int:
        return 0 if self.index is None else int(self.index.ntotal)

    def __repr__(self) -> str:
        options = "".join(f", {name}={value}" for name, value in self._options.items())
        return f"FaissIndex(bits={self.bits}, kind={self.kind!r}, size={len(self)}{options})"

    def _empty(self, faiss: Any) -> Any:
        """Return an empty FAISS index of any kind but ``ivf``."""
        options = self._options
        width = 8 * _width(self.bits)
        if self.kind == "flat":
            return faiss.IndexBinaryFlat(width)
        if self.kind == "hnsw":
            index = faiss.IndexBinaryHNSW(width, options["links"])
            index.hnsw.efConstruction = options["ef_construction"]
            index.hnsw.efSearch = options["ef_search"]
            return index
        index = faiss.IndexBinaryMultiHash(width, options["nhash"], options["hash_bits"])
        index.nflip = options["nflip"]
        return index

    def _train(self, packed: Array) -> None:
        """Make the inverted file with lists around the centres of ``packed``."""
        faiss = _faiss()
        size = len(packed)
        nlist = self._options["nlist"]
        if nlist is None:
            nlist = max(1, min(round(4 * size**0.5), size // _FEWEST))
        if nlist > size:
            raise ValueError(f"nlist={nlist} lists need as many codes to train, got {size}: give more codes")
        self._options |= {"nlist": nlist, "nprobe": self._options["nprobe"] or max(16, nlist // 32)}
        width = 8 * _width(self.bits)
        lists = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(width), width, nlist)
        lists.cp.min_points_per_centroid = 1  # or C++ prints a warning to the terminal
        # Sampled here, because FAISS would turn all codes into floats before it takes its own sample.
        most = _MOST * nlist
        sample = packed[np.random.default_rng(0).permutation(size)[:most]] if size > most else packed
        lists.train(np.ascontiguousarray(sample))
        self.index = faiss.IndexBinaryIDMap(lists)
        self._apply_options()

    def _apply_options(self) -> None:
        """Hand the options of search to the FAISS index."""
        base = _faiss().downcast_IndexBinary(self.index.index)
        if self.kind == "ivf":
            base.nprobe = self._options["nprobe"]
        elif self.kind == "hnsw":
            base.hnsw.efSearch = self._options["ef_search"]
        elif self.kind == "multihash":
            base.nflip = self._options["nflip"]

    def _ids(self) -> Array:
        """Return a view of the ids in the index."""
        if len(self) == 0:
            return np.empty(0, np.int64)
        ids = self.index.id_map
        view: Array = _faiss().rev_swig_ptr(ids.data(), ids.size())
        return view

    def _within(self, query: Array, radius: int) -> tuple[Array, Array]:
        """Return distances and ids of one query within ``radius``, by search for ever more neighbours."""
        top_k = min(128, len(self))
        while True:
            distances, ids = self.index.search(query[None], top_k)
            inside = (ids >= 0) & (distances <= radius)
            if not inside.all() or top_k == len(self):
                return distances[inside], ids[inside]
            top_k = min(4 * top_k, len(self))


def _checked_options(bits: int, kind: str, given: Mapping[str, int | None]) -> dict[str, int | None]:
    """Return the options of a kind: those given, else their defaults."""
    if kind not in _OPTIONS:
        raise ValueError(f"unknown kind {kind!r} of FAISS index: use {', '.join(map(repr, _OPTIONS))}")
    for name, value in given.items():
        if name not in _OPTIONS[kind]:
            right = next(other for other, names in _OPTIONS.items() if name in names)
            raise ValueError(f"{name} is an option of kind {right!r}, but kind={kind!r} was given")
        if value is not None:
            check_integer(name, value, *_RANGES.get(name, (1, None)))
    options = {**_OPTIONS[kind], **given}
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


def _open_saved(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], BinaryIO]:
    """Return the manifest of a saved index and the file that it names, opened."""
    keys = ("file", "bytes", "count", "bits", "kind", "model_id", "options")
    manifest = read_manifest(folder, "faiss", keys)
    while True:
        file = Path(folder) / manifest["file"]
        try:
            return manifest, open(file, "rb")
        except FileNotFoundError:
            newer = read_manifest(folder, "faiss", keys)
            if newer == manifest:
                raise FileNotFoundError(
                    f"{file} is missing, which the manifest names: save the index again"
                ) from None
            manifest = newer  # another process saved in between


def _check_saved(opened: BinaryIO, manifest: Mapping[str, Any]) -> None:
    """Raise ValueError unless a file has the size and the SHA-256 of its manifest; leave it at its start."""
    size = os.fstat(opened.fileno()).st_size
    if size != manifest["bytes"]:
        raise ValueError(
            f"{opened.name} is truncated or foreign: it has {size:,} bytes, the manifest says "
            f"{manifest['bytes']:,}. Save the index again"
        )
    if "sha256" in manifest:  # not in the first version
        digest = hashlib.sha256()
        while block := opened.read(1 << 20):
            digest.update(block)
        if digest.hexdigest() != manifest["sha256"]:
            raise ValueError(f"{opened.name} is damaged, its SHA-256 is another: save the index again")
        opened.seek(0)


def _width(bits: int) -> int:
    """Return the number of bytes of a packed code."""
    return -(-bits // 8)


def _faiss() -> Any:
    """Return the module of FAISS; raise ImportError, naming the extra, if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError("FaissIndex needs FAISS: pip install hybridhash[faiss]") from error
    return faiss
