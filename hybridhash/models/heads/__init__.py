"""Hash heads: from the pooled embedding of an image to real-valued codes, as each method has it.

Every head maps ``(B, in_features)`` to ``(B, bits)``, and bit k is 1 where output k is positive, whatever
the paper's codes are: a sigmoid s becomes ``2 s - 1``. A loss made for (0, 1) takes ``(codes + 1) / 2``.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from typing import Any

from torch import nn

from hybridhash.models.heads.binary import BiHalfHead, ContinuationHead, GreedySignHead, SignHead
from hybridhash.models.heads.layered import DivideEncodeHead, HashCoderHead, MLPHead, TwoLevelHead
from hybridhash.models.heads.linear import (
    BatchNormHead,
    LinearHead,
    ProjectionHead,
    SigmoidHead,
    SpectralHead,
    SphericalHead,
    TanhHead,
    WeightedHead,
)

__all__ = [
    "BatchNormHead",
    "BiHalfHead",
    "ContinuationHead",
    "DivideEncodeHead",
    "GreedySignHead",
    "HashCoderHead",
    "LinearHead",
    "MLPHead",
    "ProjectionHead",
    "SigmoidHead",
    "SignHead",
    "SpectralHead",
    "SphericalHead",
    "TanhHead",
    "TwoLevelHead",
    "WeightedHead",
    "create_head",
    "list_heads",
]

_HEADS: dict[str, type[nn.Module]] = {
    "batchnorm": BatchNormHead,
    "bihalf": BiHalfHead,
    "continuation": ContinuationHead,
    "divide": DivideEncodeHead,
    "greedy": GreedySignHead,
    "hashcoder": HashCoderHead,
    "mlp": MLPHead,
    "projection": ProjectionHead,
    "sigmoid": SigmoidHead,
    "sign": SignHead,
    "spectral": SpectralHead,
    "spherical": SphericalHead,
    "tanh": TanhHead,
    "two_level": TwoLevelHead,
    "unbounded": LinearHead,
    "weighted": WeightedHead,
}


def list_heads() -> list[str]:
    """Return the names that :func:`create_head` takes, sorted.

    Example:
        >>> "tanh" in list_heads()
        True
    """
    return sorted(_HEADS)


def renamed_head(name: str) -> str:
    """Return the present name of a head: ``"linear"`` is now ``"tanh"``, with a DeprecationWarning."""
    if name != "linear":
        return name
    warnings.warn("the head 'linear' is now called 'tanh'", DeprecationWarning, stacklevel=3)
    return "tanh"


def create_head(name: str, in_features: int, bits: int, **kwargs: Any) -> nn.Module:
    """Create a head by name.

    Args:
        name: One of :func:`list_heads`. ``"tanh"`` is the usual linear map with tanh, ``"unbounded"`` the
            bare linear map. ``"linear"`` is a deprecated name of ``"tanh"``.
        in_features: Width of the embedding.
        bits: Code length, 1 to 4,096.
        **kwargs: Arguments of the class.

    Returns:
        The head, ``(B, in_features)`` to ``(B, bits)``.

    Raises:
        TypeError: The head does not take an argument.
        ValueError: There is no head of that name, or the class refuses its settings.

    Example:
        >>> create_head("continuation", 8, 4, schedule="epochs").scale
        tensor(1.)
    """
    name = renamed_head(name)
    if not isinstance(name, str) or name not in _HEADS:
        near = difflib.get_close_matches(str(name), _HEADS, n=3) or list_heads()
        raise ValueError(f"no head is called {name!r}; nearest: {', '.join(near)} (all: list_heads())")
    known = list(inspect.signature(_HEADS[name]).parameters)[2:]
    for argument in kwargs:
        if argument not in known:
            raise TypeError(f"the head {name!r} takes no argument {argument!r}, only {', '.join(known)}")
    return _HEADS[name](in_features, bits, **kwargs)
