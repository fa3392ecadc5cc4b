"""Old names and places of public things: each works for one release and warns with the new one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial, wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

__all__ = ["moved", "renamed_arguments"]

T = TypeVar("T")
P = ParamSpec("P")


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


def renamed_arguments(**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator that takes old names of keyword arguments, with a warning.

    Args:
        names: The new name of each old name.

    Example:
        >>> import pytest
        >>> @renamed_arguments(k="top_k")
        ... def search(top_k):
        ...     return top_k
        >>> with pytest.deprecated_call(match="k= of search is now top_k="):
        ...     search(k=5)
        5
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def renaming(*args: P.args, **kwargs: P.kwargs) -> T:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(f"{function.__name__} got {old}= and {new}=, its name now: give {new}=")
                message = f"{old}= of {function.__name__} is now {new}="
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return renaming

    return decorate
