"""The kinds of FAISS index: their options, how they are made, trained, written and read, and their codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from hybridhash._checks import check_integer
from hybridhash.search.faiss_files import Write
from hybridhash.search.faiss_graph import CodeGraph, faiss, view
from hybridhash.search.sorted_pairs import Array

__all__ = [
    "apply_options",
    "checked_options",
    "nearest_codes",
    "new_index",
    "read_index",
    "row_ids",
    "stored_codes",
    "trained_lists",
    "writers",
]

_FEWEST, _MOST = 39, 64  # codes to train one list of an inverted file; FAISS asks for at least 39
# The options of each kind with their defaults. None: chosen from the number of codes.
_OPTIONS: dict[str, dict[str, int | None]] = {
    "flat": {},
    "ivf": {"nlist": None, "nprobe": None},
    "hnsw": {"links": 32, "ef_construction": 80, "ef_search": 128},
    "multihash": {"nhash": None, "hash_bits": None, "nflip": 1},
}
_RANGES = {"links": (2, None), "hash_bits": (1, 64), "nflip": (0, None)}


def checked_options(bits: int, kind: str, given: Mapping[str, int | None]) -> dict[str, int | None]:
    """Return the options of a kind: those given that are not None, else their defaults.

    Raises:
        TypeError, ValueError: The kind is unknown, or an option is out of range or of another kind.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if not isinstance(kind, str) or kind not in _OPTIONS:
        raise ValueError(f"unknown kind {kind!r} of FAISS index: use {', '.join(map(repr, _OPTIONS))}")
    for name, value in given.items():
        if name not in _OPTIONS[kind]:
            right = next(other for other, names in _OPTIONS.items() if name in names)
            raise ValueError(f"{name} is an option of kind {right!r}, but kind={kind!r} was given")
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


def new_index(bits: int, kind: str, options: Mapping[str, int | None]) -> Any:
    """Return an empty index of any kind but ``ivf``, whose lists need training."""
    width = _padded(bits)
    if kind == "flat":
        return faiss.IndexBinaryIDMap(faiss.IndexBinaryFlat(width))
    if kind == "hnsw":
        graph = faiss.IndexBinaryHNSW(width, options["links"])
        graph.hnsw.efConstruction = options["ef_construction"]
        graph.hnsw.efSearch = options["ef_search"]
        return CodeGraph(graph)
    tables = faiss.IndexBinaryMultiHash(width, options["nhash"], options["hash_bits"])
    tables.nflip = options["nflip"]
    return faiss.IndexBinaryIDMap(tables)


def trained_lists(
    bits: int, packed: Array, options: Mapping[str, int | None]
) -> tuple[Any, dict[str, int | None]]:
    """Return an empty inverted file with lists around the centres of ``packed``, and its options.

    Raises:
        ValueError: There are fewer codes than lists.
    """
    size = len(packed)
    nlist = options["nlist"]
    if nlist is None:
        nlist = max(1, min(round(4 * size**0.5), size // _FEWEST))
    if nlist > size:
        raise ValueError(f"nlist={nlist} lists need as many codes to train, got {size}: give more codes")
    width = _padded(bits)
    lists = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(width), width, nlist)
    lists.cp.min_points_per_centroid = 1  # or C++ prints a warning to the terminal
    # Sampled here, because FAISS would turn all codes into floats before it takes its own sample.
    most = _MOST * nlist
    sample = packed[np.random.default_rng(0).permutation(size)[:most]] if size > most else packed
    lists.train(np.ascontiguousarray(sample))
    chosen = {"nlist": nlist, "nprobe": options["nprobe"] or max(16, nlist // 32)}
    return faiss.IndexBinaryIDMap(lists), chosen


def apply_options(index: Any, kind: str, options: Mapping[str, int | None]) -> None:
    """Hand the options of search to an index."""
    base = faiss.downcast_IndexBinary(index.index)
    if kind == "ivf":
        base.nprobe = options["nprobe"]
    elif kind == "hnsw":
        base.hnsw.efSearch = options["ef_search"]
    elif kind == "multihash":
        base.nflip = options["nflip"]


def row_ids(index: Any) -> Array:
    """Return a view of the ids of all rows of an index, int64; it holds until rows are added."""
    return view(index.id_map)


def stored_codes(index: Any, kind: str, rows: Array) -> Array:
    """Return the packed codes of some rows of an index, uint8 ``(len(rows), width)``."""
    if kind == "hnsw":
        of_nodes: Array = index.codes()
        return of_nodes[view(index.nodes)[rows]]
    base = faiss.downcast_IndexBinary(index.index)
    width = base.d // 8
    if kind == "flat":
        return view(base.xb).reshape(-1, width)[rows]
    if kind == "multihash":
        return view(base.storage.xb).reshape(-1, width)[rows]
    codes = np.empty((base.ntotal, width), np.uint8)
    lists = base.invlists
    for number in range(base.nlist):
        size = lists.list_size(number)
        if size:
            members = faiss.rev_swig_ptr(lists.get_ids(number), size)
            content = faiss.rev_swig_ptr(lists.get_codes(number), size * width)
            codes[members] = content.reshape(size, width)
    return codes[rows]


def nearest_codes(index: Any, kind: str, query: Array, count: int) -> tuple[Array, Array]:
    """Return the rows of the ``count`` nearest codes of each query, and these codes, nearest first.

    Returns:
        ``(rows, packed)``: int64 ``(Nq, count)``, -1 where nothing was found, and uint8
        ``(Nq, count, width)``, anything there.
    """
    if kind == "hnsw":
        _, rows = index.nearest_rows(query, count)
        return rows, stored_codes(index, kind, rows)
    base = faiss.downcast_IndexBinary(index.index)
    if kind != "ivf":
        _, rows = base.search(query, count)
        return rows, stored_codes(index, kind, rows)
    # The codes are in the lists, which have no order by row, so FAISS takes them while it searches.
    distances = np.empty((len(query), count), np.int32)
    rows = np.empty((len(query), count), np.int64)
    packed = np.empty((len(query), count, base.d // 8), np.uint8)
    pointers = (faiss.swig_ptr(array) for array in (distances, rows, packed))
    base.search_and_reconstruct(len(query), faiss.swig_ptr(query), count, *pointers)
    return rows, packed


def writers(index: Any, kind: str) -> dict[str, Callable[[Write], object]]:
    """Return what writes each file of an index, by its ending."""

    def write_faiss(write: Write) -> None:
        # By a Python file, because FAISS's own does not report an error on closing it.
        own = index.index if kind == "hnsw" else index
        faiss.write_index_binary(own, faiss.PyCallbackIOWriter(write))

    def write_nodes(write: Write) -> None:
        write(view(index.id_map).tobytes())
        write(view(index.nodes).tobytes())

    return {"faiss": write_faiss, "nodes": write_nodes} if kind == "hnsw" else {"faiss": write_faiss}


def read_index(bits: int, kind: str, options: Mapping[str, int | None], files: Mapping[str, BinaryIO]) -> Any:
    """Return the index that :func:`writers` wrote; RuntimeError or ValueError if the content is damaged."""
    index = faiss.read_index_binary(faiss.PyCallbackIOReader(files["faiss"].read))
    if kind != "hnsw":
        return index
    if "nodes" in files:
        ids, nodes = np.frombuffer(files["nodes"].read(), np.int64).reshape(2, -1)
        return CodeGraph(index, ids, nodes)
    # In version 2, equal codes had a node each: build the graph again.
    graph = new_index(bits, kind, options)
    old = faiss.downcast_IndexBinary(faiss.downcast_IndexBinary(index.index).storage)
    graph.add_with_ids(view(old.xb).reshape(-1, index.d // 8), row_ids(index))
    return graph


def _padded(bits: int) -> int:
    """Return the bits of a packed code with those that pad its last byte."""
    return 8 * -(-bits // 8)
