"""Error-aware rounding: quantize a weight matrix column by column, pushing each column's error onto the next ones.

The update of GPTQ (Frantar et al. 2023, eq. 2 and Algorithm 1) with the inverse Gram matrix's Cholesky factor.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from worker.quant.grids import weight_limit

BLOCK = 32


def round_with_feedback(weight: Tensor, scale: Tensor, bits: int, gram: Tensor, damp: float = 0.01) -> Tensor:
    """Return integers (as float) [o, d] for weights [o, d], scales [o] and input Gram matrix [d, d].

    NumPy, columns as rows: thousands of tiny operations, for which torch's call overhead would be most of the time.
    """
    dims = weight.shape[1]
    ridge = damp * gram.diagonal().mean().clamp_min(1e-8)
    factor = _inverse_factor(gram + ridge * torch.eye(dims)).numpy()
    limit, steps = weight_limit(bits), scale.numpy()
    work, integers = weight.T.contiguous().clone().numpy(), np.empty((dims, len(weight)), np.float32)
    for start in range(0, dims, BLOCK):
        stop = min(start + BLOCK, dims)
        errors = np.empty((stop - start, len(weight)), np.float32)
        for column in range(start, stop):
            row = integers[column]
            np.rint(work[column] / steps, out=row)
            np.clip(row, -limit, limit, out=row)
            error = errors[column - start]
            np.divide(work[column] - row * steps, factor[column, column], out=error)
            work[column + 1 : stop] -= factor[column, column + 1 : stop, None] * error
        work[stop:] -= factor[start:stop, stop:].T @ errors
    return torch.from_numpy(integers.T.copy())


def _inverse_factor(gram: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of a positive definite matrix."""
    lower = torch.linalg.cholesky(gram.double())
    inverse = torch.cholesky_inverse(lower)
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()
