"""Checks of arguments, shared by all rooms: an error names the argument, its value and what is wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch

__all__ = [
    "check_choice",
    "check_flags",
    "check_integer",
    "check_not_negative",
    "check_number",
    "check_positive",
    "generator_device",
]


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if getattr(value, "ndim", 0) or value not in choices:  # an array equals a choice place by place
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_flags(**values: object) -> None:
    """Raise TypeError unless every named value is True or False: ``"no"`` and ``[0]`` count as true."""
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def check_integer(name: str, value: object, least: int, most: int | None = None, *, advice: str = "") -> int:
    """Return ``value`` as an int if it is an integer from ``least`` to ``most``; NumPy's are, bools are not.

    Raises:
        TypeError: ``value`` is not an integer.
        ValueError: ``value`` is out of range. Both messages end with ``advice``.

    Example:
        >>> check_integer("top_k", 0, 1, advice="use None for the whole database")
        Traceback (most recent call last):
        ValueError: top_k must be >= 1, got 0: use None for the whole database
    """
    limits = f">= {least}" if most is None else f"{least} to {most}"
    advice = advice and f": {advice}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int {limits}, got {value!r}{advice}")
    number = int(value)
    if number < least or (most is not None and number > most):
        raise ValueError(f"{name} must be {limits}, got {number}{advice}")
    return number


def check_positive(**values: float) -> None:
    """Raise unless every named value is a finite number above 0."""
    for name, value in values.items():
        check_number(name, value)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be a positive number, got {value}")


def check_not_negative(**values: float) -> None:
    """Raise unless every named value is a finite number of 0 or more."""
    for name, value in values.items():
        check_number(name, value)
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be 0 or a positive number, got {value}")


def check_number(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is one number, no bool; a tensor or an array of one will do."""
    if isinstance(value, bool) or not hasattr(value, "__float__") or getattr(value, "ndim", False):
        raise TypeError(f"{name} must be a number, got {value!r}")


def generator_device(generator: torch.Generator | None) -> torch.device:
    """Return the device on which random numbers are to be drawn: the generator's, or the CPU without one.

    Raises:
        TypeError: ``generator`` is something else, such as a seed.
    """
    if generator is None:
        return torch.device("cpu")
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator or None, got {generator!r}: make one of a seed with "
            "torch.Generator().manual_seed(seed)"
        )
    return generator.device
