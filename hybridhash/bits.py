"""Moved to :mod:`hybridhash.codes`."""

from hybridhash._moved import moved

__getattr__ = moved(
    __name__,
    {
        "MAX_BITS": "hybridhash.codes.MAX_BITS",
        "binarize": "hybridhash.codes.binarize",
        "pack_bits": "hybridhash._hamming.pack_bits",
        "pack_codes": "hybridhash.codes.pack_codes",
        "unpack_bits": "hybridhash._hamming.unpack_bits",
        "unpack_codes": "hybridhash.codes.unpack_codes",
    },
)
