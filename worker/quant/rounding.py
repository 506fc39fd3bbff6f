"""Error-aware rounding: quantize a weight matrix column by column, pushing each column's error onto the next ones.

The update of GPTQ (Frantar et al. 2023, eq. 2 and Algorithm 1) with the inverse Gram matrix's Cholesky factor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.quant.grids import weight_limit

BLOCK = 64


def round_with_feedback(weight: Tensor, scale: Tensor, bits: int, gram: Tensor, damp: float = 0.01) -> Tensor:
    """Return integers (as float) [o, d] for weights [o, d], scales [o] and input Gram matrix [d, d]."""
    dims = weight.shape[1]
    diagonal = gram.diagonal()
    ridge = damp * diagonal.mean().clamp_min(1e-8)
    factor = _inverse_factor(gram + ridge * torch.eye(dims))
    limit = weight_limit(bits)
    work, integers = weight.clone(), torch.empty_like(weight)
    for start in range(0, dims, BLOCK):
        stop = min(start + BLOCK, dims)
        errors = torch.empty(weight.shape[0], stop - start)
        for column in range(start, stop):
            integers[:, column] = (work[:, column] / scale).round().clamp(-limit, limit)
            error = (work[:, column] - integers[:, column] * scale) / factor[column, column]
            work[:, column:stop] -= error[:, None] * factor[column, column:stop][None]
            errors[:, column - start] = error
        work[:, stop:] -= errors @ factor[start:stop, stop:]
    return integers


def _inverse_factor(gram: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of a positive definite matrix."""
    lower = torch.linalg.cholesky(gram.double())
    inverse = torch.cholesky_inverse(lower)
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()
