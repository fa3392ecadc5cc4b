"""Old places of public names: they work for one release, with a warning that gives the new place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["moved"]


def moved(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` that finds moved names and warns.

    Args:
        module: name of the module that the names have left.
        names: new place of each old name, as ``"package.module.name"``.

    Example:
        >>> import pytest
        >>> find = moved("hybridhash.shards", {"open_codes": "hybridhash.encoding.open_codes"})
        >>> with pytest.deprecated_call(match="is now hybridhash.encoding.open_codes"):
        ...     find("open_codes").__name__
        'open_codes'
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now {names[name]}", DeprecationWarning, stacklevel=2)
        place, _, new_name = names[name].rpartition(".")
        return getattr(import_module(place), new_name)

    return find
