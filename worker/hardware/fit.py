"""Fitting a latency table: non-negative least squares over the relative errors of whole sessions.

A session's time is linear in the table's coefficients: an overhead plus, kernel by kernel, coefficients times features.
Fitted together on many networks they say what a kernel costs among others, which no profile of single kernels tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from app.domain.latency import LatencyTable, Work, as_run, variants

OVERHEAD = ("", "overhead_ms")
PRIOR, CORRECTION_PRIOR = 1e-3, 0.1
Column = tuple[str, str]


@dataclass(frozen=True)
class Sample:
    """A measured session: its kernels and its milliseconds."""

    works: tuple[Work, ...]
    ms: float
    weight: float = 1.0


def features(works: Sequence[Work]) -> dict[Column, float]:
    """Return the sum of each feature over a network's kernels, by class and feature; 1 per inference."""
    found: dict[Column, float] = {OVERHEAD: 1.0}
    for work in works:
        for key, weight, values in variants(work):
            if weight:
                for name, value in values.items():
                    found[key, name] = found.get((key, name), 0.0) + value
    return found


def fit(samples: Sequence[Sample], saturating: bool = False, prior: float = PRIOR) -> LatencyTable:
    """Return the table that fits the samples' times best in relative terms; `saturating` as the files were written.

    Each coefficient is held back by a small ridge on its own scale, so that classes seen in few networks do not soak
    up what is left over elsewhere.
    """
    rows = [features([as_run(work, saturating) for work in sample.works]) for sample in samples]
    columns = sorted({column for row in rows for column in row})
    scale = np.array(
        [max(row.get(column, 0.0) / sample.ms for row, sample in zip(rows, samples, strict=True)) for column in columns]
    )
    scale[scale == 0] = 1.0
    matrix = (
        np.array(
            [
                [row.get(column, 0.0) / sample.ms * sample.weight for column in columns]
                for row, sample in zip(rows, samples, strict=True)
            ]
        )
        / scale
    )
    wanted = np.array([sample.weight for sample in samples])
    ridge = prior * math.sqrt(len(samples)) * np.eye(len(columns))
    found, _ = nnls(
        np.vstack([matrix, ridge]), np.concatenate([wanted, np.zeros(len(columns))]), maxiter=50 * len(columns)
    )
    return replace(_table(columns, found / scale), saturating=saturating)


def corrected(table: LatencyTable, samples: Sequence[Sample], prior: float = CORRECTION_PRIOR) -> LatencyTable:
    """Return the table with a slope per precision and an overhead fitted on whole networks, both held near what is.

    Nothing changes where there are no samples.
    """
    if not samples:
        return table
    run = [[as_run(work, table.saturating) for work in sample.works] for sample in samples]
    names = sorted({work.precision for works in run for work in works})
    rows = []
    for sample, works in zip(samples, run, strict=True):
        spent = dict.fromkeys(names, 0.0)
        for work in works:
            spent[work.precision] += table.kernel_ms(work)
        rows.append([table.overhead_ms / sample.ms, *(spent[name] / sample.ms for name in names)])
    ridge = prior * math.sqrt(len(samples)) * np.eye(len(names) + 1)
    found, _ = nnls(np.vstack([rows, ridge]), np.concatenate([np.ones(len(rows)), ridge.sum(1)]))
    slopes = {
        name: table.correction.get(name, 1.0) * float(slope) for name, slope in zip(names, found[1:], strict=True)
    }
    return replace(table, correction={**slopes, "overhead_ms": table.overhead_ms * float(found[0])})


def _table(columns: Sequence[Column], values: NDArray[Any]) -> LatencyTable:
    coefficients: dict[str, dict[str, float]] = {}
    overhead = 0.0
    for column, value in zip(columns, values, strict=True):
        if column == OVERHEAD:
            overhead = float(value)
        else:
            coefficients.setdefault(column[0], {})[column[1]] = float(value)
    return LatencyTable(coefficients, {"overhead_ms": overhead})
