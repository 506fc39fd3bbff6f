"""How far two sets of network outputs are apart."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Outputs = NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """Outputs of the exported file against the simulation's on the same pictures.

    `top1` is the fraction of equal arg-maxima over axis 1, `sqnr_db` = 10 log10(signal power / error power) in decibels
    (capped at 200 where the outputs are equal), `max_error` the largest absolute difference.
    """

    top1: float
    max_error: float
    sqnr_db: float
    pictures: int

    def to_json(self) -> dict[str, float]:
        """Return the figures as JSON."""
        return asdict(self)


def agreement(simulated: Outputs, exported: Outputs) -> Agreement:
    """Compare outputs (N, classes, ...) of the same shape. Raises ValueError when the shapes differ."""
    if simulated.shape != exported.shape:
        raise ValueError(f"the exported file answers {exported.shape}, the simulation {simulated.shape}")
    top1 = float((simulated.argmax(axis=1) == exported.argmax(axis=1)).mean())
    error = float(np.abs(simulated - exported).max())
    return Agreement(top1, error, sqnr_db(simulated, exported), len(simulated))


def accuracy(outputs: Outputs, labels: NDArray[np.int64]) -> float:
    """Return the fraction of pictures whose arg-max is the label."""
    return float((outputs.argmax(axis=1) == labels).mean())


def sqnr_db(reference: Outputs, other: Outputs) -> float:
    """Return the signal to quantization-noise ratio in decibels, at most 200; minus infinity never (floor -200)."""
    wide = reference.astype(np.float64)
    noise = float(np.square(wide - other).sum())
    signal = float(np.square(wide).sum())
    if noise == 0.0:
        return 200.0
    if signal == 0.0 or not np.isfinite(noise):
        return -200.0
    return float(np.clip(10 * np.log10(signal / noise), -200.0, 200.0))
