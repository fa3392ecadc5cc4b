"""Moved to :mod:`hybridhash.encoding`."""

from hybridhash._moved import moved

__getattr__ = moved(
    __name__, {name: f"hybridhash.encoding.{name}" for name in ("open_codes", "read_failures")}
)
