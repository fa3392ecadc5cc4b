"""Moved to :mod:`hybridhash.encoding`."""

from hybridhash._moved import moved

__getattr__ = moved(
    __name__,
    {
        "Failure": "hybridhash.encoding.Failure",
        "Manifest": "hybridhash.encoding.Manifest",
        "Rows": "hybridhash.encoding.manifest.Rows",
        "ShardFolder": "hybridhash.encoding.shards.ShardFolder",
        "open_codes": "hybridhash.encoding.open_codes",
        "read_failures": "hybridhash.encoding.read_failures",
    },
)
