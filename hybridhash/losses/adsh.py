"""ADSH: a network for the queries, discrete codes learned directly for the database."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from hybridhash._checks import check_integer, check_not_negative, generator_device
from hybridhash.labels import as_labels, similar, to_multi_hot
from hybridhash.losses._distributed import gather_rows, sum_over_ranks
from hybridhash.losses._inputs import HasParts, check_codes, check_rows, refuse_reference, upcast

__all__ = ["ADSHLoss"]


class ADSHLoss(HasParts):
    r"""Asymmetric Deep Supervised Hashing: network outputs u for queries, codes V in ±1 for the database.

    .. math::
        L = \frac{J}{|\Omega| n}, \quad J = \sum_{i \in \Omega} \sum_{j=1}^n (u_i^\top v_j - K S_{ij})^2
            + \gamma \sum_{i \in \Omega} \|v_i - u_i\|^2

    with K bits, the n database items, and the batch (or any sample of the database) Omega. S is 1 for pairs
    that share a label and -r for others. The network is trained with V fixed (:meth:`forward`); between, V is
    improved one column after the other with the outputs fixed (:meth:`epoch_end` or
    :meth:`update_database_codes`), which never makes the objective larger. For retrieval, V are the codes of
    the database (``loss.database_codes``); the network hashes only queries. The outputs are meant to be in
    [-1, 1] (tanh).

    Args:
        database_labels: ``(n,)`` class ids or ``(n, C)`` multi-hot, of the whole database (the training set).
        bits: code length K.
        gamma: weight of the quantiser; 200 in the paper.
        dissimilarity: r. ``"database"``: number of similar over number of dissimilar pairs of the whole
            database, the value that the official code estimates anew from each sample Omega. ``"batch"``: of
            the pairs at hand in each call, as in swuxyj/DeepHash-pytorch's network step. A number: that
            number; 1 is the paper's formula.
        generator: source of the random ±1 that V starts with. None means torch's global one. The official
            code starts with zeros, which are not codes.

    Attributes:
        database_codes: buffer ``(n, bits)`` float32, ±1: V.
        database_labels: buffer, int64 ``(n,)`` or bool ``(n, C)``.
        outputs: buffer ``(n, bits)`` float32, latest outputs of the rows that are ``sampled``.
        sampled: buffer, bool ``(n,)``: rows with an output since the last :meth:`epoch_end`.

    Raises:
        ValueError: ``bits`` below 1, an empty database, ``gamma`` or a numeric ``dissimilarity`` negative,
            another ``dissimilarity``.

    Under ``torch.distributed`` the loss is that of the joined batch, and the update takes the samples of all
    ranks, so that V stays equal on all; construct the loss from equally seeded generators.

    Source: Q.-Y. Jiang and W.-J. Li, AAAI 2018, and its code (jiangqy/ADSH-AAAI2018: 2,000 samples, 3 epochs
    on them, then one update; 50 rounds). swuxyj/DeepHash-pytorch takes ``dissimilarity="batch"``, divides by
    the size of its training list instead of n, hashes the database with the network instead of V, and lets V
    hold zeros (sign(0) = 0). Here an entry whose two values are equally good stays as it is.

    Example:
        >>> loss = ADSHLoss(torch.tensor([0, 0, 1, 1]), bits=2, generator=torch.Generator().manual_seed(0))
        >>> codes, indices = torch.tensor([[0.9, -0.8], [-0.7, 0.6]]), torch.tensor([0, 2])
        >>> before = loss.objective(codes, indices)
        >>> loss.update_database_codes(codes, indices)
        >>> loss.objective(codes, indices) <= before, loss.database_codes
        (tensor(True), tensor([[ 1., -1.],
                [ 1., -1.],
                [-1.,  1.],
                [-1.,  1.]]))
    """

    requires: ClassVar[frozenset[str]] = frozenset({"indices", "epoch_hook"})
    database_codes: Tensor
    database_labels: Tensor
    ratio: Tensor
    outputs: Tensor
    sampled: Tensor

    def __init__(
        self,
        database_labels: Tensor,
        bits: int,
        *,
        gamma: float = 200.0,
        dissimilarity: float | Literal["database", "batch"] = "database",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("bits", bits, 1)
        labels = as_labels(database_labels, name="database_labels").clone()
        if labels.shape[0] == 0:
            raise ValueError("database_labels is empty: the loss learns one code for each database item")
        check_not_negative(gamma=gamma)
        if not isinstance(dissimilarity, str):
            check_not_negative(dissimilarity=dissimilarity)
        elif dissimilarity not in ("database", "batch"):
            raise ValueError(f"dissimilarity must be 'database', 'batch' or a number, got {dissimilarity!r}")
        self.gamma = gamma
        self.dissimilarity = dissimilarity
        self.register_buffer("database_labels", labels)
        signs = torch.randint(
            2, (labels.shape[0], bits), generator=generator, device=generator_device(generator)
        )
        self.register_buffer("database_codes", (2 * signs - 1).to(labels.device, torch.float32))
        self.register_buffer("outputs", torch.zeros_like(self.database_codes))
        self.register_buffer("sampled", torch.zeros(labels.shape[0], dtype=torch.bool, device=labels.device))
        ratio = 1.0 if dissimilarity == "batch" else self._fixed_ratio()
        self.register_buffer("ratio", torch.tensor(ratio, dtype=torch.float32, device=labels.device))

    @property
    def num_database(self) -> int:
        """Number of items in the database."""
        return self.database_codes.shape[0]

    @property
    def bits(self) -> int:
        """Code length."""
        return self.database_codes.shape[1]

    def forward(
        self,
        codes: Tensor,
        labels: Tensor,
        *,
        indices: Tensor | None = None,
        ref_codes: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a batch with the database codes fixed; training mode keeps the outputs.

        Args:
            codes: ``(B, bits)`` floating-point, outputs of the network.
            labels: ``(B,)`` or ``(B, C)``; must be the database's labels at ``indices``.
            indices: integers ``(B,)``, rows of the batch in the database.
            ref_codes: must be None: the second side is the database.
            ref_labels: must be None.

        Returns:
            0-dim, float32 (float64 for float64 codes).

        Raises:
            IndexError: an index outside the database.
            TypeError: codes or indices of the wrong type.
            ValueError: no ``indices``, shapes that do not fit, labels that differ from the database's.
        """
        if ref_codes is not None or ref_labels is not None:
            refuse_reference("ADSHLoss")
        codes, indices = self._check_sample(codes, indices)
        self._check_labels(labels, indices)
        if self.training:
            self._remember(codes, indices)
        terms = self._objective(codes, indices)
        self._parts = dict(zip(("pairs", "quantization"), terms.detach().unbind(), strict=True))
        return terms.sum()

    @torch.no_grad()
    def objective(self, codes: Tensor, indices: Tensor) -> Tensor:
        """Return the value of :meth:`forward`, from the outputs for any sample of the database.

        Args:
            codes: ``(m, bits)``, outputs of the network for database rows ``indices``.
            indices: integers ``(m,)``.
        """
        return self._objective(*self._check_sample(codes, indices)).sum()

    @torch.no_grad()
    def update_database_codes(self, codes: Tensor, indices: Tensor, *, sweeps: int = 1) -> None:
        """Improve the database codes, one column after the other, with the network's outputs fixed.

        Column k becomes ``-sign(2 V' U'^T u_k + q_k)`` (V', U' without column k), which is the best it can be
        given the other columns, with ``Q = -2 K S^T U - 2 gamma U_bar`` and U_bar = U in the rows of the
        sample, 0 elsewhere. An entry where that is sign(0) keeps its value.

        Args:
            codes: ``(m, bits)``, outputs U of the network for a sample of the database.
            indices: integers ``(m,)``, the database rows of the sample.
            sweeps: passes over the columns; 1 in the official code.

        Raises:
            IndexError: an index outside the database.
            ValueError: codes with NaN (they would make the database codes meaningless), ``sweeps`` below 1.
        """
        check_integer("sweeps", sweeps, 1)
        codes, indices = self._check_sample(codes, indices)
        self._update(gather_rows(codes), gather_rows(indices), sweeps)

    @torch.no_grad()
    def epoch_end(self) -> None:
        """Update the database codes from the outputs since the last call, then forget these.

        Those are the outputs that :meth:`forward` got in training mode, the last one of each row; without
        any, V stays. Call it after the epochs on one sample.
        """
        rows = self.sampled.nonzero()[:, 0]
        if len(rows):
            self._update(self.outputs[rows], rows, sweeps=1)
            self.sampled.zero_()

    def _remember(self, codes: Tensor, indices: Tensor) -> None:
        """Keep the outputs of all ranks; of a row that occurs twice, the last in the order of the ranks."""
        codes = gather_rows(codes.detach())
        indices = gather_rows(indices)
        # All occurrences of a row write the output of the last one: the order of writing is not defined.
        positions = torch.arange(indices.shape[0], device=indices.device)
        same_row = indices[:, None] == indices[None, :]
        last = (same_row * positions).amax(1) if indices.shape[0] else positions
        self.outputs[indices] = codes[last].to(self.outputs)
        self.sampled[indices] = True

    def _update(self, codes: Tensor, indices: Tensor, sweeps: int) -> None:
        """Do the discrete step for the sample of all ranks."""
        codes = codes.to(torch.float64)
        if bool(codes.isnan().any()):
            raise ValueError("codes contain NaN, which would spoil the database codes: training has diverged")
        linear = -2 * self.bits * self._similarity_product(indices, codes)
        linear.index_add_(0, indices, codes, alpha=-2 * self.gamma)
        gram = codes.T @ codes
        database = self.database_codes.to(torch.float64)
        for _ in range(sweeps):
            for k in range(self.bits):
                others = gram[:, k].clone()
                others[k] = 0
                slope = 2 * database @ others + linear[:, k]
                database[:, k] = torch.where(slope == 0, database[:, k], -slope.sign())
        self.database_codes.copy_(database)

    def _check_sample(self, codes: Tensor, indices: Tensor | None) -> tuple[Tensor, Tensor]:
        codes = upcast(check_codes(codes, bits=self.bits))
        rows = check_rows(indices, length=codes.shape[0], num_rows=self.num_database, owner="database")
        return codes, rows.to(self.database_codes.device)

    def _check_labels(self, labels: Tensor, indices: Tensor) -> None:
        """Raise ValueError unless the labels are the database's: with rows mixed up it would learn noise.

        Under ``torch.compile`` only their shapes are compared.
        """
        given = as_labels(labels, length=indices.shape[0]).to(self.database_labels.device)
        expected = self.database_labels[indices]
        if given.ndim < expected.ndim:
            given = to_multi_hot(given, expected.shape[1])
        elif given.ndim > expected.ndim:
            expected = to_multi_hot(expected, given.shape[1])
        if given.shape != expected.shape:
            raise ValueError(f"labels have {given.shape[1]} classes, the database has {expected.shape[1]}")
        if torch.compiler.is_compiling():
            return
        differ = given != expected
        if differ.ndim == 2:
            differ = differ.any(1)
        if bool(differ.any()):
            raise ValueError(
                f"the labels of row {int(indices[differ][0])} differ from the database's: indices must "
                "be row numbers of the data set whose labels the loss was made with"
            )

    def _objective(self, codes: Tensor, indices: Tensor) -> Tensor:
        """Return the two terms of J / (m n) of all ranks, ``(2,)``.

        (u'v - K S)^2 is multiplied out, so that no (m, n) tensor is kept.
        """
        with torch.autocast(codes.device.type, enabled=False):
            database = self.database_codes.to(codes.dtype)
            with torch.no_grad():
                targets, squares = self._targets(indices, codes.dtype)
                gram = database.T @ database
            products = ((codes @ gram) * codes).sum() - 2 * self.bits * (codes * targets).sum()
            quantization = (database[indices] - codes).square().sum()
            terms = torch.stack((products + self.bits**2 * squares, self.gamma * quantization))
            count = sum_over_ranks(terms.new_tensor(codes.shape[0])).clamp(min=1)
            return sum_over_ranks(terms) / (count * self.num_database)

    def _targets(self, indices: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return ``S V`` of the given rows, ``(m, bits)``, and the sum of the squares of S."""
        labels, ratio = self.database_labels[indices], self._ratio(indices).to(dtype)
        product = torch.zeros(indices.shape[0], self.bits, dtype=dtype, device=labels.device)
        similar_pairs = torch.zeros((), dtype=torch.float64, device=labels.device)
        for start, stop in self._chunks(indices.shape[0]):
            alike = similar(labels, self.database_labels[start:stop]).to(dtype)
            product += alike @ self.database_codes[start:stop].to(dtype)
            similar_pairs += alike.sum()
        product = (1 + ratio) * product - ratio * self.database_codes.to(dtype).sum(0)
        pairs = indices.shape[0] * self.num_database
        return product, (similar_pairs + ratio**2 * (pairs - similar_pairs)).to(dtype)

    def _similarity_product(self, indices: Tensor, codes: Tensor) -> Tensor:
        """Return ``S^T U``: ``(n, bits)``."""
        labels, ratio = self.database_labels[indices], self._ratio(indices)
        product = codes.new_empty(self.num_database, self.bits)
        for start, stop in self._chunks(indices.shape[0]):
            alike = similar(self.database_labels[start:stop], labels).to(codes.dtype)
            product[start:stop] = (1 + ratio) * (alike @ codes)
        return product - ratio * codes.sum(0)

    def _ratio(self, indices: Tensor) -> Tensor:
        """Return r, 0-dim: the buffer, or that of the pairs of these rows with the database."""
        if self.dissimilarity != "batch":
            return self.ratio
        labels = self.database_labels[indices]
        similar_pairs = torch.zeros((), dtype=torch.float64, device=indices.device)
        for start, stop in self._chunks(indices.shape[0]):
            similar_pairs += similar(labels, self.database_labels[start:stop]).sum()
        pairs = torch.full_like(similar_pairs, indices.shape[0] * self.num_database)
        similar_pairs = sum_over_ranks(similar_pairs)
        return similar_pairs / (sum_over_ranks(pairs) - similar_pairs).clamp(min=1)

    def _fixed_ratio(self) -> float:
        """Return r of all pairs of the database, or the number that was given."""
        if not isinstance(self.dissimilarity, str):
            return float(self.dissimilarity)
        labels = self.database_labels
        patterns, counts = torch.unique(labels, dim=0, return_counts=True)
        counts = counts.to(torch.float64)
        similar_pairs = 0.0
        rows = max(2**24 // patterns.shape[0], 1)
        for start in range(0, patterns.shape[0], rows):
            alike = similar(patterns[start : start + rows], patterns).to(torch.float64)
            similar_pairs += float(counts[start : start + rows] @ alike @ counts)
        return similar_pairs / max(labels.shape[0] ** 2 - similar_pairs, 1.0)

    def _chunks(self, sample: int) -> list[tuple[int, int]]:
        """Return the bounds of database chunks whose pairs with the sample are held at once."""
        size = max(2**22 // max(sample, 1), 1)
        return [(start, min(start + size, self.num_database)) for start in range(0, self.num_database, size)]

    def extra_repr(self) -> str:
        return f"num_database={self.num_database}, bits={self.bits}, gamma={self.gamma:g}"
