"""Hadamard matrices: square, of ±1, any two rows at a distance of half their length."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["hadamard_matrix", "hadamard_order"]


def hadamard_order(bits: int) -> int:
    """Return the smallest order of at least ``bits`` that :func:`hadamard_matrix` constructs."""
    order = bits
    while not _constructible(order):
        order += 1
    return order


def _constructible(order: int) -> bool:
    if order in (1, 2):
        return True
    if order % 4:
        return False
    return _is_paley(order) or (order % 8 == 0 and _constructible(order // 2)) or _kronecker_factor(order) > 0


def _is_paley(order: int) -> bool:
    return _is_prime(order - 1) or (_is_prime(order // 2 - 1) and (order // 2 - 1) % 4 == 1)


def _kronecker_factor(order: int) -> int:
    """Return a divisor f of ``order``, f and ``order / f`` constructible and above 2; 0 if there is none."""
    for factor in range(4, math.isqrt(order) + 1, 4):
        if order % factor == 0 and _constructible(factor) and _constructible(order // factor):
            return factor
    return 0


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def hadamard_matrix(order: int) -> Tensor:
    """Return a Hadamard matrix, float32 ``(order, order)``; Sylvester's for powers of two."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float32)
    if order == 2 or (order % 8 == 0 and _constructible(order // 2)) or order == 4:
        return torch.kron(_signs([[1, 1], [1, -1]]), hadamard_matrix(order // 2))
    if _is_paley(order):
        return _paley(order)
    factor = _kronecker_factor(order)
    return torch.kron(hadamard_matrix(factor), hadamard_matrix(order // factor))


def _paley(order: int) -> Tensor:
    """Build Paley's first (order - 1 prime) or second construction, the first row and column of ones."""
    prime = order - 1 if _is_prime(order - 1) else order // 2 - 1
    residues = torch.full((prime,), -1.0, dtype=torch.float32)
    residues[torch.arange(1, prime).square() % prime] = 1
    residues[0] = 0
    index = torch.arange(prime)
    jacobsthal = residues[(index[:, None] - index) % prime]
    core = torch.zeros(prime + 1, prime + 1, dtype=torch.float32)
    core[0, 1:] = 1
    core[1:, 0] = -1 if prime % 4 == 3 else 1
    core[1:, 1:] = jacobsthal
    if prime % 4 == 3:
        matrix = core + torch.eye(prime + 1, dtype=torch.float32)
    else:
        matrix = torch.kron(core, _signs([[1, 1], [1, -1]]))
        matrix += torch.kron(torch.eye(prime + 1, dtype=torch.float32), _signs([[1, -1], [-1, -1]]))
    matrix = matrix * matrix[0]
    return matrix * matrix[:, :1]


def _signs(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)
