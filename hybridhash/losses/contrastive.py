"""Contrastive codes: the views of an image are alike, all other images are not; no label is needed."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from hybridhash._checks import check_choice, check_not_negative, check_positive
from hybridhash.codes import straight_through_sign
from hybridhash.losses._distributed import gather_rows
from hybridhash.losses._inputs import HasParts, PairBatch, add_up, pair_batch, upcast
from hybridhash.losses.pairwise import cosines

__all__ = ["Binary", "ContrastiveLoss", "Similarity", "contrastive_loss"]

Binary = Literal["none", "sign", "sample"]
Similarity = Literal["cosine", "dot"]

# Added to probabilities before a logarithm, as in the public code.
_EPS = 1e-8


def contrastive_loss(
    codes: Tensor,
    labels: Tensor,
    *,
    ref_codes: Tensor | None = None,
    ref_labels: Tensor | None = None,
    temperature: float = 0.3,
    similarity: Similarity = "cosine",
    binary: Binary = "none",
    bottleneck: float = 0.0,
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """Compute NT-Xent on codes, with the information bottleneck of CIBHash as an option.

    Args:
        codes: ``(B, bits)`` floating-point, the views of all images in any order.
        labels: ``(B,)``, the number of the image that each row is a view of; -1 is a view of no image, which
            is unlike all others. Class ids or multi-hot ``(B, C)`` make it a supervised loss.
        ref_codes: ``(M, bits)``, codes to compare with instead of the batch, such as those of a momentum
            network; they get no gradient.
        ref_labels: labels of ``ref_codes``.
        temperature: see :class:`ContrastiveLoss`, as are the others.
        similarity: ``"cosine"`` or ``"dot"``.
        binary: ``"none"``, ``"sign"`` or ``"sample"``.
        bottleneck: weight of the bottleneck.
        parts: a dict that gets the terms of the loss, detached; None notes nothing.

    Returns:
        0-dim, float32 (float64 for float64 codes).

    Raises:
        TypeError: codes or labels of the wrong type.
        ValueError: a setting out of range, shapes that do not fit each other, or no two rows of one image.

    Example:
        >>> codes = torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [1.0, -1.0]])
        >>> contrastive_loss(codes, torch.tensor([0, 1, 0, 1]), temperature=1.0)
        tensor(0.5514)
    """
    _check_settings(temperature, similarity, binary, bottleneck)
    batch = pair_batch(codes, labels, ref_codes, ref_labels)
    with torch.autocast(batch.codes.device.type, enabled=False):
        compared = _compared(codes, batch, binary)
        bits = compared.codes.shape[1]
        if similarity == "cosine":
            logits = cosines(compared.codes, compared.ref_codes) / temperature
        else:
            logits = compared.products() / (bits * temperature)
        others = compared.different()
        positive = compared.relevance() * others
        # Each row is told apart from all rows but itself. (Not -inf: it has no gradient in a batch of one.)
        log_sum = logits.masked_fill(~others, torch.finfo(logits.dtype).min).logsumexp(1)
        rows = {"contrast": _mean_over_pairs(log_sum[:, None] - logits, positive)}
        if bottleneck > 0:
            divergence = _divergence(batch.codes, batch.ref_codes.detach())
            rows["bottleneck"] = bottleneck * _mean_over_pairs(divergence, positive)
        # A row without another view has no loss; it counts as another image.
        counted = positive.sum(1) > 0
        if not torch.compiler.is_compiling() and not bool(counted.any()):
            raise ValueError(
                f"no two of the {len(counted)} rows are views of one image: give the codes of at least two "
                "views of each image, with the number of the image as its label"
            )
        number = counted.sum().clamp(min=1)
        return add_up({name: (losses * counted).sum() / number for name, losses in rows.items()}, parts)


def _check_settings(temperature: float, similarity: str, binary: str, bottleneck: float) -> None:
    check_positive(temperature=temperature)
    check_choice("similarity", similarity, get_args(Similarity))
    check_choice("binary", binary, get_args(Binary))
    check_not_negative(bottleneck=bottleneck)


def _compared(codes: Tensor, batch: PairBatch, binary: Binary) -> PairBatch:
    """Return the batch with the codes that the similarity is computed of."""
    if binary == "none":
        return batch
    if binary == "sign":
        own = straight_through_sign(batch.codes)
    else:
        # Drawn before the rows of all processes are joined, so that every process compares the same bits.
        u = upcast(codes)
        own = gather_rows(u + (_drawn(u.detach()) - u).detach())
    ref = own if batch.in_batch else straight_through_sign(batch.ref_codes)
    # A code that has diverged has a sign all the same: the loss is NaN.
    own = torch.where(batch.codes.isfinite(), own, torch.nan)
    ref = torch.where(batch.ref_codes.isfinite(), ref, torch.nan)
    return batch._replace(codes=own, ref_codes=ref)


def _drawn(codes: Tensor) -> Tensor:
    """Draw each bit: 1 with probability ``(1 + u) / 2``, else -1."""
    ones = 2 * torch.rand_like(codes) - 1 < codes
    return 2 * ones.to(codes.dtype) - 1


def _divergence(codes: Tensor, ref_codes: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of each pair of codes as Bernoulli bits, ``(B, M)``."""
    p = ((1 + codes) / 2).clamp(0, 1)
    q = ((1 + ref_codes) / 2).clamp(0, 1)
    entropy = (p * (p + _EPS).log() + (1 - p) * (1 - p + _EPS).log()).sum(1, keepdim=True)
    cross = p @ (q + _EPS).log().T + (1 - p) @ (1 - q + _EPS).log().T
    return entropy - cross


def _mean_over_pairs(values: Tensor, positive: Tensor) -> Tensor:
    """Return the mean of each row over its positive pairs, 0 without any: ``(B,)``."""
    return (values * positive).sum(1) / positive.sum(1).clamp(min=1)


class ContrastiveLoss(HasParts):
    r"""NT-Xent on codes: each view of an image is told apart from all other images (CIBHash's form).

    .. math::
        L = \frac{1}{N} \sum_i \frac{1}{|P_i|} \sum_{j \in P_i} \left( -\log
            \frac{e^{s(b_i, b_j) / \tau}}{\sum_{k \neq i} e^{s(b_i, b_k) / \tau}}
            + \beta\, \mathrm{KL}(p_i \,\|\, p_j) \right)

    over the N rows that have another view, P_i being the other views of the image of row i. With two views it
    is NT-Xent; with more it is the form that Khosla et al. (NeurIPS 2020, equation 2) give it. Rows without
    another view count among the other images only.

    The second term is the information bottleneck: bit k of row i is 1 with probability ``p_ik = (1 + u_ik) /
    2`` (which is a sigmoid of twice the input of tanh), and no gradient passes through p_j.

    Args:
        temperature: tau, 0.3 in CIBHash.
        similarity: ``"cosine"``, or ``"dot"``: the inner product divided by the bits, which is the same for
            binary codes.
        binary: what b is: ``"none"``, the codes u as they are; ``"sign"``, their signs, as in the public
            code; ``"sample"``, bits drawn with the probabilities p from the global generator of torch. The
            gradient with respect to b is passed on to u. Reference codes count by their signs in both.
        bottleneck: beta, 0.001 in CIBHash; for codes in [-1, 1] (values beyond are cut off).

    Raises:
        ValueError: a temperature that is not positive, an unknown name, a negative ``bottleneck``.

    Source: Z. Qiu, Q. Su, Z. Ou, J. Yu, C. Chen, Unsupervised Hashing with Contrastive Information
    Bottleneck, IJCAI 2021, and its code (zexuanqiu/CIBHash). There the gradient of a sign is passed on to p,
    so with respect to u it is half as large.

    Example:
        >>> codes = torch.tensor([[0.9, 0.8], [0.7, -0.9], [0.6, 0.9], [0.8, -0.8]], requires_grad=True)
        >>> image = torch.tensor([0, 1, 0, 1])  # two views of two images
        >>> ContrastiveLoss(binary="sign", bottleneck=0.001)(codes, image)
        tensor(0.0690, grad_fn=<SumBackward0>)
    """

    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        temperature: float = 0.3,
        *,
        similarity: Similarity = "cosine",
        binary: Binary = "none",
        bottleneck: float = 0.0,
    ) -> None:
        super().__init__()
        _check_settings(temperature, similarity, binary, bottleneck)
        self.temperature = temperature
        self.similarity: Similarity = similarity
        self.binary: Binary = binary
        self.bottleneck = bottleneck

    def forward(
        self,
        codes: Tensor,
        labels: Tensor,
        *,
        indices: Tensor | None = None,
        ref_codes: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a batch; ``indices`` are ignored, see :func:`contrastive_loss` for the rest."""
        self._parts = {}
        return contrastive_loss(
            codes,
            labels,
            ref_codes=ref_codes,
            ref_labels=ref_labels,
            temperature=self.temperature,
            similarity=self.similarity,
            binary=self.binary,
            bottleneck=self.bottleneck,
            parts=self._parts,
        )

    def extra_repr(self) -> str:
        words = f"similarity={self.similarity!r}, binary={self.binary!r}"
        return f"temperature={self.temperature:g}, {words}, bottleneck={self.bottleneck:g}"
