"""Slow, literal transcriptions of formulas; plain autograd, one pair at a time where that is clearest."""

from __future__ import annotations

import math

import torch

from hybridhash.losses._hadamard import hadamard_matrix

U = torch.tensor(
    [[0.9, -0.4, 0.2, -0.7], [0.8, -0.6, -0.1, -0.9], [-0.5, 0.7, 0.3, 0.6], [0.1, -0.2, -0.8, 0.4]],
    dtype=torch.float64,
)
Y = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0]])
SIX_LABELS = {
    "class ids": torch.tensor([0, 0, 1, 2, -1, 1]),
    "multi-hot": torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0], [1, 1, 1]]),
}
H4 = hadamard_matrix(4)


def random_batch(seed, *, bounded=False):
    """Codes (7, 6), labels of five classes with an unlabelled row, and the centers of the classes."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.empty(7, 6, dtype=torch.float64)
    codes = codes.uniform_(-1, 1, generator=generator) if bounded else codes.normal_(generator=generator)
    labels = (torch.rand(7, 5, generator=generator) < 0.4).long()
    labels[2] = 0
    centers = torch.randint(0, 2, (5, 6), generator=generator).float() * 2 - 1
    return codes.requires_grad_(), labels, centers


def assert_same_value_and_gradient(got, expected, codes):
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, codes)[0] for loss in (got, expected)))


def softplus(t):
    """``log(1 + exp(t))``, which PyTorch's gives as ``t`` above 20."""
    return torch.logaddexp(t, torch.zeros_like(t))


def wml(
    codes,
    labels,
    ref_codes,
    ref_labels,
    *,
    alpha=0.5,
    jaccard=False,
    skip=None,
):
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
                similar.append((softplus(t) - t) * (shared / either if jaccard else 1.0))
            else:
                dissimilar.append(softplus(t))
    total = codes.sum() * 0
    for side in (similar, dissimilar):
        if side:
            total = total + torch.stack(side).mean()
    return total


def pairs(n, exclude_self):
    """All ordered pairs of a batch."""
    return [(i, j) for i in range(n) for j in range(n) if not (exclude_self and i == j)]


def balanced_sum(terms, similar):
    """(1/|S|) sum w_ij l_ij with w_ij = |S|/|S1| or |S|/|S0|."""
    s1 = sum(bool(similar[p]) for p in terms)
    s0 = len(terms) - s1
    weighted = [(len(terms) / (s1 if similar[p] else s0)) * term for p, term in terms.items()]
    return sum(weighted) / len(terms)


def hashnet(
    u,
    y,
    *,
    weighting,
    alpha,
    jaccard,
    exclude_self,
    similar_weight=1,
):
    """sum_ij w_ij [log(1 + exp(alpha <h_i, h_j>)) - alpha s_ij <h_i, h_j>], three weightings."""
    similar = (y @ y.T) > 0
    terms, counts = {}, 0.0
    for i, j in pairs(len(u), exclude_self):
        t = alpha * (u[i] @ u[j])
        term = softplus(t) - float(similar[i, j]) * t
        weight = 1.0
        if similar[i, j] and weighting == "paper" and jaccard:
            weight = int((y[i] & y[j]).sum()) / int((y[i] | y[j]).sum())
        if similar[i, j] and weighting == "caffe":
            weight = 4 * int(y[i] @ y[j]) ** 2 / int(y[i].sum() * y[j].sum())
        if similar[i, j] and weighting != "paper":
            weight *= similar_weight
        counts += similar_weight if similar[i, j] else 1
        terms[i, j] = weight * term
    return balanced_sum(terms, similar) if weighting == "paper" else sum(terms.values()) / counts


def dpsh(u, y, *, eta, num_train, exclude_self):
    """-sum (s theta - log(1 + e^theta)) + eta sum_i |u_i - sign(u_i)|^2, the sum over pairs as a mean."""
    likelihood = 0.0
    for i, j in pairs(len(u), exclude_self):
        theta = 0.5 * u[i] @ u[j]
        likelihood = likelihood - (float(y[i] @ y[j] > 0) * theta - torch.log(1 + torch.exp(theta)))
    b = torch.where(u > 0, 1.0, -1.0)
    quantization = sum(((u[i] - b[i]) ** 2).sum() for i in range(len(u)))
    return likelihood / len(pairs(len(u), exclude_self)) + eta * quantization / (len(u) * num_train)


def dhn(u, y, *, variant, alpha, quantization, exclude_self):
    """log(1 + e^<z,z>) - s <z,z>, or the squared error of variant E, plus lambda log cosh(|z| - 1)."""
    terms = []
    for i, j in pairs(len(u), exclude_self):
        x, s = alpha * (u[i] @ u[j]), float(y[i] @ y[j] > 0)
        terms.append((s - x / u.shape[1]) ** 2 if variant == "E" else torch.log(1 + torch.exp(x)) - s * x)
    quantizer = torch.log(torch.cosh(u.abs() - 1)).mean()
    return torch.stack(terms).mean() + (0 if variant == "Q" else quantization) * quantizer


def idhn(u, y, *, alpha, gamma, quantization, exclude_self):
    """Cross entropy for hard pairs, a graded squared error for soft ones, on u / (1 + |u|)."""
    v, bits, terms = u / (1 + u.abs()), u.shape[1], []
    for i, j in pairs(len(u), exclude_self):
        size = int(y[i].sum() * y[j].sum()) ** 0.5
        s = float(y[i] @ y[j]) / size if size else 0.0
        t = alpha * (v[i] @ v[j])
        hard = s > 0.99 or s < 0.01
        terms.append(softplus(t) - s * t if hard else gamma * (t + bits - 2 * s * bits) ** 2)
    return torch.stack(terms).mean() + quantization * (v.abs() - 1).abs().mean()


def dsh(u, y, *, margin, alpha, exclude_self):
    """1/2 (1 - y) D + 1/2 y max(m - D, 0) + alpha (| |b_i| - 1 |_1 + | |b_j| - 1 |_1), y = 1 dissimilar."""
    terms = []
    for i, j in pairs(len(u), exclude_self):
        d = ((u[i] - u[j]) ** 2).sum()
        terms.append(0.5 * d if y[i] @ y[j] > 0 else 0.5 * torch.clamp(margin - d, min=0))
    pull = alpha * sum(2 * (u[i].abs() - 1).abs().sum() for i in range(len(u))) / len(u)
    return torch.stack(terms).mean() + pull


def dbdh(u, y, *, balance, power, exclude_self):
    """mean of softplus(t) - s t, t = <v_i, v_j> / 2, v = u cut at ±1, plus balance mean_i |mean_k v_ik|^p."""
    v = torch.stack([torch.stack([x if abs(x) <= 1 else x.detach().sign() for x in row]) for row in u])
    similar = (y @ y.T) > 0
    terms = []
    for i, j in pairs(len(u), exclude_self):
        t = (v[i] @ v[j]) / 2
        terms.append(softplus(t) - float(similar[i, j]) * t)
    return sum(terms) / len(terms) + balance * sum((sum(row) / len(row)).abs() ** power for row in v) / len(u)


def lcdsh(u, y, *, locality, exclude_self):
    """mean softplus(-s t) + locality (sigmoid(t) - sigmoid(t of the signs))^2, t = <u_i, u_j> / 2, s ±1."""
    similar = (y @ y.T) > 0
    terms = []
    for i, j in pairs(len(u), exclude_self):
        t = (u[i] @ u[j]) / 2
        agreement = sum(1 if (a > 0) == (b > 0) else -1 for a, b in zip(u[i], u[j], strict=True)) / 2
        s = 1 if similar[i, j] else -1
        terms.append(
            softplus(-s * t) + locality * (1 / (1 + (-t).exp()) - 1 / (1 + math.exp(-agreement))) ** 2
        )
    return sum(terms) / len(terms)


def dch(u, y, *, gamma, quantization, max_cosine, exclude_self):
    """w_ij [s log(d/gamma) + log(1 + gamma/d)] + lambda log(1 + d(|h|, 1)/gamma), d = K/2 (1 - cos)."""
    bits, terms = u.shape[1], {}
    for i, j in pairs(len(u), exclude_self):
        cosine = (u[i] @ u[j]) / (u[i].norm() * u[j].norm())
        d = bits / 2 * (1 - cosine.clamp(max=max_cosine))
        terms[i, j] = float(y[i] @ y[j] > 0) * torch.log(d / gamma) + torch.log(1 + gamma / d)
    one = torch.ones(bits, dtype=u.dtype)
    away = [bits / 2 * (1 - (x.abs() @ one) / (x.norm() * one.norm())) for x in u]
    return (
        balanced_sum(terms, (y @ y.T) > 0)
        + quantization * torch.stack([torch.log(1 + d / gamma) for d in away]).mean()
    )


def literal_centroid(centers, row, tie_bits):
    """The majority of the centers of a row's labels, bit by bit."""
    bits = []
    for k in range(centers.shape[1]):
        total = sum(float(centers[c, k]) for c in range(centers.shape[0]) if row[c])
        bits.append(float(tie_bits[k]) if total == 0 else math.copysign(1.0, total))
    return bits


def cosine(u, v):
    """The cosine of two codes."""
    return (u * v).sum() / (u.square().sum().sqrt() * v.square().sum().sqrt())
