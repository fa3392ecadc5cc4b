"""Old places of public names: each works for one release and warns with the new place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

__all__ = ["moved"]


def moved(
    module: str, names: Mapping[str, str], settings: Mapping[str, Mapping[str, Any]] | None = None
) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` that finds moved names and warns.

    Args:
        module: The module that the names have left.
        names: The new place of each old name, as ``"package.module.name"``.
        settings: For names that also changed their defaults, the keyword arguments that keep the old ones.

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
        new_module, _, new_name = names[name].rpartition(".")
        found = getattr(import_module(new_module), new_name)
        old_settings = (settings or {}).get(name)
        return found if old_settings is None else partial(found, **old_settings)

    return find
