"""DSDH: pairwise likelihood, with codes that a linear classifier can tell apart."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridhash._checks import check_integer, check_positive
from hybridhash.labels import to_multi_hot
from hybridhash.losses._inputs import upcast
from hybridhash.losses.bank import CodeMemory
from hybridhash.losses.dpsh import training_set_size
from hybridhash.losses.pairwise import PairwiseLoss, log_likelihood
from hybridhash.shallow.discrete import alternate, dsdh_codes

__all__ = ["DSDHLoss"]


# An operator of its own, so that torch.compile takes the solver, which looks at values, as one step. It stops
# when no bit changes any more. All 10 turns of 10 sweeps would need no look and give the same codes, but take
# 3 to 75 times as long: 174 ms instead of 2.3 for 128 codes of 64 bits and the default eta, on one core.
@torch.library.custom_op(
    "hybridhash::dsdh_codes_of_batch",
    mutates_args=(),
    schema="(Tensor codes, Tensor labels, float ratio, float ridge, int iterations) -> Tensor",
)
def _codes_of_batch(codes: Tensor, labels: Tensor, ratio: float, ridge: float, iterations: int) -> Tensor:
    """Alternate the discrete codes and the classifier of one batch; labels of either form."""
    if labels.ndim == 1:
        ids = torch.unique(labels[labels >= 0])
        # One column for each class of the batch; one in which nothing is, if no item has a label.
        places = torch.searchsorted(ids, labels).masked_fill(labels < 0, -1)
        labels = to_multi_hot(places, max(len(ids), 1))
    signs, _ = alternate(codes, labels.to(codes.dtype), ratio=ratio, ridge=ridge, iterations=iterations)
    return signs


@_codes_of_batch.register_fake
def _(codes: Tensor, labels: Tensor, ratio: float, ridge: float, iterations: int) -> Tensor:
    return torch.empty_like(codes)


class DSDHLoss(PairwiseLoss):
    r"""Pairwise likelihood, with codes that a linear classifier can tell apart (DSDH).

    The full objective is

    .. math::
        \sum_{ij} [\log(1 + e^{\theta_{ij}}) - s_{ij} \theta_{ij}] + \eta \lVert B - U \rVert^2
            + \mu \lVert Y - B W \rVert^2 + \nu \lVert W \rVert^2, \quad
        \theta_{ij} = \tfrac{1}{2} \langle u_i, u_j \rangle

    over the network's codes U, discrete codes B and a classifier W. Given U, the loss finds B by discrete
    coordinate descent and W by ridge regression (:mod:`hybridhash.shallow.discrete`). Its value is the first
    two terms, divided by the number of pairs: the mean over the pairs of a batch, plus ``eta / num_train``
    times the mean over its images, as in :class:`DPSHLoss`. The last two have no gradient to the network:
    they act through B.

    With a bank (made with ``num_classes``), W is a buffer that ``epoch_end()`` fits to the whole bank, and
    the codes B of a batch follow from it. Without, B and W belong to the batch, and ``epoch_end()`` does
    nothing.

    Args:
        eta: weight of the distance to the discrete codes.
        mu: weight of the classification error.
        nu: weight of the ridge.
        num_train: the number of training images to which ``eta`` refers, see :class:`DPSHLoss`.
        iterations: alternations of B and W, and sweeps over the bits at most.
        bank: memory of the training set's codes, with ``num_classes``; None compares within the batch.
        exclude_self: leave out the pairs of an item with itself.

    Raises:
        ValueError: ``eta``, ``mu`` or ``nu`` not positive, ``iterations`` or ``num_train`` below 1, a bank of
            class ids.

    Source: Q. Li, Z. Sun, R. He, T. Tan, Deep Supervised Discrete Hashing, NeurIPS 2017;
    liqi-casia/DSDH-HashingCode (eta 55, ridge 0.1, 10 iterations). In swuxyj/DeepHash-pytorch no gradient
    of B reaches the network, so that it trains by the likelihood alone: :class:`DPSHLoss` with ``eta=0``.

    Example:
        >>> codes = torch.tensor([[0.9, -0.9], [0.9, -0.8], [-0.9, 0.9]])
        >>> DSDHLoss()(codes, torch.tensor([0, 0, 1]))
        tensor(0.3776)
    """

    requires: frozenset[str] = frozenset({"epoch_hook"})

    classifier: Tensor | None

    def __init__(
        self,
        eta: float = 55.0,
        *,
        mu: float = 1.0,
        nu: float = 0.1,
        num_train: int | None = None,
        iterations: int = 10,
        bank: CodeMemory | None = None,
        exclude_self: bool = False,
    ) -> None:
        super().__init__(bank=bank, exclude_self=exclude_self)
        check_positive(eta=eta, mu=mu, nu=nu)
        check_integer("iterations", iterations, 1)
        if bank is not None and bank.num_classes is None:
            raise ValueError("DSDHLoss fits a classifier: make its bank with CodeBank(..., num_classes=C)")
        self.eta, self.mu, self.nu, self.iterations = eta, mu, nu, iterations
        self.num_train = training_set_size(num_train, bank)
        classifier = None
        if bank is not None and bank.num_classes is not None:
            classifier = bank.codes.new_zeros((bank.bits, bank.num_classes), dtype=torch.float32)
        self.register_buffer("classifier", classifier)

    def pair_losses(self, codes: Tensor, ref_codes: Tensor, s: Tensor) -> Tensor:
        return log_likelihood(0.5 * codes @ ref_codes.T, s)

    def penalty(self, codes: Tensor, labels: Tensor) -> Tensor:
        ratio = self.eta / self.mu
        if self.classifier is None:
            signs = _codes_of_batch(codes.detach(), labels, ratio, self.nu / self.mu, self.iterations)
        else:
            classifier = self.classifier.to(codes.dtype)
            signs = dsdh_codes(codes.detach(), labels.to(codes.dtype), classifier, ratio, self.iterations)
        return self.eta / self.num_train * (signs - codes).square().sum(1)

    @torch.no_grad()
    def epoch_end(self) -> None:
        """Fit the classifier, and with it the discrete codes, to the rows of the bank seen so far."""
        if self.bank is None or self.classifier is None or not bool(self.bank.seen.any()):
            return
        seen = self.bank.seen
        codes = upcast(self.bank.codes[seen])  # linear systems have no solver in half precision
        labels = self.bank.labels[seen].to(codes.dtype)
        ratio, ridge = self.eta / self.mu, self.nu / self.mu
        _, classifier = alternate(codes, labels, ratio=ratio, ridge=ridge, iterations=self.iterations)
        self.classifier.copy_(classifier)
