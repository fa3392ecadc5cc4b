"""The base of the supervised methods on features: checks of the input, ``fit`` and ``transform``.

The estimators follow scikit-learn: settings in the constructor, ``fit(features, labels)``,
``transform(features)``, and learned values in attributes that end in ``_``. They compute in float64 on the
CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hybridhash._checks import check_integer
from hybridhash._code_checks import MAX_BITS
from hybridhash.labels import as_labels, labelled, to_multi_hot
from hybridhash.shallow.unsupervised import as_features

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FeatureHash"]


class FeatureHash:
    """The base class of KSH, SDH and ITQCCA: it checks the input of ``fit`` and ``transform``.

    Args:
        bits: The code length, 1 to 4,096.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def fit(self, features: Tensor, labels: Tensor, *, generator: torch.Generator | None = None) -> Self:
        """Learn the hash functions, and forget what was learned before.

        Images without a label (id -1, or a row of zeros) are similar to nothing, but the kernel of KSH and
        SDH may draw them as anchors.

        Args:
            features: The features ``(N, D)``.
            labels: Class ids ``(N,)`` or multi-hot labels ``(N, C)``.
            generator: The source of all random choices.

        Returns:
            The estimator itself.

        Raises:
            TypeError: Labels are no tensor, or ids or a setting are not integers.
            ValueError: Features are not ``(N, D)``, not finite or all the same; labels have another length;
                all labelled rows have the same labels; there are no more labelled images than bits; or a
                setting is out of range.
        """
        x = as_features(features, "features")
        labels = as_labels(labels, length=x.shape[0]).cpu()
        check_integer("bits", self.bits, 1, MAX_BITS)
        if bool((x == x[0]).all()):
            raise ValueError(f"all {x.shape[0]} rows of features are the same: there is nothing to learn")
        has_label = labelled(labels)
        count = int(has_label.sum())
        if count <= self.bits:
            raise ValueError(
                f"{type(self).__name__} needs more labelled rows than bits, got {count} for {self.bits} bits"
            )
        hot = _multi_hot(labels[has_label])
        if bool((hot == hot[0]).all()):
            raise ValueError("all labelled rows have the same labels: there is nothing to tell apart")
        self._learn(x, has_label, hot, generator)
        self.num_features_ = x.shape[1]
        return self

    def transform(self, features: Tensor) -> Tensor:
        """Compute the codes of features.

        Args:
            features: The features ``(N, D)``.

        Returns:
            Real-valued codes float32 ``(N, bits)`` on the device of the features; a bit is 1 above 0.

        Raises:
            RuntimeError: ``fit`` was not called.
            ValueError: Features are not ``(N, D)`` with the width of those in ``fit``, or not finite.
        """
        if not hasattr(self, "num_features_"):
            raise RuntimeError(f"{type(self).__name__} is not fitted: call fit(features, labels) first")
        x = as_features(features, "features")
        if x.shape[1] != self.num_features_:
            raise ValueError(f"features are {x.shape[1]} wide, those of fit were {self.num_features_}")
        return self._codes(x).to(features.device, torch.float32)

    def fit_transform(
        self, features: Tensor, labels: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Call ``fit`` and return the codes of the same features."""
        return self.fit(features, labels, generator=generator).transform(features)

    def _learn(
        self, features: Tensor, has_label: Tensor, hot: Tensor, generator: torch.Generator | None
    ) -> None:
        """Learn from checked features.

        Args:
            features: float64 ``(N, D)``.
            has_label: bool ``(N,)``.
            hot: float64 ``(L, C)``, the multi-hot labels of the labelled rows.
            generator: The source of all random choices.
        """
        raise NotImplementedError

    def _codes(self, features: Tensor) -> Tensor:
        """Return real-valued codes ``(N, bits)`` of float64 features ``(N, D)``."""
        raise NotImplementedError


def _multi_hot(labels: Tensor) -> Tensor:
    """Return multi-hot labels float64 ``(N, C)``, with a column for each class id that occurs."""
    if labels.ndim == 1:
        ids, columns = torch.unique(labels, return_inverse=True)
        labels = to_multi_hot(columns, len(ids))
    return labels.double()
