"""How far two sets of network outputs are apart."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
TIES = 4


@dataclass(frozen=True)
class Agreement:
    """Array of the exported file against the simulation's on the same pictures.

    `top1` is the fraction of equal arg-maxima over the classes, of `decisions` (one per picture, token or pixel);
    either class counts where float32 can't tell their scores apart. `sqnr_db` = 10 log10(signal power / error power)
    in decibels (capped at 200 where the outputs are equal), `max_error` the largest absolute difference.
    """

    top1: float
    max_error: float
    sqnr_db: float
    pictures: int
    decisions: int = 0

    def to_json(self) -> dict[str, float]:
        """Return the figures as JSON."""
        return asdict(self)


def agreement(simulated: Array, exported: Array, axis: int = 1) -> Agreement:
    """Compare outputs with classes or channels along `axis`. Raises ValueError when their shapes differ."""
    if simulated.shape != exported.shape:
        raise ValueError(f"the exported file answers {exported.shape}, the simulation {simulated.shape}")
    same = _same_decisions(simulated, exported, axis)
    error = float(np.abs(simulated - exported).max())
    return Agreement(float(same.mean()), error, sqnr_db(simulated, exported), len(simulated), same.size)


def _same_decisions(simulated: Array, exported: Array, axis: int) -> NDArray[np.bool_]:
    """Tell for each decision whether the exported file's class is the simulation's, or as good as it: further behind
    than `TIES` roundings of the largest output is not."""
    chosen = exported.argmax(axis=axis, keepdims=True)
    behind = simulated.max(axis=axis, keepdims=True) - np.take_along_axis(simulated, chosen, axis)
    found: NDArray[np.bool_] = behind <= TIES * np.finfo(np.float32).eps * np.abs(simulated).max()
    return found


def accuracy(outputs: Array, labels: NDArray[np.int64]) -> float:
    """Return the fraction of pictures whose arg-max is the label."""
    return float((outputs.argmax(axis=1) == labels).mean())


def sqnr_db(reference: Array, other: Array) -> float:
    """Return the signal to quantization-noise ratio in decibels, at most 200; minus infinity never (floor -200)."""
    wide = reference.astype(np.float64)
    noise = float(np.square(wide - other).sum())
    signal = float(np.square(wide).sum())
    if noise == 0.0:
        return 200.0
    if signal == 0.0 or not np.isfinite(noise):
        return -200.0
    return float(np.clip(10 * np.log10(signal / noise), -200.0, 200.0))
