"""Hash heads: from the pooled embedding of an image to real-valued codes, as each method has it.

Every head maps ``(B, in_features)`` to ``(B, bits)``, and bit k is 1 where output k is positive, whatever
the paper's codes are: a sigmoid s becomes ``2 s - 1``. A loss made for (0, 1) takes ``(codes + 1) / 2``.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "BatchNormHead",
    "BiHalfHead",
    "ContinuationHead",
    "DivideEncodeHead",
    "GreedySignHead",
    "LinearHead",
    "MLPHead",
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


class LinearHead(nn.Module):
    """``W x + c``, unbounded: what DPSH, DSH and DTSH train.

    Args:
        in_features: width of the embedding.
        bits: code length, at least 1.

    Raises:
        ValueError: a size below 1.

    Source: Li et al., IJCAI 2016 (DPSH); Liu et al., CVPR 2016 (DSH).

    Example:
        >>> LinearHead(8, 4)(torch.zeros(2, 8)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self, in_features: int, bits: int, *, bias: bool = True, device: Any = None, dtype: Any = None
    ):
        super().__init__()
        for name, value in (("in_features", in_features), ("bits", bits)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.bits = bits
        self.fc = nn.Linear(in_features, bits, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``(B, in_features)`` to codes ``(B, bits)``."""
        z: Tensor = self.fc(x)
        return z


class TanhHead(LinearHead):
    """``tanh(W x + c)``: the head of HybridHash, DHN and CSQ, and the usual one.

    Arguments, shapes and errors as :class:`LinearHead`.

    Example:
        >>> TanhHead(8, 4)(torch.zeros(2, 8)).abs().max() < 1
        tensor(True)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``(B, in_features)`` to codes ``(B, bits)`` in (-1, 1)."""
        return torch.tanh(self.fc(x))


class ContinuationHead(LinearHead):
    """``tanh(beta z)`` with a slope that grows in training, so that codes end at their signs (HashNet).

    The number of :meth:`step` calls t is a buffer, so a resumed run goes on where it was; the slope is

    - ``schedule="iterations"``: ``sqrt(1 + 0.005 t')``, t' being t rounded down to a multiple of 200: call
      ``step()`` after each batch (thuml/HashNet);
    - ``schedule="epochs"``: ``sqrt(t // 20 + 1)``: call ``step()`` after each epoch
      (swuxyj/DeepHash-pytorch).

    Args:
        in_features: width of the embedding.
        bits: code length.
        schedule: of the slope.

    Raises:
        ValueError: a size below 1, an unknown schedule.

    Source: Cao, Long, Wang, Yu, HashNet: Deep Learning to Hash by Continuation, ICCV 2017.

    Example:
        >>> head = ContinuationHead(8, 4, schedule="epochs")
        >>> for epoch in range(60):
        ...     head.step()
        >>> head.scale
        tensor(2.)
    """

    steps: Tensor

    def __init__(
        self,
        in_features: int,
        bits: int,
        *,
        schedule: Literal["iterations", "epochs"] = "iterations",
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__(in_features, bits, device=device, dtype=dtype)
        if schedule not in ("iterations", "epochs"):
            raise ValueError(f"schedule must be 'iterations' or 'epochs', got {schedule!r}")
        self.schedule = schedule
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))

    @property
    def scale(self) -> Tensor:
        """The slope beta: float32, 0-dim."""
        if self.schedule == "epochs":
            return (self.steps // 20 + 1).float().sqrt()
        return (1 + 0.005 * (self.steps // 200 * 200)).float().sqrt()

    def step(self) -> None:
        """Count a batch, or an epoch, as the schedule has it."""
        self.steps += 1

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``(B, in_features)`` to codes ``(B, bits)`` in (-1, 1)."""
        z: Tensor = self.fc(x)
        return torch.tanh(self.scale.to(z.dtype) * z)


def _sign(z: Tensor) -> Tensor:
    """±1, -1 at 0 as everywhere in the package."""
    return torch.where(z > 0, 1.0, -1.0).to(z.dtype)


class SignHead(LinearHead):
    """``sign(z)`` whose gradient is passed straight through where ``|z| <= 1``, and is 0 elsewhere.

    Arguments, shapes and errors as :class:`LinearHead`; codes are -1 and +1.

    Source: Bengio, Léonard, Courville, arXiv 1308.3432; clipped as in Courbariaux et al., arXiv 1602.02830.

    Example:
        >>> SignHead(8, 4)(torch.randn(2, 8)).abs().unique()
        tensor([1.], grad_fn=<Unique2Backward0>)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``(B, in_features)`` to codes ``(B, bits)`` of -1 and +1."""
        clipped = F.hardtanh(self.fc(x))
        return clipped + (_sign(clipped) - clipped).detach()


class GreedySignHead(LinearHead):
    """``sign(z)`` whose gradient is passed unchanged (GreedyHash).

    :class:`hybridhash.losses.GreedyHashLoss` takes the sign itself; this head is for other losses on signs.
    Arguments, shapes and errors as :class:`LinearHead`; codes are -1 and +1.

    Source: Su, Zhang, Han, Tian, Greedy Hash, NeurIPS 2018.

    Example:
        >>> head = GreedySignHead(8, 4)
        >>> head(torch.randn(2, 8)).sum().backward()
        >>> bool((head.fc.bias.grad == 2).all())
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``(B, in_features)`` to codes ``(B, bits)`` of -1 and +1."""
        z = self.fc(x)
        return z + (_sign(z) - z).detach()


class _BiHalf(torch.autograd.Function):
    """Half of the batch +1, half -1, bit by bit; backward as :class:`BiHalfHead` says."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, gamma: float) -> Tensor:
        rank = z.argsort(dim=0, descending=True).argsort(dim=0)
        half = torch.where(rank < z.shape[0] / 2, 1.0, -1.0).to(z.dtype)
        ctx.save_for_backward(z, half)
        ctx.gamma = gamma
        return half

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        z, half = ctx.saved_tensors
        return gradients[0] + ctx.gamma / z.numel() * (z - half), None


class BiHalfHead(LinearHead):
    """Bi-half codes: in training each bit is +1 for the larger half of the batch and -1 for the others.

    So every bit is used by half of the images. Backward, the gradient of the codes B is passed to z, with
    ``gamma (z - B)`` (mean over all entries) added, which draws z to B. In evaluation the head gives z.

    Args:
        in_features: width of the embedding.
        bits: code length.
        gamma: weight of what draws z to its codes.

    Raises:
        ValueError: a size below 1, a negative ``gamma``.

    Source: Li, van Gemert, Deep Unsupervised Image Hashing by Maximizing Bit Entropy, AAAI 2021.

    Example:
        >>> BiHalfHead(8, 4)(torch.randn(6, 8)).sum(0).detach()
        tensor([0., 0., 0., 0.])
    """

    def __init__(
        self, in_features: int, bits: int, *, gamma: float = 6.0, device: Any = None, dtype: Any = None
    ):
        super().__init__(in_features, bits, device=device, dtype=dtype)
        if gamma < 0:
            raise ValueError(f"gamma must not be negative, got {gamma}")
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``(B, in_features)`` to codes ``(B, bits)``: -1 and +1 in training, else real-valued."""
        z: Tensor = self.fc(x)
        if not self.training:
            return z
        return _BiHalf.apply(z, self.gamma)


class BatchNormHead(LinearHead):
    """``BatchNorm(W x)`` without bias: balanced bits, unbounded (OrthoHash).

    Arguments, shapes and errors as :class:`LinearHead`.

    Source: Hoe et al., One Loss for All, NeurIPS 2021.

    Example:
        >>> BatchNormHead(8, 4)(torch.randn(64, 8)).mean(0).abs().max() < 1e-5
        tensor(True)
    """

    def __init__(self, in_features: int, bits: int, *, device: Any = None, dtype: Any = None):
        super().__init__(in_features, bits, bias=False, device=device, dtype=dtype)
        self.norm = nn.BatchNorm1d(bits, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``(B, in_features)`` to codes ``(B, bits)``; in training ``B`` is at least 2."""
        codes: Tensor = self.norm(self.fc(x))
        return codes


class SigmoidHead(LinearHead):
    """``2 sigmoid(z) - 1``: the latent layer of DLBHC, whose paper keeps ``sigmoid(z)``.

    The classifier on top belongs to :class:`hybridhash.losses.DLBHCLoss`; the embedding before the head
    (``forward_head(pre_logits=True)``) is the paper's fine feature for re-ranking. Arguments, shapes and
    errors as :class:`LinearHead`.

    Source: Lin, Yang, Hsiao, Chen, Deep Learning of Binary Hash Codes, CVPR Workshops 2015.

    Example:
        >>> SigmoidHead(8, 4)(torch.zeros(2, 8)).abs().max() < 1
        tensor(True)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``(B, in_features)`` to codes ``(B, bits)`` in (-1, 1)."""
        return 2 * torch.sigmoid(self.fc(x)) - 1


class DivideEncodeHead(nn.Module):
    """Divide and encode: each bit sees a slice of features of its own, through a piecewise threshold (DNNH).

    ``s = sigmoid(<w_k, x_k> + c_k)`` of slice k; ``g(s)`` is 0 below ``1/2 - epsilon``, 1 above
    ``1/2 + epsilon`` and s between, with no gradient outside. The output is ``2 g - 1``.

    Args:
        in_features: width of the embedding.
        bits: code length; a linear map leads to ``bits * slice_size`` features before they are cut.
        slice_size: features of a slice, 50 in the Caffe reimplementation.
        epsilon: half width of the sloping part, in (0, 1/2]. The paper's value is not known.

    Raises:
        ValueError: a size below 1, ``epsilon`` outside (0, 1/2].

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
        for name, value in (("in_features", in_features), ("bits", bits), ("slice_size", slice_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 < epsilon <= 0.5:
            raise ValueError(f"epsilon must be in (0, 0.5], got {epsilon}")
        self.bits, self.epsilon = bits, epsilon
        self.features = nn.Linear(in_features, bits * slice_size, device=device, dtype=dtype)
        # One filter for each slice: a grouped convolution of one position.
        self.fc = nn.Conv1d(bits * slice_size, bits, 1, groups=bits, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``(B, in_features)`` to codes ``(B, bits)`` in [-1, 1]."""
        s = torch.sigmoid(self.fc(self.features(x).unsqueeze(2)).squeeze(2))
        threshold = (s > 0.5).to(s.dtype)
        g = torch.where((s - 0.5).abs() <= self.epsilon, s, threshold)
        return 2 * g - 1


class WeightedHead(SigmoidHead):
    """Bits with weights, so that one trained head serves every shorter length (DRSDH).

    The codes are those of :class:`SigmoidHead`. The weights are learned by the loss; hand them over with
    :meth:`set_weights` after training, and :meth:`truncated` keeps the bits that matter most.

    Args:
        in_features: width of the embedding.
        bits: code length.

    Attributes:
        weights: buffer ``(bits,)``, 1 at the start.

    Raises:
        ValueError: a size below 1.

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
        """Take over learned weights ``(bits,)``, such as ``DRSDHLoss.bit_weights``."""
        if weights.shape != self.weights.shape:
            raise ValueError(f"weights must be ({self.bits},), got {tuple(weights.shape)}")
        self.weights.copy_(weights.detach())

    def truncated(self, bits: int) -> WeightedHead:
        """A head of the ``bits`` bits of largest ``|weight|``, the largest first; this one is unchanged.

        Raises:
            ValueError: fewer than 1 bit, or more than there are.
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


class TwoLevelHead(nn.Module):
    """Codes of two feature levels side by side (DSRH): the embedding, and a further layer on it.

    ``2 sigmoid(W [x; dropout(relu(V x + d))] + c) - 1``.

    Args:
        in_features: width of the embedding, and of the further layer.
        bits: code length.
        drop_rate: dropout rate of the further layer.

    Raises:
        ValueError: a size below 1.

    Source: Zhao, Huang, Wang, Tan, Deep Semantic Ranking Based Hashing, CVPR 2015, equation 1; its public
    code has the dropout and the logistic.

    Example:
        >>> TwoLevelHead(8, 4).fc
        Linear(in_features=16, out_features=4, bias=True)
    """

    def __init__(
        self, in_features: int, bits: int, *, drop_rate: float = 0.5, device: Any = None, dtype: Any = None
    ):
        super().__init__()
        for name, value in (("in_features", in_features), ("bits", bits)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.bits = bits
        self.deeper = nn.Linear(in_features, in_features, device=device, dtype=dtype)
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(2 * in_features, bits, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``(B, in_features)`` to codes ``(B, bits)`` in (-1, 1)."""
        levels = torch.cat([x, self.drop(F.relu(self.deeper(x)))], dim=1)
        return 2 * torch.sigmoid(self.fc(levels)) - 1


class MLPHead(nn.Module):
    """Several layers of ``tanh(W_m h + c_m)`` on features (DH and supervised deep hashing).

    Give the loss ``layers=model.head``: it keeps the maps near orthogonal. Feed centred features.

    Args:
        in_features: width of the embedding.
        bits: code length.
        hidden: widths of the layers before the last.

    Raises:
        ValueError: a size below 1.

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
        widths = (in_features, *hidden, bits)
        if min(widths) < 1:
            raise ValueError(f"in_features, hidden and bits must be at least 1, got {widths}")
        self.bits = bits
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths[:-1]):
            layers += [nn.Linear(wide, narrow, device=device, dtype=dtype), nn.Tanh()]
        self.hidden = nn.Sequential(*layers)
        self.fc = nn.Linear(widths[-2], bits, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``(B, in_features)`` to codes ``(B, bits)`` in (-1, 1)."""
        return torch.tanh(self.fc(self.hidden(x)))


class SpectralHead(LinearHead):
    """``sin(W x + c)``: the form of spectral hashing, each bit a sine along one direction.

    ``fit_hash_layer(model, loader, "sh")`` sets W and c in closed form. Arguments, shapes and errors as
    :class:`LinearHead`.

    Source: Weiss, Torralba, Fergus, Spectral Hashing, NIPS 2008.

    Example:
        >>> SpectralHead(8, 4)(torch.randn(2, 8)).abs().max() <= 1
        tensor(True)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``(B, in_features)`` to codes ``(B, bits)`` in [-1, 1]."""
        return torch.sin(self.fc(x))


class SphericalHead(LinearHead):
    """``tanh(r_k^2 - |s (x - m) - p_k|^2)``: the form of spherical hashing, positive inside a sphere.

    Expanded, that is ``2 p_k · y + (r_k^2 - |p_k|^2) - |y|^2`` with ``y = s (x - m)``: the first two terms
    are the linear map ``fc``. ``fit_hash_layer(model, loader, "sph")`` sets all of it; a new head has
    ``m = 0`` and ``s = in_features ** -0.5``. Arguments, shapes and errors as :class:`LinearHead`.

    Attributes:
        mean: buffer ``(in_features,)``, m.
        scale: buffer, 0-dim, s.

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
        """Embeddings ``(B, in_features)`` to codes ``(B, bits)`` in (-1, 1)."""
        y = (x - self.mean) * self.scale
        return torch.tanh(self.fc(y) - y.square().sum(1, keepdim=True))


_HEADS: dict[str, type[nn.Module]] = {
    "batchnorm": BatchNormHead,
    "bihalf": BiHalfHead,
    "continuation": ContinuationHead,
    "divide": DivideEncodeHead,
    "greedy": GreedySignHead,
    "linear": TanhHead,
    "mlp": MLPHead,
    "sigmoid": SigmoidHead,
    "sign": SignHead,
    "spectral": SpectralHead,
    "spherical": SphericalHead,
    "two_level": TwoLevelHead,
    "unbounded": LinearHead,
    "weighted": WeightedHead,
}


def list_heads() -> list[str]:
    """Names that :func:`create_head` takes, sorted.

    Example:
        >>> "linear" in list_heads()
        True
    """
    return sorted(_HEADS)


def create_head(name: str, in_features: int, bits: int, **kwargs: Any) -> nn.Module:
    """A head by name.

    Args:
        name: one of :func:`list_heads`. ``"linear"`` is the usual linear map with tanh, ``"unbounded"`` the
            same without.
        in_features: width of the embedding.
        bits: code length.
        **kwargs: arguments of the class; unknown ones are refused.

    Raises:
        TypeError: an argument that the head does not take.
        ValueError: no head of that name, or settings that the class refuses.

    Example:
        >>> create_head("continuation", 8, 4, schedule="epochs").scale
        tensor(1.)
    """
    if name not in _HEADS:
        near = difflib.get_close_matches(name, _HEADS, n=3) or list_heads()
        raise ValueError(f"no head is called {name!r}; nearest: {', '.join(near)} (all: list_heads())")
    known = list(inspect.signature(_HEADS[name]).parameters)[2:]
    for argument in kwargs:
        if argument not in known:
            raise TypeError(f"the head {name!r} takes no argument {argument!r}, only {', '.join(known)}")
    return _HEADS[name](in_features, bits, **kwargs)
