"""FAISS's HNSW for codes of which many may be equal."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from hybridhash.search.sorted_pairs import Array, SortedPairs

__all__ = ["CodeGraph", "append", "faiss", "view"]

# Any, because its own types lack most of what is used here; None if it is not installed.
faiss: Any = import_module("faiss") if find_spec("faiss") else None

# A scan of so few codes takes no longer than a walk through the graph, and it is exact. A graph of few codes
# that are far from one another, such as the centers of classes, has nodes to which no link leads.
_SCANNED = 1 << 16


class CodeGraph:
    """A graph with one node for each distinct code, and the rows of equal codes in a bucket.

    Equal codes as nodes of their own are all the nearest neighbours of one another. They fill their lists of
    links, and no path leads from them to other codes: with 500 codes at each of 100 places, a search finds a
    third of the nearest. Up to 65,536 distinct codes are compared one by one, which is exact.

    It has the methods of FAISS's ``IndexBinaryIDMap`` that ``FaissIndex`` needs.

    Args:
        index: The ``IndexBinaryHNSW``, with a node for each distinct code.
        ids: Ids of the rows that are in it, int64 ``(N,)``.
        nodes: The node of each of these rows, int64 ``(N,)``.

    Attributes:
        index: As given.
        id_map: Ids of the rows, an ``Int64Vector`` of FAISS.
        nodes: Nodes of the rows, an ``Int64Vector``.
    """

    def __init__(self, index: Any, ids: Array | None = None, nodes: Array | None = None) -> None:
        self.index = index
        self.d = index.d
        self._forget()
        if ids is not None and nodes is not None:
            self._know(self.codes(), np.arange(index.ntotal))
            self._append(ids, nodes)

    @property
    def ntotal(self) -> int:
        """The number of rows."""
        return int(self.id_map.size())

    def add_with_ids(self, packed: Array, ids: Array) -> None:
        """Add rows; only codes that the graph does not know become nodes."""
        distinct, first, inverse = np.unique(_keys(packed), return_index=True, return_inverse=True)
        nodes = np.full(len(distinct), -1)
        positions, known = self._nodes.find(distinct)
        nodes[positions] = known
        new = np.flatnonzero(nodes < 0)
        new = new[np.argsort(first[new])]  # as the codes came
        if len(new):
            nodes[new] = np.arange(self.index.ntotal, self.index.ntotal + len(new))
            codes = np.ascontiguousarray(packed[first[new]])
            self.index.add(codes)
            self._know(codes, nodes[new])
        self._append(ids, nodes[inverse])

    def search(self, query: Array, top_k: int) -> tuple[Array, Array]:
        """Return distances and ids of the ``top_k`` nearest rows of each query; ids are -1 beyond the last.

        Rows whose id in ``id_map`` is negative are among them, behind others at the same distance.
        """
        distances, rows = self.nearest_rows(query, top_k)
        return distances, np.where(rows < 0, -1, view(self.id_map)[rows])

    def nearest_rows(self, query: Array, top_k: int) -> tuple[Array, Array]:
        """Do the same, but return row numbers in place of ids."""
        few = self.index.ntotal <= _SCANNED
        engine = faiss.downcast_IndexBinary(self.index.storage) if few else self.index
        node_distances, nodes = engine.search(query, min(top_k, self.index.ntotal))
        distances = np.zeros((len(query), top_k), np.int64)
        rows = np.full((len(query), top_k), -1)
        for i in range(len(query)):
            found_distances, found = self._of_nodes(node_distances[i], nodes[i], top_k)
            distances[i, : len(found)] = found_distances
            rows[i, : len(found)] = found
        return distances, rows

    def reset(self) -> None:
        """Remove all rows and nodes."""
        self.index.reset()
        self._forget()

    def codes(self) -> Array:
        """Return a view of the codes of the nodes, uint8 ``(nodes, width)``."""
        storage = faiss.downcast_IndexBinary(self.index.storage)
        return view(storage.xb).reshape(-1, self.index.d // 8)

    def _forget(self) -> None:
        """Set what is known of rows and nodes to nothing."""
        self.id_map = faiss.Int64Vector()
        self.nodes = faiss.Int64Vector()
        self._sizes = faiss.Int64Vector()  # rows of each node
        self._rows = SortedPairs()  # of each node
        self._nodes = SortedPairs()  # of each code

    def _of_nodes(self, distances: Array, nodes: Array, top_k: int) -> tuple[Array, Array]:
        """Return distances and numbers of the ``top_k`` nearest rows of some nodes, nearest first."""
        distances, nodes = distances[nodes >= 0], nodes[nodes >= 0]
        sizes = view(self._sizes)[nodes]
        needed = np.cumsum(sizes) - sizes < top_k  # the nodes before it have too few rows
        positions, rows = self._rows.find(nodes[needed])
        distances, ids = distances[positions], view(self.id_map)[rows]
        order = np.lexsort((ids, ids < 0, distances))[:top_k]
        return distances[order], rows[order]

    def _know(self, codes: Array, nodes: Array) -> None:
        """Note the nodes of codes."""
        self._nodes.add(_keys(codes), nodes)
        append(self._sizes, np.zeros(len(nodes), np.int64))

    def _append(self, ids: Array, nodes: Array) -> None:
        """Note the ids and nodes of new rows."""
        self._rows.add(nodes, np.arange(self.ntotal, self.ntotal + len(ids)))
        append(self.id_map, ids)
        append(self.nodes, nodes)
        np.add.at(view(self._sizes), nodes, 1)


def append(vector: Any, values: Array) -> None:
    """Append values to a vector of FAISS, which grows by doubling."""
    size = vector.size()
    vector.resize(size + len(values))
    view(vector)[size:] = values


def view(vector: Any) -> Array:
    """Return a vector of FAISS as an array that shares its memory, until the vector grows."""
    if vector.size() == 0:  # it has no memory to point to
        return np.empty(0, faiss.vector_to_array(vector).dtype)
    shared: Array = faiss.rev_swig_ptr(vector.data(), vector.size())
    return shared


def _keys(packed: Array) -> Array:
    """Return packed codes as one value a row, which sorts as its bytes do."""
    # Zero bytes at the end do not count in these values, but all have the same length.
    packed = np.ascontiguousarray(packed)
    return packed.view(f"S{packed.shape[1]}").ravel()
