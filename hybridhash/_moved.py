"""Old places of public names: each works for one release and warns with the new place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial, wraps
from importlib import import_module
from typing import Any, TypeVar

__all__ = ["moved", "renamed_arguments", "renamed_attribute"]

Function = TypeVar("Function", bound=Callable[..., Any])


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


def renamed_arguments(**names: str) -> Callable[[Function], Function]:
    """Return a decorator with which a function still takes keyword arguments by their old names and warns.

    Args:
        names: The new name of each old one.

    Example:
        >>> import pytest
        >>> @renamed_arguments(k="top_k")
        ... def nearest(items, top_k):
        ...     return sorted(items)[:top_k]
        >>> with pytest.deprecated_call(match="k= is now top_k="):
        ...     nearest([3, 1, 2], k=2)
        [1, 2]
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def with_old_names(*args: Any, **kwargs: Any) -> Any:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(f"{function.__qualname__}() got {old}= and {new}=, give {new}= only")
                warnings.warn(
                    f"{function.__qualname__}: {old}= is now {new}=", DeprecationWarning, stacklevel=2
                )
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return with_old_names  # type: ignore[return-value]

    return decorate


def renamed_attribute(old: str, new: str) -> property:
    """Return a property that reads an attribute by its old name and warns.

    Example:
        >>> import pytest
        >>> class Index:
        ...     model_id = "resnet50"
        ...     model = renamed_attribute("model", "model_id")
        >>> with pytest.deprecated_call(match="Index.model is now Index.model_id"):
        ...     Index().model
        'resnet50'
    """

    def read(self: object) -> Any:
        owner = type(self).__name__
        warnings.warn(f"{owner}.{old} is now {owner}.{new}", DeprecationWarning, stacklevel=2)
        return getattr(self, new)

    return property(read, doc=f"Old name of :attr:`{new}`.")
