"""Adapters for FAISS (one machine) and Milvus (a cluster).

Both have the interface :class:`SearchIndex`, so to change engines, change the constructor. The engines are
optional: ``pip install hybridhash[faiss]`` or ``hybridhash[milvus]``. Up to a million codes,
:func:`hybridhash.hamming_topk` needs no index.
"""

from hybridhash.search.faiss import FaissIndex
from hybridhash.search.interface import SearchIndex
from hybridhash.search.milvus import MilvusIndex

__all__ = ["FaissIndex", "MilvusIndex", "SearchIndex"]
