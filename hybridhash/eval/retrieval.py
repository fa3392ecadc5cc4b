"""A metric that collects codes batch by batch: alone or in torchmetrics, in one process or in many."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from hybridhash.codes import HashCodes, as_packed
from hybridhash.eval.average_precision import Denominator
from hybridhash.eval.evaluation import evaluate
from hybridhash.eval.measure import Empty, Ties
from hybridhash.eval.report import RetrievalReport
from hybridhash.labels import as_labels

__all__ = ["HammingRetrieval"]


class _Alone(ABC):
    """What is needed of ``torchmetrics.Metric`` where torchmetrics is not installed."""

    def __init__(self, **_: Any) -> None:
        self._defaults: dict[str, list[Tensor]] = {}

    def add_state(self, name: str, default: list[Tensor], **_: Any) -> None:
        self._defaults[name] = default
        setattr(self, name, list(default))

    def reset(self) -> None:
        """Forget all codes."""
        for name in self._defaults:
            setattr(self, name, [])

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.forward(*args, **kwargs)

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> None:
        """What a call does."""


if TYPE_CHECKING:
    _Base = _Alone
else:
    try:
        from torchmetrics import Metric as _Base
    except ImportError:
        _Base = _Alone


class HammingRetrieval(_Base):
    """All retrieval metrics of codes that arrive in batches.

    Keeps packed codes and labels only. Under ``torch.distributed`` every process updates with what it has
    seen, and :meth:`compute` and :meth:`report`, which all processes must call, evaluate the codes of all of
    them. Samplers pad the last batches with items that were seen already: give ``indices``, the row of each
    item in its data set, and every row counts once.

    With torchmetrics installed this is a ``torchmetrics.Metric``; without it the class works alone. In a
    Lightning module: :meth:`update` in ``validation_step``; ``self.log_dict(metric.compute())`` and
    ``metric.reset()`` in ``on_validation_epoch_end``.

    Args:
        bits: code length.
        top_k: this and the other settings as in :func:`hybridhash.eval.evaluate`.
        ks: the cuts of precision, recall, hit rate, NDCG and ACG.
        radius: Hamming radius.
        ties: tie rule.
        denominator: what average precision is divided by.
        empty: what queries without a relevant item count.
        exclude_self: queries are items of the database with the same ``indices``, and do not find themselves.

    Example:
        >>> metric = HammingRetrieval(bits=2, top_k=3, ks=(1,))
        >>> metric.update(torch.tensor([[1.0, 1.0]]), torch.tensor([0]), is_query=True)
        >>> database = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> metric.update(database, torch.tensor([0, 1, 0, 0]), is_query=False)
        >>> metric.compute()["map"]
        tensor(0.9167, dtype=torch.float64)
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    query_packed: list[Tensor]
    query_labels: list[Tensor]
    query_indices: list[Tensor]
    database_packed: list[Tensor]
    database_labels: list[Tensor]
    database_indices: list[Tensor]

    def __init__(
        self,
        bits: int,
        *,
        top_k: int | None = None,
        ks: Sequence[int] = (1, 5, 10, 100, 1000),
        radius: int = 2,
        ties: Ties = "expected",
        denominator: Denominator = "hits",
        empty: Empty = "zero",
        exclude_self: bool = False,
    ) -> None:
        # compute() gathers by itself: batches of different sizes, and no query or no item in a process.
        super().__init__(sync_on_compute=False)
        as_packed(torch.zeros(0, max(0, -(-bits // 8)), dtype=torch.uint8), bits=bits)
        self.bits = bits
        self.settings: dict[str, Any] = {
            "top_k": top_k,
            "ks": tuple(ks),
            "radius": radius,
            "ties": ties,
            "denominator": denominator,
            "empty": empty,
            "exclude_self": exclude_self,
        }
        for side in ("query", "database"):
            for part in ("packed", "labels", "indices"):
                self.add_state(f"{side}_{part}", default=[], dist_reduce_fx=None)

    def update(
        self,
        codes: Tensor | HashCodes,
        labels: Tensor | None = None,
        *,
        is_query: bool,
        indices: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            codes: real-valued or ±1 ``(B, bits)``, packed uint8 ``(B, ceil(bits / 8))``, or HashCodes, whose
                labels and ids stand in for the arguments that are left out.
            labels: class ids ``(B,)`` or multi-hot ``(B, C)``.
            is_query: whether these are queries or items of the database.
            indices: integer ``(B,)``: the row of each item in its data set.

        Raises:
            TypeError, ValueError: NaN, other bits, labels or indices that do not fit the codes, or indices in
                some updates of a side only.
        """
        if isinstance(codes, HashCodes):
            labels = codes.labels if labels is None else labels
            indices = codes.ids if indices is None else indices
        packed, _ = as_packed(codes, bits=self.bits)
        if labels is None:
            raise TypeError("labels are missing: class ids (B,) or multi-hot rows (B, C)")
        labels = as_labels(labels, length=len(packed)).to(packed.device)
        parts = self._side("query" if is_query else "database")
        if indices is not None and (indices.shape != packed.shape[:1] or indices.dtype != torch.int64):
            raise ValueError(
                f"indices must be int64 ({len(packed)},), got {indices.dtype} {tuple(indices.shape)}"
            )
        if parts[0] and (indices is None) == bool(parts[2]):
            raise ValueError(
                "indices were given in some updates and not in others: give them always or never"
            )
        parts[0].append(packed)
        parts[1].append(labels)
        if indices is not None:
            parts[2].append(indices.to(packed.device))

    def compute(self) -> dict[str, Tensor]:
        """The metrics of a :class:`RetrievalReport <hybridhash.eval.RetrievalReport>` as float64 scalars.

        Raises:
            ValueError: no query or no database item was added in any process.
        """
        return {
            name: torch.tensor(value, dtype=torch.float64) for name, value in self.report().metrics.items()
        }

    def report(self) -> RetrievalReport:
        """The full report; raises as :meth:`compute`."""
        return evaluate(self._gathered("query"), self._gathered("database"), **self.settings)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """As :meth:`update`: a batch alone has no metrics, it takes the whole database."""
        self.update(*args, **kwargs)

    def _side(self, side: str) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        packed, labels, indices = (
            getattr(self, f"{side}_{part}") for part in ("packed", "labels", "indices")
        )
        return packed, labels, indices

    def _gathered(self, side: str) -> HashCodes:
        """The codes of one side from all processes, each index once, in the order of the indices."""
        batches = [self._side(side)]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            here = tuple([tensor.cpu() for tensor in tensors] for tensors in batches[0])
            everywhere: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everywhere, here)
            batches = everywhere
        packed, labels, indices = ([t for batch in batches for t in batch[part]] for part in range(3))
        if not packed:
            raise ValueError(f"no {side} codes: call update(..., is_query={side == 'query'}) first")
        if not indices:
            if len(batches) > 1:
                warnings.warn(
                    f"{side} codes of {len(batches)} processes without indices: items that a sampler repeats "
                    "count twice",
                    stacklevel=4,
                )
            return HashCodes(torch.cat(packed), self.bits, torch.cat(labels))
        rows = torch.cat(indices)
        order = rows.argsort(stable=True)
        fresh = torch.ones_like(order, dtype=torch.bool)
        fresh[1:] = rows[order][1:] != rows[order][:-1]
        kept = order[fresh]
        return HashCodes(torch.cat(packed)[kept], self.bits, torch.cat(labels)[kept], rows[kept])
