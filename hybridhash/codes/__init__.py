"""Binary codes: packing, exact Hamming distances and top-k, and the HashCodes container.

Everywhere in the package ``packed`` codes are ``uint8 (N, ceil(bits / 8))``: big-endian inside a byte as
:func:`numpy.packbits` writes them, padded on the right with zero bits. Bit 1 means ``code > 0``; a code of
exactly 0 is bit 0. This is the layout that FAISS, usearch (``b1``), Milvus and pgvector take.
"""

from hybridhash._code_checks import MAX_BITS
from hybridhash._code_files import tensor_bytes, write_codes
from hybridhash.codes.hamming import hamming_distance, hamming_topk
from hybridhash.codes.hash_codes import HashCodes, check_joinable, read_codes
from hybridhash.codes.packing import (
    as_packed,
    as_packed_pair,
    binarize,
    correction_factors,
    pack_codes,
    sign,
    straight_through_sign,
    unpack_codes,
)

__all__ = [
    "MAX_BITS",
    "HashCodes",
    "as_packed",
    "as_packed_pair",
    "binarize",
    "check_joinable",
    "correction_factors",
    "hamming_distance",
    "hamming_topk",
    "pack_codes",
    "read_codes",
    "sign",
    "straight_through_sign",
    "tensor_bytes",
    "unpack_codes",
    "write_codes",
]
