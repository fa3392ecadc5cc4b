"""Retrieval metrics of codes that arrive in batches, in one process or in many."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from hybridhash._checks import check_choice, check_integer
from hybridhash._code_checks import as_ids
from hybridhash.codes import MAX_BITS, HashCodes, as_packed
from hybridhash.eval.evaluation import check_settings, evaluate
from hybridhash.eval.functional import Denominator, Ties
from hybridhash.eval.histogram import Array
from hybridhash.eval.metrics import Empty
from hybridhash.eval.report import RetrievalReport
from hybridhash.labels import as_labels

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["HammingRetrieval"]


class HammingRetrieval:
    """Compute all retrieval metrics of codes that arrive in batches.

    Keeps packed codes and labels only. Under ``torch.distributed`` every process updates with what it has
    seen, and :meth:`compute` and :meth:`report`, which all processes must call, evaluate the codes of all of
    them. Samplers pad the last batches with items that were seen already: give ``indices``, the row of each
    item in its data set, and every row counts once.

    In a Lightning module, call :meth:`update` in ``validation_step``; and ``self.log_dict(metric.compute())``
    and ``metric.reset()`` in ``on_validation_epoch_end``. For a ``MetricCollection`` of torchmetrics, see
    :meth:`as_torchmetrics`.

    Args:
        bits: The code length, 1 to 4,096.
        top_k: This and the other settings are those of :func:`hybridhash.eval.evaluate`.
        ks: The cuts of precision, recall, hit rate, NDCG and ACG.
        radius: The Hamming radius.
        ties: The rule for ties.
        denominator: What average precision is divided by.
        empty: What queries without a relevant item count.
        exclude_self: Leave each query out of its own ranking, for queries that are items of the database:
            those with the same ``indices``.

    Raises:
        TypeError, ValueError: A setting that :func:`hybridhash.eval.evaluate` does not take.

    Example:
        >>> metric = HammingRetrieval(bits=2, top_k=3, ks=(1,))
        >>> metric.update(torch.tensor([[1.0, 1.0]]), torch.tensor([0]), is_query=True)
        >>> database = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> metric.update(database, torch.tensor([0, 1, 0, 0]), is_query=False)
        >>> metric.compute()["map"]
        tensor(0.9167, dtype=torch.float64)
    """

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
        check_integer("bits", bits, 1, MAX_BITS)
        check_settings(top_k, ks, radius, ties, denominator, empty)
        check_choice("exclude_self", exclude_self, (True, False))
        self.bits = int(bits)
        self.settings: dict[str, Any] = {
            "top_k": top_k,
            "ks": tuple(ks),
            "radius": radius,
            "ties": ties,
            "denominator": denominator,
            "empty": empty,
            "exclude_self": exclude_self,
        }
        self.reset()

    def reset(self) -> None:
        """Forget all codes."""
        self._batches: dict[str, list[HashCodes]] = {"query": [], "database": []}

    def update(
        self,
        codes: Tensor | Array | HashCodes,
        labels: Tensor | Array | None = None,
        *,
        is_query: bool,
        indices: Tensor | Array | None = None,
    ) -> None:
        """Add a batch.

        Args:
            codes: Real-valued or ±1 ``(B, bits)``, packed uint8 ``(B, ceil(bits / 8))``, or HashCodes, whose
                labels and ids stand in for the arguments that are left out.
            labels: Class ids ``(B,)`` or multi-hot ``(B, C)``.
            is_query: Whether these are queries or items of the database.
            indices: Integer ``(B,)``: the row of each item in its data set.

        Raises:
            TypeError, ValueError: NaN, other bits, labels or indices that do not fit the codes or the form of
                earlier batches, or indices in some updates of a side only.
        """
        if isinstance(codes, HashCodes):
            labels = codes.labels if labels is None else labels
            indices = codes.ids if indices is None else indices
        packed, _ = as_packed(codes, bits=self.bits)
        if labels is None:
            raise TypeError("labels are missing: class ids (B,) or multi-hot rows (B, C)")
        labels = as_labels(labels, length=len(packed)).to(packed.device)
        if indices is not None:
            indices = as_ids(indices, length=len(packed), name="indices").to(packed.device)
        elif self.settings["exclude_self"]:
            raise ValueError(
                "exclude_self=True finds each query in the database by its indices: give indices"
            )
        side = "query" if is_query else "database"
        if self._batches[side]:
            first = self._batches[side][0]
            if (indices is None) != (first.ids is None):
                raise ValueError(
                    "indices were given in some updates and not in others: give them always or never"
                )
            assert first.labels is not None
            if labels.shape[1:] != first.labels.shape[1:]:
                raise ValueError(
                    f"labels of shape {tuple(labels.shape)} do not go with those of earlier {side} batches, "
                    f"{tuple(first.labels.shape)}: give class ids or the same multi-hot columns in all"
                )
        self._batches[side].append(HashCodes(packed, self.bits, labels, indices))

    __call__ = update

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of :meth:`report` as float64 scalars.

        Raises:
            ValueError: No query or no database item was added in any process.
        """
        metrics = self.report().metrics
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}

    def report(self) -> RetrievalReport:
        """Return the full report; raises as :meth:`compute`."""
        return evaluate(self._gathered("query"), self._gathered("database"), **self.settings)

    def as_torchmetrics(self) -> Metric:
        """Return a ``torchmetrics.Metric`` that updates and computes this object, for a ``MetricCollection``.

        Raises:
            ImportError: torchmetrics is not installed (``pip install hybridhash[torchmetrics]``).
        """
        from hybridhash.eval._torchmetrics import RetrievalMetric

        return RetrievalMetric(self)

    def _gathered(self, side: str) -> HashCodes:
        """Gather the codes of one side from all processes, each index once, in the order of the indices."""
        batches = self._batches[side]
        processes = 1
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            processes = dist.get_world_size()
            from_all: list[Any] = [None] * processes
            dist.all_gather_object(from_all, [batch.to("cpu") for batch in batches])
            batches = [batch for of_one in from_all for batch in of_one]
        if not batches:
            raise ValueError(f"no {side} codes: call update(..., is_query={side == 'query'}) first")
        codes = HashCodes.cat(batches)
        if codes.ids is None:
            if processes > 1:
                warnings.warn(
                    f"{side} codes of {processes} processes without indices: items that a sampler repeats "
                    "count twice",
                    stacklevel=4,
                )
            return codes
        order = codes.ids.argsort(stable=True)
        ids = codes.ids[order]
        first = torch.ones_like(ids, dtype=torch.bool)
        first[1:] = ids[1:] != ids[:-1]
        return codes[order[first]]
