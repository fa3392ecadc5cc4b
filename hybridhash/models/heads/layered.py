"""Heads with layers of their own before the last linear map."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridhash._checks import check_integer
from hybridhash._code_checks import MAX_BITS

__all__ = ["DivideEncodeHead", "HashCoderHead", "MLPHead", "TwoLevelHead"]


class DivideEncodeHead(nn.Module):
    """Divide and encode: each bit reads its own slice of features, through a piecewise threshold (DNNH).

    A linear map widens the embedding to ``bits * slice_size`` features, which are cut into ``bits`` slices.
    For slice ``x_k``, ``s = sigmoid(<w_k, x_k> + c_k)``, and ``g(s)`` is 0 below ``1/2 - epsilon``, 1 above
    ``1/2 + epsilon`` and s between; outside there is no gradient. The output is ``2 g - 1``.

    Args:
        in_features: Width of the embedding.
        bits: Code length, 1 to 4,096.
        slice_size: Features in a slice; the Caffe reimplementation uses 50.
        epsilon: Half the width of the sloping part, in (0, 1/2]. The paper does not state its value.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        TypeError: A size is not an integer.
        ValueError: A size is below 1, there are more than 4,096 bits, or ``epsilon`` is outside (0, 1/2].

    Source: Lai, Pan, Liu, Yan, Simultaneous Feature Learning and Hash Coding, CVPR 2015, section 3.2.

    Example:
        >>> codes = DivideEncodeHead(8, 4, slice_size=3)(torch.randn(2, 8))
        >>> codes.shape, bool((codes.abs() <= 1).all())
        (torch.Size([2, 4]), True)
    """

    def __init__(
        self,
        in_features: int,
        bits: int,
        *,
        slice_size: int = 50,
        epsilon: float = 0.4,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        check_integer("in_features", in_features, 1)
        check_integer("bits", bits, 1, MAX_BITS)
        check_integer("slice_size", slice_size, 1)
        if not 0 < epsilon <= 0.5:
            raise ValueError(f"epsilon must be in (0, 0.5], got {epsilon}")
        self.bits = bits
        self.epsilon = epsilon
        self.features = nn.Linear(in_features, bits * slice_size, device=device, dtype=dtype)
        # A grouped convolution over one position is one filter for each slice.
        self.fc = nn.Conv1d(bits * slice_size, bits, 1, groups=bits, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map embeddings ``(B, in_features)`` to codes ``(B, bits)`` in [-1, 1]."""
        # The piecewise threshold: s itself near 1/2, else 0 or 1.
        s = torch.sigmoid(self.fc(self.features(x).unsqueeze(2)).squeeze(2))
        threshold = (s > 0.5).to(s.dtype)
        g = torch.where((s - 0.5).abs() <= self.epsilon, s, threshold)
        return 2 * g - 1


class TwoLevelHead(nn.Module):
    """Codes from two feature levels: the embedding, and one more layer on top of it (DSRH).

    The codes are ``2 sigmoid(W [x; dropout(relu(V x + d))] + c) - 1``.

    Args:
        in_features: Width of the embedding and of the additional layer.
        bits: Code length, 1 to 4,096.
        drop_rate: Dropout rate of the additional layer.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        TypeError: A size is not an integer.
        ValueError: A size is below 1, or there are more than 4,096 bits.

    Source: Zhao, Huang, Wang, Tan, Deep Semantic Ranking Based Hashing, CVPR 2015, equation 1. The dropout
    and the logistic function are those of its public code.

    Example:
        >>> TwoLevelHead(8, 4).fc
        Linear(in_features=16, out_features=4, bias=True)
    """

    def __init__(
        self, in_features: int, bits: int, *, drop_rate: float = 0.5, device: Any = None, dtype: Any = None
    ):
        super().__init__()
        check_integer("in_features", in_features, 1)
        check_integer("bits", bits, 1, MAX_BITS)
        self.bits = bits
        self.deeper = nn.Linear(in_features, in_features, device=device, dtype=dtype)
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(2 * in_features, bits, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map embeddings ``(B, in_features)`` to codes ``(B, bits)`` in (-1, 1)."""
        levels = torch.cat([x, self.drop(F.relu(self.deeper(x)))], dim=1)
        return 2 * torch.sigmoid(self.fc(levels)) - 1


class MLPHead(nn.Module):
    """Several layers of ``tanh(W_m h + c_m)`` (DH and supervised deep hashing).

    Give the loss ``layers=model.head``, so that it can keep the maps near orthogonal. The features should be
    centred.

    Args:
        in_features: Width of the embedding.
        bits: Code length, 1 to 4,096.
        hidden: Widths of the layers before the last.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: A size is below 1, or there are more than 4,096 bits.

    Source: Liong, Lu, Wang, Moulin, Zhou, Deep Hashing for Compact Binary Codes Learning, CVPR 2015.

    Example:
        >>> MLPHead(8, 4, hidden=(6, 5)).fc
        Linear(in_features=5, out_features=4, bias=True)
    """

    def __init__(
        self,
        in_features: int,
        bits: int,
        *,
        hidden: Sequence[int] = (60, 30),
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        check_integer("in_features", in_features, 1)
        check_integer("bits", bits, 1, MAX_BITS)
        for width in hidden:
            check_integer("hidden", width, 1)
        self.bits = bits
        widths = (in_features, *hidden, bits)
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths[:-1]):
            layers += [nn.Linear(wide, narrow, device=device, dtype=dtype), nn.Tanh()]
        self.hidden = nn.Sequential(*layers)
        self.fc = nn.Linear(widths[-2], bits, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map embeddings ``(B, in_features)`` to codes ``(B, bits)`` in (-1, 1)."""
        return torch.tanh(self.fc(self.hidden(x)))


class HashCoderHead(nn.Module):
    """Two layers with batch normalisation, ``BatchNorm(V relu(BatchNorm(W x + c)))`` (HashCoder).

    The last normalisation balances the bits; the codes are unbounded. ``fit_hash_head(features,
    "contrastive")`` trains it without labels.

    Args:
        in_features: Width of the embedding.
        bits: Code length.
        hidden: Width of the layer between.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        TypeError: A size is not an integer.
        ValueError: A size is below 1.

    Source: Moummad, Zaher, Goëau, Joly, Image Hashing via Cross-View Code Alignment, arXiv 2510.27584. There
    the hidden layer is as wide as the embedding, and has no batch normalisation.

    Example:
        >>> HashCoderHead(8, 4, hidden=16)(torch.randn(64, 8)).mean(0).abs().max() < 1e-5
        tensor(True)
    """

    def __init__(
        self, in_features: int, bits: int, *, hidden: int = 512, device: Any = None, dtype: Any = None
    ):
        super().__init__()
        check_integer("in_features", in_features, 1)
        check_integer("bits", bits, 1, MAX_BITS)
        check_integer("hidden", hidden, 1)
        self.bits = bits
        self.hidden = nn.Linear(in_features, hidden, device=device, dtype=dtype)
        self.hidden_norm = nn.BatchNorm1d(hidden, device=device, dtype=dtype)
        self.fc = nn.Linear(hidden, bits, bias=False, device=device, dtype=dtype)
        self.norm = nn.BatchNorm1d(bits, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map embeddings ``(B, in_features)`` to codes ``(B, bits)``; in training ``B`` is at least 2."""
        codes: Tensor = self.norm(self.fc(F.relu(self.hidden_norm(self.hidden(x)))))
        return codes
