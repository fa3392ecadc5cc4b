"""A ``torchmetrics.Metric`` around :class:`~hybridhash.eval.HammingRetrieval`; needs torchmetrics."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hybridhash.eval.hamming_retrieval import HammingRetrieval

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError("this needs torchmetrics: pip install hybridhash[torchmetrics]") from error

__all__ = ["RetrievalMetric"]


class RetrievalMetric(Metric):
    """Pass updates on to a :class:`HammingRetrieval`, which holds the codes and gathers them by itself.

    Its states do not move with :meth:`to`: the codes stay on the device on which they arrive.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    def __init__(self, retrieval: HammingRetrieval) -> None:
        super().__init__(sync_on_compute=False)
        self.retrieval = retrieval

    def update(self, *args: Any, **kwargs: Any) -> None:
        """See :meth:`HammingRetrieval.update`."""
        self.retrieval.update(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Update only: a batch alone has no metrics, they take the whole database."""
        self.update(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """See :meth:`HammingRetrieval.compute`."""
        return self.retrieval.compute()

    def reset(self) -> None:
        """Forget all codes."""
        super().reset()
        self.retrieval.reset()
