"""Which steps a polish takes, which of them it keeps, and what the result is called. See `worker.quant.polish`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

DRAWS = {"thorough": 0, "redrawn-1": 1, "redrawn-2": 2}
BIAS = "bias"
STEPS = (*DRAWS, BIAS)
GAIN = 0.002
"""The share of the loss that a step must take away: less is left undone."""


@dataclass(frozen=True)
class Step:
    """One step: the loss (`kl`, nats) on the deciding rows without and with it, and whether it was kept."""

    name: str
    before: float
    after: float | None
    kept: bool


@dataclass(frozen=True)
class Polished:
    """What polishing came to: the repair that names the network, and every step that was tried."""

    repair: str
    steps: tuple[Step, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def polish(repair: str, loss: Callable[[str], float]) -> Polished:
    """Try the steps one after the other on a repair; `loss` measures a named repair on rows that no step is fitted on.

    A step whose network can't be measured is not kept.
    """
    best, lowest, steps = repair, loss(repair), []
    for name in STEPS:
        asked = with_step(best, name)
        after = _measured(loss, asked)
        kept = after is not None and after < lowest * (1 - GAIN)
        steps.append(Step(name, lowest, after, kept))
        if kept and after is not None:
            best, lowest = asked, after
    return Polished(best, tuple(steps))


def _measured(loss: Callable[[str], float], repair: str) -> float | None:
    try:
        found = loss(repair)
    except ArithmeticError:
        return None
    return found if math.isfinite(found) else None


def with_step(repair: str, step: str) -> str:
    """Return the name of a repair with one more step; a drawing takes the place of another."""
    base, *done = repair.split("+")
    return "+".join([base, *(name for name in done if not (step in DRAWS and name in DRAWS)), step])


def parted(repair: str) -> tuple[str, tuple[str, ...]]:
    """Return the repair and the steps that a name stands for. Raises ValueError for steps that there are not."""
    base, *steps = repair.split("+")
    if not set(steps) <= set(STEPS):
        raise ValueError(f"no such polish: {repair!r}")
    return base, tuple(steps)
