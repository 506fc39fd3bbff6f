"""Measurements and candidates: what is known about one assignment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.domain.cost import Costs
from app.domain.space import Assignment

Fidelity = Literal["screen", "full", "holdout"]


@dataclass(frozen=True)
class Measurement:
    """Metrics of one assignment on one set of pictures: accuracy (top-1) where labelled, kl to the float outputs."""

    metrics: Mapping[str, float]
    fidelity: Fidelity
    pictures: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the measurement as JSON."""
        return {
            "metrics": dict(self.metrics),
            "fidelity": self.fidelity,
            "pictures": self.pictures,
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """Rebuild what `to_json` wrote."""
        return cls(dict(data["metrics"]), data["fidelity"], data["pictures"], data["seconds"])


@dataclass(frozen=True)
class Candidate:
    """A measured assignment with its costs."""

    assignment: Assignment
    costs: Costs
    measurement: Measurement
