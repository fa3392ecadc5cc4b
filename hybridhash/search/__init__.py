"""Search in engines of others, behind one small interface: FAISS on one machine, Milvus on a cluster.

:class:`SearchIndex` is what every backend can do; a program that uses nothing else moves from one machine to
a cluster by another constructor. The engines are optional: ``pip install hybridhash[faiss]`` or
``hybridhash[milvus]``. For up to a million codes :func:`hybridhash.hamming_topk` needs no index at all.
"""

from hybridhash.search.faiss import FaissIndex
from hybridhash.search.interface import SearchIndex
from hybridhash.search.milvus import MilvusIndex

__all__ = ["FaissIndex", "MilvusIndex", "SearchIndex"]
