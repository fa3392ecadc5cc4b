"""Heads of one linear map, and the function of its output that a method takes as codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hybridhash._checks import check_integer
from hybridhash._code_checks import MAX_BITS

__all__ = [
    "BatchNormHead",
    "LinearHead",
    "ProjectionHead",
    "SigmoidHead",
    "SpectralHead",
    "SphericalHead",
    "TanhHead",
    "WeightedHead",
]


class LinearHead(nn.Module):
    """Bare linear map ``W x + c``, unbounded, as DPSH, DSH and DTSH train it.

    Args:
        in_features: Width of the embedding.
        bits: Code length, 1 to 4,096.
        bias: Whether the map has a bias ``c``.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        TypeError: A size is not an integer.
        ValueError: A size is below 1, or there are more than 4,096 bits.

    Source: Li et al., IJCAI 2016 (DPSH); Liu et al., CVPR 2016 (DSH).

    Example:
        >>> LinearHead(8, 4)(torch.zeros(2, 8)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self, in_features: int, bits: int, *, bias: bool = True, device: Any = None, dtype: Any = None
    ):
        super().__init__()
        check_integer("in_features", in_features, 1)
        check_integer("bits", bits, 1, MAX_BITS)
        self.bits = bits
        self.fc = nn.Linear(in_features, bits, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map embeddings ``(B, in_features)`` to codes ``(B, bits)``."""
        z: Tensor = self.fc(x)
        return z


class ProjectionHead(LinearHead):
    """Linear map ``W (x - m)``, unbounded, that knows the centre m: RaBitQ's, in the units of the features.

    ``fit_hash_head(features, "rabitq", bits)`` sets W with orthonormal rows (columns, if there are more bits
    than features vary in), the bias ``-W m``, and m. A new head has ``m = 0``. Arguments, shapes and errors
    are those of :class:`LinearHead`.

    Attributes:
        center: Buffer ``(in_features,)``, m.

    Source: Gao, Long, RaBitQ, SIGMOD 2024.

    Example:
        >>> from hybridhash import HashCodes
        >>> head, x = ProjectionHead(8, 4), torch.randn(2, 8)
        >>> _ = head.load_state_dict({"fc.weight": torch.eye(4, 8), "fc.bias": torch.zeros(4)}, strict=False)
        >>> codes = HashCodes.from_codes(head(x), factors=True, norms=head.norms(x))
        >>> codes.factors.shape
        torch.Size([2, 2])
    """

    center: Tensor

    def __init__(self, in_features: int, bits: int, *, device: Any = None, dtype: Any = None):
        super().__init__(in_features, bits, device=device, dtype=dtype)
        self.register_buffer("center", torch.zeros(in_features, device=device, dtype=dtype))

    def norms(self, x: Tensor) -> Tensor:
        """Return ``||x - m||``, ``(B,)``: the ``norms`` of :meth:`hybridhash.HashCodes.from_codes`."""
        norms: Tensor = torch.linalg.vector_norm(x - self.center, dim=1)
        return norms


class TanhHead(LinearHead):
    """Linear map with tanh, ``tanh(W x + c)``: the default, and the head of HybridHash, DHN and CSQ.

    Arguments, shapes and errors are those of :class:`LinearHead`.

    Example:
        >>> TanhHead(8, 4)(torch.zeros(2, 8)).abs().max() < 1
        tensor(True)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map embeddings ``(B, in_features)`` to codes ``(B, bits)`` in (-1, 1)."""
        return torch.tanh(self.fc(x))


class SigmoidHead(LinearHead):
    """Latent layer of DLBHC, ``2 sigmoid(z) - 1`` with ``z = W x + c``; the paper keeps ``sigmoid(z)``.

    The classifier on top belongs to :class:`hybridhash.losses.DLBHCLoss`. The embedding before the head
    (``forward_head(pre_logits=True)``) is the paper's fine feature for re-ranking. Arguments, shapes and
    errors are those of :class:`LinearHead`.

    Source: Lin, Yang, Hsiao, Chen, Deep Learning of Binary Hash Codes, CVPR Workshops 2015.

    Example:
        >>> SigmoidHead(8, 4)(torch.zeros(2, 8)).abs().max() < 1
        tensor(True)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map embeddings ``(B, in_features)`` to codes ``(B, bits)`` in (-1, 1)."""
        return 2 * torch.sigmoid(self.fc(x)) - 1


class WeightedHead(SigmoidHead):
    """Weighted bits, so that one trained head serves every shorter code length (DRSDH).

    The codes are those of :class:`SigmoidHead`. The loss learns the weights. Copy them into the head with
    :meth:`set_weights` after training; :meth:`truncated` then keeps the bits that matter most. Arguments,
    shapes and errors are those of :class:`LinearHead`.

    Attributes:
        weights: Buffer ``(bits,)``, initially all 1.

    Source: Zhang, Lin, Zhang, Zuo, Zhang, Bit-Scalable Deep Hashing, IEEE TIP 24(12), 2015.

    Example:
        >>> head = WeightedHead(8, 4)
        >>> head.set_weights(torch.tensor([0.1, -2.0, 0.5, 1.0]))
        >>> short, x = head.truncated(2), torch.randn(3, 8)
        >>> torch.allclose(short(x), head(x)[:, [1, 3]])
        True
    """

    weights: Tensor

    def __init__(self, in_features: int, bits: int, *, device: Any = None, dtype: Any = None):
        super().__init__(in_features, bits, device=device, dtype=dtype)
        self.register_buffer("weights", torch.ones(bits, device=device, dtype=dtype))

    def set_weights(self, weights: Tensor) -> None:
        """Copy learned weights ``(bits,)``, such as ``DRSDHLoss.bit_weights``, into the head."""
        if weights.shape != self.weights.shape:
            raise ValueError(f"weights must be ({self.bits},), got {tuple(weights.shape)}")
        self.weights.copy_(weights.detach())

    def truncated(self, bits: int) -> WeightedHead:
        """Return a new head with the ``bits`` bits of largest ``|weight|``, the largest first.

        Raises:
            ValueError: ``bits`` is below 1 or above the trained length.
        """
        if not 1 <= bits <= self.bits:
            raise ValueError(f"bits must be 1 to {self.bits}, the trained length, got {bits}")
        rows = self.weights.abs().argsort(descending=True, stable=True)[:bits]
        weight = self.fc.weight
        short = WeightedHead(self.fc.in_features, bits, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            short.fc.weight.copy_(weight[rows])
            short.fc.bias.copy_(self.fc.bias[rows])
            short.weights.copy_(self.weights[rows])
        return short.train(self.training)


class BatchNormHead(LinearHead):
    """Batch normalisation of a linear map without bias, ``BatchNorm(W x)`` (OrthoHash).

    It balances the bits; the codes are unbounded. Arguments, shapes and errors are those of
    :class:`LinearHead`.

    Source: Hoe et al., One Loss for All, NeurIPS 2021.

    Example:
        >>> BatchNormHead(8, 4)(torch.randn(64, 8)).mean(0).abs().max() < 1e-5
        tensor(True)
    """

    def __init__(self, in_features: int, bits: int, *, device: Any = None, dtype: Any = None):
        super().__init__(in_features, bits, bias=False, device=device, dtype=dtype)
        self.norm = nn.BatchNorm1d(bits, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map embeddings ``(B, in_features)`` to codes ``(B, bits)``; in training ``B`` is at least 2."""
        codes: Tensor = self.norm(self.fc(x))
        return codes


class SpectralHead(LinearHead):
    """Spectral hashing, ``sin(W x + c)``: each bit is a sine along one direction.

    ``fit_hash_layer(model, loader, "sh")`` sets W and c in closed form. Arguments, shapes and errors are
    those of :class:`LinearHead`.

    Source: Weiss, Torralba, Fergus, Spectral Hashing, NIPS 2008.

    Example:
        >>> SpectralHead(8, 4)(torch.randn(2, 8)).abs().max() <= 1
        tensor(True)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map embeddings ``(B, in_features)`` to codes ``(B, bits)`` in [-1, 1]."""
        return torch.sin(self.fc(x))


class SphericalHead(LinearHead):
    """Spherical hashing, ``tanh(r_k^2 - |s (x - m) - p_k|^2)``: bit k is 1 inside sphere k.

    With ``y = s (x - m)`` the argument of tanh is ``2 p_k · y + (r_k^2 - |p_k|^2) - |y|^2``. Its first two
    terms are the linear map ``fc``. ``fit_hash_layer(model, loader, "sph")`` sets all of it; a new head has
    ``m = 0`` and ``s = in_features ** -0.5``. Arguments, shapes and errors are those of :class:`LinearHead`.

    Attributes:
        mean: Buffer ``(in_features,)``, m.
        scale: Buffer, 0-dim, s.

    Source: Heo, Lee, He, Chang, Yoon, Spherical Hashing, CVPR 2012, equation 2.

    Example:
        >>> SphericalHead(8, 4)(torch.randn(2, 8)).abs().max() <= 1
        tensor(True)
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, in_features: int, bits: int, *, device: Any = None, dtype: Any = None):
        super().__init__(in_features, bits, device=device, dtype=dtype)
        self.register_buffer("mean", torch.zeros(in_features, device=device, dtype=dtype))
        self.register_buffer("scale", torch.full((), in_features**-0.5, device=device, dtype=dtype))
        with torch.no_grad():
            self.fc.bias.fill_(1.0)  # |y|^2 is 1 on average for features of unit variance

    def forward(self, x: Tensor) -> Tensor:
        """Map embeddings ``(B, in_features)`` to codes ``(B, bits)`` in (-1, 1)."""
        y = (x - self.mean) * self.scale
        return torch.tanh(self.fc(y) - y.square().sum(1, keepdim=True))
