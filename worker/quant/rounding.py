"""Error-aware rounding: quantize a weight matrix column by column, pushing each column's error onto the next ones.

The update of GPTQ (Frantar et al. 2023, eq. 2 and Algorithm 1) with the inverse Gram matrix's Cholesky factor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.quant.grids import weight_limit

BLOCK = 32
RIDGE = 0.01
SCALE_RATIOS = (1.0, 0.85, 1.2)
"""Where error feedback starts from, in units of the scales that suit the weights alone; ties go to the first."""
POWER_RATIOS = (1.0, 0.5, 2.0)
SWEEPS = 2


def round_with_feedback(weight: Tensor, scale: Tensor, bits: int, gram: Tensor, damp: float = RIDGE) -> Tensor:
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


@dataclass(frozen=True)
class Rounded:
    """Integers (as float) [o, d] with their scales [o]."""

    integers: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Scales:
    """What scales may be: one per output channel or one for all; any number, or powers of two alone."""

    per_channel: bool = True
    powers: bool = False

    @property
    def ratios(self) -> tuple[float, ...]:
        """Return where error feedback starts from."""
        return POWER_RATIOS if self.powers else SCALE_RATIOS


def round_to_outputs(weight: Tensor, scale: Tensor, bits: int, gram: Tensor, scales: Scales = Scales()) -> Rounded:
    """Return the rounding of weights [o, d] that changes a layer's outputs least, by its input Gram matrix [d, d].

    Error feedback from several scales around the given ones [o], each then refitted to its integers by least squares
    (powers of two stay as they are); the best per output channel (or, with one scale for all, altogether) is improved
    by coordinate descent (the steps of QuantEase, Behdin et al. 2023): each weight in turn takes the integer that is
    best given the others.
    """
    matrix = damped(gram)
    count, ratios = len(weight), torch.tensor(scales.ratios)
    starts = (scale[None] * ratios[:, None]).reshape(-1)
    integers = round_with_feedback(weight.repeat(len(ratios), 1), starts, bits, gram)
    found = [
        _refitted(weight, Rounded(some, start), matrix, scales)
        for some, start in zip(integers.split(count), starts.split(count), strict=True)
    ]
    errors = torch.stack([_errors(weight, item, matrix) for item in found])
    best = (errors if scales.per_channel else errors.sum(1, keepdim=True).expand_as(errors)).argmin(0)
    rows = torch.arange(count)
    integers, scale = (
        torch.stack(part)[best, rows] for part in zip(*[(x.integers, x.scale) for x in found], strict=True)
    )
    return descended(weight, Rounded(integers, scale), bits, matrix, scales)


def damped(gram: Tensor) -> Tensor:
    """Return a Gram matrix [..., d, d] with its ridge, a share of its mean diagonal."""
    ridge = RIDGE * gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-8)
    return gram + ridge[..., None, None] * torch.eye(gram.shape[-1])


def descended(weight: Tensor, start: Rounded, bits: int, gram: Tensor, scales: Scales) -> Rounded:
    """Return a rounding improved by coordinate descent on `gram` as it is, scales refitted after each sweep."""
    for _ in range(SWEEPS):
        start = _refitted(weight, Rounded(_swept(weight, start, bits, gram), start.scale), gram, scales)
    return start


def _errors(weight: Tensor, found: Rounded, gram: Tensor) -> Tensor:
    """Return the squared output error per channel [o]."""
    off = found.integers * found.scale[:, None] - weight
    return ((off @ gram) * off).sum(1)


def _refitted(weight: Tensor, found: Rounded, gram: Tensor, scales: Scales) -> Rounded:
    """Return the integers with the scales that suit the outputs best (least squares); those with none keep theirs."""
    if scales.powers:
        return found
    seen = found.integers @ gram
    gain, energy = (seen * weight).sum(1), (seen * found.integers).sum(1)
    if not scales.per_channel:
        gain, energy = (item.sum().expand(len(weight)) for item in (gain, energy))
    usable = (gain > 0) & (energy > 0)
    return Rounded(found.integers, torch.where(usable, gain / energy.clamp_min(1e-30), found.scale))


def _swept(weight: Tensor, start: Rounded, bits: int, gram: Tensor) -> Tensor:
    """Return integers after one sweep of coordinate descent over the columns; NumPy, columns as rows, as above."""
    limit, steps, table = weight_limit(bits), start.scale.numpy(), gram.numpy()
    integers = start.integers.T.contiguous().clone().numpy()
    pull = (gram @ (start.integers * start.scale[:, None] - weight).T).numpy()
    moved = np.zeros_like(integers)
    for first in range(0, len(table), BLOCK):
        stop = min(first + BLOCK, len(table))
        slopes = pull[first:stop] + table[first:stop, :first] @ moved[:first]
        for column in range(first, stop):
            slope = slopes[column - first]
            wanted = np.rint(integers[column] - slope / (table[column, column] * steps))
            np.clip(wanted, -limit, limit, out=wanted)
            np.multiply(wanted - integers[column], steps, out=moved[column])
            integers[column] = wanted
            slopes[column - first :] += table[first:stop, column, None][column - first :] * moved[column]
    return torch.from_numpy(integers.T.copy())
