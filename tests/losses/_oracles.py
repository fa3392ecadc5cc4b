"""Slow, literal transcriptions of formulas; plain autograd, one pair at a time where that is clearest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

U = torch.tensor(
    [[0.9, -0.4, 0.2, -0.7], [0.8, -0.6, -0.1, -0.9], [-0.5, 0.7, 0.3, 0.6], [0.1, -0.2, -0.8, 0.4]],
    dtype=torch.float64,
)
Y = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0]])


def wml(
    codes: Tensor,
    labels: Tensor,
    ref_codes: Tensor,
    ref_labels: Tensor,
    *,
    alpha: float = 0.5,
    jaccard: bool = False,
    skip: set[tuple[int, int]] | None = None,
) -> Tensor:
    """mean over S1 of c_ij l_ij + mean over S0 of l_ij, l = softplus(t) - s t, t = alpha <u_i, u_j>."""
    similar, dissimilar = [], []
    for i in range(codes.shape[0]):
        for j in range(ref_codes.shape[0]):
            if skip and (i, j) in skip:
                continue
            shared = int((labels[i] * ref_labels[j]).sum())
            either = int(((labels[i] + ref_labels[j]) > 0).sum())
            t = alpha * (codes[i] * ref_codes[j]).sum()
            if shared:
                similar.append((F.softplus(t) - t) * (shared / either if jaccard else 1.0))
            else:
                dissimilar.append(F.softplus(t))
    total = codes.sum() * 0
    for side in (similar, dissimilar):
        if side:
            total = total + torch.stack(side).mean()
    return total
