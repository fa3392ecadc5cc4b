"""Pairwise losses that pull codes to discrete codes which know the classes: DSDH and DFH.

The forward pass, its errors, the evaluation mode and the behaviour under ``torch.distributed`` are those of
:class:`hybridhash.losses.WMLLoss`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridhash._checks import check_not_negative, check_positive
from hybridhash.labels import as_labels, to_multi_hot
from hybridhash.losses._inputs import check_codes
from hybridhash.losses._pairs import log_likelihood
from hybridhash.losses._rule import PairRule, PairwiseLoss
from hybridhash.losses._walks import class_places
from hybridhash.losses.bank import CodeBank

__all__ = ["DFHLoss", "DSDHLoss", "dsdh_codes", "fisher_centers", "ridge_classifier"]


def _sign(values: Tensor) -> Tensor:
    """±1, -1 at 0 as everywhere in the package."""
    return torch.where(values > 0, 1.0, -1.0).to(values.dtype)


def ridge_classifier(codes: Tensor, labels: Tensor, ridge: float) -> Tensor:
    """The linear classifier W that minimises ``|Y - B W|^2 + ridge |W|^2``.

    Args:
        codes: B, ±1 ``(N, bits)``.
        labels: Y, 0 and 1 of the same dtype, ``(N, C)``.
        ridge: positive.

    Returns:
        ``(bits, C)``, equal to ``(B^T B + ridge I)^-1 B^T Y``.

    Example:
        >>> ridge_classifier(torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 2.0)
        tensor([[ 0.2500, -0.2500]])
    """
    gram = codes.T @ codes
    regular = gram + ridge * torch.eye(codes.shape[1]).to(gram)
    solution: Tensor = torch.linalg.solve(regular, codes.T @ labels)
    return solution


def dsdh_codes(
    codes: Tensor, labels: Tensor, classifier: Tensor, ratio: float, iterations: int = 10
) -> Tensor:
    """Discrete cyclic coordinate descent: ±1 codes that fit a classifier and stay near real-valued codes.

    Minimises ``|y - W^T b|^2 + ratio |b - u|^2`` for each item, bit by bit, until no bit changes.

    Args:
        codes: u, ``(N, bits)``.
        labels: y, 0 and 1 of the dtype of ``codes``, ``(N, C)``.
        classifier: W, ``(bits, C)``.
        ratio: weight of the distance to ``codes``, eta / mu.
        iterations: sweeps over the bits at most.

    Returns:
        ``(N, bits)`` of -1 and 1; the objective is nowhere larger than at ``sign(codes)``.

    Example:
        >>> codes, labels = torch.tensor([[0.1, 0.2]]), torch.tensor([[1.0]])
        >>> dsdh_codes(codes, labels, torch.tensor([[1.0], [3.0]]), ratio=1.0)
        tensor([[-1.,  1.]])
    """
    wanted = labels @ classifier.T + ratio * codes
    gram = classifier @ classifier.T
    signs = _sign(codes)
    for _ in range(iterations):
        before = signs.clone()
        for k in range(codes.shape[1]):
            others = signs @ gram[:, k] - signs[:, k] * gram[k, k]
            signs[:, k] = _sign(wanted[:, k] - others)
        if torch.equal(before, signs):
            break
    return signs


class DSDHLoss(PairwiseLoss):
    r"""Pairwise likelihood, with codes that a linear classifier can tell apart (DSDH).

    The full objective is

    .. math::
        \sum_{ij} [\log(1 + e^{\theta_{ij}}) - s_{ij} \theta_{ij}] + \eta \lVert B - U \rVert^2
            + \mu \lVert Y - B W \rVert^2 + \nu \lVert W \rVert^2, \quad
        \theta_{ij} = \tfrac{1}{2} \langle u_i, u_j \rangle

    over the network's codes U, discrete codes B and a classifier W. Given U, the loss finds B by discrete
    coordinate descent (:func:`dsdh_codes`) and W by ridge regression (:func:`ridge_classifier`); its value is
    the first two terms, divided by the number of pairs as in :class:`DPSHLoss`. The last two have no gradient
    to the network: they act through B.

    With a bank (made with ``num_classes``), W is a buffer that ``epoch_end()`` fits to the whole bank, and
    the codes B of a batch follow from it. Without, B and W belong to the batch, and ``epoch_end()`` does
    nothing.

    Args:
        eta: weight of the distance to the discrete codes.
        mu: weight of the classification error.
        nu: weight of the ridge.
        iterations: alternations of B and W, and sweeps over the bits at most.
        bank: memory of the training set's codes, with ``num_classes``; None compares within the batch.
        exclude_self: leave out the pairs of an item with itself.

    Raises:
        ValueError: ``eta``, ``mu`` or ``nu`` not positive, ``iterations`` below 1, a bank of class ids.

    Source: Q. Li, Z. Sun, R. He, T. Tan, Deep Supervised Discrete Hashing, NeurIPS 2017;
    liqi-casia/DSDH-HashingCode (eta 55, ridge 0.1, 10 iterations). In swuxyj/DeepHash-pytorch no gradient
    of B reaches the network, so that it trains by the likelihood alone: :class:`DPSHLoss` with ``eta=0``.

    Example:
        >>> codes = torch.tensor([[0.9, -0.9], [0.9, -0.8], [-0.9, 0.9]])
        >>> DSDHLoss()(codes, torch.tensor([0, 0, 1]))
        tensor(0.9273)
    """

    requires: frozenset[str] = frozenset({"epoch_hook"})
    classifier: Tensor | None

    def __init__(
        self,
        eta: float = 55.0,
        *,
        mu: float = 1.0,
        nu: float = 0.1,
        iterations: int = 10,
        bank: CodeBank | None = None,
        exclude_self: bool = False,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        check_positive(eta=eta, mu=mu, nu=nu)
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        if bank is not None and bank.num_classes is None:
            raise ValueError("DSDHLoss fits a classifier: make its bank with CodeBank(..., num_classes=C)")
        self.eta, self.mu, self.nu, self.iterations = eta, mu, nu, iterations
        shape = None if bank is None or bank.num_classes is None else (bank.bits, bank.num_classes)
        self.register_buffer("classifier", None if shape is None else torch.zeros(shape))

    def rule(self, bits: int) -> PairRule:
        return PairRule(
            log_likelihood,
            scale=0.5,
            quantizer=self._distance_to_discrete,
            quantization=self.eta,
            per_reference=True,
        )

    @torch.no_grad()
    def epoch_end(self) -> None:
        """Fit the classifier, and with it the discrete codes, to the rows of the bank seen so far."""
        if self.bank is None or self.classifier is None or not bool(self.bank.seen.any()):
            return
        seen = self.bank.seen
        codes = self.bank.codes[seen].to(self.classifier.dtype)
        self.classifier.copy_(self._alternate(codes, self.bank.labels[seen].to(codes.dtype))[1])

    def _alternate(self, codes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        signs = _sign(codes)
        for _ in range(self.iterations):
            classifier = ridge_classifier(signs, labels, self.nu / self.mu)
            before, signs = signs, dsdh_codes(codes, labels, classifier, self.eta / self.mu, self.iterations)
            if torch.equal(before, signs):
                break
        return signs, classifier

    def _distance_to_discrete(self, codes: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            if labels.ndim == 1:
                place, _, classes = class_places(labels, labels)
                labels = to_multi_hot(place, max(classes, 1))
            hot = labels.to(codes.dtype)
            if self.classifier is None:
                signs, _ = self._alternate(codes, hot)
            else:
                classifier = self.classifier.to(codes.dtype)
                signs = dsdh_codes(codes, hot, classifier, self.eta / self.mu, self.iterations)
        return (signs - codes).square().sum(1)


def fisher_centers(
    num_classes: int, bits: int, *, steps: int = 200, generator: torch.Generator | None = None
) -> Tensor:
    """Real-valued class centers V as far apart as possible, by gradient descent on ``|V V^T - T|^2``.

    ``T`` is ``bits`` on the diagonal and ``-bits`` elsewhere.

    Args:
        num_classes: C, at least 1.
        bits: code length, at least 1.
        steps: of gradient descent, from a normal start.
        generator: source of the start, on the CPU.

    Returns:
        float32 ``(num_classes, bits)``.

    Example:
        >>> centers = fisher_centers(2, 8, generator=torch.Generator().manual_seed(0))
        >>> (centers @ centers.T).round()
        tensor([[ 8., -8.],
                [-8.,  8.]])
    """
    centers = torch.randn(num_classes, bits, generator=generator, dtype=torch.float64)
    target = bits * (2 * torch.eye(num_classes, dtype=torch.float64) - 1)
    size = float(torch.linalg.matrix_norm(target, 2))
    for _ in range(steps):
        gram = centers @ centers.T
        # The step is the inverse of a bound on the curvature, so that the error falls in every step.
        curvature = 4 * (3 * float(torch.linalg.matrix_norm(gram, 2)) + size)
        centers = centers - 4 / curvature * (gram - target) @ centers
    return centers.float()


class DFHLoss(PairwiseLoss):
    r"""Pairwise likelihood with a margin on both sides, and codes pulled to class centers (DFH).

    .. math::
        L = \mathrm{mean}_{ij} [s_{ij} \log(1 + e^{m - \theta_{ij}}) + (1 - s_{ij}) \log(1 + e^{m +
        \theta_{ij}})]
            + \eta\, \mathrm{mean}_{ik} (b_{ik} - u_{ik})^2, \quad
        b_i = \mathrm{sign}(\mu C^T y_i + u_i), \quad \theta_{ij} = \tfrac{1}{2} \langle u_i, u_j \rangle

    with class centers C (:func:`fisher_centers`, a buffer).

    Args:
        num_classes: classes, rows of C.
        bits: code length.
        margin: m.
        mu: weight of the center in the target.
        eta: weight of the distance to the target.
        bank: memory of the training set's codes; None compares within the batch.
        exclude_self: leave out the pairs of an item with itself.
        generator: source of the centers' start.

    Raises:
        ValueError: sizes below 1, ``margin`` or ``mu`` not positive, ``eta`` negative; in the forward pass,
            another code length or another number of classes.

    Source: Y. Li, W. Pei, Y. Zha, J. van Gemert, Push for Quantization: Deep Fisher Hashing, BMVC 2019.
    Defaults are those of swuxyj/DeepHash-pytorch, which uses ``CodeBank(..., count_unseen=True)``.

    Example:
        >>> loss = DFHLoss(num_classes=2, bits=2, generator=torch.Generator().manual_seed(0))
        >>> loss(torch.tensor([[2.0, -2.0], [-2.0, 2.0]]), torch.tensor([0, 1]))
        tensor(0.8133)
    """

    centers: Tensor

    def __init__(
        self,
        num_classes: int,
        bits: int,
        *,
        margin: float = 3.0,
        mu: float = 0.1,
        eta: float = 0.5,
        bank: CodeBank | None = None,
        exclude_self: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        check_positive(margin=margin, mu=mu)
        check_not_negative(eta=eta)
        if num_classes < 1 or bits < 1:
            raise ValueError(f"num_classes and bits must be at least 1, got {num_classes} and {bits}")
        self.margin, self.mu, self.eta = margin, mu, eta
        self.register_buffer("centers", fisher_centers(num_classes, bits, generator=generator))

    def rule(self, bits: int) -> PairRule:
        return PairRule(
            self._with_margin, scale=0.5, quantizer=self._distance_to_target, quantization=self.eta
        )

    def forward(
        self,
        codes: Tensor,
        labels: Tensor,
        *,
        indices: Tensor | None = None,
        ref_codes: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        check_codes(codes, bits=self.centers.shape[1])
        labels = self._class_rows(as_labels(labels))
        return super().forward(codes, labels, indices=indices, ref_codes=ref_codes, ref_labels=ref_labels)

    def _with_margin(self, x: Tensor, affinity: Tensor, work: Tensor) -> tuple[Tensor, Tensor]:
        return log_likelihood(x.sub_((2 * affinity - 1) * self.margin), affinity, work)

    def _class_rows(self, labels: Tensor) -> Tensor:
        classes = self.centers.shape[0]
        if labels.ndim == 1:
            return to_multi_hot(labels, classes)
        if labels.shape[1] != classes:
            raise ValueError(f"labels have {labels.shape[1]} classes, the loss was made for {classes}")
        return labels

    def _distance_to_target(self, codes: Tensor, labels: Tensor) -> Tensor:
        center = labels.to(codes.dtype) @ self.centers.to(codes.dtype)
        return (_sign(self.mu * center + codes.detach()) - codes).square().mean(1)
